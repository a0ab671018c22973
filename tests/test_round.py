"""A round of real parts: scripted members, a real arena, graph, router and ranking."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest

from community.arenas.arithmetic import ArithmeticArena
from community.errors import CommunityError
from community.members import Members
from community.pool import LocalPool, Spec
from community.ranking import pairings, rank
from community.round import Rules, ask_world, ballots, consistency, in_order, play_round
from community.router import Router
from community.run import exact_match
from community.school import judged_by_world
from community.topology import build, neighbours
from community.types import WORLD, Idea, Ranking, Round, Task, Verdict
from community.world import verified

NAMES = ("ada", "bo", "cy", "dan")
ARENA = ArithmeticArena()
TASKS = [ARENA.pose("train", 3, index, 3) for index in range(12)]
OPTIONS: dict[str, Any] = {"error": 0.4, "samples": 2}


class Saying(ArithmeticArena):
    """An arena that says the same of every idea."""

    def __init__(self, given: Any) -> None:
        super().__init__()
        self.given = given

    def verify(self, task: Task, idea: Idea) -> Any:
        return self.given


def ranked(
    ideas: Sequence[Idea], verdicts: Sequence[Verdict], trust: Mapping[str, float]
) -> Ranking:
    return rank(ideas, verdicts, "bradley-terry", trust)


RULES = Rules(seed=7, rank=ranked, pairings=pairings, turns=1, pairs=4, judges=2)


@contextmanager
def crowd(folder: Path, **options: Mapping[str, Any]) -> Iterator[Members]:
    """Scripted members; `options` are those of single members."""
    specs = [
        Spec(name, "scripted", 1, OPTIONS | dict(options.get(name, {})), ".", "arithmetic")
        for name in NAMES
    ]
    pool = LocalPool(specs, folder)
    try:
        yield Members(pool, NAMES, ARENA, 7, phrasings=2)
    finally:
        pool.close()


def played(folder: Path, graph: nx.DiGraph[str], world: bool = True, **options: Any) -> Round:
    rules = options.pop("rules", RULES)
    with crowd(folder, **options) as members:
        router = Router(NAMES, seed=1, min_confidence=0.1)
        return play_round(2, TASKS, members, graph, router, ARENA if world else None, rules)


def test_a_round_is_complete_and_coherent(tmp_path: Path) -> None:
    graph = build("ring", NAMES)
    found = played(tmp_path, graph)
    ideas = {idea.id: idea for idea in found.ideas}
    assert found.n == 2 and found.tasks == tuple(TASKS) and found.seconds > 0
    assert len([i for i in found.ideas if i.turn == 0]) == len(TASKS) * len(NAMES) * 2
    assert len([i for i in found.ideas if i.turn == 1]) == len(TASKS) * len(NAMES) * 2
    assert {v.judge for v in found.verdicts} == {*NAMES, WORLD}
    assert {v.idea for v in found.verdicts if v.judge == WORLD} == set(ideas)
    assert all(v.other in ideas for v in found.verdicts if v.judge != WORLD)
    assert {entry.idea for entry in found.ranking.entries} == set(ideas)
    assert {lesson.learner for lesson in found.lessons} == set(NAMES)
    for lesson in found.lessons:  # the world spoke: what is taught is right
        task = next(task for task in TASKS if task.id == lesson.task)
        assert ideas[lesson.idea].answer == ARENA.solve(task) == lesson.text
    assert set(found.edges) == set(graph.edges)
    assert found.router["members"] == list(NAMES)


def test_who_is_read_follows_the_topology(tmp_path: Path) -> None:
    graph = build("path", NAMES)
    found = played(tmp_path, graph)
    author = {idea.id: idea.author for idea in found.ideas}
    revised = [idea for idea in found.ideas if idea.turn == 1]
    assert revised
    for idea in revised:
        assert {author[p] for p in idea.parents} == {idea.author, *neighbours(graph, idea.author)}
    assert all(not idea.parents for idea in found.ideas if idea.turn == 0)


def test_what_is_compared_does_not(tmp_path: Path) -> None:
    """Without conversation the graph has no part in a round at all."""
    rules = replace(RULES, turns=0)
    star = played(tmp_path, build("star", NAMES), rules=rules)
    complete = played(tmp_path, build("complete", NAMES), rules=rules)
    assert (star.ideas, star.verdicts, star.ranking) == (
        complete.ideas, complete.verdicts, complete.ranking,
    )  # fmt: skip
    assert star.edges == complete.edges == ()
    leaves = set(NAMES[1:])  # which never read each other
    author = {idea.id: idea.author for idea in star.ideas}
    pairs = {frozenset((author[v.idea], author[v.other])) for v in star.verdicts if v.other}
    assert any(pair <= leaves and len(pair) == 2 for pair in pairs)


def test_the_same_round_twice(tmp_path: Path) -> None:
    graph = build("ring", NAMES)
    one, two = (played(tmp_path / name, graph) for name in "ab")
    assert replace(one, seconds=0) == replace(two, seconds=0)


def test_a_silent_world_gives_no_verdict(tmp_path: Path) -> None:
    found = played(tmp_path, build("ring", NAMES), world=False)
    assert WORLD not in {v.judge for v in found.verdicts}
    assert found.ranking.entries


def test_a_member_that_breaks_down_is_a_failed_idea(tmp_path: Path) -> None:
    found = played(tmp_path, build("complete", NAMES), cy={"crash": 1.0})
    broken = [idea for idea in found.ideas if idea.failure]
    assert {idea.author for idea in broken} == {"cy"}
    assert {idea.task for idea in broken} == {task.id for task in TASKS}
    assert all("RuntimeError: cy broke down" in idea.failure for idea in broken)
    assert all(not idea.text and not idea.answer for idea in broken)
    assert found.lessons and {lesson.learner for lesson in found.lessons} == set(NAMES)
    taught = {lesson.idea for lesson in found.lessons}
    assert not taught & {idea.id for idea in broken}


def test_a_member_that_breaks_down_now_and_then_keeps_its_other_ideas(tmp_path: Path) -> None:
    found = played(tmp_path, build("complete", NAMES), cy={"crash": 0.4})
    own = [i for i in found.ideas if i.author == "cy" and i.turn == 0]
    failed = {i.task for i in own if i.failure}
    answered = {i.task for i in own if not i.failure}
    assert failed and answered and not failed & answered
    assert failed | answered == {task.id for task in TASKS}


def idea(task: Task, author: str, answer: str, **options: Any) -> Idea:
    options = {"turn": 0, "sample": 0} | options
    return Idea(task.id, author, "c", 1, text=answer, answer=answer, **options)


def test_every_task_is_judged_by_as_many_as_asked() -> None:
    ideas = [idea(t, name, str(k)) for t in TASKS for k, name in enumerate(NAMES)]
    found = ballots(1, TASKS, ideas, NAMES, RULES)
    judges = {
        t.id: [name for name, mine in found.items() for b in mine if b.task == t] for t in TASKS
    }
    assert all(len(names) == 2 for names in judges.values())
    assert len({tuple(names) for names in judges.values()}) > 1  # drawn anew for each task
    for mine in found.values():
        for ballot in mine:
            assert len(ballot.pairs) == 4
            assert all(x.task == y.task == ballot.task.id for x, y in ballot.pairs)
    everyone = ballots(1, TASKS, ideas, NAMES, replace(RULES, judges=0))
    assert all(len(everyone[name]) == len(TASKS) for name in NAMES)
    assert ballots(1, TASKS, ideas, NAMES, replace(RULES, pairs=0)) == {}
    agreed = [idea(t, name, "5") for t in TASKS for name in NAMES]
    assert ballots(1, TASKS, agreed, NAMES, RULES) == {}  # nothing to compare


def test_ballots_do_not_depend_on_the_order_of_ideas() -> None:
    ideas = [idea(t, name, str(k)) for t in TASKS for k, name in enumerate(NAMES)]
    mixed = random.Random(1).sample(ideas, len(ideas))
    in_order = ballots(1, TASKS, ideas, NAMES, RULES)
    assert {t for mine in in_order.values() for t in mine} == {
        t for mine in ballots(1, TASKS, mixed, NAMES, RULES).values() for t in mine
    }


def test_consistency_is_agreement_with_oneself() -> None:
    one, two = TASKS[:2]
    ideas = [
        idea(one, "ada", "1"), idea(one, "ada", "1", sample=1),
        idea(two, "ada", "2"), idea(two, "ada", "3", sample=1),
        idea(one, "bo", "1"), idea(one, "bo", "1", sample=1),
        idea(two, "bo", ""), idea(two, "bo", "", sample=1),  # agreeing on nothing is no answer
        idea(one, "cy", "1"),  # one sample says nothing of itself
        idea(one, "ada", "9", turn=1),  # after reading others
    ]  # fmt: skip
    assert consistency(ideas) == {"ada": 0.5, "bo": 0.5}


def test_the_world_speaks_where_it_can() -> None:
    class Unsure(ArithmeticArena):
        def verify(self, task: Task, idea: Idea) -> float | None:
            return None if idea.author == "bo" else super().verify(task, idea)

    task = TASKS[0]
    ideas = [idea(task, "ada", ARENA.solve(task)), idea(task, "bo", "1"), idea(task, "cy", "1")]
    found = ask_world(3, [task], ideas, Unsure())
    assert [(v.idea, v.score) for v in found] == [(ideas[0].id, 1.0), (ideas[2].id, 0.0)]
    assert {(v.judge, v.round, v.other) for v in found} == {(WORLD, 3, "")}


@pytest.mark.parametrize("given", [0, True, 0.25, np.float32(1), None])
def test_a_verdict_of_the_world_is_a_share(given: Any) -> None:
    said = verified(Saying(given), TASKS[0], idea(TASKS[0], "ada", "1"))
    assert said == given and type(said) in (float, type(None))


@pytest.mark.parametrize("given", [2.5, -1, math.nan, "right", np.ones(2)], ids=str)
def test_what_the_world_must_not_say_is_refused_wherever_it_is_asked(given: Any) -> None:
    arena, task = Saying(given), TASKS[0]
    ideas = [idea(task, "ada", "1")]
    for ask in (
        lambda: ask_world(3, [task], ideas, arena),
        lambda: list(exact_match(3, "ada", [task], {task.id: ideas[0]}, arena)),
        lambda: judged_by_world(ideas, [task], arena),
    ):
        with pytest.raises(CommunityError, match=r"arena arithmetic gave .* from 0 to 1") as caught:
            ask()
        assert repr(given) in str(caught.value)


@pytest.mark.parametrize("top_k", [1, 2])
def test_only_the_chosen_attempt_a_task(top_k: int, tmp_path: Path) -> None:
    with crowd(tmp_path) as members:
        router = Router(NAMES, seed=1, top_k=top_k)
        found = play_round(1, TASKS, members, build("ring", NAMES), router, ARENA, RULES)
    first = [idea for idea in found.ideas if idea.turn == 0]
    for task in TASKS:
        assert len({idea.author for idea in first if idea.task == task.id}) == top_k


def spoken(name: str, posed: Task, said: Sequence[str]) -> list[Idea]:
    return [Idea(posed.id, name, "c", 1, 0, n, text, text) for n, text in enumerate(said)]


def test_a_specialists_word_counts_in_its_own_domain() -> None:
    """Each of two members agrees with itself on one kind of task and guesses at the other."""
    posed = [
        Task(f"{kind} {n}", "words", kind, 1, "train", 0, n) for kind in "xy" for n in range(9)
    ]
    ideas: list[Idea] = []
    for task in posed:
        for name, own in (("ada", "x"), ("bo", "y")):
            knows = task.domain == own
            guesses = [f"{name} has {task.index}", f"{name} guesses"]
            said = [f"{name} knows"] * 2 if knows else guesses
            ideas += spoken(name, task, said)
    by_id = {idea.id: idea for idea in ideas}
    found = in_order(posed, ideas, [], RULES)
    won = {task: by_id[top.idea].answer for task, top in found.winners().items()}
    assert won == {t.id: "ada knows" if t.domain == "x" else "bo knows" for t in posed}
    assert {entry.idea for entry in found.entries} == set(by_id)
    assert set(found.reliability) == {"ada", "bo"}


def test_what_is_known_of_members_is_asked_for_each_domain() -> None:
    """Alone, two that contradict each other and themselves alike are equals."""
    posed = [
        Task(f"{kind} {n}", "words", kind, 1, "train", 0, n) for kind in "xy" for n in range(5)
    ]
    ideas = [i for t in posed for name in ("ada", "bo") for i in spoken(name, t, [f"{name} says"])]
    strong = {"x": "ada", "y": "bo"}

    def known(tasks: Sequence[Task]) -> dict[str, float]:
        (domain,) = {task.domain for task in tasks}
        return {name: 0.9 if name == strong[domain] else 0.1 for name in ("ada", "bo")}

    by_id = {idea.id: idea for idea in ideas}
    found = in_order(posed, ideas, [], replace(RULES, trust=known))
    won = {task: by_id[top.idea].author for task, top in found.winners().items()}
    assert won == {task.id: strong[task.domain] for task in posed}


def test_one_domain_is_ranked_as_it_always_was(tmp_path: Path) -> None:
    found = played(tmp_path, build("ring", NAMES), world=False)
    whole = rank(found.ideas, found.verdicts, "bradley-terry", consistency(found.ideas))
    assert found.ranking == whole


def test_no_task_is_an_empty_ranking() -> None:
    assert in_order([], [], [], RULES).entries == ()
