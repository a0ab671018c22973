"""Ideas and verdicts -> the ideas of each task in order, and how far each judge is to be trusted.

The model is Bradley-Terry with annotator quality, "Crowd-BT" (Chen, Bennett, Collins-Thompson
and Horvitz, "Pairwise ranking aggregation in a crowdsourced setting", WSDM 2013, eq. 6): judge
j puts a before b with probability eta_j P(a > b) + (1 - eta_j) P(b > a), P(a > b) =
sigma(s_a - s_b). With r_j = 2 eta_j - 1 and t = tanh((s_a - s_b) / 2) that is (1 + r_j t) / 2:
r = 1 follows the truth, 0 is noise, -1 always says the opposite.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_expit, logit

from community.errors import CommunityError, unknown
from community.evidence import (
    AUTHOR,
    JUDGE,
    Evidence,
    Floats,
    Ints,
    gather,
    sum_by,
    top_choices,
    vote_share,
)
from community.types import WORLD, Idea, Ranked, Ranking, Verdict

PRECISION = 0.1  # of the normal prior on strengths: a standard deviation of about 3
TRUST = 0.98  # what is believed of a judge nobody has measured
CERTAIN = 0.9999  # the world's reliability, and everyone's in the unweighted model
FEW = 2.0  # comparisons that this belief counts for
ANCHOR = 0.5  # more weight for a reliability that was measured: this share of what the judge says
DIGITS = 3  # of what is returned: finer than any interval, coarser than the optimiser's last steps


@dataclass(frozen=True)
class Fit:
    """What a method makes of the evidence: (I,) arrays, and each source's reliability."""

    strength: Floats
    low: Floats  # 95% interval; the strength itself for methods that give none
    high: Floats
    confidence: Floats
    reliability: Mapping[str, float]


Method = Callable[[Evidence, Mapping[str, float]], Fit]


def pairings(ideas: Sequence[Idea], rng: random.Random, budget: int) -> list[tuple[Idea, Idea]]:
    """Pairs of ideas for peers to judge, at most `budget` a task unless it takes more to connect.

    Ideas with equal answers are one item, for which its first idea stands; ideas without an
    answer are left out. A random cycle (a path if the budget is short) through a task's items
    keeps the comparisons connected, random pairs fill the rest of the budget; which idea of a
    pair comes first is random too. Takes time in proportion to the number of pairs.
    """
    first: dict[str, dict[str, Idea]] = {}
    for idea in sorted(ideas, key=lambda i: (i.task, i.turn, i.author, i.sample, i.text)):
        if idea.answer and not idea.failure:
            first.setdefault(idea.task, {}).setdefault(idea.answer, idea)
    pairs: list[tuple[Idea, Idea]] = []
    for items in first.values():
        order = list(items.values())
        rng.shuffle(order)
        pairs += [(order[i], order[j]) for i, j in _connected(len(order), rng, budget)]
    return pairs


def _connected(k: int, rng: random.Random, budget: int) -> list[tuple[int, int]]:
    """Distinct pairs of range(k): a path, the edge that closes it, random others, to `budget`."""
    total = k * (k - 1) // 2
    wanted = max(k - 1, min(budget, total))
    chosen = [(i, i + 1) for i in range(k - 1)]
    if wanted >= k > 2:
        chosen.append((k - 1, 0))
    taken = {(min(p), max(p)) for p in chosen}
    extra = wanted - len(chosen)
    for code in rng.sample(range(total), min(total, extra + len(chosen)) if extra else 0):
        j = (1 + isqrt(1 + 8 * code)) // 2  # the inverse of code = j (j - 1) / 2 + i, i < j
        i = code - j * (j - 1) // 2
        if extra and (i, j) not in taken:
            chosen.append((i, j) if rng.random() < 0.5 else (j, i))
            extra -= 1
    return chosen


def rank(
    ideas: Sequence[Idea],
    verdicts: Sequence[Verdict],
    method: str = "bradley-terry",
    trust: Mapping[str, float] | None = None,
    own: Method | None = None,
) -> Ranking:
    """Every idea's place among the ideas of its task; neither argument's order matters.

    `own` is a method that is not in METHODS, and `method` then its name.
    `trust` is what is known of judges and authors beforehand (1 follows the truth, 0 noise,
    < 0 hostile), such as their self-consistency. Ideas with one answer share everything but the
    place. Where the world spoke, its right answers come before the unchecked and these before
    the wrong, and `confidence` is 1.0 or 0.0; elsewhere it is the share of the voters' weight,
    max(reliability, 0) ** 2 each, whose top choice is the answer, times how sure they are of
    it. Members without an answer have no vote. Ideas without an answer come last, with the
    lowest strength of their task, component -1 and no comparisons. Strengths are centred within
    each component.

    CommunityError for an unknown method, and where one of one's own gives anything but a finite
    number for each answer; see `gather` for what else can be wrong.
    """
    if own is None and method not in METHODS:
        raise unknown("ranking method", method, METHODS)
    evidence = gather(ideas, verdicts)
    fit = (own or METHODS[method])(evidence, trust or {})
    if own is not None:
        fit = _checked(fit, len(evidence.items), method)
    component = evidence.component()
    split = len(np.unique(evidence.task[component > 0]))
    entries = _entries(ideas, evidence, fit, component.tolist())
    return Ranking(method, entries, fit.reliability, disconnected=split)


def _checked(fit: object, items: int, method: str) -> Fit:
    """A fit in numbers of Python, as a ledger holds them; those of numpy would damage it.

    Raises CommunityError for what is no Fit, for numbers that cannot be put in order, or are not
    one an answer. A strength of NaN would have any place, and be 0 in sums.
    """
    if not isinstance(fit, Fit):
        raise CommunityError(f"the ranker {method} gave {fit!r}; it must give a Fit")
    given = {name: getattr(fit, name) for name in ("strength", "low", "high", "confidence")}
    for name, values in given.items():
        if np.shape(values) != (items,) or not _finite(values):
            raise CommunityError(
                f"{name} of the ranker {method} is not one finite number for each of {items} "
                "answers; without an interval, low and high are the strength"
            )
    trusted = fit.reliability
    if not isinstance(trusted, Mapping) or not _finite(list(trusted.values())):
        raise CommunityError(
            f"reliability of the ranker {method} is {trusted!r}; it must give each member that it "
            "names a finite number"
        )
    numbers: dict[str, Any] = {k: np.asarray(v, dtype=np.float64) for k, v in given.items()}
    return Fit(**numbers, reliability={str(k): float(v) for k, v in trusted.items()})


def _finite(values: Any) -> bool:
    array = np.asarray(values)
    return array.dtype.kind in "biuf" and bool(np.isfinite(array).all())


def _entries(
    ideas: Sequence[Idea], evidence: Evidence, fit: Fit, component: list[int]
) -> tuple[Ranked, ...]:
    """The ideas by task and place."""
    strength, low, high = (np.round(x, DIGITS).tolist() for x in (fit.strength, fit.low, fit.high))
    spoke = ~np.isnan(evidence.world)
    confidence = np.round(np.where(spoke, evidence.world, fit.confidence), DIGITS).tolist()
    standing = np.where(spoke, 1 - 2 * evidence.world, 0).tolist()  # right -1, unknown 0, wrong 1
    comparisons = evidence.comparisons().tolist()

    supporters: dict[int, set[str]] = {}
    lead: dict[int, str] = {}  # an item's smallest idea id keeps tied items apart
    weakest: dict[str, int] = {}
    for idea in ideas:
        item = evidence.item_of[idea.id]
        if item >= 0:
            supporters.setdefault(item, set()).add(idea.author)
            lead[item] = min(lead.get(item, idea.id), idea.id)
            worst = weakest.setdefault(idea.task, item)
            weakest[idea.task] = min(worst, item, key=lambda i: (strength[i], i))

    def order(idea: Idea) -> tuple[Any, ...]:
        i = evidence.item_of[idea.id]
        if i < 0:
            return idea.task, 1, idea.id
        key = standing[i], -strength[i], -confidence[i], -len(supporters[i]), lead[i]
        return idea.task, 0, *key, idea.tokens, idea.id  # of one answer the shortest text first

    entries: list[Ranked] = []
    for idea in sorted(ideas, key=order):
        place = entries[-1].place + 1 if entries and entries[-1].task == idea.task else 1
        i = evidence.item_of[idea.id]
        j = i if i >= 0 else weakest.get(idea.task, -1)
        scale = (strength[j], low[j], high[j]) if j >= 0 else (0.0, 0.0, 0.0)
        behind = (comparisons[i], component[i]) if i >= 0 else (0, -1)
        votes = (confidence[i], len(supporters[i])) if i >= 0 else (0.0, 0)
        entries.append(Ranked(idea.task, idea.id, place, *scale, *behind, *votes))
    return tuple(entries)


def bradley_terry(evidence: Evidence, trust: Mapping[str, float]) -> Fit:
    """Bradley-Terry with every judge's reliability estimated jointly, and 95% intervals."""
    e = evidence
    roles = np.array([role for _, role in e.sources])
    floor = np.where(roles == AUTHOR, 0.0, -1.0)  # a poor author's answer is no evidence against it
    belief = np.array([trust.get(name, TRUST) for name, _ in e.sources])
    belief = np.where(roles == WORLD, CERTAIN, np.clip((belief - floor) / (1 - floor), 0.01, 0.99))
    right, wrong, checked = _checks(e)
    mean = (FEW * belief + right) / (FEW + right + wrong)
    said = sum_by(e.source, e.weight, len(e.sources))
    measured = np.array([name in trust for name, _ in e.sources])
    anchor = ANCHOR * np.where(measured, 1.0, checked / (checked + FEW))
    count = FEW + right + wrong + anchor * said + _unchecked(e)
    strength, reliability = _crowd(e, mean, count, floor, free=roles != WORLD)

    total: dict[str, float] = dict.fromkeys(e.voters, 0.0)
    heard = dict(total)
    for (name, role), r, n in zip(e.sources, reliability, FEW + right + wrong + said, strict=True):
        if role != WORLD:
            total[name] += r * n
            heard[name] += n
    trusted = {name: round(float(total[name] / heard[name]), DIGITS) for name in e.voters}
    return _finish(e, strength, reliability, trusted)


def _checks(e: Evidence) -> tuple[Floats, Floats, Floats]:
    """(S,) how often each source was seen right, seen wrong, and either of them by the world.

    The world checks an author's vote, and a judge's word on a right and a wrong item. Where it
    is silent and all authors of a task, two or more, gave one answer, they count as right.
    """
    n = len(e.sources)
    number = {name: s for s, (name, role) in enumerate(e.sources) if role == AUTHOR}
    author = np.array([number.get(name, -1) for name in e.voters], dtype=np.intp)[e.voter]
    agreed = (np.bincount(e.task)[e.task] == 1) & (np.bincount(e.voted, minlength=len(e.task)) > 1)
    known = ~np.isnan(e.world)
    vote = np.where(known, e.world, np.where(agreed, 1.0, np.nan))[e.voted]
    by_world = sum_by(author, e.share * known[e.voted], n)
    right = sum_by(author, e.share * (vote == 1), n)
    wrong = sum_by(author, e.share * (vote == 0), n)
    role = np.array([role for _, role in e.sources])[e.source]
    pair = np.flatnonzero((role == JUDGE) & (np.abs(e.world[e.a] - e.world[e.b]) == 1))
    agree = np.where(e.world[e.a[pair]] == 1, e.score[pair], 1 - e.score[pair])
    right += sum_by(e.source[pair], e.weight[pair] * agree, n)
    wrong += sum_by(e.source[pair], e.weight[pair] * (1 - agree), n)
    by_world += sum_by(e.source[pair], e.weight[pair], n)
    return right, wrong, by_world


def _unchecked(e: Evidence) -> Floats:
    """(S,) weight of what each source said in tasks of at most two voices and a silent world.

    When two disagree nobody can tell who is right, so this says nothing of their reliability;
    without care the model would trust one of them blindly, by an accident of the weights.
    """
    name = np.unique([name for name, _ in e.sources], return_inverse=True)[1]
    tasks = int(e.task.max(initial=-1)) + 1
    voices = np.unique(name[e.source] * tasks + e.task[e.a]) % max(tasks, 1)
    few = np.bincount(voices, minlength=tasks) <= 2
    few[e.task[~np.isnan(e.world)]] = False
    return sum_by(e.source, e.weight * few[e.task[e.a]], len(e.sources))


def unweighted(evidence: Evidence, trust: Mapping[str, float]) -> Fit:
    """Plain Bradley-Terry, which believes every judge alike; 95% intervals."""
    n = len(evidence.sources)
    mean, floor = np.full(n, (1 + CERTAIN) / 2), np.full(n, -1.0)
    free = np.zeros(n, dtype=bool)
    strength, reliability = _crowd(evidence, mean, np.ones(n), floor, free)
    return _finish(evidence, strength, reliability, dict.fromkeys(evidence.voters, 1.0))


def majority(evidence: Evidence, trust: Mapping[str, float]) -> Fit:
    """Majority of the authors: one vote each, for the answer it gives most often."""
    _, item, portion = top_choices(evidence, judges=False)
    return _count(evidence, vote_share(evidence, item, portion))


def self_consistency(evidence: Evidence, trust: Mapping[str, float]) -> Fit:
    """Majority of all samples (Wang et al., ICLR 2023, arXiv:2203.11171), whoever's they are."""
    return _count(evidence, vote_share(evidence, evidence.voted, evidence.samples))


def elo(evidence: Evidence, trust: Mapping[str, float]) -> Fit:
    """Elo ratings after one pass through the comparisons in a fixed random order."""
    e = evidence
    order = list(range(len(e.a)))
    random.Random(0).shuffle(order)
    a, b, score, weight = e.a.tolist(), e.b.tolist(), e.score.tolist(), e.weight.tolist()
    rating = [0.0] * len(e.items)
    for n in order:
        expected = 1 / (1 + 10 ** ((rating[b[n]] - rating[a[n]]) / 400))
        change = 16 * weight[n] * (score[n] - expected)
        rating[a[n]] += change
        rating[b[n]] -= change
    _, item, portion = top_choices(e)
    return _count(e, vote_share(e, item, portion), np.array(rating))


METHODS: dict[str, Method] = {
    "bradley-terry": bradley_terry,
    "unweighted": unweighted,
    "majority": majority,
    "self-consistency": self_consistency,
    "elo": elo,
}


def _count(evidence: Evidence, share: Floats, strength: Floats | None = None) -> Fit:
    """A fit without intervals that trusts everyone; the share of votes is its confidence."""
    value = share if strength is None else strength
    return Fit(value, value, value, share, dict.fromkeys(evidence.voters, 1.0))


def _finish(
    e: Evidence, strength: Floats, reliability: Floats, trusted: Mapping[str, float]
) -> Fit:
    """Add intervals and the trust-weighted share of votes."""
    half = 1.96 * np.sqrt(_variance(e, strength, reliability[e.source]))
    voter, item, portion = top_choices(e)
    weight = np.maximum([trusted[name] for name in e.voters], 0.0) ** 2
    confidence = vote_share(e, item, weight[voter] * portion, _sure_of(e, voter, item))
    return Fit(strength, strength - half, strength + half, confidence, trusted)


def _sure_of(e: Evidence, voter: Ints, item: Ints) -> Floats:
    """How sure each voter is of its item; 1 of one that it did not write itself."""
    n = len(e.items)
    wrote, asked = e.voter * n + e.voted, voter * n + item
    order = np.argsort(wrote)
    place = order[np.searchsorted(wrote, asked, sorter=order).clip(max=len(wrote) - 1)]
    return np.where(wrote[place] == asked, e.sure[place], 1.0)


def _crowd(
    e: Evidence, mean: Floats, count: Floats, floor: Floats, free: NDArray[np.bool_]
) -> tuple[Floats, Floats]:
    """Most probable strengths (I,) and reliabilities (S,) under Crowd-BT, by L-BFGS.

    Reliability is floor + (1 - floor) m, with a beta prior on m of mode `mean` that counts as
    `count` observations; m = sigma(u) is estimated through u where `free`, else fixed.
    """
    n = len(e.items)
    start = np.concatenate([np.zeros(n), logit(mean)])

    def loss(x: Floats) -> tuple[float, Floats]:
        s, m = x[:n], expit(x[n:])
        r = (floor + (1 - floor) * m)[e.source]
        t = np.tanh((s[e.a] - s[e.b]) / 2)
        agree = np.clip(r * t, -1 + 1e-12, 1 - 1e-12)
        prior = count * (mean * log_expit(x[n:]) + (1 - mean) * log_expit(-x[n:]))
        likely = e.score * np.log1p(agree) + (1 - e.score) * np.log1p(-agree)
        # sums, not dot products: these may depend on the number of threads
        value = 0.5 * PRECISION * (s * s).sum() - prior[free].sum() - (e.weight * likely).sum()
        slope = e.weight * ((1 - e.score) / (1 - agree) - e.score / (1 + agree))
        pull = slope * r * (1 - t * t) / 2
        ds = sum_by(e.a, pull, n) - sum_by(e.b, pull, n) + PRECISION * s
        dm = sum_by(e.source, slope * t, len(m)) * (1 - floor)
        du = np.where(free, dm * m * (1 - m) - count * (mean - m), 0.0)
        return float(value), np.concatenate([ds, du])

    options = {"maxiter": 1000, "maxfun": 2000, "ftol": 1e-11, "gtol": 1e-5, "maxcor": 20}
    x: Floats = minimize(loss, start, jac=True, method="L-BFGS-B", options=options).x  # type: ignore[call-overload]
    return x[:n], floor + (1 - floor) * expit(x[n:])


def _variance(e: Evidence, s: Floats, r: Floats) -> Floats:
    """(I,) variances of the strengths by Laplace's approximation, at the estimated reliabilities.

    Inverts the expected information task by task, in batches of tasks with as many items. The
    shift that all items of a connected task share means nothing, so it is left out.
    """
    t = np.tanh((s[e.a] - s[e.b]) / 2)
    rate = r * (1 - t * t)
    info = e.weight * rate * rate / (4 * np.maximum(1 - r * r * t * t, 1e-12))  # (C,)
    size = np.bincount(e.task)
    start = np.cumsum(size) - size
    whole = sum_by(e.task, e.component().astype(np.float64), len(size)) == 0
    variance = np.zeros(len(s))
    for k in np.unique(size):
        tasks = np.flatnonzero(size == k)
        row = np.full(len(size), -1)
        row[tasks] = np.arange(len(tasks))
        mine = row[e.task[e.a]] >= 0
        g = row[e.task[e.a[mine]]]
        i, j = e.a[mine] - start[tasks[g]], e.b[mine] - start[tasks[g]]
        cells = np.concatenate([(g * k + i) * k + i, (g * k + j) * k + j, (g * k + i) * k + j])
        values = np.concatenate([info[mine] / 2, info[mine] / 2, -info[mine]])
        half = sum_by(cells, values, len(tasks) * k * k).reshape(-1, k, k)
        matrix = half + half.transpose(0, 2, 1) + PRECISION * np.eye(k)
        inverse = np.einsum("gii->gi", np.linalg.inv(matrix))  # (tasks, k)
        shift = np.where(whole[tasks] & (k > 1), 1 / (PRECISION * k), 0.0)
        variance[start[tasks][:, None] + np.arange(k)] = inverse - shift[:, None]
    return np.maximum(variance, 0.0)
