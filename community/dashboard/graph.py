"""The network drawn in characters, with ideas on their way along its edges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from rich.style import Style
from rich.text import Text
from textual.widget import Widget

from community.dashboard.chart import DOTTED, SOLID, Canvas
from community.dashboard.flows import Edge, Flow, Places
from community.words import clip

DRAWN = 200
"""Edges that are drawn; of more, every so many-th."""
MOVING = 60
"""Edges with ideas on their way."""
STEPS = 12
"""Pictures until an idea has arrived."""
NAMED = 24
"""So many members are all named; of more, those of the chosen edge."""
HEADS = "→↘↓↙←↖↑↗"

Cell = tuple[int, int]


class Graph(Widget):
    """Members as ● with their names, edges as lines; the chosen edge stands out.

    Dotted: nothing went along it. An arrow's head lies where the idea arrives.
    """

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "graph--node", "graph--edge", "graph--chosen", "graph--idea", "graph--name",
    }  # fmt: skip
    DEFAULT_CSS = """
    Graph {
        border: round $frame; border-title-color: $text;
        border-subtitle-color: $text-muted;
        &> .graph--node { color: $primary; text-style: bold; }
        &> .graph--edge { color: $faint; }
        &> .graph--chosen { color: $accent; text-style: bold; }
        &> .graph--idea { color: $success; text-style: bold; }
        &> .graph--name { color: $text; }
    }
    """

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self.flow: Flow | None = None
        self.places: Places = {}
        self.chosen: Edge | None = None
        self.step = 0

    def put(self, flow: Flow, places: Places) -> None:
        """Draw another round."""
        self.flow, self.places, self.chosen = flow, places, None
        self.refresh()

    def choose(self, edge: Edge | None) -> None:
        """Let an edge stand out."""
        self.chosen = edge
        self.refresh()

    def advance(self) -> None:
        """Move the ideas on a bit."""
        self.step = (self.step + 1) % STEPS
        self.refresh()

    # -- drawing ---------------------------------------------------------------------------

    def render(self) -> Text:
        width, height = self.content_size
        if self.flow is None or not self.places or width < 10 or height < 5:
            return Text("")
        canvas = Canvas(width, height)
        cells = self._cells(width, height)
        drawn = self.flow.edges[:: -(-len(self.flow.edges) // DRAWN) or 1]
        for edge in reversed(drawn):
            self._draw_edge(canvas, cells, edge, "graph--edge")
        if self.chosen:
            self._draw_edge(canvas, cells, self.chosen, "graph--chosen")
        self._draw_heads(canvas, cells, drawn)
        self._draw_ideas(canvas, cells, drawn)
        self._draw_members(canvas, cells, width)
        return Text("\n").join(canvas.rows())

    def _cells(self, width: int, height: int) -> dict[str, Cell]:
        """The cell of each member; names need room at both sides."""
        longest = max(map(len, self.places), default=0)
        margin = min(longest + 1, width // 5) if len(self.places) <= NAMED else 1
        across, down = width - 1 - 2 * margin, height - 1
        return {
            name: (margin + round(x * across), round(y * down))
            for name, (x, y) in self.places.items()
        }

    def _style_of(self, name: str) -> Style:
        return self.get_component_rich_style(name, partial=True)

    def _draw_edge(self, canvas: Canvas, cells: dict[str, Cell], edge: Edge, style: str) -> None:
        a, b = cells[edge.source], cells[edge.target]
        dash = SOLID if edge.ideas else DOTTED
        if a != b:
            canvas.line(_dot(a), _dot(b), self._style_of(style), dash)

    def _draw_heads(self, canvas: Canvas, cells: dict[str, Cell], drawn: Sequence[Edge]) -> None:
        """Where ideas arrive; on the chosen edge alone where there are too many."""
        few = len(drawn) <= 3 * NAMED
        for edge in [*(drawn if few else ()), *([self.chosen] if self.chosen else [])]:
            a, b = cells[edge.source], cells[edge.target]
            size = math.dist(a, b)
            if size > 4 and edge.ideas:
                x, y = _on(a, b, 1 - 2.2 / size)
                style = "graph--chosen" if edge == self.chosen else "graph--edge"
                canvas.write(x, y, _head(a, b), self._style_of(style))

    def _draw_ideas(self, canvas: Canvas, cells: dict[str, Cell], drawn: Sequence[Edge]) -> None:
        busy = [e for e in drawn if e.ideas and e.source != e.target][:MOVING]
        for i, edge in enumerate([*busy, *([self.chosen] if self.chosen else [])]):
            a, b = cells[edge.source], cells[edge.target]
            if edge.ideas and math.dist(a, b) > 3:
                part = ((self.step + i * 5) % STEPS + 1) / (STEPS + 1)
                x, y = _on(a, b, part)
                canvas.write(x, y, "◆", self._style_of("graph--idea"))

    def _draw_members(self, canvas: Canvas, cells: dict[str, Cell], width: int) -> None:
        ends = {self.chosen.source, self.chosen.target} if self.chosen else set()
        every = len(cells) <= NAMED
        for name, (x, y) in sorted(cells.items(), key=lambda item: item[0] in ends):
            style = "graph--chosen" if name in ends else "graph--node"
            canvas.write(x, y, "●" if every or name in ends else "•", self._style_of(style))
            if every or name in ends:
                self._draw_name(canvas, name, (x, y), width, name in ends)

    def _draw_name(self, canvas: Canvas, name: str, at: Cell, width: int, chosen: bool) -> None:
        """On the side that is farther from the middle."""
        x, y = at
        left = x < width // 2
        room = x - 1 if left else width - x - 2
        if room < 3:
            left, room = not left, width - x - 2 if left else x - 1
        text = clip(name, max(3, min(room, 16)))
        style = self._style_of("graph--chosen" if chosen else "graph--name")
        canvas.write(x - len(text) - 1 if left else x + 2, y, text, style)


def _dot(cell: Cell) -> Cell:
    return 2 * cell[0] + 1, 4 * cell[1] + 2


def _on(a: Cell, b: Cell, part: float) -> Cell:
    """The cell at a part of the way from a to b."""
    return round(a[0] + (b[0] - a[0]) * part), round(a[1] + (b[1] - a[1]) * part)


def _head(a: Cell, b: Cell) -> str:
    """An arrow's head in the direction from a to b; a cell is twice as high as wide."""
    angle = math.atan2(2 * (b[1] - a[1]), b[0] - a[0])
    return HEADS[round(angle / (math.pi / 4)) % 8]
