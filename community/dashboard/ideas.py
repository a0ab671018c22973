"""The screen Ideas: every idea there is, filtered, searched and sorted."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.events import ScreenResume
from textual.widgets import Input, Static
from textual.worker import get_current_worker

from community.dashboard.asked import asked, rounds
from community.dashboard.listing import Column, Listing
from community.dashboard.page import Page, nothing_yet
from community.dashboard.words import count, one_line, signed
from community.errors import CommunityError
from community.ledger import Ledger
from community.search import Found, Order, Query, search
from community.search import count as how_many

SORTS: tuple[Order, ...] = ("round", "strength", "arena", "author")
"""In the order in which s takes them."""
PAUSE = 0.25
"""Seconds without a key before what was typed is searched for."""
MOST = 100_000
"""Matches are counted up to here."""


class IdeasPage(Page[Query]):
    """Every idea of the run, those that lost and those that failed included."""

    name_of_page = "ideas"
    KEYS: ClassVar[list[tuple[str, str]]] = [
        ("/", "search: words, author:ada, arena:gcd, round:3-7; id:0b12 and enter reads that one"),
        ("s", "sort by round, strength, arena or author"),
        ("o", "the other way round"),
        ("enter", "read the idea"),
        ("l", "its lineage"),
    ]
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "search", "Search", key_display="/"),
        Binding("s", "sort", "Sort"),
        Binding("o", "turn", "Other way"),
        Binding("l", "lineage", "Lineage"),
    ]
    CSS = """
    IdeasPage #query { height: 1; border: none; padding: 0 1; background: $surface; }
    IdeasPage #query:focus { background: $panel; }
    IdeasPage #count { height: 1; padding: 0 1; color: $text-muted; }
    IdeasPage #ideas { height: 1fr; }
    """

    def __init__(self) -> None:
        super().__init__()
        self.query_now = Query()
        self._typed: Any = None

    def body(self) -> ComposeResult:
        yield Input(placeholder="/ words, author:ada, arena:gcd, round:3-7", id="query",
                    compact=True)  # fmt: skip
        yield Static(id="count", markup=False)
        yield Listing(COLUMNS, id="ideas")

    def load(self, ledger: Ledger) -> Query:
        """Nothing but the query: the listing fetches what is seen of it."""
        return self.query_now

    def show(self, found: Query) -> None:
        listing = self.query_one("#ideas", Listing)
        if listing.cursor and listing.total and self._same(listing):
            self._say("there is more now; r loads it")
            return
        self._put()

    def _same(self, listing: Listing) -> bool:
        return listing.tag == self.query_now

    def _put(self) -> None:
        """List what the query finds, from the start."""
        listing, query = self.query_one("#ideas", Listing), self.query_now
        listing.sort, listing.descending = query.sort, query.descending
        listing.tag = query
        empty = "No idea matches." if query != Query() else nothing_yet(self.app.course)
        listing.cursor = 0
        every = (
            self._all() if query == Query(sort=query.sort, descending=query.descending) else None
        )
        fetch = partial(ideas_at, self.app.ledger, query, every)
        listing.source(fetch, every, empty)
        if every is None:
            self._say("counting…")
            self._count(query)
        else:
            self._say(count(every, "idea"))

    def reload(self) -> None:
        self.query_one("#ideas", Listing).cursor = 0
        super().reload()

    @work(thread=True, exclusive=True, group="count")
    def _count(self, query: Query) -> None:
        worker = get_current_worker()
        try:
            found = how_many(self.app.ledger, query, MOST)
        except CommunityError as error:
            self.call_later(self.notice, str(error))
            return
        if not worker.is_cancelled:
            self.call_later(self._counted, query, found)

    def _counted(self, query: Query, found: int) -> None:
        if query == self.query_now:
            complete = found < MOST
            self.query_one("#ideas", Listing).known(found, complete)
            self._say(f"{count(found, 'idea')}{'' if complete else ' or more'}")

    def _all(self) -> int:
        return self.app.course.ideas if self.app.course else 0

    def _say(self, text: str) -> None:
        query = self.query_now
        way = "▼" if query.descending else "▲"
        self.query_one("#count", Static).update(f"{text} · by {query.sort} {way}")

    # -- asking ----------------------------------------------------------------------------

    @on(Input.Changed, "#query")
    def _changed(self, event: Input.Changed) -> None:
        if self._typed is not None:
            self._typed.stop()
        self._typed = self.set_timer(PAUSE, self._ask)

    def on_screen_resume(self, event: ScreenResume) -> None:
        if self.app.sought:
            self.query_one("#query", Input).value, self.app.sought = self.app.sought, ""
            self._ask()
        super().on_screen_resume(event)

    @on(Input.Submitted, "#query")
    def _submitted(self, event: Input.Submitted) -> None:
        if self._typed is not None:
            self._typed.stop()
        self._ask()
        if event.value.startswith("id:"):
            self._open(event.value[3:].strip())
        self.query_one("#ideas", Listing).focus()

    def _ask(self) -> None:
        """Search for what is typed, if it can be understood and is not what is shown."""
        try:
            wanted = query_of(self.query_one("#query", Input).value, self.query_now)
        except CommunityError as error:
            self.notice(str(error))
            return
        self.notice("")
        if wanted != self.query_now:
            self.query_now = wanted
            self._put()

    @work(thread=True, exclusive=True, group="open")
    def _open(self, id: str) -> None:
        """Read the idea whose id starts so."""
        try:
            self.call_later(self.app.open_idea, self.app.ledger.idea(id).id)
        except CommunityError as error:
            self.call_later(self.notice, str(error))

    def _sorted(self, sort: Order, descending: bool) -> None:
        q = self.query_now
        self.query_now = Query(q.text, q.author, q.arena, q.first, q.last, sort, descending)
        self._put()

    @on(Listing.Sorted)
    def _head(self, event: Listing.Sorted) -> None:
        query = self.query_now
        sort = SORTS[SORTS.index(event.key)]
        self._sorted(sort, not (sort == query.sort and query.descending))

    @on(Listing.Failed)
    def _unfetched(self, event: Listing.Failed) -> None:
        self.notice(event.sentence)

    @on(Listing.Chosen, "#ideas")
    def _chosen(self, event: Listing.Chosen) -> None:
        self.app.open_idea(event.row.id)

    def action_search(self) -> None:
        self.query_one("#query", Input).focus()

    def action_sort(self) -> None:
        after = SORTS.index(self.query_now.sort) + 1
        sort = SORTS[after % len(SORTS)]
        self._sorted(sort, sort in ("round", "strength"))

    def action_turn(self) -> None:
        self._sorted(self.query_now.sort, not self.query_now.descending)

    def action_lineage(self) -> None:
        row = self.query_one("#ideas", Listing).current
        if row is not None:
            self.app.open_idea(row.id, "lineage")


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
    first, last = rounds(fields["round"]) if "round" in fields else (1, None)
    return Query(
        words, fields.get("author", ""), fields.get("arena", ""), first, last,
        before.sort, before.descending,
    )  # fmt: skip


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
