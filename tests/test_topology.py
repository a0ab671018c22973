"""Who reads whom: what each topology promises, for any number of members."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from community.errors import CommunityError
from community.plugins import available
from community.topology import TOPOLOGIES, at_round, build, neighbours

DRAWN = [name for name in TOPOLOGIES if name != "file"]
CONNECTED = ["ring", "complete", "star", "path", "tree", "small_world", "scale_free", "bipartite"]
MUTUAL = [*CONNECTED, "regular"]

sizes = st.integers(1, 12)
seeds = st.integers(0, 2**63 - 1)


def names(n: int) -> list[str]:
    return [f"member-{(7 * i) % 13}" for i in range(n)]  # not sorted


def degrees(graph: nx.DiGraph[str]) -> list[int]:
    return sorted(d for _, d in graph.out_degree())


@pytest.mark.parametrize("name", DRAWN)
@given(n=sizes, seed=seeds)
def test_nodes_are_the_members_and_the_seed_decides(name: str, n: int, seed: int) -> None:
    graph = build(name, names(n), seed)
    assert list(graph) == names(n)
    assert nx.number_of_selfloops(graph) == 0
    assert list(graph.edges()) == list(build(name, names(n), seed).edges())
    if name in MUTUAL:
        assert all(graph.has_edge(author, reader) for reader, author in graph.edges())
    if name in CONNECTED:
        assert nx.is_strongly_connected(graph)


@given(n=sizes)
def test_degrees(n: int) -> None:
    members = names(n)
    assert degrees(build("ring", members)) == [min(2, n - 1)] * n
    assert degrees(build("complete", members)) == [n - 1] * n
    assert sorted(degrees(build("star", members)))[-1] == n - 1
    assert build("star", members).out_degree(members[0]) == n - 1
    for tree in (build("path", members), build("star", members), build("tree", members)):
        assert tree.number_of_edges() == 2 * (n - 1)
    assert max(degrees(build("tree", members, branching=3))) <= 4
    assert max(degrees(build("path", members))) <= 2


@given(n=sizes, seed=seeds, density=st.floats(0, 1))
def test_everyone_in_a_regular_graph_reads_as_many(n: int, seed: int, density: float) -> None:
    found = set(degrees(build("regular", names(n), seed, density=density)))
    assert len(found) == 1
    assert abs(found.pop() - density * (n - 1)) <= 1


@given(n=sizes, share=st.floats(0.01, 0.99))
def test_camps_of_a_bipartite_graph_read_each_other_only(n: int, share: float) -> None:
    graph = build("bipartite", names(n), share=share)
    assert nx.is_bipartite(graph.to_undirected())
    assert graph.number_of_edges() > 0 or n == 1


@given(n=sizes, layers=st.integers(1, 5))
def test_a_layer_reads_all_of_the_layer_before(n: int, layers: int) -> None:
    members = names(n)
    graph = build("layered", members, layers=layers)
    assert nx.is_directed_acyclic_graph(graph)
    depth = nx.dag_longest_path_length(graph) + 1 if graph.number_of_edges() else 1
    assert depth == min(layers, n)
    generations = list(nx.topological_generations(graph.reverse()))
    assert all(
        set(neighbours(graph, reader)) == set(earlier)
        for earlier, later in pairwise(generations)
        for reader in later
    )
    sizes = [len(g) for g in generations]
    assert max(sizes) - min(sizes) <= 1


def test_random_is_as_dense_as_asked() -> None:
    graph = build("random", [str(i) for i in range(200)], 5, density=0.3)
    assert nx.density(graph) == pytest.approx(0.3, abs=0.02)
    assert any(not graph.has_edge(b, a) for a, b in graph.edges())
    assert build("random", names(9), density=0).number_of_edges() == 0
    assert degrees(build("random", names(9), density=1)) == [8] * 9


def test_a_scale_free_graph_has_hubs_and_a_small_world_short_cuts() -> None:
    members = [str(i) for i in range(2000)]
    hubs = build("scale_free", members, 1)
    assert max(degrees(hubs)) > 10 * degrees(hubs)[1000]
    small = build("small_world", members, 1, neighbours=6, rewire=0.2)
    assert small.number_of_edges() == 2000 * 6
    far = max(nx.single_source_shortest_path_length(small, "0").values())
    assert far < 15 < 2000 / 6


@pytest.mark.parametrize("name", ["ring", "star", "path", "tree", "scale_free", "layered"])
def test_two_thousand_members(name: str) -> None:
    members = [f"m{i}" for i in range(2000)]
    options: dict[str, Any] = {"layers": 200} if name == "layered" else {}
    graph = build(name, members, 3, **options)
    assert len(graph) == 2000
    assert graph.number_of_edges() < 30_000


def test_seeds_differ_and_hash_order_does_not_matter() -> None:
    random = ["small_world", "scale_free", "regular", "random"]
    members = [f"m{i}" for i in range(30)]
    for name in random:
        assert set(build(name, members, 1).edges()) != set(build(name, members, 2).edges())
    code = (
        "from community.topology import build\n"
        f"print([list(build(n, {members!r}, 2**62).edges()) for n in {random!r}])"
    )
    root = str(Path(__file__).parents[1])
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": root},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1


def test_neighbours_are_sorted_and_names_may_be_spelled_with_spaces() -> None:
    members = names(12)
    graph = build("small world", members, 1)
    assert set(graph.edges()) == set(build("small-world", members, 1).edges())
    assert neighbours(graph, members[0]) == sorted(graph.successors(members[0]))
    assert neighbours(build("layered", members), members[0]) == []


def write(folder: Path, suffix: str, edges: list[tuple[str, str]]) -> Path:
    graph = nx.DiGraph(edges)
    file = folder / f"graph{suffix}"
    if suffix == ".graphml":
        nx.write_graphml(graph, file)
    elif suffix == ".json":
        file.write_text(json.dumps(nx.node_link_data(graph, edges="edges")))
    else:
        file.write_text("# reader author\n\n" + "".join(f"{r} {a} # why\n" for r, a in edges))
    return file


@pytest.mark.parametrize("suffix", [".graphml", ".json", ".edges", ".txt"])
def test_a_file_says_who_reads_whom(tmp_path: Path, suffix: str) -> None:
    file = write(tmp_path, suffix, [("a", "b"), ("b", "c"), ("c", "c")])
    graph = build("file", ["c", "b", "a", "absent"], path=str(file))
    assert set(graph.edges()) == {("a", "b"), ("b", "c")}
    assert neighbours(graph, "absent") == []
    with pytest.raises(CommunityError, match="names c, who are not members"):
        build("file", ["a", "b"], path=str(file))


def test_an_undirected_file_is_read_both_ways(tmp_path: Path) -> None:
    file = tmp_path / "g.json"
    file.write_text(json.dumps(nx.node_link_data(nx.path_graph(3), edges="links")))
    graph = build("file", ["0", "1", "2"], path=str(file))
    assert set(graph.edges()) == {("0", "1"), ("1", "0"), ("1", "2"), ("2", "1")}


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("missing.graphml", None, "cannot read topology file"),
        ("missing.json", None, "cannot read topology file"),
        ("graph.dot", "a -> b", "none of the endings"),
        ("graph.graphml", "<graphml", "no valid .graphml graph"),
        ("graph.graphml", "<svg></svg>", "no valid .graphml graph"),
        ("graph.json", "{", "no valid .json graph"),
        ("graph.json", "[1, 2]", "no valid .json graph"),
        ("graph.json", '"a"', "no valid .json graph"),
        ("graph.json", '{"nodes": [{"id": "a"}], "edges": [{"source": "a"}]}', "no valid .json"),
        ("graph.json", '{"nodes": [{"id": "a"}], "edges": []}', "is empty"),
        ("graph.edges", "a\n", "line 1 names a reader but no author"),
        ("graph.edges", "\x00\udcff", "no valid .edges graph"),
        ("graph.edges", "# nothing\n", "is empty"),
        ("", None, "none of the endings"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path: Path, file: str, text: str | None, says: str) -> None:
    if text is not None:
        (tmp_path / file).write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(CommunityError, match=says) as error:
        build("file", ["a", "b"], path=str(tmp_path / file) if file else "")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("smal_world", {}, "did you mean 'small_world'"),
        ("ring", {"k": 2}, "unknown option of topology ring 'k'"),
        ("small_world", {"rewrite": 2}, "did you mean 'rewire'"),
        ("small_world", {"neighbours": 3}, "even number"),
        ("small_world", {"rewire": 1.5}, "from 0 to 1"),
        ("scale_free", {"links": 0}, "1 or more"),
        ("regular", {"density": -0.1}, "from 0 to 1"),
        ("random", {"density": 2}, "from 0 to 1"),
        ("bipartite", {"share": 1}, "between 0 and 1"),
        ("layered", {"layers": 0}, "1 or more"),
        ("tree", {"branching": 0}, "1 or more"),
        ("random", {"seed": 3}, "unknown option"),
        ("ring", {"members": []}, "unknown option"),
        ("tree", {"branching": 1.5}, "must be a whole number, not 1.5"),
        ("layered", {"layers": True}, "must be a whole number, not True"),
        ("random", {"density": "high"}, "must be a number, not 'high'"),
        ("file", {"path": 3}, "must be a text, not 3"),
    ],
)
def test_a_bad_name_or_option_is_one_sentence(
    name: str, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(CommunityError, match=says):
        build(name, names(8), 1, **options)


def test_ones_own_function_is_a_topology() -> None:
    def gossip(members: list[str], by: int = 1) -> nx.DiGraph[str]:
        return nx.DiGraph(zip(members, members[by:], strict=False))

    assert set(build(gossip, ["a", "b", "c"], by=2).edges()) == {("a", "c")}
    with pytest.raises(CommunityError, match="unknown option of topology gossip"):
        build(gossip, ["a", "b"], of=2)


def test_an_undirected_graph_of_ones_own_is_read_both_ways() -> None:
    def friends(members: list[str]) -> nx.Graph[str]:
        return nx.path_graph(members)

    assert set(build(friends, ["a", "b"]).edges()) == {("a", "b"), ("b", "a")}


def test_a_generator_of_networkx_is_a_topology() -> None:
    assert set(build(nx.path_graph, ["a", "b"]).edges()) == {("a", "b"), ("b", "a")}
    with pytest.raises(CommunityError, match="unknown option of topology path_graph"):
        build(nx.path_graph, ["a", "b"], backend_kwargs={})


def test_ones_own_function_that_gives_no_graph_of_members_is_named() -> None:
    def nothing(members: list[str]) -> None:
        return None

    def numbers(members: list[str], count: int) -> nx.Graph[int]:
        return nx.path_graph(count)

    with pytest.raises(CommunityError, match="topology nothing gave None; it must give a networkx"):
        build(nothing, ["a", "b"])  # type: ignore[arg-type]
    with pytest.raises(CommunityError, match="topology numbers names 0, 1, who are not members"):
        build(numbers, ["a", "b"], count=2)
    with pytest.raises(CommunityError, match="topology numbers needs the option count"):
        build(numbers, ["a", "b"])


def test_a_schedule_changes_the_topology_by_round() -> None:
    schedule = [(1, "ring", {}), (3, "small_world", {"neighbours": 2}), (5, "star", {})]
    assert [at_round(schedule, n)[0] for n in (1, 2, 3, 4, 5, 99)] == [
        "ring",
        "ring",
        "small_world",
        "small_world",
        "star",
        "star",
    ]
    assert at_round(schedule, 4)[1] == {"neighbours": 2}
    with pytest.raises(CommunityError, match="round 0"):
        at_round(schedule, 0)


def test_every_topology_has_its_line() -> None:
    lines = available("topology")
    assert list(lines) == list(TOPOLOGIES)
    assert all(line.endswith(".") and len(line) < 90 for line in lines.values())
