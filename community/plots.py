"""The report's figures -> PNG files.

Lines differ in marker and dash as well as in colour, and the colours are those of Okabe and
Ito, which the colour-blind tell apart. `Figure` objects are made directly: pyplot keeps
state between calls and may look for a display.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from community.findings import main_holdout

Facts = Mapping[str, Any]
Shares = Mapping[str, float]

DPI = 130
CELLS = 250  # of a heat map: in more than that no numbers are written
LABELS = 24  # along an axis


class Style(NamedTuple):
    """How a line is told from the others."""

    color: str
    marker: str
    dash: Any
    width: float = 1.6


COMMUNITY = Style("#0072B2", "o", "-", 2.4)
BEST = Style("#D55E00", "s", (0, (6, 2)))
MEAN = Style("#009E73", "^", "-.")
START = Style("#0072B2", "o", (0, (2, 2)), 1.2)
BASELINES = (
    Style("#CC79A7", "D", (0, (1, 1.2))),
    Style("#7A7A7A", "X", (0, (4, 1.5, 1, 1.5, 1, 1.5))),
    Style("#E69F00", "v", (0, (8, 2, 2, 2))),
)


def draw(facts: Facts, folder: Path) -> list[str]:
    """Write the plots that the figures of a report have something for; returns their names.

    Raises OSError where the folder cannot be written.
    """
    holdout = main_holdout(facts)
    drawn = {}
    if facts["rounds"]:
        drawn["rounds.png"] = _rounds(facts)
    if holdout["tasks"]:
        drawn["holdout.png"] = _holdout(facts, holdout)
    if len(holdout["by_round"]) > 1:
        drawn["growth.png"] = _growth(facts, holdout)
    if drawn:
        folder.mkdir(parents=True, exist_ok=True)
    for name, figure in drawn.items():
        FigureCanvasAgg(figure).print_png(str(folder / name))
    return list(drawn)


def _styles(kinds: Sequence[str]) -> dict[str, Style]:
    return {kind: BASELINES[i % len(BASELINES)] for i, kind in enumerate(kinds)}


def _line(axes: Axes, x: Sequence[float], y: Sequence[float | None], style: Style, label: str,
          joined: bool = True) -> None:  # fmt: skip
    """A line with markers; None is a gap."""
    axes.plot(
        x,
        [float("nan") if value is None else value for value in y],
        color=style.color,
        marker=style.marker,
        linestyle=style.dash if joined else "none",
        linewidth=style.width,
        markersize=5 if style is not START else 3.5,
        markerfacecolor=style.color if style is not START else "white",
        label=label,
        clip_on=False,
        zorder=4 if style is COMMUNITY else 3,
    )


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.7)
    axes.set_axisbelow(True)


def _beside(axes: Axes) -> None:
    """The legend outside, where it hides nothing."""
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=9)


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


# -- rounds.png ----------------------------------------------------------------------------


def _rounds(facts: Facts) -> Figure:
    """Above, tasks posed and lessons kept; below, how many are right and who can do them."""
    rounds, unit = facts["rounds"], facts["unit"]
    x = [r["round"] for r in rounds]
    figure = _figure(8.4, 5.6)
    above, below = figure.subplots(2, 1, sharex=True)
    above.bar(x, [r["posed"] for r in rounds], color="#E3E8EC", label="posed", zorder=2)
    above.bar(x, [r["kept"] for r in rounds], color="#56B4E9", label="kept", width=0.6, zorder=3)
    if len(rounds) <= LABELS:
        for r in rounds:
            above.annotate(str(r[unit]), (r["round"], r["posed"]), (0, 2), fontsize=8,
                           textcoords="offset points", ha="center", color="#444444")  # fmt: skip
    above.set_ylim(0, 1.1 * max(r["posed"] for r in rounds) or 1)
    above.set_ylabel("tasks")
    above.set_title(f"{facts['name']}: tasks posed ({unit} above the bars) and kept", loc="left")
    precision = Style("#000000", "P", "-", 1.8)
    _line(below, x, [r["precision"] for r in rounds], precision, "precision of kept")
    own = [r["community"].get(str(r[unit])) for r in rounds]
    for style, label, y in (
        (COMMUNITY, "community", own),
        (BEST, "best member", [r["best"] for r in rounds]),
        (MEAN, "mean member", [r["mean"] for r in rounds]),
    ):
        if any(value is not None for value in y):
            _line(below, x, y, style, label)
    for kind, style in _styles(list(facts["baselines"])).items():
        theirs = facts["baselines"][kind]["rounds"]
        _line(below, [r["round"] for r in theirs], [r["precision"] for r in theirs], style,
              f"precision, {kind}")  # fmt: skip
    below.set_ylim(0, 1)
    below.set_ylabel("share right")
    below.set_xlabel("round")
    below.set_title(f"precision, and holdout exact match at the {unit} posed", loc="left")
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (above, below):
        _tidy(axes)
        _beside(axes)
    return figure


# -- holdout.png ---------------------------------------------------------------------------


def _holdout(facts: Facts, holdout: Facts) -> Figure:
    """Exact match by level; lines for digits, which have an order, marks alone for the rest."""
    keys = list(holdout["tasks"])
    digits = facts["unit"] == "digits"
    figure = _figure(min(16.0, max(7.5, 3.5 + 0.45 * len(keys))), 4.4)
    axes = figure.subplots()
    lines = [
        (COMMUNITY, "community", holdout["community"]),
        (BEST, "best member", holdout["best"]),
        (MEAN, "mean member", holdout["mean"]),
        *((s, kind, holdout["baselines"][kind])
          for kind, s in _styles(list(holdout["baselines"])).items()),
        (START, "community, start", holdout["start"]["community"]),
    ]  # fmt: skip
    shift = 0.0 if digits else 0.6 / len(lines)
    for i, (style, label, shares) in enumerate(lines):
        at = [place + shift * (i - (len(lines) - 1) / 2) for place in range(len(keys))]
        _line(axes, at, [shares.get(key) for key in keys], style, label, joined=digits)
    _name_places(axes, keys)
    axes.set_ylim(0, 1)
    axes.set_ylabel("exact match")
    axes.set_xlabel(facts["unit"] if digits else "")
    axes.set_title(f"{facts['name']}: holdout after round {facts['rounds_played']}", loc="left")
    _tidy(axes)
    _beside(axes)
    return figure


def _name_places(axes: Axes, keys: Sequence[str]) -> None:
    long = max(map(len, keys)) > 4
    axes.set_xticks(range(len(keys)), keys, rotation=40 if long else 0, ha="right" if long
                    else "center", fontsize=9)  # fmt: skip
    axes.set_xlim(-0.5, len(keys) - 0.5)


# -- growth.png ----------------------------------------------------------------------------


def _growth(facts: Facts, holdout: Facts) -> Figure:
    """A heat map of the community's exact match: levels over rounds, what was posed outlined."""
    keys, rounds = list(holdout["tasks"]), list(holdout["by_round"])
    table = [[holdout["by_round"][n].get(key, float("nan")) for n in rounds] for key in keys]
    figure = _figure(
        min(16.0, max(6.0, 2.5 + 0.55 * len(rounds))), min(14.0, 1.6 + 0.36 * len(keys))
    )
    axes = figure.subplots()
    image = axes.imshow(table, cmap="Blues", vmin=0, vmax=1, aspect="auto", origin="lower")
    if len(keys) * len(rounds) <= CELLS:
        for i, row in enumerate(table):
            for j, value in enumerate(row):
                axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8,
                          color="white" if value > 0.6 else "#222222")  # fmt: skip
    for r in facts["rounds"]:
        level = str(r[facts["unit"]])
        if level in keys and str(r["round"]) in rounds:
            corner = (rounds.index(str(r["round"])) - 0.5, keys.index(level) - 0.5)
            axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="#D55E00", linewidth=1.8))
    step = 1 + (len(rounds) - 1) // LABELS
    axes.set_xticks(range(0, len(rounds), step), rounds[::step])
    axes.set_yticks(range(len(keys)), keys)
    digits = facts["unit"] == "digits"
    axes.set_xlabel(f"round (0 is the start{'; what was posed is outlined' * digits})")
    axes.set_ylabel(facts["unit"])
    axes.set_title(f"{facts['name']}: the community's exact match", loc="left")
    figure.colorbar(image, ax=axes, label="exact match")
    return figure
