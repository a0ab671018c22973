"""Rounds -> lessons -> learning -> holdout scores, over and over; and how to go on later.

A round and its learning are one transaction each. Whatever happens in between, a run goes
on from the last of them: everything else follows from the recipe, the seeds and the ledger.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from time import monotonic
from typing import Any

from community import experts, school
from community.config import BudgetSection, Recipe
from community.errors import unknown
from community.folder import reopen
from community.ledger import Ledger
from community.members import Listener, Members
from community.parts import arena_of, graph_of, router_of, rules_of, specs_of
from community.pool import LocalPool, Pool, RayPool, Spec
from community.round import deliberate, nothing_known, play_round
from community.types import (
    COMMUNITY,
    Arena,
    Checkpoint,
    Idea,
    Learned,
    Learning,
    Lesson,
    Round,
    Score,
    Split,
    Task,
)
from community.world import answered, posed, verified

POOLS = ("local", "ray")


@dataclass(frozen=True)
class How:
    """What may change the time a run takes, but not what comes of it."""

    pool: str = ""  # "" is the recipe's
    workers: int = 0  # 0 is the recipe's
    address: str = ""  # of a Ray cluster
    listener: Listener = field(default_factory=Listener)

    def place(self, recipe: Recipe) -> str:
        """local or ray. Raises CommunityError for anything else."""
        kind = self.pool or ("ray" if self.address else recipe.run.pool)
        if kind not in POOLS:
            raise unknown("pool", kind, POOLS)
        return kind


def play(folder: Path, how: How) -> str:
    """Play a run to its end from wherever it stands; says why, if the end came early.

    Raises CommunityError for whatever keeps the run from going on.
    """
    recipe, base = reopen(folder)
    with Ledger.open(folder / "ledger.db") as ledger:
        between = ledger.last_learning() == ledger.last_round()
        if not (between and _over(recipe, ledger)):
            specs = specs_of(recipe, base)
            with _pool(specs, folder, how, recipe) as pool:
                Run(recipe, base, folder, ledger, pool, specs, how).play()
        n, of = ledger.last_round(), recipe.run.rounds
        return f"stopped after round {n} of {of}: {_spent(recipe, ledger)}" if n < of else ""


def _over(recipe: Recipe, ledger: Ledger) -> bool:
    """Whether no further round is to be played."""
    return ledger.last_round() >= recipe.run.rounds or bool(_spent(recipe, ledger))


def _spent(recipe: Recipe, ledger: Ledger) -> str:
    """Which budget is used up, if one is."""
    if recipe.budget == BudgetSection():
        return ""  # a million ideas need not be counted for it
    seconds = sum(played.seconds for played in ledger.rounds())
    return recipe.budget.spent(sum(ledger.tokens().values()), seconds)


@contextmanager
def _pool(specs: Sequence[Spec], folder: Path, how: How, recipe: Recipe) -> Iterator[Pool]:
    checkpoints = folder / "checkpoints"
    pool: Pool
    if how.place(recipe) == "local":
        pool = LocalPool(specs, checkpoints)
    else:
        pool = RayPool(specs, checkpoints, how.workers or recipe.run.workers, how.address)
    try:
        yield pool
    finally:
        pool.close()


class Run:
    """A run in play."""

    def __init__(
        self,
        recipe: Recipe,
        base: Path,
        folder: Path,
        ledger: Ledger,
        pool: Pool,
        specs: Sequence[Spec],
        how: How,
    ) -> None:
        self.recipe, self.base, self.folder, self.ledger = recipe, base, folder, ledger
        self.specs = specs
        self.how = how
        self.names = [spec.name for spec in specs]
        self.seed = recipe.run.seed
        self.arena = arena_of(recipe, base)
        self.members = Members(
            pool, self.names, self.arena, self.seed, how.listener, recipe.tasks.phrasings
        )
        self.router = router_of(recipe, self.names)
        # of this run alone: a cache on the methods would keep every run of a process
        self.tasks = cache(partial(tasks_of, recipe, self.arena))
        self._first = cache(self._first_lessons)

    def play(self) -> None:
        """From the last thing recorded to the last round, or to the end of the budget."""
        if self.ledger.last_learning() < 0:
            self._begin()
        else:
            self.members.load(self.ledger.current_checkpoints())
        last = self.ledger.last_round()
        if last:
            self.router.restore(self.ledger.router_state(last))
        if last > self.ledger.last_learning():
            self._announce(last)
            self._learn(self.ledger.round(last))
        while not _over(self.recipe, self.ledger):
            n = self.ledger.last_round() + 1
            self._announce(n)
            self._learn(self._play_round(n))

    def _announce(self, n: int) -> None:
        self.how.listener.round(n, self.recipe.run.rounds, self.recipe.level(n))

    def _begin(self) -> None:
        """First lessons, or members as they are; then how everyone scores at the start."""
        start = monotonic()
        self.how.listener.round(0, self.recipe.run.rounds, max(self.recipe.first.levels))
        held = self.tasks("validation") + self.tasks("holdout")
        self.ledger.reserve(held)
        learned = experts.begin(
            self.recipe, self.specs, self.members, self.arena, self.folder, held
        )
        checkpoints = tuple(
            _checkpoint(name, 0, self.members.checkpoints[name], "", learned.get(name))
            for name in self.names
        )
        tokens = {name: found.tokens for name, found in learned.items()}
        self._record(0, checkpoints, tokens, start)

    def _play_round(self, n: int) -> Round:
        tasks = self.tasks("train", n)
        world = self.arena if self.recipe.run.world == "always" else None
        graph = graph_of(self.recipe, self.names, n, self.base)
        rules = rules_of(self.recipe, self.base)
        round_ = play_round(n, tasks, self.members, graph, self.router, world, rules)
        self.ledger.record(round_)
        return round_

    # -- learning ----------------------------------------------------------------------

    def _learn(self, round_: Round) -> None:
        """Each learner studies its lessons; who got worse goes back to what it was."""
        start, n = monotonic(), round_.n
        studies = school.studies(
            n, round_.lessons, self._replays(round_), self.recipe.learning, self.seed
        )
        parents = {name: self.members.checkpoints[name] for name in studies}
        before = self._exam(round_, list(studies))
        learned = self.members.learn(studies)
        after = self._exam(round_, list(learned))
        fallen = {name for name in learned if self._fell(name, before, after)}
        self.members.load({name: parents[name] for name in sorted(fallen)})
        checkpoints = tuple(
            replace(
                _checkpoint(name, n, id_, parents[name], found),
                kept=name not in fallen,
                before=school.share(_both(name, before)),
                after=school.share(_both(name, after)),
                lessons=tuple(x.id for x in studies[name].lessons if x.id not in found.left_out),
            )
            for name, (found, id_) in learned.items()
        )
        tokens = {name: found.tokens for name, (found, _) in learned.items()}
        self._record(n, checkpoints, tokens, start)
        self.how.listener.result(n, self._facts(round_, checkpoints))

    def _replays(self, round_: Round) -> dict[str, Sequence[Any]]:
        each, n = self.recipe.learning.replay, round_.n
        if not each:
            return {}
        learners = {lesson.learner for lesson in round_.lessons}
        earlier: dict[str, list[Lesson]] = {name: [] for name in learners}
        share = self.recipe.learning.peers
        known = [x for x in self.ledger.lessons(before=n) if not school.set_aside(x, share)]
        asked = self.recipe.learning.revalidate and known
        doubted = self._doubted(n, known) if asked else set()
        for lesson in known:
            if lesson.learner in earlier and (lesson.task, lesson.text) not in doubted:
                earlier[lesson.learner].append(lesson)
        return {
            name: school.replay(earlier[name], self._first(name)[: each * n], n, each, self.seed)
            for name in sorted(learners)
        }

    def _doubted(self, n: int, lessons: Sequence[Lesson]) -> set[tuple[str, str]]:
        """(task, text) of earlier lessons that most members, asked again, answer otherwise."""
        by_id = {task.id: task for r in range(1, n) for task in self.tasks("train", r)}
        taught = {(x.task, x.text): answered(self.arena, by_id[x.task], x.text) for x in lessons}
        asked = dict.fromkeys(task for task, _ in taught)
        teams = dict.fromkeys(self.names, tuple(by_id[task] for task in asked))
        ideas = self.members.propose(n, teams, samples=1, purpose="revalidate")
        doubted = school.doubted(ideas, {(task, answer) for (task, _), answer in taught.items()})
        return {(task, text) for (task, text), own in taught.items() if (task, own) in doubted}

    def _first_lessons(self, name: str) -> Sequence[Lesson]:
        """A member's first lessons, as many as the last round rehearses."""
        first, learning = self.recipe.first, self.recipe.learning
        count = min(first.examples, learning.replay * self.recipe.run.rounds)
        domains = dict(self.recipe.roster())[name].domains
        return school.first_lessons(self.arena, first, name, self.seed, count, domains)

    def _exam(self, round_: Round, learners: Sequence[str]) -> list[dict[str, school.Answers]]:
        """Everyone's answers to validation tasks (by the world), set-aside lessons (by peers)."""
        if not learners:
            return [{}, {}]
        world = self.recipe.run.world != "never"
        validation = self.tasks("validation") if world else ()
        share = self.recipe.learning.peers
        aside = {x.task for x in round_.lessons if school.set_aside(x, share)}
        peers = tuple(task for task in round_.tasks if task.id in aside)
        teams = dict.fromkeys(learners, validation + peers)
        ideas = self.members.propose(round_.n, teams, samples=1, purpose="exam")
        by_world = [idea for idea in ideas if idea.task not in aside]
        winners = school.winning_answers(round_.ideas, round_.ranking)
        return [
            school.judged_by_world(by_world, validation, self.arena),
            school.judged_by_peers(ideas, {t: a for t, a in winners.items() if t in aside}),
        ]

    def _fell(
        self,
        name: str,
        before: list[dict[str, school.Answers]],
        after: list[dict[str, school.Answers]],
    ) -> bool:
        alpha = self.recipe.learning.alpha
        return any(
            school.fell(b.get(name, {}), a.get(name, {}), alpha)
            for b, a in zip(before, after, strict=True)
        )

    def _record(
        self,
        n: int,
        checkpoints: tuple[Checkpoint, ...],
        tokens: Mapping[str, int],
        start: float,
    ) -> None:
        scores = self._scores(n)
        self.ledger.learned(Learning(n, checkpoints, scores, tokens, monotonic() - start))

    # -- the holdout -------------------------------------------------------------------

    def _scores(self, n: int) -> tuple[Score, ...]:
        """Everyone's exact match on the holdout: for reports, and nothing else."""
        tasks = self.tasks("holdout")
        if not tasks:
            return ()
        checked = self.recipe.run.world == "always"
        trust = self.router.known if checked else nothing_known
        rules = rules_of(self.recipe, self.base, trust)
        graph = graph_of(self.recipe, self.names, max(1, n), self.base)
        teams = dict.fromkeys(self.names, tasks)
        ideas, _, ranking = deliberate(n, tasks, teams, self.members, graph, None, rules)
        by_id = {idea.id: idea for idea in ideas}
        answers = {COMMUNITY: {t: by_id[top.idea] for t, top in ranking.winners().items()}}
        answers |= {name: {} for name in self.names}
        for idea in ideas:
            if idea.sample == 0 and idea.turn == 0:
                answers[idea.author][idea.task] = idea
        return tuple(
            score
            for solver, given in answers.items()
            for score in exact_match(n, solver, tasks, given, self.arena)
        )

    # -- the rest ----------------------------------------------------------------------

    def _facts(self, round_: Round, checkpoints: Sequence[Checkpoint]) -> dict[str, Any]:
        return {
            "level": self.recipe.level(round_.n),
            "posed": len(round_.tasks),
            "kept": len({lesson.task for lesson in round_.lessons}),
            "rollbacks": sum(not c.kept for c in checkpoints),
            "scores": [s for s in self.ledger.scores() if s.round == round_.n],
        }


def tasks_of(recipe: Recipe, arena: Arena, split: Split, n: int = 0) -> tuple[Task, ...]:
    """The tasks of a split that a recipe poses; of round n where it is train. Each once."""
    wanted = recipe.tasks
    if split == "train":
        plan = [(recipe.level(n), wanted.train)]
    elif split == "validation":
        plan = [(level, wanted.validation) for level in wanted.validation_levels]
    else:
        plan = [(level, wanted.holdout) for level in wanted.holdout_levels]
    # A round's tasks follow each other in one sequence, so that none comes twice early on.
    first = (n - 1) * wanted.train if n else 0
    found = (
        posed(arena, split, recipe.run.seed, first + index, level)
        for level, count in plan
        for index in range(count)
    )
    return tuple({task.id: task for task in found}.values())


def exact_match(
    n: int, solver: str, tasks: Sequence[Task], answers: Mapping[str, Idea], arena: Arena
) -> Iterator[Score]:
    """Exact match on holdout tasks by domain and level; `answers` are task id -> idea."""
    groups: dict[tuple[str, int], list[float]] = {}
    for task in tasks:
        idea = answers.get(task.id)
        right = (verified(arena, task, idea) or 0.0) if idea else 0.0
        groups.setdefault((task.domain, task.level), []).append(right)
    for (domain, level), rights in groups.items():
        yield Score(n, solver, "holdout", domain, level, sum(rights), len(rights))


def _checkpoint(name: str, n: int, id_: str, parent: str, learned: Learned | None) -> Checkpoint:
    steps = learned.steps if learned else 0
    loss = learned.loss if learned else None
    return Checkpoint(id_, name, n, parent, f"checkpoints/{id_}", steps=steps, loss=loss)


def _both(name: str, exams: Sequence[Mapping[str, school.Answers]]) -> school.Answers:
    """World's and peers' results of one member together."""
    return {task: right for exam in exams for task, right in exam.get(name, {}).items()}
