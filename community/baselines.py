"""What one member reaches alone with as many tokens as the whole community."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

from community.config import Recipe, parse
from community.ledger import Ledger
from community.members import Silence
from community.run import How, create, play, reopen
from community.types import Idea


def play_baselines(folder: Path, how: How) -> None:
    """Play the recipe's baselines of a finished run, each a run of its own below `baselines/`.

    They go on where they stopped. On Ray they run side by side, as many as there are workers.
    """
    recipe, base = reopen(folder)
    kinds = recipe.baselines.run
    with Ledger.open(folder / "ledger.db", read_only=True) as ledger:
        if not kinds or ledger.last_round() == 0:
            return
        best = best_at_start(ledger)
    for kind in kinds:
        place = folder / "baselines" / kind
        if not (place / "ledger.db").exists():
            create(alone(recipe, best, kind), base, place)
    local = how.place(recipe) == "local"
    side_by_side = 1 if local else how.workers or recipe.run.workers
    how.listener.phase("baselines", len(kinds))
    listener = Stoppable()
    quiet = replace(how, listener=listener)

    def one(kind: str) -> None:
        play(folder / "baselines" / kind, quiet)
        how.listener.done(kind, 0)

    with ThreadPoolExecutor(side_by_side) as threads:
        try:
            list(threads.map(one, kinds))
        except BaseException:  # Ctrl-C too: the others are not waited for to their end
            listener.stop.set()
            raise


class Stopped(Exception):
    """Another baseline failed, or the user had enough."""


class Stoppable(Silence):
    """Says nothing, and ends a run before its next phase once `stop` is set."""

    def __init__(self) -> None:
        self.stop = Event()

    def phase(self, name: str, total: int) -> None:
        if self.stop.is_set():
            raise Stopped


def best_at_start(ledger: Ledger) -> str:
    """The member that agrees most with itself on the first round's tasks, no reference seen."""
    answers: dict[tuple[str, str], list[Idea]] = {}
    for idea in ledger.round(1).ideas:
        if idea.turn == 0:
            answers.setdefault((idea.author, idea.task), []).append(idea)
    agreed: dict[str, int] = {}
    for (author, _), ideas in answers.items():
        first = ideas[0].answer
        sure = bool(first) and all(idea.answer == first for idea in ideas)
        agreed[author] = agreed.get(author, 0) + sure
    return max(sorted(agreed), key=lambda name: agreed[name])


def alone(recipe: Recipe, best: str, kind: str) -> Recipe:
    """The same recipe for one member, which gets all tasks and training of the community.

    As many members as attempted a task, so many times the tasks a round, and as many as there
    were, so many times the steps of learning: equal tokens. "self-consistency" keeps every other rule; "no-filter" believes whatever the
    member says and never rolls back.
    """
    data: dict[str, Any] = recipe.model_dump(mode="json", exclude_none=True)
    table = next(t for name, t in recipe.roster() if name == best)
    times = len(recipe.roster())
    data["members"] = [table.model_dump(mode="json") | {"name": best, "count": 1}]
    data["tasks"]["train"] *= recipe.router.top_k or times
    data["learning"]["steps"] *= times  # epochs grow with the lessons by themselves
    data["learning"]["replay"] *= times
    data["topology"] = [{"use": "complete"}]
    data["router"] |= {"top_k": 0, "policy": "author"}
    data["baselines"] = {"run": []}
    data["run"]["name"] = f"{recipe.run.name}-{kind}"
    data["ranking"] |= _filter(kind)
    if kind == "no-filter":
        data["learning"]["alpha"] = 0.0
    return parse(data, f"baseline {kind}")


def _filter(kind: str) -> Mapping[str, Any]:
    if kind == "no-filter":
        return {"min_supporters": 1, "min_confidence": 0.0, "best": 1.0}
    return {"min_supporters": 1}
