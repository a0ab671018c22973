"""What a dry run says."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import CROWD, RECIPE, write_recipe
from rich.console import Console

from community.config import read
from community.errors import CommunityError
from community.plan import plan


def planned(folder: Path, text: str) -> str:
    recipe = read(Path(write_recipe(folder, text)))
    console = Console(width=160)
    with console.capture() as captured:
        console.print(plan(recipe, folder))
    return captured.get()


def test_members_topology_tokens_and_time_are_named(tmp_path: Path) -> None:
    shown = planned(tmp_path, RECIPE)
    for word in ("ada", "carl", "sam", "transformer", "scripted", "complete, 6 edges"):
        assert word in shown
    assert "12 tasks a round, 3 rounds, world speaks: validation" in shown
    assert "tokens generated" in shown and "minutes" in shown and "first lessons" in shown
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.toml"]


def test_a_schedule_is_named_whole(tmp_path: Path) -> None:
    ring = '[[topology]]\nuse = "ring"\n[[topology]]\nuse = "complete"\nfrom_round = 3\n'
    members = len(list(read(Path(write_recipe(tmp_path, CROWD))).roster()))
    both = f"ring, {2 * members} edges; complete from round 3, {members * (members - 1)} edges"
    assert f"topology {both}" in planned(tmp_path, CROWD + ring)


def test_what_would_keep_the_run_from_starting_is_raised(tmp_path: Path) -> None:
    with pytest.raises(CommunityError, match="rong"):
        planned(tmp_path, CROWD + '[topology]\nuse = "rong"\n')
    with pytest.raises(CommunityError, match="policy"):
        planned(tmp_path, CROWD + '[router]\npolicy = "nobody"\n')


def test_a_member_that_cannot_learn_what_it_says_is_planned_with(tmp_path: Path) -> None:
    """Five characters after the prompt are the most it can say, and leave no place for the end."""
    short = RECIPE.replace('heads = 2, positions = "restart"', "heads = 2, context = 8")
    assert "ada" in planned(tmp_path, short.replace("max_tokens = 4", "max_tokens = 5"))


def test_members_that_attempt_fewer_tasks_spend_less(tmp_path: Path) -> None:
    every, one = (
        int(planned(tmp_path, CROWD + f"[router]\ntop_k = {k}\n").split("expected: ")[1].split()[0])
        for k in (0, 1)
    )
    assert every == pytest.approx(3 * one, abs=3)
