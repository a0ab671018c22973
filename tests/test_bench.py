"""The benchmark compares with the reference before it times anything."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from community.bench import crowd
from community.kernels import bench, bench_lossless
from community.kernels.backend import backend
from community.kernels.lossless import compress
from community.kernels.timing import Case, timed, worst


def broken(device: str, quick: bool) -> Iterator[Case]:
    yield Case("halved", lambda: (torch.ones(2) / 2,), {}, lambda: (torch.ones(2),))


@pytest.mark.parametrize("op", bench.OPERATIONS)
def test_every_operation_matches_and_is_timed(
    op: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figures.json"
    assert bench.main(["--op", op, "--quick", "--seconds", "0", "--json", str(file)]) == 0
    assert "results match the reference" in capsys.readouterr().out
    cases = json.loads(file.read_text())["cases"]
    assert cases and all(row["op"] == op and row["seconds"]["ours"] > 0 for row in cases)


def test_a_wrong_result_is_named_and_never_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(bench.OPERATIONS, "attention", broken)
    assert bench.main(["--op", "attention"]) == 1
    said = capsys.readouterr().out
    assert "halved: 5.0e-01" in said and "ms" not in said


def test_what_compressing_loses_is_a_wrong_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_lossless, "compress", lambda x: compress(-x))
    assert bench.main(["--op", "lossless", "--quick"]) == 1


@pytest.mark.parametrize(
    ("variable", "given", "told"),
    [
        ("fpga", [], "unknown COMMUNITY_KERNELS backend 'fpga'"),
        ("", ["--json", "nowhere/figures.json"], "there is no folder nowhere for the figures"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_computed(
    variable: str,
    given: list[str],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COMMUNITY_KERNELS", variable)
    backend.cache_clear()
    with pytest.raises(SystemExit) as stopped:
        bench.main(["--op", "attention", *given])
    backend.cache_clear()
    assert stopped.value.code == 2 and told in capsys.readouterr().err.splitlines()[-1]


def test_nan_and_other_shapes_are_no_match() -> None:
    nan = Case("nan", lambda: (torch.tensor([torch.nan]),), {}, lambda: (torch.ones(1),))
    short = Case("short", lambda: (torch.ones(1),), {}, lambda: (torch.ones(2),))
    assert worst(nan) == worst(short) == float("inf")


def test_ratios_name_every_peer() -> None:
    case = Case("sum", lambda: (torch.ones(1),), {"a": lambda: 0, "b": lambda: 0}, lambda: ())
    assert set(timed(case, "cpu", 0).ratios) == {"a", "b"}


def test_sizes_of_a_crowd_are_numbers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["crowd", "ten"])
    with pytest.raises(SystemExit, match="2"):
        crowd.main()
    assert "invalid int value: 'ten'" in capsys.readouterr().err
