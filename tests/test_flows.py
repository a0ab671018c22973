"""What flowed between whom, against counts by hand."""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt
from pathlib import Path

import pytest
from small_rounds import AGENTS, MEMBERS, META, make_ledger, make_round

from community import flows
from community.ledger import Ledger


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    """Three rounds of two tasks: everyone answers, reads both others once, and answers again."""
    with make_ledger(tmp_path_factory.mktemp("flows") / "ledger.db") as found:
        yield found


def test_what_flowed_along_the_edges(ledger: Ledger) -> None:
    (network,) = flows.networks(ledger)
    assert (network["first"], network["last"]) == (1, 3)
    assert [(e["reader"], e["author"]) for e in network["edges"]] == [
        (reader, author) for reader in AGENTS for author in AGENTS if reader != author
    ]
    # two tasks in each of three rounds; the k-th member's first answers have 5 + k tokens
    assert {e["ideas"] for e in network["edges"]} == {6}
    assert all(e["tokens"] == 6 * (5 + AGENTS.index(e["author"])) for e in network["edges"])


def test_another_topology_is_another_network_and_an_unread_edge_has_no_flow(tmp_path: Path) -> None:
    with Ledger.create(tmp_path / "ledger.db", META, MEMBERS) as found:
        for n in (1, 2, 3):
            turns = 2 if n < 3 else 1  # in round 3 nobody reads, whatever the topology says
            found.record(make_round(n, AGENTS if n == 1 else AGENTS[:2], turns=turns))
        first, second = flows.networks(found)
    assert (first["first"], first["last"], len(first["edges"])) == (1, 1, 6)
    assert (second["first"], second["last"]) == (2, 3)
    assert {(e["reader"], e["author"]) for e in second["edges"]} >= {("ann", "bob"), ("bob", "ann")}
    # ann's second answers read bob's first (and her own, which is no flow), for two tasks
    (edge,) = [e for e in second["edges"] if (e["reader"], e["author"]) == ("ann", "bob")]
    assert (edge["ideas"], edge["tokens"]) == (2, 12)


def test_who_attempted_and_who_was_taught(ledger: Ledger) -> None:
    found = flows.routing(ledger)
    assert [(r["round"], r["domain"], r["posed"]) for r in found] == [
        (n, "sum", 2) for n in (1, 2, 3)
    ]
    for r in found:
        assert r["attempted"] == dict.fromkeys(AGENTS, 2)
        assert r["taught"] == {AGENTS[(r["round"] + k) % 3]: 1 for k in (0, 1)}


def test_diversity_counts_different_answers(ledger: Ledger) -> None:
    assert flows.diversity(ledger) == {1: 1.0, 2: 1.0, 3: 1.0}


def test_a_members_strength_is_that_of_its_ideas(ledger: Ledger) -> None:
    # six ideas a task; the last to be said, cy's second, is first with strength 1, its other 1/4
    cy = flows.strengths(ledger, 3)["cy"]
    assert cy["strength"] == pytest.approx((1 + 1 / 4) / 2, abs=1e-3)
    assert cy["low"] == cy["high"] == cy["strength"]  # both tasks alike
    assert flows.strengths(ledger, 9) == {}


def test_the_interval_is_two_standard_errors_over_tasks(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with make_ledger(path, rounds=1) as found:
        with found.engine.begin() as conn:  # cy is as strong as 0 at one task and 2 at the other
            conn.exec_driver_sql(
                "UPDATE rankings SET strength = 2.0 * (task = (SELECT min(task) FROM rankings))"
            )
        cy = flows.strengths(found, 1)["cy"]
    error = 2 * sqrt(2) / sqrt(2)
    assert (cy["low"], cy["strength"], cy["high"]) == (1 - error, 1.0, 1 + error)
