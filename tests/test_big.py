"""The script behind `community.bench.ledger` makes whole ledgers; measures check results."""

from __future__ import annotations

from pathlib import Path

import pytest

from community.bench import big
from community.bench import ledger as bench
from community.ledger import Ledger
from community.lineage import relatives
from community.search import Query, count, search

IDEAS = 1_500  # of the first round; a tenth of its members talk over 200 turns


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("big") / "run"
    assert bench.ingest(folder, IDEAS).wall > 0
    return folder


def test_the_ledger_is_whole(folder: Path) -> None:
    with Ledger.open(folder / "ledger.db", read_only=True) as ledger:
        assert ledger.verify() == []
        assert [round.ideas for round in ledger.rounds()] == [IDEAS]
        last = ledger.round(1).ideas[big.LONG * big.MEMBERS // 10 - 1]
        assert last.turn == big.LONG - 1
        assert len(relatives(ledger, last.id)) > big.LONG
        assert count(ledger, Query()) == IDEAS
        assert all(big.COMMON in found.text for found in search(ledger, Query(big.COMMON)))


def test_the_measures_pass_their_own_checks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "REPEATS", 1)
    with Ledger.open(folder / "ledger.db", read_only=True) as ledger:
        searches = list(bench.searching(ledger))
        assert len(searches) == 2 * len(bench.SEARCHES)
        assert len(list(bench.ancestry(ledger))) == 3


def test_a_wrong_page_is_not_timed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "REPEATS", 1)
    monkeypatch.setattr(bench, "search", lambda ledger, query: search(ledger, query)[1:])
    ledger = Ledger.open(folder / "ledger.db", read_only=True)
    with ledger, pytest.raises(AssertionError, match="99 of 100"):
        list(bench.searching(ledger))
