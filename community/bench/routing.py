"""Does the router find who is good at what? `python -m community.bench.routing [--seeds N]`.

Four scripted specialists, right in one domain and poor in the others, answer tasks of four
domains; the world checks the answers. Prints for each policy the share of tasks that reach the
right member after ten rounds, the smallest share of the load that any member had, the share
of lessons that go to the specialist of their domain, and how able the members end up, in
their own domain and overall. The control, shuffled lessons, comes last.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from community.agents.scripted import ScriptedAgent
from community.ranking import rank
from community.router import Router
from community.types import WORLD, Idea, Lesson, Request, Study, Task, Verdict, seed_of

HOME = {"ada": "double", "bea": "reverse", "cy": "square", "dan": "digits"}
SETTINGS = [("specialist", 1), ("author", 1), ("all", 1), ("weakest", 1)]
SETTINGS += [("boosting", 2), ("shuffled", 1), ("shuffled", 2)]
ROUNDS, TASKS = 10, 40


def domain_of(prompt: str) -> str:
    """The first word of a prompt such as `square 417`."""
    return prompt.split()[0]


def solve(task: Task) -> str:
    """The right answer, from the prompt alone."""
    domain, number = task.prompt.split()
    values = {
        "double": str(2 * int(number)),
        "reverse": number[::-1],
        "square": str(int(number) ** 2),
        "digits": str(sum(int(digit) for digit in number)),
    }
    return values[domain]


def pose(seed: int, n: int, mix: Sequence[float] = (1, 1, 1, 1)) -> list[Task]:
    """The tasks of round n; `mix` weighs the domains in the order of HOME."""
    rng = random.Random(seed_of(seed, n, "tasks"))
    domains = rng.choices(list(HOME.values()), mix, k=TASKS)
    numbers = rng.sample(range(1000, 10000), TASKS)
    return [
        Task(f"{domain} {number}", "words", domain, 4, "train", seed, i)
        for i, (domain, number) in enumerate(zip(domains, numbers, strict=True))
    ]


def specialists(seed: int) -> dict[str, ScriptedAgent]:
    """Name -> member: 80% right at home, 10% elsewhere."""
    elsewhere = dict.fromkeys(HOME.values(), 0.9)
    return {
        name: ScriptedAgent(
            name,
            seed,
            solve=solve,
            domain=domain_of,
            learn_rate=0.02,
            errors=elsewhere | {home: 0.2},
        )
        for name, home in HOME.items()
    }


@dataclass(frozen=True)
class Outcome:
    """What ten rounds came to."""

    reached: float  # share of the last round's tasks that their specialist attempted
    load: Mapping[str, float]  # member -> share of all attempts of all rounds
    lessons: tuple[Lesson, ...]
    at_home: float  # share of lessons whose learner is the specialist of the task's domain
    accuracy: float  # members' final share of right answers at home, mean
    overall: float  # and in all four domains


def play(
    seed: int, policy: str = "specialist", top_k: int = 1, mix: Sequence[float] = (1, 1, 1, 1)
) -> Outcome:
    """Ten rounds of delegate, propose, rank by the world, observe, teach, learn."""
    members = specialists(seed)
    router = Router(list(members), seed=seed, top_k=top_k, policy=policy)
    attempts: Counter[str] = Counter()
    lessons: list[Lesson] = []
    reached = 0.0
    for n in range(1, ROUNDS + 1):
        tasks = pose(seed, n, mix)
        teams = router.delegate(tasks, n)
        attempts.update({name: len(team) for name, team in teams.items()})
        ideas = list(_ideas(members, teams, n))
        right = {task.id: solve(task) for task in tasks}
        checks = [Verdict(n, i.task, WORLD, i.id, float(i.answer == right[i.task])) for i in ideas]
        ranking = rank(ideas, checks)
        router.observe(tasks, ideas, ranking)
        taught = router.teach(n, tasks, ideas, ranking)
        for name, member in members.items():
            mine = tuple(lesson for lesson in taught if lesson.learner == name)
            member.learn(Study(n, seed_of(seed, n, name, "learn"), mine))
        lessons += taught
        reached = sum(HOME[m] == t.domain for m, team in teams.items() for t in team) / len(tasks)
    total = attempts.total()
    homes = [HOME[lesson.learner] == domain_of(lesson.prompt) for lesson in lessons]
    return Outcome(
        reached=reached,
        load={name: attempts[name] / total for name in members},
        lessons=tuple(lessons),
        at_home=fmean(homes) if homes else 0.0,
        accuracy=fmean(1 - members[name].error_in(home) for name, home in HOME.items()),
        overall=fmean(1 - m.error_in(home) for m in members.values() for home in HOME.values()),
    )


def _ideas(
    members: Mapping[str, ScriptedAgent], teams: Mapping[str, Sequence[Task]], n: int
) -> Iterator[Idea]:
    for name, team in teams.items():
        requests = [Request(t, n, 0, seed_of(n, name, t.id, "propose")) for t in team]
        for idea in members[name].propose(requests):
            yield replace(idea, answer=idea.text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    seeds = range(parser.parse_args().seeds)
    table = Table(
        title=f"Routing, mean of {len(seeds)} seeds ({ROUNDS} rounds of {TASKS} tasks)", box=SIMPLE
    )
    columns = "policy, k, reached, worst, load, lessons, at home, right at home, overall"
    for column in columns.split(", "):
        table.add_column(column)
    for policy, top_k in SETTINGS:
        outcomes = [play(seed, policy, top_k) for seed in seeds]
        row = [
            fmean(outcome.reached for outcome in outcomes),
            min(outcome.reached for outcome in outcomes),
            min(min(outcome.load.values()) for outcome in outcomes),
            fmean(len(outcome.lessons) for outcome in outcomes),
            fmean(outcome.at_home for outcome in outcomes),
            fmean(outcome.accuracy for outcome in outcomes),
            fmean(outcome.overall for outcome in outcomes),
        ]
        table.add_row(policy, str(top_k), *(f"{x:.0f}" if x > 1 else f"{x:.3f}" for x in row))
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
