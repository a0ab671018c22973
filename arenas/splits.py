"""Which split a task belongs to, by its content alone.

Splits that differ only in their seeds overlap wherever a domain is small: the holdout
would hold sums that were trained on. So the task's content hash decides: one bucket in
ten is the holdout's, one validation's, eight are for training, and an arena draws until
the content fits. The same task is then in the same split in every run and every seed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

from community.errors import CommunityError
from community.types import Split, Task, seed_of

BUCKETS = 10
ATTEMPTS = 1000  # misses a split that holds 2% of the draws about once in 10**9


def in_split(task: Task) -> Split:
    """The split that the task's content belongs to, whatever `task.split` says."""
    bucket = seed_of("split", task.id) % BUCKETS
    if bucket == 0:
        return "holdout"
    return "validation" if bucket == 1 else "train"


def first_in_split(draw: Callable[[int], Task], split: Split) -> Task:
    """The first of `draw(0), draw(1), ...` whose content belongs to `split`.

    Raises CommunityError if none of the first thousand does: the domain is too small.
    """
    if split not in get_args(Split):
        raise ValueError(f"no such split: {split!r}")
    for attempt in range(ATTEMPTS):
        task = draw(attempt)
        if in_split(task) == split:
            return task
    raise CommunityError(
        f"{task.domain} at level {task.level} has too few different tasks to fill the {split} "
        "split; choose a higher level or a wider configuration"
    )
