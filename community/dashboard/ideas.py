"""The screen Ideas: every idea there is, filtered, searched and sorted."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.binding import Binding, BindingType
from textual.events import ScreenResume
from textual.widgets import Input

from community.dashboard.asked import asked, rounds
from community.dashboard.listing import Column, Listing
from community.dashboard.page import nothing_yet
from community.dashboard.searching import Searching
from community.ledger import Ledger
from community.search import Found, Order, Query, search
from community.search import count as how_many
from community.words import count, one_line, signed

SORTS: tuple[Order, ...] = ("round", "strength", "arena", "author")
"""In the order in which s takes them."""
MOST = 100_000
"""Matches are counted up to here."""


def _answer(found: Found) -> Text:
    if found.failure:
        return Text(f"✗ failed: {one_line(found.failure, 80)}", style="italic")
    return Text(one_line(found.answer or found.text, 160))


COLUMNS = (
    Column("round", lambda f: str(f.round), 6, True, sort="round"),
    Column("turn", lambda f: str(f.turn), 4, True, 100),
    Column("author", lambda f: one_line(f.author), 12, sort="author"),
    Column("arena", lambda f: one_line(f.domain), 12, sort="arena", least=70),
    Column("level", lambda f: str(f.level), 5, True, 100),
    Column("place", lambda f: "–" if f.place is None else str(f.place), 5, True),
    Column("strength", lambda f: signed(f.strength), 9, True, sort="strength"),
    Column("task", lambda f: one_line(f.task, 160)),
    Column("answer", _answer),
)


class IdeasPage(Searching[Query]):
    """Every idea of the run, those that lost and those that failed included."""

    name_of_page = "ideas"
    EXAMPLE = "words, author:ada, arena:gcd, round:3-7"
    COLUMNS = COLUMNS
    KEYS: ClassVar[list[tuple[str, str]]] = [
        ("/", f"search: {EXAMPLE}; id:0b12 and enter reads that one"),
        ("s", "sort by round, strength, arena or author"),
        ("o", "the other way round"),
        ("enter", "read the idea"),
        ("l", "its lineage"),
    ]
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("s", "sort", "Sort"),
        Binding("o", "turn", "Other way"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.query_now = Query()

    def load(self, ledger: Ledger) -> Query:
        """Nothing but the query: the listing fetches what is seen of it."""
        return self.query_now

    def show(self, found: Query) -> None:
        if not self.in_use():
            self._put()

    def on_screen_resume(self, event: ScreenResume) -> None:
        if self.app.sought:
            self.box.value, self.app.sought = self.app.sought, ""
            self.ask()
        super().on_screen_resume(event)

    def understand(self, typed: str) -> Query:
        return query_of(typed, self.query_now)

    def wanted(self) -> Query:
        return self.query_now

    def seek(self, wanted: object) -> None:
        assert isinstance(wanted, Query)
        self.query_now = wanted
        self._put()

    def idea_of(self, row: object) -> str:
        assert isinstance(row, Found)
        return row.id

    def _put(self) -> None:
        """List what the query finds, from the start."""
        listing, query = self.listing, self.query_now
        listing.sort, listing.descending, listing.tag = query.sort, query.descending, query
        listing.cursor = 0
        if query == Query(sort=query.sort, descending=query.descending):
            every = self.app.course.ideas if self.app.course else 0
            fetch = partial(ideas_at, self.app.ledger, query, every)
            listing.source(fetch, every, nothing_yet(self.app.course))
            self._say(count(every, "idea"))
        else:
            fetch = partial(ideas_at, self.app.ledger, query, None)
            listing.source(fetch, None, "No idea matches.")
            self._say("counting…")
            every_match = partial(how_many, self.app.ledger, query, MOST)
            self.find_out("count", every_match, partial(self._counted, query))

    def _counted(self, query: Query, found: int) -> None:
        if query == self.query_now:
            complete = found < MOST
            self.listing.known(found, complete)
            self._say(f"{count(found, 'idea')}{'' if complete else ' or more'}")

    def _say(self, text: str) -> None:
        way = "▼" if self.query_now.descending else "▲"
        self.say(f"{text} · by {self.query_now.sort} {way}")

    # -- one by its id, and orders ---------------------------------------------------------

    @on(Input.Submitted, "#query")
    def _by_id(self, event: Input.Submitted) -> None:
        if event.value.startswith("id:"):
            one = partial(self.app.ledger.idea, event.value[3:].strip())
            self.find_out("open", one, lambda idea: self.app.open_idea(idea.id))

    def _order(self, sort: Order, descending: bool) -> None:
        self.query_now = replace(self.query_now, sort=sort, descending=descending)
        self._put()

    @on(Listing.Sorted)
    def _head(self, event: Listing.Sorted) -> None:
        sort = SORTS[SORTS.index(event.key)]
        self._order(sort, not (sort == self.query_now.sort and self.query_now.descending))

    def action_sort(self) -> None:
        after = SORTS.index(self.query_now.sort) + 1
        sort = SORTS[after % len(SORTS)]
        self._order(sort, sort in ("round", "strength"))

    def action_turn(self) -> None:
        self._order(self.query_now.sort, not self.query_now.descending)


def ideas_at(
    ledger: Ledger, query: Query, every: int | None, offset: int, limit: int
) -> list[Found]:
    """A page of what a query finds; the second half of `every` idea from its other end.

    The farther a page is from the end that a search begins at, the longer it takes.
    Unranked ideas come last in either order of strength, so that one cannot be turned round.
    """
    if every is None or offset < every // 2 or query.sort == "strength":
        return search(ledger, query, limit, offset)
    limit = min(limit, every - offset)
    turned = replace(query, descending=not query.descending)
    return search(ledger, turned, limit, every - offset - limit)[::-1]


def query_of(text: str, before: Query) -> Query:
    """What is typed as a query, sorted as before. CommunityError where it makes no sense."""
    words, fields = asked(text, ("author", "arena", "round", "id"))
    first, last = rounds(fields.get("round", ""))
    return Query(
        words, fields.get("author", ""), fields.get("arena", ""), first, last,
        before.sort, before.descending,
    )  # fmt: skip
