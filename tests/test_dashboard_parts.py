"""What the dashboard asks of the ledger, against what the report says; and what it draws with."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("textual")

from rich.console import Console
from rich.style import Style
from small_rounds import MEMBERS, META, make_learning, make_ledger, make_round, make_task
from watching import play_talk

from community.dashboard import flows, kin, people, schooling
from community.dashboard.asked import asked, rounds
from community.dashboard.chart import DASHED, Canvas
from community.dashboard.course import Curves, Pulse, course, tick
from community.dashboard.difference import changes, why
from community.dashboard.ideas import ideas_at
from community.dashboard.members import draw
from community.errors import CommunityError
from community.figures import figures
from community.ledger import Ledger
from community.search import Query, search
from community.types import WORLD, Idea, Ranking, Round
from community.words import share


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of scripted members that talk."""
    return play_talk(tmp_path_factory.mktemp("talk"))


@pytest.fixture
def ledger(talk: Path) -> Ledger:
    return Ledger.open(talk / "ledger.db", read_only=True)


# -- as the report says --------------------------------------------------------------------


def test_curves_are_those_of_the_report(talk: Path, ledger: Ledger) -> None:
    facts, curves = figures(talk), Curves(ledger)
    assert list(curves.update()) == [3, 2, 1, 0]
    for r in facts["rounds"]:
        point = curves.points[r["round"]]
        assert (point.tasks, point.kept, point.tokens) == (r["posed"], r["kept"], r["tokens"])
        assert point.precision == pytest.approx(r["precision"])
        assert point.seconds == r["seconds"] == 3.0
    end = facts["holdout_by_digits"]
    total = sum(end["tasks"].values())
    share = sum(end["community"][k] * n for k, n in end["tasks"].items()) / total
    assert curves.holdout[4].community == pytest.approx(share)
    assert list(curves.update()) == []  # nothing is new


def test_answers_are_counted_by_what_they_say(ledger: Ledger) -> None:
    curves = Curves(ledger)
    list(curves.update())
    round = ledger.round(1)
    said = {(i.task, i.answer) for i in round.ideas if i.answer}
    assert curves.points[1].answers == len(said) / len(round.tasks)


def test_members_are_those_of_the_report(talk: Path, ledger: Ledger) -> None:
    facts = figures(talk)["members"]
    found = {m.name: m for m in people.people(ledger)}
    assert found.keys() == facts.keys()
    for name, m in found.items():
        said = facts[name]
        assert (m.lessons, m.learned) == (said["lessons"], said["lessons_learned"])
        assert (m.kept, m.rollbacks) == (said["checkpoints_kept"], said["rollbacks"])
        assert (m.failures, m.tokens) == (said["failures"], said["tokens"])
        assert m.reliability == pytest.approx(said["reliability"])
        own = m.strength
        assert own and own.low is not None and own.high is not None
        assert own.mean == pytest.approx(said["strength"], abs=1e-3)
        # two standard errors there, 1.96 here
        assert own.low == pytest.approx(own.mean - 0.98 * (own.mean - said["low"]), abs=2e-3)
        assert own.high == pytest.approx(own.mean + 0.98 * (said["high"] - own.mean), abs=2e-3)
    ada = found["ada"].strength
    assert ada and ada.ideas == sum(i.author == "ada" for i in ledger.round(4).ideas)
    assert sum(m.taught for m in found.values()) == len(ledger.lessons())


def test_one_task_says_nothing_of_the_next(tmp_path: Path) -> None:
    """However many ideas a member has for it; a second task gives an interval."""
    with Ledger.create(tmp_path / "ledger.db", META, MEMBERS) as ledger:
        for n, more in ((1, False), (2, True)):
            ledger.record(make_round(n, tasks=n))
            for m in people.people(ledger):
                assert m.strength and m.strength.ideas == 2 * n
                assert (m.strength.low is not None) == (m.strength.high is not None) == more


def test_a_portrait_holds_every_checkpoint(ledger: Ledger) -> None:
    found = people.portrait(ledger, "carl")
    made = ledger.checkpoints("carl")
    assert [c.id for c in found.checkpoints] == [c.id for c in reversed(made)]
    assert [found.counts[c.id] for c in found.checkpoints] == [
        len(c.lessons) for c in reversed(made)
    ]
    assert [n for n, _ in found.holdout] == [0, 1, 2, 3, 4]
    assert sum(d.lessons for d in found.domains) == len(ledger.lessons("carl"))


# -- the course of a run -------------------------------------------------------------------


def test_the_phase_follows_what_is_recorded(tmp_path: Path) -> None:
    recipe = {"run": {"rounds": 1}, "budget": {"tokens": 0, "seconds": 0}}
    with Ledger.create(tmp_path / "ledger.db", META | {"recipe": recipe}, MEMBERS) as ledger:
        now = course(ledger)
        assert (now.phase, now.pulse, now.left) == ("first lessons", Pulse(0, -1), None)
        ledger.learned(make_learning(0))
        now = tick(ledger, now)
        assert now.phase == "playing round 1"
        ledger.record(make_round(1))
        now = tick(ledger, now)
        assert (now.phase, now.ideas, now.lessons) == ("learning from round 1", 12, 2)
        ledger.learned(make_learning(1, make_round(1)))
        assert (tick(ledger, now).phase, tick(ledger, now).left) == ("finished", None)


def test_a_budget_ends_a_run_and_bounds_what_is_left(tmp_path: Path) -> None:
    for tokens, phase in ((10**6, "playing round 3"), (500, "budget used up")):
        recipe = {"run": {"rounds": 1000}, "budget": {"tokens": tokens, "seconds": 0.0}}
        place = tmp_path / f"{tokens}.db"
        with Ledger.create(place, META | {"recipe": recipe}, MEMBERS) as ledger:
            ledger.learned(make_learning(0))
            for n in (1, 2):
                ledger.record(make_round(n))
                ledger.learned(make_learning(n, make_round(n)))
            now = course(ledger)
        assert now.phase == phase
        assert (now.left is None) == now.spent == (tokens == 500)
        assert now.left is None or now.left <= 998 * now.recent


def test_nobody_knows_when_a_run_ends_that_may_have_been_stopped(tmp_path: Path) -> None:
    recipe = {"run": {"rounds": 3}, "budget": {"tokens": 0, "seconds": 0}}
    with Ledger.create(tmp_path / "ledger.db", META | {"recipe": recipe}, MEMBERS) as ledger:
        ledger.record(make_round(1))
        now = course(ledger)
    assert now.left is not None and not now.silent
    assert replace(now, quiet=1e4).silent and replace(now, quiet=1e4).left is None


def test_a_round_read_before_its_learning_is_read_again(tmp_path: Path) -> None:
    with Ledger.create(tmp_path / "ledger.db", META, MEMBERS) as ledger:
        ledger.learned(make_learning(0))
        ledger.record(make_round(1))
        curves = Curves(ledger)
        list(curves.update())
        before = curves.points[1].tokens
        ledger.learned(make_learning(1, make_round(1)))
        ledger.record(make_round(2))
        assert list(curves.update()) == [1, 0]
        assert curves.points[1].tokens == before + 300


# -- kin -----------------------------------------------------------------------------------


def test_steps_back_and_ahead_are_each_others_reverse(ledger: Ledger) -> None:
    start = kin.kin(ledger, ledger.round(3).lessons[0].idea)
    seen: set[str] = set()
    for back in (True, False):
        for item in kin.step(ledger, start, back).items:
            found = {other.id for other in kin.step(ledger, item, not back).items}
            assert start.id in found or kin.step(ledger, item, not back).more
            seen.add(type(item).__name__)
    assert seen == {"Kin", "Made", "Taught"}


def test_the_path_to_the_best_follows_readings(ledger: Ledger) -> None:
    round = ledger.round(2)
    by_id = {idea.id: idea for idea in round.ideas}
    joined = 0
    for idea in round.ideas[::5]:
        path = kin.path_to_best(ledger, kin.kin(ledger, idea.id))
        assert path.best is not None and path.best.place == 1
        if path.ids:
            joined += 1
            assert (path.ids[0], path.ids[-1]) == (idea.id, path.best.id)
            for a, b in zip(path.ids, path.ids[1:], strict=False):
                assert a in by_id[b].parents or b in by_id[a].parents
    assert joined > 3


def test_what_became_of_a_checkpoint_is_read_in_a_narrow_panel(ledger: Ledger) -> None:
    found = people.portrait(ledger, "carl")
    member = next(m for m in people.people(ledger) if m.name == "carl")
    console = Console(file=io.StringIO(), width=40)
    console.print(draw(member, found))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert found.checkpoints and text.count(" kept") + text.count("✗ back") == len(
        found.checkpoints
    )
    for one in found.checkpoints:
        if one.before is not None:
            assert f"{share(one.before)} → {share(one.after)} " in text


def test_a_contrast_counts_all_who_compared_the_two_answers(ledger: Ledger) -> None:
    round = ledger.round(1)
    answer = {idea.id: (idea.task, idea.answer) for idea in round.ideas}
    checked = 0
    for idea in round.ideas:
        for parent in idea.parents:
            pair = {answer[idea.id], answer[parent]}
            if len(pair) < 2 or not all(said for _, said in pair):
                continue
            found = kin.contrast(ledger, kin.kin(ledger, idea.id), kin.kin(ledger, parent))
            wanted = [
                v for v in round.verdicts if v.other and {answer[v.idea], answer[v.other]} == pair
            ]
            for_child = sum(
                (v.score if answer[v.idea] == answer[idea.id] else 1 - v.score) > 0.5
                for v in wanted
            )
            assert len(found.verdicts) == len(wanted)
            assert sum(v.score > 0.5 for v in found.verdicts) == for_child
            world = {v.idea: v.score for v in round.verdicts if v.judge == WORLD}
            assert found.world == {k: world[k] for k in (idea.id, parent)}
            checked += len(wanted)
    assert checked


def test_verdicts_can_be_read_beside_long_names(ledger: Ledger) -> None:
    idea = next(i for i in ledger.round(1).ideas if i.parents)
    judged = kin.Judged("a-name-of-a-member", 0.0, 0.75, 0.875)
    mine = kin.kin(ledger, idea.id)
    found = kin.Contrast(mine, kin.kin(ledger, idea.parents[0]), (judged,))
    console = Console(file=io.StringIO(), width=56)
    console.print(why(found))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "confidence\xa0.750" in text and "reliability\xa0.875" in text and "parent" in text


def test_a_path_two_hundred_readings_long(tmp_path: Path) -> None:
    with Ledger.create(tmp_path / "ledger.db", META, MEMBERS) as ledger:
        task = make_task(1, 0)
        chain: list[Idea] = []
        for turn in range(201):
            read = (chain[-1].id,) if chain else ()
            chain.append(Idea(task.id, "ann", "c", 1, turn, 0, "so", answer="so", parents=read))
        ledger.record(Round(1, (task,), tuple(chain), (), Ranking("none", (), {}), ()))
        found = kin.family(ledger, chain[-1].id)
        assert found.path.best is None  # nobody ranked them
        at, depth = found.back, 0
        while at.inner or kin.grow(ledger, at).inner:
            (at,) = at.inner or ()
            depth += 1
        assert (depth, at.item.id) == (200, chain[0].id)


# -- flows and lessons ---------------------------------------------------------------------


def test_flows_add_up_to_what_was_read_and_taught(ledger: Ledger) -> None:
    round = ledger.round(2)
    author = {idea.id: idea.author for idea in round.ideas}
    read = [(author[p], i.author) for i in round.ideas for p in i.parents if author[p] != i.author]
    found = flows.flow(ledger, 2)
    assert found.kind == "readings" and found.topology == "ring"
    assert {(e.source, e.target) for e in found.edges} == {(a, r) for r, a in round.edges}
    assert {(e.source, e.target): e.ideas for e in found.edges if e.ideas} == {
        pair: read.count(pair) for pair in set(read)
    }
    taught = flows.flow(ledger, 2, "lessons")
    assert sum(e.ideas for e in taught.edges) == len(round.lessons)
    assert flows.flow(ledger).round == flows.flow(ledger, 99).round == 4


def test_places_of_a_ring_of_layers_and_of_a_crowd() -> None:
    def edges(*pairs: tuple[str, str]) -> list[flows.Edge]:
        return [flows.Edge(a, b, 1, 1) for a, b in pairs]

    names = [f"m{i}" for i in range(30)]
    ring = edges(*((names[i], names[(i + 1) % 30]) for i in range(30)))
    at = flows.places(names, ring)
    for e in ring:  # neighbours lie beside each other
        assert math.dist(at[e.source], at[e.target]) < 0.2
    layers = flows.places(["a", "b", "c"], edges(("a", "b"), ("a", "c")))
    assert layers["a"][0] == 0 and layers["b"][0] == layers["c"][0] == 1
    crowd = flows.places(names, [*ring, *edges(("m0", "m9"), ("m9", "m0"))])
    assert all(0 <= x <= 1 and 0 <= y <= 1 for x, y in crowd.values()) and len(crowd) == 30
    assert flows.places([], []) == {}


def test_lessons_by_page_and_by_pair(ledger: Ledger) -> None:
    every = ledger.lessons()
    wish = schooling.Wish()
    paged = [
        *schooling.lessons_of(ledger, wish, 0, 10),
        *schooling.lessons_of(ledger, wish, 10, 999),
    ]
    assert [r.id for r in paged] == [x.id for x in reversed(every)]
    assert schooling.how_many(ledger, wish) == len(every)
    assert sum(p.lessons for p in schooling.pairs(ledger)) == len(every)
    late = schooling.Wish(learner="ada", first=3)
    assert schooling.how_many(ledger, late) == len(
        [x for x in ledger.lessons("ada") if x.round > 2]
    )


@pytest.mark.parametrize("sort", ["round", "author", "strength"])
def test_pages_from_the_far_end_are_the_same(ledger: Ledger, sort: str) -> None:
    query = Query(sort=sort)  # type: ignore[arg-type]
    whole = search(ledger, query, 10_000)
    parts = [
        x for at in range(0, len(whole), 70) for x in ideas_at(ledger, query, len(whole), at, 70)
    ]
    assert parts == whole


# -- drawing -------------------------------------------------------------------------------


def test_lines_join_their_ends_and_dashes_have_gaps() -> None:
    style = Style()
    canvas = Canvas(10, 5)
    canvas.line((0, 0), (19, 19), style)
    rows = [row.plain for row in canvas.rows()]
    assert rows[0][0] != " " and rows[4][9] != " " and all(row.strip() for row in rows)
    dashed = Canvas(10, 5)
    dashed.line((0, 0), (19, 0), style, DASHED)
    full = Canvas(10, 5)
    full.line((0, 0), (19, 0), style)
    count = {c: sum(bin(ord(x) - 0x2800).count("1") for x in c.rows()[0].plain if x != " ")
             for c in (dashed, full)}  # fmt: skip
    assert count[dashed] == 12 < count[full] == 20
    canvas.dot(-1, 99, style)  # outside: left out


def test_changes_mark_what_differs() -> None:
    shown = changes("51244", "51294")
    assert shown.plain == "− 51244\n+ 51294"
    assert [shown.plain[s.start : s.end] for s in shown.spans if "reverse" in str(s.style)] == [
        "4", "9",
    ]  # fmt: skip
    assert changes("same", "same").plain == "= same"
    long = "word " * 50
    assert "− " in changes(long + "old", long + "new").plain


def test_what_is_typed_becomes_fields_and_words() -> None:
    fields = ("author", "round")
    assert asked("12+3 author:ada round:3- x:y", fields) == (
        "12+3 x:y", {"author": "ada", "round": "3-"},
    )  # fmt: skip
    assert (rounds("3-"), rounds("3"), rounds("3-7")) == ((3, None), (3, 3), (3, 7))
    for wrong in ("author:", "round:"):
        with pytest.raises(CommunityError, match="needs a value"):
            asked(wrong, fields)
    with pytest.raises(CommunityError, match="rounds are given as"):
        rounds("x")


def test_nothing_is_found_in_an_empty_ledger(tmp_path: Path) -> None:
    with Ledger.create(tmp_path / "ledger.db", META, MEMBERS) as ledger:
        assert kin.latest_idea(ledger) == "" and schooling.pairs(ledger) == []
        assert [m.strength for m in people.people(ledger)] == [None] * 3
        assert flows.flow(ledger).edges == ()
        with pytest.raises(CommunityError, match="no idea"):
            kin.family(ledger, "ffff")
    with make_ledger(tmp_path / "small.db") as ledger:
        assert kin.latest_idea(ledger) == ledger.lessons()[-1].idea
