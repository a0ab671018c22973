"""The graph of who read whom, with what flowed along its edges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import cos, pi, sin
from typing import Any

import networkx as nx
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

from community.canvas import GROUPS, PAPER, figure_of
from community.words import one_line

Facts = Mapping[str, Any]
Place = tuple[float, float]

PANELS = 4  # topologies of one run
NAMED = 30  # members that are named
ARROWS = 60  # edges that are arrows; more are thin lines
WRITTEN = 12  # edges that say what flowed along them
HEAVY = 2000  # edges that an SVG holds as a picture, since it would weigh megabytes
BEND = 0.16  # of an arrow, so that there and back lie side by side


def topology(facts: Facts) -> Figure:
    """Who read whom; one panel for each topology that was in force.

    Arrows go the way ideas went, from author to reader, the wider the more tokens were read;
    a member is the larger the more of its tokens others read.
    """
    networks = facts["topology"][:PANELS]
    columns = min(2, len(networks))
    rows = -(-len(networks) // columns)
    figure = figure_of(6.2 * columns, 6.0 * rows + 0.5)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    groups = _groups(list(facts["members"]))
    for axes, network in zip(panels, networks, strict=False):
        _network(axes, network, list(facts["members"]), groups)
    for axes in panels:
        axes.set_axis_off()
    if len(groups) > 1:
        panels[0].legend(loc="upper left", bbox_to_anchor=(0, 0), ncols=3, frameon=False)
    hidden = len(facts["topology"]) - len(networks)
    more = f"; the first {PANELS} of {PANELS + hidden} topologies" if hidden else ""
    title = f"{facts['name']}: who read whom{more}\nArrows go from author to reader"
    figure.suptitle(f"{title}, wide where many tokens were read", x=0.01, ha="left")
    return figure


def group_of(member: str) -> str:
    """The name that members of one table of a recipe share: `able` of `able-12`."""
    stem, _, number = member.rpartition("-")
    return stem if stem and number.isdigit() else member


def _groups(members: Sequence[str]) -> dict[str, int]:
    """Group -> its number; one for all where nearly everyone is a group of its own."""
    names = list(dict.fromkeys(map(group_of, members)))
    few = len(names) <= min(len(GROUPS), len(members) // 2)
    return {name: i for i, name in enumerate(names)} if few else {"": 0}


def _network(axes: Axes, network: Facts, members: Sequence[str], groups: Mapping[str, int]) -> None:
    edges = network["edges"]
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(members)
    graph.add_edges_from((edge["author"], edge["reader"]) for edge in edges)
    at = _layout(graph)
    most = max((edge["tokens"] for edge in edges), default=0) or 1
    if len(edges) <= ARROWS:
        _arrows(axes, edges, at, most)
    else:
        _threads(axes, edges, at, most)
    _nodes(axes, edges, at, groups)
    axes.set_xlim(-1.25, 1.25)
    axes.set_ylim(-1.25, 1.25)
    axes.set_aspect("equal")
    tokens, ideas = (sum(edge[key] for edge in edges) for key in ("tokens", "ideas"))
    rounds = f"{network['first']}" * (network["first"] == network["last"])
    rounds = rounds or f"{network['first']}–{network['last']}"
    axes.set_title(
        f"{network['use']}, round{'s' * (not rounds.isdigit())} {rounds}: {len(edges):,} edges,\n"
        f"{ideas:,} readings, {tokens:,} tokens, at most {most:,} along an edge",
        fontsize=9,
    )


def _layout(graph: nx.DiGraph[str]) -> dict[str, Place]:
    """Layers from left to right where no ideas go round in a circle; else a circle, or springs."""
    n = graph.number_of_nodes()
    if nx.is_directed_acyclic_graph(graph) and graph.number_of_edges():
        layers = [
            sorted(layer, key=list(graph).index) for layer in nx.topological_generations(graph)
        ]
        return dict(_layered(layers))
    whole = graph.to_undirected()
    alike = len({degree for _, degree in graph.degree()}) == 1
    if n <= WRITTEN or alike or not nx.is_connected(whole):
        turn = [pi / 2 - 2 * pi * i / n for i in range(n)]
        return {node: (cos(a), sin(a)) for node, a in zip(graph, turn, strict=True)}
    found = nx.spring_layout(whole, seed=0, iterations=100)
    return {node: (float(x), float(y)) for node, (x, y) in found.items()}


def _layered(layers: Sequence[Sequence[str]]) -> Iterator[tuple[str, Place]]:
    for i, layer in enumerate(layers):
        x = -1 + 2 * i / max(1, len(layers) - 1)
        for j, node in enumerate(layer):
            yield node, (x, 1 - 2 * (j + 0.5) / len(layer))


def _arrows(axes: Axes, edges: Sequence[Facts], at: Mapping[str, Place], most: int) -> None:
    mutual = {(edge["reader"], edge["author"]) for edge in edges}
    for edge in edges:
        start, end = at[edge["author"]], at[edge["reader"]]
        bend = BEND if (edge["author"], edge["reader"]) in mutual else 0.0
        axes.add_patch(
            FancyArrowPatch(
                start, end, arrowstyle="-|>", mutation_scale=13, shrinkA=15, shrinkB=15,
                connectionstyle=f"arc3,rad={bend}", color="#7A7A7A",
                linewidth=0.6 + 2.4 * edge["tokens"] / most,
            )
        )  # fmt: skip
        if len(edges) <= WRITTEN and len(at) <= NAMED:
            x, y = _along(start, end, bend, 0.36)
            axes.text(
                x, y, f"{edge['tokens']:,} tokens\n{edge['ideas']:,} ideas", fontsize=7.5,
                ha="center", va="center", zorder=5,
                bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1, "alpha": 0.85},
            )  # fmt: skip


def _along(start: Place, end: Place, bend: float, t: float) -> Place:
    """A point of the curve that `arc3` draws: its control point lies beside the middle."""
    (x0, y0), (x1, y1) = start, end
    x, y = (x0 + x1) / 2 + bend * (y1 - y0), (y0 + y1) / 2 - bend * (x1 - x0)
    a, b, c = (1 - t) ** 2, 2 * t * (1 - t), t * t
    return a * x0 + b * x + c * x1, a * y0 + b * y + c * y1


def _threads(axes: Axes, edges: Sequence[Facts], at: Mapping[str, Place], most: int) -> None:
    """Too many edges for arrows: thin lines, the wider the more tokens either way."""
    tokens: dict[tuple[str, str], int] = {}
    for edge in edges:
        pair = min(edge["reader"], edge["author"]), max(edge["reader"], edge["author"])
        tokens[pair] = max(tokens.get(pair, 0), edge["tokens"])
    faint = max(0.02, min(0.6, 120 / len(tokens)))
    axes.add_collection(
        LineCollection(
            [[at[a], at[b]] for a, b in tokens],
            linewidths=[0.4 + 1.6 * count / most for count in tokens.values()],
            colors="#7A7A7A",
            alpha=faint,
            rasterized=len(tokens) > HEAVY,
        )
    )


def _nodes(
    axes: Axes, edges: Sequence[Facts], at: Mapping[str, Place], groups: Mapping[str, int]
) -> None:
    heard = dict.fromkeys(at, 0)
    for edge in edges:
        heard[edge["author"]] += edge["tokens"]
    most = max(heard.values(), default=0) or 1
    big = 420 if len(at) <= NAMED else 90
    for group, number in groups.items():
        own = [name for name in at if not group or group_of(name) == group]
        style = GROUPS[number]
        axes.scatter(
            [at[name][0] for name in own], [at[name][1] for name in own],
            s=[big * (0.25 + 0.75 * heard[name] / most) for name in own],
            c=style.color, marker=style.marker, edgecolors=PAPER, linewidths=0.8, zorder=4,
        )  # fmt: skip
        axes.plot([], [], style.marker, color=style.color, label=f"{group} ({len(own)})")
    for name in at if len(at) <= NAMED else ():
        x, y = at[name]
        below = y < -0.01
        axes.annotate(one_line(name, 16), (x, y), (0, -13 if below else 13), fontsize=9,
                      textcoords="offset points", ha="center", va="top" if below else "bottom",
                      zorder=6)  # fmt: skip
