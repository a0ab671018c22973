"""The family of an idea, one step at a time, and how it stands beside its parents.

A step back from an idea leads to the ideas it read and to the checkpoint that gave it, from
a checkpoint to the lessons it learned and to the checkpoint before, from a lesson to its
idea. A step ahead is the same, the other way. Nothing is left out for having lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import networkx as nx
from sqlalchemy import ColumnElement, Connection, Select, and_, func, or_, select

from community.errors import CommunityError
from community.ledger import Ledger
from community.rows import mapping_of
from community.tables import (
    checkpoints,
    ideas,
    lessons,
    parents,
    rankings,
    reliability,
    tasks,
    taught,
    verdicts,
    with_ids,
)
from community.types import WORLD

MOST = 100
"""Nodes of a step; the others are counted."""


@dataclass(frozen=True)
class Kin:
    """An idea and its place; None where it was not ranked."""

    row: int
    id: str
    round: int
    turn: int
    author: str
    checkpoint: str
    text: str
    answer: str
    failure: str
    task: int  # row
    prompt: str  # of the task
    place: int | None
    strength: float | None
    low: float | None
    high: float | None
    supporters: int | None

    @property
    def said(self) -> str:
        """The answer, or what there is instead of it."""
        return self.answer or self.text or (f"failed: {self.failure}" if self.failure else "")


@dataclass(frozen=True)
class Made:
    """A checkpoint."""

    row: int
    id: str
    agent: str
    learning: int
    parent: str
    kept: bool
    before: float | None
    after: float | None


@dataclass(frozen=True)
class Taught:
    """A lesson."""

    row: int
    id: str
    round: int
    learner: str
    idea: int | None
    idea_id: str
    author: str
    prompt: str
    text: str
    reason: str
    confidence: float


Item = Kin | Made | Taught


@dataclass(frozen=True)
class Step:
    """What is one step away, and how much more there is."""

    items: tuple[Item, ...] = ()
    more: int = 0


def latest_idea(ledger: Ledger) -> str:
    """The idea behind the last lesson, else the last idea; empty if there is none."""
    taught_last = select(ideas.c.id).join_from(lessons, ideas, lessons.c.idea == ideas.c.row)
    last = select(ideas.c.id).order_by(ideas.c.row.desc()).limit(1)
    with ledger.reading() as conn:
        found = conn.scalar(taught_last.order_by(lessons.c.row.desc()).limit(1))
        return str(found or conn.scalar(last) or "")


def kin(ledger: Ledger, id: str) -> Kin:
    """The idea of an id. Raises CommunityError if there is none."""
    with ledger.reading() as conn:
        found = _kin(conn, with_ids(ideas, ideas.c.id == id))
    if not found:
        raise CommunityError(f"no idea has the id {id!r}")
    return found[0]


def _select_kin() -> Select[Any]:
    i, r = ideas.c, rankings.c
    own = (i.row, i.id, i.round, i.turn, i.author, i.checkpoint, i.text, i.answer, i.failure)
    rank = (r.place, r.strength, r.low, r.high, r.supporters)
    return (
        select(*own, i.task, tasks.c.prompt, *rank)
        .join_from(ideas, tasks, i.task == tasks.c.row)
        .outerjoin(rankings, and_(r.idea == i.row, r.round == i.round))
    )


def _kin(conn: Connection, where: ColumnElement[bool]) -> list[Kin]:
    return [Kin(*row) for row in conn.execute(_select_kin().where(where).order_by(ideas.c.row))]


def step(ledger: Ledger, item: Item, back: bool) -> Step:
    """What is one step away from an idea, a lesson or a checkpoint."""
    with ledger.reading() as conn:
        if isinstance(item, Kin):
            return _back(conn, item) if back else _ahead(conn, item)
        if isinstance(item, Taught):
            return _source(conn, item) if back else _learned(conn, item)
        return _curriculum(conn, item) if back else _given(conn, item)


def _back(conn: Connection, item: Kin) -> Step:
    query = _select_kin().join(parents, parents.c.parent == ideas.c.row)
    order = query.where(parents.c.idea == item.row).order_by(parents.c.position)
    read = [Kin(*row) for row in conn.execute(order.limit(MOST))]
    total = conn.scalar(select(func.count()).where(parents.c.idea == item.row)) or 0
    c = checkpoints.c
    gave = and_(c.agent == item.author, c.id == item.checkpoint, c.learning < item.round)
    return Step((*read, *_made(conn, gave, latest=True)), total - len(read))


def _ahead(conn: Connection, item: Kin) -> Step:
    query = _select_kin().join(parents, parents.c.idea == ideas.c.row)
    order = query.where(parents.c.parent == item.row).order_by(rankings.c.place, ideas.c.row)
    read_it = [Kin(*row) for row in conn.execute(order.limit(MOST))]
    total = conn.scalar(select(func.count()).where(parents.c.parent == item.row)) or 0
    became = _taught(conn, lessons.c.idea == item.row)
    return Step((*became, *read_it), total - len(read_it))


def _source(conn: Connection, item: Taught) -> Step:
    return Step(tuple(_kin(conn, ideas.c.row == item.idea)) if item.idea else ())


def _learned(conn: Connection, item: Taught) -> Step:
    made = select(taught.c.checkpoint).where(taught.c.lesson == item.row)
    return Step(tuple(_made(conn, checkpoints.c.row.in_(made))))


def _curriculum(conn: Connection, item: Made) -> Step:
    learned = select(taught.c.lesson).where(taught.c.checkpoint == item.row)
    found = _taught(conn, lessons.c.row.in_(learned), MOST)
    total = conn.scalar(select(func.count()).where(taught.c.checkpoint == item.row)) or 0
    c = checkpoints.c
    before = and_(c.agent == item.agent, c.id == item.parent, c.learning < item.learning)
    earlier = _made(conn, before, latest=True) if item.parent else []
    return Step((*earlier, *found), total - len(found))


def _given(conn: Connection, item: Made) -> Step:
    i = ideas.c
    own = and_(i.author == item.agent, i.checkpoint == item.id, i.round > item.learning)
    order = _select_kin().where(own).order_by(rankings.c.place, i.row).limit(MOST)
    found = [Kin(*row) for row in conn.execute(order)]
    total = conn.scalar(select(func.count()).where(own)) or 0
    return Step(tuple(found), total - len(found))


def _made(conn: Connection, where: ColumnElement[bool], latest: bool = False) -> list[Made]:
    c = checkpoints.c
    query = select(c.row, c.id, c.agent, c.learning, c.parent, c.kept, c.before, c.after)
    order = query.where(where).order_by(c.learning.desc(), c.row.desc())
    return [Made(*row) for row in conn.execute(order.limit(1) if latest else order)]


def _taught(conn: Connection, where: ColumnElement[bool], most: int | None = None) -> list[Taught]:
    x = lessons.c
    query = (
        select(x.row, x.id, x.round, x.learner, x.idea, func.coalesce(ideas.c.id, ""))
        .add_columns(func.coalesce(ideas.c.author, ""), tasks.c.prompt)
        .add_columns(x.text, x.reason, x.confidence)
        .join_from(lessons, tasks, x.task == tasks.c.row)
        .outerjoin(ideas, x.idea == ideas.c.row)
        .where(where)
        .order_by(x.confidence.desc(), x.row)
    )
    return [Taught(*row) for row in conn.execute(query.limit(most))]


# -- the path to the best ------------------------------------------------------------------


@dataclass(frozen=True)
class Path:
    """From an idea to the best of its task, along who read whom."""

    best: Kin | None
    ids: tuple[str, ...] = ()  # both ends included; empty if no reading joins them
    names: tuple[str, ...] = ()  # the authors on it


def path_to_best(ledger: Ledger, start: Kin) -> Path:
    """The shortest way to the idea in place 1: through descendants, else ancestors, else both."""
    here = and_(ideas.c.round == start.round, ideas.c.task == start.task)
    with ledger.reading() as conn:
        first = _kin(conn, and_(here, rankings.c.place == 1))
        if not first:
            return Path(None)
        query = select(parents.c.parent, parents.c.idea).join(ideas, parents.c.idea == ideas.c.row)
        ends, read = (start.row, first[0].row), nx.DiGraph(conn.execute(query.where(here)).all())
        read.add_nodes_from(ends)
        ways = (read, read.reverse(), read.to_undirected())
        found = next((nx.shortest_path(x, *ends) for x in ways if nx.has_path(x, *ends)), [])
        known = {k.row: k for k in _kin(conn, ideas.c.row.in_(found))}
    way = [known[row] for row in found]
    return Path(first[0], tuple(k.id for k in way), tuple(k.author for k in way))


# -- a tree to begin with ------------------------------------------------------------------


@dataclass
class Branch:
    """A node of the tree. `inner` is None where nobody has looked yet."""

    item: Item
    back: bool
    inner: list[Branch] | None = None
    more: int = 0


@dataclass(frozen=True)
class Family:
    """An idea with what is one step away, and further along the path to the best."""

    root: Kin
    back: Branch
    ahead: Branch
    path: Path
    contrasts: tuple[Contrast, ...] = ()


def family(ledger: Ledger, id: str) -> Family:
    """The family of the idea of an id. Raises CommunityError if there is none."""
    root = kin(ledger, id)
    path = path_to_best(ledger, root)
    sides = [_grown(ledger, Branch(root, back), set(path.ids)) for back in (True, False)]
    read = [b.item for b in sides[0].inner or () if isinstance(b.item, Kin)]
    found = tuple(contrast(ledger, root, parent) for parent in read[:SHOWN])
    return Family(root, sides[0], sides[1], path, found)


SHOWN = 6
"""Parents that an idea is compared with at once."""


def grow(ledger: Ledger, branch: Branch) -> Branch:
    """The branch with what is one step away."""
    found = step(ledger, branch.item, branch.back)
    branch.inner = [Branch(item, branch.back) for item in found.items]
    branch.more = found.more
    return branch


def _grown(ledger: Ledger, branch: Branch, wanted: set[str]) -> Branch:
    """The same for all that lies on a path."""
    todo, seen = [branch], set()
    while todo:
        at = todo.pop()
        seen.add(at.item.id)
        grow(ledger, at)
        todo += [b for b in at.inner or () if b.item.id in wanted and b.item.id not in seen]
    return branch


# -- parent and child ----------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """What a judge said of two answers: 1 is for the child, 0 for the parent."""

    judge: str
    score: float
    confidence: float
    reliability: float | None


@dataclass(frozen=True)
class Contrast:
    """A child and a parent that it read (or that taught it), and who was preferred by whom."""

    child: Kin
    parent: Kin
    verdicts: tuple[Judged, ...] = ()  # of judges that compared the two answers
    world: Mapping[str, float] = field(default_factory=dict)  # idea -> what the world said

    @property
    def same(self) -> bool:
        return self.child.answer == self.parent.answer and bool(self.child.answer)


def contrast(ledger: Ledger, child: Kin, parent: Kin) -> Contrast:
    """How a child stands beside a parent. Ideas with one answer are judged as one."""
    with ledger.reading() as conn:
        both = (child.row, parent.row)
        truth = select(ideas.c.id, verdicts.c.score).join(ideas, verdicts.c.idea == ideas.c.row)
        spoke = truth.where(verdicts.c.judge == WORLD, verdicts.c.idea.in_(both))
        world = mapping_of(conn, spoke)
        if child.task != parent.task or child.answer == parent.answer:
            return Contrast(child, parent, (), world)
        mine, theirs = (_alike(conn, k) for k in (child, parent))
        judged = [*_compared(conn, mine, theirs), *_compared(conn, theirs, mine, turned=True)]
        trust = select(reliability.c.judge, reliability.c.value)
        trusted = mapping_of(conn, trust.where(reliability.c.round == child.round))
    given = (Judged(judge, s, c, trusted.get(judge)) for judge, s, c in judged)
    return Contrast(child, parent, tuple(sorted(given, key=lambda j: -j.score)), world)


def _alike(conn: Connection, one: Kin) -> list[int]:
    """Rows of all ideas with its answer."""
    i = ideas.c
    same = or_(i.row == one.row, and_(i.answer == one.answer, i.answer != ""))
    return list(conn.scalars(select(i.row).where(i.round == one.round, i.task == one.task, same)))


def _compared(
    conn: Connection, first: Iterable[int], second: Iterable[int], turned: bool = False
) -> list[tuple[str, float, float]]:
    v = verdicts.c
    query = select(v.judge, v.score, v.confidence).where(v.idea.in_(first), v.other.in_(second))
    rows = conn.execute(query.order_by(v.row))
    return [(judge, 1 - s if turned else s, c) for judge, s, c in rows]
