"""The gym arena: every suitable task poses, its reference is right, other texts are wrong."""

from importlib.util import find_spec
from typing import Any

import pytest

from community.arenas import gym
from community.arenas.gym import UNSUITABLE, GymArena, suitable
from community.arenas.splits import in_split
from community.errors import CommunityError
from community.types import Arena, Idea, Split, Task

HAS_GYM = find_spec("reasoning_gym") is not None
pytestmark = pytest.mark.skipif(
    not HAS_GYM,
    reason="reasoning-gym is not installed: extra `gym` (pycosat needs a C compiler)",
)
NAMES = suitable() if HAS_GYM else []
SPLITS: tuple[Split, ...] = ("train", "validation", "holdout")
SUMS = {"name": "chain_sum", "min_terms": "level", "max_terms": "level", "max_digits": 1}


def score(arena: GymArena, task: Task, text: str) -> float | None:
    return arena.verify(task, Idea(task.id, "a", "c", 0, 0, 0, text))


@pytest.mark.parametrize("name", NAMES)
def test_reference_is_right_and_other_texts_are_wrong(name: str) -> None:
    arena = GymArena([name])
    task = arena.pose("train", seed=1, index=0, level=1)
    reference = str(arena._reference(task)["answer"])
    assert task == GymArena([name]).pose("train", seed=1, index=0, level=1)
    assert task.domain == name
    assert score(arena, task, reference) == 1.0
    assert score(arena, task, f"The answer is {reference}") == 1.0
    for wrong in ("", "no idea", "__import__('os').getcwd()", "[x, y", "9" * 30):
        assert score(arena, task, wrong) == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_one_dataset_serves_all_seeds(name: str) -> None:
    """What is posed is what a dataset made for that seed alone would pose."""
    for seed in (77, 2**31 - 1):
        assert gym._entry(name, "{}", seed) == gym._first(name, "{}", seed)


def test_making_a_dataset_for_every_task_is_the_exception() -> None:
    assert gym._counts_on("spell_backward", '{"max_word_len": 5}')
    assert sum(not gym._counts_on(name, "{}") for name in NAMES) < len(NAMES) / 5


def test_splits_are_disjoint_by_content_even_in_a_small_domain() -> None:
    arena = GymArena([SUMS])
    ids = {s: {arena.pose(s, 0, i, 2).id for i in range(60)} for s in SPLITS}
    assert not ids["train"] & ids["holdout"]
    assert not ids["train"] & ids["validation"]
    assert not ids["holdout"] & ids["validation"]
    assert in_split(arena.pose("holdout", 0, 3, 2)) == "holdout"


def test_level_stands_in_the_configuration_and_domains_take_turns() -> None:
    arena = GymArena([SUMS, "gcd"])
    assert isinstance(arena, Arena)
    tasks = [arena.pose("train", 0, i, 3) for i in range(4)]
    assert [t.domain for t in tasks] == ["chain_sum", "gcd"] * 2
    assert sum(tasks[0].prompt.count(sign) for sign in "+-") == 2
    assert arena.rephrase(tasks[0], 3) == tasks[0].prompt


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("7", "7"),
        ("4 + 3 = 7", "7"),
        ("The answer is 7, because 4 + 3 = 8", "7"),
        ("Answer: 7.", "7"),
        ("thus \\boxed{7}", "7"),
        ("1,007", "1007"),
        ("-7\n", "-7"),
        ("seven", "seven"),
        ("", ""),
    ],
)
def test_numbers_are_extracted(text: str, answer: str) -> None:
    arena = GymArena([SUMS])
    assert arena.answer(arena.pose("train", 0, 0, 2), text) == answer


def test_lines_are_extracted() -> None:
    arena = GymArena(["syllogism"])
    task = arena.pose("train", 0, 0, 1)
    assert arena.answer(task, "Let me see.\n\n**yes**.\n") == "Yes"
    assert arena.answer(task, "The final answer is: no\nI am sure") == "No"


def test_what_a_recipe_can_get_wrong() -> None:
    cases: list[tuple[list[Any], str]] = [
        ([], "no tasks"),
        (["chain_sums"], "did you mean 'chain_sum'"),
        (["rush_hour"], "no reference answer.*zebra_puzzles"),
        (["gcd", "gcd"], "listed twice"),
        ([{"name": "gcd", "max_valu": 3}], "did you mean 'max_value'"),
    ]
    for tasks, message in cases:
        with pytest.raises(CommunityError, match=message):
            GymArena(tasks)
    with pytest.raises(CommunityError, match="refuses chain_sum"):
        GymArena([SUMS]).pose("train", 0, 0, level=-1)


def test_a_task_of_another_recipe_is_refused() -> None:
    task = GymArena([SUMS]).pose("train", 0, 0, 2)
    with pytest.raises(CommunityError, match="not posed by this arena"):
        score(GymArena([{"name": "chain_sum", "min_terms": 4}]), task, "7")


def test_missing_extra_says_how_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gym, "reasoning_gym", None)
    with pytest.raises(CommunityError, match=r'pip install "modelcommunity\[gym\]"'):
        GymArena(["gcd"])


def test_unsuitable_tasks_exist() -> None:
    assert set(UNSUITABLE) <= set(pytest.importorskip("reasoning_gym.factory").DATASETS)


def test_the_alphabet_holds_accented_letters_once() -> None:
    assert set("naïve Brontë Żółć") <= set(GymArena.alphabet)
    assert len(set(GymArena.alphabet)) == len(GymArena.alphabet)
