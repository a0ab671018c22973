"""Splits by content: stable, disjoint, of the expected sizes."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from community.arenas.splits import first_in_split, in_split
from community.errors import CommunityError
from community.types import Split, Task

SPLITS: tuple[Split, ...] = ("train", "validation", "holdout")


def task(prompt: str, split: Split = "train", key: str = "") -> Task:
    return Task(prompt, "test", "sums", 1, split, seed=0, index=0, key=key)


@given(st.text(), st.sampled_from(SPLITS), st.sampled_from(SPLITS))
def test_content_alone_decides(prompt: str, one: Split, other: Split) -> None:
    assert in_split(task(prompt, one)) == in_split(task(prompt, other))
    assert in_split(task("2+1=", one, key=prompt)) == in_split(task("1+2=", other, key=prompt)) or (
        not prompt
    )


def test_shares() -> None:
    counts = Counter(in_split(task(str(n))) for n in range(5000))
    assert 420 < counts["holdout"] < 580
    assert 420 < counts["validation"] < 580


@given(st.integers(), st.sampled_from(SPLITS))
def test_first_fit_is_found(start: int, split: Split) -> None:
    tasks = [task(str(start + n), split) for n in range(1000)]
    found = first_in_split(lambda attempt: tasks[attempt], split)
    assert in_split(found) == split
    assert all(in_split(t) != split for t in tasks[: tasks.index(found)])


def test_a_domain_of_one_task_cannot_fill_every_split() -> None:
    only = task("0+0=")
    missing = next(s for s in SPLITS if s != in_split(only))
    with pytest.raises(CommunityError, match="too few different tasks"):
        first_in_split(lambda attempt: only, missing)


def test_unknown_split_is_a_bug() -> None:
    with pytest.raises(ValueError, match="no such split"):
        first_in_split(lambda attempt: task(str(attempt)), "test")  # type: ignore[arg-type]
