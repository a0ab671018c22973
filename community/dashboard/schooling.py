"""Who learns what, from whom and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, func, or_, select

from community.ledger import Ledger
from community.tables import ideas, lessons, tasks


@dataclass(frozen=True)
class Wish:
    """Which lessons to list; what is empty does not matter."""

    text: str = ""  # words of the task, the answer or the reason
    learner: str = ""
    author: str = ""
    first: int = 1
    last: int | None = None


@dataclass(frozen=True)
class Row:
    """A lesson in a list."""

    id: str
    round: int
    learner: str
    author: str
    idea: str  # ids; empty if there is none
    rejected: str
    task: str
    domain: str
    level: int
    prompt: str
    text: str
    rejected_text: str
    reason: str
    confidence: float


def lessons_of(ledger: Ledger, wish: Wish, offset: int, limit: int) -> list[Row]:
    """Lessons that are wished for, the latest first."""
    x, t = lessons.c, tasks.c
    loser = ideas.alias("loser")
    query = _wished(
        select(x.id, x.round, x.learner, ideas.c.author, ideas.c.id, loser.c.id, t.prompt)
        .add_columns(t.domain, t.level, x.prompt, x.text, loser.c.text, x.reason, x.confidence)
        .join_from(lessons, tasks, x.task == t.row)
        .outerjoin(ideas, x.idea == ideas.c.row)
        .outerjoin(loser, x.rejected == loser.c.row),
        wish,
    )
    order = query.order_by(x.row.desc()).limit(limit).offset(offset)
    with ledger.reading() as conn:
        return [Row(*_filled(entry)) for entry in conn.execute(order)]


def _filled(entry: Iterable[Any]) -> list[Any]:
    return ["" if value is None else value for value in entry]


def how_many(ledger: Ledger, wish: Wish) -> int:
    """Number of lessons that are wished for."""
    query = (
        select(func.count())
        .join_from(lessons, tasks, lessons.c.task == tasks.c.row)
        .outerjoin(ideas, lessons.c.idea == ideas.c.row)
    )
    with ledger.reading() as conn:
        return int(conn.scalar(_wished(query, wish)) or 0)


def _wished(query: Select[Any], wish: Wish) -> Select[Any]:
    x = lessons.c
    query = query.where(x.round >= wish.first)
    if wish.last is not None:
        query = query.where(x.round <= wish.last)
    if wish.learner:
        query = query.where(x.learner == wish.learner)
    if wish.author:
        query = query.where(ideas.c.author == wish.author)
    for word in wish.text.split():
        texts = (tasks.c.prompt, x.text, x.reason)
        query = query.where(or_(*(c.contains(word, autoescape=True) for c in texts)))
    return query


@dataclass(frozen=True)
class Pair:
    """How many lessons went from one member's ideas to another member."""

    author: str
    learner: str
    lessons: int


def pairs(ledger: Ledger) -> list[Pair]:
    """Who learned from whom, over the whole run, the most first."""
    number = func.count()
    query = select(func.coalesce(ideas.c.author, ""), lessons.c.learner, number)
    joined = query.join_from(lessons, ideas, lessons.c.idea == ideas.c.row, isouter=True)
    by = joined.group_by(ideas.c.author, lessons.c.learner)
    with ledger.reading() as conn:
        return [Pair(*row) for row in conn.execute(by.order_by(number.desc(), ideas.c.author))]
