"""Search against a filter that looks at every idea, with the index and without it."""

from __future__ import annotations

import itertools
import random
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_rounds import AGENTS, MEMBERS, META, make_ledger, make_old, make_round
from sqlalchemy import inspect, text

from community import search as searching
from community import tables, textindex
from community.errors import CommunityError
from community.ledger import Ledger
from community.search import Found, Query, count, needles, search
from community.types import Idea, Lesson, Ranked, Ranking, Round, Task

SORTS = ("round", "strength", "arena", "author")
WORDS = ("12+34=46", "carry the one", "Éclair é", "a%b_c", 'say "so"', "数学は", "x\x00y z", "zz")


def small(text: str) -> str:
    return "".join(c.lower() if c.isascii() else c for c in text)


def matches(found: Found, query: Query) -> bool:
    """What search promises, said in Python."""
    texts = [small(x) for x in (found.text, found.answer, found.task)]
    return (
        all(any(needle in x for x in texts) for needle in needles(query.text))
        and query.author in ("", found.author)
        and query.arena in ("", found.arena, found.domain)
        and query.first <= found.round <= (query.last or found.round)
    )


def brute(rounds: list[Round], query: Query) -> list[Found]:
    """All that a query wants, in its order."""
    everything: list[Found] = []
    posed: dict[str, Task] = {}
    for round in rounds:
        posed |= {task.id: task for task in round.tasks}
        entries = {e.idea: e for e in round.ranking.entries}
        for i in round.ideas:
            task, entry = posed[i.task], entries.get(i.id)
            place, strength = (entry.place, entry.strength) if entry else (None, None)
            facts = (task.arena, task.domain, task.level, i.turn, task.prompt, i.answer, i.text)
            found = Found(i.id, i.round, i.author, *facts, place, strength, i.failure)
            everything.append(found)
    rows = {found.id: row for row, found in enumerate(everything)}

    def key(found: Found) -> tuple[object, ...]:
        own = {"arena": (found.arena, found.domain), "round": ()}
        return (*own.get(query.sort, (getattr(found, query.sort),)), rows[found.id])

    wanted = [found for found in everything if matches(found, query)]
    last = [f for f in wanted if query.sort == "strength" and f.strength is None]
    first = [f for f in wanted if f not in last]
    back = query.descending
    last.sort(key=lambda found: rows[found.id], reverse=back)
    return [*sorted(first, key=key, reverse=back), *last]


def make_rounds(seed: int, rounds: int = 3) -> list[Round]:
    """Rounds of odd texts, two arenas and strengths that repeat; some ideas are not ranked."""
    mix = random.Random(seed)
    made = []
    for n in range(1, rounds + 1):
        tasks = [
            Task(mix.choice(WORDS) + f" {n}.{k}", arena, domain, k, "train", n, k)
            for k, (arena, domain) in enumerate(
                [("sums", "add"), ("sums", "sub"), ("add", "chess")]
            )
        ]
        ideas = [
            Idea(task.id, mix.choice(AGENTS), "", n, 0, k, mix.choice(WORDS) * mix.randrange(3),
                 answer=mix.choice((*WORDS, "")))
            for task in tasks for k in range(6)
        ]  # fmt: skip
        entries = [
            Ranked(i.task, i.id, 1, mix.choice((-1.5, 0.0, 2.0)), 0.0, 0.0, 0, 0, 1.0, 1)
            for i in ideas if mix.random() < 0.8
        ]  # fmt: skip
        lesson = Lesson(n, "ann", ideas[0].task, ideas[0].id, "", "", "why")
        ranking = Ranking("none", tuple(entries), {})
        made.append(Round(n, tuple(tasks), tuple(ideas), (), ranking, (lesson,)))
    return made


@pytest.fixture(scope="module")
def rounds() -> list[Round]:
    return make_rounds(0, rounds=12)


@pytest.fixture(scope="module")
def places(rounds: list[Round], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same ledger with its index, as an older program left it, and then brought up to date."""
    folder = tmp_path_factory.mktemp("search")
    found = {name: folder / f"{name}.db" for name in ("new", "old", "renewed")}
    for place in found.values():
        with Ledger.create(place, META, MEMBERS) as ledger:
            for round in rounds:
                ledger.record(round)
    make_old(found["old"])
    make_old(found["renewed"])
    Ledger.open(found["renewed"]).close()
    return found


@pytest.fixture(params=["new", "old", "renewed", "many"])
def ledger(
    places: dict[str, Path], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Ledger]:
    """Read only. Where there are `many` ideas, none of the ways for few of them is taken."""
    if request.param == "many":
        monkeypatch.setattr(searching, "FEW", -1)
        monkeypatch.setattr(searching, "REACHES", (5,))
    place = places.get(request.param, places["new"])
    with Ledger.open(place, read_only=True) as ledger:
        with ledger.reading() as conn:
            assert textindex.exists(conn) == (request.param != "old")
        yield ledger


TEXTS = ("", "12+3", "2+", "=", "carry", '"the one" CARRY', "É", "é", "%", "_", "学", "数学", "x",
         "y z", "zz", "zzz", "absent", "12 one")  # fmt: skip


@pytest.mark.parametrize("sort", SORTS)
def test_every_order_and_filter(ledger: Ledger, rounds: list[Round], sort: searching.Order) -> None:
    filters = [
        Query(text, author, arena, first, last)
        for text, author, arena, (first, last) in itertools.product(
            TEXTS, ("", "bob"), ("", "add", "sub"), ((1, None), (4, 9), (30, None))
        )
    ]
    sizes = set()
    for number, query in enumerate(random.Random(sort).sample(filters, 60)):
        query = replace(query, sort=sort, descending=number % 2 == 0)
        expected = brute(rounds, query)
        assert search(ledger, query, limit=1000) == expected, query
        assert search(ledger, query, limit=4, offset=2) == expected[2:6], query
        assert count(ledger, query) == len(expected), query
        assert count(ledger, query, at_most=3) == min(3, len(expected))
        sizes.add(min(len(expected), 20))
    assert {0, 20} < sizes  # some found nothing, some much, some little


TYPED = st.text(st.sampled_from('"*^-+():{}\\%_ \x00\n.,AaND orNEARé数=12x\ud800'), max_size=12)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(TYPED, st.sampled_from(SORTS), st.booleans())
def test_nothing_that_is_typed_is_an_error(
    places: dict[str, Path], typed: str, sort: searching.Order, back: bool
) -> None:
    query, rounds = Query(typed, sort=sort, descending=back), make_rounds(0, rounds=12)
    for name in ("new", "old"):
        with Ledger.open(places[name], read_only=True) as ledger:
            assert search(ledger, query, limit=1000) == brute(rounds, query)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 10**6), st.lists(st.text(min_size=1, max_size=4), max_size=3))
def test_any_text_is_found(seed: int, typed: list[str]) -> None:
    rounds = make_rounds(seed, rounds=1)
    said = [replace(idea, text=f"{idea.text} {' '.join(typed)}") for idea in rounds[0].ideas]
    rounds[0] = replace(rounds[0], ideas=tuple(said), lessons=(), ranking=Ranking("none", (), {}))
    folder = tempfile.TemporaryDirectory()
    with folder, Ledger.create(f"{folder.name}/ledger.db", META, MEMBERS) as ledger:
        ledger.record(rounds[0])
        for needle in typed:
            query = Query(needle)
            assert search(ledger, query) == brute(rounds, query)


def test_words_and_phrases() -> None:
    assert needles('One "two three" one 4+5 ""') == ["one", "two three", "4+5"]
    assert needles(' "unclosed phrase') == ["unclosed", "phrase"]
    assert needles("") == []


def test_an_unknown_order_is_named(ledger: Ledger) -> None:
    with pytest.raises(CommunityError, match="not by 'beauty'"):
        search(ledger, Query(sort="beauty"))  # type: ignore[arg-type]


def test_an_old_ledger_is_read_as_it_is(tmp_path: Path) -> None:
    place = tmp_path / "ledger.db"
    make_ledger(place).close()
    make_old(place)
    before = place.read_bytes()
    with Ledger.open(place, read_only=True) as ledger:
        assert ledger.round(2) == make_round(2)
        assert ledger.verify() == []
        assert len(search(ledger, Query("it is"))) == 36
    assert place.read_bytes() == before


def test_the_index_is_no_part_of_the_content(tmp_path: Path) -> None:
    place = tmp_path / "ledger.db"
    with make_ledger(place) as ledger:
        expected = ledger.content_hash()
    make_old(place)
    with Ledger.open(place, read_only=True) as ledger:
        assert ledger.content_hash() == expected
    with Ledger.open(place) as ledger:  # takes the step
        assert ledger.content_hash() == expected
        assert ledger.verify() == []
        with ledger.reading() as conn:
            assert inspect(conn).has_table(textindex.NAME)
        ledger.record(make_round(4))
        assert len(search(ledger, Query('"4 + 1 ="'))) == 6


def test_sqlite_without_trigrams_goes_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(textindex, "possible", lambda conn: False)
    with make_ledger(tmp_path / "ledger.db") as ledger:
        with ledger.reading() as conn:
            assert not textindex.exists(conn)
            version = conn.scalar(text("SELECT value FROM meta WHERE key = 'schema'"))
            assert version == str(len(tables.MIGRATIONS))
        assert len(search(ledger, Query("it is"))) == 36


def test_a_round_that_is_not_recorded_is_not_found(tmp_path: Path) -> None:
    with make_ledger(tmp_path / "ledger.db", rounds=1) as ledger:
        round = make_round(2)
        stranger = replace(round.lessons[-1], learner="nobody")
        with pytest.raises(Exception, match="FOREIGN KEY"):
            ledger.record(replace(round, lessons=(*round.lessons[:-1], stranger)))
        assert search(ledger, Query('"2 + 0"')) == []
        ledger.record(round)
        assert len(search(ledger, Query('"2 + 0"'))) == 6
