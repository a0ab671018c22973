"""Where an idea came from and what came of it, across conversations and across learning.

An idea has two kinds of ancestors: the ideas its author read, and whatever taught its
author: the lessons behind the checkpoint that gave it, the winning ideas of those lessons,
their authors' checkpoints, and so on to the start. Descendants are the same, the other way.
A checkpoint may have thousands of lessons, so each step shows a few and counts the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, RowMapping, Select, and_, case, func, or_, select

from community.errors import CommunityError
from community.ledger import Ledger
from community.rows import rows_of
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
)
from community.types import WORLD

WIDTH = 3
"""How many lessons, readings or ideas a step shows."""
DEPTH = 4
"""How far readings of readings are shown."""


@dataclass(frozen=True)
class Node:
    """An idea, a lesson or a checkpoint, what is known of it, and what it leads to."""

    kind: str  # "idea", "lesson" or "checkpoint"
    id: str
    facts: Mapping[str, Any]  # JSON values
    nodes: tuple[Node, ...] = ()
    more: int = 0  # further nodes that are not shown


@dataclass(frozen=True)
class Side:
    """One direction of a lineage."""

    ideas: tuple[Node, ...]  # nearest in the conversation; each leads to those beyond it
    total: int  # ideas at any distance in the conversation
    steps: tuple[Node, ...]  # one path across learning, nearest first
    more: int = 0  # lessons of the idea itself that are not among the steps


@dataclass(frozen=True)
class Lineage:
    """An idea with its verdicts, all that led to it and all that came of it.

    Steps of `ancestors` are checkpoints, each with the lessons that made it; the first
    lesson's idea was given by the next step's checkpoint. Steps of `descendants` are lessons,
    each with the checkpoints it made, and these with the best ideas they gave.
    """

    idea: Node
    ancestors: Side
    descendants: Side


def lineage(ledger: Ledger, idea_id: str) -> Lineage:
    """The lineage of the idea whose id starts so. Raises CommunityError if there is no one such."""
    full = ledger.idea(idea_id).id
    with ledger.reading() as conn:
        row = rows_of(conn, ideas, [full])[full]
        facts = {**_idea_facts(conn, row), "verdicts": _verdicts(conn, row)}
        facts["votes"] = _votes(conn, row)
        return Lineage(
            idea=Node("idea", full, facts),
            ancestors=Side(*_conversation(conn, row, back=True), _taught_by(conn, row)),
            descendants=Side(*_conversation(conn, row, back=False), *_came_of(conn, row)),
        )


def last_winner(ledger: Ledger) -> str:
    """The id of the idea behind the last lesson. CommunityError if nothing was taught yet."""
    query = select(ideas.c.id).join_from(lessons, ideas, lessons.c.idea == ideas.c.row)
    with ledger.reading() as conn:
        found = conn.scalar(query.order_by(lessons.c.row.desc()).limit(1))
    if found is None:
        raise CommunityError("no lesson was taught in this run yet; name an idea")
    return str(found)


def relatives(ledger: Ledger, idea_id: str, back: bool = True) -> list[str]:
    """Ids of all ideas that an idea builds on in its conversation, at any distance, in order.

    With `back` false, of all ideas that build on it. `idea_id` may be a unique prefix.
    """
    full = ledger.idea(idea_id).id
    with ledger.reading() as conn:
        row = rows_of(conn, ideas, [full])[full]
        walk = _walk(row, back).subquery()
        found = select(ideas.c.id).join_from(walk, ideas, walk.c.row == ideas.c.row)
        return list(conn.scalars(found.order_by(ideas.c.row)))


# -- facts ---------------------------------------------------------------------------------


def _idea_facts(conn: Connection, row: int) -> dict[str, Any]:
    own = ("author", "checkpoint", "round", "turn", "sample", "text", "answer", "failure", "tokens")
    rank = ("place", "strength", "low", "high", "comparisons", "confidence", "supporters")
    # + 0 keeps SQLite from looking at all rankings of the round
    same = and_(rankings.c.idea == ideas.c.row, rankings.c.round + 0 == ideas.c.round)
    query = (
        select(tasks.c.prompt.label("task"), tasks.c.domain, tasks.c.level)
        .add_columns(*(ideas.c[name] for name in own), *(rankings.c[name] for name in rank))
        .join_from(ideas, tasks, ideas.c.task == tasks.c.row)
        .outerjoin(rankings, same)
        .where(ideas.c.row == row)
    )
    return dict(conn.execute(query).mappings().first() or {})


def _idea_node(conn: Connection, row: int) -> Node:
    id = conn.scalars(select(ideas.c.id).where(ideas.c.row == row)).one()
    return Node("idea", id, _idea_facts(conn, row))


def _verdicts(conn: Connection, row: int) -> list[dict[str, Any]]:
    """Who judged the idea and how; of a pair, the score is the share in the idea's favour.

    Peers compare one idea for all that give its answer, so pairs with any of these count.
    """
    found = []
    this, alike = ideas.alias(), ideas.alias()
    same = and_(alike.c.task == this.c.task, alike.c.round == this.c.round)
    said = or_(alike.c.row == row, and_(alike.c.answer == this.c.answer, this.c.answer != ""))
    pair = verdicts.c.other.is_not(None)
    rows = select(alike.c.row).join(this, same).where(this.c.row == row, said)
    for own, rival in (("idea", "other"), ("other", "idea")):
        against_others = and_(verdicts.c[own].in_(rows), verdicts.c[rival].not_in(rows))
        query = (
            select(verdicts.c.judge, verdicts.c.score, verdicts.c.confidence, ideas.c.id)
            .outerjoin(ideas, verdicts.c[rival] == ideas.c.row)
            .where(or_(verdicts.c[own] == row, and_(pair, against_others)))
            .order_by(verdicts.c.row)
        )
        for judge, score, confidence, against in conn.execute(query):
            share = score if own == "idea" else 1 - score
            entry = {"judge": judge, "score": share, "confidence": confidence}
            found.append({**entry, "against": against or ""})
    return sorted(found, key=lambda entry: entry["judge"] != WORLD)


def _votes(conn: Connection, row: int) -> list[dict[str, Any]]:
    """What each member said last and most often of the idea's task: a vote for it or another.

    The score is 1 where the answer is the idea's. `reliability` is the judge's in that round, on
    average over the round's domains: votes are weighed domain by domain.
    """
    this, count = ideas.alias(), func.count()
    same = and_(ideas.c.task == this.c.task, ideas.c.round == this.c.round, ideas.c.answer != "")
    trust = and_(reliability.c.judge == ideas.c.author, reliability.c.round == ideas.c.round)
    query = (
        select(ideas.c.author, ideas.c.turn, ideas.c.answer, count, this.c.answer.label("own"))
        .add_columns(reliability.c.value)
        .join_from(this, ideas, same)
        .outerjoin(reliability, trust)
        .where(this.c.row == row)
        .group_by(ideas.c.author, ideas.c.turn, ideas.c.answer, this.c.answer, reliability.c.value)
        .order_by(ideas.c.author, ideas.c.turn.desc(), count.desc(), func.min(ideas.c.row))
    )
    votes: dict[str, dict[str, Any]] = {}
    for author, _, answer, _, own, value in conn.execute(query):
        vote = {"judge": author, "score": float(answer == own), "answer": answer}
        votes.setdefault(author, {**vote, "reliability": value})
    return list(votes.values())


# -- the conversation ----------------------------------------------------------------------


def _walk(row: int, back: bool) -> Select[tuple[int]]:
    """Rows of all ideas before (or after) one in its conversation."""
    near, far = parents.c.idea, parents.c.parent
    if not back:
        near, far = far, near
    walk = select(far.label("row")).where(near == row).cte("walk", recursive=True)
    walk = walk.union(select(far).join_from(walk, parents, near == walk.c.row))
    return select(walk.c.row)


def _conversation(conn: Connection, row: int, back: bool) -> tuple[tuple[Node, ...], int]:
    total = conn.scalar(select(func.count()).select_from(_walk(row, back).subquery())) or 0
    return _near(conn, row, back, DEPTH)[0], total


def _near(conn: Connection, row: int, back: bool, depth: int) -> tuple[tuple[Node, ...], int]:
    """The best-placed ideas next to one, the first of them followed further; how many more."""
    near, far = parents.c.idea, parents.c.parent
    if not back:
        near, far = far, near
    place = func.min(func.coalesce(rankings.c.place, 1_000_000_000))
    query = (
        select(far)
        .outerjoin(rankings, rankings.c.idea == far)
        .where(near == row)
        .group_by(far)
        .order_by(place, far)
    )
    found = conn.scalars(query).all()
    nodes = []
    for i, other in enumerate(found[:WIDTH]):
        beyond, more = _near(conn, other, back, depth - 1) if i == 0 and depth > 1 else ((), 0)
        nodes.append(replace(_idea_node(conn, other), nodes=beyond, more=more))
    return tuple(nodes), len(found) - len(nodes)


# -- learning, back ------------------------------------------------------------------------


def _taught_by(conn: Connection, row: int) -> tuple[Node, ...]:
    """The checkpoint that gave the idea, that of its first lesson's idea, and on to the start."""
    start = _idea_facts(conn, row)
    facts, steps = start, []
    while made := _made_before(conn, facts["author"], facts["checkpoint"], facts["round"]):
        taught_with = _lessons_of(conn, made["row"], start)
        nodes = [_lesson_node(conn, lesson) for lesson, _ in taught_with[:WIDTH]]
        steps.append(_checkpoint_node(made, tuple(nodes), len(taught_with)))
        source = taught_with[0][1] if taught_with else None
        if source is not None:
            facts = _idea_facts(conn, source)
        elif not taught_with and made["parent"]:  # no lessons that time: what it was before
            facts = {**made, "author": made["agent"], "checkpoint": made["parent"]}
            facts["round"] = made["learning"]
        else:
            break
    return tuple(steps)


def _made_before(conn: Connection, agent: str, id: str, round: int) -> RowMapping | None:
    c = checkpoints.c
    query = select(checkpoints).where(c.agent == agent, c.id == id, c.learning < round)
    order = query.order_by(c.learning.desc(), c.row.desc()).limit(1)
    return conn.execute(order).mappings().one_or_none()


def _lessons_of(
    conn: Connection, checkpoint: int, like: Mapping[str, Any]
) -> Sequence[tuple[int, int | None]]:
    """(lesson row, idea row) of a checkpoint's lessons, those nearest to a task first."""
    same = case((tasks.c.domain == like["domain"], 0), else_=1)
    level = func.abs(tasks.c.level - like["level"])
    query = (
        select(lessons.c.row, lessons.c.idea)
        .join_from(taught, lessons, taught.c.lesson == lessons.c.row)
        .join(tasks, lessons.c.task == tasks.c.row)
        .where(taught.c.checkpoint == checkpoint)
        .order_by(same, level, lessons.c.confidence.desc(), lessons.c.row)
    )
    return [(lesson, idea) for lesson, idea in conn.execute(query)]


def _lesson_node(conn: Connection, row: int, nodes: tuple[Node, ...] = ()) -> Node:
    own = ("round", "learner", "reason", "confidence", "text")
    query = (
        select(lessons.c.id, ideas.c.id.label("idea"), ideas.c.author, ideas.c.checkpoint)
        .add_columns(tasks.c.prompt.label("task"), *(lessons.c[name] for name in own))
        .join_from(lessons, tasks, lessons.c.task == tasks.c.row)
        .outerjoin(ideas, lessons.c.idea == ideas.c.row)
        .where(lessons.c.row == row)
    )
    facts = dict(conn.execute(query).mappings().one())
    return Node("lesson", facts.pop("id"), facts, nodes)


def _checkpoint_node(made: RowMapping, nodes: tuple[Node, ...], total: int, **facts: Any) -> Node:
    own = {name: made[name] for name in ("agent", "learning", "parent", "kept", "before", "after")}
    return Node("checkpoint", made["id"], {**own, **facts}, nodes, total - len(nodes))


# -- learning, forward ---------------------------------------------------------------------


def _came_of(conn: Connection, row: int) -> tuple[tuple[Node, ...], int]:
    """Lessons an idea became, then one of the best ideas they led to, and so on; how many more."""
    steps: list[Node] = []
    all_own = _lessons_from(conn, [row])
    found = all_own[: 3 * WIDTH]
    while found:
        followed: list[int] = []
        for lesson in found:
            made, best = _made_of(conn, lesson)
            steps.append(_lesson_node(conn, lesson, made))
            followed += best
        found = _lessons_from(conn, followed)[:1]
    return tuple(steps), max(len(all_own) - 3 * WIDTH, 0)


def _lessons_from(conn: Connection, rows: Sequence[int]) -> Sequence[int]:
    query = select(lessons.c.row).where(lessons.c.idea.in_(rows))
    return conn.scalars(query.order_by(lessons.c.confidence.desc(), lessons.c.row)).all()


def _made_of(conn: Connection, lesson: int) -> tuple[tuple[Node, ...], list[int]]:
    """The checkpoints a lesson made, with their best ideas, and these ideas' rows."""
    query = select(checkpoints).join(taught, taught.c.checkpoint == checkpoints.c.row)
    made = conn.execute(query.where(taught.c.lesson == lesson).order_by(checkpoints.c.row))
    nodes: list[Node] = []
    followed: list[int] = []
    for checkpoint in made.mappings().all():
        given = and_(
            ideas.c.author == checkpoint["agent"],
            ideas.c.checkpoint == checkpoint["id"],
            ideas.c.round > checkpoint["learning"],
        )
        total = conn.scalar(select(func.count()).where(given)) or 0
        joined = select(ideas.c.row).join_from(ideas, rankings, rankings.c.idea == ideas.c.row)
        order = joined.where(given).order_by(rankings.c.place, rankings.c.confidence.desc())
        best = list(dict.fromkeys(conn.scalars(order.order_by(ideas.c.row).limit(WIDTH))))
        shown = tuple(_idea_node(conn, row) for row in best)
        nodes.append(_checkpoint_node(checkpoint, shown, total, ideas=total))
        followed += best
    return tuple(nodes), followed
