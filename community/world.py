"""What an arena says, looked at before it is recorded: an arena may be anyone's.

Each function raises CommunityError for what is not of the kind that docs/arena.md asks for.
"""

from __future__ import annotations

from numbers import Real

from community.errors import CommunityError
from community.types import Arena, Idea, Split, Task

WHOLE = 2**63  # beyond what a ledger holds


def posed(arena: Arena, split: Split, seed: int, index: int, level: int) -> Task:
    """The task that an arena poses at an index."""
    task: object = arena.pose(split, seed, index, level)
    if not isinstance(task, Task):
        raise CommunityError(f"pose of the arena {arena.name} gave {task!r}; it must give a Task")
    if task.split != split:
        raise CommunityError(
            f"pose of the arena {arena.name} gave a task of the split {task.split!r}; it must give "
            f"one of the split it was asked for, {split!r}"
        )
    for text in (task.prompt, task.arena, task.domain, task.key):
        said(arena, "pose", text)
    for name in ("level", "seed", "index"):
        number: object = getattr(task, name)
        if not isinstance(number, int) or abs(number) >= WHOLE:
            raise CommunityError(
                f"pose of the arena {arena.name} gave a task whose {name} is {number!r}; it must "
                "be a whole number of at most 63 bits"
            )
    return task


def answered(arena: Arena, task: Task, text: str) -> str:
    """The canonical answer within a text; empty if there is none."""
    return said(arena, "answer", arena.answer(task, text))


def rephrased(arena: Arena, task: Task, sample: int) -> str:
    """The n-th wording of a task."""
    return said(arena, "rephrase", arena.rephrase(task, sample))


def said(arena: Arena, method: str, text: object) -> str:
    """The text that a method gave, in characters that a ledger holds."""
    if isinstance(text, str) and text == text.encode(errors="replace").decode():
        return text
    raise CommunityError(f"{method} of the arena {arena.name} gave {text!r}; it must give a text")


def verified(arena: Arena, task: Task, idea: Idea) -> float | None:
    """What the arena says of an idea: from 0 to 1, or None."""
    score: object = arena.verify(task, idea)
    if score is None:
        return None
    if isinstance(score, Real) and 0 <= float(score) <= 1:
        return float(score)
    raise CommunityError(
        f"verify of the arena {arena.name} gave {score!r} for an idea; it must give a number from "
        "0 to 1, or None where it cannot tell"
    )
