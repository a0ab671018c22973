"""Rounds and learnings to rows of the ledger, and back, losing nothing.

Writers give rows their numbers in the order of the tuples, so reading by `row` restores
that order; ids become row numbers on the way in and ids again on the way out.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from itertools import islice
from operator import attrgetter
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, Table, func, insert, select

from community.database import parsed
from community.tables import (
    checkpoints,
    edges,
    ideas,
    index_ideas,
    learnings,
    lessons,
    parents,
    rankings,
    reliability,
    rounds,
    scores,
    spent,
    tasks,
    taught,
    verdicts,
    with_ids,
)
from community.types import (
    Checkpoint,
    Decoding,
    Idea,
    Learning,
    Lesson,
    Ranked,
    Ranking,
    Round,
    Score,
    Task,
    Verdict,
    canonical,
)

_IDEA = [f.name for f in fields(Idea) if f.name not in ("task", "parents", "decoding")]
_DECODING = [f.name for f in fields(Decoding)]
_RANKED = [f.name for f in fields(Ranked) if f.name not in ("task", "idea")]
_TASK = [f.name for f in fields(Task)]


def chunks(items: Iterable[Any]) -> Iterator[list[Any]]:
    """Lists of at most a thousand: databases limit the parameters of a statement."""
    source = iter(items)
    while part := list(islice(source, 1000)):
        yield part


@contextmanager
def seldom_collected() -> Iterator[None]:
    """Search for circles of garbage seldom: a million rows hold none, and it looks at them all."""
    before = gc.get_threshold()
    gc.set_threshold(max(before[0], 100_000), *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def mapping_of(conn: Connection, query: Select[Any]) -> dict[Any, Any]:
    """First column -> second column."""
    return dict(conn.execute(query).all())


def rows_of(conn: Connection, table: Table, ids: Iterable[str]) -> dict[str, int]:
    """Latest row of each id in tasks, ideas or lessons. Raises ValueError for unknown ids."""
    wanted = set(ids)
    found: dict[str, int] = {}
    for part in chunks(wanted):
        query = select(table.c.id, func.max(table.c.row))
        query = query.where(with_ids(table, table.c.id.in_(part)))
        found |= mapping_of(conn, query.group_by(table.c.id))
    if missing := wanted - found.keys():
        raise ValueError(f"{table.name} that no record holds: {sorted(missing)[:3]}")
    return found


class _Rows(dict[str, int]):
    """id -> row of what a round holds itself; anything else is looked up in earlier rounds."""

    def __init__(self, conn: Connection, table: Table, ids: Sequence[str]) -> None:
        self.conn, self.table = conn, table
        first = next_row(conn, table)
        super().__init__(zip(ids, range(first, first + len(ids)), strict=True))

    def __missing__(self, key: str) -> int:
        row = self[key] = rows_of(self.conn, self.table, [key])[key]
        return row


def next_row(conn: Connection, table: Table) -> int:
    return (conn.scalar(select(func.max(table.c.row))) or 0) + 1


Columns = dict[str, Sequence[Any]]


def _columns(items: Sequence[Any], names: Iterable[str]) -> Columns:
    return {name: list(map(attrgetter(name), items)) for name in names}


def _add(conn: Connection, table: Table, columns: Columns) -> None:
    """Insert rows, given as columns of equal length; a `row` that is not given is numbered.

    They go to the driver as they are: SQLAlchemy's own walk over the parameters of each
    row takes twice as long as SQLite's insert.
    """
    count = len(next(iter(columns.values())))
    if not count:
        return
    if "row" in table.c and "row" not in columns:
        first = next_row(conn, table)
        columns = {"row": range(first, first + count), **columns}
    for name in columns:
        process = table.c[name].type.dialect_impl(conn.dialect).bind_processor(conn.dialect)
        if process:
            columns[name] = list(map(process, columns[name]))
    names = list(columns)
    statement = insert(table).compile(dialect=conn.dialect, column_keys=names)
    order = statement.positiontup
    rows = zip(*(columns[name] for name in order or names), strict=True)
    if order is None:  # parameters by name, as in PostgreSQL
        conn.exec_driver_sql(str(statement), [dict(zip(names, row, strict=True)) for row in rows])
    else:
        conn.exec_driver_sql(str(statement), list(rows))


def _check(round: Round) -> None:
    """Content ids tell 0 from 0.0 and columns do not, so a wrong type must not get in."""
    items: tuple[Idea | Verdict | Lesson, ...] = (*round.ideas, *round.verdicts, *round.lessons)
    if set(map(attrgetter("round"), items)) - {round.n}:
        strange = next(item for item in items if item.round != round.n)
        raise ValueError(f"round {round.n} holds {strange}")
    _refuse_whole(round.ideas, "logprob", "decoding.temperature", "decoding.top_p")
    _refuse_whole(round.lessons, "confidence")


def _refuse_whole(items: Sequence[Any], *names: str) -> None:
    """Raises TypeError unless all numbers of these names are floats."""
    for name in names:
        kinds = set(map(type, map(attrgetter(name), items)))
        if wrong := [kind.__name__ for kind in kinds if not issubclass(kind, float)]:
            raise TypeError(f"{name} must be one of the floats, not of {wrong[0]}")


def write_round(conn: Connection, round: Round, digest: str) -> None:
    """All rows of a round.

    Raises ValueError or TypeError for a round that contradicts itself, which is a bug.
    """
    _check(round)
    n = round.n
    head = (n, round.ranking.method, round.ranking.disconnected, canonical(dict(round.router)))
    names = ("n", "method", "disconnected", "router", "seconds", "digest")
    _add(conn, rounds, {k: [v] for k, v in zip(names, (*head, round.seconds, digest), strict=True)})
    task_row = _Rows(conn, tasks, [t.id for t in round.tasks])
    idea_row = _Rows(conn, ideas, [i.id for i in round.ideas])
    count = len(round.tasks)
    _add(conn, tasks, {"round": [n] * count, **_columns(round.tasks, ["id", *_TASK])})
    last = next_row(conn, ideas) - 1
    _write_ideas(conn, round.ideas, task_row, idea_row)
    index_ideas(conn, after=last)
    _write_judgement(conn, round, task_row, idea_row)
    readers, authors = [r for r, _ in round.edges], [a for _, a in round.edges]
    _add(conn, edges, {"round": [n] * len(readers), "reader": readers, "author": authors})
    own = ("id", "round", "learner", "prompt", "text", "reason", "confidence")
    said = _columns(round.lessons, own)
    said["task"] = [task_row[x.task] for x in round.lessons]
    said["idea"] = [idea_row[x.idea] if x.idea else None for x in round.lessons]
    said["rejected"] = [idea_row[x.rejected] if x.rejected else None for x in round.lessons]
    _add(conn, lessons, said)
    tokens: dict[str, int] = {}
    for idea in round.ideas:
        tokens[idea.author] = tokens.get(idea.author, 0) + idea.tokens
    _add_spent(conn, n, "ideas", tokens)


def _write_ideas(conn: Connection, new: Sequence[Idea], task_row: _Rows, idea_row: _Rows) -> None:
    said = _columns(new, ["id", *_IDEA]) | _columns([idea.decoding for idea in new], _DECODING)
    _add(conn, ideas, {**said, "task": [task_row[idea.task] for idea in new]})
    read = [(idea.id, k, parent) for idea in new for k, parent in enumerate(idea.parents)]
    reading: Columns = {
        "idea": [idea_row[id] for id, _, _ in read],
        "position": [k for _, k, _ in read],
        "parent": [idea_row[parent] for _, _, parent in read],
    }
    _add(conn, parents, reading)


def _write_judgement(conn: Connection, round: Round, task_row: _Rows, idea_row: _Rows) -> None:
    given = round.verdicts
    said = _columns(given, ["round", "judge", "score", "confidence"])
    said["task"] = [task_row[v.task] for v in given]
    said["idea"] = [idea_row[v.idea] for v in given]
    said["other"] = [idea_row[v.other] if v.other else None for v in given]
    _add(conn, verdicts, said)
    entries = round.ranking.entries
    place = _columns(entries, _RANKED) | {"round": [round.n] * len(entries)}
    place["task"] = [task_row[e.task] for e in entries]
    place["idea"] = [idea_row[e.idea] for e in entries]
    _add(conn, rankings, place)
    judges, values = list(round.ranking.reliability), list(round.ranking.reliability.values())
    trust: Columns = {"round": [round.n] * len(judges), "judge": judges, "value": values}
    _add(conn, reliability, trust)


def _add_spent(conn: Connection, n: int, purpose: str, tokens: Mapping[str, int]) -> None:
    count = len(tokens)
    who: Columns = {"member": list(tokens), "tokens": list(tokens.values())}
    _add(conn, spent, {"round": [n] * count, "purpose": [purpose] * count, **who})


def write_learning(conn: Connection, learning: Learning, digest: str) -> None:
    """All rows of a learning. Raises ValueError for lessons never recorded."""
    n, made = learning.n, learning.checkpoints
    _add(conn, learnings, {"n": [n], "seconds": [learning.seconds], "digest": [digest]})
    lesson_row = rows_of(conn, lessons, (x for c in made for x in c.lessons))
    first = next_row(conn, checkpoints)
    own = _columns(made, (f.name for f in fields(Checkpoint) if f.name != "lessons"))
    _add(conn, checkpoints, {"learning": [n] * len(made), **own})
    used = [(first + i, k, x) for i, c in enumerate(made) for k, x in enumerate(c.lessons)]
    teaching: Columns = {
        "checkpoint": [checkpoint for checkpoint, _, _ in used],
        "position": [k for _, k, _ in used],
        "lesson": [lesson_row[lesson] for _, _, lesson in used],
    }
    _add(conn, taught, teaching)
    solved = _columns(learning.scores, (f.name for f in fields(Score)))
    _add(conn, scores, {"learning": [n] * len(learning.scores), **solved})
    _add_spent(conn, n, "learning", learning.tokens)


def read_round(conn: Connection, n: int) -> Round | None:
    """The round as it was recorded; None if there is none."""
    head = conn.execute(select(rounds).where(rounds.c.n == n)).one_or_none()
    if head is None:
        return None
    trust = select(reliability.c.judge, reliability.c.value).where(reliability.c.round == n)
    ranking = Ranking(
        method=head.method,
        entries=tuple(read_ranked(conn, rankings.c.round == n)),
        reliability=mapping_of(conn, trust.order_by(reliability.c.judge)),
        disconnected=head.disconnected,
    )
    heard = select(edges.c.reader, edges.c.author).where(edges.c.round == n).order_by(edges.c.row)
    return Round(
        n=n,
        tasks=tuple(read_tasks(conn, tasks.c.round == n)),
        ideas=tuple(read_ideas(conn, ideas.c.round == n)),
        verdicts=tuple(read_verdicts(conn, verdicts.c.round == n)),
        ranking=ranking,
        lessons=tuple(read_lessons(conn, lessons.c.round == n)),
        edges=tuple((reader, author) for reader, author in conn.execute(heard)),
        router=parsed(head.router, dict),
        seconds=head.seconds,
    )


def read_learning(conn: Connection, n: int) -> Learning | None:
    """The learning as it was recorded; None if there is none."""
    seconds = conn.scalar(select(learnings.c.seconds).where(learnings.c.n == n))
    if seconds is None:
        return None
    used = select(spent.c.member, spent.c.tokens)
    used = used.where(spent.c.round == n, spent.c.purpose == "learning").order_by(spent.c.member)
    return Learning(
        n=n,
        checkpoints=tuple(read_checkpoints(conn, checkpoints.c.learning == n)),
        scores=tuple(read_scores(conn, scores.c.learning == n)),
        tokens=mapping_of(conn, used),
        seconds=seconds,
    )


def read_tasks(conn: Connection, where: ColumnElement[bool]) -> Iterator[Task]:
    """Tasks in the order of recording; `where` speaks of the table tasks."""
    query = select(*(tasks.c[name] for name in _TASK)).where(where)
    for values in conn.execute(query.order_by(tasks.c.row)):
        yield Task(*values)


def read_ideas(conn: Connection, where: ColumnElement[bool]) -> Iterator[Idea]:
    """Ideas in the order of recording; `where` speaks of the table ideas."""
    parent = ideas.alias("parent")
    query = (
        select(parents.c.idea, parent.c.id)
        .select_from(parents)
        .join(ideas, ideas.c.row == parents.c.idea)
        .join(parent, parent.c.row == parents.c.parent)
        .where(where)
        .order_by(parents.c.idea, parents.c.position)
    )
    read: dict[int, list[str]] = {}
    for row, id in conn.execute(query):
        read.setdefault(row, []).append(id)
    columns = [ideas.c[name] for name in ("row", *_IDEA, *_DECODING)]
    joined = select(tasks.c.id, *columns).join_from(ideas, tasks, ideas.c.task == tasks.c.row)
    for task, row, *values in conn.execute(joined.where(where).order_by(ideas.c.row)):
        said = dict(zip(_IDEA, values, strict=False))
        how = Decoding(*values[len(_IDEA) :])
        parents_read = tuple(read.get(row, ()))
        yield Idea(task=task, parents=parents_read, decoding=how, **said)


def read_verdicts(conn: Connection, where: ColumnElement[bool]) -> Iterator[Verdict]:
    """Verdicts in the order of recording; `where` speaks of the table verdicts."""
    other = ideas.alias("other")
    v = verdicts.c
    query = (
        select(v.round, tasks.c.id, v.judge, ideas.c.id, v.score, v.confidence, other.c.id)
        .join_from(verdicts, tasks, v.task == tasks.c.row)
        .join(ideas, v.idea == ideas.c.row)
        .outerjoin(other, v.other == other.c.row)
        .where(where)
        .order_by(v.row)
    )
    for entry in conn.execute(query):
        yield Verdict(*entry[:-1], other=entry[-1] or "")


def read_ranked(conn: Connection, where: ColumnElement[bool]) -> Iterator[Ranked]:
    """Entries of rankings in the order of recording; `where` speaks of the table rankings."""
    query = (
        select(tasks.c.id, ideas.c.id, *(rankings.c[name] for name in _RANKED))
        .join_from(rankings, tasks, rankings.c.task == tasks.c.row)
        .join(ideas, rankings.c.idea == ideas.c.row)
        .where(where)
        .order_by(rankings.c.row)
    )
    for values in conn.execute(query):
        yield Ranked(*values)


def read_lessons(conn: Connection, where: ColumnElement[bool]) -> Iterator[Lesson]:
    """Lessons by round, then order of recording; `where` speaks of lessons."""
    rejected = ideas.alias("rejected")
    x = lessons.c
    own = (x.prompt, x.text, x.reason, x.confidence)
    query = (
        select(x.round, x.learner, tasks.c.id, ideas.c.id, *own, rejected.c.id)
        .join_from(lessons, tasks, x.task == tasks.c.row)
        .outerjoin(ideas, x.idea == ideas.c.row)
        .outerjoin(rejected, x.rejected == rejected.c.row)
        .where(where)
        .order_by(x.round, x.row)
    )
    for entry in conn.execute(query):
        values: list[Any] = ["" if value is None else value for value in entry]
        yield Lesson(*values)


def read_checkpoints(conn: Connection, where: ColumnElement[bool]) -> Iterator[Checkpoint]:
    """Checkpoints by learning, then order of recording; `where` speaks of checkpoints."""
    query = (
        select(taught.c.checkpoint, lessons.c.id)
        .join_from(taught, lessons, taught.c.lesson == lessons.c.row)
        .join(checkpoints, taught.c.checkpoint == checkpoints.c.row)
        .where(where)
        .order_by(taught.c.checkpoint, taught.c.position)
    )
    made: dict[int, list[str]] = {}
    for row, lesson in conn.execute(query):
        made.setdefault(row, []).append(lesson)
    order = select(checkpoints).where(where).order_by(checkpoints.c.learning, checkpoints.c.row)
    for entry in conn.execute(order):
        own = _own(entry, Checkpoint, leave="lessons")
        yield Checkpoint(**own, lessons=tuple(made.get(entry.row, ())))


def read_scores(conn: Connection, where: ColumnElement[bool]) -> Iterator[Score]:
    """Scores by learning, then order of recording; `where` speaks of scores."""
    order = select(scores).where(where).order_by(scores.c.learning, scores.c.row)
    for entry in conn.execute(order):
        yield Score(**_own(entry, Score))


def _own(entry: Row[Any], kind: type[Any], leave: str = "") -> dict[str, Any]:
    values = entry._mapping
    return {f.name: values[f.name] for f in fields(kind) if f.name != leave}
