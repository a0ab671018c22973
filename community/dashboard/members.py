"""The screen Members: how strong, how trusted, what they learned and what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.widgets import Static

from community.dashboard.listing import Column, Listing
from community.dashboard.page import Page, nothing_yet
from community.dashboard.people import Member, Portrait, people, portrait
from community.ledger import Ledger
from community.words import SHORT, interval, number, one_line, share, signed, spark

PLACEMENT = {"name", "count", "cpus", "gpus", "use", "backend", "domains"}
"""Options of a member that are said elsewhere, or that change nothing."""
AXIS = 17
"""Cells of the picture of an interval."""


class MembersPage(Page[list[Member]]):
    """Who is strong, who is trusted as a judge, who learned what and who was rolled back."""

    name_of_page = "members"
    KEYS: ClassVar[list[tuple[str, str]]] = [
        ("↑ ↓", "choose a member; more of it is beside"),
        ("enter", "its ideas"),
    ]
    CSS = """
    MembersPage #body { layout: vertical; }
    MembersPage.-wide #body { layout: horizontal; }
    MembersPage #members { height: 3fr; }
    MembersPage.-wide #members { width: 3fr; height: 1fr; }
    MembersPage #portrait { height: 4fr; }
    MembersPage.-wide #portrait { width: 2fr; height: 1fr; }
    """

    def __init__(self) -> None:
        super().__init__()
        self._ends = (-1.0, 1.0)

    def body(self) -> ComposeResult:
        yield Listing(self._columns(), id="members")
        with VerticalScroll(id="portrait", classes="box") as box:
            box.border_title = "member"
            yield Static(id="more", markup=False)

    def _columns(self) -> Sequence[Column]:
        return (
            Column("member", lambda m: m.name),
            Column("strength", lambda m: signed(m.strength and m.strength.mean), 8, True),
            Column("95% interval", self._interval, AXIS),
            Column("judge", lambda m: share(m.reliability), 5, True),
            Column("holdout", lambda m: share(m.holdout), 7, True),
            Column("lessons", lambda m: number(m.lessons), 7, True),
            Column("taught", lambda m: number(m.taught), 6, True, 76),
            Column("kept", lambda m: number(m.kept), 4, True, 84),
            Column("back", lambda m: number(m.rollbacks), 4, True),
            Column("failed", lambda m: number(m.failures), 6, True, 92),
            Column("tokens", lambda m: number(m.tokens), 7, True, 100),
        )

    def _interval(self, member: Member) -> str:
        s = member.strength
        if s is None or s.low is None or s.high is None:
            return ""
        return interval(s.low, s.mean, s.high, self._ends, AXIS)

    def load(self, ledger: Ledger) -> list[Member]:
        return people(ledger)

    def show(self, found: list[Member]) -> None:
        known = [m.strength for m in found if m.strength]
        ends = [end for s in known for end in (s.low, s.high) if end is not None]
        if ends:
            self._ends = (min(ends), max(ends))
        listing = self.query_one("#members", Listing)
        listing.styles.max_height = None if self.has_class("-wide") else max(4, len(found) + 1)
        listing.put(found, nothing_yet(self.app.course))

    @on(Listing.Moved, "#members")
    def _moved(self, event: Listing.Moved) -> None:
        member: Member = event.row
        found = partial(portrait, self.app.ledger, member.name)
        self.find_out("portrait", found, partial(self._portray, member))

    @on(Listing.Chosen, "#members")
    def _chosen(self, event: Listing.Chosen) -> None:
        self.app.find(f"author:{event.row.name}")

    def _portray(self, member: Member, found: Portrait) -> None:
        self.query_one("#portrait").border_title = found.name
        self.query_one("#more", Static).update(draw(member, found))


def draw(member: Member, found: Portrait) -> RenderableType:
    """All that is known of a member."""
    own = {k: v for k, v in found.options.items() if k not in PLACEMENT and v not in ("", [], None)}
    options = ", ".join(f"{key} {one_line(str(value), 60)}" for key, value in own.items())
    head = Text().append(f"{member.backend}  ", "bold").append(options, "dim")
    return Group(head, _facts(member, found), *_domains(found), *_checkpoints(found))


def _facts(member: Member, found: Portrait) -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    s = member.strength
    if s:
        between = "" if s.low is None else f", between {signed(s.low)} and {signed(s.high)}"
        said = f"{signed(s.mean)}{between}"
        table.add_row("strength", f"{said} (last round, {number(s.ideas)} ideas)")
    for name, course in (("judge", found.reliability), ("holdout", found.holdout)):
        if course:
            line = f"{share(course[-1][1])}  {spark((v for _, v in course), 40)}"
            table.add_row(name, f"{line}  by round" if name == "judge" else line)
    table.add_row("domains", Text(one_line(", ".join(member.domains)) or "all"))
    said = f"{member.lessons:,} given, {member.learned:,} learned; its ideas made {member.taught:,}"
    table.add_row("lessons", said)
    table.add_row("tokens", f"{member.tokens:,}; failures {member.failures:,}")
    return table


def _domains(found: Portrait) -> list[RenderableType]:
    if not found.domains:
        return []
    table = Table("domain", box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("holdout", "at the start", "lessons"):
        table.add_column(name, justify="right")
    for d in found.domains:
        table.add_row(Text(one_line(d.name)), share(d.now), share(d.start), f"{d.lessons:,}")
    return [Text(), table]


def _checkpoints(found: Portrait) -> list[RenderableType]:
    if not found.checkpoints:
        return []
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("checkpoint", overflow="ellipsis")
    for name in ("round", "lessons", "validation", "loss"):
        # both scores and the fate are read where there is little room; the others are cut first
        whole = name == "validation"
        table.add_column(name, justify="right", no_wrap=whole, overflow="ellipsis")
    table.add_column("", no_wrap=True)
    for c in found.checkpoints:
        known = c.before is not None and c.after is not None
        course = f"{share(c.before)} → {share(c.after)}" if known else "–"
        fate = "✓ kept" if c.kept else "✗ back"
        loss = "–" if c.loss is None else f"{c.loss:.3g}"
        lessons = f"{found.counts.get(c.id, 0):,}"
        table.add_row(c.id[:SHORT], str(c.round), lessons, course, loss, fate)
    more = [Text(f"and {found.more:,} earlier ones", style="dim")] if found.more else []
    return [Text(), table, *more]
