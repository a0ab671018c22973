"""Lineage: from any idea back to the first round, and on to what it taught."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import pytest
from rich.console import Console
from small_rounds import (
    AGENTS,
    MEMBERS,
    META,
    checkpoint_of,
    make_learning,
    make_ledger,
    make_round,
    make_task,
)

from community.errors import CommunityError
from community.ledger import Ledger
from community.lineage import Lineage, lineage, relatives
from community.lineage_tree import render
from community.types import WORLD, Checkpoint, Idea, Learning, Ranking, Round


def text_of(found: Lineage) -> str:
    console = Console(width=250, no_color=True)
    with console.capture() as capture:
        console.print(render(found))
    return capture.get()


def test_from_a_late_idea_back_to_the_first_round(tmp_path: Path) -> None:
    with make_ledger(tmp_path / "ledger.db") as ledger:
        late = ledger.round(3)
        winner = late.ranking.winners()[late.tasks[0].id]
        idea = ledger.idea(winner.idea)
        found = lineage(ledger, winner.idea[:14])

        assert found.idea.id == winner.idea
        assert found.idea.facts["place"] == 1
        assert found.idea.facts["author"] == idea.author
        judges = [v["judge"] for v in found.idea.facts["verdicts"]]
        assert judges[0] == WORLD and len(judges) == 2

        assert {n.id for n in found.ancestors.ideas} == set(idea.parents)
        assert found.ancestors.total == len(relatives(ledger, idea.id))

        steps = found.ancestors.steps
        assert steps[0].id == idea.checkpoint
        assert [s.facts["learning"] for s in steps] == [2, 1, 0]
        for step, before in pairwise(steps):
            lesson = step.nodes[0]
            source = ledger.idea(lesson.facts["idea"])
            assert lesson.facts["learner"] == step.facts["agent"]
            assert (source.author, source.checkpoint) == (before.facts["agent"], before.id)


def test_from_an_early_idea_on_to_the_last_round(tmp_path: Path) -> None:
    with make_ledger(tmp_path / "ledger.db") as ledger:
        lesson = ledger.round(1).lessons[0]
        found = lineage(ledger, lesson.idea)
        first = found.descendants.steps[0]
        assert first.id == lesson.id
        (made,) = first.nodes
        assert made.facts["agent"] == lesson.learner
        assert made.id == checkpoint_of(lesson.learner, 1)
        given = [i for i in ledger.round(2).ideas if i.checkpoint == made.id]
        assert made.facts["ideas"] == len(given) == len(made.nodes) + made.more
        assert made.nodes[0].id in {i.id for i in given}
        places = [n.facts["place"] for n in made.nodes]
        assert places == sorted(places)


def test_votes_name_every_member_that_answered(tmp_path: Path) -> None:
    with Ledger.create(tmp_path / "ledger.db", META, MEMBERS) as ledger:
        task = make_task(1, 0)
        said = [("ann", 0, "7"), ("ann", 0, "8"), ("ann", 0, "8"), ("bob", 0, "8"), ("cy", 0, "")]
        said += [("bob", 1, "7")]  # what was said later counts
        given = tuple(
            Idea(task.id, author, "c", 1, turn, sample, answer or "?", answer=answer)
            for sample, (author, turn, answer) in enumerate(said)
        )
        trust = {"ann": 0.75, "cy": 0.5}
        ledger.record(Round(1, (task,), given, (), Ranking("none", (), trust), ()))
        found = lineage(ledger, given[1].id)
        assert found.idea.facts["votes"] == [
            {"judge": "ann", "score": 1.0, "answer": "8", "reliability": 0.75},
            {"judge": "bob", "score": 0.0, "answer": "7", "reliability": None},
        ]
        shown = text_of(found)
        assert "voted for by 1 of the 2 members that answered" in shown
        assert "ann: 1.00 (reliability 0.75)" in shown and "bob: 0.00, said 7" in shown


def winner_teaches(n: int) -> Round:
    """Round n with one lesson: its winner teaches the winner's author, whoever it is."""
    round = make_round(n, tasks=1)
    winner = next(i for i in round.ideas if i.id == round.ranking.entries[0].idea)
    lesson = replace(round.lessons[0], learner=winner.author, idea=winner.id)
    return replace(round, lessons=(lesson,))


def test_both_ways_along_one_path(tmp_path: Path) -> None:
    with Ledger.create(tmp_path / "ledger.db", META, MEMBERS) as ledger:
        ledger.learned(make_learning(0))
        for n in range(1, 6):
            ledger.record(winner_teaches(n))
            ledger.learned(make_learning(n, winner_teaches(n)))
        first, last = (ledger.round(n).lessons[0].idea for n in (1, 5))
        back, ahead = lineage(ledger, last).ancestors, lineage(ledger, first).descendants
        assert [s.facts["learning"] for s in back.steps] == [4, 3, 2, 1, 0]
        assert [s.facts["round"] for s in ahead.steps] == [1, 2, 3, 4, 5]
        assert [s.nodes[0].facts["idea"] for s in back.steps[:-1]] == [
            s.facts["idea"] for s in reversed(ahead.steps[:-1])
        ]


def test_where_nothing_was_learned_the_checkpoint_before_is_followed(tmp_path: Path) -> None:
    with Ledger.create(tmp_path / "ledger.db", META, MEMBERS) as ledger:
        ledger.learned(make_learning(0))
        ledger.record(winner_teaches(1))
        ledger.learned(make_learning(1, winner_teaches(1)))
        ledger.learned(make_learning(2))  # new checkpoints without lessons
        idea = replace(winner_teaches(3).ideas[2], parents=(), checkpoint=checkpoint_of("cy", 2))
        ledger.record(Round(3, (make_task(3, 0),), (idea,), (), Ranking("none", (), {}), ()))
        found = lineage(ledger, idea.id)
        assert [s.facts["learning"] for s in found.ancestors.steps] == [2, 1, 0]
        assert found.idea.facts["place"] is None
        assert "place" not in text_of(found)


def test_the_nearest_lessons_are_shown_and_the_others_counted(tmp_path: Path) -> None:
    with Ledger.create(tmp_path / "ledger.db", META, MEMBERS) as ledger:
        round = make_round(1, tasks=40)
        every = tuple(
            replace(x, learner="ann", confidence=k / 100) for k, x in enumerate(round.lessons)
        )
        round = replace(round, lessons=every)
        ledger.record(round)
        made = Checkpoint(checkpoint_of("ann", 1), "ann", 1, lessons=tuple(x.id for x in every))
        ledger.learned(Learning(1, (made,), ()))
        ledger.record(make_round(2))
        idea = next(i for i in make_round(2).ideas if i.author == "ann")
        step = lineage(ledger, idea.id).ancestors.steps[0]
        assert [n.facts["confidence"] for n in step.nodes] == [0.39, 0.38, 0.37]
        assert step.more == 37


def test_a_chain_of_two_hundred_readings(tmp_path: Path) -> None:
    with Ledger.create(tmp_path / "ledger.db", META, MEMBERS) as ledger:
        task = make_task(1, 0)
        chain: list[Idea] = []
        for turn in range(201):
            read = (chain[-1].id,) if chain else ()
            chain.append(Idea(task.id, AGENTS[turn % 3], "c", 1, turn, 0, "so", parents=read))
        ledger.record(Round(1, (task,), tuple(chain), (), Ranking("none", (), {}), ()))
        assert relatives(ledger, chain[-1].id) == [i.id for i in chain[:-1]]
        assert relatives(ledger, chain[0].id, back=False) == [i.id for i in chain[1:]]
        assert lineage(ledger, chain[-1].id).ancestors.total == 200


def test_as_text_and_as_json(tmp_path: Path) -> None:
    with make_ledger(tmp_path / "ledger.db") as ledger:
        idea = ledger.round(2).lessons[0].idea
        found = lineage(ledger, idea)
        assert json.loads(json.dumps(asdict(found)))["idea"]["id"] == idea
        shown = text_of(found)
        for part in (idea[:10], "world: 1.00", "place 1", "taught by", "rolled back"):
            assert (part in shown) == (part != "rolled back")
        lesson = ledger.round(2).lessons[0]
        assert lesson.id[:10] in shown
        assert checkpoint_of(lesson.learner, 2)[:10] in shown


def test_what_a_model_wrote_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    with Ledger.create(tmp_path / "ledger.db", META, MEMBERS) as ledger:
        task = make_task(1, 0)
        idea = Idea(task.id, "ann", "c", 1, 0, 0, "[red]\x1b[31m\n\x07" + "long " * 100)
        ledger.record(Round(1, (task,), (idea,), (), Ranking("none", (), {}), ()))
        shown = text_of(lineage(ledger, idea.id))
        assert "[red]" in shown and "\x1b" not in shown and "\x07" not in shown
        assert max(len(line) for line in shown.splitlines()) < 160


def test_an_unknown_idea(tmp_path: Path) -> None:
    with make_ledger(tmp_path / "ledger.db", rounds=1) as ledger:
        with pytest.raises(CommunityError, match="no idea has an id that starts with 'ffff'"):
            lineage(ledger, "ffff")
        fill_again = make_round(1).ideas[0].id
        assert lineage(ledger, fill_again).ancestors.total == 0
