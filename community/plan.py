"""What a recipe would do: members, topology, and tokens and time from a small measurement."""

from __future__ import annotations

import tempfile
from pathlib import Path
from time import monotonic

from rich.console import Group
from rich.table import Table

from community.config import Recipe
from community.folder import check
from community.parts import arena_of, graph_of, router_of, specs_of
from community.pool import Spec, Worker, isolate
from community.types import Arena, Idea, Lesson, Request, Study, Task
from community.world import posed

SAMPLE = 8  # tasks answered, and examples learned from, for the measurement
STEPS = 2


def plan(recipe: Recipe, base: Path) -> Group:
    """A table of members with the tokens and seconds expected of a round, and totals.

    Each member is made and measured on a few tasks of round 1, so what is expected is what
    this machine does now; answers may grow longer with the level. Raises CommunityError for
    whatever would keep the run from starting.
    """
    check(recipe, base)
    specs, arena = specs_of(recipe, base), arena_of(recipe, base)
    graph = graph_of(recipe, [s.name for s in specs], 1, base)
    router = router_of(recipe, [s.name for s in specs])
    table = Table("member", "agent", "reads", "tokens a round", "seconds a round")
    tokens, seconds = 0.0, 0.0
    measured: dict[str, tuple[float, float]] = {}
    share = (router.top_k or len(specs)) / len(specs)
    for spec in specs:
        kind = f"{spec.use}{sorted(spec.options.items(), key=str)}"
        if kind not in measured:
            measured[kind] = _measure(spec, recipe, arena)
        used, took = (share * x for x in measured[kind])
        tokens, seconds = tokens + used, seconds + took
        reads = str(graph.out_degree(spec.name))
        table.add_row(spec.name, spec.use, reads, f"{used:,.0f}", f"{took:.1f}")
    workers = recipe.run.workers if recipe.run.pool == "ray" else 1
    rounds = recipe.run.rounds
    total = seconds * rounds / min(workers, len(specs))
    return Group(
        table,
        f"topology {_schedule(recipe, base)}",
        f"{recipe.tasks.train} tasks a round, {rounds} rounds, world speaks: {recipe.run.world}",
        f"expected: {tokens * rounds:,.0f} tokens generated, about {total / 60:.1f} minutes of "
        f"answering and learning with {workers} workers"
        + ("" if not recipe.first.examples else ", after the first lessons")
        + ("" if not recipe.baselines.run else "; baselines come on top"),
    )


def _schedule(recipe: Recipe, base: Path) -> str:
    """Every topology, with the edges of the first round that it holds in."""
    names = [name for name, _ in recipe.roster()]
    parts = []
    for t in recipe.topology:
        start = f" from round {t.from_round}" if t.from_round > 1 else ""
        edges = graph_of(recipe, names, t.from_round, base).number_of_edges()
        parts.append(f"{t.use}{start}, {edges:,} edges")
    return "; ".join(parts)


def _measure(spec: Spec, recipe: Recipe, arena: Arena) -> tuple[float, float]:
    """Tokens generated and seconds that one member spends on a round."""
    tasks = [posed(arena, "train", recipe.run.seed, i, recipe.level(1)) for i in range(SAMPLE)]
    with tempfile.TemporaryDirectory() as folder:
        worker = Worker(spec, folder)
        agent = worker.agent  # making it is not counted
        start = monotonic()
        ideas = _ask(worker, tasks)
        answering = (monotonic() - start) / SAMPLE * recipe.tasks.train * (1 + recipe.run.turns)
        prompts = {task.id: task.prompt for task in tasks}
        lessons = tuple(
            Lesson(1, spec.name, i.task, i.id, prompts[i.task], i.text, "measurement")
            for i in ideas
        )
        settings = recipe.learning
        studies = [Study(1, 0, lessons, steps=STEPS, batch=settings.batch)] if lessons else []
        start = monotonic()
        # one that cannot learn stays as it is in a run, too
        isolate(lambda some: [agent.learn(study) for study in some], studies)
        step = (monotonic() - start) / STEPS
    batch = settings.batch / 2 if settings.replay else settings.batch  # as in Study.fresh
    steps = settings.steps or settings.epochs * recipe.tasks.train / batch
    tokens = sum(idea.tokens for idea in ideas) / SAMPLE * recipe.tasks.train
    return tokens * (1 + recipe.run.turns), answering + step * steps


def _ask(worker: Worker, tasks: list[Task]) -> list[Idea]:
    requests = [Request(task, 1, 0, 0) for task in tasks]
    return [item for _, item in worker.propose(requests) if isinstance(item, Idea)]
