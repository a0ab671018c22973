"""What is taught, rehearsed and set aside, and when learning counts as harm."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from community.arenas.arithmetic import ArithmeticArena
from community.arenas.splits import in_split
from community.config import FirstSection, LearningSection
from community.errors import CommunityError
from community.school import (
    doubted,
    fell,
    first_lessons,
    judged_by_peers,
    judged_by_world,
    replay,
    set_aside,
    share,
    studies,
    winning_answers,
)
from community.types import Idea, Lesson, Ranked, Ranking, Split, Task

ARENA = ArithmeticArena(("addition", "subtraction"))
FIRST = FirstSection(examples=60, levels=(2, 3))


def taught(n: int, round: int = 1, learner: str = "ada") -> list[Lesson]:
    return [Lesson(round, learner, f"task {i}", "", "", "", "") for i in range(n)]


def test_first_lessons_are_right_and_of_the_train_split() -> None:
    lessons = first_lessons(ARENA, FIRST, "ada", 7, 60)
    assert len(lessons) == 60
    for i, lesson in enumerate(lessons):
        sign = "+" if "+" in lesson.prompt else "-"
        a, b = map(int, lesson.prompt.rstrip("=").split(sign))
        assert int(lesson.text) == (a + b if sign == "+" else a - b)
        assert (lesson.round, lesson.learner) == (0, "ada")
        assert len(str(a)) == FIRST.levels[i % 2]  # levels in turn
        domain = ARENA.domain(lesson.prompt)
        key = f"{a}-{b}" if sign == "-" else f"{min(a, b)}+{max(a, b)}"
        task = Task(lesson.prompt, "arithmetic", domain, 2, "train", 0, 0, key)
        assert task.id == lesson.task and in_split(task) == "train"


def test_first_lessons_are_the_learners_own_and_begin_alike() -> None:
    mine = first_lessons(ARENA, FIRST, "ada", 7, 60)
    assert mine == first_lessons(ARENA, FIRST, "ada", 7, 60)
    assert mine[:20] == first_lessons(ARENA, FIRST, "ada", 7, 20)
    for other in (
        first_lessons(ARENA, FIRST, "bo", 7, 60),
        first_lessons(ARENA, FIRST, "ada", 8, 60),
    ):
        assert len({x.task for x in mine} & {x.task for x in other}) < 10
    assert first_lessons(ARENA, FIRST, "ada", 7, 0) == ()


def test_first_lessons_of_a_specialist() -> None:
    mine = first_lessons(ARENA, FIRST, "ada", 7, 40, ("subtraction",))
    assert len(mine) == 40
    assert {ARENA.domain(lesson.prompt) for lesson in mine} == {"subtraction"}
    assert mine[:15] == first_lessons(ARENA, FIRST, "ada", 7, 15, ("subtraction",))
    levels = [len(lesson.prompt.partition("-")[0]) for lesson in mine]
    assert levels == [2, 3] * 20
    with pytest.raises(CommunityError, match="poses no task of division for ada"):
        first_lessons(ARENA, FIRST, "ada", 7, 5, ("division",))


def test_an_arena_without_answers_gives_no_lessons() -> None:
    class Silent:
        name = "silent"

    with pytest.raises(CommunityError, match="silent offers no worked examples"):
        first_lessons(Silent(), FIRST, "ada", 7, 5)  # type: ignore[arg-type]


EARLIER = [lesson for n in (1, 2, 3) for lesson in taught(30, n)]
BASIS = taught(100, 0)


def test_replay_is_balanced() -> None:
    found = replay(EARLIER, BASIS, 3, 10, 7)
    by_round = [sum(lesson.round == n for lesson in found) for n in range(5)]
    assert by_round == [20, 10, 10, 0, 0]  # as much of the beginning as of all since
    assert len(set(found)) == len(found)
    few = replay(EARLIER[:4], BASIS, 2, 10, 7)
    assert [sum(lesson.round == n for lesson in few) for n in (0, 1)] == [10, 4]
    assert len(replay([], BASIS[:3], 1, 10, 7)) == 3
    assert replay([], [], 1, 10, 7) == ()


def test_replay_depends_on_seed_and_round_alone() -> None:
    assert replay(EARLIER, BASIS, 3, 10, 7) == replay(EARLIER, BASIS, 3, 10, 7)
    assert replay(EARLIER, BASIS, 3, 10, 7) != replay(EARLIER, BASIS, 3, 10, 8)
    assert replay(EARLIER[:60], BASIS, 3, 10, 7) != replay(EARLIER[:60], BASIS, 4, 10, 7)


def test_what_most_answer_otherwise_is_doubted() -> None:
    def say(task: str, *answers: str) -> list[Idea]:
        return [Idea(task, f"m{i}", "c", 2, 0, 0, a, answer=a) for i, a in enumerate(answers)]

    ideas = [*say("right", "7", "7", "8"), *say("wrong", "8", "9", "7"), *say("even", "7", "8")]
    ideas += say("silent", "", "", "7")
    taught = {(task, "7") for task in ("right", "wrong", "even", "silent", "not asked")}
    assert doubted(ideas, taught | {("right", "8")}) == {("wrong", "7"), ("right", "8")}


def test_a_task_is_set_aside_for_everyone_or_no_one() -> None:
    lessons = taught(2000)
    aside = [set_aside(lesson, 0.2) for lesson in lessons]
    assert sum(aside) == pytest.approx(400, abs=60)
    assert aside == [
        set_aside(replace(x, learner="bo", text="5", reason="else"), 0.2) for x in lessons
    ]
    assert not any(set_aside(lesson, 0.0) for lesson in lessons)
    more = [set_aside(lesson, 0.3) for lesson in lessons]
    assert all(later for now, later in zip(aside, more, strict=True) if now)


def test_studies_hold_each_learners_own_lessons() -> None:
    lessons = [*taught(50), *taught(20, learner="bo"), *taught(3, learner="cy")]
    settings = LearningSection(epochs=2, batch=16, min_lessons=5, peers=0.2)
    found = studies(4, lessons, {"ada": BASIS[:7]}, settings, 7)
    assert set(found) == {"ada", "bo"}  # three lessons are too few
    for name, study in found.items():
        assert study.lessons == tuple(
            x for x in lessons if x.learner == name and not set_aside(x, 0.2)
        )
        assert study.steps == -(-2 * len(study.lessons) // study.fresh)
        assert (study.round, study.batch) == (4, 16)
    assert (found["ada"].replay, found["bo"].replay) == (tuple(BASIS[:7]), ())
    assert found["ada"].seed != found["bo"].seed
    assert studies(4, lessons, {}, LearningSection(steps=9), 7)["cy"].steps == 9


right = st.dictionaries(st.integers(0, 30).map(str), st.booleans(), max_size=30)


@given(right, right, st.floats(0, 0.5))
def test_a_fall_is_what_the_exact_sign_test_says(
    before: dict[str, bool], after: dict[str, bool], alpha: float
) -> None:
    lost = sum(known and not after.get(task, False) for task, known in before.items())
    gained = sum(not known and after.get(task, False) for task, known in before.items())
    # P(at least so many of the changes are losses), each with chance 1/2
    chance = float(binom.sf(lost - 1, lost + gained, 0.5))
    if abs(chance - alpha) > 1e-9:
        assert fell(before, after, alpha) == (lost > gained and chance < alpha)


def answers(known: int, unknown: int) -> dict[str, bool]:
    return {str(i): i < known for i in range(known + unknown)}


def test_falls_by_example() -> None:
    assert not fell(answers(10, 0), answers(6, 4), 0.05)  # 4 of 4: 1/16
    assert fell(answers(10, 0), answers(5, 5), 0.05)  # 5 of 5: 1/32
    assert not fell(answers(0, 10), answers(10, 0), 0.05)
    assert not fell({}, {}, 0.05)
    assert not fell(answers(10, 0), answers(0, 10), 0.0)  # 0 never goes back
    turned = {task: not right for task, right in answers(8, 7).items()}
    assert not fell(answers(8, 7), turned, 0.5)  # half of all ways to lose 8 of 15 or more


@given(right, st.floats(0, 0.99))
def test_equal_answers_are_no_fall(same: dict[str, bool], alpha: float) -> None:
    assert not fell(same, dict(same), alpha)


def idea(task: Task, author: str, text: str, **options: Any) -> Idea:
    return Idea(task.id, author, "c", 1, 0, options.pop("sample", 0), text, text, **options)


def test_exams_by_world_and_by_peers() -> None:
    one, two = (Task(p, "arithmetic", "addition", 2, "train", 0, 0) for p in ("10+11=", "12+13="))
    ideas = [
        idea(one, "ada", "21"),
        idea(one, "ada", "22", sample=1),  # an exam is one answer a task
        idea(two, "ada", "99"),
        idea(one, "bo", "21", failure="broke down"),
    ]
    world = judged_by_world(ideas, [one, two], ARENA)
    assert world == {"ada": {one.id: True, two.id: False}, "bo": {one.id: False}}
    assert judged_by_peers(ideas, {two.id: "99"}) == {"ada": {two.id: True}}
    assert share(world["ada"]) == 0.5
    assert share({}) is None
    entries = [
        Ranked(i.task, i.id, place, 0, 0, 0, 1, 0, 1.0, 1)
        for place, i in enumerate((ideas[1], ideas[0]), 1)
    ]
    assert winning_answers(ideas, Ranking("elo", tuple(entries), {})) == {one.id: "22"}


def test_epochs_are_passes_over_the_new_lessons_whatever_is_rehearsed() -> None:
    settings = LearningSection(epochs=2, batch=16)
    alone = studies(2, taught(64), {}, settings, 7)["ada"]
    mixed = studies(2, taught(64), {"ada": taught(9, round=1)}, settings, 7)["ada"]
    assert (alone.fresh, alone.steps) == (16, 8)
    assert (mixed.fresh, mixed.steps) == (8, 16)
    decimal = LearningSection(epochs=2.2, batch=16)
    assert studies(2, taught(400), {}, decimal, 7)["ada"].steps == 55
    fixed = LearningSection(steps=5, batch=16)
    assert studies(2, taught(64), {"ada": taught(9)}, fixed, 7)["ada"].steps == 5


def test_a_domain_among_very_many_is_found() -> None:
    class Wide(ArithmeticArena):
        def pose(self, split: Split, seed: int, index: int, level: int) -> Task:
            task = super().pose(split, seed, index, level)
            return replace(task, domain=f"domain {index % 90}")

    assert len(first_lessons(Wide(), FIRST, "ada", 7, 3, ("domain 89",))) == 3
