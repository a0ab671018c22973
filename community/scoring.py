"""How well weights do on a run's holdout: a member's own beside those trained elsewhere.

The ledger has the scores of a run. Here the member answers the same tasks once more, one
greedy answer each, with whatever weights it is given, so that all of them can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from community.baselines import alone
from community.config import Recipe
from community.errors import CommunityError, unknown
from community.folder import reopen
from community.ledger import Ledger
from community.parts import arena_of, specs_of
from community.plugins import load
from community.pool import build, isolate
from community.replies import ideas_of
from community.run import exact_match, tasks_of
from community.types import Arena, Idea, Request, Score, Task
from community.world import answered

Scores = Mapping[str, Sequence[Score]]  # weights -> exact match by domain and level


def score(folder: Path, member: str, others: Sequence[Path] = ()) -> Scores:
    """Scores of a member's first weights, of those it has now, and of those in `others`.

    `others` are folders that transformers, peft or TRL saved. Raises CommunityError for a
    member or weights that are not there or do not fit, and for a run without a holdout.
    """
    recipe, base = reopen(folder)
    arena = arena_of(recipe, base)
    agent = _greedy(recipe, member, base)
    tasks = tasks_of(recipe, arena, "holdout")
    if not tasks:
        raise CommunityError(f"{folder.name} has no holdout; its recipe says tasks.holdout = 0")
    found = {}
    for name, take in _weights(agent, folder, member, others):
        take()
        found[name] = tuple(exact_match(0, name, tasks, _answers(agent, tasks, arena), arena))
    return found


def render(scores: Scores) -> Table:
    """Exact match, a row for each domain and level, a column for each of the weights."""
    table = Table("holdout", "tasks")
    for weights in scores:
        table.add_column(Text(weights))
    rows = zip(*scores.values(), strict=True)
    for row in rows:
        shares = [f"{s.right / s.total:.3f}" for s in row]
        table.add_row(Text(f"{row[0].domain} {row[0].level}"), str(row[0].total), *shares)
    rights = [sum(s.right for s in column) for column in scores.values()]
    total = sum(s.total for s in next(iter(scores.values())))
    table.add_section()
    table.add_row("all", str(total), *(f"{right / total:.3f}" for right in rights))
    return table


def _greedy(recipe: Recipe, member: str, base: Path) -> Any:
    """The member, answering greedily. Raises CommunityError for one that has no weights."""
    tables = dict(recipe.roster())
    if member not in tables:
        raise unknown("member", member, tables)
    use = tables[member].use
    if not hasattr(load("agent", use, base), "adopt"):
        raise CommunityError(f"{member} is an agent of kind {use}, which has no weights to score")
    (spec,) = specs_of(alone(recipe, member, "greedy", base), base)
    return build(spec)


def _weights(
    agent: Any, folder: Path, member: str, others: Sequence[Path]
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """A name for each of the weights, and the call by which the agent takes them."""
    with Ledger.open(folder / "ledger.db", read_only=True) as ledger:
        kept = [c for c in ledger.checkpoints(member) if c.kept]
    if not kept:
        raise CommunityError(f"{folder.name} has no checkpoint of {member} yet; resume the run")
    own = {"start": kept[0]}
    if kept[1:]:
        own[f"round {kept[-1].round}"] = kept[-1]
    for name, checkpoint in own.items():
        yield name, partial(agent.load, folder / "checkpoints", checkpoint.id)
    for other in others:  # a folder called `start` is not to stand for the start
        yield f"./{other}" if str(other) in own else str(other), partial(agent.adopt, other)


def _answers(agent: Any, tasks: Sequence[Task], arena: Arena) -> dict[str, Idea]:
    """Task id -> the one answer; a task that the agent fails on has none, as in a run."""
    by_id = {task.id: task for task in tasks}
    requests = [Request(task, 0, 0, 0, samples=1) for task in tasks]
    given = isolate(lambda some: ideas_of(agent.name, some, agent.propose(some)), requests)
    ideas = (item for _, item in given if isinstance(item, Idea))
    return {i.task: replace(i, answer=answered(arena, by_id[i.task], i.text)) for i in ideas}
