"""What an agent gives back that was not asked of it is its failure, and harms nobody else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import CROWD, community, write_recipe

from community.ledger import Ledger
from community.replies import ideas_of, learned_of, verdicts_of
from community.types import WORLD, Ballot, Decoding, Idea, Learned, Request, Task, Verdict

TASK = Task("1+1=", "arithmetic", "addition", 1, "train", 0, 0)
READ = Idea(TASK.id, "bo", "", 1, 0, 0, "3")
REQUEST = Request(TASK, 1, 1, 0, (READ,))
IDEA = Idea(TASK.id, "al", "", 1, 1, 0, "2", parents=(READ.id,))
BALLOT = Ballot(TASK, 1, 0, ((IDEA, READ),))
VERDICT = Verdict(1, TASK.id, "al", READ.id, 0.0, other=IDEA.id)  # the pair the other way round
NAN = float("nan")

STRANGE = """
from community.agents.scripted import ScriptedAgent
from community.types import Verdict

class Strange(ScriptedAgent):
    '''It answers with no ideas, or votes as the world that speaks last.'''

    def __init__(self, name: str, seed: int, solve, domain, *, how: str) -> None:
        super().__init__(name, seed, solve=solve, domain=domain)
        self.how = how

    def propose(self, requests):
        return [object() for _ in requests] if self.how == "mute" else super().propose(requests)

    def judge(self, ballots):
        ideas = [(b, idea) for b in ballots for pair in b.pairs for idea in pair]
        return [Verdict(b.round, b.task.id, "world", i.id, float("nan")) for b, i in ideas]

    def save(self, folder):
        return None if self.how == "lost" else super().save(folder)
"""


def test_what_was_asked_is_taken_as_it_is() -> None:
    assert ideas_of("al", [REQUEST], iter([IDEA])) == [IDEA]
    single = Verdict(1, TASK.id, "al", IDEA.id, 0.5)
    assert verdicts_of("al", [BALLOT], [VERDICT, single]) == [VERDICT, single]
    assert learned_of(Learned(1, None, 0)) == Learned(1, None, 0)
    whole = replace(IDEA, logprob=-1, decoding=Decoding(temperature=1))
    assert [idea.id for idea in ideas_of("al", [REQUEST], [whole])] == [
        replace(IDEA, logprob=-1.0, decoding=Decoding(temperature=1.0)).id
    ]
    (given,) = verdicts_of("al", [BALLOT], [replace(VERDICT, score=np.float32(0.5))])
    assert given == replace(VERDICT, score=0.5) and type(given.score) is float
    assert type(learned_of(Learned(1, np.float32(0.5), 0)).loss) is float
    assert type(learned_of(Learned(1, 10**30, 0)).loss) is float
    assert ideas_of("al", [REQUEST], []) == verdicts_of("al", [BALLOT], []) == []


@pytest.mark.parametrize(
    "given",
    [
        [None],
        ["2"],
        [IDEA, IDEA],
        [replace(IDEA, author="bo")],
        [replace(IDEA, task="other")],
        [replace(IDEA, round=2)],
        [replace(IDEA, turn=0)],
        [replace(IDEA, parents=("other",))],
        [replace(IDEA, text=2)],
        [replace(IDEA, text="\ud800")],
        [replace(IDEA, tokens=-1)],
        [replace(IDEA, tokens=2**62)],
        [replace(IDEA, sample=True)],
        [replace(IDEA, decoding=Decoding(max_tokens="many"))],  # type: ignore[arg-type]
        [replace(IDEA, decoding=Decoding(samples=2**70))],
        [replace(IDEA, logprob=NAN)],
        [replace(IDEA, decoding=None)],  # type: ignore[arg-type]
    ],
)
def test_ideas_that_were_not_asked_are_refused(given: list[Any]) -> None:
    with pytest.raises(ValueError):
        ideas_of("al", [REQUEST], given)


@pytest.mark.parametrize(
    "given",
    [
        [None],
        [VERDICT, replace(VERDICT, idea=IDEA.id, other=READ.id)],
        [replace(VERDICT, judge="world")],
        [replace(VERDICT, task="other")],
        [replace(VERDICT, round=2)],
        [replace(VERDICT, idea="other")],
        [replace(VERDICT, idea=IDEA.id)],
        [replace(VERDICT, score=NAN)],
        [replace(VERDICT, confidence=float("inf"))],
        [replace(VERDICT, score=-1.0)],
    ],
)
def test_verdicts_that_were_not_asked_are_refused(given: list[Any]) -> None:
    with pytest.raises(ValueError):
        verdicts_of("al", [BALLOT], given)


@pytest.mark.parametrize(
    "given",
    [
        None,
        (1, 2, 3),
        Learned(-1, None, 0),
        Learned(1, None, 2**62),
        Learned(1, None, 0, 3),  # type: ignore[arg-type]
        Learned(1, "much", 0),  # type: ignore[arg-type]
    ],
)
def test_a_study_that_ends_in_something_else_is_refused(given: Any) -> None:
    with pytest.raises(ValueError):
        learned_of(given)


@pytest.fixture
def strange(tmp_path: Path) -> Callable[[str], str]:
    """A recipe with one strange member of a kind, judging without the world."""

    def made(how: str) -> str:
        (tmp_path / "strange.py").write_text(STRANGE)
        member = f'[[members]]\nname = "odd"\nuse = "strange.py:Strange"\nhow = "{how}"\n'
        text = CROWD.replace("[arena]", 'world = "never"\n[arena]')
        return write_recipe(tmp_path, f"{text}{member}[judging]\npairs = 3\n")

    return made


def test_a_run_goes_on_with_a_member_that_answers_nonsense_and_poses_as_the_world(
    strange: Callable[[str], str], tmp_path: Path
) -> None:
    done = community(tmp_path, "run", strange("mute"), "--name", "mute")
    assert done.code == 0 and "odd abstains where it fails to judge" in done.err, done.err
    assert community(tmp_path, "verify", "mute").code == 0
    with Ledger.open(tmp_path / "runs" / "mute" / "ledger.db", read_only=True) as ledger:
        round_ = ledger.round(1)
    failed = [idea for idea in round_.ideas if idea.failure]
    assert {idea.author for idea in failed} == {"odd"}
    assert all("is not of the class Idea" in idea.failure for idea in failed)
    assert not any(verdict.judge in (WORLD, "odd") for verdict in round_.verdicts)


def test_a_checkpoint_without_an_id_is_refused_in_a_line(
    strange: Callable[[str], str], tmp_path: Path
) -> None:
    assert "save of odd" in community(tmp_path, "run", strange("lost")).refused()
