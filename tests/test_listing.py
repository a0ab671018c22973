"""The dashboard's table: long, fetched by the page, and kept in little memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

pytest.importorskip("textual")

from textual.app import App, ComposeResult
from textual.pilot import Pilot

from community.dashboard.listing import KEPT, PAGE, Column, Listing
from community.errors import CommunityError

MILLION = 1_000_000


class Table(App[None]):
    """One listing of numbers; remembers what was asked for and what it said."""

    def __init__(self, rows: int, known: bool = True) -> None:
        super().__init__()
        self.rows, self.known = rows, known
        self.asked: list[tuple[int, int]] = []
        self.said: list[object] = []
        self.broken = False

    def compose(self) -> ComposeResult:
        columns = [
            Column("number", str, sort="number"),
            Column("double", lambda n: str(2 * n), 10, True, least=40),
        ]
        yield Listing(columns)

    def on_mount(self) -> None:
        self.query_one(Listing).source(self.fetch, self.rows if self.known else None, "none")

    def fetch(self, offset: int, limit: int) -> Sequence[int]:
        self.asked.append((offset, limit))
        if self.broken:
            raise CommunityError("the ledger is away")
        return range(offset, min(self.rows, offset + limit))

    def on_listing_chosen(self, event: Listing.Chosen) -> None:
        self.said.append(event.row)

    def on_listing_failed(self, event: Listing.Failed) -> None:
        self.said.append(event.sentence)


Session = Callable[[Table, Listing, Pilot[Any]], Awaitable[None]]


def listed(app: Table, session: Session) -> None:
    async def run() -> None:
        async with app.run_test(size=(60, 20)) as pilot:
            await drawn(app, pilot)
            await session(app, app.query_one(Listing), pilot)

    asyncio.run(run())


async def drawn(app: Table, pilot: Pilot[Any]) -> None:
    for _ in range(3):
        await pilot.pause(0.01)
        while any(worker.is_running for worker in app.workers):
            await pilot.pause(0.01)


def seen(listing: Listing) -> list[str]:
    """The lines of the table."""
    return [listing.render_line(y).text.rstrip() for y in range(listing.size.height)]


def test_of_a_million_rows_only_what_is_seen_is_fetched() -> None:
    async def session(app: Table, listing: Listing, pilot: Pilot[Any]) -> None:
        assert seen(listing)[1].split() == ["0", "0"] and app.asked == [(0, PAGE)]
        await pilot.press("end")
        await drawn(app, pilot)
        assert listing.current == MILLION - 1
        assert seen(listing)[-1].split() == ["999999", "1999998"]
        await pilot.press("pageup", "enter")
        await drawn(app, pilot)
        assert app.said == [MILLION - 1 - 18]
        assert len(app.asked) <= 3

    listed(Table(MILLION), session)


def test_the_cursor_may_be_far_from_what_is_seen() -> None:
    async def session(app: Table, listing: Listing, pilot: Pilot[Any]) -> None:
        for page in range(3 * KEPT):
            listing.scroll_to(y=page * PAGE + 10, animate=False, force=True)
            await drawn(app, pilot)
            assert int(seen(listing)[1].split()[0]) == page * PAGE + 10
            assert listing.current == 0 and len(listing._pages) <= KEPT
        assert len(app.asked) == len(set(app.asked)) == 3 * KEPT

    listed(Table(MILLION), session)


def test_an_end_that_is_not_known_is_found_by_going_there() -> None:
    async def session(app: Table, listing: Listing, pilot: Pilot[Any]) -> None:
        assert not listing.complete and listing.total == PAGE + 1
        for _ in range(4):
            await pilot.press("end")
            await drawn(app, pilot)
        assert listing.complete and listing.total == 250 and listing.current == 249

    listed(Table(250, known=False), session)


@pytest.mark.parametrize("known", [True, False])
def test_nothing_is_said_to_be_nothing(known: bool) -> None:
    async def session(app: Table, listing: Listing, pilot: Pilot[Any]) -> None:
        await pilot.press("down", "end", "pagedown", "enter")
        assert "none" in "".join(seen(listing)) and not app.said and listing.cursor == 0

    listed(Table(0, known), session)


def test_what_cannot_be_fetched_is_told_and_tried_again_at_the_next_key() -> None:
    async def session(app: Table, listing: Listing, pilot: Pilot[Any]) -> None:
        app.broken = True
        await pilot.press("end")
        await drawn(app, pilot)
        assert app.said == ["the ledger is away"] and listing.current is None
        app.broken = False
        await pilot.press("up")
        await drawn(app, pilot)
        assert listing.current == MILLION - 2

    listed(Table(MILLION), session)


def test_narrow_tables_leave_columns_out() -> None:
    async def session(app: Table, listing: Listing, pilot: Pilot[Any]) -> None:
        assert "double" in seen(listing)[0]
        await pilot.resize_terminal(30, 10)
        await drawn(app, pilot)
        assert "double" not in seen(listing)[0] and all(len(line) <= 30 for line in seen(listing))

    listed(Table(50), session)
