"""Full-text search over all ideas of a ledger, with filters, in any order.

Words are matched anywhere in the task's prompt, the idea's text or its answer, also within
longer words and sums: `12+3` finds `12+34=`. Words between quotes stand together: `"by one"`.
All of them must be there; the case of A to Z does not matter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from string import ascii_lowercase, ascii_uppercase
from typing import Any, Literal

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    Subquery,
    and_,
    bindparam,
    func,
    or_,
    select,
)

from community import textindex
from community.errors import CommunityError
from community.ledger import Ledger
from community.rows import chunks
from community.tables import ideas, members, rankings, rounds, tasks

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


_IDEAS = select(ideas.c.row).join_from(ideas, tasks, ideas.c.task == tasks.c.row)
# + 0 keeps SQLite from looking at all rankings of a round for each of its ideas
_SAME = and_(rankings.c.idea == ideas.c.row, rankings.c.round + 0 == ideas.c.round)
_SHOWN = _IDEAS.outerjoin(rankings, _SAME).add_columns(
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
_STRENGTH = rankings.c.strength
_SMALL = str.maketrans(ascii_uppercase, ascii_lowercase)
FEW = 20_000
"""So many candidates are gathered and sorted."""
REACHES = (1_000, 10_000)
"""How far down the order of strength an index is followed before all candidates are gathered."""


def search(ledger: Ledger, query: Query, limit: int = 100, offset: int = 0) -> list[Found]:
    """At most `limit` of the ideas, from the `offset`-th on.

    Equal ones are in the order of recording (or its reverse); unranked ideas come last where
    strength is the order. Raises CommunityError for an order that does not exist.
    """
    if query.sort not in _KEYS:
        raise CommunityError(f"ideas are sorted by {', '.join(_KEYS)}, not by {query.sort!r}")
    with ledger.reading() as conn:
        rows = _Finder(conn, query).first(offset + limit)[offset:]
        found: dict[int, Found] = {}
        for part in chunks(rows):
            for row, *facts in conn.execute(_SHOWN.where(ideas.c.row.in_(part))):
                found[row] = Found(*facts)
    return [found[row] for row in rows]


def count(ledger: Ledger, query: Query, at_most: int = 10_000) -> int:
    """How many ideas there are; `at_most` stands for so many or more.

    Their texts are read one by one, a million in some seconds.
    """
    with ledger.reading() as conn:
        return _Finder(conn, query).count(at_most)


def needles(text: str) -> list[str]:
    """The words and quoted phrases of what a user typed, in small letters, each once."""
    readable = text.encode(errors="replace").decode().translate(_SMALL)
    found = (phrase or word for phrase, word in re.findall(r'"([^"]+)"|([^\s"]+)', readable))
    return list(dict.fromkeys(found))


class _Finder:
    """Finds the rows of `ideas` that a query wants.

    Few candidates are gathered and sorted; of many, the first are soon met in order.
    """

    def __init__(self, conn: Connection, query: Query) -> None:
        self.conn, self.query = conn, query
        self.needles = needles(query.text)
        self.indexed = textindex.exists(conn)
        self.between = self._between()
        self.holds = self._conditions()
        self.match = self._expression() if self.indexed else ""

    def first(self, wanted: int) -> list[int]:
        """The first so many rows in the query's order."""
        sort = self.query.sort
        if sort == "round" and self.match:
            return self._matched(self.match, wanted)
        if not self.indexed or self._few() or sort == "round":
            return self._gathered(wanted)
        return self._by_strength(wanted) if sort == "strength" else self._by_name(wanted)

    def count(self, at_most: int) -> int:
        chosen = self._joined(self.match) if self.match else _IDEAS
        chosen = chosen.where(*self.holds).limit(at_most)
        return self.conn.scalar(select(func.count()).select_from(chosen.subquery())) or 0

    # -- which ideas -----------------------------------------------------------------------

    def _between(self) -> tuple[int, int] | None:
        """The rows of the first and the last idea of the rounds; None if all are wanted."""
        first, last = self.query.first, self.query.last
        if first <= 1 and last is None:
            return None
        own = ideas.c.round == rounds.c.n
        ends = [
            select(end(ideas.c.row)).where(own).scalar_subquery() for end in (func.min, func.max)
        ]
        query = select(func.min(ends[0]), func.max(ends[1])).where(rounds.c.n >= first)
        if last is not None:
            query = query.where(rounds.c.n <= last)
        low, high = self.conn.execute(query).one()
        return (0, 0) if low is None else (low, high)

    def _conditions(self) -> list[ColumnElement[bool]]:
        """All that must hold of an idea and its task."""
        query = self.query
        found = [_holds(self.conn, needle) for needle in self.needles]
        if query.author:
            found.append(ideas.c.author == query.author)
        if query.arena:
            found.append(or_(tasks.c.arena == query.arena, tasks.c.domain == query.arena))
        if self.between:
            found += [ideas.c.row.between(*self.between), ideas.c.round >= query.first]
        if query.last is not None:
            found.append(ideas.c.round <= query.last)
        return found

    def _expression(self, author: str = "", places: tuple[str, ...] = ()) -> str:
        query = self.query
        at = (*places, *([query.arena] if query.arena else []))
        return textindex.expression(self.conn, self.needles, author or query.author, at)

    def _among(self, chosen: Select[Any], row: ColumnElement[int]) -> Select[Any]:
        """With the index's help, where it has any."""
        return chosen.where(row.in_(self._matching())) if self.match else chosen

    def _matching(self, match: str = "") -> Select[tuple[int]]:
        rows = textindex.matching(match or self.match)
        return rows.where(textindex.ROW.between(*self.between)) if self.between else rows

    def _few(self) -> bool:
        """Whether at most FEW ideas come into question."""
        if self.match:
            some = self._matching().limit(FEW + 1).subquery()
            return (self.conn.scalar(select(func.count()).select_from(some)) or 0) <= FEW
        return self.between is not None and self.between[1] - self.between[0] < FEW

    # -- in which order --------------------------------------------------------------------

    def _gathered(self, wanted: int) -> list[int]:
        """All candidates, sorted."""
        chosen = self._among(_IDEAS.outerjoin(rankings, _SAME), ideas.c.row)
        return self._take(chosen, _KEYS[self.query.sort], wanted)

    def _matched(self, match: str, wanted: int, *more: ColumnElement[bool]) -> list[int]:
        """What FTS5 gives in the order of rows, and stops giving when there is enough."""
        return self._take(self._joined(match).where(*more), [textindex.ROW], wanted)

    def _joined(self, match: str) -> Select[tuple[int]]:
        chosen = self._matching(match).join(ideas, ideas.c.row == textindex.ROW)
        return chosen.join(tasks, ideas.c.task == tasks.c.row)

    def _by_strength(self, wanted: int) -> list[int]:
        """Down the index of strengths; if that is too far, down the candidates in it; or all."""
        keys = (rankings.c.strength, rankings.c.idea)
        for reach in REACHES:
            top = select(*keys, rankings.c.round).order_by(*self._order(keys)).limit(reach)
            found = self._ranked(top.subquery(), wanted)
            if len(found) == wanted:
                return found
        found = self._ranked(
            self._among(select(*keys, rankings.c.round), rankings.c.idea).subquery(), wanted
        )
        return found if len(found) == wanted else self._gathered(wanted)

    def _ranked(self, top: Subquery, wanted: int) -> list[int]:
        same = and_(ideas.c.row == top.c.idea, ideas.c.round == top.c.round)
        chosen = select(ideas.c.row).join_from(top, ideas, same)
        chosen = chosen.join(tasks, ideas.c.task == tasks.c.row)
        return self._take(chosen, [top.c.strength, top.c.idea], wanted)

    def _by_name(self, wanted: int) -> list[int]:
        """Author after author, or domain after domain, each in the order of rows."""
        found: list[int] = []
        for name in self._names():
            if self.query.sort == "author":
                match, own = self._expression(author=name[0]), [ideas.c.author == name[0]]
            else:
                match = self._expression(places=name)
                own = [tasks.c.arena == name[0], tasks.c.domain == name[1]]
            found += self._matched(match, wanted - len(found), *own)
            if len(found) == wanted:
                break
        return found

    def _names(self) -> list[tuple[str, ...]]:
        """All authors, or all arenas with their domains, in order."""
        if self.query.sort == "author":
            names = select(members.c.name)
            if self.query.author:
                names = names.where(members.c.name == self.query.author)
        else:
            names = select(tasks.c.arena, tasks.c.domain).distinct()
        found = sorted(tuple(row) for row in self.conn.execute(names))
        return found[::-1] if self.query.descending else found

    def _take(
        self, chosen: Select[Any], keys: Iterable[ColumnElement[Any]], wanted: int
    ) -> list[int]:
        ordered = chosen.where(*self.holds).order_by(*self._order(keys)).limit(wanted)
        return list(self.conn.scalars(ordered))

    def _order(self, keys: Iterable[ColumnElement[Any]]) -> list[ColumnElement[Any]]:
        down = self.query.descending
        order = {key: key.desc() if down else key.asc() for key in keys}
        return [x.nulls_last() if key is _STRENGTH else x for key, x in order.items()]


def _holds(conn: Connection, needle: str) -> ColumnElement[bool]:
    """Whether a needle is in one of the texts. A to Z are made small, as SQLite does."""
    texts = (ideas.c.text, ideas.c.answer, tasks.c.prompt)
    if conn.dialect.name == "sqlite":
        return or_(*(func.instr(func.lower(text), needle) > 0 for text in texts))
    own = bindparam(None, needle, type_=ideas.c.text.type)
    return or_(*(func.strpos(func.lower(text.collate("C")), own) > 0 for text in texts))
