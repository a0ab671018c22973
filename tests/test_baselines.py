"""What one member reaches alone gets as much of everything as the community had."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command import CROWD, write_recipe
from small_rounds import make_ledger, make_round

from community.arenas.splits import in_split
from community.baselines import alone, best_at_start, check_baselines, play_baselines
from community.config import Recipe, parse, read
from community.errors import CommunityError
from community.folder import create
from community.ledger import Ledger
from community.members import Listener
from community.parts import specs_of
from community.run import How, play
from community.types import WORLD, Idea, Ranking, Round, Task, Verdict

HERE = Path(__file__).parent
MEMBERS = [
    {"name": "ada", "use": "scripted", "error": 0.1},
    {"name": "bo", "use": "scripted", "count": 3, "error": 0.2},
]


def recipe(**sections: Any) -> Recipe:
    least = {
        "arena": {"use": "arithmetic"},
        "members": MEMBERS,
        "tasks": {"train": 50},
        "baselines": {"run": ["self-consistency", "no-filter"]},
        "ranking": {"min_supporters": 2, "min_confidence": 0.7, "best": 0.5},
    }
    return parse(least | sections)


KINDS = pytest.mark.parametrize("kind", ["self-consistency", "no-filter"])


@KINDS
def test_one_member_has_the_tasks_and_steps_of_all(kind: str) -> None:
    found = recipe(learning={"steps": 10, "replay": 20})
    single = alone(found, "bo-2", kind, HERE)
    assert [name for name, _ in single.roster()] == ["bo-2"]
    assert single.tasks.train == 4 * found.tasks.train
    assert single.learning.steps == 4 * found.learning.steps
    assert single.learning.batch == found.learning.batch
    assert single.tasks.holdout == found.tasks.holdout  # as many as the community's
    assert single.run.rounds == found.run.rounds and single.run.seed == found.run.seed
    assert single.baselines.run == ()


@KINDS
def test_tasks_and_lessons_by_the_epoch(kind: str) -> None:
    """Attempts are equal, and lessons grow with the tasks, so the epochs stay."""
    found = recipe(learning={"epochs": 3}, router={"top_k": 2})
    single = alone(found, "ada", kind, HERE)
    assert single.tasks.train == 2 * found.tasks.train
    assert (single.learning.steps, single.learning.epochs) == (0, 3)


@KINDS
def test_it_starts_as_the_member_that_it_was(kind: str) -> None:
    found = recipe()
    before = {spec.name: spec for spec in specs_of(found, HERE)}["bo-2"]
    (spec,) = specs_of(alone(found, "bo-2", kind, HERE), HERE)
    assert spec == before


def test_among_specialists_it_learns_first_what_all_did() -> None:
    kinds = (["addition"], ["subtraction", "product"], ["addition"])
    members = [
        {"name": f"m{n}", "use": "scripted", "domains": domains} for n, domains in enumerate(kinds)
    ]
    first = {"examples": 100, "steps": 20}
    single = alone(recipe(members=members, first=first), "m1", "majority", HERE)
    assert single.members[0].domains == ("addition", "product", "subtraction")
    assert (single.first.examples, single.first.steps) == (200, 40)
    broad = alone(recipe(members=[*members, *MEMBERS], first=first), "m0", "majority", HERE)
    assert (broad.members[0].domains, broad.first.examples) == ((), 300)
    equal = alone(recipe(members=members[::2], first=first), "m2", "majority", HERE)
    assert (equal.members[0].domains, equal.first.examples) == (("addition",), 100)


def test_what_is_believed() -> None:
    found = recipe()
    careful, rash = (alone(found, "ada", kind, HERE) for kind in ("self-consistency", "no-filter"))
    assert careful.ranking == found.ranking.model_copy(update={"min_supporters": 1})
    assert careful.learning.alpha == found.learning.alpha
    assert (rash.ranking.min_confidence, rash.ranking.best, rash.learning.alpha) == (0, 1, 0)
    assert rash.ranking.min_supporters == 1
    assert {careful.router.policy, rash.router.policy} == {"author"}


def test_members_that_do_not_learn() -> None:
    found = recipe(run={"turns": 1})
    greedy, majority = (alone(found, "ada", kind, HERE) for kind in ("greedy", "majority"))
    for single in (greedy, majority):
        assert [name for name, _ in single.roster()] == ["ada"]
        assert (single.run.rounds, single.run.turns) == (0, 0)
        assert single.tasks.holdout == found.tasks.holdout
    assert greedy.members[0].options["samples"] == 1
    # four members, each with a first answer and a revision
    assert majority.members[0].options["samples"] == 8


def test_a_baseline_that_a_member_cannot_play_is_refused_beforehand() -> None:
    check_baselines(recipe(), HERE)
    with pytest.raises(CommunityError, match=r"ada cannot play baseline greedy .*--no-baselines"):
        check_baselines(recipe(baselines={"run": ["greedy"]}), HERE)
    shaped = [{"name": "ada", "use": "transformer", "shape": {"width": 16, "heads": 2}}]
    with pytest.raises(CommunityError, match=r"cannot play baseline few-shot .*made from a shape"):
        check_baselines(recipe(members=shaped, baselines={"run": ["few-shot"]}), HERE)


def test_no_baseline_is_blamed_for_what_is_wrong_without_it() -> None:
    wrong = recipe(members=[{"name": "ada", "use": "scripted", "eror": 0.1}])
    assert wrong.baselines.run
    with pytest.raises(CommunityError, match=r"^members.ada: eror: unknown key; did you mean"):
        check_baselines(wrong, HERE)


def test_shots_are_worked_examples_of_the_train_split() -> None:
    found = recipe(baselines={"shots": 3})
    shots = alone(found, "ada", "few-shot", HERE).members[0].options["shots"]
    assert len(shots) == 3
    for question, answer in shots:
        a, b = map(int, question.rstrip("=").split("+"))
        assert int(answer) == a + b
        key = f"{min(a, b)}+{max(a, b)}"
        task = Task(question, "arithmetic", "addition", 1, "train", 0, 0, key)
        assert in_split(task) == "train"


def test_the_best_at_the_start_agrees_most_with_itself(tmp_path: Path) -> None:
    round_ = make_round(1, turns=1)
    base = [replace(i, failure="", answer="5", text="5", sample=0) for i in round_.ideas]
    other = [replace(i, sample=1, answer="5" if i.author == "bob" else "6", text="x") for i in base]
    ideas: list[Idea] = [*base, *other]
    top = base[0]
    ranking = replace(
        round_.ranking,
        entries=tuple(
            replace(round_.ranking.entries[0], idea=i.id, task=i.task, place=k)
            for k, i in enumerate(ideas, 1)
        ),
    )
    assert top.author != "bob"  # the first member is not the answer
    with make_ledger(tmp_path / "ledger.db", rounds=0) as ledger:
        ledger.record(replace(round_, ideas=tuple(ideas), verdicts=(), lessons=(), ranking=ranking))
        assert best_at_start(ledger) == "bob"
    said = [Verdict(1, i.task, WORLD, i.id, float(i.author == top.author)) for i in ideas]
    with make_ledger(tmp_path / "checked.db", rounds=0) as ledger:
        ledger.record(
            replace(round_, ideas=tuple(ideas), verdicts=tuple(said), lessons=(), ranking=ranking)
        )
        assert best_at_start(ledger) == top.author  # who is sure need not be right


def test_where_nobody_answers_the_first_by_name_is_the_best_at_the_start(tmp_path: Path) -> None:
    with make_ledger(tmp_path / "ledger.db", rounds=0) as ledger:
        ledger.record(Round(1, (), (), (), Ranking("none", (), {}), ()))
        assert best_at_start(ledger) == min(ledger.members())


# -- played for real -----------------------------------------------------------------------

PLAYED = (
    CROWD.replace("count = 3", "samples = 3").replace("rounds = 2", "rounds = 8")
    + """
[[members]]
name = "sue"
use = "scripted"
error = 0.05
samples = 3

[topology]
use = "ring"

[baselines]
run = ["self-consistency", "no-filter", "majority"]
"""
)
SOLOS = ("self-consistency", "no-filter", "majority")


@pytest.fixture
def run(tmp_path: Path, cache: Path) -> Path:
    """A played run, its baselines to come."""
    folder = tmp_path / "runs" / "tiny"
    create(read(Path(write_recipe(tmp_path, PLAYED))), tmp_path, folder)
    play(folder, How(pool="local"))
    return folder


def hashes(run: Path) -> dict[str, str]:
    found = {}
    for kind in SOLOS:
        with Ledger.open(run / "baselines" / kind / "ledger.db", read_only=True) as ledger:
            found[kind] = ledger.content_hash()
    return found


def test_each_is_a_run_of_its_own(run: Path) -> None:
    play_baselines(run, How(pool="local"))
    for kind in SOLOS:
        with Ledger.open(run / "baselines" / kind / "ledger.db", read_only=True) as ledger:
            assert list(ledger.members()) == ["sue"]
            assert ledger.last_learning() == (0 if kind == "majority" else 8)
            assert ledger.verify() == []


def test_stopped_ones_go_on_to_the_same_end(run: Path) -> None:
    play_baselines(run, How(pool="local"))
    calm = hashes(run)
    (run / "baselines").rename(run / "calm")

    class Interrupt(Listener):
        def done(self, member: str, tokens: int) -> None:
            raise KeyboardInterrupt  # when the first baseline is done

    with pytest.raises(KeyboardInterrupt):
        play_baselines(run, How(pool="local", listener=Interrupt()))
    with Ledger.open(run / "baselines" / SOLOS[2] / "ledger.db", read_only=True) as ledger:
        assert ledger.last_learning() < 0
    for _ in range(2):  # the second time there is nothing to do
        play_baselines(run, How(pool="local"))
        assert hashes(run) == calm
