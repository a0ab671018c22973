"""Search over a ledger's ideas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, Select, func, or_, select

from community.ledger import Ledger
from community.tables import ideas, rankings, tasks

Order = Literal["strength", "round", "arena", "author"]

_SORTS: dict[str, Any] = {
    "strength": rankings.c.strength,
    "round": ideas.c.row,
    "arena": tasks.c.domain,
    "author": ideas.c.author,
}


@dataclass(frozen=True)
class Query:
    """Which ideas, and in which order. Empty texts leave out that filter."""

    text: str = ""  # words of the task's prompt, the idea's text or its answer
    author: str = ""  # exact member name
    arena: str = ""  # arena or domain
    first: int = 1
    last: int | None = None  # rounds
    sort: Order = "round"
    descending: bool = True


@dataclass(frozen=True)
class Found:
    """An idea that was found."""

    id: str
    round: int
    author: str
    arena: str
    domain: str
    level: int
    turn: int
    task: str
    answer: str
    text: str
    place: int | None
    strength: float | None
    failure: str


def search(ledger: Ledger, query: Query, limit: int = 100, offset: int = 0) -> list[Found]:
    """Ideas that match, in order."""
    i, t, r = ideas.c, tasks.c, rankings.c
    wanted = _matching(
        select(i.id, i.round, i.author, t.arena, t.domain, t.level, i.turn, t.prompt)
        .add_columns(i.answer, i.text, r.place, r.strength, i.failure)
        .join_from(ideas, tasks, i.task == t.row)
        .outerjoin(rankings, r.idea == i.row),
        query,
    )
    by = _SORTS[query.sort]
    order = (by.desc(), i.row.desc()) if query.descending else (by, i.row)
    with ledger.reading() as conn:
        rows = conn.execute(wanted.order_by(*order).limit(limit).offset(offset))
        return [Found(*row) for row in rows]


def count(ledger: Ledger, query: Query, at_most: int = 1_000_000) -> int:
    """How many match, `at_most` if more."""
    i = ideas.c
    wanted = _matching(select(i.row).join_from(ideas, tasks, i.task == tasks.c.row), query)
    with ledger.reading() as conn:
        found = conn.scalar(select(func.count()).select_from(wanted.limit(at_most).subquery()))
    return int(found or 0)


def _matching(wanted: Select[Any], query: Query) -> Select[Any]:
    i, t = ideas.c, tasks.c
    where: list[ColumnElement[bool]] = []
    if query.first > 1:
        where.append(i.round >= query.first)
    if query.last is not None:
        where.append(i.round <= query.last)
    if query.author:
        where.append(i.author == query.author)
    if query.arena:
        where.append(or_(t.arena == query.arena, t.domain == query.arena))
    for word in query.text.split():
        where.append(
            or_(*(c.contains(word, autoescape=True) for c in (t.prompt, i.text, i.answer)))
        )
    return wanted.where(*where)
