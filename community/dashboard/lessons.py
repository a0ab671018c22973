"""The screen Lessons: who learns what, from whom and why."""

from __future__ import annotations

from typing import Any, ClassVar

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import Input, Static

from community.dashboard.asked import asked, rounds
from community.dashboard.difference import changes
from community.dashboard.listing import Column, Listing
from community.dashboard.page import Page, nothing_yet
from community.dashboard.schooling import Pair, Row, Wish, how_many, lessons_of, pairs
from community.dashboard.words import SHORT, count, number, one_line, share
from community.errors import CommunityError
from community.ledger import Ledger

PAUSE = 0.25
"""Seconds without a key before what was typed is searched for."""
MATRIX = 8
"""Of more members, the pairs with most lessons are listed instead of a table."""

Found = tuple[Wish, int, list[Pair]]


class LessonsPage(Page[Found]):
    """Which member learns which idea of whom, and why it was chosen."""

    name_of_page = "lessons"
    KEYS: ClassVar[list[tuple[str, str]]] = [
        ("/", "search: words, learner:ada, author:carl, round:3-7"),
        ("enter", "read the idea that is taught"),
        ("l", "its lineage"),
    ]
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "search", "Search", key_display="/"),
        Binding("l", "lineage", "Lineage"),
    ]
    CSS = """
    LessonsPage #body { layout: vertical; }
    LessonsPage #query { height: 1; border: none; padding: 0 1; background: $surface; }
    LessonsPage #query:focus { background: $panel; }
    LessonsPage #count { height: 1; padding: 0 1; color: $text-muted; }
    LessonsPage #lessons { height: 3fr; }
    LessonsPage #why { height: 2fr; }
    """

    def __init__(self) -> None:
        super().__init__()
        self.wish = Wish()
        self._pairs: list[Pair] = []
        self._typed: Any = None

    def body(self) -> ComposeResult:
        yield Input(placeholder="/ words, learner:ada, author:carl, round:3-7", id="query",
                    compact=True)  # fmt: skip
        yield Static(id="count", markup=False)
        yield Listing(COLUMNS, id="lessons")
        with VerticalScroll(id="why", classes="box") as box:
            box.border_title = "why"
            yield Static(id="reason", markup=False)

    def load(self, ledger: Ledger) -> Found:
        wish = self.wish
        return wish, how_many(ledger, wish), pairs(ledger)

    def show(self, found: Found) -> None:
        wish, total, self._pairs = found
        listing = self.query_one("#lessons", Listing)
        empty = "No lesson matches." if wish != Wish() else nothing_yet(self.app.course)
        listing.source(lambda o, n: lessons_of(self.app.ledger, wish, o, n), total, empty)
        self.query_one("#count", Static).update(f"{count(total, 'lesson')} · latest first")
        if not total:
            self.query_one("#reason", Static).update("")

    @on(Input.Changed, "#query")
    def _changed(self, event: Input.Changed) -> None:
        if self._typed is not None:
            self._typed.stop()
        self._typed = self.set_timer(PAUSE, self._ask)

    @on(Input.Submitted, "#query")
    def _submitted(self, event: Input.Submitted) -> None:
        if self._typed is not None:
            self._typed.stop()
        self._ask()
        self.query_one("#lessons", Listing).focus()

    def _ask(self) -> None:
        try:
            wish = wish_of(self.query_one("#query", Input).value)
        except CommunityError as error:
            self.notice(str(error))
            return
        if wish != self.wish:
            self.wish = wish
            self.query_one("#lessons", Listing).cursor = 0
            self.reload()

    @on(Listing.Failed)
    def _unfetched(self, event: Listing.Failed) -> None:
        self.notice(event.sentence)

    @on(Listing.Moved, "#lessons")
    def _moved(self, event: Listing.Moved) -> None:
        self.query_one("#why").border_title = f"lesson {event.row.id[:SHORT]}: why"
        self.query_one("#reason", Static).update(draw(event.row, self._pairs))

    @on(Listing.Chosen, "#lessons")
    def _chosen(self, event: Listing.Chosen) -> None:
        self.app.open_idea(event.row.idea)

    def action_search(self) -> None:
        self.query_one("#query", Input).focus()

    def action_lineage(self) -> None:
        row = self.query_one("#lessons", Listing).current
        if row is not None:
            self.app.open_idea(row.idea, "lineage")


def wish_of(text: str) -> Wish:
    """What is typed as a wish. CommunityError where it makes no sense."""
    words, fields = asked(text, ("learner", "author", "round"))
    first, last = rounds(fields["round"]) if "round" in fields else (1, None)
    return Wish(words, fields.get("learner", ""), fields.get("author", ""), first, last)


COLUMNS = (
    Column("round", lambda r: str(r.round), 5, True),
    Column("learner", lambda r: one_line(r.learner), 11),
    Column("from", lambda r: one_line(r.author) or "–", 11),
    Column("confid.", lambda r: share(r.confidence), 7, True),
    Column("task", lambda r: one_line(r.task, 160)),
    Column("to say", lambda r: one_line(r.text, 160)),
    Column("why", lambda r: one_line(r.reason, 160), least=100),
)


def draw(row: Row, learned: list[Pair]) -> RenderableType:
    """Why a lesson was chosen, what it teaches, and who learns from whom besides."""
    head = Text().append(row.learner, "bold").append(f" learns this: {row.reason}")
    parts: list[RenderableType] = [head]
    if row.rejected:
        parts.append(Text("preferred (+) over (−):", style="dim"))
        parts.append(changes(row.rejected_text, row.text))
    else:
        parts.append(Text(f"asked {one_line(row.prompt, 200)}, to say {one_line(row.text, 200)}"))
    return Group(*parts, Text(), matrix(learned))


def matrix(learned: list[Pair]) -> RenderableType:
    """Who learned how much from whom."""
    names = sorted({p.learner for p in learned} | {p.author for p in learned})
    if len(names) > MATRIX:
        most = (f"{p.learner} from {p.author or '–'} {p.lessons:,}" for p in learned[:12])
        return Text("most lessons: " + ", ".join(most), style="dim")
    table = Table("learner ╲ from", box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in names:
        table.add_column(name or "–", justify="right")
    known = {(p.learner, p.author): p.lessons for p in learned}
    for learner in names:
        cells = (known.get((learner, author)) for author in names)
        table.add_row(learner, *(number(n) if n else "·" for n in cells))
    return table
