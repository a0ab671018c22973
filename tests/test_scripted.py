"""Scripted members: known errors, opinions, learning, and checkpoints that are checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from community.agents.scripted import ScriptedAgent
from community.errors import CommunityError
from community.types import Agent, Ballot, Idea, Lesson, Request, Study, Task

TASKS = [
    Task(f"{domain} {n}", "words", domain, 1, "train", 0, n)
    for domain in ("double", "next")
    for n in range(400)
]


def solve(task: Task) -> str:
    word, number = task.prompt.split()
    return str(2 * int(number) if word == "double" else int(number) + 1)


def first_word(prompt: str) -> str:
    return prompt.split()[0]


def agent(name: str = "ada", **options: Any) -> ScriptedAgent:
    return ScriptedAgent(name, 1, solve=solve, domain=first_word, **options)


def ask(tasks: Sequence[Task], turn: int = 0, **options: Any) -> list[Request]:
    return [Request(task, 1, turn, 5, **options) for task in tasks]


def share_right(member: ScriptedAgent, tasks: Sequence[Task]) -> float:
    ideas = member.propose(ask(tasks))
    return sum(i.text == solve(t) for i, t in zip(ideas, tasks, strict=True)) / len(tasks)


def says(task: Task, author: str, text: str) -> Idea:
    return Idea(task.id, author, "c", 1, 0, 0, text, text)


def lesson(task: Task, text: str, learner: str = "ada") -> Lesson:
    return Lesson(1, learner, task.id, "idea", task.prompt, text, "test")


def test_it_is_an_agent() -> None:
    assert isinstance(agent(), Agent)


def test_errors_come_at_the_chosen_rate_by_domain() -> None:
    member = agent(error=0.3, errors={"next": 0.0})
    assert share_right(member, TASKS[400:]) == 1.0
    assert share_right(member, TASKS[:400]) == pytest.approx(0.7, abs=0.07)
    assert share_right(agent(error=1.0), TASKS) == 0.0


def test_answers_depend_on_the_request_alone() -> None:
    requests = ask(TASKS[:30], samples=3)
    whole = agent(error=0.5).propose(requests)
    backwards = [agent(error=0.5).propose([request]) for request in reversed(requests)]
    assert whole == [idea for ideas in reversed(backwards) for idea in ideas]
    assert whole != agent("bea", error=0.5).propose(requests)
    assert [idea.sample for idea in whole[:3]] == [0, 1, 2]


def test_ideas_carry_their_provenance() -> None:
    member = agent(error=0.25)
    read = (says(TASKS[7], "bea", "14"), says(TASKS[7], "cy", "15"))
    (idea,) = member.propose([Request(TASKS[7], 3, 2, 5, readings=read)])
    assert idea.parents == (read[0].id, read[1].id)
    assert (idea.author, idea.round, idea.turn) == ("ada", 3, 2)
    assert idea.checkpoint == member.checkpoint != ""
    assert idea.tokens == len(idea.text)
    assert idea.logprob == pytest.approx(-0.2877, abs=1e-4)


def test_a_pliable_member_adopts_the_majority_and_a_stubborn_one_does_not() -> None:
    task = TASKS[21]
    failed = replace(says(task, "eve", "9"), failure="broke down")
    texts = [("bea", "99"), ("cy", "99"), ("ada", "42")]
    read = (failed, failed, failed, *(says(task, who, text) for who, text in texts))
    request = ask([task], turn=1, readings=read)
    assert agent(stubbornness=0.0).propose(request)[0].text == "99"
    assert agent(stubbornness=1.0, error=1.0).propose(request)[0].text == "42"  # what it said


def test_judges_err_at_their_rate_and_hostile_ones_reverse() -> None:
    def share(judge_error: float) -> float:
        pairs = [(says(t, "bea", solve(t)), says(t, "cy", "x")) for t in TASKS]
        ballots = [Ballot(t, 1, 5, (pair,)) for t, pair in zip(TASKS, pairs, strict=True)]
        verdicts = agent(judge_error=judge_error).judge(ballots)
        assert [(v.idea, v.other) for v in verdicts] == [(a.id, b.id) for a, b in pairs]
        return sum(v.score for v in verdicts) / len(verdicts)

    assert share(0.0) == 1.0
    assert share(0.2) == pytest.approx(0.8, abs=0.05)
    assert share(1.0) == 0.0


def test_it_abstains_on_equal_answers_and_tosses_a_coin_between_wrong_ones() -> None:
    task = TASKS[3]
    same = (says(task, "bea", "6"), says(task, "cy", "6"))
    wrong = (says(task, "bea", "7"), says(task, "cy", "8"))
    verdicts = agent().judge([Ballot(task, 1, 5, (same, wrong))])
    assert [(v.idea, v.confidence) for v in verdicts] == [(wrong[0].id, 0.5)]


def test_right_lessons_lower_the_error_in_their_domain_and_wrong_ones_raise_it() -> None:
    member = agent(error=0.5, learn_rate=0.2)
    learned = member.learn(Study(1, 0, (lesson(TASKS[4], "8"), lesson(TASKS[5], "10"))))
    assert (learned.steps, learned.tokens) == (2, 3)
    assert member.error_in("double") == pytest.approx(0.5 * 0.8**2)
    assert member.error_in("next") == 0.5
    member.learn(Study(2, 0, (lesson(TASKS[403], "77"),)))
    assert member.error_in("next") == pytest.approx(0.6)


def test_without_a_domain_a_lesson_counts_for_all_of_them() -> None:
    member = ScriptedAgent("ada", 1, solve=solve, error=0.5, errors={"next": 0.4}, learn_rate=0.5)
    member.learn(Study(1, 0, (lesson(TASKS[4], "8"),)))
    assert (member.error_in("next"), member.error_in("double")) == (0.2, 0.25)


@pytest.mark.parametrize("replayed", [False, True])
def test_it_refuses_a_lesson_for_another(replayed: bool) -> None:
    member = agent()
    own, foreign = lesson(TASKS[4], "8"), lesson(TASKS[5], "10", learner="bea")
    study = Study(1, 0, (own,), (foreign,)) if replayed else Study(1, 0, (own, foreign))
    before = member.error_in("double")
    with pytest.raises(CommunityError, match="for bea"):
        member.learn(study)
    assert member.error_in("double") == before


def test_crashes_are_chosen_by_the_request() -> None:
    def broken(member: ScriptedAgent) -> list[str]:
        found = []
        for request in ask(TASKS):
            try:
                member.propose([request])
            except RuntimeError:
                found.append(request.task.id)
        return found

    first = broken(agent(crash=0.1))
    assert 40 < len(first) < 130
    assert broken(agent(crash=0.1)) == first
    assert broken(agent()) == []


@settings(max_examples=25, deadline=None)
@given(
    error=st.floats(0, 1), errors=st.dictionaries(st.sampled_from("abcd"), st.floats(0, 1)),
    rate=st.floats(0, 1),
)  # fmt: skip
def test_a_saved_member_comes_back_exactly(
    tmp_path_factory: pytest.TempPathFactory, error: float, errors: dict[str, float], rate: float
) -> None:
    folder = tmp_path_factory.mktemp("checkpoints")
    member = agent(error=error, errors=errors, learn_rate=rate)
    start = member.save(folder)
    answers = member.propose(ask(TASKS[:5]))
    member.learn(Study(1, 0, (lesson(TASKS[4], "8"),)))
    assert member.save(folder) == member.checkpoint
    other = agent(learn_rate=rate)
    other.load(folder, start)
    assert other.checkpoint == start
    assert other.propose(ask(TASKS[:5])) == answers
    other.learn(Study(1, 0, (lesson(TASKS[4], "8"),)))
    assert other.save(folder) == member.checkpoint


def test_learning_changes_the_checkpoint_only_when_saved(tmp_path: Path) -> None:
    member = agent(error=0.5)
    start = member.save(tmp_path)
    member.learn(Study(1, 0, (lesson(TASKS[4], "8"),)))
    assert member.checkpoint == start
    assert member.save(tmp_path) != start
    assert member.save(tmp_path) == member.checkpoint


@pytest.mark.parametrize("damage", ["missing", "truncated", "changed"])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, damage: str) -> None:
    member = agent(error=0.5)
    path = tmp_path / member.save(tmp_path) / "state.json"
    text = path.read_text()
    path.unlink()
    if damage != "missing":
        path.write_text(text[:-5] if damage == "truncated" else text.replace("0.5", "0.1"))
    other = agent(error=0.3)
    with pytest.raises(CommunityError, match=r"missing or damaged.*restore a copy"):
        other.load(tmp_path, member.checkpoint)
    assert other.error_in("double") == 0.3


@pytest.mark.parametrize("option", [{"error": 1.5}, {"errors": {"next": -1}}, {"samples": 0}])
def test_impossible_options_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(CommunityError, match="choose"):
        agent(**option)
