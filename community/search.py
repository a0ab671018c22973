"""Full-text search over all ideas of a ledger, with filters, in any order.

Words are matched anywhere in the task's prompt, the idea's text or its answer, also within
longer words and sums: `12+3` finds `12+34=`. Words between quotes stand together: `"by one"`.
All of them must be there; the case of A to Z does not matter.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, Select, and_, func, or_, select

from community.errors import CommunityError
from community.ledger import Ledger
from community.tables import ideas, rankings, tasks

Order = Literal["strength", "round", "arena", "author"]


@dataclass(frozen=True)
class Query:
    """Which ideas, and in which order. Empty texts leave out that filter."""

    text: str = ""  # words that the task, the idea or its answer hold
    author: str = ""  # a member's name
    arena: str = ""  # an arena or a domain
    first: int = 1  # rounds, both included
    last: int | None = None
    sort: Order = "round"
    descending: bool = True


@dataclass(frozen=True)
class Found:
    """An idea in brief. Place and strength are None where it was not ranked."""

    id: str
    round: int
    author: str
    arena: str
    domain: str
    level: int
    turn: int
    task: str  # the prompt
    answer: str
    text: str
    place: int | None
    strength: float | None
    failure: str


_COLUMNS = (
    *(ideas.c.id, ideas.c.round, ideas.c.author, tasks.c.arena, tasks.c.domain, tasks.c.level),
    *(ideas.c.turn, tasks.c.prompt, ideas.c.answer, ideas.c.text, rankings.c.place),
    *(rankings.c.strength, ideas.c.failure),
)
_KEYS: dict[str, tuple[ColumnElement[Any], ...]] = {
    "round": (ideas.c.row,),
    "strength": (rankings.c.strength, ideas.c.row),
    "author": (ideas.c.author, ideas.c.row),
    "arena": (tasks.c.arena, tasks.c.domain, ideas.c.row),
}


def search(ledger: Ledger, query: Query, limit: int = 100, offset: int = 0) -> list[Found]:
    """At most `limit` of the ideas, from the `offset`-th on.

    Equal ones are in the order of recording (or its reverse); unranked ideas come last where
    strength is the order. Raises CommunityError for an order that does not exist.
    """
    if query.sort not in _KEYS:
        raise CommunityError(f"ideas are sorted by {', '.join(_KEYS)}, not by {query.sort!r}")
    with ledger.reading() as conn:
        chosen = _joined(conn, query).order_by(*_order(query)).limit(limit).offset(offset)
        return [Found(*row) for row in conn.execute(chosen)]


def count(ledger: Ledger, query: Query, at_most: int = 1_000_000) -> int:
    """How many ideas there are; counting stops at `at_most`."""
    with ledger.reading() as conn:
        some = _joined(conn, query).with_only_columns(ideas.c.row).limit(at_most).subquery()
        return conn.scalar(select(func.count()).select_from(some)) or 0


def needles(text: str) -> list[str]:
    """The words and quoted phrases of what a user typed, each once."""
    found = (phrase or word for phrase, word in re.findall(r'"([^"]+)"|([^\s"]+)', text))
    return list(dict.fromkeys(found))


def _joined(conn: Connection, query: Query) -> Select[Any]:
    ranked = and_(rankings.c.idea == ideas.c.row, rankings.c.round == ideas.c.round)
    joined = select(*_COLUMNS).join_from(ideas, tasks, ideas.c.task == tasks.c.row)
    return joined.outerjoin(rankings, ranked).where(*_conditions(conn, query))


def _conditions(conn: Connection, query: Query) -> list[ColumnElement[bool]]:
    found = [_holds(conn, needle) for needle in needles(query.text)]
    if query.author:
        found.append(ideas.c.author == query.author)
    if query.arena:
        found.append(or_(tasks.c.arena == query.arena, tasks.c.domain == query.arena))
    if query.first > 1:
        found.append(ideas.c.round >= query.first)
    if query.last is not None:
        found.append(ideas.c.round <= query.last)
    return found


def _holds(conn: Connection, needle: str) -> ColumnElement[bool]:
    """Whether a needle is in one of the texts."""
    texts = (ideas.c.text, ideas.c.answer, tasks.c.prompt)
    place = func.instr if conn.dialect.name == "sqlite" else func.strpos
    return or_(*(place(_lower(conn, text), _lower(conn, needle)) > 0 for text in texts))


def _lower(conn: Connection, text: Any) -> ColumnElement[str]:
    """A to Z made small, and nothing else, as in SQLite."""
    if conn.dialect.name == "sqlite":
        return func.lower(text)
    return func.lower(text.collate("C") if isinstance(text, ColumnElement) else text)


def _order(query: Query) -> list[ColumnElement[Any]]:
    keys = _KEYS[query.sort]
    return [(key.desc() if query.descending else key.asc()).nulls_last() for key in keys]
