"""Curves drawn with braille dots, two to a cell across and four down.

Several curves in one chart differ in how they are dashed as well as in colour.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.style import Style
from rich.text import Text
from textual.widget import Widget

from community.words import number

DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
"""Bit of a braille character by column and row of the dot."""

SOLID, DASHED, DOTTED = (1, 0), (3, 2), (1, 2)
"""Dots drawn and dots left out, by turns."""
SAMPLES = {SOLID: "━", DASHED: "╌", DOTTED: "┈"}

Point = tuple[float, float | None]


@dataclass(frozen=True)
class Curve:
    """Points in order of x; None for y is a gap. `style` names a component style of Chart."""

    label: str
    points: Sequence[Point]
    style: str = "first"
    dash: tuple[int, int] = SOLID


class Canvas:
    """Dots in a grid of character cells. The origin is at the top left."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._bits = [[0] * width for _ in range(height)]
        self._styles: list[list[Style | None]] = [[None] * width for _ in range(height)]
        self._letters: dict[tuple[int, int], tuple[str, Style]] = {}

    def dot(self, x: int, y: int, style: Style) -> None:
        """Set a dot; x goes to 2 * width and y to 4 * height, others are left out."""
        if 0 <= x < 2 * self.width and 0 <= y < 4 * self.height:
            self._bits[y // 4][x // 2] |= DOTS[x % 2][y % 4]
            self._styles[y // 4][x // 2] = style

    def line(
        self, a: tuple[int, int], b: tuple[int, int], style: Style, dash: tuple[int, int] = SOLID
    ) -> None:
        """A line from dot to dot."""
        on, off = dash
        for i, (x, y) in enumerate(_between(a, b)):
            if i % (on + off) < on:
                self.dot(x, y, style)

    def write(self, x: int, y: int, text: str, style: Style) -> None:
        """Characters over the dots, from cell (x, y) on."""
        for i, letter in enumerate(text):
            if 0 <= x + i < self.width and 0 <= y < self.height:
                self._letters[x + i, y] = (letter, style)

    def rows(self) -> list[Text]:
        """The picture, line by line."""
        return [self._row(y) for y in range(self.height)]

    def _row(self, y: int) -> Text:
        row = Text(no_wrap=True, end="")
        for x in range(self.width):
            if (x, y) in self._letters:
                row.append(*self._letters[x, y])
            elif bits := self._bits[y][x]:
                row.append(chr(0x2800 + bits), self._styles[y][x] or "")
            else:
                row.append(" ")
        return row


def _between(a: tuple[int, int], b: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """The dots of a line, both ends included."""
    steps = max(abs(b[0] - a[0]), abs(b[1] - a[1]), 1)
    for i in range(steps + 1):
        yield (
            a[0] + round((b[0] - a[0]) * i / steps),
            a[1] + round((b[1] - a[1]) * i / steps),
        )


class Chart(Widget):
    """One or a few curves over the rounds, with an axis on the left and below.

    `bounds` are those of y; None stands for what the curves need. `form` writes the numbers
    along the axis.
    """

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "chart--first", "chart--second", "chart--third", "chart--axis",
    }  # fmt: skip
    DEFAULT_CSS = """
    Chart {
        border: round $frame;
        border-title-color: $text;
        border-subtitle-color: $text-muted;
        padding: 0 1 0 0;
        &> .chart--first { color: $primary; text-style: bold; }
        &> .chart--second { color: $accent; }
        &> .chart--third { color: $success; }
        &> .chart--axis { color: $faint; }
    }
    """

    def __init__(
        self,
        title: str,
        bounds: tuple[float | None, float | None] = (0.0, None),
        form: Callable[[float], str] = number,
        id: str | None = None,
    ) -> None:
        super().__init__(id=id)
        self.border_title = title
        self.bounds, self.form = bounds, form
        self.curves: Sequence[Curve] = ()
        self.empty = "nothing yet"

    def draw(self, curves: Sequence[Curve], empty: str = "nothing yet") -> None:
        """Show these curves instead; `empty` is said where they have no point."""
        self.curves, self.empty = curves, empty
        self.border_subtitle = self._legend()
        self.refresh()

    def _legend(self) -> str:
        """How each curve is drawn, and its last value."""
        parts = []
        for curve in self.curves:
            known = [y for _, y in curve.points if y is not None]
            if known:
                sign = SAMPLES[curve.dash] if len(self.curves) > 1 else ""
                parts.append(f"{sign}{curve.label or 'now'} {self.form(known[-1])}")
        return " ".join(parts)

    def render(self) -> Text:
        width, height = self.content_size
        drawn = [(x, y) for c in self.curves for x, y in c.points if y is not None]
        axis = self.get_component_rich_style("chart--axis", partial=True)
        if not drawn or width < 12 or height < 3:
            return Text(self.empty, style=axis, justify="center")
        low, high = self._range([y for _, y in drawn])
        labels = [self.form(high), self.form(low)]
        margin = max(map(len, labels)) + 1
        first, last = min(x for x, _ in drawn), max(x for x, _ in drawn)
        canvas = Canvas(width - margin, height - 1)
        for curve in reversed(self.curves):  # the first lies on top
            self._trace(canvas, curve, (first, last), (low, high))
        lines = []
        for i, row in enumerate(canvas.rows()):
            label = labels[0] if i == 0 else labels[1] if i == height - 2 else ""
            lines.append(Text(label.rjust(margin - 1) + "│", axis).append_text(row))
        ends = [f"{first:g}", f"{last:g}"] if last > first else [f"{first:g}", ""]
        below = ends[0] + ends[1].rjust(width - margin - len(ends[0]))
        lines.append(Text(" " * margin + below, axis))
        return Text("\n").join(lines)

    def _range(self, values: Sequence[float]) -> tuple[float, float]:
        low, high = self.bounds
        low = min(values) if low is None else low
        high = max(values) if high is None else high
        return (low, high) if high > low else (low, low + 1.0)

    def _trace(
        self, canvas: Canvas, curve: Curve, xs: tuple[float, float], ys: tuple[float, float]
    ) -> None:
        style = self.get_component_rich_style(f"chart--{curve.style}", partial=True)
        across, down = 2 * canvas.width - 1, 4 * canvas.height - 1
        wide, tall = (xs[1] - xs[0]) or 1.0, ys[1] - ys[0]
        before: tuple[int, int] | None = None
        for x, y in curve.points:
            if y is None or math.isnan(y):
                before = None
                continue
            part = max(0.0, min(1.0, (y - ys[0]) / tall))
            at = (round((x - xs[0]) / wide * across), round((1 - part) * down))
            canvas.line(before or at, at, style, curve.dash if before else SOLID)
            before = at
