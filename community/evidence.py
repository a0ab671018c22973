"""What speaks for and against each answer of a round, as arrays that every ranking method reads.

An *item* is a distinct canonical answer to a task; ideas that say the same are one item.
A *source* is a member in one role: as author or as judge. A *comparison* is one source
putting one item of a task before another, with a weight.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from community.types import WORLD, Idea, Verdict

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Row = tuple[int, int, int, float, float]  # source, item a, item b, score of a, weight

AUTHOR, JUDGE = "author", "judge"
ALL_PAIRS = 8  # up to so many items of a task, each is set against every other


@dataclass(frozen=True)
class Evidence:
    """I items, S sources, C comparisons, V voters, N (author, item) votes; all in sorted order."""

    items: tuple[tuple[str, str], ...]  # (task, answer)
    item_of: Mapping[str, int]  # idea id -> item, or -1 where there is no answer
    task: Ints  # (I,) number of the item's task; a task's items are contiguous
    sources: tuple[tuple[str, str], ...]  # (name, role); role "world" for the world
    source: Ints  # (C,)
    a: Ints  # (C,)
    b: Ints  # (C,)
    score: Floats  # (C,) 1: a beats b, 0: b beats a
    weight: Floats  # (C,)
    world: Floats  # (I,) 1 right, 0 wrong, nan where the world said nothing
    voters: tuple[str, ...]
    voter: Ints  # (N,)
    voted: Ints  # (N,) item
    samples: Floats  # (N,) how many of the author's samples gave the item
    share: Floats  # (N,) the same as a share of the author's answered samples of the task
    sure: Floats  # (N,) how probable the author finds the item: see `_sureness`

    def component(self) -> Ints:
        """(I,) the item's connected component, counted from 0 within its task."""
        n = len(self.items)
        graph = coo_array((np.ones(len(self.a)), (self.a, self.b)), shape=(n, n))
        _, label = connected_components(graph, directed=False)
        _, first, code = np.unique(label, return_index=True, return_inverse=True)
        rank = np.argsort(np.argsort(first))[code]  # a task's components are contiguous
        start = np.searchsorted(self.task, self.task)
        return np.asarray(rank - rank[start], dtype=np.intp)

    def comparisons(self) -> Ints:
        """(I,) how many comparisons each item took part in."""
        n = len(self.items)
        return np.bincount(self.a, minlength=n) + np.bincount(self.b, minlength=n)


def gather(ideas: Sequence[Idea], verdicts: Sequence[Verdict]) -> Evidence:
    """All evidence on the answers of `ideas`; its order does not depend on theirs.

    - A pair verdict is a comparison of weight `confidence`.
    - An author's samples, of all turns, are its vote: one given in a larger share of them
      beats one given in a smaller share (other members' answers: none), weighted by the margin.
    - A judge's scores of single ideas put higher-scored items before lower-scored ones.
    - The world's right items beat its wrong ones, with more weight than all else on the task.

    KeyError for a verdict on an idea that is not among `ideas`, ValueError for a pair of
    ideas of two tasks.
    """
    answered = [i for i in ideas if i.answer and not i.failure]
    items = sorted({(i.task, i.answer) for i in answered})
    index = {item: n for n, item in enumerate(items)}
    item_of = {i.id: -1 if i.failure else index.get((i.task, i.answer), -1) for i in ideas}
    names = sorted({t for t, _ in items})
    number = {t: n for n, t in enumerate(names)}
    task = np.array([number[t] for t, _ in items], dtype=np.intp)

    votes = _votes(answered, index)
    judges = {v.judge for v in verdicts} - {WORLD}
    authors = {author for author, _ in votes}
    sources = sorted(
        [(name, AUTHOR) for name in authors]
        + [(name, JUDGE) for name in judges]
        + [(WORLD, WORLD)] * any(v.judge == WORLD for v in verdicts)
    )
    code = {source: n for n, source in enumerate(sources)}
    pairs, scores, world = _sort_out(verdicts, item_of, code, len(items))

    voted, samples = _columns([(i, n) for (_, i), n in votes.items()], 2)
    ballots = np.array([code[author, AUTHOR] for author, _ in votes], dtype=np.intp)
    group = ballots * len(names) + task[_ints(voted)]
    _, inverse = np.unique(group, return_inverse=True)
    share = samples / sum_by(inverse, samples, len(group))[inverse]

    blocks = [_columns(pairs, 5)]
    blocks.append(_contests(ballots, _ints(voted), share, np.ones_like(share), task, 0.0, True))
    judge, item, value, confidence = _columns(scores, 4)
    blocks.append(_contests(_ints(judge), _ints(item), value, confidence, task, np.nan, False))
    if (WORLD, WORLD) in code:
        known = np.flatnonzero(~np.isnan(world))
        rows = np.concatenate(blocks, axis=1)
        total = sum_by(task[_ints(rows[1])], rows[4], len(names))
        judge = np.full(len(known), code[WORLD, WORLD])
        weight = 1.0 + total[task[known]]
        blocks.append(_contests(judge, known, world[known], weight, task, np.nan, False))
    rows = np.concatenate(blocks, axis=1)
    rows = rows[:, np.lexsort(rows[::-1])]
    a, b = _ints(rows[1]), _ints(rows[2])
    if np.any(task[a] != task[b]):
        raise ValueError("a verdict compares ideas of two tasks")
    voters = sorted(authors | judges)
    seat = {name: n for n, name in enumerate(voters)}
    voter = np.array([seat[author] for author, _ in votes], dtype=np.intp)
    return Evidence(
        items=tuple(items), item_of=item_of, task=task, sources=tuple(sources),
        source=_ints(rows[0]), a=a, b=b, score=rows[3], weight=rows[4], world=world,
        voters=tuple(voters), voter=voter, voted=_ints(voted), samples=samples, share=share,
        sure=_sureness(answered, index, votes),
    )  # fmt: skip


def _votes(
    answered: Sequence[Idea], index: Mapping[tuple[str, str], int]
) -> dict[tuple[str, int], int]:
    """(author, item) -> number of samples, of all turns.

    Who changed its mind divides its vote: weak members revise for the worse as often as for
    the better (two SmolLM2 after one round: first answers .32 right, revised ones .21).
    """
    counts = Counter((i.author, index[i.task, i.answer]) for i in answered)
    return dict(sorted(counts.items()))


def _sureness(
    answered: Sequence[Idea],
    index: Mapping[tuple[str, str], int],
    votes: Mapping[tuple[str, int], int],
) -> Floats:
    """(N,) the mean probability that an author gives to an item it voted for.

    How often a sampled answer comes shows how probable it is. A greedy one comes always, so
    its own probability has to say it. 1 for samples.
    """
    known: dict[tuple[str, int], list[float]] = defaultdict(list)
    for idea in answered:
        greedy = idea.decoding.temperature == 0
        chance = math.exp(min(0.0, idea.logprob)) if greedy else 1.0
        known[idea.author, index[idea.task, idea.answer]].append(chance)
    return np.array([np.mean(sorted(known[vote])) for vote in votes])


def _sort_out(
    verdicts: Sequence[Verdict],
    item_of: Mapping[str, int],
    code: Mapping[tuple[str, str], int],
    items: int,
) -> tuple[list[Row], list[tuple[int, int, float, float]], Floats]:
    """Pair verdicts as rows, single scores as (source, item, score, confidence), world by item."""
    pairs: list[Row] = []
    single: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
    for v in verdicts:
        a = item_of[v.idea]
        if not v.other:
            if a >= 0:
                single[v.judge, a].append((v.score, v.confidence))
            continue
        b = item_of[v.other]
        if a >= 0 and b >= 0 and a != b and v.confidence > 0:
            first = a < b
            low, high = (a, b) if first else (b, a)
            score = v.score if first else 1.0 - v.score
            pairs.append((code[v.judge, JUDGE], low, high, score, v.confidence))
    world = np.full(items, np.nan)
    scores = []
    for (judge, item), given in sorted(single.items()):
        value, confidence = np.mean(sorted(given), axis=0)
        if judge == WORLD:
            world[item] = float(value >= 0.5)
        else:
            scores.append((code[judge, JUDGE], item, float(value), float(confidence)))
    return pairs, scores, world


def _contests(
    source: Ints, item: Ints, value: Floats, weight: Floats, task: Ints, absent: float, margin: bool
) -> Floats:
    """Comparisons (5, C) from what each source gives each item: the larger value beats the smaller.

    Items without a value have the value `absent` (nan: are not compared); equal values say
    nothing. Weights are the two cells' mean weight, times the difference where `margin`.
    """
    if not len(item):
        return np.zeros((5, 0))
    size, start = np.bincount(task), np.searchsorted(task, np.arange(task[-1] + 1))
    group, cell = np.unique(source * len(size) + task[item], return_inverse=True)
    blocks = []
    for k in np.unique(size[group % len(size)]):
        chosen = np.flatnonzero(size[group % len(size)] == k)
        row = np.full(len(group), -1)
        row[chosen] = np.arange(len(chosen))
        mine = row[cell] >= 0
        place = row[cell[mine]], item[mine] - start[task[item[mine]]]
        values, weights = np.full((len(chosen), k), absent), np.ones((len(chosen), k))
        values[place], weights[place] = value[mine], weight[mine]
        left, right = _rivals(int(k))
        gap = values[:, left] - values[:, right]  # (groups, pairs)
        g, p = np.nonzero(~np.isnan(gap) & (gap != 0))
        first = start[group[chosen[g]] % len(size)]
        w = (weights[g, left[p]] + weights[g, right[p]]) / 2
        w = w * np.abs(gap[g, p]) if margin else w
        who = group[chosen[g]] // len(size)
        blocks.append(np.stack([who, first + left[p], first + right[p], gap[g, p] > 0, w]))
    return np.concatenate(blocks, axis=1)


def _rivals(k: int) -> tuple[Ints, Ints]:
    """Which of k items are set against each other: all pairs, or k log k of them if k is large."""
    if k <= ALL_PAIRS:
        left, right = np.triu_indices(k, 1)
        return left, right
    here = np.arange(k)
    steps = [2**n for n in range(k.bit_length()) if 2**n < k / 2]
    pairs = np.concatenate([np.stack([here, (here + step) % k]) for step in steps], axis=1)
    return pairs.min(axis=0), pairs.max(axis=0)


def top_choices(evidence: Evidence, judges: bool = True) -> tuple[Ints, Ints, Floats]:
    """(voter, item, portion) of each voter's best item of each task; ties share the vote.

    An author's points for an item are its share of samples; with `judges` its comparisons as a
    judge add half their weight to the winner's points and take it from the loser's.
    """
    e, n = evidence, len(evidence.items)
    keys, points = [e.voter * n + e.voted], [e.share]
    if judges:
        seat = {name: v for v, name in enumerate(e.voters)}
        who = np.array([seat[name] if role == JUDGE else -1 for name, role in e.sources])
        voter = who[e.source] if len(who) else e.source
        ruled = voter >= 0
        half = (e.weight * (e.score - 0.5))[ruled]
        keys += [voter[ruled] * n + e.a[ruled], voter[ruled] * n + e.b[ruled]]
        points += [half, -half]
    key, inverse = np.unique(np.concatenate(keys), return_inverse=True)
    total = sum_by(inverse, np.concatenate(points), len(key))
    voter, item = key // max(n, 1), key % max(n, 1)
    _, group = np.unique(voter * n + e.task[item], return_inverse=True)
    best = np.zeros(len(key))
    np.maximum.at(best, group, total)
    chosen = (total > 1e-9) & (total >= best[group] - 1e-9)  # who prefers nothing has no vote
    portion = 1.0 / np.bincount(group[chosen], minlength=len(key))[group[chosen]]
    return voter[chosen], item[chosen], portion


def vote_share(
    evidence: Evidence, item: Ints, weight: Floats, sure: Floats | float = 1.0
) -> Floats:
    """(I,) the share of the weight cast in its task that each item got; 0 where none was cast.

    Of a vote that is not sure only that part goes to its item, and the rest to no item.
    """
    n = len(evidence.items)
    got = sum_by(item, weight * sure, n)
    cast = sum_by(evidence.task, sum_by(item, weight, n), n)[evidence.task]
    return np.divide(got, cast, out=np.zeros_like(got), where=cast > 0)


def sum_by(index: Ints, values: Floats, n: int) -> Floats:
    """(n,) the sum of the values at each index."""
    return np.bincount(index, values, n).astype(np.float64, copy=False)  # ints if there are none


def _columns(rows: Sequence[tuple[float, ...]], width: int) -> Floats:
    """(width, rows) floats; fine for numbers of items up to 2**53."""
    return np.array(rows, dtype=np.float64).reshape(-1, width).T


def _ints(values: Floats) -> Ints:
    return values.astype(np.intp)
