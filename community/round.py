"""One round, readable in one screen. Everything it needs comes in as arguments."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, Protocol

import networkx as nx

from community.types import (
    WORLD,
    Arena,
    Ballot,
    Idea,
    Ranking,
    Round,
    Task,
    Verdict,
    seed_of,
)
from community.world import verified

Teams = Mapping[str, Sequence[Task]]
Pair = tuple[Idea, Idea]
Rank = Callable[[Sequence[Idea], Sequence[Verdict], Mapping[str, float]], Ranking]
Trust = Callable[[Sequence[Task]], Mapping[str, float]]  # of the members in such tasks


class Crowd(Protocol):
    """The members as one: each call goes to all that have something to do, in parallel."""

    def propose(self, n: int, teams: Teams) -> list[Idea]: ...
    def revise(self, n: int, turn: int, teams: Teams, ideas: Sequence[Idea],
               graph: nx.DiGraph[str]) -> list[Idea]: ...  # fmt: skip
    def judge(self, ballots: Mapping[str, Sequence[Ballot]]) -> list[Verdict]: ...


class Delegator(Protocol):
    """What a round asks of the router."""

    def delegate(self, tasks: Sequence[Task], n: int) -> Teams: ...
    def observe(self, tasks: Sequence[Task], ideas: Sequence[Idea], ranking: Ranking) -> None: ...
    def teach(self, n: int, tasks: Sequence[Task], ideas: Sequence[Idea],
              ranking: Ranking) -> tuple[Any, ...]: ...  # fmt: skip
    def state(self) -> dict[str, Any]: ...


def nothing_known(tasks: Sequence[Task]) -> Mapping[str, float]:
    """No member was measured before."""
    return {}


@dataclass(frozen=True)
class Rules:
    """How a community deliberates."""

    seed: int
    rank: Rank
    pairings: Callable[[Sequence[Idea], random.Random, int], list[Pair]]
    turns: int = 0
    pairs: int = 0  # judged a task
    judges: int = 0  # drawn a task; 0 is every member
    trust: Trust = nothing_known


def play_round(
    n: int,
    tasks: Sequence[Task],
    members: Crowd,
    graph: nx.DiGraph[str],
    router: Delegator,
    arena: Arena | None,
    rules: Rules,
) -> Round:
    """Attempt, read, judge, rank, teach. `arena` is None where the world stays silent."""
    start = monotonic()
    teams = router.delegate(tasks, n)
    ideas, verdicts, ranking = deliberate(n, tasks, teams, members, graph, arena, rules)
    router.observe(tasks, ideas, ranking)
    lessons = router.teach(n, tasks, ideas, ranking)
    edges = tuple((str(reader), str(author)) for reader, author in graph.edges) * bool(rules.turns)
    return Round(
        n, tuple(tasks), tuple(ideas), tuple(verdicts), ranking, lessons, edges,
        router.state(), monotonic() - start,
    )  # fmt: skip


def deliberate(
    n: int,
    tasks: Sequence[Task],
    teams: Teams,
    members: Crowd,
    graph: nx.DiGraph[str],
    arena: Arena | None,
    rules: Rules,
) -> tuple[list[Idea], list[Verdict], Ranking]:
    """The community's opinion on tasks: ideas, verdicts on them, and their order."""
    ideas = members.propose(n, teams)
    for turn in range(1, rules.turns + 1):
        ideas += members.revise(n, turn, teams, ideas, graph)
    verdicts = members.judge(ballots(n, tasks, ideas, list(teams), rules))
    if arena is not None:
        verdicts += ask_world(n, tasks, ideas, arena)
    ranking = in_order(tasks, ideas, verdicts, rules)
    return ideas, verdicts, ranking


def in_order(
    tasks: Sequence[Task], ideas: Sequence[Idea], verdicts: Sequence[Verdict], rules: Rules
) -> Ranking:
    """The order of the ideas, each domain by itself: a specialist is reliable in its own."""
    domain = {task.id: task.domain for task in tasks}
    parts = []
    for name in sorted(set(domain.values())) or [""]:
        own = [idea for idea in ideas if domain[idea.task] == name]
        said = [verdict for verdict in verdicts if domain[verdict.task] == name]
        known = rules.trust([task for task in tasks if task.domain == name])
        parts.append(rules.rank(own, said, consistency(own) | dict(known)))
    return Ranking.joined(parts)


def ballots(
    n: int, tasks: Sequence[Task], ideas: Sequence[Idea], judges: Sequence[str], rules: Rules
) -> dict[str, list[Ballot]]:
    """Judge -> the pairs it is to judge. Who reads whom has no part in this."""
    if not rules.pairs:
        return {}
    pairs: dict[str, list[Pair]] = {}
    rng = random.Random(seed_of(rules.seed, n, "pairings"))
    for first, second in rules.pairings(ideas, rng, rules.pairs):
        pairs.setdefault(first.task, []).append((first, second))
    asked: dict[str, list[Ballot]] = {judge: [] for judge in judges}
    for task in tasks:
        if task.id not in pairs:
            continue
        seed = seed_of(rules.seed, n, task.id, "judge")
        chosen = random.Random(seed).sample(judges, min(rules.judges or len(judges), len(judges)))
        for judge in chosen:
            asked[judge].append(Ballot(task, n, seed, tuple(pairs[task.id])))
    return {judge: mine for judge, mine in asked.items() if mine}


def ask_world(n: int, tasks: Sequence[Task], ideas: Sequence[Idea], arena: Arena) -> list[Verdict]:
    """The world's verdicts, where it can tell."""
    by_id = {task.id: task for task in tasks}
    scores = ((idea, verified(arena, by_id[idea.task], idea)) for idea in ideas)
    return [
        Verdict(n, idea.task, WORLD, idea.id, score) for idea, score in scores if score is not None
    ]


def consistency(ideas: Sequence[Idea]) -> dict[str, float]:
    """Member -> how often two of its first samples of a task agree, averaged over its tasks.

    Equivalent phrasings of a task (a+b and b+a) must have one answer, so this measures a
    member without a reference. No answer agrees with nothing; members with one sample a task
    are left out.
    """
    answers: dict[tuple[str, str], list[str]] = {}
    for idea in ideas:
        if idea.turn == 0:
            answers.setdefault((idea.author, idea.task), []).append(idea.answer)
    agreed: dict[str, list[float]] = {}
    for (author, _), given in answers.items():
        if (n := len(given)) > 1:
            pairs = sum(given.count(answer) - 1 for answer in given if answer)
            agreed.setdefault(author, []).append(pairs / (n * (n - 1)))
    return {author: sum(same) / len(same) for author, same in sorted(agreed.items())}
