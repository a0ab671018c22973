"""Ranking against known truth: `python -m community.bench.ranking`.

Simulated judges compare items of known strength. Prints seconds and Kendall tau beside choix and
Elo on the same comparisons, what knowing hostile judges is worth, how often the 95% intervals
hold the truth, and what many small tasks cost. Results are checked before they are printed.
Needs choix (`pip install choix`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import choix
import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import kendalltau

from community.evidence import Floats
from community.ranking import METHODS, rank
from community.types import Idea, Ranked, Ranking, Verdict


@dataclass(frozen=True)
class Trial:
    """Items of one task with their true strengths, and noisy comparisons of them."""

    truth: Floats  # (items,)
    ideas: tuple[Idea, ...]
    verdicts: tuple[Verdict, ...]

    def strengths(self, ranking: Ranking) -> tuple[Floats, Floats, Floats]:
        """Strength, low and high of each item in the order of `truth`."""
        entry: dict[str, Ranked] = {e.idea: e for e in ranking.entries}
        rows = [(entry[i.id].strength, entry[i.id].low, entry[i.id].high) for i in self.ideas]
        strength, low, high = np.array(rows).T
        return strength, low, high

    def tau(self, estimate: Floats) -> float:
        """Kendall's tau between the truth and an estimate."""
        return float(kendalltau(self.truth, estimate).statistic)

    def wins(self) -> list[tuple[int, int]]:
        """(winner, loser) of each comparison, as choix reads them."""
        number = {idea.id: n for n, idea in enumerate(self.ideas)}
        pairs = [(number[v.idea], number[v.other], v.score) for v in self.verdicts]
        return [(a, b) if score else (b, a) for a, b, score in pairs]


def simulate(items: int, comparisons: int, reliability: Sequence[float], seed: int = 0) -> Trial:
    """Strengths from N(0, 1), random pairs, each judged by one of `len(reliability)` judges.

    Judge j puts a before b with probability (1 + r_j tanh((s_a - s_b) / 2)) / 2: r = 1 is
    Bradley-Terry, 0 noise, -1 its opposite. All ideas have one author, so nobody votes by writing.
    """
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=items)
    ideas = tuple(Idea("task", "author", "", 0, 0, n, str(n), f"{n:06}") for n in range(items))
    a = rng.integers(items, size=comparisons)
    b = (a + rng.integers(1, items, size=comparisons)) % items
    judge = rng.integers(len(reliability), size=comparisons)
    agree = np.asarray(reliability)[judge] * np.tanh((truth[a] - truth[b]) / 2)
    won = rng.random(comparisons) < (1 + agree) / 2
    ids = [idea.id for idea in ideas]
    verdicts = tuple(
        Verdict(0, "task", f"judge-{j}", ids[x], float(y), other=ids[z])
        for j, x, y, z in zip(judge.tolist(), a.tolist(), won.tolist(), b.tolist(), strict=True)
    )
    return Trial(truth, ideas, verdicts)


def small_tasks(tasks: int) -> tuple[list[Idea], list[Verdict]]:
    """Many tasks of a few answers: member m is right (answer "0") with probability m-dependent."""
    rng, members = np.random.default_rng(0), 4
    skill = np.linspace(0.3, 0.95, members)
    ideas, verdicts = [], []
    for t in range(tasks):
        right = rng.random(members) < skill
        answers = np.where(right, 0, rng.integers(1, 10, size=members))
        mine = [Idea(f"t{t}", f"m{m}", "", 0, 0, 0, "", f"{a}") for m, a in enumerate(answers)]
        ideas += mine
        for m in range(members):
            for x, y in zip(mine, mine[1:] + mine[:1], strict=True):
                sure = rng.random() < skill[m]
                score = float((x.answer <= y.answer) == sure)
                verdicts.append(Verdict(0, f"t{t}", f"m{m}", x.id, score, other=y.id))
    return ideas, verdicts


def timed(work: Callable[[], Floats], repeats: int = 3) -> tuple[float, Floats]:
    """Least seconds of a few runs, and the last result."""
    best = np.inf
    for _ in range(repeats):
        start = time.perf_counter()
        result = work()
        best = min(best, time.perf_counter() - start)
    return float(best), result


def against_others(trial: Trial, slow: bool) -> list[tuple[str, float, float]]:
    """(method, seconds, tau) on one trial; `slow` adds choix's general optimiser."""
    wins, n = trial.wins(), len(trial.truth)

    def ours(method: str) -> Callable[[], Floats]:
        return lambda: trial.strengths(rank(trial.ideas, trial.verdicts, method))[0]

    contestants: dict[str, Callable[[], Floats]] = {
        "bradley-terry (ours)": ours("bradley-terry"),
        "unweighted (ours)": ours("unweighted"),
        "elo (ours)": ours("elo"),
        "choix.lsr_pairwise": lambda: choix.lsr_pairwise(n, wins, alpha=0.01),
        "choix.ilsr_pairwise": lambda: choix.ilsr_pairwise(n, wins, alpha=0.01),
    }
    if slow:
        contestants["choix.opt_pairwise"] = lambda: choix.opt_pairwise(n, wins, alpha=0.1)
    rows = []
    for name, work in contestants.items():
        seconds, strength = timed(work, 1 if "opt" in name else 3)
        rows.append((name, seconds, trial.tau(strength)))
    return rows


def coverage(trial: Trial) -> float:
    """Share of the items whose 95% interval holds their centred true strength."""
    _, low, high = trial.strengths(rank(trial.ideas, trial.verdicts))
    truth = trial.truth - trial.truth.mean()
    return float(np.mean((low <= truth) & (truth <= high)))


JUDGES = {
    "comparisons without judges": [1.0],
    "50 judges like choix's model": np.ones(50),
    "50 judges, reliability .2 to 1": np.linspace(0.2, 1, 50),
    "50 judges, 15 of them hostile": np.r_[np.ones(35), -np.ones(15)],
}


def check(trials: dict[str, Trial]) -> Table:
    """Weighted against unweighted ranking, and intervals. AssertionError if a result is wrong."""
    table = Table("1,000 items, 50,000 comparisons", "tau", "unweighted", "95% intervals hold")
    for name, trial in trials.items():
        weighted, plain = (
            trial.tau(trial.strengths(rank(trial.ideas, trial.verdicts, method))[0])
            for method in ("bradley-terry", "unweighted")
        )
        held = coverage(trial)
        assert weighted > plain - 0.002, f"{name}: {weighted} < {plain}"
        assert 0.92 < held < 0.98, f"{name}: intervals hold {held} of the truth"
        table.add_row(name, f"{weighted:.4f}", f"{plain:.4f}", f"{held:.3f}")
    return table


def main() -> None:
    """Check results, then time them."""
    console = Console()
    trials = {name: simulate(1000, 50_000, list(r)) for name, r in JUDGES.items()}
    console.print(check(trials))
    for name, trial in list(trials.items())[:3]:
        table = Table(name, "seconds", "tau")
        for method, seconds, tau in against_others(trial, slow=True):
            table.add_row(method, f"{seconds:.2f}", f"{tau:.4f}")
        console.print(table)
    table = Table("2,000 tasks, 4 members, 32,000 verdicts", "seconds", "first answer right")
    ideas, verdicts = small_tasks(2000)
    answer = {idea.id: idea.answer for idea in ideas}
    for method in METHODS:
        start = time.perf_counter()
        winners = rank(ideas, verdicts, method).winners().values()
        seconds = time.perf_counter() - start
        right = np.mean([answer[entry.idea] == "0" for entry in winners])
        table.add_row(method, f"{seconds:.2f}", f"{right:.3f}")
    console.print(table)


if __name__ == "__main__":
    main()
