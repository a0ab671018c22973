"""How time grows with the community: `python -m community.bench.crowd [10 50 200 1000 2000]`.

Plays two rounds of the shipped recipe `crowd` with so many scripted members in the same
proportions, and says which share of the time went to the pool (the members themselves), to
ranking and to the ledger. What is left is the engine's own: requests, routing, pairings.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any
from unittest.mock import patch

from rich.console import Console
from rich.table import Table

from community.config import Recipe, parse, read
from community.folder import create
from community.ledger import Ledger
from community.plugins import recipe as recipe_path
from community.pool import LocalPool
from community.ranking import rank
from community.run import How, play

SIZES = (10, 50, 200, 1000, 2000)
ROUNDS = 2


def sized(recipe: Recipe, members: int) -> Recipe:
    """The same recipe with so many members, its kinds in the same proportions."""
    data = recipe.model_dump(mode="json", exclude_none=True)
    total = sum(table["count"] for table in data["members"])
    for table in data["members"]:
        table["count"] = max(1, round(table["count"] * members / total))
    data["run"]["rounds"] = ROUNDS
    return parse(data)


@contextmanager
def timed(spent: dict[str, float]) -> Iterator[None]:
    """Adds up the seconds inside the pool, ranking and the ledger's transactions."""

    def watch(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed_call(*arguments: Any, **options: Any) -> Any:
            start = perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                spent[name] += perf_counter() - start

        return timed_call

    with (
        patch.object(LocalPool, "call", watch("pool", LocalPool.call)),
        patch("community.parts.rank", watch("ranking", rank)),
        patch.object(Ledger, "record", watch("ledger", Ledger.record)),
        patch.object(Ledger, "learned", watch("ledger", Ledger.learned)),
    ):
        yield


def measure(recipe: Recipe, base: Path, members: int) -> tuple[float, int, dict[str, float]]:
    """Seconds of a run, ideas in its ledger, and seconds by part."""
    spent: dict[str, float] = defaultdict(float)
    with tempfile.TemporaryDirectory() as home, timed(spent):
        folder = Path(home) / "crowd"
        start = perf_counter()
        create(sized(recipe, members), base, folder)
        play(folder, How(pool="local"))
        seconds = perf_counter() - start
        with Ledger.open(folder / "ledger.db", read_only=True) as ledger:
            problems = ledger.verify()
            ideas = sum(row.ideas for row in ledger.rounds())
    if problems:
        raise AssertionError(f"a run of {members} members left a bad ledger: {problems[:3]}")
    return seconds, ideas, spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sizes", nargs="*", type=int, default=SIZES, help="numbers of members")
    sizes = parser.parse_args().sizes
    path = recipe_path("crowd")
    recipe = read(path)
    table = Table("members", "seconds a round", "ideas", "pool", "ranking", "ledger", "rest")
    for members in sizes:
        seconds, ideas, spent = measure(recipe, path.parent, members)
        shares = [spent[part] / seconds for part in ("pool", "ranking", "ledger")]
        cells = [f"{share:.0%}" for share in (*shares, 1 - sum(shares))]
        table.add_row(str(members), f"{seconds / ROUNDS:.2f}", f"{ideas:,}", *cells)
    Console().print("every ledger verified")
    Console().print(table)


if __name__ == "__main__":
    main()
