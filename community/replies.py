"""What an agent gave back, looked at before anything is built on it: an agent may be anyone's.

Each function raises ValueError for a reply that does not belong to what was asked, which the
pool makes a failure of that member: nobody answers, votes or spends in another's name.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any, TypeVar

from community.types import Ballot, Decoding, Idea, Learned, Request, Verdict

Noun = TypeVar("Noun", Idea, Verdict, Decoding)

TEXTS = ("text", "answer", "prompt", "checkpoint", "failure")
MANY = 2**31


def ideas_of(author: str, requests: Sequence[Request], given: Iterable[Any]) -> list[Idea]:
    """The ideas that a member gave for requests."""
    asked = {request.task.id: request for request in requests}
    seen: set[tuple[str, int]] = set()
    found = [_plain(_of_kind(Idea, item)) for item in given]
    for idea in found:
        request = asked.get(idea.task)
        if request is None:
            raise ValueError(f"an idea is of task {idea.task!r}, which was not asked")
        _same(idea, author=author, round=request.round, turn=request.turn)
        if strangers := set(idea.parents) - {read.id for read in request.readings}:
            raise ValueError(f"an idea names parents that it was not given: {sorted(strangers)}")
        if (idea.task, idea.sample) in seen:
            raise ValueError(f"two ideas of a task are both its sample {idea.sample}")
        seen.add((idea.task, idea.sample))
    return found


def verdicts_of(judge: str, ballots: Sequence[Ballot], given: Iterable[Any]) -> list[Verdict]:
    """The verdicts that a member gave on ballots, on pairs or on single ideas of them."""
    asked = {ballot.task.id: (ballot.round, _comparable(ballot)) for ballot in ballots}
    seen: set[frozenset[str]] = set()
    found = [_sure(_of_kind(Verdict, item)) for item in given]
    for verdict in found:
        if verdict.task not in asked:
            raise ValueError(f"a verdict is on task {verdict.task!r}, which was not asked")
        round_, comparable = asked[verdict.task]
        _same(verdict, judge=judge, round=round_)
        if (verdict.idea, verdict.other) not in comparable:
            raise ValueError("a verdict is on ideas that were not asked")
        if (both := frozenset((verdict.idea, verdict.other))) in seen:
            raise ValueError("two verdicts are on the same ideas")
        seen.add(both)
    return found


def learned_of(given: Any) -> Learned:
    """What a member says came of a study."""
    if not isinstance(given, Learned):
        raise ValueError(f"learn gave {given!r} and not a Learned")
    for name in ("steps", "tokens"):
        _count(given, name)
    if not isinstance(given.loss, Real | None):
        raise ValueError(f"the loss of a Learned is {given.loss!r} and no number")
    if not isinstance(given.left_out, tuple):
        raise ValueError(f"left_out of a Learned is {given.left_out!r} and no tuple of ids")
    return given if given.loss is None else replace(given, loss=float(given.loss))


def _comparable(ballot: Ballot) -> set[tuple[str, str]]:
    """Ids of the pairs of a ballot either way round, and of their ideas alone."""
    pairs = {(x.id, y.id) for x, y in ballot.pairs}
    return pairs | {(y, x) for x, y in pairs} | {(x, "") for pair in pairs for x in pair}


def _of_kind(kind: type[Noun], item: Any) -> Noun:
    if not isinstance(item, kind):
        raise ValueError(f"{item!r} is not of the class {kind.__name__}")
    return item


def _same(noun: Idea | Verdict, **wanted: Any) -> None:
    for name, value in wanted.items():
        if (own := getattr(noun, name)) != value:
            kind = type(noun).__name__
            raise ValueError(f"the {name} of an object of {kind} is {own!r} and not {value!r}")


def _plain(idea: Idea) -> Idea:
    """With only what a ledger can hold and give back as it is."""
    for name in TEXTS:
        if not isinstance(value := getattr(idea, name), str):
            raise ValueError(f"the {name} of an idea is {value!r} and no text")
    how = _of_kind(Decoding, idea.decoding)
    for noun, name in (idea, "sample"), (idea, "tokens"), (how, "max_tokens"), (how, "samples"):
        _count(noun, name)
    how = replace(how, temperature=_float(how, "temperature"), top_p=_float(how, "top_p"))
    idea = replace(idea, logprob=_float(idea, "logprob"), decoding=how)
    _ = idea.id  # hashes it whole, which needs characters that UTF-8 knows
    return idea


def _sure(verdict: Verdict) -> Verdict:
    """With floats from 0 to 1, whatever kind of number a model gave."""
    for name in ("score", "confidence"):
        value = getattr(verdict, name)
        if not isinstance(value, Real) or not 0 <= float(value) <= 1:
            raise ValueError(f"the {name} of a verdict is {value!r} and not from 0 to 1")
    return replace(verdict, score=float(verdict.score), confidence=float(verdict.confidence))


def _float(noun: Idea | Decoding, name: str) -> float:
    """As a float what may be a whole number: content ids tell 0 from 0.0."""
    if not isinstance(value := getattr(noun, name), Real) or math.isnan(value):
        raise ValueError(f"the {name} of an idea is {value!r} and no number")
    return float(value)


def _count(noun: Idea | Decoding | Learned, name: str) -> None:
    """A bool is none: content ids tell True from 1. Sums of what is less than MANY stay whole."""
    value = getattr(noun, name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < MANY:
        raise ValueError(f"{name} is {value!r} and not a whole number from 0 to {MANY - 1:,}")
