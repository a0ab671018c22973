"""A big ledger from scripted rounds: what `community.bench.ledger` measures, as a run's folder.

Each round poses sums to 50 scripted members over four turns: 25 tasks, 5,000 ideas. The first
round is one long conversation instead: 5 members and 5 tasks over 200 turns. From its second
turn on a member reads its own last idea and a neighbour's. To each idea belong on average
1.5 parents, two verdicts (the world's, and a peer's against another idea) and an entry in the
ranking, about as many as in a run of `crowd`; to each task a lesson, and learning follows. The
same number of ideas gives the same ledger.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from community.bench.crowd import sized
from community.config import Recipe, parse, read
from community.folder import create
from community.ledger import Ledger
from community.plugins import recipe as recipe_path
from community.types import (
    WORLD,
    Checkpoint,
    Decoding,
    Idea,
    Learning,
    Lesson,
    Ranked,
    Ranking,
    Round,
    Score,
    Task,
    Verdict,
    content_hash,
    seed_of,
)

MEMBERS, TASKS, TURNS = 50, 25, 4
LONG = 200
"""Turns of the first round, which has a tenth of the members and a fifth of the tasks."""
PER_ROUND = MEMBERS * TASKS * TURNS
RARE = "eureka"
"""A word of one idea in about 10,000."""
COMMON = "carrying"
"""A word of two ideas in five."""
FAILING = 0.002
"""Share of the ideas that are failures."""
_WAYS = (COMMON, COMMON, "column by column", "guessing the last digit", "estimating first")


def recipe_of(ideas: int) -> Recipe:
    """A recipe whose members and rounds are those of the ledger."""
    data = sized(read(recipe_path("crowd")), MEMBERS).model_dump(mode="json", exclude_none=True)
    data["run"] |= {
        "name": "million",
        "rounds": -(-ideas // PER_ROUND),
        "turns": TURNS - 1,
        "world": "always",
    }
    data["arena"]["operations"] = ["addition", "subtraction"]
    data["tasks"]["train"] = TASKS
    return parse(data)


@dataclass(frozen=True)
class Talk:
    """A task, its true answer and all that was said of it."""

    task: Task
    truth: int
    ideas: list[Idea] = field(default_factory=list)


class Script:
    """Plays rounds by script. Members are as good as their places in the roster say."""

    def __init__(self, members: list[str]) -> None:
        self.members = members
        self.checkpoints = {name: content_hash("start", name) for name in members}
        self.waiting: list[Lesson] = []  # for the next learning

    def start(self) -> Learning:
        made = [Checkpoint(id, name, 0) for name, id in self.checkpoints.items()]
        return Learning(0, tuple(made), ())

    def round(self, n: int, ideas: int = PER_ROUND) -> Round:
        """Round n, with its first so many ideas."""
        rng = random.Random(seed_of("big", n))
        long = n == 1
        members = self.members[: MEMBERS // 10 if long else MEMBERS]
        talks = [_pose(n, index, rng) for index in range(TASKS // 5 if long else TASKS)]
        for talk in talks:
            self._converse(n, talk, members, LONG if long else TURNS, rng)
            del talk.ideas[max(ideas, 0) :]
            ideas -= len(talk.ideas)
        ranked = [_rank(talk) for talk in talks]
        lessons = [
            _teach(n, *pair, self.members) for pair in zip(talks, ranked, strict=True) if pair[1]
        ]
        self.waiting += lessons
        trust = {name: round(rng.uniform(0.5, 1), 3) for name in members}
        return Round(
            n=n,
            tasks=tuple(talk.task for talk in talks),
            ideas=tuple(idea for talk in talks for idea in talk.ideas),
            verdicts=tuple(v for talk in talks for v in _judge(n, talk, members, rng)),
            ranking=Ranking("bradley-terry", tuple(e for x in ranked for e in x), trust),
            lessons=tuple(lessons),
            edges=tuple((name, members[k - 1]) for k, name in enumerate(members)),
            seconds=1.0,
        )

    def learning(self, n: int) -> Learning:
        """What the lessons since the last learning made of their learners."""
        made = []
        for name, before in self.checkpoints.items():
            own = tuple(x.id for x in self.waiting if x.learner == name)
            if own:
                id = content_hash("checkpoint", name, n)
                made.append(Checkpoint(id, name, n, before, "", True, 0.5, 0.6, own, 10, 0.1))
                self.checkpoints[name] = id
        self.waiting = []
        scores = [Score(n, name, "holdout", "addition", 3, 5.0, 8) for name in self.members]
        return Learning(n, tuple(made), tuple(scores), seconds=1.0)

    def _converse(
        self, n: int, talk: Talk, members: list[str], turns: int, rng: random.Random
    ) -> None:
        """Turn after turn, each member reads itself and who sits before it."""
        earlier: list[Idea] = []
        for turn in range(turns):
            given = []
            for k, name in enumerate(members):
                skill = 0.8 - 0.6 * k / len(members)
                text, answer = _say(talk, skill, rng)
                idea = Idea(
                    task=talk.task.id,
                    author=name,
                    checkpoint=self.checkpoints[name],
                    round=n,
                    turn=turn,
                    sample=0,
                    text=text,
                    answer=answer,
                    parents=(earlier[k].id, earlier[k - 1].id) if earlier else (),
                    tokens=20,
                    logprob=-round(rng.random(), 3),
                    decoding=_DECODING,
                    failure="" if text else "timed out",
                )
                given.append(idea)
            talk.ideas.extend(given)
            earlier = given


_DECODING = Decoding(0.8, 0.95, 64, 1)


def _pose(n: int, index: int, rng: random.Random) -> Talk:
    """A sum or a difference that no other task of the ledger asks."""
    a, b = n * 100 + index, rng.randrange(100, 1000)
    plus = rng.random() < 0.5
    prompt, domain = (f"{a}+{b}=", "addition") if plus else (f"{a + b}-{b}=", "subtraction")
    seed = seed_of("task", n, index)
    task = Task(prompt, "arithmetic", domain, len(str(a)), "train", seed, index)
    return Talk(task, a + b if plus else a)


def _say(talk: Talk, skill: float, rng: random.Random) -> tuple[str, str]:
    """Text and answer; nothing where the member failed."""
    if rng.random() < FAILING:
        return "", ""
    right = rng.random() < skill
    answer = str(talk.truth + (0 if right else rng.choice((-10, -1, 1, 10))))
    way = rng.choice(_WAYS)
    seen = f", {RARE}!" if rng.random() < 1e-4 else "."
    times = rng.randrange(1, 99)
    return f"I get {talk.task.prompt}{answer} by {way}, and checked it {times} times{seen}", answer


def _rank(talk: Talk) -> list[Ranked]:
    """Ideas by how many gave their answer; the last turn first among equals."""
    voices: dict[str, set[str]] = {}
    for idea in talk.ideas:
        voices.setdefault(idea.answer, set()).add(idea.author)
    total = sum(map(len, voices.values()))

    def worth(idea: Idea) -> float:
        return 4 * len(voices[idea.answer]) / total * bool(idea.answer) + idea.turn / LONG

    entries = []
    for place, idea in enumerate(sorted(talk.ideas, key=worth, reverse=True), 1):
        supporters = len(voices[idea.answer])
        strength = round(worth(idea), 3)
        entry = Ranked(
            task=idea.task,
            idea=idea.id,
            place=place,
            strength=strength,
            low=round(strength - 0.5, 3),
            high=round(strength + 0.5, 3),
            comparisons=2,
            component=0,
            confidence=round(supporters / total, 3),
            supporters=supporters,
        )
        entries.append(entry)
    return entries


def _judge(n: int, talk: Talk, members: list[str], rng: random.Random) -> Iterator[Verdict]:
    for k, idea in enumerate(talk.ideas):
        yield Verdict(n, idea.task, WORLD, idea.id, float(idea.answer == str(talk.truth)))
        other = talk.ideas[k - 1]
        if other.id != idea.id:
            judge = rng.choice(members)
            yield Verdict(n, idea.task, judge, idea.id, float(rng.random() < 0.5), 0.8, other.id)


def _teach(n: int, talk: Talk, ranked: list[Ranked], members: list[str]) -> Lesson:
    """The winner, for the next member in turn."""
    best = ranked[0]
    text = next(idea.text for idea in talk.ideas if idea.id == best.idea)
    learner = members[(n + talk.task.index) % len(members)]
    return Lesson(n, learner, best.task, best.idea, "", text, "weakest", best.confidence)


def make(folder: Path, ideas: int) -> Iterator[Round | Learning]:
    """Play so many ideas into a new run's folder; yields what was just recorded.

    Raises CommunityError if there is a run there already.
    """
    path = recipe_path("crowd")
    recipe = recipe_of(ideas)
    create(recipe, path.parent, folder)
    script = Script([name for name, _ in recipe.roster()])
    with Ledger.open(folder / "ledger.db") as ledger:
        ledger.learned(script.start())
        for n in range(1, recipe.run.rounds + 1):
            round = script.round(n, ideas - (n - 1) * PER_ROUND)
            ledger.record(round)
            yield round
            ledger.learned(script.learning(n))
