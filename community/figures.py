"""A run's folder -> everything its report says, as plain data (what becomes report.json).

This is the one place that asks the arena for the truth about train tasks: how many of the
kept lessons were right. Nothing found here goes back into a run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from sqlalchemy import Select, func, select

from community import flows
from community.config import Recipe, read
from community.errors import CommunityError
from community.findings import happened
from community.ledger import Ledger, Summary
from community.parts import arena_of
from community.rows import mapping_of, read_ideas, read_tasks
from community.standings import book_of, by_level, by_place, course, holdout, scores_of
from community.tables import checkpoints, ideas, learnings, lessons, spent, tasks, taught
from community.tables import rounds as played
from community.topology import Entry, at_round
from community.types import Arena, Score
from community.world import verified

Facts = dict[str, Any]

PLACEMENT = {"name", "count", "cpus", "gpus", "use", "backend"}  # of a member, and no trait


def figures(folder: Path) -> Facts:
    """Everything the report of the run in `folder` says, ready for JSON.

    Shares are between 0 and 1, times are seconds. `holdout` is keyed by "domain@level",
    `holdout_by_digits` (arithmetic only) by the digits; `holdout_by_round` is all of it after
    each learning. `topology` and `routing` are as in `flows`. Raises CommunityError if there is
    no run, or nothing recorded yet.
    """
    recipe = read(folder / "recipe.toml")
    with Ledger.open(folder / "ledger.db", read_only=True) as ledger:
        if ledger.last_learning() < 0 and not ledger.last_round():
            raise CommunityError(
                f"run {recipe.run.name} has recorded nothing yet, so there is nothing to report; "
                f"`community resume {folder.name}` starts it"
            )
        meta = ledger.meta
        arena = arena_of(recipe, Path(meta["base"]))
        scores = scores_of(ledger)
        facts: Facts = {
            "name": recipe.run.name,
            "seed": meta["seed"],
            "recipe_hash": meta["recipe_hash"],
            "arena": arena.name,
            "unit": "digits" if arena.name == "arithmetic" else "level",
            **_course(ledger, recipe),
            "world": recipe.run.world,
            "world_says": _world(recipe),
            "versions": meta["versions"],
            "rounds": _rounds(ledger, arena, scores),
            "members": _members(ledger),
            "topology": _topology(ledger, recipe),
            "routing": flows.routing(ledger),
        }
    rivals = _rivals(folder / "baselines", arena)
    theirs = {kind: rival.pop("scores") for kind, rival in rivals.items()}
    facts["holdout_by_round"] = course(scores)
    facts["holdout"] = holdout(scores, theirs, by_place)
    if arena.name == "arithmetic":
        facts["holdout_by_digits"] = holdout(scores, theirs, by_level)
    facts["baselines"] = {kind: _compared(rival, facts) for kind, rival in rivals.items()}
    facts["what_happened"] = happened(facts)
    return facts


# -- the course of a run -------------------------------------------------------------------


def _course(ledger: Ledger, recipe: Recipe) -> Facts:
    """How far a run came and what it cost; the start apart, since a cache may have held it."""
    seconds = sum(r.seconds for r in ledger.rounds())
    start = _counts(ledger, select(learnings.c.n, learnings.c.seconds).where(learnings.c.n == 0))
    first = select(spent.c.round, func.sum(spent.c.tokens)).group_by(spent.c.round)
    tokens = ledger.tokens()
    return {
        "rounds_planned": recipe.run.rounds,
        "rounds_played": max(0, ledger.last_learning()),
        "stopped": _stopped(ledger, recipe, seconds),
        "seconds": _number(ledger.seconds(), 3),
        "seconds_start": _number(start.get(0, 0.0), 3),
        "tokens": sum(tokens.values()),
        "tokens_start": int(_counts(ledger, first).get(0, 0)),
        "tokens_by_member": {name: tokens.get(name, 0) for name in ledger.members()},
        "answers_a_task": _answers(recipe),
    }


def _answers(recipe: Recipe) -> int:
    """How many answers all members together give to a holdout task, revised ones included."""
    samples = (int(table.model_dump().get("samples", 1)) for _, table in recipe.roster())
    return sum(samples) * (1 + recipe.run.turns)


def _stopped(ledger: Ledger, recipe: Recipe, seconds: float) -> str:
    """Why there are fewer rounds than planned so far; empty if there are not."""
    if ledger.last_learning() >= recipe.run.rounds:
        return ""
    # nobody knows from a ledger whether a process is still playing it
    unknown = "it has not ended; `community resume` goes on if it was stopped"
    return recipe.budget.spent(sum(ledger.tokens().values()), seconds) or unknown


def _world(recipe: Recipe) -> str:
    """What the world was allowed to do, and what else references were used for."""
    levels = _listed(recipe.tasks.validation_levels)
    validation = (
        f"validation tasks ({levels}) decided on rollbacks"
        if recipe.tasks.validation
        else "there were no validation tasks to decide on rollbacks"
    )
    says = {
        "always": f"The world spoke always: it checked the answers of every round, and "
        f"{validation}.",
        "validation": f"The world spoke on validation only: {validation}, and what was kept and "
        "taught was decided by the members alone.",
        "never": "The world never spoke: members alone decided what was kept, taught and rolled "
        "back.",
    }[recipe.run.world]
    first = recipe.first
    if first.examples:
        says += (
            f" Before round 1 each member learned from {first.examples:,} worked examples "
            f"({_listed(first.levels)})."
        )
    return f"{says} Any other reference served this report alone."


def _listed(levels: Sequence[int]) -> str:
    """level 2; levels 1, 3; levels 1 to 4."""
    if len(levels) == 1:
        return f"level {levels[0]}"
    if len(levels) > 2 and list(levels) == list(range(levels[0], levels[-1] + 1)):
        return f"levels {levels[0]} to {levels[-1]}"
    return f"levels {', '.join(map(str, levels))}"


# -- rounds --------------------------------------------------------------------------------


def _rounds(ledger: Ledger, arena: Arena, scores: Sequence[Score]) -> list[Facts]:
    names, book = list(ledger.members()), book_of(scores, by_level)
    trust = ledger.reliability()
    summaries = ledger.rounds()  # first: what is recorded meanwhile must not be half of it
    said = flows.diversity(ledger)
    back = _counts(ledger, _checkpoints(kept=False, by="learning"))
    apart = _counts(ledger, select(played.c.n, played.c.disconnected))
    unit = "digits" if arena.name == "arithmetic" else "level"
    found = []
    for summary in summaries:
        n, level = summary.n, _level_of(ledger, summary.n)
        theirs = [book.get((n, name), {}).get(str(level)) for name in names]
        members = [share for share in theirs if share is not None]
        found.append(
            {
                "round": n,
                unit: level,
                **_kept(ledger, arena, summary),
                "seconds": _number(summary.seconds, 3),
                "tokens": summary.tokens,
                "rollbacks": back.get(n, 0),
                "disconnected": apart[n],
                "diversity": said.get(n),
                "reliability": {
                    name: _number(value) for name, value in trust.get(n, {}).items()
                    if name in names
                },
                "community": book.get((n, "community"), {}),
                "best": max(members, default=None),
                "mean": _number(fmean(members)) if members else None,
            }
        )  # fmt: skip
    return found


def _level_of(ledger: Ledger, n: int) -> int:
    """The highest level that round n posed."""
    levels = select(tasks.c.round, func.max(tasks.c.level)).where(tasks.c.round == n)
    return int(_counts(ledger, levels.group_by(tasks.c.round)).get(n, 0))


def _kept(ledger: Ledger, arena: Arena, summary: Summary) -> Facts:
    """What a round posed, what it kept as lessons, and how much of that is right.

    Reads the tasks and winning ideas of its lessons, and not the whole round.
    """
    mine = lessons.c.round == summary.n
    with ledger.reading() as conn:
        posed = {
            task.id: task
            for task in read_tasks(conn, tasks.c.row.in_(select(lessons.c.task).where(mine)))
        }
        winners = {
            idea.task: idea
            for idea in read_ideas(conn, ideas.c.row.in_(select(lessons.c.idea).where(mine)))
        }
    truth = [verified(arena, posed[task], idea) for task, idea in winners.items()]
    known = [score >= 1.0 for score in truth if score is not None]
    return {
        "posed": summary.tasks,
        "kept": len(posed),
        "checked": len(known),
        "right": sum(known),
        "precision": _number(sum(known) / len(known)) if known else None,
    }


# -- members -------------------------------------------------------------------------------


def _members(ledger: Ledger) -> dict[str, Facts]:
    """Name -> what a member is, and what it did in the rounds."""
    tokens, trust = ledger.tokens(), ledger.reliability()
    latest = max(trust, default=0)
    last, standing = trust.get(latest, {}), flows.strengths(ledger, latest)
    kept = _counts(ledger, _checkpoints(kept=True, by="agent"))
    back = _counts(ledger, _checkpoints(kept=False, by="agent"))
    given = _counts(ledger, select(lessons.c.learner, func.count()).group_by(lessons.c.learner))
    learned = _counts(ledger, _learned())
    failed = select(ideas.c.author, func.count()).where(ideas.c.failure != "")
    failures = _counts(ledger, failed.group_by(ideas.c.author))
    return {
        name: {
            "backend": spec.get("backend", ""),
            "options": {k: v for k, v in spec.items() if k not in PLACEMENT},
            "checkpoints_kept": kept.get(name, 0),
            "rollbacks": back.get(name, 0),
            "lessons": given.get(name, 0),
            "lessons_learned": learned.get(name, 0),
            "tokens": tokens.get(name, 0),
            "failures": failures.get(name, 0),
            "reliability": _number(last.get(name)),
            **standing.get(name, dict.fromkeys(("strength", "low", "high"))),
        }
        for name, spec in ledger.members().items()
    }


def _topology(ledger: Ledger, recipe: Recipe) -> list[Facts]:
    """Who read whom from round to round, with the names of the topologies in the recipe."""
    schedule: list[Entry] = [(t.from_round, t.use, {}) for t in recipe.topology]
    return [
        {"use": at_round(schedule, network["first"])[0], **network}
        for network in flows.networks(ledger)
    ]


def _checkpoints(kept: bool, by: str) -> Select[Any]:
    """Checkpoints made after the start, kept or rolled back, counted by a column."""
    made = select(checkpoints.c[by], func.count()).group_by(checkpoints.c[by])
    return made.where(checkpoints.c.learning > 0, checkpoints.c.kept.is_(kept))


def _learned() -> Select[Any]:
    """Lessons that went into checkpoints that were kept, by agent."""
    joined = select(checkpoints.c.agent, func.count()).join_from(
        checkpoints, taught, taught.c.checkpoint == checkpoints.c.row
    )
    return joined.where(checkpoints.c.kept).group_by(checkpoints.c.agent)


# -- baselines -----------------------------------------------------------------------------


def _rivals(folder: Path, arena: Arena) -> dict[str, Facts]:
    """Kind -> the course, rounds and scores of each baseline that has begun."""
    rivals = {}
    for path in sorted(folder.glob("[!.]*/ledger.db")):
        recipe = read(path.parent / "recipe.toml")
        with Ledger.open(path, read_only=True) as ledger:
            if ledger.last_learning() < 0:
                continue
            scores = scores_of(ledger)
            rivals[path.parent.name] = {
                "member": ", ".join(ledger.members()),
                **_course(ledger, recipe),
                "rounds": _rounds(ledger, arena, scores),
                "holdout_by_round": course(scores),
                "scores": scores,
            }
    return rivals


def _compared(rival: Facts, facts: Facts) -> Facts:
    """The same with `tokens_share`: its tokens as a share of the community's.

    First lessons are left out: a community has as many pupils there as members, and what a
    baseline is to have as much of is the tokens of the rounds. None for a baseline that plays
    no rounds: all it says are answers to the holdout, whose tokens no ledger counts.
    """
    own, theirs = (f["tokens"] - f["tokens_start"] for f in (rival, facts))
    known = theirs and rival["rounds_planned"]
    return rival | {"tokens_share": _number(own / theirs) if known else None}


# -- numbers -------------------------------------------------------------------------------


def _counts(ledger: Ledger, query: Select[Any]) -> dict[Any, Any]:
    """The rows of a query for two columns, the first of which is unique."""
    with ledger.reading() as conn:
        return mapping_of(conn, query)


def _number(value: float | None, digits: int = 6) -> float | None:
    """Rounded; None for what JSON cannot say."""
    return None if value is None or not math.isfinite(value) else round(value, digits)
