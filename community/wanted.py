"""What a dataset is to hold, and what came of that."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from community.dedup import NGRAM
from community.errors import CommunityError
from community.formats import FORMATS, Choice, Draft


@dataclass(frozen=True)
class Wanted:
    """What to export, and what to leave out."""

    format: str
    kind: str = "jsonl"  # of file: jsonl, parquet or hf
    choice: Choice = field(default_factory=Choice)
    arenas: tuple[str, ...] = ()  # arenas or domains; none: all
    first: int = 0  # rounds, both included
    last: int | None = None
    chat: bool = False  # texts as lists of messages
    duplicates: bool = False  # keep them
    near: float | None = None  # leave out what is at least so similar to an earlier row
    against: tuple[Path, ...] = ()  # files whose texts no row may share
    ngram: int = NGRAM
    test: float = 0.1  # share of the tasks that make the split test
    validation: float = 0.0

    @property
    def keeps_duplicates(self) -> bool:
        return self.duplicates or FORMATS[self.format].whole

    def check(self) -> None:
        """Raises CommunityError for a number that means nothing."""
        if self.last is not None and self.last < self.first:
            raise CommunityError(f"rounds {self.first}-{self.last} end before they begin")
        if self.near is not None and not 0 < self.near <= 1:
            raise CommunityError(f"a similarity is above 0 and at most 1, not {self.near:g}")
        # asked the other way round, since nan is neither above a number nor below it
        if not (self.test >= 0 and self.validation >= 0 and self.test + self.validation <= 1):
            raise CommunityError(
                "the shares of test and validation are at least 0 and together at most 1, not "
                f"{self.test:g} and {self.validation:g}"
            )
        if self.choice.winners < 1 or self.ngram < 1:
            raise CommunityError("the number of winners and the words of an n-gram are at least 1")
        if not self.choice.margin >= 0:
            raise CommunityError(f"a margin is at least 0, not {self.choice.margin:g}")


def rounds_of(text: str) -> tuple[int, int | None]:
    """`3`, `3-7`, `3-` or nothing -> the first and the last round; None is the run's last."""
    if not text:
        return 0, None
    found = re.fullmatch(r"(\d{1,18})(-(\d{0,18}))?", text)  # what a database holds
    if not found:
        raise CommunityError(f"rounds are given as 3, 3-7 or 3-, not {text!r}")
    first, dash, last = found.groups()
    return int(first), int(last) if last else (None if dash else int(first))


@dataclass
class Counts:
    """What was read, written and left out."""

    ideas: int = 0
    rows: Counter[str] = field(default_factory=Counter)  # by split
    dropped: Counter[str] = field(default_factory=Counter)  # by reason
    authors: Counter[str] = field(default_factory=Counter)
    domains: Counter[tuple[str, int]] = field(default_factory=Counter)  # (domain, level)
    rounds: Counter[int] = field(default_factory=Counter)
    world: Counter[bool | None] = field(default_factory=Counter)  # of what is to be learned
    example: str = ""  # the first row as JSON

    @property
    def total(self) -> int:
        return sum(self.rows.values())

    def add(self, split: str, draft: Draft) -> None:
        """Count a row."""
        idea = draft.ideas[0]
        self.rows[split] += 1
        self.authors[idea.author] += 1
        self.domains[draft.task.domain, draft.task.level] += 1
        self.rounds[draft.task.round] += 1
        self.world[idea.right] += 1

    def lines(self) -> list[str]:
        """What came of it, to be read."""
        splits = ", ".join(f"{split} {n:,}" for split, n in self.rows.most_common())
        left_out = [f"left out: {reason}: {n:,}" for reason, n in self.dropped.most_common()]
        return [f"{self.total:,} rows ({splits}) of {self.ideas:,} ideas", *left_out]
