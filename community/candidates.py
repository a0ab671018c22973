"""Ledger -> tasks with the ideas that were candidates for them, a round at a time.

What a dataset is made of: each idea with its place among the ideas of its task, what the
world said of it and who judged it; what its author had read is looked up for those taken.
One round is in memory at a time, as it is when it is played and recorded.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, exists, select

from community.rows import chunks, mapping_of
from community.tables import ideas, parents, rankings, reserved, rounds, tasks, verdicts
from community.types import WORLD

RIGHT = 0.5
"""From this score on the world's verdict says right."""

_IDEA = ("row", "id", "author", "checkpoint", "turn", "sample", "text", "answer", "failure",
         "tokens", "logprob", "temperature", "top_p", "max_tokens", "samples")  # fmt: skip
_RANKED = ("place", "strength", "low", "high", "comparisons", "component", "confidence",
           "supporters")  # fmt: skip


class Candidate(NamedTuple):
    """An idea and what became of it. What a ranking says is None where it was not ranked."""

    row: int
    id: str
    author: str
    checkpoint: str
    turn: int
    sample: int
    text: str
    answer: str
    failure: str
    tokens: int
    logprob: float
    temperature: float
    top_p: float
    max_tokens: int
    samples: int
    place: int | None
    strength: float | None
    low: float | None
    high: float | None
    comparisons: int | None
    component: int | None
    confidence: float | None
    supporters: int | None
    world: float | None  # the world's score; None where it was silent
    judges: Sequence[str]  # whoever else judged it, or its answer in another idea; sorted

    @property
    def right(self) -> bool | None:
        """The world's word: None where it was silent."""
        return None if self.world is None else self.world >= RIGHT


@dataclass(frozen=True)
class Posed:
    """A task as one round posed it, with its ideas, best place first and unranked ones last."""

    id: str
    prompt: str
    arena: str
    domain: str
    level: int
    round: int
    held_out: bool  # it belongs to validation or holdout
    again: bool  # a later one of the rounds that are read poses it again
    candidates: Sequence[Candidate]


def numbers(conn: Connection, first: int = 0, last: int | None = None) -> list[int]:
    """Rounds from `first` to `last`, both included, in order."""
    query = select(rounds.c.n).where(rounds.c.n >= first)
    if last is not None:
        query = query.where(rounds.c.n <= last)
    return list(conn.scalars(query.order_by(rounds.c.n)))


def read(conn: Connection, n: int, last: int) -> Iterator[Posed]:
    """The tasks of round n in the order of recording; `last` is the last round that is read."""
    of_task = _candidates(conn, n)
    later = tasks.alias("later")
    again = exists().where(later.c.id == tasks.c.id, later.c.round > n, later.c.round <= last)
    held = exists().where(reserved.c.task == tasks.c.id)
    t = tasks.c
    query = select(t.row, t.id, t.prompt, t.arena, t.domain, t.level, t.split)
    query = query.add_columns(held.label("held"), again.label("again")).where(t.round == n)
    for x in conn.execute(query.order_by(t.row)).all():
        held_out, candidates = bool(x.held) or x.split != "train", of_task.pop(x.row, ())
        yield Posed(
            x.id, x.prompt, x.arena, x.domain, x.level, n, held_out, bool(x.again), candidates
        )


def _candidates(conn: Connection, n: int) -> dict[int, list[Candidate]]:
    """Task row -> its candidates in order."""
    query = select(ideas.c.task, *(ideas.c[name] for name in _IDEA))
    given = conn.execute(query.where(ideas.c.round == n).order_by(ideas.c.row)).all()
    # no join: SQLite would look at all of a round's rankings for each of its ideas
    query = select(rankings.c.idea, *(rankings.c[name] for name in _RANKED))
    ranked = {idea: said for idea, *said in conn.execute(query.where(rankings.c.round == n))}
    unranked = [None] * len(_RANKED)
    # peers compare one idea for all of its task that give the same answer
    first: dict[tuple[int, str], int] = {}
    alike = {i.row: first.setdefault((i.task, i.answer), i.row) for i in given if i.answer}
    world, judges = _verdicts(conn, n, alike)
    found: dict[int, list[Candidate]] = defaultdict(list)
    for task, row, *said in given:
        known = (world.get(row), judges.get(alike.get(row, row), ()))
        found[task].append(Candidate._make((row, *said, *ranked.get(row, unranked), *known)))
    for candidates in found.values():
        candidates.sort(key=lambda c: (c.place is None, c.place))
    return found


def _verdicts(
    conn: Connection, n: int, alike: Mapping[int, int]
) -> tuple[dict[int, float], dict[int, Sequence[str]]]:
    """Idea row -> the world's score; -> the other judges of the ideas for which it stands."""
    v = verdicts.c
    query = select(v.judge, v.idea, v.other, v.score).where(v.round == n).order_by(v.row)
    world: dict[int, float] = {}
    judges: dict[int, set[str]] = defaultdict(set)
    for judge, idea, other, score in conn.execute(query):
        if judge == WORLD and other is None:
            world[idea] = score
        else:
            judges[alike.get(idea, idea)].add(judge)
            if other is not None:
                judges[alike.get(other, other)].add(judge)
    return world, {what: tuple(sorted(names)) for what, names in judges.items()}


def parents_of(conn: Connection, idea_rows: Iterable[int]) -> dict[int, list[str]]:
    """Idea row -> ids of the ideas that its author had read, in order; none where there are none.

    Ids are looked up once each: in a dense network a few ideas are read by all.
    """
    p = parents.c
    links: list[Any] = []
    for among in _among(p.idea, set(idea_rows)):
        query = select(p.idea, p.parent).where(among).order_by(p.idea, p.position)
        links += conn.execute(query).all()
    ids: dict[int, str] = {}
    for among in _among(ideas.c.row, {parent for _, parent in links}):
        ids |= mapping_of(conn, select(ideas.c.row, ideas.c.id).where(among))
    read_by: dict[int, list[str]] = defaultdict(list)
    for idea, parent in links:
        read_by[idea].append(ids[parent])
    return read_by


def _among(column: ColumnElement[int], rows: Collection[int]) -> Iterator[ColumnElement[bool]]:
    """Conditions that hold for all of these rows, and for those between where these are dense."""
    if rows and max(rows) - min(rows) < 2 * len(rows):
        yield column.between(min(rows), max(rows))
    else:
        yield from (column.in_(part) for part in chunks(rows))
