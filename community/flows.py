"""What flowed between whom: who read whom, who attempted what, who was taught what, how well.

Counted by the database from a run's ledger; a run of many rounds costs one pass over its ideas.
Everything comes back as JSON values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from math import sqrt
from statistics import fmean, stdev
from typing import Any

from sqlalchemy import Select, distinct, func, select

from community.ledger import Ledger
from community.tables import edges, ideas, lessons, parents, rankings, tasks

Facts = dict[str, Any]
Pair = tuple[str, str]  # (reader, author)


def networks(ledger: Ledger) -> list[Facts]:
    """The topologies in force, one after the other, with what flowed along their edges.

    Each has `first` and `last` (rounds) and `edges`, of which each has `reader`, `author`,
    `ideas` (how often the reader was shown an idea of the author, once for every answer it
    gave) and `tokens` (of these ideas). Rounds in which nobody was to read have none.
    """
    graphs, flows = _graphs(ledger), _flows(ledger)
    found = []
    for graph, group in groupby(graphs, key=lambda entry: entry[1]):
        rounds = [n for n, _ in group]
        found.append(
            {
                "first": rounds[0],
                "last": rounds[-1],
                "edges": [
                    {"reader": reader, "author": author, "ideas": read[0], "tokens": read[1]}
                    for reader, author in graph
                    for read in [_sum([flows.get((n, reader, author), (0, 0)) for n in rounds])]
                ],
            }
        )
    return found


def _graphs(ledger: Ledger) -> list[tuple[int, tuple[Pair, ...]]]:
    """Each round that has edges, with these, sorted."""
    query = select(edges.c.round, edges.c.reader, edges.c.author)
    graphs: dict[int, list[Pair]] = {}
    with ledger.reading() as conn:
        for n, reader, author in conn.execute(query.order_by(edges.c.round)):
            graphs.setdefault(n, []).append((reader, author))
    return [(n, tuple(sorted(graph))) for n, graph in graphs.items()]


def _flows(ledger: Ledger) -> dict[tuple[int, str, str], tuple[int, int]]:
    """(round, reader, author) -> ideas and tokens read; what one said oneself is left out."""
    said = ideas.alias("said")
    query = (
        select(ideas.c.round, ideas.c.author, said.c.author, func.count(), func.sum(said.c.tokens))
        .join_from(parents, ideas, parents.c.idea == ideas.c.row)
        .join(said, parents.c.parent == said.c.row)
        .where(ideas.c.author != said.c.author)
        .group_by(ideas.c.round, ideas.c.author, said.c.author)
    )
    with ledger.reading() as conn:
        return {(n, r, a): (count, int(tokens)) for n, r, a, count, tokens in conn.execute(query)}


def _sum(pairs: Sequence[tuple[int, int]]) -> tuple[int, int]:
    return sum(a for a, _ in pairs), sum(b for _, b in pairs)


def routing(ledger: Ledger) -> list[Facts]:
    """Each round's domains: tasks `posed`, those members `attempted`, lessons they were `taught`.

    `taught` counts lessons given by the router, whether or not the learning was kept.
    """
    posed = select(tasks.c.round, tasks.c.domain, func.count())
    posed = posed.group_by(tasks.c.round, tasks.c.domain).order_by(tasks.c.round, tasks.c.domain)
    with ledger.reading() as conn:
        found: dict[tuple[int, str], Facts] = {
            (n, domain): {"round": n, "domain": domain, "posed": k, "attempted": {}, "taught": {}}
            for n, domain, k in conn.execute(posed)
        }
        for name, query in (("attempted", _attempts()), ("taught", _lessons())):
            for n, domain, member, count in conn.execute(query):
                found[n, domain][name][member] = count
    return list(found.values())


def _attempts() -> Select[Any]:
    own = (tasks.c.round, tasks.c.domain, ideas.c.author)
    query = select(*own, func.count(distinct(ideas.c.task))).where(ideas.c.turn == 0)
    joined = query.join_from(ideas, tasks, ideas.c.task == tasks.c.row)
    return joined.group_by(*own).order_by(ideas.c.author)


def _lessons() -> Select[Any]:
    own = (lessons.c.round, tasks.c.domain, lessons.c.learner)
    query = select(*own, func.count()).join_from(lessons, tasks, lessons.c.task == tasks.c.row)
    return query.group_by(*own).order_by(lessons.c.learner)


def diversity(ledger: Ledger) -> dict[int, float]:
    """Round -> distinct answers to a task, on average over the tasks that were answered."""
    answers = (
        select(ideas.c.round, func.count(distinct(ideas.c.answer)).label("answers"))
        .where(ideas.c.answer != "")
        .group_by(ideas.c.round, ideas.c.task)
        .subquery()
    )
    query = select(answers.c.round, func.sum(answers.c.answers), func.count())
    with ledger.reading() as conn:
        rows = conn.execute(query.group_by(answers.c.round)).all()
    return {n: round(int(total) / count, 6) for n, total, count in rows}


def strengths(ledger: Ledger, n: int) -> dict[str, Facts]:
    """Member -> `strength` of its ideas in round n, with `low` and `high`.

    Strengths are those of the ranking (log-odds against an average idea of the task, so 0 is
    average), averaged over a task's ideas and then over tasks; the interval is two standard
    errors over tasks, and None for a single task.
    """
    found: dict[str, Facts] = {}
    for member, values in _by_task(ledger, n):
        mean = fmean(values)
        error = 2 * stdev(values) / sqrt(len(values)) if len(values) > 1 else None
        low, high = (None, None) if error is None else (mean - error, mean + error)
        found[member] = {"strength": _round(mean), "low": _round(low), "high": _round(high)}
    return found


def _by_task(ledger: Ledger, n: int) -> Iterator[tuple[str, list[float]]]:
    query = (
        select(ideas.c.author, func.avg(rankings.c.strength))
        .join_from(rankings, ideas, rankings.c.idea == ideas.c.row)
        .where(rankings.c.round == n)
        .group_by(ideas.c.author, ideas.c.task)
        .order_by(ideas.c.author, ideas.c.task)
    )
    with ledger.reading() as conn:
        rows = conn.execute(query).all()
    for author, group in groupby(rows, key=lambda row: row[0]):
        yield str(author), [float(strength) for _, strength in group]


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
