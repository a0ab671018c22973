"""Tables as colours with their numbers: the holdout round by round, and who was sent what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from community.canvas import CELLS, DARK, LABELS, LIGHT, NAME, ORANGE, figure_of
from community.networks import group_of
from community.words import one_line

Facts = Mapping[str, Any]
Cells = Sequence[Sequence[float]]

DOMAINS = 6  # that get a row of their own
MEMBERS = 40  # that get a line of their own


def growth(facts: Facts, holdout: Facts) -> Figure:
    """The community's exact match: levels over rounds, what was posed outlined."""
    keys, rounds = list(holdout["tasks"]), list(holdout["by_round"])
    table = [[holdout["by_round"][n].get(key, float("nan")) for n in rounds] for key in keys]
    figure = figure_of(
        min(16.0, max(6.0, 2.5 + 0.55 * len(rounds))), min(14.0, 1.6 + 0.36 * len(keys))
    )
    axes = figure.subplots()
    image = _heat(axes, table, "Blues", 1.0, ".2f")
    for r in facts["rounds"]:
        level = str(r[facts["unit"]])
        if level in keys and str(r["round"]) in rounds:
            corner = (rounds.index(str(r["round"])) - 0.5, keys.index(level) - 0.5)
            axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=ORANGE, linewidth=1.8))
    _places(axes, rounds, [one_line(key, NAME) for key in keys])
    digits = facts["unit"] == "digits"
    axes.set_xlabel(f"round (0 is the start{'; what was posed is outlined' * digits})")
    axes.set_ylabel(facts["unit"])
    axes.set_title(f"{facts['name']}: the community's exact match", loc="left")
    figure.colorbar(image, ax=axes, label="exact match")
    return figure


def routing(facts: Facts) -> Figure:
    """For each domain: what share of its tasks each member attempted, and what each was taught.

    More than a few members are drawn by the tables of the recipe they come from: the mean of
    what they attempted, the sum of their lessons.
    """
    table, rounds = facts["routing"], [r["round"] for r in facts["rounds"]]
    posed: dict[str, int] = {}
    for entry in table:
        posed[entry["domain"]] = posed.get(entry["domain"], 0) + entry["posed"]
    domains = sorted(posed, key=lambda domain: (-posed[domain], domain))[:DOMAINS]
    groups = _lines(list(facts["members"]))
    height = 1.4 + len(domains) * (1.0 + 0.3 * len(groups))
    figure = figure_of(min(16.0, max(8.4, 4 + 0.8 * len(rounds))), min(40.0, height))
    rows = figure.subplots(len(domains), 2, squeeze=False, sharey=True)
    most = _most(table, groups)
    for axes, domain in zip(rows, domains, strict=True):
        mine = {entry["round"]: entry for entry in table if entry["domain"] == domain}
        sent = [[_sent(mine, n, names) for n in rounds] for names in groups.values()]
        given = [[_given(mine, n, names) for n in rounds] for names in groups.values()]
        pictures = _heat(axes[0], sent, "Blues", 1, ".2f"), _heat(axes[1], given, "Oranges", most)
        for place, picture, what in zip(
            axes, pictures, ("share of tasks attempted", "lessons taught"), strict=True
        ):
            place.set_title(f"{one_line(domain, NAME)}: {what}", loc="left", fontsize=10)
            _places(place, [str(n) for n in rounds], [one_line(name, NAME) for name in groups])
            figure.colorbar(picture, ax=place)
    rows[0][0].invert_yaxis()  # of all of them: the first member on top
    for place in rows[-1]:
        place.set_xlabel("round")
    figure.suptitle(_routing_title(facts, len(posed), groups), x=0.01, ha="left")
    return figure


def _routing_title(facts: Facts, domains: int, groups: Mapping[str, Sequence[str]]) -> str:
    hidden = f"; the {DOMAINS} most posed of {domains} domains" if domains > DOMAINS else ""
    means = "; members of a table together" if len(groups) < len(facts["members"]) else ""
    return f"{facts['name']}: routing by round and domain{means}{hidden}"


def _lines(members: Sequence[str]) -> dict[str, list[str]]:
    """What each line of the picture shows: a member, or all those of a table of the recipe."""
    if len(members) <= MEMBERS:
        return {name: [name] for name in members}
    groups: dict[str, list[str]] = {}
    for name in members:
        groups.setdefault(group_of(name), []).append(name)
    named = {f"{name} ({len(own)})": own for name, own in groups.items()}
    return named if len(named) <= MEMBERS else {f"all {len(members)}": list(members)}


def _sent(entries: Mapping[int, Facts], n: int, names: Sequence[str]) -> float:
    """The share of round n's tasks that members attempted; nan where none was posed."""
    if n not in entries:
        return float("nan")
    given = sum(entries[n]["attempted"].get(name, 0) for name in names)
    return given / len(names) / entries[n]["posed"]


def _given(entries: Mapping[int, Facts], n: int, names: Sequence[str]) -> float:
    """Lessons that members were taught after round n; nan where no task was posed."""
    return sum(entries[n]["taught"].get(x, 0) for x in names) if n in entries else float("nan")


def _most(table: Sequence[Facts], groups: Mapping[str, Sequence[str]]) -> float:
    found = (_given({0: entry}, 0, names) for entry in table for names in groups.values())
    return max(found, default=0.0) or 1.0


def _heat(axes: Axes, cells: Cells, colors: str, most: float, form: str = ".0f") -> AxesImage:
    """Cells between 0 and `most` as colours, with their numbers if there are not too many."""
    image = axes.imshow(cells, cmap=colors, vmin=0, vmax=most, aspect="auto", origin="lower")
    if sum(map(len, cells)) <= CELLS:
        for i, row in enumerate(cells):
            for j, value in enumerate(row):
                if value == value:
                    axes.text(j, i, format(value, form), ha="center", va="center", fontsize=8,
                              color=LIGHT if value > 0.6 * most else DARK)  # fmt: skip
    return image


def _places(axes: Axes, x: Sequence[str], y: Sequence[str]) -> None:
    step = 1 + (len(x) - 1) // LABELS
    axes.set_xticks(range(0, len(x), step), x[::step])
    axes.set_yticks(range(len(y)), y)
