"""The nouns of the engine as frozen dataclasses, and the Agent and Arena protocols.

Everything here is plain data: it crosses process borders, is hashed for the ledger,
and depends on nothing but the standard library. Identity is content: the id of a task,
an idea or a lesson is a hash of what it says, so the same run gives the same ids
wherever and however often it is played.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

Split = Literal["train", "validation", "holdout"]
World = Literal["always", "validation", "never"]

WORLD = "world"
"""The judge's name in verdicts that come from an arena's own check."""
COMMUNITY = "community"
"""The solver's name in scores of the answers that all members agreed on."""


# `json.dumps` makes an encoder a call, and a run of 12 rounds hashes some two million times
_ENCODER = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def canonical(value: Any) -> str:
    """The one JSON text of a value."""
    return _ENCODER.encode(value)


def content_hash(*parts: Any, length: int = 20) -> str:
    """First `length` hex digits of the SHA-256 of the parts' canonical JSON."""
    return hashlib.sha256(canonical(parts).encode()).hexdigest()[:length]


def seed_of(*parts: Any) -> int:
    """A 63-bit seed from the parts, such as (run seed, round, agent, task, purpose).

    Every random draw of a run starts here, so none depends on scheduling.
    """
    return int(content_hash(*parts, length=16), 16) >> 1


def _plain(noun: Any) -> dict[str, Any]:
    """Field names -> values, floats as a database gives them back, which knows no -0.0."""
    return {k: v + 0.0 if isinstance(v, float) else v for k, v in vars(noun).items()}


@dataclass(frozen=True)
class Task:
    """One thing to solve. The reference answer is not here: it never leaves the arena."""

    prompt: str
    arena: str
    domain: str
    level: int
    split: Split
    seed: int
    index: int
    key: str = ""  # what makes two tasks the same task (a+b and b+a); the prompt if empty

    @cached_property
    def id(self) -> str:
        """Content hash: two tasks that ask the same have the same id, whatever their split."""
        return content_hash("task", self.arena, self.domain, self.key or self.prompt)


@dataclass(frozen=True)
class Decoding:
    """How an answer was sampled. Temperature 0 is greedy."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 64
    samples: int = 1


@dataclass(frozen=True)
class Idea:
    """One answer of one agent at one checkpoint, with the ideas it read (parents)."""

    task: str
    author: str
    checkpoint: str
    round: int
    turn: int
    sample: int
    text: str
    answer: str = ""  # the canonical form: ideas of a task with equal answers count as one
    parents: tuple[str, ...] = ()
    prompt: str = ""  # what the author read, where it differs from the task's prompt
    tokens: int = 0
    logprob: float = 0.0
    decoding: Decoding = field(default_factory=Decoding)
    failure: str = ""  # why there is no answer; a failed agent is data

    @cached_property
    def id(self) -> str:
        """Content hash of everything above, so a changed ledger row is found out."""
        return content_hash("idea", _plain(self) | {"decoding": _plain(self.decoding)})


@dataclass(frozen=True)
class Verdict:
    """One judgement of one idea (other is empty) or of a pair (score 1: idea beats other)."""

    round: int
    task: str
    judge: str
    idea: str
    score: float
    confidence: float = 1.0
    other: str = ""


@dataclass(frozen=True)
class Ranked:
    """An idea's place among the ideas of its task."""

    task: str
    idea: str
    place: int  # 1 is best
    strength: float
    low: float
    high: float
    comparisons: int  # how many comparisons stand behind the strength
    component: int  # ideas in different components were never compared, even indirectly
    confidence: (
        float  # share of the voters' trust behind this answer; the world's word where it spoke
    )
    supporters: int  # distinct members that gave this answer


@dataclass(frozen=True)
class Ranking:
    """The ideas of a round's tasks in order, and how far each judge was to be trusted."""

    method: str
    entries: tuple[Ranked, ...]
    reliability: Mapping[str, float]  # judge -> trust, 1 follows the truth, 0 noise, < 0 hostile
    disconnected: int = 0  # tasks whose comparisons fall into several components

    def winners(self) -> dict[str, Ranked]:
        """Task id -> its first-placed entry."""
        return {e.task: e for e in self.entries if e.place == 1}

    @classmethod
    def joined(cls, parts: Sequence[Ranking]) -> Ranking:
        """Rankings of different tasks as one; reliability is the mean over the judge's tasks."""
        if len(parts) == 1:
            return parts[0]
        total: dict[str, float] = {}
        heard: dict[str, int] = {}
        for part in parts:
            tasks = len(part.winners())
            for judge, value in part.reliability.items():
                total[judge] = total.get(judge, 0.0) + value * tasks
                heard[judge] = heard.get(judge, 0) + tasks
        return cls(
            method=parts[0].method,
            entries=tuple(sorted((e for p in parts for e in p.entries), key=lambda e: e.task)),
            reliability={j: round(total[j] / heard[j], 3) for j in sorted(total) if heard[j]},
            disconnected=sum(part.disconnected for part in parts),
        )


@dataclass(frozen=True)
class Lesson:
    """One row of training data, for one learner, and why it was chosen."""

    round: int
    learner: str
    task: str
    idea: str
    prompt: str
    text: str
    reason: str
    confidence: float = 1.0
    rejected: str = ""  # the idea it was preferred over, if any

    @cached_property
    def id(self) -> str:
        return content_hash("lesson", _plain(self))


@dataclass(frozen=True)
class Checkpoint:
    """An agent's weights, named by the hash of their content."""

    id: str
    agent: str
    round: int
    parent: str = ""
    path: str = ""  # relative to the run's folder
    kept: bool = True  # False: validation fell and the agent went back to `parent`
    before: float | None = None  # validation score of `parent`
    after: float | None = None  # validation score of this checkpoint
    lessons: tuple[str, ...] = ()  # ids of the lessons it was trained on
    steps: int = 0
    loss: float | None = None


@dataclass(frozen=True)
class Score:
    """Exact match of one solver on one split and level: `right` of `total`."""

    round: int
    solver: str  # a member, or "community"
    split: Split
    domain: str
    level: int
    right: float
    total: int


@dataclass(frozen=True)
class Round:
    """Everything one round decided; the ledger records it in one transaction."""

    n: int
    tasks: tuple[Task, ...]
    ideas: tuple[Idea, ...]
    verdicts: tuple[Verdict, ...]
    ranking: Ranking
    lessons: tuple[Lesson, ...]
    edges: tuple[tuple[str, str], ...] = ()  # (reader, author): who read whom
    router: Mapping[str, Any] = field(default_factory=dict)  # the router's state afterwards, JSON
    seconds: float = 0.0  # wall clock; not content


@dataclass(frozen=True)
class Learning:
    """What the members became after a round, and how everyone scores now. Round 0 is the start."""

    n: int
    checkpoints: tuple[Checkpoint, ...]
    scores: tuple[Score, ...]
    tokens: Mapping[str, int] = field(default_factory=dict)  # member -> tokens trained on
    seconds: float = 0.0  # wall clock; not content


@dataclass(frozen=True)
class Request:
    """Ask an agent to attempt a task; with `readings` it revises after reading them.

    `readings` are its own last idea and its neighbours'. Sample n is asked in the words of
    `phrasings[n]`, cyclically; without any, in the task's own.
    """

    task: Task
    round: int
    turn: int
    seed: int
    readings: tuple[Idea, ...] = ()
    phrasings: tuple[str, ...] = ()
    samples: int | None = None  # None: the agent's own number


@dataclass(frozen=True)
class Ballot:
    """Ask an agent which of each pair of ideas of a task is better."""

    task: Task
    round: int
    seed: int
    pairs: tuple[tuple[Idea, Idea], ...]


@dataclass(frozen=True)
class Study:
    """What an agent is to learn from: this round's lessons and a replay of earlier ones."""

    round: int
    seed: int
    lessons: tuple[Lesson, ...]
    replay: tuple[Lesson, ...] = ()
    steps: int = 1
    batch: int = 32

    @property
    def fresh(self) -> int:
        """How many of a batch are new lessons: half of it where there is something to replay."""
        return self.batch - self.batch // 2 if self.replay else self.batch


@dataclass(frozen=True)
class Learned:
    """What came of a study."""

    steps: int
    loss: float | None
    tokens: int
    left_out: tuple[str, ...] = ()  # ids of lessons that the learner cannot read


@runtime_checkable
class Agent(Protocol):
    """An expert. All methods work on batches and depend on their arguments alone."""

    name: str
    checkpoint: str

    def propose(self, requests: Sequence[Request]) -> list[Idea]:
        """One idea per request and sample, in order."""
        ...

    def judge(self, ballots: Sequence[Ballot]) -> list[Verdict]:
        """One verdict per pair; a pair the agent abstains on has none."""
        ...

    def learn(self, study: Study) -> Learned:
        """Train on the lessons. Raises CommunityError for a lesson that names another learner."""
        ...

    def save(self, folder: Path) -> str:
        """Write the weights to `folder / id` unless there, become that checkpoint, give its id."""
        ...

    def load(self, folder: Path, checkpoint: str) -> None:
        """Go back to a saved checkpoint. Raises CommunityError if its content does not match."""
        ...


@runtime_checkable
class Arena(Protocol):
    """A test ground. Tasks depend on (split, seed, index, level) alone."""

    name: str

    def pose(self, split: Split, seed: int, index: int, level: int) -> Task:
        """The task at `index`; never one whose content belongs to another split."""
        ...

    def verify(self, task: Task, idea: Idea) -> float | None:
        """1.0 right, 0.0 wrong, None where the world cannot tell (on a holdout: not right)."""
        ...

    def answer(self, task: Task, text: str) -> str:
        """The canonical answer within a text; empty if there is none."""
        ...

    def rephrase(self, task: Task, sample: int) -> str:
        """The prompt for the n-th sample: the task's own at 0, then equivalents if any."""
        ...
