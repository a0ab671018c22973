"""Plots show what the figures say, are the same every time, and survive whatever members say."""

from __future__ import annotations

import json
import re
import sqlite3
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import networkx as nx
import pytest
from command import CROWD, community, little_room, write_recipe
from matplotlib import rc_context
from talk import play_evil

from community import curves, heatmaps, networks
from community.canvas import encoded, settings
from community.errors import CommunityError
from community.figures import figures
from community.ledger import Ledger
from community.lineage import last_winner, lineage
from community.plots import CAPTIONS, pictures, plot, save
from community.trees import STEPS, _Tree

Facts = Mapping[str, Any]


@pytest.fixture(scope="module")
def facts(talked: Path) -> Facts:
    return figures(talked)


@pytest.fixture(scope="module")
def drawn(talked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every plot of the run as SVG."""
    folder = tmp_path_factory.mktemp("drawn")
    names = plot(talked, folder, "svg")
    assert names == [f"{name}.svg" for name in CAPTIONS]
    return folder


def texts(svg: bytes) -> list[str]:
    """All that is written in a picture."""
    root = ElementTree.fromstring(svg)
    return ["".join(e.itertext()) for e in root.iter("{http://www.w3.org/2000/svg}text")]


def written(drawn: Path, name: str) -> list[str]:
    return texts((drawn / f"{name}.svg").read_bytes())


def test_learning_says_what_is_drawn_and_in_which_units(drawn: Path, facts: Facts) -> None:
    said = written(drawn, "learning")
    total = sum(facts["holdout"]["tasks"].values())
    assert f"whole holdout, {total} tasks (band: two standard errors)" in said
    for label in ("exact match", "share right", "answers a task", "tokens",
                  "round (0 is the start)"):  # fmt: skip
        assert label in said
    for line in ("community", "best member", "mean member", "weakest member",
                 "majority (untrained)", "self-consistency"):  # fmt: skip
        assert line in said


def test_topology_writes_what_flowed_along_every_edge(drawn: Path, facts: Facts) -> None:
    said = "\n".join(written(drawn, "topology"))
    star, complete = facts["topology"]
    assert (star["use"], star["first"], star["last"]) == ("star", 1, 2)
    assert (complete["use"], len(star["edges"]), len(complete["edges"])) == ("complete", 4, 6)
    assert "star, rounds 1–2: 4 edges" in said and "complete, round 3: 6 edges" in said
    for edge in (*star["edges"], *complete["edges"]):
        assert edge["ideas"] > 0
        assert f"{edge['tokens']:,} tokens" in said and f"{edge['ideas']:,} ideas" in said
    assert all(said.count(name) == 2 for name in ("ann", "bob", "cy"))


def test_routing_writes_every_share_and_every_lesson(drawn: Path, facts: Facts) -> None:
    said = written(drawn, "routing")
    for domain in ("addition", "subtraction"):
        assert f"{domain}: share of tasks attempted" in said and f"{domain}: lessons taught" in said
    for entry in facts["routing"]:
        assert sum(entry["taught"].values()) == 0 or {
            str(n) for n in entry["taught"].values()
        } <= set(said)
        for n in entry["attempted"].values():
            assert f"{n / entry['posed']:.2f}" in said


def test_the_tree_holds_the_idea_what_it_read_and_what_it_taught(talked: Path) -> None:
    with Ledger.open(talked / "ledger.db", read_only=True) as ledger:
        wanted = next(
            row[0]
            for row in sqlite3.connect(talked / "ledger.db").execute(
                "SELECT i.id FROM lessons l JOIN ideas i ON l.idea = i.row JOIN parents p"
                " ON p.idea = i.row WHERE l.round = 2 ORDER BY l.row"
            )
        )
        found = lineage(ledger, wanted)
    tree = _Tree(found)
    assert nx.is_directed_acyclic_graph(tree.graph)
    assert set(tree.graph.predecessors(tree.root)) >= {
        f"idea {node.id}" for node in found.ancestors.ideas
    }
    lessons = [s for s in found.descendants.steps if s.facts["idea"] == found.idea.id]
    assert lessons and f"lesson {lessons[0].id}" in set(tree.graph.successors(tree.root))
    row_of = {key: n for n, row in tree.rows.items() for key in row}
    assert row_of[tree.root] == 0 and len(row_of) == tree.graph.number_of_nodes()
    assert all(row_of[a] < row_of[b] for a, b in tree.graph.edges)  # time goes down
    best = nx.DiGraph((a, b) for a, b, data in tree.graph.edges(data=True) if data["best"])
    assert max(dict(best.in_degree()).values()) == max(dict(best.out_degree()).values()) == 1
    assert min(row_of.values()) >= -2 * STEPS


def test_lineage_is_that_of_the_idea_asked_for(talked: Path, tmp_path: Path) -> None:
    with Ledger.open(talked / "ledger.db", read_only=True) as ledger:
        last, first = last_winner(ledger), ledger.lessons()[0].idea
    plot(talked, tmp_path, "svg", idea=first[:12])
    said = "\n".join(written(tmp_path, "lineage"))
    assert first != last and f"Lineage of idea {first[:10]}" in said
    assert f"idea {first[:8]}, round 1" in said
    with pytest.raises(CommunityError, match="no idea has an id that starts with 'zz'"):
        plot(talked, tmp_path / "other", "svg", idea="zz")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("form", ["png", "svg"])
def test_the_same_run_gives_the_same_bytes_in_any_process(
    talked: Path, tmp_path: Path, form: str
) -> None:
    with rc_context({"font.size": 30, "svg.fonttype": "path"}):  # a user's own settings
        plot(talked, tmp_path / "a", form)
    place, run = str(tmp_path / "b"), str(talked)
    assert community(tmp_path, "plot", run, "--to", place, "--format", form).code == 0
    for name in CAPTIONS:
        data = (tmp_path / "a" / f"{name}.{form}").read_bytes()
        assert data == (tmp_path / "b" / f"{name}.{form}").read_bytes()
        assert data.startswith(b"\x89PNG" if form == "png" else b"<?xml")
        assert not re.search(rb"20\d\d-\d\d-\d\d", data)


def test_what_there_is_nothing_to_draw_for_is_said(tmp_path: Path) -> None:
    assert community(tmp_path, "run", write_recipe(tmp_path, CROWD)).code == 0
    done = community(tmp_path, "plot", "tiny", "--to", str(tmp_path / "x"))
    assert done.code == 0 and "nothing to draw yet for: topology" in done.out
    names = {f"{name}.png" for name in CAPTIONS} - {"topology.png"}
    assert {path.name for path in (tmp_path / "x").iterdir()} == names


def test_a_full_disk_spoils_no_plot(talked: Path, tmp_path: Path) -> None:
    plot(talked, tmp_path, "svg")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    facts = figures(talked)
    for write in (
        lambda: save(pictures(facts, None, "png"), tmp_path / "new", False),
        lambda: save({name: data + bytes(50_000) for name, data in before.items()}, tmp_path, True),
    ):
        with little_room(10_000), pytest.raises(CommunityError, match="cannot write to"):
            write()
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "new").rmdir()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_whatever_members_say_is_drawn_as_text(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    run = play_evil(tmp_path)
    plot(run, tmp_path, "svg")
    said = " ".join(written(tmp_path, "lineage"))
    assert "<script>alert('$x^{')" in said and "…" in said
    assert "<script>" in " ".join(written(tmp_path, "routing"))
    plot(run, tmp_path, "png")
    assert not [w for w in recwarn if "Glyph" in str(w.message)]


def crowd(n: int, edges: list[tuple[str, str]]) -> dict[str, Any]:
    """Figures of n members of two tables, and a network."""
    members = [f"{'able' if i < n // 2 else 'weak'}-{i}" for i in range(n)]
    flowing = [
        {"reader": r, "author": a, "ideas": 1, "tokens": i} for i, (r, a) in enumerate(edges)
    ]
    network = {"use": "mine", "first": 1, "last": 2, "edges": flowing}
    sent = {"attempted": dict.fromkeys(members, 3), "taught": dict.fromkeys(members[: n // 2], 2)}
    return {
        "name": "many",
        "members": dict.fromkeys(members),
        "rounds": [{"round": 1}],
        "topology": [network] * 6,
        "routing": [{"round": 1, "domain": f"<d{i}> $x^{{", "posed": 4, **sent} for i in range(8)],
    }


def test_crowds_are_drawn_by_table_and_what_is_left_out_is_said() -> None:
    members = [*crowd(200, [])["members"]]
    facts = crowd(200, [(a, b) for a in members[:60] for b in members[60:120]])
    with settings():
        network = texts(encoded(networks.topology(facts), "svg"))
        routing = texts(encoded(heatmaps.routing(facts), "svg"))
    assert "many: who read whom; the first 4 of 6 topologies" in network
    assert {"able (100)", "weak (100)"} <= set(network) and "able-0" not in network
    assert {"able (100)", "weak (100)", "200", "0.75"} <= set(routing)  # lessons are added up
    assert "<d0> $x^{: lessons taught" in routing
    assert any("the 6 most posed of 8 domains" in text for text in routing)


def test_a_run_without_a_holdout_and_with_many_rounds_is_drawn(facts: Facts) -> None:
    rounds = [facts["rounds"][0] | {"round": n} for n in range(1, 301)]
    blind = {**facts, "rounds": rounds, "holdout_by_round": [], "holdout": {"tasks": {}}}
    blind |= {"baselines": {}}
    with settings(), warnings.catch_warnings():
        warnings.simplefilter("error")
        svg = encoded(curves.learning(blind), "svg")
    assert "exact match" not in texts(svg) and "share right" in texts(svg)
    assert svg.count(b"<use") < 300  # markers are thinned out where there are too many


def test_the_band_holds_the_share_and_stays_between_nothing_and_all() -> None:
    for p in (0.0, 0.3, 1.0):
        low, high = curves._bound(p, 8, -1), curves._bound(p, 8, 1)
        assert 0 <= low <= p <= high <= 1 and high - low > 0.2
    # 4 of 8: (4 + 1) / 10 and an error of sqrt(.25 / 10)
    assert curves._bound(0.5, 8, 1) == pytest.approx(0.5 + 2 * (0.25 / 10) ** 0.5)


@pytest.mark.parametrize("n", [1, 2, 13, 40])
def test_a_layout_has_a_place_for_everyone(n: int) -> None:
    for graph in (nx.cycle_graph(n), nx.path_graph(n), nx.star_graph(n - 1), nx.empty_graph(n)):
        whole = nx.relabel_nodes(graph.to_directed(), lambda i: f"m{i}")
        places = networks._layout(whole)
        assert list(places) == list(whole)
        assert len(set(places.values())) == n
        assert all(abs(x) <= 1.01 and abs(y) <= 1.01 for x, y in places.values())


def test_ideas_flow_from_left_to_right_where_there_are_layers() -> None:
    graph = nx.DiGraph([("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")])
    at = networks._layout(graph)
    assert at["a"][0] < at["b"][0] == at["c"][0] < at["d"][0]


def test_figures_of_json_hold_everything_that_is_drawn(talked: Path, facts: Facts) -> None:
    """`show --json` is enough to draw from."""
    done = community(talked.parent.parent, "show", "talk", "--json")
    told = json.loads(done.out)
    assert pictures(told, None, "svg") == pictures(facts, None, "svg")
    for member in told["members"].values():
        assert member["low"] <= member["strength"] <= member["high"]
        assert -1 <= member["reliability"] <= 1
        assert member.keys() >= {"lessons", "lessons_learned", "rollbacks", "checkpoints_kept"}
