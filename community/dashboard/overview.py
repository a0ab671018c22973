"""The screen Overview: how far the run is, what it cost, and its curves."""

from __future__ import annotations

from typing import ClassVar

from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Container
from textual.widgets import Static
from textual.worker import get_current_worker

from community.dashboard.chart import DASHED, DOTTED, Chart, Curve
from community.dashboard.course import Course, Curves, Point
from community.dashboard.listing import Column, Listing
from community.dashboard.page import Page, nothing_yet
from community.findings import duration
from community.ledger import Ledger
from community.words import count, meter, number, one_line, share

BATCH = 20
"""Rounds that are read before the curves are drawn again."""

Row = tuple[int, Point]


class OverviewPage(Page[int]):
    """How far the run is, what it cost, and how it goes from round to round."""

    name_of_page = "overview"
    AUTO_FOCUS = ""
    KEYS: ClassVar[list[tuple[str, str]]] = []
    CSS = """
    OverviewPage #facts { height: auto; padding: 0 1; }
    OverviewPage #charts { layout: grid; grid-size: 2 2; height: 1fr; }
    OverviewPage #rounds { display: none; margin: 0 1; }
    OverviewPage.-tall #rounds { display: block; }
    """

    def body(self) -> ComposeResult:
        yield Static(id="facts")
        with Container(id="charts"):
            yield Chart("holdout, exact match", (0.0, 1.0), share, id="holdout")
            yield Chart("precision of what was kept", (0.0, 1.0), share, id="precision")
            yield Chart("different answers a task", (0.0, None), id="answers")
            yield Chart("tokens a round", (0.0, None), id="tokens")
        yield Listing(ROUND_COLUMNS, id="rounds")

    def on_resize(self, event: object) -> None:
        self.set_class(self.size.height >= 34, "-tall")

    def load(self, ledger: Ledger) -> int:
        """Read what is new, and draw now and then on the way."""
        worker = get_current_worker()
        for left in self.app.curves.update():
            if worker.is_cancelled:
                break
            if left and left % BATCH == 0:
                self.call_later(self.show, left)
        return 0

    def tell(self) -> None:
        super().tell()
        self.query_one("#facts", Static).update(facts(self.app.course))

    def show(self, found: int) -> None:
        curves = self.app.curves
        empty = nothing_yet(self.app.course)
        for id, drawn in curves_of(curves).items():
            why = curves.unknown if id == "precision" and curves.unknown else empty
            self.query_one(f"#{id}", Chart).draw(drawn, one_line(why))
        rows: list[Row] = sorted(curves.points.items(), reverse=True)
        listing = self.query_one("#rounds", Listing)
        listing.styles.max_height = min(max(4, len(rows) + 1), self.size.height // 3)
        listing.put(rows, empty)


def curves_of(curves: Curves) -> dict[str, list[Curve]]:
    """Chart -> what it shows."""
    points, holdout = sorted(curves.points.items()), sorted(curves.holdout.items())
    tokens = [(n, float(p.tokens) if n in curves.settled else None) for n, p in points]
    return {
        "holdout": [
            Curve("all", [(n, h.community) for n, h in holdout]),
            Curve("best", [(n, h.best) for n, h in holdout], "second", DASHED),
            Curve("mean", [(n, h.mean) for n, h in holdout], "third", DOTTED),
        ],
        "precision": [Curve("", [(n, p.precision) for n, p in points])],
        "answers": [Curve("", [(n, p.answers) for n, p in points])],
        "tokens": [Curve("", tokens)],
    }


def facts(course: Course | None) -> Table | Text:
    """The run in a few lines: progress, what there is, what it cost, what is left of it."""
    if course is None:
        return Text("Reading the ledger…")
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True, style="bold", min_width=6)
    table.add_column(no_wrap=True, overflow="ellipsis")
    played, of = course.pulse.round, course.planned
    done = f"{played} of {of}  {meter(played / of, 20)}" if of else str(played)
    left = "" if course.left is None else f", about {duration(course.left)} left"
    table.add_row("rounds", f"{done}  {course.phase}{left}")
    recorded = [
        count(course.members, "member"), f"{number(course.ideas)} ideas",
        f"{number(course.lessons)} lessons", f"{number(course.tokens)} tokens",
        duration(course.seconds),
    ]  # fmt: skip
    table.add_row("so far", " · ".join(recorded))
    table.add_row("budget", _budget(course))
    if course.silent and course.quiet is not None:
        hint = "`community resume` goes on if it was stopped"
        table.add_row("quiet", f"nothing new for {duration(course.quiet)}; {hint}")
    return table


def _budget(course: Course) -> str:
    parts = []
    for spent, most, said in (
        (course.tokens, course.token_budget, f"{number(course.token_budget)} tokens"),
        (course.seconds, course.second_budget, duration(course.second_budget)),
    ):
        if most:
            parts.append(f"{meter(spent / most, 12)} {spent / most:.0%} of {said}")
    return "   ".join(parts) or "none set, so the rounds decide"


ROUND_COLUMNS = (
    Column("round", lambda r: str(r[0]), 6, True),
    Column("posed", lambda r: number(r[1].tasks), 7, True),
    Column("kept", lambda r: number(r[1].kept), 7, True),
    Column("precision", lambda r: share(r[1].precision), 10, True),
    Column("ideas", lambda r: number(r[1].ideas), 8, True),
    Column("answers a task", lambda r: number(round(r[1].answers, 1)), 15, True),
    Column("tokens", lambda r: number(r[1].tokens), 9, True),
    Column("time", lambda r: duration(r[1].seconds), 12, True),
    Column("", lambda r: ""),
)
