"""A run's ledger -> a dataset that people train on.

from community.export import Wanted, export
with Ledger.open("runs/adders/ledger.db", read_only=True) as ledger:
    export(ledger, Path("pairs"), Wanted("dpo", choice=Choice(margin=1.0)))

The ledger is read a round at a time in one transaction, so that the run may go on meanwhile,
and rows are written as they come. The same ledger and wishes give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, HTTPError  # type: ignore[attr-defined]
from sqlalchemy import Connection, func, select

from community import card
from community.aside import aside
from community.candidates import Posed, numbers, parents_of, read
from community.dedup import Exact, Near, Overlap
from community.errors import CommunityError, unknown
from community.formats import FORMATS, Draft, Row, columns_of, passes, row_of
from community.ledger import Ledger
from community.rows import seldom_collected
from community.tables import ideas, tasks
from community.types import seed_of
from community.wanted import Counts, Wanted
from community.writers import Batches, writer

Listener = Callable[[int, int, int], None]


def export(
    ledger: Ledger,
    folder: Path,
    wanted: Wanted,
    listener: Listener = lambda ideas, of, rows: None,
) -> Counts:
    """Write the dataset and its card to `folder`, all of it or nothing.

    `listener` hears after each round how many ideas of how many were read and how many rows
    came of them. Raises CommunityError for a folder that is not empty, formats, members,
    arenas and shares that do not exist, a missing extra, files that cannot be read, a full
    disk, and where no row is left.
    """
    _check(ledger, folder, wanted)
    try:
        with aside(folder.absolute()) as part:
            part.mkdir()
            counts = _fill(ledger, part, wanted, listener)
            (part / "README.md").write_text(
                card.text(ledger, wanted, counts, _digest(part)), encoding="utf-8", newline="\n"
            )
            if folder.exists():
                folder.rmdir()
            part.rename(folder)
    except OSError as error:
        raise CommunityError(f"cannot write to {folder}: {error.strerror or error}") from error
    return counts


def _check(ledger: Ledger, folder: Path, wanted: Wanted) -> None:
    """Raises CommunityError for what is wrong before anything is read."""
    if wanted.format not in FORMATS:
        raise unknown("format", wanted.format, FORMATS)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CommunityError(f"{folder} is there already and not empty; give --to another folder")
    if folder.resolve() == Path.cwd():  # what replaces it would not be where the shell still is
        raise CommunityError("a dataset cannot replace the folder you are in; give --to a new one")
    members = ledger.members()
    for agent in sorted(wanted.choice.agents - members.keys()):
        raise unknown("member", agent, members)
    with ledger.reading() as conn:
        pairs = conn.execute(select(tasks.c.arena, tasks.c.domain).distinct()).all()
    known = {name for pair in pairs for name in pair}
    for arena in wanted.arenas:
        if arena not in known:
            raise unknown("arena or domain", arena, known)
    wanted.check()


def _fill(ledger: Ledger, folder: Path, wanted: Wanted, listener: Listener) -> Counts:
    """Write all rows below `folder`. Raises CommunityError if there are none."""
    counts = Counts()
    columns = columns_of(wanted.format, wanted.chat)
    batches = Batches(writer(wanted.kind, folder, columns))
    fresh = _Fresh(wanted, counts)
    try:
        with seldom_collected(), ledger.reading() as conn:
            rounds = numbers(conn, wanted.first, wanted.last)
            total = _ideas(conn, rounds)
            for n in rounds:
                drafts = [d for d in _drafts(conn, n, rounds[-1], wanted, counts) if fresh(d)]
                parents = parents_of(conn, (idea.row for d in drafts for idea in d.ideas))
                for draft in drafts:
                    row = row_of(wanted.format, draft, wanted.chat, parents)
                    split = _split(draft.task.id, wanted.test, wanted.validation)
                    counts.add(split, draft)
                    counts.example = counts.example or _json(columns, row)
                    batches.add(split, row)
                listener(counts.ideas, total, counts.total)
    finally:
        batches.close()
    if not counts.total:
        raise CommunityError(_nothing(wanted, counts))
    return counts


def _digest(folder: Path) -> str:
    """SHA-256 of all files, in the order of their names."""
    whole = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


def _json(columns: Iterable[str], row: Row) -> str:
    return json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False, indent=2)


def _ideas(conn: Connection, rounds: list[int]) -> int:
    if not rounds:
        return 0
    within = ideas.c.round.between(rounds[0], rounds[-1])
    return conn.scalar(select(func.count()).select_from(ideas).where(within)) or 0


def _drafts(conn: Connection, n: int, last: int, wanted: Wanted, counts: Counts) -> Iterator[Draft]:
    """The rows of a round that the filters let through."""
    form = FORMATS[wanted.format]
    for task in read(conn, n, last):
        counts.ideas += len(task.candidates)
        if reason := _unwanted(task, wanted):
            counts.dropped[reason] += 1
            continue
        for draft in form.choose(task, wanted.choice, counts.dropped):
            if passes(draft, wanted.choice, counts.dropped):
                yield draft


def _unwanted(task: Posed, wanted: Wanted) -> str:
    """Why no idea of a task is wanted; empty if they are."""
    if wanted.arenas and not {task.arena, task.domain} & set(wanted.arenas):
        return "tasks of other arenas"
    if task.held_out:
        return "tasks of the run's validation or holdout"
    if task.again and FORMATS[wanted.format].latest:
        return "tasks that a later round poses again"
    return ""


class _Fresh:
    """Whether a row says something new and nothing of a test; counts the reason if not."""

    def __init__(self, wanted: Wanted, counts: Counts) -> None:
        self.counts = counts
        self.kept_out = [Overlap(path, wanted.ngram) for path in wanted.against]
        self.exact = None if wanted.keeps_duplicates else Exact()
        self.near = None if wanted.near is None else Near(wanted.near)

    def __call__(self, draft: Draft) -> bool:
        reason = self._reason(draft)
        if reason:
            self.counts.dropped[reason] += 1
        return not reason

    def _reason(self, draft: Draft) -> str:
        for test in self.kept_out:
            if test.seen(draft.texts):
                return f"rows that overlap with {test.name}"
        if self.exact and self.exact.seen(draft.texts):
            return "exact duplicates"
        if self.near and self.near.seen(draft.texts):
            return "near duplicates"
        return ""


@lru_cache(maxsize=1)  # a task's rows follow each other
def _split(task: str, test: float, validation: float) -> str:
    """The split of a task: it depends on the task alone, so that none is in two."""
    place = seed_of("export", task) % 1_000_000 / 1_000_000
    if place < test:
        return "test"
    return "validation" if place < test + validation else "train"


def _nothing(wanted: Wanted, counts: Counts) -> str:
    """Which filter dropped how many."""
    if not counts.ideas:
        return "no ideas were recorded in these rounds, so there is nothing to export"
    reasons = "; ".join(f"{reason}: {n:,}" for reason, n in counts.dropped.most_common() if n)
    if not reasons:
        return f"none of the {counts.ideas:,} ideas is a text that was ranked: nothing to export"
    return f"no rows are left of {counts.ideas:,} ideas; left out were: {reasons}; loosen a filter"


def push(folder: Path, repo: str) -> str:
    """Put an exported dataset on the hub as a private repository; its address.

    Raises CommunityError where the hub cannot be reached or refuses.
    """
    hub = HfApi()
    try:
        url = hub.create_repo(repo, repo_type="dataset", private=True, exist_ok=True)
        hub.upload_folder(repo_id=url.repo_id, repo_type="dataset", folder_path=folder)
    except (HTTPError, HFValidationError, OSError) as error:
        first = str(error).strip().partition("\n")[0] or type(error).__name__
        raise CommunityError(
            f"cannot push to {repo}: {first}; the dataset itself is in {folder}"
        ) from error
    return str(url)
