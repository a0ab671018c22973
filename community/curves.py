"""Lines over rounds and levels: learning, what rounds kept, the holdout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from math import sqrt
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from community.canvas import (
    BEST,
    COMMUNITY,
    INK,
    LABELS,
    MEAN,
    NAME,
    PLAIN,
    START,
    WEAKEST,
    beside,
    figure_of,
    line,
    styles,
    tidy,
)
from community.words import one_line

Facts = Mapping[str, Any]


def learning(facts: Facts) -> Figure:
    """Curves over the rounds: the holdout, if there is one, precision, diversity, tokens."""
    panels = [_holdout_by_round] if facts["holdout_by_round"] else []
    panels += [_precision, _diversity, _tokens]
    heights = [2.2 if panel is _holdout_by_round else 1.0 for panel in panels]
    figure = figure_of(8.4, 1.65 * sum(heights))
    rows = list(figure.subplots(len(panels), 1, sharex=True, height_ratios=heights))
    for axes, panel in zip(rows, panels, strict=True):
        panel(axes, facts)
        tidy(axes)
    figure.suptitle(facts["name"], x=0.01, ha="left")
    rows[-1].set_xlabel("round (0 is the start)")
    rows[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _precision(axes: Axes, facts: Facts) -> None:
    rounds = facts["rounds"]
    line(axes, [r["round"] for r in rounds], [r["precision"] for r in rounds], PLAIN, "community")
    axes.set_ylim(0, 1)
    axes.set_ylabel("share right")
    axes.set_title("precision of what was kept", loc="left")


def _diversity(axes: Axes, facts: Facts) -> None:
    rounds = facts["rounds"]
    line(axes, [r["round"] for r in rounds], [r["diversity"] for r in rounds], PLAIN, "community")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("answers a task")
    axes.set_title("diversity: different answers to a task", loc="left")


def _holdout_by_round(axes: Axes, facts: Facts) -> None:
    """Shares of the whole holdout, the community's with two standard errors either way."""
    course, total = facts["holdout_by_round"], sum(facts["holdout"]["tasks"].values())
    x = [c["round"] for c in course]
    own = [(c["round"], c["community"]) for c in course if c["community"] is not None]
    low, high = [[_bound(p, total, sign) for _, p in own] for sign in (-1, 1)]
    axes.fill_between([n for n, _ in own], low, high, color=COMMUNITY.color, alpha=0.15, lw=0)
    for style, name, label in (
        (COMMUNITY, "community", "community"),
        (BEST, "best", "best member"),
        (MEAN, "mean", "mean member"),
        (WEAKEST, "weakest", "weakest member"),
    ):
        line(axes, x, [c[name] for c in course], style, label)
    for kind, style in styles(list(facts["baselines"])).items():
        _baseline(axes, kind, facts["baselines"][kind], style, x)
    axes.set_ylim(0, 1)
    axes.set_ylabel("exact match")
    axes.set_title(f"whole holdout, {total:,} tasks (band: two standard errors)", loc="left")
    beside(axes)


def _bound(p: float, n: int, sign: int) -> float:
    """p of n, two standard errors lower or higher; an error as `findings.beyond` reckons it."""
    q = (p * n + 1) / (n + 2)
    end = q + sign * 2 * sqrt(q * (1 - q) / (n + 2))
    return min(1.0, max(0.0, sign * max(sign * p, sign * end)))


def _baseline(axes: Axes, kind: str, baseline: Facts, style: Any, x: Sequence[float]) -> None:
    """A baseline's curve; one that learns nothing is a level."""
    course = baseline["holdout_by_round"]
    if len(course) == 1:
        ends = (min(x), max(x))
        line(axes, ends, [course[0]["community"]] * 2, style, f"{kind} (untrained)")
    elif course:
        line(axes, [c["round"] for c in course], [c["community"] for c in course], style, kind)


def _tokens(axes: Axes, facts: Facts) -> None:
    """Tokens of rounds so far, the community's and the baselines'."""
    played = {"community": facts["rounds"]}
    played |= {kind: b["rounds"] for kind, b in facts["baselines"].items() if b["rounds"]}
    look = {"community": COMMUNITY, **styles(list(facts["baselines"]))}
    for who, rounds in played.items():
        total = list(accumulate(r["tokens"] for r in rounds))
        line(axes, [r["round"] for r in rounds], total, look[who], who)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_ylabel("tokens")
    axes.set_title("tokens of answers and learning so far, without the start", loc="left")
    beside(axes)


def rounds(facts: Facts) -> Figure:
    """Above, tasks posed and lessons kept; below, how many are right and who can do them."""
    rounds, unit = facts["rounds"], facts["unit"]
    x = [r["round"] for r in rounds]
    figure = figure_of(8.4, 5.6)
    above, below = figure.subplots(2, 1, sharex=True)
    above.bar(x, [r["posed"] for r in rounds], color="#E3E8EC", label="posed", zorder=2)
    above.bar(x, [r["kept"] for r in rounds], color="#56B4E9", label="kept", width=0.6, zorder=3)
    if len(rounds) <= LABELS:
        for r in rounds:
            above.annotate(str(r[unit]), (r["round"], r["posed"]), (0, 2), fontsize=8,
                           textcoords="offset points", ha="center", color=INK)  # fmt: skip
    above.set_ylim(0, 1.1 * max(r["posed"] for r in rounds) or 1)
    above.set_ylabel("tasks")
    above.set_title(f"{facts['name']}: tasks posed ({unit} above the bars) and kept", loc="left")
    line(below, x, [r["precision"] for r in rounds], PLAIN, "precision of kept")
    own = [r["community"].get(str(r[unit])) for r in rounds]
    for style, label, y in (
        (COMMUNITY, "community", own),
        (BEST, "best member", [r["best"] for r in rounds]),
        (MEAN, "mean member", [r["mean"] for r in rounds]),
    ):
        if any(value is not None for value in y):
            line(below, x, y, style, label)
    for kind, style in styles(list(facts["baselines"])).items():
        if theirs := facts["baselines"][kind]["rounds"]:
            line(below, [r["round"] for r in theirs], [r["precision"] for r in theirs], style,
                 f"precision, {kind}")  # fmt: skip
    below.set_ylim(0, 1)
    below.set_ylabel("share right")
    below.set_xlabel("round")
    below.set_title(f"precision, and holdout exact match at the {unit} posed", loc="left")
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (above, below):
        tidy(axes)
        beside(axes)
    return figure


def levels(facts: Facts, holdout: Facts) -> Figure:
    """Exact match by level; lines for digits, which have an order, marks alone for the rest."""
    keys = list(holdout["tasks"])
    digits = facts["unit"] == "digits"
    figure = figure_of(min(16.0, max(7.5, 3.5 + 0.45 * len(keys))), 4.4)
    axes = figure.subplots()
    lines = [
        (COMMUNITY, "community", holdout["community"]),
        (BEST, "best member", holdout["best"]),
        (MEAN, "mean member", holdout["mean"]),
        *((s, kind, holdout["baselines"][kind])
          for kind, s in styles(list(holdout["baselines"])).items()),
        (START, "community, start", holdout["start"]["community"]),
    ]  # fmt: skip
    shift = 0.0 if digits else 0.6 / len(lines)
    for i, (style, label, shares) in enumerate(lines):
        at = [place + shift * (i - (len(lines) - 1) / 2) for place in range(len(keys))]
        line(axes, at, [shares.get(key) for key in keys], style, label, joined=digits)
    _name_places(axes, [one_line(key, NAME) for key in keys])
    axes.set_ylim(0, 1)
    axes.set_ylabel("exact match")
    axes.set_xlabel(facts["unit"] if digits else "")
    axes.set_title(f"{facts['name']}: holdout after round {facts['rounds_played']}", loc="left")
    tidy(axes)
    beside(axes)
    return figure


def _name_places(axes: Axes, keys: Sequence[str]) -> None:
    long = max(map(len, keys)) > 4
    axes.set_xticks(range(len(keys)), keys, rotation=40 if long else 0, ha="right" if long
                    else "center", fontsize=9)  # fmt: skip
    axes.set_xlim(-0.5, len(keys) - 0.5)
