"""The members as one: work goes out, and comes back in order whatever goes wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from community.agents.scripted import ScriptedAgent
from community.arenas.arithmetic import ArithmeticArena
from community.errors import CommunityError
from community.members import Listener, Members
from community.pool import Failure, LocalPool, Spec
from community.topology import build
from community.types import Ballot, Idea, Learned, Lesson, Study, Task, Verdict

NAMES = ("ada", "bo", "cy")
ARENA = ArithmeticArena()
TASKS = [ARENA.pose("train", 3, index, 2) for index in range(6)]
EVERYONE = dict.fromkeys(NAMES, TASKS)


class Notes(Listener):
    """Writes down what it hears."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []

    def phase(self, name: str, total: int) -> None:
        self.heard.append((name, total))

    def done(self, member: str, tokens: int) -> None:
        self.heard.append((member, tokens))


@contextmanager
def members(folder: Path, notes: Notes | None = None, **options: Any) -> Iterator[Members]:
    """Scripted members in this process; `options` are those of single members."""
    specs = [
        Spec(name, "scripted", 1, {"error": 0.3, **options.get(name, {})}, ".", "arithmetic")
        for name in NAMES
    ]
    pool = LocalPool(specs, folder)
    yield Members(pool, NAMES, ARENA, 7, notes, phrasings=2)
    pool.close()


def lesson(learner: str, index: int = 0) -> Lesson:
    task = TASKS[index]
    return Lesson(1, learner, task.id, "i", task.prompt, ARENA.solve(task), "test")


def test_ideas_come_member_by_member_with_their_answers(tmp_path: Path) -> None:
    with members(tmp_path) as crowd:
        ideas = crowd.propose(1, EVERYONE, samples=2)
    asked = [(name, t.id, s) for name in NAMES for t in TASKS for s in range(2)]
    assert [(i.author, i.task, i.sample) for i in ideas] == asked
    assert all(i.answer == i.text for i in ideas)


def test_an_idea_is_of_the_checkpoint_that_its_author_stands_at(tmp_path: Path) -> None:
    (tmp_path / "stack.py").write_text("""
from community.agents.scripted import ScriptedAgent

class Stack(ScriptedAgent):
    def save(self, folder):
        return super().save(folder) + "-of-a-part"
""")
    pool = LocalPool([Spec("ada", "stack.py:Stack", 1, {}, str(tmp_path), "arithmetic")], tmp_path)
    crowd = Members(pool, ["ada"], ARENA, 7)
    crowd.save()
    ideas = crowd.propose(1, {"ada": TASKS})
    assert {idea.checkpoint for idea in ideas} == {crowd.checkpoints["ada"]}


def test_an_answer_depends_on_member_round_task_and_purpose(tmp_path: Path) -> None:
    with members(tmp_path) as crowd:
        whole = crowd.propose(1, EVERYONE)
        alone = [i for name in NAMES for t in TASKS for i in crowd.propose(1, {name: [t]})]
        later, exam = crowd.propose(2, EVERYONE), crowd.propose(1, EVERYONE, purpose="exam")
    assert whole == alone
    texts = [[i.text for i in ideas] for ideas in (whole, later, exam)]
    assert texts[0] != texts[1] and texts[0] != texts[2]


def test_a_task_without_a_possible_answer_stays_without(tmp_path: Path) -> None:
    class Strict(ArithmeticArena):
        def answer(self, task: Task, text: str) -> str:
            return ""

    with members(tmp_path) as crowd:
        crowd.arena = Strict()
        ideas = crowd.propose(1, {"ada": TASKS})
    assert all(idea.text and not idea.answer and not idea.failure for idea in ideas)


def test_a_failure_is_an_idea_in_its_place(tmp_path: Path) -> None:
    with members(tmp_path, bo={"crash": 0.5}) as crowd:
        crowd.save()
        ideas = crowd.propose(4, EVERYONE)
    assert {i.task for i in ideas if i.author == "bo"} == {t.id for t in TASKS}
    failed = [idea for idea in ideas if idea.failure]
    assert 0 < len(failed) < len(TASKS)
    for idea in failed:
        assert (idea.author, idea.round, idea.text, idea.answer) == ("bo", 4, "", "")
        assert idea.checkpoint == crowd.checkpoints["bo"] != ""
        assert "broke down" in idea.failure


def test_a_member_whose_actor_is_gone_fails_all_its_ideas() -> None:
    class Gone:
        def call(
            self,
            method: str,
            work: Mapping[str, tuple[Any, ...]],
            done: Callable[[str, Any], None] = lambda name, result: None,
        ) -> dict[str, Any]:
            return {name: Failure("its actor died") for name in work}

        def close(self) -> None: ...

    crowd = Members(Gone(), NAMES, ARENA, 7)
    ideas = crowd.propose(1, EVERYONE)
    assert [(i.author, i.task) for i in ideas] == [(n, t.id) for n in NAMES for t in TASKS]
    assert {idea.failure for idea in ideas} == {"its actor died"}
    pair = (ideas[0], ideas[6])
    with pytest.warns(RuntimeWarning, match="ada abstains where it fails to judge: its actor died"):
        assert crowd.judge({"ada": [Ballot(TASKS[0], 1, 0, (pair,))]}) == []
    with pytest.raises(RuntimeError, match="ada cannot save"):
        crowd.save()


def test_revisions_read_the_last_answers_of_neighbours(tmp_path: Path) -> None:
    graph = build("path", NAMES)  # ada - bo - cy
    with members(tmp_path) as crowd:
        first = crowd.propose(1, EVERYONE, samples=2)
        second = crowd.revise(1, 1, EVERYONE, first, graph)
        third = crowd.revise(1, 2, EVERYONE, [*first, *second], graph)
    by_id = {idea.id: idea for idea in (*first, *second)}
    assert len(second) == len(third) == len(NAMES) * len(TASKS)
    for turn, ideas in ((1, second), (2, third)):
        for idea in ideas:
            read = [by_id[p] for p in idea.parents]
            authors = {"ada": ["ada", "bo"], "bo": ["bo", "ada", "cy"], "cy": ["cy", "bo"]}
            assert [i.author for i in read] == authors[idea.author]
            assert all((i.turn, i.task) == (turn - 1, idea.task) for i in read)


def test_nobody_revises_without_something_to_read(tmp_path: Path) -> None:
    with members(tmp_path) as crowd:
        first = crowd.propose(1, {"ada": TASKS[:2], "cy": TASKS[1:]})
        graph = build("complete", NAMES)
        revised = crowd.revise(1, 1, {"ada": TASKS[:2], "cy": TASKS[1:]}, first, graph)
    assert {(i.author, i.task) for i in revised} == {("ada", TASKS[1].id), ("cy", TASKS[1].id)}


def test_judges_give_verdicts_in_order(tmp_path: Path) -> None:
    ideas = [Idea(TASKS[0].id, n, "c", 1, 0, 0, n, str(k)) for k, n in enumerate(NAMES)]
    ballot = Ballot(TASKS[0], 1, 5, ((ideas[0], ideas[1]), (ideas[1], ideas[2])))
    with members(tmp_path) as crowd:
        verdicts = crowd.judge({"cy": [ballot], "ada": [ballot]})
    assert [v.judge for v in verdicts] == ["cy", "cy", "ada", "ada"]


def test_a_judge_that_fails_abstains_and_is_heard_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = ScriptedAgent.judge

    def broken(self: ScriptedAgent, ballots: Sequence[Ballot]) -> list[Verdict]:
        if self.name == "bo" and TASKS[1] in [ballot.task for ballot in ballots]:
            raise RuntimeError("out of memory")
        return judge(self, ballots)

    monkeypatch.setattr(ScriptedAgent, "judge", broken)
    two = [[Idea(t.id, n, "c", 1, 0, 0, n, n) for n in ("x", "y")] for t in TASKS[:2]]
    ballots = [Ballot(t, 1, 5, ((x, y),)) for t, (x, y) in zip(TASKS, two, strict=False)]
    with members(tmp_path) as crowd:
        said = "bo abstains where it fails to judge: RuntimeError: out of memory"
        with pytest.warns(RuntimeWarning, match=said) as heard:
            verdicts = crowd.judge({"ada": ballots, "bo": ballots})
    assert [v.judge for v in verdicts] == ["ada", "ada", "bo"] and len(heard) == 1


def test_learning_makes_checkpoints_that_can_be_gone_back_to(tmp_path: Path) -> None:
    with members(tmp_path) as crowd:
        crowd.save()
        start = dict(crowd.checkpoints)
        learned = crowd.learn({"ada": Study(1, 0, (lesson("ada"),))})
        assert set(learned) == {"ada"} and learned["ada"][0].steps == 1
        assert crowd.checkpoints["ada"] == learned["ada"][1] != start["ada"]
        assert crowd.checkpoints["bo"] == start["bo"]
        after = crowd.propose(1, {"ada": TASKS})
        crowd.load({"ada": start["ada"]})
        assert crowd.checkpoints == start
        assert {i.checkpoint for i in crowd.propose(1, {"ada": TASKS})} == {start["ada"]}
        crowd.load({"ada": learned["ada"][1]})
        assert crowd.propose(1, {"ada": TASKS}) == after
        crowd.load({})
    assert all((tmp_path / name).is_dir() for name in (*start.values(), learned["ada"][1]))


def test_who_fails_to_learn_stays_what_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn = ScriptedAgent.learn

    def broken(self: ScriptedAgent, study: Study) -> Learned:
        found = learn(self, study)
        if self.name == "bo":
            raise RuntimeError("out of memory")
        return found

    monkeypatch.setattr(ScriptedAgent, "learn", broken)
    with members(tmp_path) as crowd:
        crowd.save()
        start = dict(crowd.checkpoints)
        before = crowd.propose(1, {"bo": TASKS})
        with pytest.warns(
            RuntimeWarning, match=r"bo did not learn from its lessons .* RuntimeError"
        ):
            learned = crowd.learn({n: Study(1, 0, (lesson(n),)) for n in ("ada", "bo")})
        assert set(learned) == {"ada"}
        assert crowd.checkpoints["bo"] == start["bo"]
        assert crowd.propose(1, {"bo": TASKS}) == before


def test_what_the_user_can_mend_is_passed_on(tmp_path: Path) -> None:
    with members(tmp_path) as crowd:
        crowd.save()
        with pytest.raises(CommunityError, match="ada was given a lesson for bo"):
            crowd.learn({"ada": Study(1, 0, (lesson("bo"),))})
        with pytest.raises(CommunityError, match="missing or damaged"):
            crowd.load({"ada": "nothing"})


def test_a_listener_hears_phases_members_and_tokens(tmp_path: Path) -> None:
    notes = Notes()
    with members(tmp_path, notes) as crowd:
        ideas: Sequence[Idea] = crowd.propose(1, {"ada": TASKS, "bo": [], "cy": TASKS[:1]})
        tokens = {n: sum(i.tokens for i in ideas if i.author == n) for n in NAMES}
        crowd.learn({"cy": Study(1, 0, (lesson("cy"),))}, "first lessons")
    assert notes.heard[:3] == [("propose", 2), ("ada", tokens["ada"]), ("cy", tokens["cy"])]
    taught = len(ARENA.solve(TASKS[0]))
    assert notes.heard[3:5] == [("first lessons", 1), ("cy", taught)]
