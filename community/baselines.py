"""What one member reaches alone, with as many tokens as the whole community.

Each baseline is a run of its own, of a recipe made from the community's, below `baselines/`:

- self-consistency: it teaches itself; every other rule stays. It gets the tasks and the
  training of all members, so tokens are equal unless these talk to each other (`turns`) or
  `top_k` leaves them fewer answers than lessons; the report says how they compare.
- no-filter: the same, but it believes whatever it says, and nothing is rolled back.
- greedy, few-shot, majority: it does not learn. Few-shot has worked examples in its prompt;
  majority takes as many samples as all members together.

Where members' first lessons are of different domains it has those of all, or it would be asked
what only others were taught.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from threading import Event
from typing import Any

from community.config import Recipe, parse
from community.errors import CommunityError
from community.folder import create, reopen
from community.ledger import Ledger
from community.members import Listener
from community.parts import arena_of, specs_of
from community.run import How, play
from community.types import WORLD, Idea, seed_of
from community.world import posed


def play_baselines(folder: Path, how: How) -> None:
    """Play the recipe's baselines of a finished run; they go on where they stopped.

    On Ray they run side by side, as many as there are workers.
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
            create(alone(recipe, best, kind, base), base, place)
    local = how.place(recipe) == "local"
    how.listener.phase("baselines", len(kinds))
    quiet = Stoppable()

    def one(kind: str) -> None:
        play(folder / "baselines" / kind, replace(how, listener=quiet))
        how.listener.done(kind, 0)

    with ThreadPoolExecutor(1 if local else how.workers or recipe.run.workers) as threads:
        try:
            list(threads.map(one, kinds))
        except BaseException:  # Ctrl-C too: the others are not waited for to their end
            quiet.stop.set()
            raise


def check_baselines(recipe: Recipe, base: Path) -> None:
    """Raises CommunityError for a baseline that a member cannot play, before anything is played.

    Any member may turn out to be the best at the start. What is wrong with a member anyhow is
    said as it is, for no baseline is at fault.
    """
    if recipe.baselines.run:
        specs_of(recipe, base)
    tables = {id(table): name for name, table in recipe.roster()}  # members of one table are alike
    for kind in recipe.baselines.run:
        for name in tables.values():
            try:
                specs_of(alone(recipe, name, kind, base), base)
            except CommunityError as error:
                raise CommunityError(
                    f"member {name} cannot play baseline {kind} ({error}); take it out of "
                    "baselines.run or pass --no-baselines"
                ) from error


class Stopped(Exception):
    """Another baseline failed, or the user had enough."""


class Stoppable(Listener):
    """Says nothing, and ends a run before its next phase once `stop` is set."""

    def __init__(self) -> None:
        self.stop = Event()

    def phase(self, name: str, total: int) -> None:
        if self.stop.is_set():
            raise Stopped


def best_at_start(ledger: Ledger) -> str:
    """The member that answered most of the first round's tasks right, as far as the world spoke
    there; of those alike, all where it was silent, the one that agreed most with itself.

    The first by name where nobody answered.
    """
    first = ledger.round(1)
    found = {v.idea: v.score for v in first.verdicts if v.judge == WORLD}
    answers: dict[tuple[str, str], list[Idea]] = {}
    for idea in first.ideas:
        if idea.turn == 0:
            answers.setdefault((idea.author, idea.task), []).append(idea)
    right, agreed = dict.fromkeys(ledger.members(), 0.0), dict.fromkeys(ledger.members(), 0)
    for (author, _), ideas in answers.items():
        right[author] += fmean(found.get(idea.id, 0.0) for idea in ideas)
        said = {idea.answer for idea in ideas}
        agreed[author] += len(said) == 1 and "" not in said
    return max(sorted(agreed), key=lambda name: (right[name], agreed[name]))


def alone(recipe: Recipe, best: str, kind: str, base: Path) -> Recipe:
    """The recipe of a baseline: the community's, for one member. See the module."""
    data: dict[str, Any] = recipe.model_dump(mode="json", exclude_none=True)
    table = dict(recipe.roster())[best]
    member = table.model_dump(mode="json", exclude_none=True) | {"name": best, "count": 1}
    data["members"] = [member]
    _first_lessons_of_all(data, [table.domains for _, table in recipe.roster()], member)
    data["run"] |= {"name": f"{recipe.run.name}-{kind}"}
    data["topology"] = [{"use": "complete"}]
    data["router"] |= {"top_k": 0, "policy": "author"}
    data["ranking"]["min_supporters"] = 1
    data["baselines"]["run"] = []
    if kind in ("self-consistency", "no-filter"):
        _teaches_itself(data, len(recipe.roster()), recipe.router.top_k)
        if kind == "no-filter":
            data["ranking"] |= {"min_confidence": 0.0, "best": 1.0}
            data["learning"]["alpha"] = 0.0
    else:
        data["run"] |= {"rounds": 0, "turns": 0}
        member |= _untrained(recipe, kind, member, base)
    return parse(data, f"baseline {kind}")


def _first_lessons_of_all(
    data: dict[str, Any], taught: list[tuple[str, ...]], member: dict[str, Any]
) -> None:
    """As many examples, and steps with them, as specialists had together."""
    kinds = set(taught)
    if len(kinds) > 1:
        data["first"]["examples"] *= len(kinds)
        data["first"]["steps"] *= len(kinds)
        member["domains"] = sorted(set().union(*kinds)) if () not in kinds else []


def _teaches_itself(data: dict[str, Any], members: int, attempts: int) -> None:
    """As many times the tasks as members attempted one, and as many times the steps and the
    replay as there were members: equal tokens."""
    data["tasks"]["train"] *= attempts or members
    data["learning"]["replay"] *= members
    data["learning"]["steps"] *= members  # by epochs it follows from the lessons


def _untrained(recipe: Recipe, kind: str, member: dict[str, Any], base: Path) -> dict[str, Any]:
    """The member's options under a baseline that only changes how it is asked."""
    if kind == "majority":
        samples = int(member.get("samples", 1)) * len(recipe.roster())
        return {"samples": samples * (1 + recipe.run.turns)}
    if kind == "greedy":
        return {"temperature": 0.0, "samples": 1}
    arena = arena_of(recipe, base)
    solve = getattr(arena, "solve", None)
    if solve is None:
        raise CommunityError(f"arena {arena.name} has no worked examples for baseline few-shot")
    seed, level = seed_of(recipe.run.seed, "shots"), recipe.level(1)
    tasks = [posed(arena, "train", seed, i, level) for i in range(recipe.baselines.shots)]
    shots = [[task.prompt, solve(task)] for task in tasks]
    return {"temperature": 0.0, "samples": 1, "shots": shots}
