"""A validated recipe -> the parts it names, each option checked before anything runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import networkx as nx

from community.config import Recipe, check_options
from community.errors import CommunityError
from community.plugins import load
from community.pool import OF_ARENA, Spec
from community.ranking import pairings, rank
from community.round import Rules, Trust, nothing_known
from community.router import Router
from community.topology import at_round, build
from community.types import Arena, seed_of

FILLED_IN = ("self", "name", "seed", *OF_ARENA)


def arena_of(recipe: Recipe, base: Path) -> Arena:
    """The recipe's arena. Raises CommunityError for an unknown one or wrong options."""
    return load("arena", recipe.arena.use, base)(**_arena_options(recipe, base))


def specs_of(recipe: Recipe, base: Path) -> list[Spec]:
    """Every member's spec.

    Raises CommunityError for an unknown agent or wrong options, and for an agent that needs
    what the arena does not have.
    """
    arena = arena_of(recipe, base)
    arena_options = _arena_options(recipe, base)
    specs = []
    for name, table in recipe.roster():
        make = load("agent", table.use, base)
        options = check_options(make, table.options, f"members.{name}", FILLED_IN)
        _refuse_unfilled(make, table.use, arena)
        prepare = getattr(make, "prepare", None)
        options = prepare(options, base) if prepare else options
        specs.append(
            Spec(
                name=name,
                use=table.use,
                seed=seed_of(recipe.run.seed, name, "member"),
                options=options,
                base=str(base),
                arena=recipe.arena.use,
                arena_options=arena_options,
                cpus=table.cpus,
                gpus=table.gpus,
            )
        )
    return specs


def _refuse_unfilled(make: Callable[..., Any], use: str, arena: Arena) -> None:
    parameters = inspect.signature(make).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name in ("name", "seed"):
        if name not in parameters and not anything:
            raise CommunityError(
                f"members of kind {use} take no {name}; every member is made with name and seed"
            )
    for name in OF_ARENA:
        needed = name in parameters and parameters[name].default is inspect.Parameter.empty
        if needed and not hasattr(arena, name):
            raise CommunityError(
                f"the arena {arena.name} has no {name}, which members of kind {use} need; give "
                "it one, or use other members"
            )


def _arena_options(recipe: Recipe, base: Path) -> dict[str, Any]:
    make = load("arena", recipe.arena.use, base)
    return check_options(make, recipe.arena.options, "arena", ("self",))


def router_of(recipe: Recipe, names: Sequence[str]) -> Router:
    """The shared router. Raises CommunityError for an unknown policy or impossible top_k."""
    return Router(
        names,
        seed=seed_of(recipe.run.seed, "router"),
        top_k=recipe.router.top_k or None,
        policy=recipe.router.policy,
        explore=recipe.router.explore,
        min_confidence=recipe.ranking.min_confidence,
        min_supporters=recipe.ranking.min_supporters,
        best=recipe.ranking.best,
    )


def graph_of(recipe: Recipe, names: Sequence[str], n: int, base: Path) -> nx.DiGraph[str]:
    """Who reads whom in round n. Raises CommunityError for an unknown topology or a bad file."""
    schedule = [(t.from_round, t.use, t.options) for t in recipe.topology]
    use, options = at_round(schedule, n)
    if isinstance(options.get("path"), str):
        options = {**options, "path": str(base / options["path"])}
    seed = seed_of(recipe.run.seed, "topology")
    use = use if ":" in use else use.replace("-", "_")  # ours are written either way
    return build(load("topology", use, base), names, seed, n, **options)


def rules_of(recipe: Recipe, base: Path, trust: Trust = nothing_known) -> Rules:
    """How the community deliberates, given what is known of its members in some tasks.

    Raises CommunityError for an unknown ranker.
    """
    method = recipe.ranking.method
    own = load("ranker", method, base)
    return Rules(
        seed=recipe.run.seed,
        rank=lambda ideas, verdicts, trust: rank(ideas, verdicts, method, trust, own),
        pairings=pairings,
        turns=recipe.run.turns,
        pairs=recipe.judging.pairs,
        judges=recipe.judging.judges,
        trust=trust,
    )
