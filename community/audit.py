"""What a ledger says, as one hash; and whether it still says what was recorded.

Row numbers, wall clock, file locations and whatever belongs to a machine stay out, and
what has no order of its own is sorted, so the order of insertion and the database do not
matter. Rounds are read one at a time: memory holds one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from sqlalchemy import Connection, Table, delete, func, insert, select

from community.config import numbered
from community.database import Damaged, parsed
from community.rows import mapping_of, read_learning, read_round
from community.tables import (
    SCHEMA,
    checkpoints,
    ideas,
    learnings,
    lessons,
    members,
    meta,
    reserved,
    rounds,
    spent,
    tasks,
    taught,
)
from community.types import Checkpoint, Learning, Round, canonical, content_hash

HASHED_META = ("recipe_hash", "seed")
"""The keys of a ledger's meta that say what was run; the others say where and with what."""

DIGEST = "digest"
"""The key of meta under which `seal_start` notes its digest."""


T = TypeVar("T")


def _digest(parts: Any) -> str:
    return hashlib.sha256(canonical(parts).encode()).hexdigest()


def _number(value: float) -> float:
    """As a database gives it back: a float, and never -0.0."""
    return float(value) + 0.0


def round_digest(round: Round) -> str:
    """SHA-256 of a round but its seconds, whatever the order of its tasks, ideas, and so on.

    Ideas and lessons stand for themselves by their ids. Numbers are made floats, as in a
    database, so that a round has one digest before and after it was recorded.
    """
    ranking = round.ranking
    parts = {
        "n": round.n,
        "tasks": sorted(
            (t.id, t.prompt, t.arena, t.domain, t.level, t.split, t.seed, t.index, t.key)
            for t in round.tasks
        ),
        "ideas": sorted(i.id for i in round.ideas),
        "verdicts": sorted(
            (v.task, v.idea, v.other, v.judge, _number(v.score), _number(v.confidence))
            for v in round.verdicts
        ),
        "method": ranking.method,
        "disconnected": ranking.disconnected,
        "entries": sorted(
            (
                e.task,
                e.idea,
                e.place,
                e.comparisons,
                e.component,
                e.supporters,
                *map(_number, (e.strength, e.low, e.high, e.confidence)),
            )
            for e in ranking.entries
        ),
        "reliability": {judge: _number(value) for judge, value in ranking.reliability.items()},
        "lessons": sorted(x.id for x in round.lessons),
        "edges": sorted(round.edges),
        "router": json.loads(canonical(dict(round.router))),
    }
    return _digest(parts)


def learning_digest(learning: Learning) -> str:
    """SHA-256 of a learning but its seconds and the places of its files."""

    def measures(c: Checkpoint) -> list[float | None]:
        return [None if x is None else _number(x) for x in (c.before, c.after, c.loss)]

    parts = {
        "n": learning.n,
        "checkpoints": sorted(
            canonical([c.id, c.agent, c.round, c.parent, c.kept, c.lessons, c.steps, measures(c)])
            for c in learning.checkpoints
        ),
        "scores": sorted(
            (s.round, s.solver, s.split, s.domain, s.level, s.total, float(s.right))
            for s in learning.scores
        ),
        "tokens": dict(learning.tokens),
    }
    return _digest(parts)


def start_digest(conn: Connection) -> str:
    """SHA-256 of what the ledger says before any round."""
    kept = select(meta.c.key, meta.c.value).where(meta.c.key.in_(HASHED_META))
    named = select(members.c.name, members.c.backend)
    parts = [sorted(map(list, conn.execute(x))) for x in (kept, named, select(reserved))]
    return _digest(parts)


def seal_start(conn: Connection) -> None:
    """Note in meta what the ledger says before any round, so that a change is found out."""
    conn.execute(delete(meta).where(meta.c.key == DIGEST))
    conn.execute(insert(meta).values(key=DIGEST, value=start_digest(conn)))


def ledger_digest(conn: Connection) -> str:
    """Content hash of a whole ledger, the same for equal runs wherever they were played."""
    total = hashlib.sha256(start_digest(conn).encode())
    for n in _numbers(conn, rounds):
        total.update(round_digest(_there(read_round(conn, n))).encode())
    for n in _numbers(conn, learnings):
        total.update(learning_digest(_there(read_learning(conn, n))).encode())
    return total.hexdigest()


def _there(found: T | None) -> T:
    assert found is not None  # its number was read in the same transaction
    return found


def _numbers(conn: Connection, table: Table) -> Sequence[int]:
    return conn.scalars(select(table.c.n).order_by(table.c.n)).all()


def problems(conn: Connection) -> Iterator[str]:
    """One sentence for each thing that is not as it was recorded, or must not be."""
    if conn.dialect.name == "sqlite":
        yield from _file_problems(conn)
    start = conn.scalar(select(meta.c.value).where(meta.c.key == DIGEST))
    if start != start_digest(conn):
        yield "the recipe, the seed, the members or the reserved tasks have been changed"
    yield from _unreadable(conn)
    yield from _changed_recipe(conn)
    yield from _missing(conn)
    for n in _numbers(conn, rounds):
        yield from _changed_round(conn, n)
    for n in _numbers(conn, learnings):
        stored = conn.scalar(select(learnings.c.digest).where(learnings.c.n == n))
        try:
            found = learning_digest(_there(read_learning(conn, n)))
        except Damaged:
            found = ""
        if found != stored:
            yield f"what was recorded of learning {n} has been changed"
    yield from _leaks(conn)
    yield from _strangers(conn)


def _file_problems(conn: Connection) -> Iterator[str]:
    for (text,) in conn.exec_driver_sql("PRAGMA integrity_check"):
        if text != "ok":
            yield f"the file is damaged: {text}"
    for table, row, target, _ in conn.exec_driver_sql("PRAGMA foreign_key_check"):
        yield f"row {row} of {table} refers to a row of {target} that does not exist"


def _unreadable(conn: Connection) -> Iterator[str]:
    """What the run is made of, where it is not the JSON that was written there."""
    own = select(meta.c.key, meta.c.value).where(meta.c.key.not_in((SCHEMA, DIGEST)))
    for key, value in conn.execute(own.order_by(meta.c.key)):
        if not _is_json(value):
            yield f"the run's {key} cannot be read"
    for name, spec in conn.execute(select(members.c.name, members.c.spec)):
        if not _is_json(spec, dict):
            yield f"what member {name} is made of cannot be read"


def _changed_recipe(conn: Connection) -> Iterator[str]:
    """Only its hash is a part of the digest of the start, and it is the recipe that is read."""
    query = select(meta.c.key, meta.c.value).where(meta.c.key.in_(("recipe", "recipe_hash")))
    texts = mapping_of(conn, query)
    if len(texts) == 2 and all(map(_is_json, texts.values())):
        hashed = content_hash("recipe", parsed(texts["recipe"]))
        if hashed != parsed(texts["recipe_hash"]):
            yield "the recipe is not the one that its hash says"
        else:
            yield from _changed_members(conn, parsed(texts["recipe"]))


def _changed_members(conn: Connection, recipe: Any) -> Iterator[str]:
    """No digest knows their order and what they are made of; the recipe does."""
    tables = recipe["members"]
    wanted = [(name, t) for t in tables for name in numbered(t["name"], t["count"])]
    found = conn.execute(select(members.c.name, members.c.spec).order_by(members.c.position)).all()
    same = [name for name, _ in wanted] == [name for name, _ in found]
    for (_, table), (_, spec) in zip(wanted, found, strict=False):
        expected = {"backend": table["use"], **table}
        same &= not _is_json(spec, dict) or parsed(spec, dict) == expected
    if not same:
        yield "the members are not those of the recipe, or in another order"


def _is_json(text: str, kind: type[Any] = object) -> bool:
    try:
        parsed(text, kind)
    except Damaged:
        return False
    return True


def _missing(conn: Connection) -> Iterator[str]:
    played, learned = _numbers(conn, rounds), _numbers(conn, learnings)
    for n in sorted(set(range(1, max(played, default=0) + 1)) - set(played)):
        yield f"round {n} is missing"
    for n in sorted(set(range(1, max(learned, default=0) + 1)) - set(learned)):
        yield f"learning {n} is missing"


def _changed_round(conn: Connection, n: int) -> Iterator[str]:
    try:
        round = _there(read_round(conn, n))
    except Damaged:
        yield f"what was recorded of round {n} cannot be read"
        return
    changed = [
        f"the {what} {id} of round {n} is not what its id says"
        for what, table, items in (
            ("task", tasks, round.tasks),
            ("idea", ideas, round.ideas),
            ("lesson", lessons, round.lessons),
        )
        for id in sorted(_ids(conn, table, n) - {item.id for item in items})
    ]
    yield from changed
    digest = conn.scalar(select(rounds.c.digest).where(rounds.c.n == n))
    if not changed and round_digest(round) != digest:
        yield f"what was recorded of round {n} has been changed"
    tokens: dict[str, int] = {}
    for idea in round.ideas:
        tokens[idea.author] = tokens.get(idea.author, 0) + idea.tokens
    counted = select(spent.c.member, spent.c.tokens)
    counted = counted.where(spent.c.round == n, spent.c.purpose == "ideas")
    if tokens != mapping_of(conn, counted):
        yield f"the tokens counted for round {n} are not those of its ideas"


def _ids(conn: Connection, table: Table, n: int) -> set[str]:
    return set(conn.scalars(select(table.c.id).where(table.c.round == n)))


def _leaks(conn: Connection) -> Iterator[str]:
    query = (
        select(lessons.c.id, reserved.c.split, lessons.c.round)
        .join_from(lessons, tasks, lessons.c.task == tasks.c.row)
        .join(reserved, tasks.c.id == reserved.c.task)
        .order_by(lessons.c.round, lessons.c.row)
    )
    for lesson, split, n in conn.execute(query):
        yield f"lesson {lesson} of round {n} is on a {split} task"
    held = select(tasks.c.id, tasks.c.split, tasks.c.round, reserved.c.split)
    joined = held.join_from(tasks, reserved, tasks.c.id == reserved.c.task, isouter=True)
    for task, split, n, kept_for in conn.execute(joined.order_by(tasks.c.row)):
        if split != (kept_for or "train"):
            kept = f"reserved for {kept_for}" if kept_for else "not reserved"
            yield f"task {task} of round {n} is posed as {split} and {kept}"


def _strangers(conn: Connection) -> Iterator[str]:
    """References that no foreign key covers: ideas' checkpoints, and the learners of lessons."""
    known = {
        (agent, id) for agent, id in conn.execute(select(checkpoints.c.agent, checkpoints.c.id))
    }
    voices = select(ideas.c.author, ideas.c.checkpoint, func.count())
    voices = voices.where(ideas.c.checkpoint != "").group_by(ideas.c.author, ideas.c.checkpoint)
    found = conn.execute(voices.order_by(func.min(ideas.c.row)))
    lost = [(author, id, count) for author, id, count in found if (author, id) not in known]
    if lost:
        author, checkpoint, _ = lost[0]
        count = sum(entry[2] for entry in lost)
        yield (
            f"{count} ideas name a checkpoint that is not recorded,"
            f" the first {checkpoint} of {author}"
        )
    wrong = (
        select(checkpoints.c.id, checkpoints.c.agent, lessons.c.id, lessons.c.learner)
        .join_from(taught, checkpoints, taught.c.checkpoint == checkpoints.c.row)
        .join(lessons, taught.c.lesson == lessons.c.row)
        .where(lessons.c.learner != checkpoints.c.agent)
        .order_by(taught.c.checkpoint, taught.c.position)
    )
    for checkpoint, agent, lesson, learner in conn.execute(wrong):
        yield f"checkpoint {checkpoint} of {agent} learned lesson {lesson}, meant for {learner}"
