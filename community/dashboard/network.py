"""The screen Network: who reads whom, who learns from whom, and what goes along each edge."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widgets import Static

from community.dashboard.flows import KINDS, Edge, Flow, Kind, Places, flow, places
from community.dashboard.graph import DRAWN, Graph
from community.dashboard.listing import Column, Listing
from community.dashboard.page import Page, nothing_yet
from community.ledger import Ledger
from community.words import count, meter, number

TICK = 0.25
"""Seconds between two pictures."""

Found = tuple[Flow, Places]


class NetworkPage(Page[Found]):
    """The network of a round: ideas on their way from who said them to who reads or learns them."""

    name_of_page = "network"
    KEYS: ClassVar[list[tuple[str, str]]] = [
        ("[ and ]", "a round earlier or later"),
        ("f", "what flows: ideas that are read, or lessons"),
        ("space", "let the ideas stand still, or go on"),
        ("↑ ↓", "choose an edge; it stands out in the picture"),
    ]
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left_square_bracket", "round(-1)", "Round", key_display="[ ]"),
        Binding("right_square_bracket", "round(1)", "Next round", show=False),
        Binding("f", "kind", "What flows"),
        Binding("space", "pause", "Pause"),
    ]
    CSS = """
    NetworkPage #body { layout: horizontal; }
    NetworkPage Graph { width: 3fr; }
    NetworkPage #side { width: 2fr; min-width: 32; }
    NetworkPage #said { height: auto; padding: 0 1; }
    NetworkPage #edges { height: 1fr; }
    """

    def __init__(self) -> None:
        super().__init__()
        self.round: int | None = None
        self.kind: Kind | None = None
        self._most = 1
        self._still = False

    def body(self) -> ComposeResult:
        yield Graph(id="graph")
        with Vertical(id="side"):
            yield Static(id="said", markup=False)
            yield Listing(self._columns(), id="edges", opens=False)

    def _columns(self) -> tuple[Column, ...]:
        return (
            Column("from → to", _ends),
            Column("ideas", lambda e: number(e.ideas), 5, True),
            Column("tokens", lambda e: number(e.tokens), 6, True),
            Column("", lambda e: meter(e.tokens / self._most, 8), 8, least=46),
        )

    def on_mount(self) -> None:
        self.set_interval(TICK, self._tick)

    def _tick(self) -> None:
        if self.is_current and not self._still:
            self.query_one(Graph).advance()

    def load(self, ledger: Ledger) -> Found:
        found = flow(ledger, self.round, self.kind)
        return found, places(found.members, found.edges)

    def show(self, found: Found) -> None:
        flow, at = found
        self._most = max((e.tokens for e in flow.edges), default=0) or 1
        graph = self.query_one(Graph)
        graph.put(flow, at)
        name = f" · {flow.topology.replace('_', ' ')}" if flow.topology else ""
        graph.border_title = f"round {flow.round} of {flow.last}{name}"
        each = -(-len(flow.edges) // DRAWN)
        graph.border_subtitle = f"one edge of {each} is drawn" if each > 1 else ""
        self.query_one("#said", Static).update(said(flow))
        empty = "Nobody read anybody." if flow.kind == "readings" else "No lesson was given."
        listing = self.query_one("#edges", Listing)
        listing.put(flow.edges, empty if flow.last else nothing_yet(self.app.course))

    @on(Listing.Moved, "#edges")
    def _moved(self, event: Listing.Moved) -> None:
        edge: Edge = event.row
        self.query_one(Graph).choose(edge)

    def action_round(self, step: int) -> None:
        last = self.app.pulse.round if self.app.pulse else 0
        if last:
            wanted = max(1, min(last, (self.round or last) + step))
            self.round = None if wanted == last else wanted  # the last one moves on with the run
            self.reload()

    def action_kind(self) -> None:
        shown = self.query_one(Graph).flow
        if shown is not None:
            self.kind = KINDS[1 - KINDS.index(shown.kind)]
            self.reload()

    def action_pause(self) -> None:
        self._still = not self._still


def _ends(edge: Edge) -> str:
    return f"{edge.source} → {'itself' if edge.target == edge.source else edge.target}"


def said(flow: Flow) -> Text:
    """A round's traffic in a few lines."""
    went = [e for e in flow.edges if e.ideas]
    what = "read by others" if flow.kind == "readings" else "taught"
    ends = "said → learns" if flow.kind == "lessons" else "said → read"
    text = Text().append(flow.kind, "bold").append(f"  who {ends} it\n", "dim")
    ideas, tokens = sum(e.ideas for e in went), sum(e.tokens for e in went)
    text.append(f"{count(ideas, 'idea')} {what}\n{number(tokens)} tokens ")
    return text.append(f"along {len(went):,} of {count(len(flow.edges), 'edge')}")
