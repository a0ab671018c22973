"""One recipe under several seeds."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import CROWD, write_recipe
from rich.console import Console

from community.config import read
from community.errors import CommunityError
from community.run import How
from community.study import Outcome, render, study

LOCAL = How(pool="local")


def text_of(outcomes: list[Outcome]) -> str:
    console = Console(width=120)
    with console.capture() as captured:
        console.print(render(outcomes))
    return captured.get()


@pytest.mark.usefixtures("cache")
def test_every_seed_is_a_run_of_its_own_and_is_played_once(tmp_path: Path) -> None:
    recipe = read(Path(write_recipe(tmp_path, CROWD)))
    first = study(recipe, tmp_path, tmp_path / "runs", range(2), LOCAL)
    assert [o.seed for o in first] == [0, 1]
    ledgers = [tmp_path / f"runs/tiny-seed{n}/ledger.db" for n in range(2)]
    before = [path.read_bytes() for path in ledgers]
    assert study(recipe, tmp_path, tmp_path / "runs", range(2), LOCAL) == first
    assert [path.read_bytes() for path in ledgers] == before
    assert before[0] != before[1]


@pytest.mark.usefixtures("cache")
def test_a_seed_that_a_budget_ended_says_so(tmp_path: Path) -> None:
    recipe = read(Path(write_recipe(tmp_path, CROWD)), {"budget.tokens": 1, "run.rounds": 3})
    shown = text_of(study(recipe, tmp_path, tmp_path / "runs", range(1), LOCAL))
    assert "seed 0 stopped after round 1 of 3: its budget of 1 tokens is spent" in shown


@pytest.mark.usefixtures("cache")
def test_a_study_of_another_recipe_is_not_passed_off_as_this_one(tmp_path: Path) -> None:
    recipe = read(Path(write_recipe(tmp_path, CROWD)))
    study(recipe, tmp_path, tmp_path / "runs", range(1), LOCAL)
    other = read(tmp_path / "tiny.toml", {"tasks.train": 9})
    with pytest.raises(CommunityError, match=r"tasks\.train was 8 and is 9"):
        study(other, tmp_path, tmp_path / "runs", range(1), LOCAL)


def test_mean_spread_and_each_seed_are_shown() -> None:
    outcomes = [
        Outcome(n, {"addition 1": exact}, {"addition 1": 0.1}, {"addition 1": 0.2})
        for n, exact in enumerate((0.5, 0.7))
    ]
    shown = text_of(outcomes)
    for value in ("0.600", "0.141", "0.50 (0.10 > 0.20)", "0.70", "seed 0", "seed 1"):
        assert value in shown
    assert "0.000" in text_of(outcomes[:1])  # one seed has no spread


def test_a_domain_that_one_seed_drew_and_another_did_not() -> None:
    one = Outcome(0, {"addition 1": 0.5}, {"addition 1": 0.1}, {"addition 1": 0.2})
    other = Outcome(1, {"product 1": 0.25}, {"product 1": 0.1}, {"product 1": 0.2})
    rows = [line.split() for line in text_of([one, other]).splitlines()]
    assert any("product" in row and "0.250" in row and "-" in row for row in rows)
    assert any("addition" in row and "0.500" in row and "-" in row for row in rows)


def test_a_domain_is_printed_as_it_is_called() -> None:
    names = ("[/b] 1", "sum[int] 1", "a:x:b 1")
    exact = dict.fromkeys(names, 0.5)
    shown = text_of([Outcome(0, exact, exact, exact)])
    assert all(f" {name} " in shown for name in names)
