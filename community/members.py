"""The members as one: work goes out to all of them in parallel, and comes back in order."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import networkx as nx

from community.errors import CommunityError
from community.pool import Failure, Pool
from community.topology import neighbours
from community.types import (
    Arena,
    Ballot,
    Idea,
    Learned,
    Request,
    Study,
    Task,
    Verdict,
    seed_of,
)
from community.world import answered, rephrased

Teams = Mapping[str, Sequence[Task]]


class Listener:
    """Hears what a run is doing, to show it; this one keeps silent. The engine waits for none."""

    def round(self, n: int, of: int, level: int) -> None:
        """Round n begins; 0 is the first lessons."""

    def phase(self, name: str, total: int) -> None:
        """A phase begins in which `total` members work."""

    def done(self, member: str, tokens: int) -> None:
        """A member finished its part of the phase and spent so many tokens."""

    def result(self, n: int, facts: Mapping[str, Any]) -> None:
        """What came of round n."""


class Members:
    """The members of a community, in the order of the recipe."""

    def __init__(
        self,
        pool: Pool,
        names: Sequence[str],
        arena: Arena,
        seed: int,
        listener: Listener | None = None,
        phrasings: int = 1,
    ) -> None:
        """`phrasings` is how many wordings of a task a member may be asked in."""
        self.pool = pool
        self.names = tuple(names)
        self.arena = arena
        self.seed = seed
        self.listener = listener or Listener()
        self.phrasings = phrasings
        self.checkpoints: dict[str, str] = dict.fromkeys(names, "")

    # -- answering and judging ---------------------------------------------------------

    def propose(
        self, n: int, teams: Teams, samples: int | None = None, purpose: str = "propose"
    ) -> list[Idea]:
        """First answers, member by member, each to its own tasks."""
        work = {
            name: [self._request(n, 0, name, task, (), samples, purpose) for task in tasks]
            for name, tasks in teams.items()
            if tasks
        }
        return self._ideas(purpose, work)

    def revise(
        self, n: int, turn: int, teams: Teams, ideas: Sequence[Idea], graph: nx.DiGraph[str]
    ) -> list[Idea]:
        """New ideas of each member on its tasks, after reading what its neighbours say now."""
        last = opinions([i for i in ideas if i.turn < turn])
        work: dict[str, list[Request]] = {}
        for name, tasks in teams.items():
            sources = [name, *neighbours(graph, name)]
            for task in tasks:
                read = tuple(last[task.id, s] for s in sources if (task.id, s) in last)
                if read and any(idea.author != name for idea in read):
                    request = self._request(n, turn, name, task, read, None, "revise")
                    work.setdefault(name, []).append(request)
        return self._ideas(f"revise {turn}", work)

    def judge(self, ballots: Mapping[str, Sequence[Ballot]]) -> list[Verdict]:
        """Every judge's verdicts on its ballots; who fails abstains, and a warning says why."""
        results = self._call("judge", {name: (mine,) for name, mine in ballots.items()})
        verdicts: list[Verdict] = []
        for name, found in results.items():
            given = [found] if isinstance(found, Failure) else [item for _, item in found]
            failures = [item for item in given if isinstance(item, Failure)]
            if failures:
                _warn(f"{name} abstains where it fails to judge: {failures[0].reason}")
            verdicts += [item for item in given if not isinstance(item, Failure)]
        return verdicts

    def _request(
        self,
        n: int,
        turn: int,
        name: str,
        task: Task,
        readings: tuple[Idea, ...],
        samples: int | None,
        purpose: str,
    ) -> Request:
        seed = seed_of(self.seed, n, name, task.id, turn, purpose)
        words = tuple(rephrased(self.arena, task, i) for i in range(self.phrasings))
        return Request(task, n, turn, seed, readings, words, samples)

    def _ideas(self, phase: str, work: Mapping[str, list[Request]]) -> list[Idea]:
        results = self._call("propose", {k: (v,) for k, v in work.items()}, phase)
        tasks = {r.task.id: r.task for requests in work.values() for r in requests}
        ideas = []
        for name, found in results.items():
            if isinstance(found, Failure):
                found = [(i, found) for i in range(len(work[name]))]
            for place, item in found:
                if isinstance(item, Failure):
                    ideas.append(self._failed(name, work[name][place], item))
                else:
                    ideas.append(self._answered(tasks[item.task], item))
        return ideas

    def _answered(self, task: Task, idea: Idea) -> Idea:
        """With its answer, and the checkpoint that its author stands at, whatever that says."""
        idea = replace(idea, checkpoint=self.checkpoints[idea.author])
        return idea if idea.failure else replace(idea, answer=answered(self.arena, task, idea.text))

    def _failed(self, name: str, request: Request, failure: Failure) -> Idea:
        return Idea(
            task=request.task.id,
            author=name,
            checkpoint=self.checkpoints[name],
            round=request.round,
            turn=request.turn,
            sample=0,
            text="",
            parents=tuple(idea.id for idea in request.readings),
            failure=failure.reason,
        )

    # -- learning ----------------------------------------------------------------------

    def learn(
        self, studies: Mapping[str, Study], phase: str = "learn"
    ) -> dict[str, tuple[Learned, str]]:
        """Learner -> what came of its study and its new checkpoint.

        One that fails goes back to the checkpoint it had, and is not among the results; a
        warning says why, and who left lessons out. Raises CommunityError if it had none.
        """
        results = self._call("learn", {k: (v,) for k, v in studies.items()}, phase)
        failed = {k: v.reason for k, v in results.items() if isinstance(v, Failure)}
        for name, reason in failed.items():
            if not self.checkpoints[name]:
                raise CommunityError(
                    f"{name} cannot learn its first lessons ({reason}); change the member or the "
                    "lessons in the recipe"
                )
            _warn(f"{name} did not learn from its lessons and stays as it was: {reason}")
        self.load({name: self.checkpoints[name] for name in failed})
        learned = {k: v for k, v in results.items() if not isinstance(v, Failure)}
        for name, (found, _) in learned.items():
            if found.left_out:
                _warn(f"{name} leaves out lessons with characters that it cannot read")
        self.checkpoints |= {name: checkpoint for name, (_, checkpoint) in learned.items()}
        return learned

    def save(self) -> None:
        """Make every member's weights a checkpoint."""
        self.checkpoints |= self._sure("save", dict.fromkeys(self.names, ()))

    def load(self, checkpoints: Mapping[str, str]) -> None:
        """Take members back to checkpoints. Raises CommunityError for a damaged one."""
        if checkpoints:
            self.checkpoints |= self._sure("load", {k: (v,) for k, v in checkpoints.items()})

    def _sure(self, method: str, work: Mapping[str, tuple[Any, ...]]) -> dict[str, str]:
        results = self._call(method, work)
        for name, found in results.items():
            if isinstance(found, Failure):
                raise RuntimeError(f"{name} cannot {method}: {found.reason}")
        return results

    # -- calling -----------------------------------------------------------------------

    def _call(
        self, method: str, work: Mapping[str, tuple[Any, ...]], phase: str = ""
    ) -> dict[str, Any]:
        self.listener.phase(phase or method, len(work))

        def done(name: str, result: Any) -> None:
            self.listener.done(name, _tokens(result))

        return self.pool.call(method, work, done)


def _warn(said: str) -> None:
    """Python shows the same words once."""
    warnings.warn(said, RuntimeWarning, stacklevel=3)


def opinions(ideas: Sequence[Idea]) -> dict[tuple[str, str], Idea]:
    """(task, author) -> the idea of its latest turn with the answer that it gave most often."""
    said: dict[tuple[str, str], list[Idea]] = {}
    for idea in sorted(ideas, key=lambda i: (i.turn, i.sample)):
        if idea.answer:
            mine = said.setdefault((idea.task, idea.author), [])
            if mine and mine[0].turn < idea.turn:
                mine.clear()
            mine.append(idea)
    return {
        place: max(mine, key=lambda i: [j.answer for j in mine].count(i.answer))
        for place, mine in said.items()
    }


def _tokens(result: Any) -> int:
    """Tokens that a call's result speaks of, for the display."""
    if isinstance(result, tuple) and isinstance(result[0], Learned):
        return result[0].tokens
    if isinstance(result, list):
        return sum(item.tokens for _, item in result if isinstance(item, Idea))
    return 0
