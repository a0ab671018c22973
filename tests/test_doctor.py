"""The doctor describes the machine it runs on and never falls ill itself."""

from __future__ import annotations

import io
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from rich.console import Console

from community import doctor
from community.doctor import Check, checks, render
from community.packaged import PACKAGED


@pytest.fixture(scope="module")
def found() -> dict[str, Check]:
    return {check.name: check for check in checks()}


def shown(given: list[Check]) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(render(given))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_what_is_installed_is_there_with_its_version(found: dict[str, Check]) -> None:
    for name in ("ray", "transformers"):
        assert found[name].ok
        assert found[name].there == version(name)
    assert found["torch"].there.startswith(version("torch").partition("+")[0])
    assert found["Python"].ok


def test_every_lack_says_what_it_is_missing_for(found: dict[str, Check]) -> None:
    assert all(check.missing for check in found.values() if not check.ok)
    assert {"GPU", "OpenCL", "C compiler", "machine"} <= set(found)
    assert {f"model {name}" for name in PACKAGED} <= set(found)


def test_nothing_is_found_where_nothing_is(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    assert not doctor._compiler("C compiler", ("cc", "gcc"), "kernels").ok
    assert not doctor._opencl().ok
    lack = doctor._package("no-such-distribution", "nothing")
    assert not lack.ok
    assert lack.missing == "nothing"


def test_a_torch_that_cannot_be_imported_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "ASK_TORCH", "raise ImportError('libcudart is gone')")
    (check,) = doctor._torch()
    assert not check.ok
    assert "libcudart is gone" in check.there


def test_a_folder_that_is_not_there_yet_has_its_parents_room(tmp_path: Path) -> None:
    check = doctor._disk("runs", "COMMUNITY_HOME", tmp_path / "a" / "b")
    assert "GiB free" in check.there
    assert "COMMUNITY_HOME" in check.missing


def test_the_table_shows_each_check_as_it_is() -> None:
    text = shown([Check("here", True, "[1.0]", "unseen"), Check("gone", False, "", "speed")])
    assert "[1.0]" in text  # no markup
    assert "unseen" not in text
    assert "speed" in text


def test_importing_the_doctor_is_light() -> None:
    code = "import sys, community.doctor; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_it_says_which_kernels_run_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMMUNITY_KERNELS", "reference")
    found = {check.name: check for check in doctor._torch()}
    for name in ("kernels", "kernels on the GPU"):
        assert not found[name].ok and "COMMUNITY_KERNELS=reference" in found[name].there
        assert found[name].missing == "speed; plain torch computes"
    monkeypatch.setenv("COMMUNITY_KERNELS", "open")
    found = {check.name: check for check in doctor._torch()}
    for name in ("kernels", "kernels on the GPU"):
        assert "did you mean 'opencl'" in found[name].there
        assert found[name].missing == "transformer agents, until it is mended"
