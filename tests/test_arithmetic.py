"""Sums, differences and products: against Python's own, in every way of writing them."""

from __future__ import annotations

from itertools import product
from operator import add, mul, sub

import pytest
from hypothesis import given
from hypothesis import strategies as st

from community.arenas.arithmetic import DIGITS, SIGNS, ArithmeticArena
from community.arenas.splits import in_split
from community.errors import CommunityError
from community.types import Arena, Idea, Split, Task

OPERATIONS = {"addition": add, "subtraction": sub, "multiplication": mul}
ARENAS = [
    ArithmeticArena(tuple(SIGNS), reverse=reverse, padded=padded)
    for reverse, padded in product((False, True), repeat=2)
]
arenas = st.sampled_from(ARENAS)
splits = st.sampled_from(["train", "validation", "holdout"])
levels = st.integers(2, 12)  # one digit has too few differences for a validation split


def value(arena: ArithmeticArena, digits: str) -> int:
    return int(digits[::-1] if arena.reverse else digits)


def operands(arena: ArithmeticArena, prompt: str) -> tuple[int, str, int]:
    sign = next(c for c in prompt if c in "+-*")
    a, _, b = prompt.removesuffix("=").partition(sign)
    return value(arena, a), sign, value(arena, b)


def idea(task: Task, text: str, answer: str | None = None) -> Idea:
    return Idea(task.id, "ada", "c", 1, 0, 0, text, text if answer is None else answer)


@pytest.mark.parametrize("arena", ARENAS)
def test_the_highest_level_is_posed_and_solved(arena: ArithmeticArena) -> None:
    tasks = [arena.pose("train", 0, index, DIGITS) for index in range(9)]
    assert {task.domain for task in tasks} == set(SIGNS)
    assert all(arena.verify(task, idea(task, arena.solve(task))) == 1.0 for task in tasks)
    for level in (-3, 0, DIGITS + 1):
        with pytest.raises(CommunityError, match=f"levels 1 to {DIGITS}.* not {level}"):
            arena.pose("train", 0, 0, level)


def test_it_is_an_arena() -> None:
    assert all(isinstance(arena, Arena) for arena in ARENAS)


@given(arenas, splits, st.integers(0, 99), st.integers(0, 10**6), levels)
def test_answers_are_pythons(
    arena: ArithmeticArena, split: Split, seed: int, index: int, level: int
) -> None:
    task = arena.pose(split, seed, index, level)
    a, sign, b = operands(arena, task.prompt)
    assert SIGNS[task.domain] == sign and task.level == level
    right = OPERATIONS[task.domain](a, b)
    solved = arena.solve(task)
    assert value(arena, solved) == right >= 0
    assert {len(str(a)), len(str(b))} == {level}
    assert arena.answer(task, solved) == solved
    assert arena.verify(task, idea(task, solved)) == 1.0
    longest = {"+": level + 1, "-": level, "*": 2 * level}[sign]
    assert len(solved) == (longest if arena.padded else len(str(right)))
    assert set(task.prompt + solved) <= set(arena.alphabet)
    assert arena.domain(task.prompt) == task.domain


@given(arenas, st.integers(0, 99), st.integers(0, 10**6), levels)
def test_wrong_answers_are_wrong(arena: ArithmeticArena, seed: int, index: int, level: int) -> None:
    task = arena.pose("train", seed, index, level)
    solved = arena.solve(task)
    for place in range(len(solved)):
        changed = str((int(solved[place]) + 1) % 10)
        wrong = solved[:place] + changed + solved[place + 1 :]
        assert arena.verify(task, idea(task, wrong)) == 0.0
    assert arena.verify(task, idea(task, "")) == 0.0
    assert arena.verify(task, Idea(task.id, "a", "c", 1, 0, 0, "", solved, failure="broke")) == 0.0


@given(arenas, st.integers(0, 99), st.integers(0, 10**6), levels, st.integers(0, 5))
def test_other_words_for_a_task_have_the_same_answer(
    arena: ArithmeticArena, seed: int, index: int, level: int, sample: int
) -> None:
    task = arena.pose("train", seed, index, level)
    words = arena.rephrase(task, sample)
    a, sign, b = operands(arena, task.prompt)
    swapped = sample % 2 == 1 and sign != "-"
    assert operands(arena, words) == ((b, sign, a) if swapped else (a, sign, b))
    again = Task(words, arena.name, task.domain, level, "train", seed, index)
    assert arena.solve(again) == arena.solve(task)
    assert arena.rephrase(task, 0) == task.prompt


@given(arenas, splits, st.integers(0, 99), st.integers(0, 10**6), levels)
def test_tasks_come_from_their_arguments_and_lie_in_their_split(
    arena: ArithmeticArena, split: Split, seed: int, index: int, level: int
) -> None:
    task = arena.pose(split, seed, index, level)
    assert task == arena.pose(split, seed, index, level)
    assert (task.split, task.seed, task.index) == (split, seed, index)
    assert in_split(task) == split


def test_splits_share_no_content() -> None:
    arena = ArithmeticArena(tuple(SIGNS))
    contents: dict[str, set[tuple[int, str, int]]] = {}
    for split in ("train", "validation", "holdout"):
        for index in range(150):
            a, sign, b = operands(arena, arena.pose(split, index % 3, index, 2).prompt)
            if sign != "-":
                a, b = min(a, b), max(a, b)  # who knows a+b knows b+a
            contents.setdefault(split, set()).add((a, sign, b))
    assert not contents["train"] & contents["validation"]
    assert not contents["train"] & contents["holdout"]
    assert not contents["validation"] & contents["holdout"]


def test_a_sum_and_its_mirror_are_one_task() -> None:
    arena = ArithmeticArena()
    by_key: dict[str, set[str]] = {}
    ids: dict[str, set[str]] = {}
    for index in range(1500):
        task = arena.pose("train", 0, index, 1)
        by_key.setdefault(task.key, set()).add(task.prompt)
        ids.setdefault(task.key, set()).add(task.id)
    assert any(len(prompts) == 2 for prompts in by_key.values())
    assert all(len(same) == 1 for same in ids.values())


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("109", "109"),
        (" 109\n", "109"),
        ("99", "99"),
        ("9", ""),  # shorter than an operand
        ("1099", ""),  # longer than any sum
        ("", ""),
        ("10a", ""),
        ("-99", ""),
        ("1 09", ""),
        ("١٠٩", ""),  # digits, but not these
        ("¹⁰⁹", ""),
    ],
)
def test_what_counts_as_an_answer(text: str, answer: str) -> None:
    task = Task("42+67=", "arithmetic", "addition", 2, "train", 0, 0)
    assert ArithmeticArena().answer(task, text) == answer


def test_possible_lengths_by_operation() -> None:
    def lengths(arena: ArithmeticArena, sign: str) -> list[int]:
        task = Task(f"42{sign}17=", "arithmetic", "", 2, "train", 0, 0)
        return [n for n in range(7) if arena.answer(task, "1" * n)]

    free, padded = ArithmeticArena(tuple(SIGNS)), ArithmeticArena(tuple(SIGNS), padded=True)
    assert [lengths(free, sign) for sign in "+-*"] == [[2, 3], [1, 2], [1, 2, 3, 4]]
    assert [lengths(padded, sign) for sign in "+-*"] == [[3], [2], [4]]


def test_reversed_and_padded_by_example() -> None:
    task = Task("21+34=", "arithmetic", "addition", 2, "train", 0, 0)  # 12 + 43
    assert ArithmeticArena(reverse=True, padded=True).solve(task) == "550"
    assert ArithmeticArena(reverse=True).solve(task) == "55"
    assert ArithmeticArena(padded=True).solve(task) == "055"
    minus = Task("61-51=", "arithmetic", "subtraction", 2, "train", 0, 0)  # 16 - 15
    assert ArithmeticArena(("subtraction",), reverse=True, padded=True).solve(minus) == "10"


def test_what_it_cannot_do() -> None:
    with pytest.raises(CommunityError, match="did you mean 'addition'"):
        ArithmeticArena(("adition",))
    with pytest.raises(ValueError, match="not a task"):
        ArithmeticArena().solve(Task("1+1", "arithmetic", "addition", 1, "train", 0, 0))
    assert ArithmeticArena().domain("what is 1+1?") == ""


def test_an_arena_of_no_operation() -> None:
    with pytest.raises(CommunityError, match="name at least one"):
        ArithmeticArena(operations=[])
