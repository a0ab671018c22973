"""A table of any length: only the rows that are seen are fetched, a page at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual import work
from textual.binding import Binding, BindingType
from textual.events import Click, Resize
from textual.geometry import Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.worker import get_current_worker

from community.errors import CommunityError
from community.words import padded

PAGE = 100
"""Rows fetched at once."""
KEPT = 40
"""Pages remembered."""

Row = Any
Fetch = Callable[[int, int], Sequence[Row]]  # (offset, limit) -> rows


@dataclass(frozen=True)
class Column:
    """One column. Those of width 0 share what is left; `least` hides one in narrow tables."""

    title: str
    cell: Callable[[Row], Text | str]
    width: int = 0
    right: bool = False
    least: int = 0
    sort: str = ""


class Listing(ScrollView, can_focus=True):
    """Rows under a head, with a cursor. The mouse chooses and sorts, too."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "listing--head", "listing--cursor", "listing--blurred", "listing--empty",
    }  # fmt: skip
    DEFAULT_CSS = """
    Listing {
        height: 1fr; overflow-x: hidden; overflow-y: auto; scrollbar-size-vertical: 1;
        & > .listing--head { color: $text-muted; text-style: bold; background: $panel; }
        & > .listing--cursor { background: $primary; color: $text; text-style: bold; }
        & > .listing--blurred { background: $surface-lighten-1; text-style: bold; }
        & > .listing--empty { color: $text-muted; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "Up", show=False),
        Binding("down,j", "move(1)", "Down", show=False),
        Binding("pageup", "leap(-1)", "Page up", show=False),
        Binding("pagedown", "leap(1)", "Page down", show=False),
        Binding("home,g", "edge(0)", "First", show=False),
        Binding("end,G", "edge(1)", "Last", show=False),
        Binding("enter", "choose", "Open"),
    ]

    cursor: reactive[int] = reactive(0)

    class _OfRow(Message):
        """Something about a row."""

        def __init__(self, listing: Listing, row: Row) -> None:
            super().__init__()
            self.listing, self.row = listing, row

        @property
        def control(self) -> Listing:
            return self.listing

    class Chosen(_OfRow):
        """A row was entered or clicked."""

    class Moved(_OfRow):
        """The cursor came to stand on a row."""

    class Sorted(Message):
        """A column's head was clicked."""

        def __init__(self, key: str) -> None:
            super().__init__()
            self.key = key

    class Failed(Message):
        """The rows could not be fetched."""

        def __init__(self, sentence: str) -> None:
            super().__init__()
            self.sentence = sentence

    def __init__(
        self, columns: Sequence[Column], id: str | None = None, opens: bool = True
    ) -> None:
        """`opens` is whether a row can be entered."""
        super().__init__(id=id)
        self.columns, self.opens = columns, opens
        self.total = 0
        self.complete = True  # whether `total` is all there is
        self.sort, self.descending = "", False
        self.empty = ""
        self.tag: object = None  # what is listed, for whoever put it there
        self._fetch: Fetch = lambda offset, limit: ()
        self._pages: dict[int, Sequence[Row]] = {}
        self._edition = 0
        self._busy = False
        self._told: Row = None

    # -- rows ------------------------------------------------------------------------------

    def put(self, rows: Sequence[Row], empty: str = "") -> None:
        """Show rows that are all here."""
        self.source(lambda offset, limit: rows[offset : offset + limit], len(rows), empty)
        for start in range(0, len(rows), PAGE):
            self._pages[start // PAGE] = rows[start : start + PAGE]
        self._tell()

    def source(self, fetch: Fetch, total: int | None, empty: str = "") -> None:
        """Show what `fetch` gives (in a thread); a `total` of None is found out by scrolling."""
        self._edition += 1
        self._fetch, self.empty = fetch, empty
        self._pages, self._busy, self._told = {}, False, None
        self.known(total or 0, total is not None)
        self.cursor = max(0, min(self.cursor, self.total - 1)) if total is not None else 0
        self._need()
        self.refresh()

    def known(self, total: int, complete: bool) -> None:
        """There are so many rows; if not complete, there may be more."""
        self.total, self.complete = total, complete
        self.virtual_size = Size(self.size.width, total + 1)
        self.refresh()

    def row(self, index: int) -> Row:
        """The row at a place; None while it is not here."""
        page = self._pages.get(index // PAGE, ())
        return page[index % PAGE] if 0 <= index % PAGE < len(page) else None

    @property
    def current(self) -> Row:
        """The row under the cursor; None while it is not here."""
        return self.row(self.cursor)

    def _need(self) -> None:
        """Fetch the first page that is seen, or under the cursor, and not here."""
        if self._busy:
            return
        wanted = sorted(self._wanted())
        missing = [p for p in wanted if p not in self._pages and (p * PAGE < self.total or not p)]
        if missing and (self.total or not self.complete):
            self._busy = True
            self._get(missing[0], self._edition)

    def _wanted(self) -> set[int]:
        """The pages that are seen, and that of the cursor."""
        top = self.scroll_offset.y
        ends = (top, top + max(1, self.size.height), self.cursor)
        return {max(0, end) // PAGE for end in ends}

    @work(thread=True, group="rows")
    def _get(self, page: int, edition: int) -> None:
        worker = get_current_worker()
        try:
            rows = self._fetch(page * PAGE, PAGE)
        except CommunityError as error:
            if not worker.is_cancelled:
                self.call_later(self._give_up, str(error), edition)
            return
        if not worker.is_cancelled:
            self.call_later(self._give, page, rows, edition)

    def _give(self, page: int, rows: Sequence[Row], edition: int) -> None:
        if edition != self._edition:
            return
        self._busy = False
        while len(self._pages) >= KEPT:
            self._pages.pop(next(p for p in self._pages if p not in self._wanted()))
        self._pages[page] = rows
        if not self.complete:
            known, full = page * PAGE + len(rows), len(rows) == PAGE
            self.known(max(self.total, known + full), not full)  # one more, to be asked for
        self.refresh()
        self._tell()
        self._need()

    def _give_up(self, sentence: str, edition: int) -> None:
        """Say why there is no page; the next key tries again."""
        if edition == self._edition:
            self._busy = False
            self.post_message(self.Failed(sentence))

    def _tell(self) -> None:
        row = self.current
        if row is not None and row != self._told:
            self._told = row
            self.post_message(self.Moved(self, row))

    # -- keys and mouse --------------------------------------------------------------------

    def watch_cursor(self, cursor: int) -> None:
        body = max(1, self.size.height - 1)
        top = self.scroll_offset.y
        if cursor < top:
            self.scroll_to(y=cursor, animate=False, force=True)
        elif cursor >= top + body:
            self.scroll_to(y=cursor - body + 1, animate=False, force=True)
        self._need()
        self._tell()
        self.refresh()

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        self._need()

    def on_resize(self, event: Resize) -> None:
        self.virtual_size = Size(event.size.width, self.total + 1)
        self._need()

    def action_move(self, step: int) -> None:
        self.cursor = max(0, min(self.total - 1, self.cursor + step))

    def action_leap(self, pages: int) -> None:
        self.action_move(pages * max(1, self.size.height - 2))

    def action_edge(self, last: int) -> None:
        self.cursor = max(0, self.total - 1) if last else 0

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return self.opens if action == "choose" else True

    def action_choose(self) -> None:
        if self.opens and self.current is not None:
            self.post_message(self.Chosen(self, self.current))

    def on_click(self, event: Click) -> None:
        if event.y == 0:
            at = 0
            for column, width in self._widths():
                if at <= event.x <= at + width and column.sort:
                    self.post_message(self.Sorted(column.sort))
                at += width + 1
            return
        index = self.scroll_offset.y + event.y - 1
        if index < self.total:
            again = index == self.cursor
            self.cursor = index
            if again:
                self.action_choose()

    # -- drawing ---------------------------------------------------------------------------

    def _widths(self) -> list[tuple[Column, int]]:
        width = self.scrollable_content_region.width
        shown = [c for c in self.columns if width >= c.least]
        spare = width - sum(c.width for c in shown) - max(0, len(shown) - 1)
        flexible = [c for c in shown if not c.width]
        each, more = divmod(max(0, spare), len(flexible) or 1)
        return [
            (c, c.width or each + (c in flexible[:1]) * more)
            for c in shown
        ]  # fmt: skip

    def render_line(self, y: int) -> Strip:
        width = self.scrollable_content_region.width
        base = self.rich_style
        if y == 0:
            head = self.get_component_rich_style("listing--head")
            return self._strip(self._head(), head, width)
        index = self.scroll_offset.y + y - 1
        if index >= self.total:
            hint = self.empty if not self.total and self.complete and y == 2 else ""
            dim = self.get_component_rich_style("listing--empty")
            return self._strip(padded(f" {hint}" if hint else "", width), dim, width)
        style = base
        if index == self.cursor:
            name = "listing--cursor" if self.has_focus else "listing--blurred"
            style = self.get_component_rich_style(name)
        return self._strip(self._line(index), style, width)

    def _strip(self, text: Text, style: Style, width: int) -> Strip:
        segments = text.render(self.app.console)
        strip = Strip(Segment.apply_style(segments, style)).adjust_cell_length(width, style)
        return strip.crop(0, width)

    def _head(self) -> Text:
        line = Text(end="", no_wrap=True)
        for i, (column, width) in enumerate(self._widths()):
            sign = ""
            if column.sort and column.sort == self.sort:
                sign = "▼" if self.descending else "▲"
            line.append(" " * bool(i)).append_text(padded(column.title + sign, width, column.right))
        return line

    def _line(self, index: int) -> Text:
        row = self.row(index)
        if row is None:
            return Text(" …", end="")
        line = Text(end="", no_wrap=True)
        for i, (column, width) in enumerate(self._widths()):
            cell = padded(column.cell(row), width, column.right)
            line.append(" " * bool(i)).append_text(cell)
        return line
