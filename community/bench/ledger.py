"""A ledger of a million ideas against its bars: `python -m community.bench.ledger`.

`--ideas` says how many, `--keep FOLDER` where the run is left to look at (`community show` and
so on take that folder's path); without it nothing is left. Results are checked before they are
timed. Seconds are those of the wall clock and, beside them, of the processor, which other
programs disturb less.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any, TypeVar
from unittest.mock import patch

from sqlalchemy import select

from community.bench import big
from community.errors import CommunityError
from community.extras import extra
from community.ledger import Ledger
from community.lineage import lineage, relatives
from community.rows import mapping_of
from community.search import Query, count, search
from community.tables import ideas, parents, tasks
from community.types import Round

T = TypeVar("T")
Line = tuple[str, str, str, str]
"""What was measured, its bar, seconds of the wall clock and of the processor."""

REPEATS = 5
_AUTHOR = "able-3"
SEARCHES = {
    "nothing but the order": Query(),
    "a common word": Query(big.COMMON),
    "a rare word": Query(big.RARE),
    "an absent word": Query("absent"),
    "a phrase": Query('"column by column"'),
    "a part of a sum": Query("12+3"),
    "two characters": Query("+7"),
    "one character": Query("7"),
    "an author": Query(author=_AUTHOR),
    "a common word of an author": Query(big.COMMON, author=_AUTHOR),
    "a common word of a domain in some rounds": Query(
        big.COMMON, arena="subtraction", first=3, last=40
    ),
    "a rare word of an author": Query(big.RARE, author=_AUTHOR),
}


class Clock:
    """Adds up the seconds of the wall and of the processor inside `with`."""

    wall = cpu = 0.0

    def __enter__(self) -> Clock:
        self._from = perf_counter(), process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall += perf_counter() - self._from[0]
        self.cpu += process_time() - self._from[1]

    def line(self, what: str, bar: str) -> Line:
        return what, bar, f"{self.wall:.3f}", f"{self.cpu:.3f}"


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


def best(work: Callable[[], T]) -> tuple[Clock, T]:
    """The quickest of some calls, the first of which finds nothing in memory; its result."""
    clocks = []
    for _ in range(REPEATS):
        with (clock := Clock()):
            result = work()
        clocks.append(clock)
    return min(clocks, key=lambda clock: clock.wall), result


def worst(lines: dict[str, Clock]) -> tuple[str, Clock]:
    return max(lines.items(), key=lambda item: item[1].wall)


# -- search --------------------------------------------------------------------------------


def searching(ledger: Ledger) -> Iterator[Line]:
    """Each search in its slowest order and direction, a page of 100 and then the count."""
    all_ideas = _all_texts(ledger)
    for what, query in SEARCHES.items():
        matching = [row for row in all_ideas if _matches(row, query)]
        pages: dict[str, Clock] = {}
        for sort in ("round", "strength", "arena", "author"):
            for descending in (True, False):
                asked = Query(
                    query.text, query.author, query.arena, query.first, query.last, sort, descending
                )
                page = f"{sort} {'down' if descending else 'up'}"
                pages[page], found = best(lambda asked=asked: search(ledger, asked))  # type: ignore[misc]
                _check_page(asked, [x.id for x in found], matching)
        name, clock = worst(pages)
        yield clock.line(f"search: {what}, slowest by {name}", "0.3")
        clock, total = best(lambda query=query: count(ledger, query))  # type: ignore[misc]
        assert total == min(len(matching), 10_000), f"{what}: {total} of {len(matching)}"
        yield clock.line(f"search: {what}, how many ({total:,})", "0.3")


def _all_texts(ledger: Ledger) -> list[Any]:
    columns = (ideas.c.id, ideas.c.author, ideas.c.round, tasks.c.domain, tasks.c.prompt)
    query = select(*columns, ideas.c.text, ideas.c.answer).join_from(ideas, tasks)
    with ledger.reading() as conn:
        return list(conn.execute(query.order_by(ideas.c.row)))


def _matches(row: Any, query: Query) -> bool:
    needle = query.text.strip('"')  # each of the searches has one
    return (
        any(needle in text.lower() for text in (row.prompt, row.text, row.answer))
        and query.author in ("", row.author)
        and query.arena in ("", row.domain)
        and query.first <= row.round <= (query.last or row.round)
    )


def _check_page(query: Query, found: list[str], matching: list[Any]) -> None:
    """AssertionError unless a page is what reading all ideas gives."""
    expected = min(100, len(matching))
    assert len(set(found)) == expected, f"{query}: {len(found)} of {expected}"
    if query.sort == "round":
        page = matching[::-1][:100] if query.descending else matching[:100]
        assert found == [row.id for row in page], f"{query} gave another page"
    else:
        assert set(found) <= {row.id for row in matching}, f"{query} gave other ideas"


# -- lineage -------------------------------------------------------------------------------


def ancestry(ledger: Ledger) -> Iterator[Line]:
    """All ancestors and descendants of the last and the first idea of the long conversation."""
    of, members = select(parents.c.idea, parents.c.parent), big.MEMBERS // 10
    with ledger.reading() as conn:
        read: dict[int, list[int]] = {}
        for idea, parent in conn.execute(of.where(parents.c.idea <= big.LONG * members)):
            read.setdefault(idea, []).append(parent)
        long = select(ideas.c.row, ideas.c.id).where(ideas.c.row <= big.LONG * members)
        ids = mapping_of(conn, long)
    last = max(ids)
    known, frontier, depth = set[int](), {last}, 0
    while frontier := {p for row in frontier for p in read.get(row, ())} - known:
        known |= frontier
        depth += 1
    clock, found = best(lambda: relatives(ledger, ids[last]))
    assert found == [ids[row] for row in sorted(known)] and depth == big.LONG - 1
    yield clock.line(f"all {len(found)} ancestors of an idea, {depth} readings deep", "0.05")
    clock, found = best(lambda: relatives(ledger, ids[1], back=False))
    assert ids[last] in found
    yield clock.line(f"all {len(found)} descendants of an idea", "0.05")
    clock, tree = best(lambda: lineage(ledger, ids[last]))
    assert tree.ancestors.total == len(known)
    yield clock.line("its lineage with verdicts and learning", "")


# -- the dashboard -------------------------------------------------------------------------


async def screens(folder: Path) -> list[Line]:
    """The dashboard from its loading on until it knows the run, then until each screen is drawn.

    Curves of many rounds come one after the other, while keys are answered already.
    """
    async with AsyncExitStack() as stack:
        with (ready := Clock()):
            dashboard = extra("community.dashboard.app", "watch")
            ledger = stack.enter_context(Ledger.open(folder / "ledger.db", read_only=True))
            app = dashboard.Watch(ledger, folder.name)
            pilot = await stack.enter_async_context(app.run_test(size=(140, 40)))
            while app.course is None:
                await pilot.pause(0.01)
        lines = [ready.line("dashboard: from its start until it knows the run", "2")]
        for number, name in enumerate(app.MODES, 1):
            with (clock := Clock()):
                await pilot.press(str(number))
                await dashboard.settled(app, pilot)
            lines.append(clock.line(f"dashboard: {name}, all of it drawn", "2"))
    return lines


# -- commands ------------------------------------------------------------------------------


def command(what: str, bar: str, *arguments: str) -> Line:
    """Run a command of the engine in a process of its own; its memory is that of its peak."""
    script = (
        "import sys; from community.cli import main\n"
        "try: main()\n"
        "finally: print(open('/proc/self/status').read(), file=sys.stderr)"
    )
    before, start = getrusage(RUSAGE_CHILDREN), perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False
    )
    wall, after = perf_counter() - start, getrusage(RUSAGE_CHILDREN)
    assert done.returncode == 0, f"{arguments} failed: {done.stderr}"
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    peak = done.stderr.partition("VmHWM:")[2].split()[0]  # ru_maxrss would know this process too
    return f"{what} ({int(peak) // 1024:,} MiB)", bar, f"{wall:.1f}", f"{cpu:.1f}"


def commands(folder: Path, total: int) -> Iterator[Line]:
    run, read = str(folder), extra("pyarrow.parquet").read_metadata
    with TemporaryDirectory() as base:
        for form, kind, bar in (
            ("ideas", "parquet", "60, 1 GB"),
            ("ideas", "jsonl", ""),
            ("sft", "jsonl", ""),
            ("dpo", "jsonl", ""),
        ):
            to = f"{base}/{form}-{kind}"
            asked = ("export", run, "--format", form, "--as", kind, "--to", to)
            yield command(f"export --format {form} --as {kind}", bar, *asked)
            if kind == "parquet":
                files = Path(to).glob("*.parquet")
                rows = sum(read(file).num_rows for file in files)
                assert rows == total, f"{rows} of {total} ideas were exported"
        for name in ("show", "verify"):
            yield command(name, "", name, run)
        yield command("lineage", "", "lineage", run, "last")


def show(line: Line) -> None:
    """A row of a Markdown table."""
    print(f"| {' | '.join(line)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ideas", type=int, default=1_000_000)
    parser.add_argument("--keep", type=Path, help="a folder; if it is there, it is measured again")
    given = parser.parse_args()
    try:  # not after minutes of measuring
        for package, name in (("textual", "watch"), ("pyarrow", "export")):
            extra(package, name)
    except CommunityError as error:
        parser.error(str(error))
    show(("what", "bar", "seconds", "of the processor"))
    show(("---", "---", "---", "---"))
    with TemporaryDirectory() as base:
        folder = given.keep or Path(base) / "million"
        if not folder.exists():
            clock = ingest(folder, given.ideas)
            size = (folder / "ledger.db").stat().st_size / given.ideas
            made = f"record {given.ideas:,} ideas of {size:,.0f} bytes"
            show(clock.line(made, f"{given.ideas / 20_000:g}"))
        clock, _ = best(lambda: Ledger.open(folder / "ledger.db", read_only=True).close())
        show(clock.line("open", "2"))
        with Ledger.open(folder / "ledger.db", read_only=True) as ledger:
            clock, rounds = best(ledger.rounds)
            assert sum(round.ideas for round in rounds) == given.ideas
            show(clock.line("all rounds in figures", "2"))
            for line in (*searching(ledger), *ancestry(ledger)):
                show(line)
        for line in (*asyncio.run(screens(folder)), *commands(folder, given.ideas)):
            show(line)


if __name__ == "__main__":
    main()
