"""The shared mixture of experts: which members attempt a task, and who learns a lesson.

The gate is an online logistic regression over sparse task features (the domain, and the
domain at its level). A task goes to the `top_k` members of highest affinity + bias. The
bias balances load without a gradient, as in DeepSeek-V3 (arXiv 2412.19437, section 2.1.2,
"Auxiliary-Loss-Free Load Balancing"): it counts for selection only, never as skill, and
moves a fixed step against each member's load error.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from math import ceil, fsum, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from community.errors import CommunityError, unknown
from community.teaching import POLICIES, Case
from community.types import Idea, Lesson, Ranked, Ranking, Task, seed_of

Vector = NDArray[np.float64]  # (members,)

RATE = 0.1  # step of the logistic regression, for each feature and observation
LOAD_MEMORY = 0.98  # what a task leaves of the earlier load: about the last 50 tasks count
BIAS_LIMIT = 0.15  # two members whose affinities lie further apart than twice this keep their order

Answers = dict[tuple[str, str], list[Idea]]  # (task, author) -> ideas


class Router:
    """Top-k gating over members, learned online from rankings, and the choice of learners.

    Members of equal skill share the load; a member that is clearly better keeps its tasks.
    Two routers with the same arguments that saw the same rounds are in the same state.
    """

    def __init__(
        self,
        members: Sequence[str],
        *,
        seed: int,
        top_k: int | None = None,
        policy: str = "all",
        explore: float = 0.1,
        balance: float = 0.01,
        min_confidence: float = 0.6,
        min_supporters: int = 1,
        best: float = 1.0,
    ) -> None:
        """Route among `members`.

        `top_k` members attempt each task; None: every member attempts everything.
        `explore` is the share of tasks whose last place goes to a member that was not chosen;
        it shrinks with the square root of the round. `balance` is the step of the bias, 0 to
        leave loads alone. Lessons need `min_confidence` and `min_supporters` behind the winner;
        of a round's believed winners only the share `best` of highest confidence is taught.
        Raises CommunityError for no or repeated members, an impossible `top_k`, `explore` or
        `best`, and an unknown policy.
        """
        if not members or len(set(members)) != len(members):
            raise CommunityError("a router needs at least one member, and each name once")
        if top_k is not None and not 1 <= top_k <= len(members):
            raise CommunityError(f"top_k = {top_k} is impossible with {len(members)} members")
        if not 0 <= explore <= 1:
            raise CommunityError(f"explore = {explore} is not a share: choose 0 to 1")
        if not 0 < best <= 1:
            raise CommunityError(f"best = {best} is not a share: choose more than 0, at most 1")
        if policy not in POLICIES:
            raise unknown("policy", policy, POLICIES)
        self.members = tuple(members)
        self.top_k = top_k
        self.policy = policy
        self.explore = explore
        self.balance = balance
        self.min_confidence = min_confidence
        self.min_supporters = min_supporters
        self.best = best
        self.seed = seed
        self._place = {member: i for i, member in enumerate(self.members)}
        self._weights: dict[str, Vector] = {}
        self._bias = np.zeros(len(members))
        self._load = np.zeros(len(members))

    def skill(self, task: Task) -> dict[str, float]:
        """Member -> expected trust in its own answer to the task, in (0, 1); 0.5 if unseen."""
        return dict(zip(self.members, self._affinity(task).tolist(), strict=True))

    def known(self, tasks: Sequence[Task]) -> dict[str, float]:
        """Member -> mean expected trust in its own answers to the tasks; empty if all are new."""
        seen = [task for task in tasks if any(f in self._weights for f in _features(task))]
        if not seen:
            return {}
        mean = np.mean([self._affinity(task) for task in seen], axis=0)
        return dict(zip(self.members, mean.tolist(), strict=True))

    def delegate(self, tasks: Sequence[Task], n: int) -> dict[str, tuple[Task, ...]]:
        """Member -> the tasks it attempts in round n, in order. Moves the balancing bias."""
        teams: dict[str, list[Task]] = {member: [] for member in self.members}
        for task in tasks:
            for i in self._choose(task, n):
                teams[self.members[i]].append(task)
        return {member: tuple(chosen) for member, chosen in teams.items()}

    def observe(self, tasks: Sequence[Task], ideas: Sequence[Idea], ranking: Ranking) -> None:
        """Learn who is good at what.

        A member's target on a task is the mean confidence that the ranking puts behind its
        first answers, so 1 or 0 where the world spoke. Revised answers do not count: they say
        whom it read, not what it knows.
        """
        trust, own = _trust(ideas, ranking), _first_answers(ideas)
        for task in tasks:
            target, seen = np.zeros(len(self.members)), np.zeros(len(self.members))
            for member, i in self._place.items():
                if answers := own.get((task.id, member)):
                    known = [trust.get((task.id, idea.answer), 0.0) for idea in answers]
                    target[i], seen[i] = fsum(known) / len(known), 1.0
            step = RATE * seen * (target - self._affinity(task))
            for feature in _features(task):
                self._weights[feature] = self._weight(feature) + step

    def teach(
        self, n: int, tasks: Sequence[Task], ideas: Sequence[Idea], ranking: Ranking
    ) -> tuple[Lesson, ...]:
        """The lessons of round n: each trusted winner, for the learners that the policy names.

        In the order of the tasks, and of the members within a task.
        """
        by_id = {idea.id: idea for idea in ideas}
        own, ranked = _first_answers(ideas), _by_place(ideas, ranking)
        choose, why = POLICIES[self.policy]
        lessons: list[Lesson] = []
        for task, place in self._believed(tasks, by_id, ranking):
            case = self._case(n, task, by_id[place.idea], own)
            for learner in choose(case):
                answers = ranked.get((task.id, learner), ())
                lessons.append(_lesson(n, case, learner, f"{self.policy}: {why}", place, answers))
        return tuple(lessons)

    def state(self) -> dict[str, Any]:
        """Everything that was learned, as JSON that gives the same floats back."""
        return {
            "members": list(self.members),
            "bias": self._bias.tolist(),
            "load": self._load.tolist(),
            "weights": {name: vector.tolist() for name, vector in sorted(self._weights.items())},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state()`. Raises CommunityError if it is of other members or damaged."""
        if state.get("members") != list(self.members):
            raise CommunityError("the router's state is of other members; resume the same recipe")
        try:
            bias, load = self._vector(state["bias"]), self._vector(state["load"])
            weights = {str(name): self._vector(row) for name, row in state["weights"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CommunityError(
                f"the router's state is damaged ({error}); verify the run, or start it again"
            ) from error
        self._bias, self._load, self._weights = bias, load, weights

    def _vector(self, row: Any) -> Vector:
        vector = np.array(row, dtype=np.float64)
        if vector.shape != (len(self.members),):
            raise ValueError(f"{vector.size} numbers for {len(self.members)} members")
        return vector

    def _weight(self, feature: str) -> Vector:
        return self._weights.get(feature, np.zeros(len(self.members)))

    def _affinity(self, task: Task) -> Vector:
        logit = sum((self._weight(feature) for feature in _features(task)), np.float64(0))
        return np.asarray(1 / (1 + np.exp(-logit)))

    def _choose(self, task: Task, n: int) -> list[int]:
        """The places of the members that attempt the task, all of them or `top_k`."""
        if self.top_k is None:
            return list(range(len(self.members)))
        rng = random.Random(seed_of(self.seed, n, task.id, "delegate"))
        ties = np.array([rng.random() for _ in self.members]) * 1e-6
        order = np.argsort(-(self._affinity(task) + self._bias + ties), kind="stable").tolist()
        chosen, others = order[: self.top_k], order[self.top_k :]
        if others and rng.random() < self.explore / sqrt(max(n, 1)):
            chosen[-1] = rng.choice(others)
        self._rebalance(chosen)
        return chosen

    def _rebalance(self, chosen: list[int]) -> None:
        """One step of the bias per task: affinities of one domain are all alike, so a bias that
        moved once a round would send whole rounds to one member after the other."""
        self._load *= LOAD_MEMORY
        self._load[chosen] += 1
        error = np.sign(self._load.mean() - self._load)
        self._bias = np.clip(self._bias + self.balance * error, -BIAS_LIMIT, BIAS_LIMIT)

    def _believed(
        self, tasks: Sequence[Task], by_id: Mapping[str, Idea], ranking: Ranking
    ) -> list[tuple[Task, Ranked]]:
        """The tasks whose winner is worth teaching, and the winner's place; in order."""
        winners, found = ranking.winners(), []
        for task in {task.id: task for task in tasks}.values():
            place = winners.get(task.id)
            if place and self._trusted(place, by_id[place.idea]):
                found.append((task, place))
        firmest = sorted(found, key=lambda pair: (-pair[1].confidence, -pair[1].supporters))
        # .55 of 100 are 55: the float next to .55 would round up to 56
        share = Fraction(str(self.best))
        kept = {task.id for task, _ in firmest[: ceil(share * len(found))]}
        return [(task, place) for task, place in found if task.id in kept]

    def _trusted(self, place: Ranked, winner: Idea) -> bool:
        enough = place.confidence >= self.min_confidence
        backed = place.supporters >= self.min_supporters
        return enough and backed and bool(winner.answer) and not winner.failure

    def _case(self, n: int, task: Task, winner: Idea, own: Answers) -> Case:
        hits = {}
        for member in self.members:
            if answers := own.get((task.id, member)):
                hits[member] = sum(idea.answer == winner.answer for idea in answers) / len(answers)
        seed = seed_of(self.seed, n, task.id, "teach")
        return Case(task, winner, self.members, self.skill(task), hits, seed)


def _features(task: Task) -> Iterator[str]:
    """A one-hot code that grows with what is seen: an unseen level falls back on its domain."""
    yield f"{task.arena}:{task.domain}"
    yield f"{task.arena}:{task.domain}@{task.level}"


def _trust(ideas: Sequence[Idea], ranking: Ranking) -> dict[tuple[str, str], float]:
    """(task, answer) -> confidence behind the answer. Failures and empty answers have none."""
    by_id = {idea.id: idea for idea in ideas}
    trust: dict[tuple[str, str], float] = {}
    for entry in ranking.entries:
        idea = by_id[entry.idea]
        if idea.answer and not idea.failure:
            key = (idea.task, idea.answer)
            trust[key] = max(trust.get(key, 0.0), entry.confidence)
    return trust


def _first_answers(ideas: Sequence[Idea]) -> Answers:
    """(task, author) -> the ideas of its earliest turn: what it thought before it read others."""
    first: Answers = defaultdict(list)
    for idea in sorted(ideas, key=lambda idea: idea.turn):
        answers = first[idea.task, idea.author]
        if not answers or answers[0].turn == idea.turn:
            answers.append(idea)
    return dict(first)


def _by_place(ideas: Sequence[Idea], ranking: Ranking) -> dict[tuple[str, str], list[Idea]]:
    """(task, author) -> its ranked ideas, best first."""
    by_id = {idea.id: idea for idea in ideas}
    found: dict[tuple[str, str], list[Idea]] = defaultdict(list)
    for entry in sorted(ranking.entries, key=lambda entry: (entry.place, entry.idea)):
        idea = by_id[entry.idea]
        found[idea.task, idea.author].append(idea)
    return dict(found)


def _lesson(
    n: int, case: Case, learner: str, why: str, place: Ranked, own: Sequence[Idea]
) -> Lesson:
    other = (idea.id for idea in own if idea.answer != case.winner.answer and not idea.failure)
    return Lesson(
        round=n,
        learner=learner,
        task=case.task.id,
        idea=case.winner.id,
        prompt=case.task.prompt,
        text=case.winner.text,
        reason=why,
        confidence=place.confidence,
        rejected=next(other, ""),
    )
