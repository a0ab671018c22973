"""Tasks of validation and holdout, kept out of all lessons by what they ask."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlalchemy import Connection, insert, select

from community import audit, rows
from community.errors import CommunityError
from community.tables import reserved, tasks
from community.types import Round, Task


def admit(conn: Connection, round: Round) -> None:
    """Reserve a round's tasks of validation and holdout.

    Raises CommunityError for a train task or a lesson that is on a reserved one.
    """
    hold_out(conn, [t for t in round.tasks if t.split != "train"])
    held = _held_out(conn, [t.id for t in round.tasks] + [x.task for x in round.lessons])
    for task in round.tasks:
        if task.split == "train" and task.id in held:
            raise _leak(f"the train task {task.prompt!r}", held[task.id])
    for lesson in round.lessons:
        if lesson.task in held:
            raise _leak(f"the task of a lesson for {lesson.learner}", held[lesson.task])


def _held_out(conn: Connection, ids: Iterable[str]) -> dict[str, str]:
    """Task id -> split, for those of `ids` that are reserved."""
    held: dict[str, str] = {}
    for part in rows.chunks(set(ids)):
        query = select(reserved.c.task, reserved.c.split).where(reserved.c.task.in_(part))
        held |= rows.mapping_of(conn, query)
    return held


def hold_out(conn: Connection, wanted: Sequence[Task]) -> None:
    """Reserve tasks of validation and holdout; again is harmless.

    Raises CommunityError for a task of two splits, ValueError for a train task.
    """
    held = _held_out(conn, [t.id for t in wanted])
    new: dict[str, str] = {}
    for task in wanted:
        if task.split == "train":
            raise ValueError(f"only validation and holdout tasks can be reserved, not {task}")
        split = held.get(task.id) or new.setdefault(task.id, task.split)
        if split != task.split:
            raise _leak(f"the {task.split} task {task.prompt!r}", split)
    for part in rows.chunks(new):
        query = select(tasks.c.prompt).where(tasks.c.id.in_(part), tasks.c.split == "train")
        if (prompt := conn.scalar(query.limit(1))) is not None:
            raise _leak(f"the held-out task {prompt!r}", "train")
    if new:
        conn.execute(insert(reserved), [{"task": t, "split": s} for t, s in new.items()])
        audit.seal_start(conn)


def _leak(what: str, split: str) -> CommunityError:
    return CommunityError(
        f"{what} belongs to the {split} split by content and cannot be used here;"
        " give the splits of the arena different seeds"
    )
