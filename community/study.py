"""One recipe under several seeds: is it the method or luck?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev

from rich.console import Group
from rich.table import Table
from rich.text import Text

from community.config import Recipe
from community.folder import create, refuse_changes
from community.ledger import Ledger
from community.run import How, play


@dataclass(frozen=True)
class Outcome:
    """One seed: group (domain and level) -> exact match."""

    seed: int
    community: dict[str, float]
    weakest_start: dict[str, float]
    weakest_end: dict[str, float]
    early: str = ""  # why and when it ended before its last round


def study(recipe: Recipe, base: Path, home: Path, seeds: Sequence[int], how: How) -> list[Outcome]:
    """Play the recipe once for each seed, going on with what was played before.

    Raises CommunityError if that was another recipe.
    """
    outcomes = []
    for seed in seeds:
        section = recipe.run.model_copy(
            update={"seed": seed, "name": f"{recipe.run.name}-seed{seed}"}
        )
        seeded = recipe.model_copy(update={"run": section})
        folder = home / section.name
        if (folder / "recipe.toml").exists():
            refuse_changes(seeded, folder)
        else:
            create(seeded, base, folder)
        early = play(folder, how)
        outcomes.append(replace(outcome(folder, seed), early=early))
    return outcomes


def outcome(folder: Path, seed: int) -> Outcome:
    """What came of one seed's run."""
    with Ledger.open(folder / "ledger.db", read_only=True) as ledger:
        scores, names, last = ledger.scores(), set(ledger.members()), ledger.last_learning()
    weakest: dict[int, dict[str, float]] = {0: {}, last: {}}
    community = {}
    for s in scores:
        group, exact = f"{s.domain} {s.level}", s.right / s.total
        if s.solver == "community" and s.round == last:
            community[group] = exact
        if s.solver in names and s.round in weakest:
            weakest[s.round][group] = min(exact, weakest[s.round].get(group, 1.0))
    return Outcome(seed, community, weakest[0], weakest[last])


def render(outcomes: Sequence[Outcome]) -> Group:
    """Exact match of the community by group: mean, spread, each seed with its weakest member; below
    it the seeds that a budget ended."""
    table = Table(
        title="holdout, exact match of the community's answer; weakest member start > end"
    )
    table.add_column("", overflow="fold")  # whole, however narrow the terminal
    table.add_column("mean", justify="right")
    table.add_column("spread", justify="right")
    for o in outcomes:
        table.add_column(f"seed {o.seed}", justify="right")
    # a small holdout may hold a domain under one seed and not under another
    for group in dict.fromkeys(group for o in outcomes for group in o.community):
        values = [o.community[group] for o in outcomes if group in o.community]
        cells = [_cell(o, group) for o in outcomes]
        spread = stdev(values) if len(values) > 1 else 0.0
        table.add_row(Text(group), f"{fmean(values):.3f}", f"{spread:.3f}", *cells)
    return Group(table, *(Text(f"seed {o.seed} {o.early}") for o in outcomes if o.early))


def _cell(o: Outcome, group: str) -> str:
    if group not in o.community:
        return "-"
    return f"{o.community[group]:.2f} ({o.weakest_start[group]:.2f} > {o.weakest_end[group]:.2f})"
