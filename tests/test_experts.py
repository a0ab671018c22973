"""First experts: taught once, then taken from the shelf."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command import little_room
from safetensors.torch import load_file, save_file
from tiny_models import chat_model

from community import experts
from community.config import Recipe, parse
from community.errors import CommunityError
from community.members import Members
from community.parts import arena_of, specs_of
from community.pool import LocalPool
from community.types import Learned

HERE = Path(__file__).parent
SHAPE = {"width": 16, "depth": 1, "heads": 2}
MEMBERS = [
    {"name": "ada", "use": "transformer", "shape": SHAPE},
    {"name": "bo", "use": "transformer", "shape": SHAPE | {"width": 24}},
]
FIRST = {"examples": 20, "levels": [1, 2], "steps": 3}


def recipe(**sections: Any) -> Recipe:
    least = {"arena": {"use": "arithmetic"}, "members": MEMBERS, "first": FIRST}
    return parse(least | sections)


def begin(
    found: Recipe, folder: Path, base: Path = HERE
) -> tuple[dict[str, Learned], dict[str, str]]:
    """What was learned, and the members' checkpoints."""
    specs, arena = specs_of(found, base), arena_of(found, base)
    pool = LocalPool(specs, folder / "checkpoints")
    members = Members(pool, [spec.name for spec in specs], arena, found.run.seed)
    return experts.begin(found, specs, members, arena, folder, ()), dict(members.checkpoints)


def shelves(cache: Path) -> int:
    return len(list((cache / "experts").iterdir()))


def test_the_second_run_takes_them_from_the_shelf(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned, checkpoints = begin(recipe(), tmp_path / "one")
    assert all(found.steps == 3 and found.tokens for found in learned.values())
    assert shelves(cache) == 2

    def busy(*_: Any) -> None:
        raise AssertionError("nothing is left to teach")

    monkeypatch.setattr(experts, "_study", busy)
    assert begin(recipe(), tmp_path / "two") == (learned, checkpoints)
    for run in ("one", "two"):
        found = {path.name for path in (tmp_path / run / "checkpoints").iterdir()}
        assert found == set(checkpoints.values())
    renamed = recipe(run={"name": "else", "workers": 7, "rounds": 9})
    assert begin(renamed, tmp_path / "three")[1] == checkpoints


@pytest.mark.parametrize(
    "sections",
    [
        {"run": {"seed": 1}},
        {"first": FIRST | {"steps": 4}},
        {"first": FIRST | {"levels": [1]}},
        {"arena": {"use": "arithmetic", "reverse": True}},
        {"learning": {"batch": 8}},
        {"members": [m | {"optimizer": {"lr": 1e-2}} for m in MEMBERS]},
        {"members": [m | {"shape": SHAPE | {"hidden": 20}} for m in MEMBERS]},
    ],
    ids=str,
)
def test_whatever_made_them_is_in_the_key(
    sections: dict[str, Any], cache: Path, tmp_path: Path
) -> None:
    _, before = begin(recipe(), tmp_path / "one")
    _, after = begin(recipe(**sections), tmp_path / "two")
    assert shelves(cache) == 4
    assert not set(before.values()) & set(after.values())


TENS = """
from community.arenas.arithmetic import ArithmeticArena

class Tens(ArithmeticArena):
    def solve(self, task):
        return super().solve(task){}
"""


def test_a_file_that_says_something_else_now_makes_others(cache: Path, tmp_path: Path) -> None:
    found, checkpoints = recipe(arena={"use": "tens.py:Tens"}, members=MEMBERS[:1]), []
    for folder, text in (("one", TENS.format("")), ("two", TENS.format(' + "0"'))):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "tens.py").write_text(text)
        checkpoints.append(begin(found, tmp_path / folder, tmp_path / folder)[1])
    assert shelves(cache) == 2 and checkpoints[0] != checkpoints[1]


def test_a_model_that_is_another_now_makes_others(cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    tuned = {"name": "ada", "use": "transformer", "model": chat_model(folder)}
    found, checkpoints = recipe(members=[tuned]), []
    for run in ("one", "two", "three"):
        checkpoints.append(begin(found, tmp_path / run)[1])
        if run == "two":
            weights = load_file(folder / "model.safetensors")
            halves = {name: tensor / 2 for name, tensor in weights.items()}
            save_file(halves, folder / "model.safetensors", {"format": "pt"})
    assert checkpoints[0] == checkpoints[1] != checkpoints[2] and shelves(cache) == 2


def test_a_model_in_one_file_is_in_the_key_too(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"one")
    before = experts._weights(tmp_path / "model.gguf")
    (tmp_path / "model.gguf").write_bytes(b"another")
    assert before and experts._weights(tmp_path / "model.gguf") != before


def test_only_who_is_new_is_taught(cache: Path, tmp_path: Path) -> None:
    _, before = begin(recipe(), tmp_path / "one")
    other = [MEMBERS[0], MEMBERS[1] | {"shape": SHAPE}]
    _, after = begin(recipe(members=other), tmp_path / "two")
    assert shelves(cache) == 3
    assert before["ada"] == after["ada"] and before["bo"] != after["bo"]


def test_a_shelf_that_lost_its_checkpoint_is_filled_again(cache: Path, tmp_path: Path) -> None:
    first = begin(recipe(), tmp_path / "one")
    for shelf in (cache / "experts").iterdir():
        (shelf / experts.LABEL).write_text("[")
    assert begin(recipe(), tmp_path / "two") == first
    assert begin(recipe(), tmp_path / "three") == first


def test_an_expert_that_was_damaged_on_its_shelf_is_taught_again(
    cache: Path, tmp_path: Path
) -> None:
    first = begin(recipe(), tmp_path / "one")
    (weights,) = (cache / "experts").glob(f"*/{first[1]['bo']}/model.safetensors")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    assert begin(recipe(), tmp_path / "two") == first
    assert weights.read_bytes() == whole and shelves(cache) == 2
    assert begin(recipe(), tmp_path / "three") == first


def test_a_cache_that_cannot_be_written_keeps_no_run_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMMUNITY_CACHE", str(tmp_path / "shelves"))
    first = begin(recipe(), tmp_path / "one")
    (tmp_path / "file").touch()
    for nowhere in ("/proc/nope", str(tmp_path / "file/cache")):
        monkeypatch.setenv("COMMUNITY_CACHE", nowhere)
        with pytest.warns(RuntimeWarning, match="first experts are taught anew in every run"):
            assert begin(recipe(), tmp_path / Path(nowhere).name) == first


def test_experts_that_find_no_room_in_the_run_are_told_of(cache: Path, tmp_path: Path) -> None:
    begin(recipe(), tmp_path / "one")
    with little_room(1000), pytest.raises(CommunityError, match=r"cannot write .*too large"):
        begin(recipe(), tmp_path / "two")
    assert list((tmp_path / "two" / "checkpoints").iterdir()) == []
    assert begin(recipe(), tmp_path / "two") == begin(recipe(), tmp_path / "one")
    assert shelves(cache) == 2


def test_without_lessons_members_start_as_they_are(cache: Path, tmp_path: Path) -> None:
    learned, checkpoints = begin(recipe(first={}), tmp_path / "one")
    assert learned == {} and all(checkpoints.values())
    assert not (cache / "experts").exists()
    found = {path.name for path in (tmp_path / "one" / "checkpoints").iterdir()}
    assert found == set(checkpoints.values())


def test_a_specialist_is_taught_its_domain(cache: Path, tmp_path: Path) -> None:
    del cache
    arena = {"use": "arithmetic", "operations": ["addition", "subtraction"]}
    special = [m | {"domains": ["subtraction"]} for m in MEMBERS[:1]]
    every = begin(recipe(arena=arena, members=MEMBERS[:1]), tmp_path / "one")
    own = begin(recipe(arena=arena, members=special), tmp_path / "two")
    assert every != own


def test_first_lessons_that_do_not_fit_are_one_line(cache: Path, tmp_path: Path) -> None:
    short = {"family": "gpt2", "width": 16, "depth": 1, "heads": 2, "context": 8}
    members = [{"name": "ada", "use": "transformer", "shape": short}]
    found = recipe(members=members, first=FIRST | {"levels": [4]})
    with pytest.raises(CommunityError, match=r"ada cannot learn its first lessons \(.*\); change"):
        begin(found, tmp_path)
