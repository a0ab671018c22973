"""What a run is doing, live in the terminal: round, phase, members at work, tokens a second."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from community.types import Score


class Bars:
    """Bars of so many of so many in a terminal: elsewhere Rich would leave an empty line."""

    def __init__(self, console: Console, before: str, after: str) -> None:
        self.console = console
        self._bars = Progress(
            TextColumn(before),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn(after),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self._bars.stop()


class Display(Bars):
    """A Listener that draws two bars (rounds and the phase) and one line per finished round."""

    def __init__(self, console: Console) -> None:
        super().__init__(console, "{task.description}", "{task.fields[note]}")
        self._rounds = self._bars.add_task("round", total=None, note="")
        self._phase = self._bars.add_task("starting", total=None, note="")
        self._begun = self._phase_begun = monotonic()
        self._n, self._of = 0, 0
        self._since: dict[int, float] = {}
        self._tokens = 0

    def round(self, n: int, of: int, level: int) -> None:
        self._n, self._of = n, of
        self._since[n] = monotonic()
        note = f"level {level}{self._left()}"
        self._bars.update(self._rounds, completed=max(0, n - 1), total=of, note=note)

    def phase(self, name: str, total: int) -> None:
        if name == "first lessons" and total:
            self.console.print("first lessons; later runs take these experts from the cache")
        self._phase_begun, self._tokens = monotonic(), 0
        self._bars.reset(self._phase, description=name, total=total or None, note="")

    def done(self, member: str, tokens: int) -> None:
        self._tokens += tokens
        seconds = max(1e-3, monotonic() - self._phase_begun)
        rate = f"{self._tokens / seconds:,.0f} tokens/s" if self._tokens else ""
        self._bars.update(self._phase, advance=1, note=f"{member} {rate}")

    def result(self, n: int, facts: Mapping[str, Any]) -> None:
        self._bars.update(self._rounds, completed=n, note=self._left())
        own = [s for s in facts["scores"] if s.solver == "community"]
        posed = [s for s in own if s.level == facts["level"]]
        seconds = monotonic() - self._since.get(n, self._begun)
        line = (
            f"round {n}/{self._of or '?'}  level {facts['level']}  "
            f"posed {facts['posed']}  kept {facts['kept']}"
        )
        if own:
            line += f"  holdout {_exact(own):.2f}"
        if posed:
            line += f" (at this level {_exact(posed):.2f})"
        if facts["rollbacks"]:
            line += f"  rollbacks {facts['rollbacks']}"
        self.console.print(f"{line}  {seconds:.0f} s", highlight=False, soft_wrap=True)

    def _left(self) -> str:
        """Time left, from the rounds that were finished in this process."""
        finished = [n for n in self._since if 0 < n < self._n]
        if not finished:
            return ""
        spent = monotonic() - self._since[min(finished)]
        left = spent / len(finished) * (self._of - self._n + 1)
        return f"  about {left / 60:.0f} min left" if left >= 90 else f"  about {left:.0f} s left"


def _exact(scores: Sequence[Score]) -> float:
    """The share of all their tasks, as in the report: levels may have unequally many."""
    return sum(s.right for s in scores) / sum(s.total for s in scores)


class Reading(Bars):
    """How far a ledger was read and how many rows came of it, as one bar."""

    def __init__(self, console: Console) -> None:
        super().__init__(console, "ideas", "{task.fields[rows]:,} rows")
        self._ideas = self._bars.add_task("ideas", total=None, rows=0)

    def read(self, ideas: int, of: int, rows: int) -> None:
        self._bars.update(self._ideas, completed=ideas, total=of, rows=rows)
