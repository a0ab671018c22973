"""How a run is getting on: what the ledger knows of its rounds, its cost and its curves.

A round that is recorded never changes, so what was found out about it is kept: a look at a
long run costs what is new in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from threading import Lock
from time import time
from typing import Any, NamedTuple

from sqlalchemy import BindParameter, Connection, Select, bindparam, func, select

from community import rows
from community.config import check_options
from community.database import file_of
from community.errors import CommunityError
from community.ledger import Ledger
from community.plugins import load
from community.tables import ideas, learnings, lessons, rounds, scores, spent, tasks
from community.types import Arena
from community.world import verified

RECENT = 5
"""Rounds that the time left is reckoned from."""
QUIET = 3
"""A run that has recorded nothing for so many rounds' time may have been stopped."""


class Pulse(NamedTuple):
    """The last round and the last learning: while they stand, nothing else has changed."""

    round: int  # 0: none
    learning: int  # -1: none


def pulse(ledger: Ledger) -> Pulse:
    """How far the record goes now; two look-ups in primary keys."""
    with ledger.reading() as conn:
        played = conn.scalar(select(func.max(rounds.c.n)))
        learned = conn.scalar(select(func.max(learnings.c.n)))
    return Pulse(played or 0, -1 if learned is None else learned)


@dataclass(frozen=True)
class Course:
    """A run so far. Budgets are 0 where there is none, times are in seconds."""

    pulse: Pulse
    planned: int  # rounds; 0 where the ledger does not say
    members: int
    ideas: int
    lessons: int
    tokens: int
    seconds: float
    recent: float  # mean time of the last rounds
    token_budget: int
    second_budget: float
    quiet: float | None  # since the ledger changed; None where that is not known
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def over(self) -> bool:
        """Whether the last round planned was played and learned from."""
        return 0 < self.planned <= self.pulse.learning

    @property
    def spent(self) -> bool:
        """Whether a budget is used up."""
        tokens = self.token_budget and self.tokens >= self.token_budget
        return bool(tokens or (self.second_budget and self.seconds >= self.second_budget))

    @property
    def phase(self) -> str:
        """What comes next, as far as the ledger shows it."""
        played, learned = self.pulse
        if self.over:
            return "finished"
        if learned < 0:
            return "first lessons"
        if played > learned:
            return f"learning from round {played}"
        return "budget used up" if self.spent else f"playing round {played + 1}"

    @property
    def silent(self) -> bool:
        """Whether it is quiet for so long that the run may have been stopped."""
        if self.over or self.spent or self.quiet is None:
            return False
        return self.quiet > max(60.0, QUIET * self.recent)

    @property
    def left(self) -> float | None:
        """Time left, from the last rounds; None where nothing is known of it."""
        if self.over or self.spent or self.silent or not self.recent or not self.planned:
            return None
        waited = min(self.quiet or 0.0, self.recent)
        left = self.recent * (self.planned - self.pulse.round) - waited
        if self.token_budget and self.pulse.round:
            each = self.tokens / self.pulse.round
            left = min(left, (self.token_budget - self.tokens) / each * self.recent)
        if self.second_budget:
            left = min(left, self.second_budget - self.seconds)
        return max(0.0, left)


def course(ledger: Ledger) -> Course:
    """A run so far, in a few short queries."""
    meta, now = ledger.meta, pulse(ledger)
    recipe = meta.get("recipe", {})
    budget = recipe.get("budget", {})
    with ledger.reading() as conn:
        last = select(rounds.c.seconds + func.coalesce(learnings.c.seconds, 0.0))
        last = last.outerjoin(learnings, learnings.c.n == rounds.c.n)
        recent = conn.scalars(last.order_by(rounds.c.n.desc()).limit(RECENT)).all()
        return Course(
            pulse=now,
            planned=int(recipe.get("run", {}).get("rounds", 0)),
            members=len(ledger.members()),
            ideas=rows.next_row(conn, ideas) - 1,  # rows are numbered without a gap
            lessons=rows.next_row(conn, lessons) - 1,
            tokens=int(conn.scalar(select(func.sum(spent.c.tokens))) or 0),
            seconds=sum(conn.scalar(select(func.sum(t.c.seconds))) or 0.0
                        for t in (rounds, learnings)),
            recent=fmean(recent) if recent else 0.0,
            token_budget=int(budget.get("tokens", 0)),
            second_budget=float(budget.get("seconds", 0.0)),
            quiet=_quiet(ledger),
            meta=meta,
        )  # fmt: skip


def tick(ledger: Ledger, before: Course | None) -> Course:
    """The course now; what was found before if the ledger holds nothing new since."""
    if before is None or pulse(ledger) != before.pulse:
        return course(ledger)
    return replace(before, quiet=_quiet(ledger))


def _quiet(ledger: Ledger) -> float | None:
    """Seconds since an SQLite ledger was written to."""
    path = file_of(ledger.engine.url)
    if path is None:
        return None
    files = (Path(path), Path(f"{path}-wal"))
    times = [file.stat().st_mtime for file in files if file.exists()]
    return max(0.0, time() - max(times)) if times else None


# -- curves --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """What a round did."""

    tasks: int
    kept: int  # tasks that became lessons
    ideas: int
    answers: float  # different answers a task, on average
    precision: float | None  # share of the kept lessons that are right; None: nobody knows
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Holdout:
    """Exact match over all holdout tasks after a learning; None where there is no such solver."""

    community: float | None
    best: float | None
    mean: float | None


def _facts_of_a_round() -> Select[Any]:
    """One query in place of seven, which took longer to ask than to answer."""
    n: BindParameter[int] = bindparam("n")
    said = select(ideas.c.task, ideas.c.answer).where(ideas.c.round == n, ideas.c.answer != "")
    facts: dict[str, Select[Any]] = {
        "tasks": select(func.count()).where(tasks.c.round == n),
        "kept": select(func.count(lessons.c.task.distinct())).where(lessons.c.round == n),
        "ideas": select(func.count()).where(ideas.c.round == n),
        "answers": select(func.count()).select_from(said.distinct().subquery()),
        "tokens": select(func.sum(spent.c.tokens)).where(spent.c.round == n),
        "played": select(rounds.c.seconds).where(rounds.c.n == n),
        "learned": select(learnings.c.seconds).where(learnings.c.n == n),
    }
    return select(*(query.scalar_subquery().label(name) for name, query in facts.items()))


_POINT = _facts_of_a_round()


class Curves:
    """What every round did and how everyone scored after it, found out once and kept."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.points: dict[int, Point] = {}
        self.holdout: dict[int, Holdout] = {}
        self.settled: set[int] = set()  # rounds whose learning's tokens and time are in, too
        self.unknown = ""  # why there is no precision, if there is none
        self._lock = Lock()
        self._arena: Arena | None = None
        self._asked = False

    def update(self) -> Iterator[int]:
        """Find out what is new, latest round first; yields the rounds that are still to do.

        One thread at a time does so, the others wait.
        """
        with self._lock:
            self._ask_arena()
            self._update_holdout()
            learned = pulse(self.ledger).learning
            with self.ledger.reading() as conn:
                every = conn.scalars(select(rounds.c.n).order_by(rounds.c.n.desc())).all()
            wanted = [n for n in every if n not in self.settled]
            for i, n in enumerate(wanted):
                self.points[n] = self._point(n)
                if n <= learned:
                    self.settled.add(n)
                yield len(wanted) - i - 1

    def _ask_arena(self) -> None:
        """The arena tells how many of the kept lessons are right, as it does for the report."""
        if self._asked:
            return
        self._asked = True
        meta = self.ledger.meta
        said = dict(meta.get("recipe", {}).get("arena", {}))
        use = said.pop("use", "")
        try:
            if use:
                make = load("arena", use, Path(meta.get("base", ".")))
                self._arena = make(**check_options(make, said, "arena", ("self",)))
            else:
                self.unknown = "the ledger names no arena"
        except CommunityError as error:
            self.unknown = str(error)

    def _update_holdout(self) -> None:
        query = (
            select(scores.c.learning, scores.c.solver)
            .add_columns(func.sum(scores.c.right), func.sum(scores.c.total))
            .where(scores.c.split == "holdout", scores.c.total > 0)
            .where(scores.c.learning > max(self.holdout, default=-1))
            .group_by(scores.c.learning, scores.c.solver)
        )
        found: dict[int, dict[str, float]] = {}
        names = set(self.ledger.members())
        with self.ledger.reading() as conn:
            for n, solver, right, total in conn.execute(query):
                found.setdefault(n, {})[solver] = float(right) / float(total)
        for n, shares in found.items():
            theirs = [value for name, value in shares.items() if name in names]
            best, mean = (max(theirs), fmean(theirs)) if theirs else (None, None)
            self.holdout[n] = Holdout(shares.get("community"), best, mean)

    def _point(self, n: int) -> Point:
        with self.ledger.reading() as conn:
            found = conn.execute(_POINT, {"n": n}).one()
            return Point(
                tasks=found.tasks,
                kept=found.kept,
                ideas=found.ideas,
                answers=found.answers / found.tasks if found.tasks else 0.0,
                precision=self._precision(conn, n),
                tokens=int(found.tokens or 0),
                seconds=(found.played or 0.0) + (found.learned or 0.0),
            )

    def _precision(self, conn: Connection, n: int) -> float | None:
        if self._arena is None:
            return None
        mine = lessons.c.round == n
        posed = rows.read_tasks(conn, tasks.c.row.in_(select(lessons.c.task).where(mine)))
        by_id = {task.id: task for task in posed}
        won = rows.read_ideas(conn, ideas.c.row.in_(select(lessons.c.idea).where(mine)))
        asked = [idea for idea in won if idea.task in by_id]
        truth = [verified(self._arena, by_id[idea.task], idea) for idea in asked]
        known = [said >= 1.0 for said in truth if said is not None]
        return sum(known) / len(known) if known else None
