"""What all plots have in common: how lines are told apart, and how a figure becomes a file.

Lines differ in marker and dash as well as in colour, and the colours are those of Okabe and
Ito, which the colour-blind tell apart. `Figure` objects are made directly: pyplot keeps
state between calls and may look for a display. The same figure gives the same bytes: files
hold no date and no program's version, and ids in an SVG follow from what they name.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

DPI = 130
LABELS = 24  # along an axis
NAME = 24  # characters of one
CELLS = 250  # of a heat map: in more than that no numbers are written
INK, PAPER, FAINT = "#222222", "#ffffff", "#dddddd"
"""Of text, background and grid. A page with a dark mode replaces these, and these alone."""
DARK, LIGHT = "#202020", "#fefefe"  # text on a colour that stays in any mode
ORANGE = "#D55E00"  # for what is to be found at once: outlines, the path to the best

SETTINGS: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "text.parse_math": False,  # a model may well say $
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "svg.fonttype": "none",  # text that can be searched and read aloud
    "svg.hashsalt": "community",
}


class Style(NamedTuple):
    """How a line is told from the others."""

    color: str
    marker: str
    dash: Any
    width: float = 1.6


COMMUNITY = Style("#0072B2", "o", "-", 2.4)
BEST = Style("#D55E00", "s", (0, (6, 2)))
MEAN = Style("#009E73", "^", "-.")
WEAKEST = Style("#56B4E9", "v", (0, (1, 2)))
START = Style("#0072B2", "o", (0, (2, 2)), 1.2)
PLAIN = Style(INK, "P", "-", 1.8)
BASELINES = (
    Style("#CC79A7", "D", (0, (1, 1.2))),
    Style("#7A7A7A", "X", (0, (4, 1.5, 1, 1.5, 1, 1.5))),
    Style("#E69F00", "v", (0, (8, 2, 2, 2))),
)
GROUPS = (COMMUNITY, BEST, MEAN, *BASELINES)
"""Of members, in a picture of all of them."""


@contextmanager
def settings() -> Iterator[None]:
    """Figures made and saved within look the same whatever the user's own settings are."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)
        # models say what no font has; a box stands for it
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def figure_of(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def encoded(figure: Figure, form: str) -> bytes:
    """The figure as the bytes of a file, `form` being png or svg."""
    buffer = io.BytesIO()
    if form == "png":
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    else:
        FigureCanvasSVG(figure).print_svg(
            buffer, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    return buffer.getvalue()


def styles(kinds: Sequence[str]) -> dict[str, Style]:
    """The styles of baselines."""
    return {kind: BASELINES[i % len(BASELINES)] for i, kind in enumerate(kinds)}


def line(axes: Axes, x: Sequence[float], y: Sequence[float | None], style: Style, label: str,
         joined: bool = True) -> None:  # fmt: skip
    """A line with markers; None is a gap."""
    axes.plot(
        x,
        [float("nan") if value is None else value for value in y],
        color=style.color,
        marker=style.marker,
        linestyle=style.dash if joined else "none",
        linewidth=style.width,
        markevery=1 + (len(x) - 1) // (2 * LABELS),
        markersize=5 if style is not START else 3.5,
        markerfacecolor=style.color if style is not START else PAPER,
        label=label,
        clip_on=False,
        zorder=4 if style is COMMUNITY else 3,
    )


def tidy(axes: Axes) -> None:
    """Only the lines that are needed."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)


def beside(axes: Axes) -> None:
    """The legend outside, where it hides nothing."""
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=9)
