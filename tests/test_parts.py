"""A recipe becomes parts, or says which of its options is wrong before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from community.agents.scripted import ScriptedAgent
from community.agents.transformer import Shape
from community.arenas.arithmetic import ArithmeticArena
from community.config import Recipe, parse, read
from community.errors import CommunityError
from community.parts import arena_of, graph_of, router_of, rules_of, specs_of
from community.pool import build
from community.types import Idea

HERE = Path(__file__).parent
SHIPPED = sorted((HERE.parent / "runs").glob("*.toml"))
NAMES = ["ada-1", "ada-2", "bo"]


def recipe(**sections: Any) -> Recipe:
    members = [
        {"name": "ada", "use": "scripted", "count": 2, "error": 0.1},
        {"name": "bo", "use": "transformer", "shape": {"width": 16, "heads": 2}},
    ]
    return parse({"arena": {"use": "arithmetic", "reverse": True}, "members": members} | sections)


def refusal(part: Any, *arguments: Any) -> str:
    with pytest.raises(CommunityError) as caught:
        part(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_arena_has_its_options() -> None:
    arena = arena_of(recipe(), HERE)
    assert isinstance(arena, ArithmeticArena) and arena.reverse
    wrong = recipe(arena={"use": "arithmetic", "revers": True})
    assert "arena: revers: unknown key; did you mean 'reverse'?" in refusal(arena_of, wrong, HERE)
    strange = recipe(arena={"use": "arithmetik"})
    assert "did you mean 'arithmetic'?" in refusal(arena_of, strange, HERE)


def test_specs_are_all_it_takes_to_make_a_member() -> None:
    specs = specs_of(recipe(), HERE)
    assert [spec.name for spec in specs] == NAMES
    assert len({spec.seed for spec in specs}) == 3
    assert specs[0].options == {"error": 0.1}
    assert specs[2].options == {"shape": Shape(width=16, heads=2)}
    assert all(spec.arena_options == {"reverse": True} for spec in specs)
    agent = build(specs[0])
    assert isinstance(agent, ScriptedAgent) and (agent.name, agent.error) == ("ada-1", 0.1)
    assert specs_of(recipe(run={"seed": 1}), HERE)[0].seed != specs[0].seed


@pytest.mark.parametrize(
    ("member", "expected"),
    [
        ({"use": "scriptet"}, "unknown agent 'scriptet'; did you mean 'scripted'?"),
        ({"use": "scripted", "eror": 0.1}, "members.ada: eror: unknown key; did you mean 'error'?"),
        ({"use": "scripted", "error": "often"}, "members.ada: error: input should be a valid"),
        ({"use": "transformer", "shape": {"dept": 1}}, "members.ada: shape.dept: unknown key"),
        ({"use": "gone.py:Agent"}, "there is no file"),
    ],
)
def test_a_members_mistake_is_named(member: dict[str, Any], expected: str) -> None:
    wrong = recipe(members=[{"name": "ada"} | member])
    assert expected in refusal(specs_of, wrong, HERE)


def test_the_router_has_the_recipes_rules() -> None:
    found = router_of(recipe(router={"top_k": 2, "policy": "weakest", "explore": 0}), NAMES)
    assert (found.members, found.top_k, found.policy) == (tuple(NAMES), 2, "weakest")
    assert router_of(recipe(), NAMES).top_k is None  # 0: every one
    assert "top_k = 4 is impossible" in refusal(router_of, recipe(router={"top_k": 4}), NAMES)
    wrong = recipe(router={"policy": "weekest"})
    assert "did you mean 'weakest'?" in refusal(router_of, wrong, NAMES)


def test_the_graph_follows_the_schedule() -> None:
    schedule = [{"use": "complete"}, {"use": "star", "from_round": 3}]
    timed = recipe(topology=schedule)
    edges = [graph_of(timed, NAMES, n, HERE).number_of_edges() for n in (1, 2, 3, 9)]
    assert edges == [6, 6, 4, 4]


def test_a_topology_draws_from_the_runs_seed() -> None:
    def edges(seed: int) -> set[tuple[str, str]]:
        wanted = recipe(run={"seed": seed}, topology={"use": "small-world"})
        return set(graph_of(wanted, [str(i) for i in range(30)], 1, HERE).edges)

    assert edges(1) == edges(1) != edges(2)


def test_a_topology_that_takes_the_round_differs_from_round_to_round(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import networkx as nx\n\ndef apart(members, round):\n"
        "    return nx.DiGraph(zip(members, members[round:]))\n"
    )
    wanted = recipe(topology={"use": "own.py:apart"})
    read = [list(graph_of(wanted, NAMES, n, tmp_path).edges) for n in (1, 2, 3)]
    assert read == [[("ada-1", "ada-2"), ("ada-2", "bo")], [("ada-1", "bo")], []]


def test_a_graph_file_lies_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "who.txt").write_text("ada-1 ada-2\nbo ada-1\n")
    wanted = recipe(topology={"use": "file", "path": "who.txt"})
    graph = graph_of(wanted, NAMES, 1, tmp_path)
    assert set(graph) == set(NAMES) and graph.number_of_edges() >= 2
    assert "gone.txt" in refusal(
        graph_of, recipe(topology={"use": "file", "path": "gone.txt"}), NAMES, 1, tmp_path
    )
    wanted = recipe(topology={"use": "file", "path": 5})
    assert "path of topology file must be a text" in refusal(graph_of, wanted, NAMES, 1, tmp_path)


@pytest.mark.parametrize(
    ("topology", "expected"),
    [
        ({"use": "rign"}, "unknown topology 'rign'; did you mean 'ring'?"),
        ({"use": "small_world", "neigbours": 2}, "did you mean 'neighbours'?"),
        ({"use": "small_world", "neighbours": "many"}, "neighbours"),
        ({"use": "small_world", "neighbours": 3}, "must be an even number"),
    ],
)
def test_a_topologys_mistake_is_named(topology: dict[str, Any], expected: str) -> None:
    assert expected in refusal(graph_of, recipe(topology=topology), NAMES, 1, HERE)


def test_rules_hold_the_recipes_method() -> None:
    talk = recipe(run={"turns": 2}, judging={"pairs": 5, "judges": 1})
    found = rules_of(talk, HERE, lambda tasks: {"bo": 0.5})
    assert (found.turns, found.pairs, found.judges, found.trust([])) == (2, 5, 1, {"bo": 0.5})
    assert rules_of(talk, HERE).trust([]) == {}
    ideas = [Idea("t", name, "c", 1, 0, 0, "5", "5") for name in NAMES]
    majority = rules_of(recipe(ranking={"method": "majority"}), HERE)
    assert majority.rank(ideas, [], {}).method == "majority"
    wrong = recipe(ranking={"method": "bradley-tery"})
    assert "did you mean 'bradley-terry'?" in refusal(rules_of, wrong, HERE)


MINE = """
import networkx as nx
import numpy as np
from community.ranking import Fit

def latest(evidence, trust):
    place = np.arange(len(evidence.items), dtype=float)
    return Fit(place, place, place, place, {})

def chain(members):
    return nx.DiGraph(zip(members, members[1:]))
"""


SILENT = """
from community.arenas.arithmetic import ArithmeticArena

class Silent:
    name = "silent"
    verify = answer = rephrase = None

    def pose(self, split, seed, index, level):
        return ArithmeticArena().pose(split, seed, index, level)
"""


def test_an_arena_that_lacks_what_its_members_need(tmp_path: Path) -> None:
    (tmp_path / "silent.py").write_text(SILENT)
    members = [{"name": "bo", "use": "scripted"}]
    wanted = recipe(arena={"use": "silent.py:Silent"}, members=members)
    expected = "the arena silent has no solve, which members of kind scripted need"
    assert expected in refusal(specs_of, wanted, tmp_path)
    (tmp_path / "told.py").write_text(f"{SILENT}\n    solve = None\n")
    assert specs_of(recipe(arena={"use": "told.py:Silent"}, members=members), tmp_path)


def test_the_arena_fills_in_what_an_agent_takes_without_annotations(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text(
        "from community.agents.scripted import ScriptedAgent\n"
        "class Plain(ScriptedAgent):\n"
        "    def __init__(self, name, seed, solve, domain):\n"
        "        super().__init__(name, seed, solve=solve, domain=domain)\n"
        "def plain(name, seed, solve, domain):\n"
        "    return Plain(name, seed, solve, domain)\n"
    )
    members = [{"name": kind, "use": f"plain.py:{kind}"} for kind in ("Plain", "plain")]
    made = [build(spec) for spec in specs_of(recipe(members=members), tmp_path)]
    assert [agent.name for agent in made] == ["Plain", "plain"]


def test_an_agent_takes_a_name_and_a_seed(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "def seedless(name): ...\ndef nameless(seed): ...\ndef any(**options): ...\n"
    )
    for kind, lacks in ("seedless", "seed"), ("nameless", "name"):
        wanted = recipe(members=[{"name": "bo", "use": f"own.py:{kind}"}])
        expected = f"members of kind own.py:{kind} take no {lacks}"
        assert refusal(specs_of, wanted, tmp_path).startswith(expected)
    assert specs_of(recipe(members=[{"name": "bo", "use": "own.py:any"}]), tmp_path)


def test_a_ranker_and_a_topology_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "my-own.py").write_text(MINE)
    wanted = recipe(ranking={"method": "my-own.py:latest"}, topology={"use": "my-own.py:chain"})
    ideas = [Idea("t", name, "c", 1, 0, 0, x, x) for name, x in zip(NAMES, "132", strict=True)]
    ranking = rules_of(wanted, tmp_path).rank(ideas, [], {})
    assert ranking.method == "my-own.py:latest"
    assert [e.idea for e in ranking.entries] == [ideas[i].id for i in (1, 2, 0)]
    assert set(graph_of(wanted, NAMES, 1, tmp_path).edges) == {("ada-1", "ada-2"), ("ada-2", "bo")}
    assert "there is no file" in refusal(rules_of, wanted, tmp_path / "elsewhere")


@pytest.mark.parametrize(
    "path",
    [  # the model of smollm is converted where that was not done yet: up to a minute
        pytest.param(path, marks=[pytest.mark.slow] if path.stem == "smollm" else [])
        for path in SHIPPED
    ],
    ids=lambda path: path.stem,
)
def test_shipped_recipes_name_what_there_is(path: Path) -> None:
    shipped = read(path)
    if shipped.arena.use == "gym":
        pytest.importorskip("reasoning_gym", reason="extra gym is not installed")
    names = [spec.name for spec in specs_of(shipped, path.parent)]
    assert names == [name for name, _ in shipped.roster()]
    arena = arena_of(shipped, path.parent)
    assert arena.pose("train", 0, 0, shipped.level(1)).prompt
    router_of(shipped, names)
    rules_of(shipped, path.parent)
    for topology in shipped.topology:
        graph = graph_of(shipped, names, topology.from_round, path.parent)
        assert set(graph) == set(names)
