"""The screen Lessons: who learns what, from whom and why."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.widgets import Static

from community.dashboard.asked import asked, rounds
from community.dashboard.difference import changes
from community.dashboard.listing import Column, Listing
from community.dashboard.page import nothing_yet
from community.dashboard.schooling import Pair, Row, Wish, how_many, lessons_of, pairs
from community.dashboard.searching import Searching
from community.ledger import Ledger
from community.words import SHORT, count, number, one_line, share

MATRIX = 8
"""Of more members, the pairs with most lessons are listed instead of a table."""

Hits = tuple[Wish, int, list[Pair]]


COLUMNS = (
    Column("round", lambda r: str(r.round), 5, True),
    Column("learner", lambda r: one_line(r.learner), 11),
    Column("from", lambda r: one_line(r.author) or "–", 11),
    Column("confid.", lambda r: share(r.confidence), 7, True),
    Column("task", lambda r: one_line(r.task, 160)),
    Column("to say", lambda r: one_line(r.text, 160)),
    Column("why", lambda r: one_line(r.reason, 160), least=100),
)


class LessonsPage(Searching[Hits]):
    """Which member learns which idea of whom, and why it was chosen."""

    name_of_page = "lessons"
    EXAMPLE = "words, learner:ada, author:carl, round:3-7"
    COLUMNS = COLUMNS
    KEYS: ClassVar[list[tuple[str, str]]] = [
        ("/", f"search: {EXAMPLE}"),
        ("enter", "read the idea that is taught"),
        ("l", "its lineage"),
    ]
    CSS = """
    LessonsPage #found { height: 3fr; }
    LessonsPage #why { height: 2fr; }
    """

    def __init__(self) -> None:
        super().__init__()
        self.wish = Wish()
        self._pairs: list[Pair] = []

    def body(self) -> ComposeResult:
        yield from super().body()
        with VerticalScroll(id="why", classes="box") as box:
            box.border_title = "why"
            yield Static(id="reason", markup=False)

    def load(self, ledger: Ledger) -> Hits:
        wish = self.wish
        return wish, how_many(ledger, wish), pairs(ledger)

    def show(self, found: Hits) -> None:
        wish, total, self._pairs = found
        if self.in_use():
            return
        listing = self.listing
        listing.tag = wish
        empty = "No lesson matches." if wish != Wish() else nothing_yet(self.app.course)
        listing.source(partial(lessons_of, self.app.ledger, wish), total, empty)
        self.say(f"{count(total, 'lesson')} · latest first")
        if not total:
            self.query_one("#reason", Static).update("")

    def understand(self, typed: str) -> Wish:
        return wish_of(typed)

    def wanted(self) -> Wish:
        return self.wish

    def seek(self, wanted: object) -> None:
        assert isinstance(wanted, Wish)
        self.wish = wanted
        self.reload()

    def idea_of(self, row: object) -> str:
        assert isinstance(row, Row)
        return row.idea

    @on(Listing.Moved, "#found")
    def _moved(self, event: Listing.Moved) -> None:
        self.query_one("#why").border_title = f"lesson {event.row.id[:SHORT]}: why"
        self.query_one("#reason", Static).update(draw(event.row, self._pairs))


def wish_of(text: str) -> Wish:
    """What is typed as a wish. CommunityError where it makes no sense."""
    words, fields = asked(text, ("learner", "author", "round"))
    first, last = rounds(fields.get("round", ""))
    return Wish(words, fields.get("learner", ""), fields.get("author", ""), first, last)


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
