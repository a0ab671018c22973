"""A ledger of a million ideas against its bars: `python -m community.bench.ledger`.

`--ideas` says how many, `--keep FOLDER` where the run is left to look at (`community show`,
`community watch` and so on take that folder's path); without it nothing is left. Seconds are
those of the wall clock and, beside them, of the processor.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from unittest.mock import patch

from rich.console import Console

from community.bench import big
from community.ledger import Ledger
from community.types import Round

console = Console()


class Clock:
    """Adds up the seconds of the wall and of the processor inside `with`."""

    wall = cpu = 0.0

    def __enter__(self) -> Clock:
        self._from = perf_counter(), process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall += perf_counter() - self._from[0]
        self.cpu += process_time() - self._from[1]


def ingest(folder: Path, ideas: int) -> Clock:
    """Make the ledger; the time within `Ledger.record`, what it is given being made already."""
    clock, record = Clock(), Ledger.record

    def timed(ledger: Ledger, round: Round) -> None:
        with clock:
            record(ledger, round)

    with patch.object(Ledger, "record", timed):
        for _ in big.make(folder, ideas):
            pass
    return clock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ideas", type=int, default=1_000_000)
    parser.add_argument("--keep", type=Path, help="a folder that is not there yet")
    given = parser.parse_args()
    with TemporaryDirectory() as base:
        folder = given.keep or Path(base) / "million"
        clock = ingest(folder, given.ideas)
        rate = given.ideas / clock.wall
        console.print(f"ingest: {rate:,.0f} ideas a second ({clock.cpu:.1f} s of the processor)")


if __name__ == "__main__":
    main()
