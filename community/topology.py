"""Who reads whom: a name in a recipe -> a networkx graph over the members.

An edge (reader, author) means that `reader` reads the ideas of `author`. A topology is a
function of the members, in their order, with options that have defaults; those that draw at
random take a `seed`, those that change from round to round a `round`. It decides nothing else:
which ideas are compared does not depend on it.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any
from xml.etree.ElementTree import ParseError

import networkx as nx

from community.errors import CommunityError, unknown

Topology = Callable[..., "nx.DiGraph[str]"]
Entry = tuple[int, str, Mapping[str, Any]]  # (from this round on, topology, its options)


def build(
    name: str | Topology, members: Sequence[str], seed: int = 0, n: int = 1, /, **options: Any
) -> nx.DiGraph[str]:
    """The graph over the members that the named topology (or one of your own) makes.

    `seed` is passed on to topologies that draw at random, and `n`, the round, to those that take
    a `round`. CommunityError for an unknown name or option, an impossible value, or a graph with
    nodes that are no members; no member reads itself, and an undirected graph is read both ways.
    """
    if isinstance(name, str):
        key = name.replace("-", "_").replace(" ", "_")
        if key not in TOPOLOGIES:
            raise unknown("topology", name, TOPOLOGIES)
        function = TOPOLOGIES[key]
    else:
        function, name = name, getattr(name, "__name__", "given")
    given = inspect.signature(function).parameters
    filled = {"seed": seed, "round": n}
    known = {
        option: p.default
        for option, p in list(given.items())[1:]
        if option not in filled and p.kind is not p.VAR_KEYWORD  # as networkx's generators have
    }
    for option, value in options.items():
        if option not in known:
            raise unknown(f"option of topology {name}", option, known)
        _check_type(name, option, value, known[option])
    for option in known.keys() - options.keys():
        if known[option] is inspect.Parameter.empty:
            raise CommunityError(f"topology {name} needs the option {option}: give it a value")
    options |= {option: value for option, value in filled.items() if option in given}
    graph: object = function(list(members), **options)
    if not isinstance(graph, nx.Graph):
        raise CommunityError(f"topology {name} gave {graph!r}; it must give a networkx graph")
    strangers = sorted(map(str, set(graph) - set(members)))
    if strangers:
        raise _strangers(f"topology {name}", strangers)
    return _graph(members, graph.to_directed(as_view=True).edges())


def neighbours(graph: nx.DiGraph[str], reader: str) -> list[str]:
    """Whose ideas the reader reads, sorted."""
    return sorted(graph.successors(reader))


def at_round(schedule: Sequence[Entry], n: int) -> tuple[str, Mapping[str, Any]]:
    """The topology in force in round n and its options: the latest that started by then."""
    started = [entry for entry in schedule if entry[0] <= n]
    if not started:
        raise CommunityError(f"no topology is scheduled for round {n}: start one by then")
    _, name, options = max(started, key=lambda entry: entry[0])
    return name, options


def ring(members: Sequence[str]) -> nx.DiGraph[str]:
    """Everyone reads the member before and the member after, in a circle."""
    return _numbered(members, nx.cycle_graph(len(members)))


def complete(members: Sequence[str]) -> nx.DiGraph[str]:
    """Everyone reads everyone."""
    return _numbered(members, nx.complete_graph(len(members)))


def star(members: Sequence[str]) -> nx.DiGraph[str]:
    """The first member reads everyone and everyone reads it, and nobody else."""
    return _numbered(members, nx.star_graph(len(members) - 1))


def path(members: Sequence[str]) -> nx.DiGraph[str]:
    """Everyone reads the member before and the member after, in a line."""
    return _numbered(members, nx.path_graph(len(members)))


def tree(members: Sequence[str], branching: int = 2) -> nx.DiGraph[str]:
    """Everyone reads its parent and its `branching` children, the first member at the root."""
    _check("tree", branching=(branching, branching >= 1, "1 or more"))
    return _numbered(members, nx.full_rary_tree(branching, len(members)))


def small_world(
    members: Sequence[str], neighbours: int = 4, rewire: float = 0.1, seed: int = 0
) -> nx.DiGraph[str]:
    """A ring of near neighbours, some of whose links go anywhere (Watts and Strogatz, 1998).

    Every member starts with `neighbours` links (an even number; all members if there are not so
    many); each moves with probability `rewire`. Connected.
    """
    even = neighbours >= 2 and neighbours % 2 == 0
    _check("small_world", neighbours=(neighbours, even, "an even number, 2 or more"))
    _check("small_world", rewire=(rewire, 0 <= rewire <= 1, "from 0 to 1"))
    n = len(members)
    if neighbours >= n - 1:
        return complete(members)
    try:
        graph = nx.connected_watts_strogatz_graph(n, neighbours, rewire, 1000, Random(seed))
    except nx.NetworkXError:
        raise CommunityError(
            f"no connected small world of {n} members was found with neighbours = {neighbours} "
            f"and rewire = {rewire}: raise neighbours or lower rewire"
        ) from None
    return _numbered(members, graph)


def scale_free(members: Sequence[str], links: int = 2, seed: int = 0) -> nx.DiGraph[str]:
    """A few hubs and many with few links: each newcomer links to the well linked.

    Preferential attachment (Barabási and Albert, 1999) with `links` links per newcomer. Connected.
    """
    _check("scale_free", links=(links, links >= 1, "1 or more"))
    n = len(members)
    if links >= n - 1:
        return complete(members)
    return _numbered(members, nx.barabasi_albert_graph(n, links, Random(seed)))


def regular(members: Sequence[str], density: float = 0.5, seed: int = 0) -> nx.DiGraph[str]:
    """Everyone reads the same number of others, drawn at random: a `density` share of them.

    The degree is density * (n - 1), rounded to the nearest that n members can have.
    """
    _check("regular", density=(density, 0 <= density <= 1, "from 0 to 1"))
    n = len(members)
    possible = [k for k in range(n) if n * k % 2 == 0]
    degree = min(possible, key=lambda k: (abs(k - density * (n - 1)), -k), default=0)
    sparse = min(degree, n - 1 - degree)  # dense ones are drawn by what is missing
    graph = nx.random_regular_graph(sparse, n, Random(seed)) if sparse > 0 else nx.empty_graph(n)
    return _numbered(members, graph if sparse == degree else nx.complement(graph))


def bipartite(members: Sequence[str], share: float = 0.5) -> nx.DiGraph[str]:
    """Two camps: each member reads all of the other camp and none of its own.

    The first camp has a `share` of the members; both have at least one if there are two.
    """
    _check("bipartite", share=(share, 0 < share < 1, "between 0 and 1"))
    n = len(members)
    first = min(max(round(share * n), 1), max(n - 1, 1))
    return _numbered(members, nx.complete_multipartite_graph(first, n - first))


def layered(members: Sequence[str], layers: int = 3) -> nx.DiGraph[str]:
    """Mixture of agents: each layer reads all of the layer before; the first reads nobody.

    Wang et al., "Mixture-of-Agents Enhances Large Language Model Capabilities", 2024,
    arXiv:2406.04692. The members are cut into `layers` layers as even as can be, in order.
    """
    _check("layered", layers=(layers, layers >= 1, "1 or more"))
    n, depth = len(members), min(layers, len(members))
    cut = [members[i * n // depth : (i + 1) * n // depth] for i in range(depth)]
    pairs = zip(cut[1:], cut[:-1], strict=True)
    return _graph(members, ((r, a) for later, earlier in pairs for r in later for a in earlier))


def random(members: Sequence[str], density: float = 0.2, seed: int = 0) -> nx.DiGraph[str]:
    """Everyone reads each other member with probability `density`, not always mutually."""
    _check("random", density=(density, 0 <= density <= 1, "from 0 to 1"))
    graph = nx.fast_gnp_random_graph(len(members), density, Random(seed), directed=True)
    return _numbered(members, graph)


def file(members: Sequence[str], path: str = "") -> nx.DiGraph[str]:
    """The graph in a file: .graphml, .json (node-link), .edges or .txt ("reader author" lines).

    An undirected graph is read as mutual; members that are not in the file read nobody; what
    reads itself does not. CommunityError if the file is missing, unreadable, of another kind,
    without an edge, or names nodes that are no members.
    """
    source = Path(path)
    if source.suffix not in READERS:
        raise CommunityError(
            f"topology file {path!r} has none of the endings {', '.join(READERS)}: "
            "name a file of one of these kinds in the option path"
        )
    try:
        graph = READERS[source.suffix](source)
    except OSError as error:
        reason = error.strerror or error
        raise CommunityError(
            f"cannot read topology file {path!r} ({reason}): check path"
        ) from error
    except (ParseError, nx.NetworkXException, ValueError, KeyError, TypeError) as error:
        raise CommunityError(
            f"topology file {path!r} is no valid {source.suffix} graph ({error}): mend it"
        ) from error
    found = nx.relabel_nodes(graph, str).to_directed()
    if found.number_of_edges() == 0:
        raise CommunityError(f"the graph in {path!r} is empty: give it at least one edge")
    strangers = sorted(set(found) - set(members))
    if strangers:
        raise _strangers(f"the graph in {path!r}", strangers)
    return _graph(members, ((str(reader), str(author)) for reader, author in found.edges()))


def _read_json(source: Path) -> nx.Graph[Any]:
    """Node-link JSON, with its edges under `edges` or, as older networkx wrote them, `links`."""
    data = json.loads(source.read_text(encoding="utf-8"))
    if not isinstance(data, dict):
        raise ValueError("its top level is no object")
    return nx.node_link_graph(data, edges="links" if "links" in data else "edges")


def _read_edges(source: Path) -> nx.Graph[Any]:
    """One "reader author" a line; what follows them and what follows # is ignored."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    for number, line in enumerate(source.read_text(encoding="utf-8").splitlines(), 1):
        words = line.partition("#")[0].split()
        if len(words) == 1:
            raise ValueError(f"line {number} names a reader but no author")
        if words:
            graph.add_edge(words[0], words[1])
    return graph


READERS: dict[str, Callable[[Path], nx.Graph[Any]]] = {
    ".graphml": nx.read_graphml,
    ".json": _read_json,
    ".edges": _read_edges,
    ".txt": _read_edges,
}

TOPOLOGIES: dict[str, Topology] = {
    function.__name__: function
    for function in (
        ring, complete, star, path, tree, small_world, scale_free, regular, bipartite, layered,
        random, file,
    )
}  # fmt: skip


def _graph(members: Sequence[str], edges: Iterable[tuple[str, str]]) -> nx.DiGraph[str]:
    """The directed graph over the members, in their order, without self-loops."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(members)
    graph.add_edges_from((reader, author) for reader, author in edges if reader != author)
    return graph


def _numbered(members: Sequence[str], graph: nx.Graph[int]) -> nx.DiGraph[str]:
    """The same for a graph over 0..n-1; an undirected one is read both ways."""
    edges = ((members[a], members[b]) for a, b in graph.to_directed(as_view=True).edges())
    return _graph(members, edges)


def _check(topology: str, **values: tuple[float, bool, str]) -> None:
    """CommunityError for the first (value, is it right?, what is right) that is not right."""
    for name, (value, right, rule) in values.items():
        if not right:
            raise CommunityError(f"{name} of topology {topology} must be {rule}, not {value}")


def _check_type(topology: str, option: str, value: Any, default: Any) -> None:
    """CommunityError for a value of another type than the default; whole numbers do for float."""
    wanted = {int: (int,), float: (int, float), str: (str,)}.get(type(default))
    if wanted and (isinstance(value, bool) or not isinstance(value, wanted)):
        kind = {int: "a whole number", float: "a number", str: "a text"}[type(default)]
        raise CommunityError(f"{option} of topology {topology} must be {kind}, not {value!r}")


def _strangers(where: str, names: Sequence[str]) -> CommunityError:
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return CommunityError(
        f"{where} names {shown}, who are not members: rename or remove these nodes, or add members"
    )
