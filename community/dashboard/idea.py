"""The screen Idea: what was asked, what was said, and everything that was said about it."""

from __future__ import annotations

from typing import ClassVar

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import Static

from community.dashboard.listing import Column, Listing
from community.dashboard.page import Page, nothing_yet
from community.dashboard.sheet import Said, Sheet, sheet
from community.ledger import Ledger
from community.types import WORLD
from community.words import SHORT, block, count, meter, one_line, share, signed


class IdeaPage(Page[Sheet | None]):
    """One idea: prompt, answer, how it was sampled, its place, and every verdict on it."""

    name_of_page = "idea"
    of_idea = True
    KEYS: ClassVar[list[tuple[str, str]]] = [
        ("[ and ]", "the idea one place before or after among those of the task"),
        ("l", "its lineage"),
        ("enter", "on a verdict: the idea that it was compared with"),
    ]
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left_square_bracket", "near(-1)", "Place", key_display="[ ]"),
        Binding("right_square_bracket", "near(1)", "One place down", show=False),
        Binding("l", "lineage", "Lineage"),
    ]
    CSS = """
    IdeaPage #body { layout: vertical; }
    IdeaPage.-wide #body { layout: horizontal; }
    IdeaPage #text { height: 3fr; padding: 0 1; scrollbar-size-vertical: 1; }
    IdeaPage #said { height: 2fr; border-top: solid $frame; }
    IdeaPage.-wide #text { width: 1fr; height: 1fr; }
    IdeaPage.-wide #said { width: 1fr; height: 1fr; border-top: none;
                           border-left: solid $frame; }
    """

    def __init__(self) -> None:
        super().__init__()
        self.sheet: Sheet | None = None

    def body(self) -> ComposeResult:
        with VerticalScroll(id="text"):
            yield Static(id="sheet", markup=False)
        yield Listing(SAID, id="said")

    def load(self, ledger: Ledger) -> Sheet | None:
        return sheet(ledger, self.app.idea) if self.app.idea else None

    def show(self, found: Sheet | None) -> None:
        self.sheet = found
        listing = self.query_one("#said", Listing)
        if found is None:
            self.query_one("#sheet", Static).update(nothing_yet(self.app.course))
            listing.put(())
            return
        self.query_one("#sheet", Static).update(draw(found))
        self.query_one("#text").scroll_home(animate=False)
        listing.put(found.said, "Nobody judged this idea.")

    @on(Listing.Chosen, "#said")
    def _chosen(self, event: Listing.Chosen) -> None:
        said: Said = event.row
        self.app.open_idea(said.rival)

    def action_near(self, step: int) -> None:
        if self.sheet is not None:
            self.app.open_idea(self.sheet.better if step < 0 else self.sheet.worse)

    def action_lineage(self) -> None:
        self.app.open_idea(self.app.idea, "lineage")


def _says(said: Said) -> str:
    if said.kind == "vote":
        return "same answer" if said.score else "another"
    if said.judge == WORLD:
        return {1.0: "✓ right", 0.0: "✗ wrong"}.get(said.score, share(said.score))
    return "prefers it" if said.score > 0.5 else "prefers other" if said.score < 0.5 else "tie"


SAID = (
    Column("who", lambda s: one_line(s.judge)),
    Column("what", lambda s: s.kind, 7, least=64),
    Column("says", _says, 13),
    Column("score", lambda s: meter(s.score, 5), 5),
    Column("confid.", lambda s: share(s.confidence), 7, True),
    Column("reliab.", lambda s: share(s.reliability), 7, True),
    Column("other answer", lambda s: one_line(s.other, 60)),
)


def draw(found: Sheet) -> RenderableType:
    """The idea from top to bottom."""
    idea, task = found.idea, found.task
    head = Text().append(f"{idea.id[:SHORT]} ", "bold").append(f"by {idea.author}")
    head.append(f"@{idea.checkpoint[:SHORT]}  round {idea.round}, turn {idea.turn}, ")
    head.append(f"sample {idea.sample}")
    parts: list[RenderableType] = [head, _titled("asked", task.prompt)]
    if idea.prompt and idea.prompt != task.prompt:
        parts.append(_titled("as the author read it", idea.prompt))
    if idea.failure:
        parts.append(_titled("✗ failed", idea.failure))
    else:
        parts.append(_titled("said", idea.text))
        if idea.answer != idea.text:
            parts.append(_titled("answer", idea.answer or "(no answer in it)"))
    return Group(*parts, Text(), _facts(found), *_lessons(found))


def _facts(found: Sheet) -> Table:
    idea, task, own = found.idea, found.task, found.kin
    table = Table.grid(padding=(0, 1))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    place = one_line(f"{task.arena}, {task.domain}, level {task.level}, {task.split}")
    table.add_row("task", Text(place))
    if own.place is None:
        table.add_row("place", "none: it was not ranked")
    else:
        between = f"{signed(own.low)} to {signed(own.high)}"
        backed = f", given by {count(own.supporters, 'member')}" if own.supporters else ""
        table.add_row("place", f"{own.place}, strength {signed(own.strength)} ({between}){backed}")
    how = idea.decoding
    decoding = "greedy" if how.temperature == 0 else f"temperature {how.temperature:g}"
    top_p = f", top-p {how.top_p:g}" if how.top_p < 1 else ""
    limit = f", at most {how.max_tokens} tokens, sample {idea.sample + 1} of {how.samples}"
    table.add_row("decoding", f"{decoding}{top_p}{limit}")
    table.add_row("tokens", f"{idea.tokens}, log-probability {idea.logprob:.3f}")
    table.add_row("read", count(len(idea.parents), "idea") if idea.parents else "no other idea")
    return table


def _titled(title: str, text: str) -> Text:
    return Text().append(f"\n{title}\n", "bold").append(block(text) or "(nothing)")


def _lessons(found: Sheet) -> list[RenderableType]:
    if not found.lessons:
        return []
    text = Text().append("\ntaught\n", "bold")
    for lesson in found.lessons:
        text.append(f"{lesson.learner} in round {lesson.round}: {lesson.reason}\n")
    return [text]
