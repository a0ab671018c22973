"""Which members learn a winner: the policies that the router's `teach` chooses from.

A policy is a function from a `Case` to learners, in the order of the members. A new one
is one function and one line in `POLICIES`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from community.types import Idea, Task

HOPELESS = 0.05  # below this skill a member is not expected to follow the lesson


@dataclass(frozen=True)
class Case:
    """What a policy may look at when it names the learners of one winner."""

    task: Task
    winner: Idea
    members: tuple[str, ...]
    skill: Mapping[str, float]  # member -> the gate's affinity for the task
    hits: Mapping[str, float]  # member -> share of its first answers equal to the winner's
    seed: int

    def missed(self, member: str, absent: bool) -> bool:
        """Whether most of its first answers differ; `absent` if it did not attempt the task."""
        return self.hits[member] < 0.5 if member in self.hits else absent


class Policy(NamedTuple):
    """How learners are chosen, and the reason that their lessons give."""

    choose: Callable[[Case], list[str]]
    why: str


def everyone(case: Case) -> list[str]:
    """Every member."""
    return list(case.members)


def authors(case: Case) -> list[str]:
    """The winner's author, and whoever gave the same answer at first."""
    return [m for m in case.members if m == case.winner.author or case.hits.get(m, 0.0) > 0]


def weakest(case: Case) -> list[str]:
    """The least able member that did not find it and is not hopeless.

    Where all of them are hopeless somebody still has to begin: the most able of them.
    """
    without = [m for m in case.members if case.missed(m, absent=True)]
    able = [m for m in without if case.skill[m] >= HOPELESS]
    if able:
        return [min(able, key=case.skill.__getitem__)]
    return [max(without, key=case.skill.__getitem__)] if without else []


def specialist(case: Case) -> list[str]:
    """The member that the gate ranks first; load counts for nothing here."""
    return [max(case.members, key=case.skill.__getitem__)]


def boosting(case: Case) -> list[str]:
    """The members that attempted the task and failed it."""
    return [m for m in case.members if case.missed(m, absent=False)]


def shuffled(case: Case) -> list[str]:
    """Control: a member drawn at random, whatever it can do."""
    return [random.Random(case.seed).choice(case.members)]


POLICIES = {
    "all": Policy(everyone, "every member learns it"),
    "author": Policy(authors, "gave the winning answer"),
    "weakest": Policy(weakest, "least able of those that did not find it"),
    "specialist": Policy(specialist, "most able for such tasks"),
    "boosting": Policy(boosting, "answered otherwise"),
    "shuffled": Policy(shuffled, "control, drawn at random"),  # what the others are measured by
}
