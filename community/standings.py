"""Scores on the holdout: everyone's shares at the end, at the start, and round by round."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from community.ledger import Ledger
from community.types import Score

Facts = dict[str, Any]
Shares = dict[str, float]  # "domain@level", or the level alone -> share of right answers
Book = Mapping[tuple[int, str], Shares]  # (learning, solver) -> shares


def scores_of(ledger: Ledger) -> list[Score]:
    """The holdout's, of the community and its members."""
    solvers = {"community", *ledger.members()}
    return [s for s in ledger.scores() if s.split == "holdout" and s.solver in solvers and s.total]


def by_place(score: Score) -> str:
    return f"{score.domain}@{score.level}"


def by_level(score: Score) -> str:
    return str(score.level)


def _ordered(scores: Sequence[Score], key: Callable[[Score], str]) -> list[Score]:
    """By domain, if the key names it, and level."""
    return sorted(scores, key=lambda s: (key(s).rpartition("@")[0], s.level))


def book_of(scores: Sequence[Score], key: Callable[[Score], str]) -> Book:
    """Shares by learning, solver and key; keys in the order of domains and levels."""
    tallies: dict[tuple[int, str], dict[str, tuple[float, int]]] = {}
    for score in _ordered(scores, key):
        mine = tallies.setdefault((score.round, score.solver), {})
        right, total = mine.get(key(score), (0.0, 0))
        mine[key(score)] = (right + score.right, total + score.total)
    return {
        who: {k: round(right / total, 6) for k, (right, total) in mine.items()}
        for who, mine in tallies.items()
    }


def holdout(
    scores: Sequence[Score],
    rivals: Mapping[str, Sequence[Score]],
    key: Callable[[Score], str],
) -> Facts:
    """Everyone's shares at the last learning, and at the start; `tasks` says of how many.

    A baseline is scored as the community is: by the answer on top of the ranking, here of
    the one member's samples.
    """
    book = book_of(scores, key)
    last = max((n for n, _ in book), default=0)
    totals: dict[str, int] = {}
    for score in _ordered(scores, key):
        if score.round == last and score.solver == "community":
            totals[key(score)] = totals.get(key(score), 0) + score.total
    ends = {}
    for kind, theirs in rivals.items():
        their_book = book_of(theirs, key)
        end = max((n for n, _ in their_book), default=0)
        ends[kind] = their_book.get((end, "community"), {})
    return {
        "tasks": totals,
        **_standing(book, last),
        "baselines": ends,
        "start": _standing(book, 0),
        "by_round": {
            str(n): shares for (n, solver), shares in sorted(book.items()) if solver == "community"
        },
    }


def _standing(book: Book, n: int) -> Facts:
    """Everyone's shares after learning n; best, mean and weakest are taken key by key."""
    members = {name: shares for (m, name), shares in book.items() if m == n}
    community = members.pop("community", {})
    at = {key: [s[key] for s in members.values() if key in s] for key in community}
    return {
        "community": community,
        "best": {key: max(values) for key, values in at.items() if values},
        "mean": {key: round(fmean(values), 6) for key, values in at.items() if values},
        "weakest": {key: min(values) for key, values in at.items() if values},
        "members": members,
    }


def course(scores: Sequence[Score]) -> list[Facts]:
    """Everyone's share of the whole holdout after each learning; best and mean of the members."""
    book = book_of(scores, lambda score: "all")
    found: dict[int, dict[str, float]] = {}
    for (n, solver), shares in sorted(book.items()):
        found.setdefault(n, {})[solver] = shares["all"]
    return [{"round": n, **_whole(shares)} for n, shares in found.items()]


def _whole(shares: dict[str, float]) -> Facts:
    community = shares.pop("community", None)
    members = list(shares.values())
    return {
        "community": community,
        "best": max(members, default=None),
        "mean": round(fmean(members), 6) if members else None,
        "weakest": min(members, default=None),
        "members": shares,
    }
