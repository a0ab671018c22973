"""Who read whom and who learned from whom in a round, and at how many tokens."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import networkx as nx
from sqlalchemy import Select, func, select

from community.ledger import Ledger
from community.rows import mapping_of
from community.tables import edges, ideas, lessons, members, parents, rounds

Kind = Literal["readings", "lessons"]
KINDS: tuple[Kind, ...] = ("readings", "lessons")


@dataclass(frozen=True)
class Edge:
    """What went from `source` to `target` in a round."""

    source: str  # who said it
    target: str  # who read it, or is to learn it
    ideas: int
    tokens: int


@dataclass(frozen=True)
class Flow:
    """A round's network. Edges over which nothing went are among them, with no ideas."""

    round: int
    last: int  # the last round there is
    kind: Kind
    topology: str  # its name, where the recipe says so
    members: tuple[str, ...]
    edges: tuple[Edge, ...]  # most tokens first
    spent: Mapping[str, int]  # member -> tokens of its ideas in this round


def flow(ledger: Ledger, n: int | None = None, kind: Kind | None = None) -> Flow:
    """What went from member to member in round n, the last if None.

    `kind` None means readings where there are any, else lessons.
    """
    recipe = ledger.meta.get("recipe", {})
    with ledger.reading() as conn:
        names = conn.scalars(select(members.c.name).order_by(members.c.position)).all()
        last = conn.scalar(select(func.max(rounds.c.n))) or 0
        n = max(1, min(n or last, last))
        graph = select(edges.c.author, edges.c.reader).where(edges.c.round == n)
        known = [(author, reader) for author, reader in conn.execute(graph)]
        if kind is None:
            kind = "readings" if known or not last else "lessons"
        went = conn.execute(_readings(n) if kind == "readings" else _lessons(n))
        found = {(source, target): (count, tokens) for source, target, count, tokens in went}
        if kind == "readings":
            found = dict.fromkeys(known, (0, 0)) | found
        own = select(ideas.c.author, func.sum(ideas.c.tokens)).where(ideas.c.round == n)
        spent = mapping_of(conn, own.group_by(ideas.c.author))
    listed = [Edge(*pair, count, int(tokens or 0)) for pair, (count, tokens) in found.items()]
    listed.sort(key=lambda e: (-e.tokens, -e.ideas, e.source, e.target))
    schedule = recipe.get("topology", [])
    name = _topology(schedule, n) if known else ""
    return Flow(n, last, kind, name, tuple(names), tuple(listed), spent)


def _readings(n: int) -> Select[Any]:
    child, parent = ideas.alias("child"), ideas.alias("parent")
    query = select(parent.c.author, child.c.author, func.count(), func.sum(parent.c.tokens))
    joined = query.join_from(child, parents, parents.c.idea == child.c.row)
    joined = joined.join(parent, parents.c.parent == parent.c.row)
    other = parent.c.author != child.c.author
    return joined.where(child.c.round == n, other).group_by(parent.c.author, child.c.author)


def _lessons(n: int) -> Select[Any]:
    query = select(ideas.c.author, lessons.c.learner, func.count(), func.sum(ideas.c.tokens))
    joined = query.join_from(lessons, ideas, lessons.c.idea == ideas.c.row)
    return joined.where(lessons.c.round == n).group_by(ideas.c.author, lessons.c.learner)


def _topology(schedule: Sequence[Mapping[str, Any]], n: int) -> str:
    """The topology in force in round n, as the recipe calls it."""
    started = [entry for entry in schedule if entry.get("from_round", 1) <= n]
    latest = max(started, key=lambda entry: entry.get("from_round", 1), default={})
    return str(latest.get("use", ""))


# -- places --------------------------------------------------------------------------------

Places = dict[str, tuple[float, float]]  # member -> (x, y), each from 0 to 1
CIRCLE = 12
"""So many members are put on a circle."""
SPRING = 400
"""Edges that a layout by springs is made of, at most: the others hardly change it."""


def places(names: Sequence[str], found: Iterable[Edge]) -> Places:
    """Where to draw the members: in layers, on a circle, or where springs pull them."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(names)
    graph.add_edges_from((e.source, e.target) for e in found if e.source != e.target)
    if graph.number_of_edges() and nx.is_directed_acyclic_graph(graph):
        return _layered(graph)
    if len(names) <= CIRCLE or _is_ring(graph):
        return _circle(names if len(names) <= CIRCLE else _around(graph))
    return _spring(graph)


def _circle(names: Sequence[str]) -> Places:
    turn = 2 * math.pi / (len(names) or 1)
    return {
        name: (0.5 + 0.5 * math.sin(i * turn), 0.5 - 0.5 * math.cos(i * turn))
        for i, name in enumerate(names)
    }


def _is_ring(graph: nx.DiGraph[str]) -> bool:
    both = graph.to_undirected(as_view=True)
    return nx.is_connected(both) and all(degree == 2 for _, degree in both.degree())


def _around(graph: nx.DiGraph[str]) -> list[str]:
    """The members of a ring, one after the other."""
    return list(nx.dfs_preorder_nodes(graph.to_undirected(as_view=True)))


def _layered(graph: nx.DiGraph[str]) -> Places:
    layers = list(nx.topological_generations(graph))
    found: Places = {}
    for i, layer in enumerate(layers):
        x = i / (len(layers) - 1) if len(layers) > 1 else 0.5
        for j, name in enumerate(layer):
            found[name] = (x, (j + 0.5) / len(layer))
    return found


def _spring(graph: nx.DiGraph[str]) -> Places:
    thin: nx.Graph[str] = nx.Graph()
    thin.add_nodes_from(graph)
    step = max(1, graph.number_of_edges() // SPRING)
    thin.add_edges_from(list(graph.edges())[::step])
    at = nx.spring_layout(thin, seed=1, iterations=60)
    xs, ys = ([p[k] for p in at.values()] for k in (0, 1))
    wide, tall = (max(xs) - min(xs)) or 1.0, (max(ys) - min(ys)) or 1.0
    return {
        name: (float((p[0] - min(xs)) / wide), float((p[1] - min(ys)) / tall))
        for name, p in at.items()
    }
