"""What the ledger knows of the members: strength, trust, domains, lessons and checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from math import sqrt
from typing import Any

from sqlalchemy import Select, func, select

from community import rows
from community.database import parsed
from community.ledger import Ledger
from community.tables import (
    checkpoints,
    ideas,
    lessons,
    members,
    rankings,
    reliability,
    rounds,
    scores,
    spent,
    tasks,
    taught,
)
from community.types import Checkpoint

Z = 1.96
"""Standard errors in half a 95% interval."""


@dataclass(frozen=True)
class Strength:
    """Mean strength of a member's ideas of one round among those of their tasks, 95% interval.

    As in the report, over a task's ideas and then over tasks: ideas of one task have nearly the
    same strength, and a task is what there is one more of. One task alone has no interval.
    """

    mean: float
    low: float | None
    high: float | None
    ideas: int


@dataclass(frozen=True)
class Member:
    """A member and what it did; None is what the ledger does not say."""

    name: str
    backend: str
    domains: tuple[str, ...]  # those it was given in the recipe; empty: all
    strength: Strength | None
    reliability: float | None
    holdout: float | None
    lessons: int  # that were for it
    learned: int  # that went into checkpoints that were kept
    taught: int  # that were made of its ideas
    kept: int  # checkpoints after the start
    rollbacks: int
    failures: int
    tokens: int


def people(ledger: Ledger) -> list[Member]:
    """All members, the strongest first. Strengths are of the last round."""
    with ledger.reading() as conn:
        by = partial(rows.mapping_of, conn)
        last = conn.scalar(select(func.max(rounds.c.n))) or 0
        strong = {name: _strength(*sums) for name, *sums in conn.execute(_strengths(last))}
        trust = select(reliability.c.judge, reliability.c.value)
        trusted, solved = by(trust.where(reliability.c.round == last)), by(_solved())
        given = by(_counted(lessons.c.learner))
        learned = by(_counted(checkpoints.c.agent).join(taught).where(checkpoints.c.kept))
        teaching = by(_counted(ideas.c.author).join(lessons, lessons.c.idea == ideas.c.row))
        made = _counted(checkpoints.c.agent).where(checkpoints.c.learning > 0)
        kept, back = by(made.where(checkpoints.c.kept)), by(made.where(~checkpoints.c.kept))
        failed = by(_counted(ideas.c.author).where(ideas.c.failure != ""))
        tokens = by(select(spent.c.member, func.sum(spent.c.tokens)).group_by(spent.c.member))
        every = conn.execute(select(members).order_by(members.c.position)).all()
    found = [
        Member(
            name=m.name,
            backend=m.backend,
            domains=tuple(parsed(m.spec, dict).get("domains") or ()),
            strength=strong.get(m.name),
            reliability=trusted.get(m.name),
            holdout=solved.get(m.name),
            lessons=given.get(m.name, 0),
            learned=learned.get(m.name, 0),
            taught=teaching.get(m.name, 0),
            kept=kept.get(m.name, 0),
            rollbacks=back.get(m.name, 0),
            failures=failed.get(m.name, 0),
            tokens=int(tokens.get(m.name, 0)),
        )
        for m in every
    ]
    return sorted(found, key=lambda m: -(m.strength.mean if m.strength else float("-inf")))


def _counted(column: Any) -> Select[Any]:
    return select(column, func.count()).select_from(column.table).group_by(column)


def _strengths(n: int) -> Select[Any]:
    """Author, ideas and tasks in round n, sum and sum of squares of the tasks' mean strengths."""
    mean = func.avg(rankings.c.strength).label("mean")
    query = select(ideas.c.author, func.count().label("ideas"), mean)
    joined = query.join_from(rankings, ideas, rankings.c.idea == ideas.c.row)
    by_task = joined.where(rankings.c.round == n).group_by(ideas.c.author, ideas.c.task)
    t = by_task.subquery().c
    squares = func.sum(t.mean * t.mean)
    found = select(t.author, func.sum(t.ideas), func.count(), func.sum(t.mean), squares)
    return found.group_by(t.author)


def _strength(ideas: int, n: int, total: float, squares: float) -> Strength:
    mean = total / n
    if n == 1:
        return Strength(mean, None, None, int(ideas))
    half = Z * sqrt(max(0.0, squares - n * mean * mean) / (n - 1) / n)
    return Strength(mean, mean - half, mean + half, int(ideas))


def _solved() -> Select[Any]:
    """Solver, share of the holdout after the last learning."""
    last = select(func.max(scores.c.learning)).where(scores.c.split == "holdout")
    query = select(scores.c.solver, func.sum(scores.c.right) * 1.0 / func.sum(scores.c.total))
    mine = scores.c.learning == last.scalar_subquery()
    return query.where(scores.c.split == "holdout", scores.c.total > 0, mine).group_by(
        scores.c.solver
    )


@dataclass(frozen=True)
class Domain:
    """A member in one domain."""

    name: str
    start: float | None  # share of the holdout at the start
    now: float | None  # and after the last learning
    lessons: int


@dataclass(frozen=True)
class Portrait:
    """More of one member. Courses are by round, checkpoints latest first."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    reliability: tuple[tuple[int, float], ...] = ()
    holdout: tuple[tuple[int, float], ...] = ()
    domains: tuple[Domain, ...] = ()
    checkpoints: tuple[Checkpoint, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)  # checkpoint -> lessons it learned
    more: int = 0  # checkpoints not shown


MOST = 50
"""Checkpoints of a portrait."""


def portrait(ledger: Ledger, name: str) -> Portrait:
    """What the ledger knows of one member."""
    trust = select(reliability.c.round, reliability.c.value).where(reliability.c.judge == name)
    own = (scores.c.solver == name, scores.c.split == "holdout", scores.c.total > 0)
    share = func.sum(scores.c.right) * 1.0 / func.sum(scores.c.total)
    course = select(scores.c.learning, share).where(*own).group_by(scores.c.learning)
    made = select(checkpoints).where(checkpoints.c.agent == name)
    with ledger.reading() as conn:
        spec = conn.scalar(select(members.c.spec).where(members.c.name == name)) or "{}"
        solved = select(scores.c.learning, scores.c.domain, share).where(*own)
        by_domain: dict[str, dict[int, float]] = {}
        for n, domain, value in conn.execute(solved.group_by(scores.c.learning, scores.c.domain)):
            by_domain.setdefault(domain, {})[n] = value
        asked = select(tasks.c.domain, func.count()).join_from(
            lessons, tasks, lessons.c.task == tasks.c.row
        )
        given = rows.mapping_of(
            conn, asked.where(lessons.c.learner == name).group_by(tasks.c.domain)
        )
        order = made.order_by(checkpoints.c.row.desc()).limit(MOST)
        latest = conn.execute(order).all()
        total = conn.scalar(select(func.count()).select_from(made.subquery())) or 0
        rows_made = [entry.row for entry in latest]
        used = _counted(taught.c.checkpoint).where(taught.c.checkpoint.in_(rows_made))
        counts = rows.mapping_of(conn, used)
        return Portrait(
            name=name,
            options=parsed(spec, dict),
            reliability=_pairs(conn.execute(trust.order_by(reliability.c.round)).all()),
            holdout=_pairs(conn.execute(course.order_by(scores.c.learning)).all()),
            domains=tuple(
                _domain(domain, by_domain.get(domain, {}), given.get(domain, 0))
                for domain in sorted({*by_domain, *given})
            ),
            checkpoints=tuple(_checkpoint(entry) for entry in latest),
            counts={entry.id: counts.get(entry.row, 0) for entry in latest},
            more=total - len(latest),
        )


def _pairs(found: Any) -> tuple[tuple[int, float], ...]:
    return tuple((n, value) for n, value in found)


def _domain(name: str, course: Mapping[int, float], given: int) -> Domain:
    return Domain(name, course.get(0), course[max(course)] if course else None, given)


def _checkpoint(entry: Any) -> Checkpoint:
    own = ("id", "agent", "round", "parent", "path", "kept", "before", "after", "steps", "loss")
    return Checkpoint(**{name: getattr(entry, name) for name in own})
