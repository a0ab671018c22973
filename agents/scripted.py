"""Members without weights: a right answer, spoilt at a chosen rate.

They make tests and large communities cheap, and their errors are known, so what ranking
and routing make of them can be checked. They imitate what matters of a real member: it
errs by domain, judges by what it believes, follows what it reads, learns from lessons
(also wrong ones), fails now and then, and is the same again after `load`.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from math import log
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

from community.aside import aside
from community.config import option
from community.errors import CommunityError
from community.types import (
    Ballot,
    Decoding,
    Idea,
    Learned,
    Lesson,
    Request,
    Study,
    Task,
    Verdict,
    content_hash,
    seed_of,
)

LEAST = 1e-6  # no error rate gets nearer to 0 or 1 in a log-probability


class ScriptedAgent:
    """A deterministic function with a chosen error rate; no torch.

    `solve` gives the right text of a task; for lessons it must get by with the prompt and
    the domain. `domain` reads the domain off a lesson's prompt; without it a lesson changes
    the rates of all domains. Raises CommunityError for a rate outside 0 to 1 and for less
    than one sample.
    """

    def __init__(
        self,
        name: str,
        seed: int,
        *,
        solve: Callable[[Task], str],
        domain: Callable[[str], str] | None = None,
        error: Annotated[float, option("share of wrong answers")] = 0.2,
        errors: Annotated[Mapping[str, float] | None, option("the same for single domains")] = None,
        judge_error: Annotated[
            float, option("share of reversed judgements; near 1: hostile")
        ] = 0.1,
        stubbornness: Annotated[
            float, option("share of revisions that ignore what was read")
        ] = 0.5,
        learn_rate: Annotated[float, option("how far one lesson moves an error rate")] = 0.1,
        samples: Annotated[int, option("answers to a task")] = 1,
        crash: Annotated[float, option("share of requests that raise RuntimeError")] = 0.0,
    ) -> None:
        self.name = name
        self.seed = seed
        self.solve = solve
        self.domain = domain
        self.error = _rate(name, "error", error)
        self.errors = {d: _rate(name, f"errors.{d}", e) for d, e in (errors or {}).items()}
        self.judge_error = _rate(name, "judge_error", judge_error)
        self.stubbornness = _rate(name, "stubbornness", stubbornness)
        self.learn_rate = _rate(name, "learn_rate", learn_rate)
        self.crash = _rate(name, "crash", crash)
        if samples < 1:
            raise CommunityError(f"samples = {samples} of {name} is too few: choose 1 or more")
        self.samples = samples
        self.checkpoint = content_hash("scripted", self._state())

    def error_in(self, domain: str) -> float:
        """The share of wrong answers in a domain now."""
        return self.errors.get(domain, self.error)

    def propose(self, requests: Sequence[Request]) -> list[Idea]:
        """One idea per request and sample, in order; its `answer` is left to the arena.

        Raises RuntimeError at the rate `crash`, always for the same requests.
        """
        return [idea for request in requests for idea in self._attempt(request)]

    def judge(self, ballots: Sequence[Ballot]) -> list[Verdict]:
        """One verdict per pair of different answers; of equal answers none is better."""
        return [verdict for ballot in ballots for verdict in self._judge(ballot)]

    def learn(self, study: Study) -> Learned:
        """Move the error rates: down by right lessons, up by wrong ones.

        Replay changes nothing, since nothing is forgotten. The loss is the mean error rate
        where the lessons lie, before them. Raises CommunityError for another's lesson.
        """
        for lesson in (*study.lessons, *study.replay):
            if lesson.learner != self.name:
                raise CommunityError(
                    f"{self.name} was given a lesson for {lesson.learner}; "
                    "hand each lesson to the learner that it names"
                )
        losses = [self._take(lesson) for lesson in study.lessons]
        tokens = sum(len(lesson.text) for lesson in study.lessons)
        return Learned(len(losses), fmean(losses) if losses else None, tokens)

    def save(self, folder: Path) -> str:
        """Write `folder / id / state.json` unless there, become that checkpoint, return its id."""
        state = self._state()
        self.checkpoint = content_hash("scripted", state)
        path = folder / self.checkpoint / "state.json"
        if not path.exists():
            with aside(path) as part:
                part.write_text(json.dumps(state, sort_keys=True), encoding="utf-8")
                part.replace(path)
        return self.checkpoint

    def load(self, folder: Path, checkpoint: str) -> None:
        """Go back to a saved checkpoint. Raises CommunityError if it is missing or damaged."""
        path = folder / checkpoint / "state.json"
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            whole = content_hash("scripted", state) == checkpoint
        except (OSError, ValueError):
            whole = False
        if not whole:
            raise CommunityError(
                f"checkpoint {checkpoint} of {self.name} is missing or damaged ({path}); "
                "restore a copy or start the run anew"
            )
        self.error, self.errors = state["error"], dict(state["errors"])
        self.checkpoint = checkpoint

    def _state(self) -> dict[str, Any]:
        return {"agent": self.name, "error": self.error, "errors": self.errors}

    def _rng(self, *parts: Any) -> random.Random:
        return random.Random(seed_of(self.seed, self.name, *parts))

    def _attempt(self, request: Request) -> list[Idea]:
        task, seed = request.task, request.seed
        if self.crash and self._rng(seed, task.id, "crash").random() < self.crash:
            raise RuntimeError(f"{self.name} broke down on task {task.id}")
        samples = request.samples or self.samples
        error = min(max(self.error_in(task.domain), LEAST), 1 - LEAST)
        texts = [self._text(request, self._rng(seed, task.id, i)) for i in range(samples)]
        parents = tuple(idea.id for idea in request.readings)
        decoding = Decoding(temperature=1.0, samples=samples)
        return [
            Idea(
                task=task.id,
                author=self.name,
                checkpoint=self.checkpoint,
                round=request.round,
                turn=request.turn,
                sample=i,
                text=text,
                parents=parents,
                tokens=len(text),
                logprob=log(1 - error),  # its own opinion: it does not know where it errs
                decoding=decoding,
            )
            for i, text in enumerate(texts)
        ]

    def _text(self, request: Request, rng: random.Random) -> str:
        """What most of the readings say, unless it sticks to its own answer."""
        stubborn = rng.random() < self.stubbornness
        read = [idea for idea in request.readings if not idea.failure]
        if stubborn or not read:
            mine = [idea.text for idea in read if idea.author == self.name]
            return rng.choice(mine) if mine else self._answer(request.task, rng)
        said = Counter(idea.answer or idea.text for idea in read)
        most = max(said.values())
        leaders = sorted(answer for answer, count in said.items() if count == most)
        chosen = rng.choice(leaders)
        return next(idea.text for idea in read if chosen in (idea.answer, idea.text))

    def _answer(self, task: Task, rng: random.Random) -> str:
        right = self.solve(task)
        return _spoil(right, rng) if rng.random() < self.error_in(task.domain) else right

    def _judge(self, ballot: Ballot) -> list[Verdict]:
        right = self.solve(ballot.task)
        verdicts = []
        for one, other in ballot.pairs:
            if _says(one) == _says(other):
                continue
            # The draw hangs on what is compared and not on its place in the batch. Where
            # neither or both are right, there is nothing to know: a coin, and said to be one.
            rng = self._rng(ballot.seed, ballot.task.id, one.id, other.id, "judge")
            better = _is(one, right) - _is(other, right)
            wins = better > 0 if better else rng.random() < 0.5
            if rng.random() < self.judge_error:
                wins = not wins
            verdicts.append(
                Verdict(
                    round=ballot.round,
                    task=ballot.task.id,
                    judge=self.name,
                    idea=one.id,
                    score=float(wins),
                    confidence=1.0 if better else 0.5,
                    other=other.id,
                )
            )
        return verdicts

    def _take(self, lesson: Lesson) -> float:
        """Learn one lesson; the error rate before it."""
        where = self.domain(lesson.prompt) if self.domain else ""
        task = Task(lesson.prompt, "", where, 0, "train", 0, 0)
        right = lesson.text.strip() == self.solve(task).strip()
        if where and where not in self.errors:
            self.errors[where] = self.error
        before = self.error_in(where)
        for domain in [where] if where else list(self.errors):
            self.errors[domain] = self._moved(self.errors[domain], right)
        if not where:
            self.error = self._moved(self.error, right)
        return before

    def _moved(self, error: float, right: bool) -> float:
        return error + self.learn_rate * ((0.0 if right else 1.0) - error)


def _rate(name: str, option: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise CommunityError(f"{option} = {value} of {name} is not a share: choose 0 to 1")
    return float(value)


def _says(idea: Idea) -> str:
    return "" if idea.failure else idea.answer or idea.text.strip()


def _is(idea: Idea, right: str) -> bool:
    return not idea.failure and right.strip() in (idea.answer, idea.text.strip())


def _spoil(text: str, rng: random.Random) -> str:
    """The text with one character changed, a digit if it has any; never the text itself."""
    digits = [i for i, c in enumerate(text) if c in "0123456789"]
    places = digits or [i for i, c in enumerate(text) if not c.isspace()]
    if not places:
        return text + "?"
    i = rng.choice(places)
    others = "0123456789" if digits else "abcdefghijklmnopqrstuvwxyz"
    return text[:i] + rng.choice([c for c in others if c != text[i].lower()]) + text[i + 1 :]
