"""The ledger: nothing lost, nothing leaked, the same hash wherever it is kept."""

from __future__ import annotations

import math
import os
import pwd
import random
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_rounds import (
    AGENTS,
    MEMBERS,
    META,
    checkpoint_of,
    fill,
    make_learning,
    make_ledger,
    make_old,
    make_round,
    make_task,
)
from sqlalchemy import (
    Column,
    Connection,
    MetaData,
    Table,
    Text,
    create_engine,
    inspect,
    select,
    text,
)

from community import database, tables
from community.config import parse
from community.errors import CommunityError
from community.folder import create
from community.ledger import Ledger
from community.search import Order, Query, count, search
from community.types import Checkpoint, Decoding, Idea, Learning, Lesson, Ranking, Round, Task

# -- round trips ---------------------------------------------------------------------------


def test_a_round_comes_back_as_it_was(tmp_path: Path) -> None:
    with make_ledger(tmp_path / "ledger.db") as ledger:
        assert [ledger.round(n) for n in (1, 2, 3)] == [make_round(n) for n in (1, 2, 3)]
    with Ledger.open(tmp_path / "ledger.db", read_only=True) as ledger:
        assert ledger.round(2) == make_round(2)
        assert ledger.verify() == []


def test_what_the_members_became_comes_back(tmp_path: Path) -> None:
    with make_ledger(tmp_path / "ledger.db", rounds=2) as ledger:
        learnings = [make_learning(n, make_round(n) if n else None) for n in range(3)]
        assert ledger.checkpoints() == [c for x in learnings for c in x.checkpoints]
        assert ledger.checkpoints("bob") == [x.checkpoints[1] for x in learnings]
        assert ledger.scores() == [s for x in learnings for s in x.scores]


# any character a model may sample: NUL and escapes included, lone surrogates cannot be hashed
TEXTS = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("\x00\x1bE0"))
FLOATS = st.floats(allow_nan=False)


@st.composite
def any_rounds(draw: st.DrawFn) -> Round:
    task = Task(draw(TEXTS), draw(TEXTS), draw(TEXTS), 1, "train", draw(st.integers(0, 2**63 - 1)),
                draw(st.integers(0, 2**31)), draw(TEXTS))  # fmt: skip
    how = Decoding(draw(FLOATS), draw(FLOATS), draw(st.integers(0, 999)), 1)
    idea = Idea(task.id, "ann", draw(TEXTS), 1, 0, 0, draw(TEXTS), draw(TEXTS), (), draw(TEXTS),
                draw(st.integers(0, 2**40)), draw(FLOATS), how, draw(TEXTS))  # fmt: skip
    lesson = Lesson(1, "bob", task.id, idea.id, draw(TEXTS), draw(TEXTS), "why", draw(FLOATS))
    ranking = Ranking("none", (), {"ann": draw(FLOATS)})
    return Round(1, (task,), (idea,), (), ranking, (lesson,), seconds=draw(FLOATS))


def check_lossless(place: str, round: Round) -> None:
    with Ledger.create(place, META, MEMBERS) as ledger:
        ledger.record(round)
        found = ledger.round(1)
        assert found == round
        assert [i.id for i in found.ideas] == [i.id for i in round.ideas]
        assert [x.id for x in found.lessons] == [x.id for x in round.lessons]
        problems = [p for p in ledger.verify() if "checkpoint" not in p]
        assert problems == []


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(any_rounds())
def test_every_text_and_number_survives(round: Round) -> None:
    with tempfile.TemporaryDirectory() as folder:
        check_lossless(f"{folder}/ledger.db", round)


def test_a_loss_below_nothing_by_a_sign_survives(tmp_path: Path) -> None:
    """-log(1) is -0.0, which no database gives back."""
    with Ledger.create(tmp_path / "ledger.db", META, MEMBERS) as ledger:
        sure = Checkpoint("c", "ann", 0, loss=-0.0, before=0.0, after=-0.0)
        ledger.learned(Learning(0, (sure,), ()))
        assert ledger.verify() == []


def test_what_is_not_a_number_survives(tmp_path: Path) -> None:
    with Ledger.create(tmp_path / "ledger.db", META, MEMBERS) as ledger:
        lost = Checkpoint("c", "ann", 0, loss=math.nan, before=None, after=-math.inf)
        ledger.learned(Learning(0, (lost,), ()))
        found = ledger.checkpoints()[0]
        assert found.loss is not None and math.isnan(found.loss)
        assert found.before is None and found.after == -math.inf
        assert ledger.verify() == []


def test_an_id_that_the_columns_would_not_give_back_is_refused(tmp_path: Path) -> None:
    round = make_round(1)
    whole = replace(round.ideas[0], logprob=0, parents=())  # 0 and 0.0 have different ids
    with Ledger.create(tmp_path / "ledger.db", META, MEMBERS) as ledger:
        with pytest.raises(TypeError, match="floats"):
            ledger.record(Round(1, round.tasks, (whole,), (), Ranking("none", (), {}), ()))
        with pytest.raises(ValueError, match="round 2 holds"):
            ledger.record(replace(round, n=2))


# -- questions -----------------------------------------------------------------------------


def test_questions_about_a_run(tmp_path: Path) -> None:
    with make_ledger(tmp_path / "ledger.db") as ledger:
        assert (ledger.last_round(), ledger.last_learning()) == (3, 3)
        assert ledger.meta == META
        assert list(ledger.members()) == list(AGENTS)
        assert ledger.members()["ann"] == MEMBERS[0][1]
        summary = ledger.rounds()[1]
        assert (summary.n, summary.tasks, summary.ideas, summary.lessons) == (2, 2, 12, 2)
        assert summary.tokens == sum(i.tokens for i in make_round(2).ideas) + 300
        assert summary.seconds == pytest.approx(2 / 3 + 1.5)
        spent = sum(i.tokens for n in (1, 2, 3) for i in make_round(n).ideas if i.author == "cy")
        assert ledger.tokens()["cy"] == spent + 4 * 100
        assert ledger.router_state(2)["round"] == 2
        assert ledger.router_state(9) == {}
        assert ledger.reliability()[1] == {**dict.fromkeys(AGENTS, 0.25), "world": 1.0}


def test_an_empty_ledger_has_answers_too(tmp_path: Path) -> None:
    with Ledger.create(tmp_path / "ledger.db", {}, []) as ledger:
        assert (ledger.last_round(), ledger.last_learning()) == (0, -1)
        assert (ledger.rounds(), ledger.tokens(), ledger.current_checkpoints()) == ([], {}, {})
        assert ledger.verify() == []
        with pytest.raises(CommunityError, match="no round 1"):
            ledger.round(1)


def test_lessons_by_learner_and_round(tmp_path: Path) -> None:
    with make_ledger(tmp_path / "ledger.db") as ledger:
        every = [x for n in (1, 2, 3) for x in make_round(n).lessons]
        assert ledger.lessons() == every
        assert ledger.lessons("bob") == [x for x in every if x.learner == "bob"]
        assert ledger.lessons(before=3) == every[:4]


def test_a_rolled_back_checkpoint_is_not_current(tmp_path: Path) -> None:
    with make_ledger(tmp_path / "ledger.db", rounds=1) as ledger:
        round = make_round(2)
        ledger.record(round)
        ledger.learned(make_learning(2, round, roll_back="bob"))
        current = ledger.current_checkpoints()
        assert current["bob"] == checkpoint_of("bob", 1)
        assert current["ann"] == checkpoint_of("ann", 2)
        assert len(ledger.checkpoints("bob")) == 3


def test_ideas_and_tasks_by_the_start_of_their_id(tmp_path: Path) -> None:
    with make_ledger(tmp_path / "ledger.db") as ledger:
        idea, task = make_round(2).ideas[7], make_task(2, 1)
        assert ledger.idea(idea.id) == idea == ledger.idea(idea.id[:12])
        assert ledger.task(task.id[:12]) == task
        with pytest.raises(CommunityError, match="no idea has an id that starts with"):
            ledger.idea("\udcff")
        with pytest.raises(CommunityError, match="no idea has an id that starts with 'zz'"):
            ledger.idea("zz")
        with pytest.raises(CommunityError, match="several ideas"):
            ledger.idea("")


def test_an_index_finds_an_id_in_a_new_ledger_and_in_a_renewed_one(tmp_path: Path) -> None:
    place = tmp_path / "ledger.db"
    make_ledger(place).close()
    for old in (False, True):
        if old:
            make_old(place)
        with Ledger.open(place) as ledger, ledger.reading() as conn:
            names = {index["name"] for index in inspect(conn).get_indexes("ideas")}
            assert "ideas_by_id" in names and "ideas_id" not in names
            wanted = select(tables.ideas.c.row).where(
                tables.with_ids(tables.ideas, tables.ideas.c.id == make_round(2).ideas[0].id)
            )
            asked = wanted.compile(conn, compile_kwargs={"literal_binds": True})
            plan = conn.exec_driver_sql(f"EXPLAIN QUERY PLAN {asked}").all()
            assert any("ideas_by_id (round=? AND id=?)" in step[-1] for step in plan), plan


# -- what must not be recorded -------------------------------------------------------------


def with_lesson_on(round: Round, task: Task) -> Round:
    """The round with a lesson on `task`, whatever the label of the task it poses says."""
    idea = replace(round.ideas[0], task=task.id)
    lesson = replace(round.lessons[0], task=task.id, idea=idea.id, rejected="")
    return Round(round.n, (task,), (idea,), (), Ranking("none", (), {}), (lesson,))


@pytest.mark.parametrize("split", ["validation", "holdout"])
def test_a_lesson_on_a_held_out_task_is_refused(tmp_path: Path, split: str) -> None:
    with make_ledger(tmp_path / "ledger.db", rounds=1) as ledger:
        before = ledger.content_hash()
        with pytest.raises(CommunityError, match=split):  # known from the round itself
            ledger.record(with_lesson_on(make_round(2), make_task(8, 0, split)))
        assert ledger.content_hash() == before

        ledger.reserve([make_task(9, 0, split)])
        ledger.reserve([make_task(9, 0, split)])
        before = ledger.content_hash()
        renamed = replace(make_task(9, 0), seed=1, index=5, level=4)  # same content, called train
        with pytest.raises(CommunityError, match=split):
            ledger.record(with_lesson_on(make_round(2), renamed))
        with pytest.raises(CommunityError, match=split):  # without any lesson
            ledger.record(Round(2, (renamed,), (), (), Ranking("none", (), {}), ()))
        assert (ledger.last_round(), ledger.content_hash()) == (1, before)


def test_held_out_tasks_may_be_played_but_not_taught(tmp_path: Path) -> None:
    with make_ledger(tmp_path / "ledger.db", rounds=1) as ledger:
        held = make_task(8, 0, "validation")
        silent = replace(with_lesson_on(make_round(2), held), lessons=())
        ledger.record(silent)
        assert ledger.round(2) == silent
        with pytest.raises(CommunityError, match="validation"):  # known from the round before
            ledger.record(with_lesson_on(make_round(3), make_task(8, 0)))
        assert "lesson" not in " ".join(ledger.verify())


def test_a_task_cannot_change_its_split(tmp_path: Path) -> None:
    with make_ledger(tmp_path / "ledger.db", rounds=1) as ledger:
        with pytest.raises(CommunityError, match="train"):  # taught already, too late to hold out
            ledger.reserve([make_task(1, 0, "holdout")])
        ledger.reserve([make_task(9, 0, "holdout")])
        with pytest.raises(CommunityError, match="holdout"):
            ledger.reserve([make_task(9, 0, "validation")])
        with pytest.raises(ValueError, match="only validation and holdout"):
            ledger.reserve([make_task(9, 1)])


def test_train_tasks_may_be_posed_again(tmp_path: Path) -> None:
    with make_ledger(tmp_path / "ledger.db", rounds=1) as ledger:
        again = replace(make_task(1, 0), seed=5, index=17)
        assert again.id == make_task(1, 0).id
        round = with_lesson_on(make_round(2), again)
        ledger.record(round)
        assert (ledger.round(1), ledger.round(2)) == (make_round(1), round)
        assert ledger.task(again.id) == make_task(1, 0)


def test_nothing_is_recorded_twice(tmp_path: Path) -> None:
    with make_ledger(tmp_path / "ledger.db", rounds=1) as ledger:
        with pytest.raises(CommunityError, match=r"round 1 is in .* already"):
            ledger.record(make_round(1))
        with pytest.raises(CommunityError, match=r"learning 1 is in .* already"):
            ledger.learned(make_learning(1))
        with pytest.raises(CommunityError, match="holds a ledger already"):
            Ledger.create(tmp_path / "ledger.db", META, MEMBERS)


def test_a_checkpoint_cannot_name_lessons_that_never_were(tmp_path: Path) -> None:
    with make_ledger(tmp_path / "ledger.db", rounds=1) as ledger:
        with pytest.raises(ValueError, match="lessons that no record holds"):
            ledger.learned(make_learning(2, make_round(2)))
        assert ledger.last_learning() == 1


# -- content hash --------------------------------------------------------------------------


def shuffled(round: Round, seed: int) -> Round:
    """The same round as another scheduler would have written it down."""
    mix = random.Random(seed)

    def any_order(items: tuple) -> tuple:  # type: ignore[type-arg]
        return tuple(mix.sample(items, len(items)))

    ranking = replace(
        round.ranking,
        entries=any_order(round.ranking.entries),
        reliability=dict(any_order(tuple(round.ranking.reliability.items()))),
    )
    return replace(
        round,
        tasks=any_order(round.tasks),
        ideas=any_order(round.ideas),
        verdicts=any_order(round.verdicts),
        ranking=ranking,
        lessons=any_order(round.lessons),
        edges=any_order(round.edges),
        seconds=mix.random(),
    )


def test_the_hash_is_that_of_the_content_alone(tmp_path: Path) -> None:
    with make_ledger(tmp_path / "one.db") as one:
        expected = one.content_hash()
    other_meta = {**META, "name": "elsewhere", "versions": {"torch": "2.11"}, "workers": 8}
    with Ledger.create(tmp_path / "two.db", other_meta, MEMBERS[::-1]) as two:
        for n in (1, 2, 3):  # rounds first, learning after, rows in another order
            two.record(shuffled(make_round(n), n))
        for n in (3, 1, 0, 2):
            learning = make_learning(n, make_round(n) if n else None)
            moved = tuple(replace(c, path=f"/elsewhere/{c.id}") for c in learning.checkpoints)
            two.learned(replace(learning, checkpoints=moved[::-1], seconds=9.0))
        assert two.content_hash() == expected
        assert two.verify() == []
        two.reserve([make_task(9, 0, "holdout")])
        assert two.content_hash() != expected


@pytest.mark.parametrize(
    "meta", [{**META, "seed": 8}, {**META, "recipe_hash": "other"}], ids=["seed", "recipe"]
)
def test_another_run_has_another_hash(tmp_path: Path, meta: dict[str, object]) -> None:
    one = Ledger.create(tmp_path / "one.db", META, MEMBERS)
    two = Ledger.create(tmp_path / "two.db", meta, MEMBERS)
    with one, two:
        assert one.content_hash() != two.content_hash()


CHANGES = {
    "a word of an idea": "UPDATE ideas SET text = 'other' WHERE row = 2",
    "a word of a task": "UPDATE tasks SET prompt = 'other' WHERE row = 2",
    "what a lesson teaches": "UPDATE lessons SET text = 'other' WHERE row = 2",
    "a verdict": "UPDATE verdicts SET score = 0.0 WHERE row = 3",
    "a place": "UPDATE rankings SET place = 9 WHERE row = 1",
    "trust in a judge": "UPDATE reliability SET value = 1 WHERE judge = 'bob' AND round = 2",
    "an edge": "DELETE FROM edges WHERE row = 4",
    "the router": "UPDATE rounds SET router = '{}' WHERE n = 2",
    "who read whom": "UPDATE parents SET parent = 3 WHERE idea = 5 AND position = 0",
    "a score": 'UPDATE scores SET "right" = 8 WHERE row = 1',
    "a checkpoint's fate": "UPDATE checkpoints SET kept = 0 WHERE row = 5",
    "what taught a checkpoint": "DELETE FROM taught WHERE lesson = 1",
    "tokens of learning": "UPDATE spent SET tokens = 1 WHERE purpose = 'learning' AND round = 1",
    "the seed": "UPDATE meta SET value = '8' WHERE key = 'seed'",
    "a reserved task": "DELETE FROM reserved",
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_any_change_of_a_row_is_found(tmp_path: Path, change: str) -> None:
    place = tmp_path / "ledger.db"
    with make_ledger(place) as ledger:
        ledger.reserve([make_task(9, 0, "holdout")])
        before = ledger.content_hash()
    tamper(place, change)
    with Ledger.open(place) as ledger:
        assert "changed" in " ".join(ledger.verify()) or "its id" in " ".join(ledger.verify())
        assert ledger.content_hash() != before


def tamper(place: Path, *statements: str) -> None:
    with sqlite3.connect(place) as conn:  # foreign keys are off by default
        for statement in statements:
            assert conn.execute(statement).rowcount != 0, "the change changed nothing"
    conn.close()


PROBLEMS = {
    "UPDATE ideas SET text = 'other' WHERE row = 2": r"idea \w+ of round 1 is not what its id says",
    "DELETE FROM lessons WHERE row = 1": "of taught refers to a row of lessons that does not exist",
    "DELETE FROM ideas WHERE row = 1": "refers to a row of ideas that does not exist",
    "DELETE FROM rounds WHERE n = 2": "round 2 is missing",
    "DELETE FROM learnings WHERE n = 1": "learning 1 is missing",
    "UPDATE spent SET tokens = 0 WHERE purpose = 'ideas'": "tokens counted for round 1",
    "INSERT INTO reserved SELECT id, 'holdout' FROM tasks WHERE row = 1": "is on a holdout task",
    "UPDATE tasks SET split = 'validation' WHERE row = 3": "posed as validation and not reserved",
    "DELETE FROM checkpoints WHERE row = 1": r"4 ideas name a checkpoint that is not recorded",
    "UPDATE lessons SET learner = 'ann'": "meant for ann",
    "UPDATE rounds SET router = '{' WHERE n = 2": "of round 2 cannot be read",
    "UPDATE verdicts SET score = 'x' WHERE row = 3": "of round 1 cannot be read",
    "UPDATE scores SET \"right\" = 'x' WHERE row = 1": "of learning 0 has been changed",
    "UPDATE meta SET value = '{' WHERE key = 'versions'": "the run's versions cannot be read",
    "UPDATE members SET spec = '3' WHERE name = 'bob'": "what member bob is made of cannot be read",
}


OTHERS = "the members are not those of the recipe, or in another order"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            """UPDATE meta SET value = replace(value, '"rounds":5', '"rounds":6')
            WHERE key = 'recipe'""",
            "the recipe is not the one that its hash says",
        ),
        ("""UPDATE members SET spec = replace(spec, '0.25', '0.75')""", OTHERS),
        ("UPDATE members SET position = 2 WHERE position = 0", OTHERS),
    ],
)
def test_a_recipe_that_is_not_what_its_hash_says_is_a_problem(
    tmp_path: Path, change: str, said: str
) -> None:
    pair = {"name": "ann", "use": "scripted", "count": 2, "error": 0.25}
    recipe = parse({"arena": {"use": "arithmetic"}, "members": [pair]})
    folder = tmp_path / "run"
    create(recipe, tmp_path, folder)
    with Ledger.open(folder / "ledger.db") as ledger:
        assert ledger.verify() == []
    tamper(folder / "ledger.db", change)
    with Ledger.open(folder / "ledger.db") as ledger:
        assert ledger.verify() == [said]


@pytest.mark.parametrize("change", PROBLEMS)
def test_each_kind_of_problem_is_named(tmp_path: Path, change: str) -> None:
    make_ledger(tmp_path / "ledger.db").close()
    tamper(tmp_path / "ledger.db", change)
    with Ledger.open(tmp_path / "ledger.db") as ledger:
        assert re.search(PROBLEMS[change], " | ".join(ledger.verify()))


UNREADABLE = {
    "UPDATE meta SET value = '{' WHERE key = 'versions'": lambda ledger: ledger.meta,
    "DELETE FROM meta WHERE key = 'seed'": lambda ledger: ledger.meta["seed"],
    "UPDATE meta SET value = 'x' WHERE key = 'schema'": lambda ledger: ledger,
    "UPDATE members SET spec = '3'": Ledger.members,
    "UPDATE rounds SET router = '[1' WHERE n = 2": lambda ledger: ledger.router_state(2),
    "UPDATE rounds SET router = '[]'": Ledger.content_hash,
    "UPDATE rounds SET seconds = 'long'": Ledger.rounds,
    "UPDATE ideas SET text = CAST(x'ff' AS TEXT)": lambda ledger: ledger.round(1),
}


@pytest.mark.parametrize("change", UNREADABLE)
def test_what_cannot_be_read_is_one_sentence(tmp_path: Path, change: str) -> None:
    make_ledger(tmp_path / "ledger.db").close()
    tamper(tmp_path / "ledger.db", change)
    with (
        pytest.raises(CommunityError, match=r"ledger\.db .*is damaged; restore a copy"),
        Ledger.open(tmp_path / "ledger.db", read_only=True) as ledger,
    ):
        UNREADABLE[change](ledger)


# -- migrations ----------------------------------------------------------------------------


def test_an_old_ledger_takes_the_steps_it_lacks_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "ledger.db"
    with make_ledger(place) as ledger:
        expected = ledger.content_hash()
    taken: list[str] = []
    mood = Table("ideas", MetaData(), Column("mood", Text, server_default="calm", nullable=False))

    def second(conn: Connection) -> None:
        taken.append("second")
        tables.add_column(conn, mood.c.mood)
        tables.add_column(conn, mood.c.mood)  # harmless where it is there already

    def third(conn: Connection) -> None:
        assert "mood" in {c["name"] for c in inspect(conn).get_columns("ideas")}
        taken.append("third")

    now = len(tables.MIGRATIONS)
    monkeypatch.setattr(tables, "MIGRATIONS", (*tables.MIGRATIONS, second, third))
    monkeypatch.setattr(tables, "READABLE", now + 1)
    with pytest.raises(CommunityError, match="older version"):
        Ledger.open(place, read_only=True)
    for _ in range(2):  # the second time there is nothing to do
        with Ledger.open(place) as ledger, ledger.reading() as conn:
            assert tables.schema_version(conn) == now + 2
            assert conn.scalar(text("SELECT min(mood) FROM ideas")) == "calm"
    with Ledger.open(place) as ledger:
        assert ledger.content_hash() == expected
    assert taken == ["second", "third"]
    with Ledger.create(tmp_path / "new.db", META, MEMBERS) as ledger, ledger.reading() as conn:
        assert tables.schema_version(conn) == now + 2


def test_a_failed_step_leaves_the_old_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "ledger.db"
    make_ledger(place).close()

    def fails(conn: Connection) -> None:
        conn.exec_driver_sql("CREATE TABLE half (x INTEGER)")
        raise ZeroDivisionError

    monkeypatch.setattr(tables, "MIGRATIONS", (*tables.MIGRATIONS, fails))
    with pytest.raises(ZeroDivisionError):
        Ledger.open(place)
    monkeypatch.undo()
    with Ledger.open(place) as ledger, ledger.reading() as conn:
        assert tables.schema_version(conn) == len(tables.MIGRATIONS)
        assert not inspect(conn).has_table("half")


def test_a_newer_ledger_is_refused(tmp_path: Path) -> None:
    make_ledger(tmp_path / "ledger.db", rounds=1).close()
    tamper(tmp_path / "ledger.db", "UPDATE meta SET value = '99' WHERE key = 'schema'")
    for read_only in (False, True):
        with pytest.raises(CommunityError, match=r"99.*update modelcommunity"):
            Ledger.open(tmp_path / "ledger.db", read_only)


# -- failures ------------------------------------------------------------------------------


def test_what_is_no_ledger_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CommunityError, match="there is no ledger at"):
        Ledger.open(tmp_path / "missing.db")
    (tmp_path / "letter.db").write_text("Dear reader, " * 500)
    with pytest.raises(CommunityError, match="is not a ledger"):
        Ledger.open(tmp_path / "letter.db")
    (tmp_path / "empty.db").touch()
    with pytest.raises(CommunityError, match="is not a ledger"):
        Ledger.open(tmp_path / "empty.db")
    with pytest.raises(CommunityError, match="cannot be opened"):
        Ledger.create(tmp_path / "no" / "folder" / "ledger.db", META, MEMBERS)
    for url in ("://nonsense", "postgresql://host:port/name"):
        with pytest.raises(CommunityError, match="is not a database URL"):
            Ledger.open(url)
    with pytest.raises(CommunityError, match="cannot use strangedb"):
        Ledger.open("strangedb://host/name")


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "ledger.db"
    make_ledger(place).close()
    data = bytearray(place.read_bytes())
    data[4096:] = bytes(len(data) - 4096)
    place.write_bytes(data)
    with pytest.raises(CommunityError, match="damaged"), Ledger.open(place) as ledger:
        ledger.round(1)
    place.write_bytes(place.read_bytes()[:5000])
    with pytest.raises(CommunityError, match="damaged"), Ledger.open(place) as ledger:
        ledger.round(1)


def test_read_only_means_it(tmp_path: Path) -> None:
    place = tmp_path / "led ger?#%.db"  # all of these mean something in a URL
    make_ledger(place, rounds=1).close()
    with Ledger.open(place, read_only=True) as ledger:
        assert ledger.round(1) == make_round(1)
        with pytest.raises(CommunityError, match="reading only"):
            ledger.record(make_round(2))
    assert sorted(p.name for p in tmp_path.iterdir()) == [place.name]


def test_reading_where_nothing_can_be_written(small_disk: Path) -> None:
    make_ledger(small_disk / "ledger.db", rounds=1).close()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with Ledger.open(small_disk / "ledger.db", read_only=True) as ledger:
        assert ledger.round(1) == make_round(1)
    with pytest.raises(CommunityError, match="cannot be"), Ledger.open(small_disk / "ledger.db"):
        pass


def test_reading_while_another_writes(tmp_path: Path) -> None:
    writer = make_ledger(tmp_path / "ledger.db", rounds=1)
    with writer, Ledger.open(tmp_path / "ledger.db", read_only=True) as reader:
        with reader.reading() as conn:
            before = conn.scalar(text("SELECT max(n) FROM rounds"))
            writer.record(make_round(2))
            assert conn.scalar(text("SELECT max(n) FROM rounds")) == before == 1  # one state
        assert reader.last_round() == 2


def test_a_locked_ledger_is_a_users_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    with make_ledger(tmp_path / "ledger.db", rounds=1) as ledger:
        other = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(CommunityError, match="in use by another process"):
            ledger.record(make_round(2))
        other.close()
        ledger.record(make_round(2))


def test_an_error_within_a_transaction_leaves_nothing(tmp_path: Path) -> None:
    with make_ledger(tmp_path / "ledger.db", rounds=1) as ledger:
        before = ledger.content_hash()
        round = make_round(2)
        stranger = replace(round.lessons[-1], learner="nobody")
        with pytest.raises(Exception, match="FOREIGN KEY"):
            ledger.record(replace(round, lessons=(*round.lessons[:-1], stranger)))
        assert ledger.content_hash() == before
        ledger.record(round)


KILLED = """
import sys, time
from sqlalchemy import event
from small_rounds import MEMBERS, META, make_learning, make_round
from community.ledger import Ledger

ledger = Ledger.create(sys.argv[1], META, MEMBERS)
ledger.learned(make_learning(0))
for n in (1, 2):
    ledger.record(make_round(n))
    ledger.learned(make_learning(n, make_round(n)))

@event.listens_for(ledger.engine, "before_cursor_execute")
def wait(conn, cursor, statement, parameters, context, many):
    if statement.startswith("INSERT INTO lessons"):
        conn.exec_driver_sql("PRAGMA cache_spill = 1")
        print("in the middle", flush=True)
        time.sleep(600)

ledger.record(make_round(3, tasks=100))
"""


def test_a_kill_costs_the_transaction_in_progress_alone(tmp_path: Path) -> None:
    place = tmp_path / "ledger.db"
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(place)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "in the middle\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    with Ledger.open(place) as ledger:
        assert ledger.last_round() == 2
        assert ledger.verify() == []
        ledger.record(make_round(3))
        ledger.learned(make_learning(3, make_round(3)))
        killed = ledger.content_hash()
    with make_ledger(tmp_path / "whole.db") as ledger:
        assert ledger.content_hash() == killed


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("only root can mount a small file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"no small file system here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_costs_the_round_in_progress_alone(small_disk: Path) -> None:
    place = small_disk / "ledger.db"
    ledger = make_ledger(place, rounds=1)
    (small_disk / "ballast").write_bytes(bytes(200_000))
    n = 1
    with pytest.raises(CommunityError, match=r"disk .* full"):
        for n in range(2, 1000):
            ledger.record(make_round(n, tasks=20))
    assert n > 1
    ledger.close()
    (small_disk / "ballast").unlink()
    with Ledger.open(place) as ledger:
        assert ledger.last_round() == n - 1
        assert all(ledger.round(k) == make_round(k, tasks=20) for k in range(2, n))
        ledger.record(make_round(n, tasks=1))


# -- PostgreSQL ----------------------------------------------------------------------------


def server_programs() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    installed = shutil.which("initdb")
    return Path(installed).parent if installed else None


@pytest.fixture(scope="module")
def postgres_server() -> Iterator[str]:
    """URL of a PostgreSQL: the one named, or our own on the loopback in a folder of its own."""
    pytest.importorskip("psycopg", reason="psycopg is not installed (extra 'postgres')")
    if named := os.environ.get("COMMUNITY_TEST_POSTGRES"):
        yield named
        return
    programs = server_programs()
    if programs is None:
        pytest.skip("no PostgreSQL: set COMMUNITY_TEST_POSTGRES or install its server")
    folder = tempfile.mkdtemp(prefix="community-postgres-")
    user = None  # PostgreSQL refuses to run as root
    if os.geteuid() == 0:
        names = {entry.pw_name for entry in pwd.getpwall()}
        user = "postgres" if "postgres" in names else "nobody"
        shutil.chown(folder, user)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def call(program: str, *arguments: str) -> None:
        command = [str(programs / program), "-D", f"{folder}/data", *arguments]
        with Path(folder, "calls.log").open("ab") as log:
            subprocess.run(command, user=user, cwd=folder, stdout=log, stderr=log, check=True)

    try:
        call("initdb", "-U", "tester", "-A", "trust", "--no-sync", "-E", "UTF8", "--no-locale")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -k {folder} -c fsync=off"
        call("pg_ctl", "-w", "-l", f"{folder}/server.log", "-o", options, "start")
        yield f"postgresql://tester@127.0.0.1:{port}/postgres"
    finally:
        if Path(folder, "data", "postmaster.pid").exists():
            call("pg_ctl", "-w", "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres(postgres_server: str) -> Iterator[str]:
    """URL of an empty schema."""
    name = f"community_{os.getpid()}_{random.SystemRandom().randrange(10**9)}"
    admin = create_engine(database.url_of(postgres_server), isolation_level="AUTOCOMMIT")
    with admin.connect() as conn:
        conn.execute(text(f"CREATE SCHEMA {name}"))
        url = database.url_of(postgres_server).update_query_dict(
            {"options": f"-csearch_path={name}"}
        )
        yield url.render_as_string(hide_password=False)
        conn.execute(text(f"DROP SCHEMA {name} CASCADE"))
    admin.dispose()


def test_postgres_holds_the_same(tmp_path: Path, postgres: str) -> None:
    with make_ledger(tmp_path / "ledger.db") as ledger:
        expected, rounds = ledger.content_hash(), ledger.rounds()
    with Ledger.create(postgres, META, MEMBERS) as ledger:
        played = fill(ledger)
        assert ledger.content_hash() == expected
        assert [ledger.round(n) for n in (1, 2, 3)] == played
        assert ledger.rounds() == rounds
        assert ledger.verify() == []
        assert ledger.idea(played[1].ideas[3].id[:12]) == played[1].ideas[3]
        ledger.reserve([make_task(9, 0, "holdout")])
        with pytest.raises(CommunityError, match="holdout"):
            ledger.record(with_lesson_on(make_round(4), make_task(9, 0)))
        with ledger._writing() as conn:
            conn.execute(text("UPDATE ideas SET text = 'other' WHERE row = 2"))
        assert "idea" in ledger.verify()[0]
    with Ledger.open(postgres, read_only=True) as ledger:
        assert ledger.last_round() == 3
        with pytest.raises(CommunityError, match="reading only"):
            ledger.record(make_round(4))
    with pytest.raises(CommunityError, match="holds a ledger already"):
        Ledger.create(postgres, META, MEMBERS)


def test_postgres_is_searched_too(tmp_path: Path, postgres: str) -> None:
    queries = [
        Query(text, author, sort=sort, descending=back, first=2)
        for text in ("", "it IS", '"2 + 1"', "\x00 it", "É", "absent")
        for author in ("", "bob")
        for sort in get_args(Order)
        for back in (True, False)
    ]
    with make_ledger(tmp_path / "ledger.db") as ledger:
        expected = [(search(ledger, query), count(ledger, query)) for query in queries]
    with make_ledger(postgres) as ledger:
        assert [(search(ledger, query), count(ledger, query)) for query in queries] == expected
    assert {len(found) for found, _ in expected} > {0, 2, 24}


def test_postgres_keeps_every_character(postgres: str) -> None:
    task = Task("a\x00b\x1b0\x1bE", "any", "any", 1, "train", 2**63 - 1, 0)
    idea = Idea(task.id, "ann", "", 1, 0, 0, "\x1b\x00\x1bE0", logprob=-math.inf)
    check_lossless(postgres, Round(1, (task,), (idea,), (), Ranking("none", (), {}), ()))


def test_postgres_that_is_not_there(postgres: str) -> None:
    with pytest.raises(CommunityError, match="is not a ledger"):
        Ledger.open(postgres)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(CommunityError, match=f"{port}.*failed") as caught:
        Ledger.open(f"postgresql://tester:secret@127.0.0.1:{port}/postgres")
    assert "secret" not in str(caught.value)
