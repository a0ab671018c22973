"""Texts of models and numbers, made fit to be shown."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from rich.cells import cell_len, set_cell_size
from rich.text import Text

SHORT = 10
"""Digits of an id that are shown, as in `community lineage`."""


def one_line(text: str, width: int = 0) -> str:
    """A text as one printable line, cut to `width` cells where that is not 0.

    A model's text may hold anything, escape sequences included.
    """
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return clip(line, width) if width else line


def markdown(text: str) -> str:
    """A text as one line of Markdown that shows it, also in a cell of a table."""
    return re.sub(r"([\\|<*])", r"\\\1", one_line(text))


def clip(line: str, width: int) -> str:
    """At most `width` cells of a line; an ellipsis says that it goes on."""
    if cell_len(line) <= width:
        return line
    return set_cell_size(line, width - 1) + "…" if width > 0 else ""


def block(text: str) -> str:
    """A text with its line breaks, and nothing else that is not printable."""
    kept = ("".join(c if c.isprintable() else " " for c in line) for line in text.splitlines())
    return "\n".join(kept)


def padded(text: Text | str, width: int, right: bool = False) -> Text:
    """Exactly `width` cells."""
    made = text.copy() if isinstance(text, Text) else Text(text)
    if made.cell_len > width:
        made.truncate(width, overflow="ellipsis")
    spare = width - made.cell_len
    if spare > 0:
        made = Text(" " * spare) + made if right else made + " " * spare
    return made


UNITS = ((999.5e9, 1e12, "T"), (999.5e6, 1e9, "G"), (999.5e3, 1e6, "M"), (9995, 1e3, "k"))
"""From where on a quantity is in which unit: 999,999 in three digits is 1M, not 1000k."""


def number(value: float | None) -> str:
    """A quantity in few cells: 950, 12.3k, 4.56M; a dash for what is not known."""
    if value is None or math.isnan(value):
        return "–"
    for least, size, unit in UNITS:
        if abs(value) >= least:
            return f"{value / size:.3g}{unit}"
    whole = value == int(value) or abs(value) >= 100
    return f"{value:,.0f}" if whole else f"{value:.3g}"


def share(value: float | None) -> str:
    """.935, 1.00, or a dash for what was not measured."""
    if value is None or math.isnan(value):
        return "–"
    text = f"{value:.3f}"
    return text[1:] if text.startswith("0.") else f"{value:.2f}"


def signed(value: float | None) -> str:
    """+1.25, -0.30, or a dash."""
    return "–" if value is None or math.isnan(value) else f"{value:+.2f}"


def count(number: int, noun: str) -> str:
    """1 idea; 2 ideas."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def meter(value: float, width: int) -> str:
    """A share as a heavy line that goes on as a light one, `width` cells in all."""
    full, half = divmod(round(max(0.0, min(1.0, value)) * width * 2), 2)
    return ("━" * full + "╾" * half).ljust(width, "─")


def interval(low: float, middle: float, high: float, ends: tuple[float, float], width: int) -> str:
    """An interval on the axis between `ends`: ├──●──┤, in `width` cells."""
    first, last = ends
    size = (last - first) or 1.0

    def at(value: float) -> int:
        return max(0, min(width - 1, round((value - first) / size * (width - 1))))

    a, b, c = at(low), at(middle), at(high)
    cells = ["─" if a < i < c else " " for i in range(width)]
    zero = at(0.0)
    if first < 0 < last and cells[zero] == " ":
        cells[zero] = "┊"
    cells[a], cells[c] = "├", "┤"
    cells[b] = "●"
    return "".join(cells)


SPARKS = "▁▂▃▄▅▆▇█"


def spark(values: Iterable[float | None], width: int) -> str:
    """The last `width` shares as little columns; a gap where there is none."""
    cells = []
    for value in list(values)[-width:]:
        if value is None or math.isnan(value):
            cells.append(" ")
        else:
            cells.append(SPARKS[max(0, min(7, int(value * 8)))])
    return "".join(cells)
