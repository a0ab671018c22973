"""The record of a run: every round and learning in one transaction each, in any database.

SQLite by default (one file, write-ahead log, so that others may read while a run writes);
any SQLAlchemy URL instead of a path, PostgreSQL included. What was recorded stays recorded:
a full disk, a kill or a lost connection costs the transaction in progress and no more.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Table,
    and_,
    func,
    insert,
    inspect,
    select,
    true,
)

from community import audit, holdout, rows, tables
from community.database import engine_of, file_of, name_of, parsed, transaction, url_of
from community.errors import CommunityError
from community.tables import (
    checkpoints,
    ideas,
    learnings,
    lessons,
    members,
    meta,
    reliability,
    rounds,
    scores,
    spent,
    tasks,
)
from community.types import Checkpoint, Idea, Learning, Lesson, Round, Score, Task, canonical


@dataclass(frozen=True)
class Summary:
    """A round in figures. Tokens and seconds are those of the round and of its learning."""

    n: int
    tasks: int
    ideas: int
    lessons: int
    tokens: int
    seconds: float


class Ledger:
    """One run's record. Make one with `Ledger.create` or `Ledger.open`; close it, or use `with`.

    Every method raises CommunityError where the database fails (full, locked, damaged,
    unreachable, read-only).
    """

    def __init__(self, engine: Engine, where: str, read_only: bool = False) -> None:
        self.engine = engine
        self.where = where
        self.read_only = read_only

    @classmethod
    def create(
        cls,
        place: str | Path,
        meta: Mapping[str, Any],
        members: Sequence[tuple[str, Mapping[str, Any]]],
    ) -> Ledger:
        """A new ledger at a path or SQLAlchemy URL.

        `meta` holds JSON values; `recipe_hash` and `seed` among them are part of the content
        hash. `members` are names with their specs, whose `backend` is kept in a column.
        Raises CommunityError if there is a ledger already.
        """
        url = url_of(place)
        ledger = cls(engine_of(url, read_only=False), name_of(url))
        try:
            with transaction(ledger.engine, ledger.where, writes=True) as conn:
                if set(inspect(conn).get_table_names()) & tables.metadata.tables.keys():
                    raise CommunityError(f"{ledger.where} holds a ledger already; open that one")
                tables.migrate(conn)
                _describe(conn, meta, members)
        except BaseException:
            ledger.close()
            raise
        return ledger

    @classmethod
    def open(cls, place: str | Path, read_only: bool = False) -> Ledger:
        """The ledger at a path or SQLAlchemy URL, brought up to this program's schema.

        Read only, an older one is left as it is, and searched without an index. Raises
        CommunityError if there is none, or a damaged or a newer one.
        """
        url = url_of(place)
        path = file_of(url)
        if path is not None and not path.is_file():
            raise CommunityError(f"there is no ledger at {path}; start the run first")
        ledger = cls(engine_of(url, read_only), name_of(url), read_only)
        try:
            ledger._bring_up_to_date()
        except BaseException:
            ledger.close()
            raise
        return ledger

    def _bring_up_to_date(self) -> None:
        with self.reading() as conn:
            version = tables.schema_version(conn)
        if version is None:
            raise CommunityError(f"{self.where} is not a ledger; name the ledger.db of a run")
        if version < len(tables.MIGRATIONS):
            if not self.read_only:
                with self._writing() as conn:
                    tables.migrate(conn)
            elif version < tables.READABLE:
                raise CommunityError(f"{self.where} is of an older version; resume its run once")

    def close(self) -> None:
        self.engine.dispose()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def reading(self) -> AbstractContextManager[Connection]:
        """A connection that sees one state of the ledger, for queries of one's own."""
        return transaction(self.engine, self.where, writes=False)

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        """A transaction that no other writer is in; all of it is kept, or nothing."""
        if self.read_only:
            raise CommunityError(f"{self.where} was opened for reading only")
        with transaction(self.engine, self.where, writes=True) as conn:
            # SQLite has the lock already; elsewhere this row stands for it
            version = select(meta.c.value).where(meta.c.key == tables.SCHEMA)
            conn.execute(version.with_for_update())
            yield conn

    # -- writing ---------------------------------------------------------------------------

    def record(self, round: Round) -> None:
        """Record a round, all of it or nothing.

        Raises CommunityError if it is there already, for a lesson on a task that is held out
        (by content hash, whatever its split says now), and for a task of two splits.
        """
        with rows.seldom_collected(), self._writing() as conn:
            self._refuse_twice(conn, rounds, round.n, "round")
            holdout.admit(conn, round)
            rows.write_round(conn, round, audit.round_digest(round))

    def learned(self, learning: Learning) -> None:
        """Record what a round's learning made of the members, all of it or nothing.

        Raises CommunityError if it is there already, ValueError for lessons never recorded.
        """
        with self._writing() as conn:
            self._refuse_twice(conn, learnings, learning.n, "learning")
            rows.write_learning(conn, learning, audit.learning_digest(learning))

    def reserve(self, tasks: Iterable[Task]) -> None:
        """Keep validation and holdout tasks out of all lessons to come; again is harmless.

        Raises CommunityError for a task that is in two splits, ValueError for a train task.
        """
        with self._writing() as conn:
            holdout.hold_out(conn, list(tasks))

    def _refuse_twice(self, conn: Connection, table: Table, n: int, what: str) -> None:
        if conn.scalar(select(table.c.n).where(table.c.n == n)) is not None:
            raise CommunityError(
                f"{what} {n} is in {self.where} already; is another process playing this run?"
            )

    # -- reading ---------------------------------------------------------------------------

    @property
    def meta(self) -> dict[str, Any]:
        """What was given to `create`. A key that is asked for in vain raises CommunityError."""
        own = (tables.SCHEMA, audit.DIGEST)
        query = select(meta.c.key, meta.c.value).where(meta.c.key.not_in(own))
        with self.reading() as conn:
            pairs = conn.execute(query).all()
            return _Meta(self.where, {key: parsed(value) for key, value in pairs})

    def members(self) -> dict[str, dict[str, Any]]:
        """Name -> spec, in the order given to `create`."""
        query = select(members.c.name, members.c.spec).order_by(members.c.position)
        with self.reading() as conn:
            return {name: parsed(spec, dict) for name, spec in conn.execute(query)}

    def last_round(self) -> int:
        """Number of the last round; 0 if none was played."""
        return self._last(rounds)

    def last_learning(self) -> int:
        """Number of the last learning; -1 if there is none, since 0 is the start."""
        return self._last(learnings, none=-1)

    def _last(self, table: Table, none: int = 0) -> int:
        with self.reading() as conn:
            last = conn.scalar(select(func.max(table.c.n)))
        return none if last is None else int(last)

    def round(self, n: int) -> Round:
        """The round as it was recorded. Raises CommunityError if there is none."""
        with self.reading() as conn:
            found = rows.read_round(conn, n)
        if found is None:
            raise CommunityError(f"{self.where} has no round {n}; the last is {self.last_round()}")
        return found

    def rounds(self) -> list[Summary]:
        """All rounds in figures, in order."""
        with self.reading() as conn:
            posed, given, taught = (_per_round(conn, x) for x in (tasks, ideas, lessons))
            used = select(spent.c.round, func.sum(spent.c.tokens)).group_by(spent.c.round)
            tokens = rows.mapping_of(conn, used)
            both = select(rounds.c.n, rounds.c.seconds, func.coalesce(learnings.c.seconds, 0.0))
            both = both.outerjoin(learnings, rounds.c.n == learnings.c.n).order_by(rounds.c.n)
            return [
                Summary(
                    n=n,
                    tasks=posed.get(n, 0),
                    ideas=given.get(n, 0),
                    lessons=taught.get(n, 0),
                    tokens=int(tokens.get(n, 0)),
                    seconds=played + learned,
                )
                for n, played, learned in conn.execute(both)
            ]

    def seconds(self) -> float:
        """Wall clock of all rounds and all learning, the start's included."""
        with self.reading() as conn:
            took = (conn.scalars(select(table.c.seconds)).all() for table in (rounds, learnings))
            return math.fsum(chain.from_iterable(took))

    def lessons(self, learner: str | None = None, before: int | None = None) -> list[Lesson]:
        """Lessons of one learner or of all, of rounds below `before`, in order of recording."""
        where: ColumnElement[bool] = true()
        if learner is not None:
            where = and_(where, lessons.c.learner == learner)
        if before is not None:
            where = and_(where, lessons.c.round < before)
        with self.reading() as conn:
            return list(rows.read_lessons(conn, where))

    def checkpoints(self, agent: str | None = None) -> list[Checkpoint]:
        """Checkpoints of one agent or of all, kept or not, in order of recording."""
        where = true() if agent is None else checkpoints.c.agent == agent
        with self.reading() as conn:
            return list(rows.read_checkpoints(conn, where))

    def current_checkpoints(self) -> dict[str, str]:
        """Agent -> the id of its latest checkpoint that was kept."""
        query = select(checkpoints.c.agent, checkpoints.c.id).where(checkpoints.c.kept)
        order = query.order_by(checkpoints.c.learning, checkpoints.c.row)
        with self.reading() as conn:
            return rows.mapping_of(conn, order)

    def scores(self) -> list[Score]:
        """Everyone's scores after every learning, in order of recording."""
        with self.reading() as conn:
            return list(rows.read_scores(conn, scores.c.row > 0))

    def tokens(self) -> dict[str, int]:
        """Member -> tokens spent so far, on ideas and on learning."""
        query = select(spent.c.member, func.sum(spent.c.tokens)).group_by(spent.c.member)
        with self.reading() as conn:
            return {name: int(n) for name, n in conn.execute(query.order_by(spent.c.member))}

    def reliability(self) -> dict[int, dict[str, float]]:
        """Round -> judge -> how far the judge was to be trusted."""
        table = reliability.c
        query = select(table.round, table.judge, table.value).order_by(table.round, table.judge)
        found: dict[int, dict[str, float]] = {}
        with self.reading() as conn:
            for n, judge, value in conn.execute(query):
                found.setdefault(n, {})[judge] = value
        return found

    def router_state(self, n: int) -> dict[str, Any]:
        """The router's state after round n; empty before the first."""
        with self.reading() as conn:
            state = conn.scalar(select(rounds.c.router).where(rounds.c.n == n))
            return parsed(state, dict) if state else {}

    def idea(self, id: str) -> Idea:
        """The idea whose id starts so. Raises CommunityError if there is none, or several."""
        with self.reading() as conn:
            full = _full_id(conn, ideas, id, "idea")
            return next(rows.read_ideas(conn, tables.with_ids(ideas, ideas.c.id == full)))

    def task(self, id: str) -> Task:
        """The task whose id starts so, as first posed. Raises CommunityError as `idea` does."""
        with self.reading() as conn:
            full = _full_id(conn, tasks, id, "task")
            return next(rows.read_tasks(conn, tasks.c.id == full))

    # -- integrity -------------------------------------------------------------------------

    def content_hash(self) -> str:
        """SHA-256 of all that was said and decided, equal for equal runs; see `audit`."""
        with rows.seldom_collected(), self.reading() as conn:
            return audit.ledger_digest(conn)

    def verify(self) -> list[str]:
        """What is wrong with the ledger, one sentence each; empty if nothing is."""
        with rows.seldom_collected(), self.reading() as conn:
            return list(audit.problems(conn))


class _Meta(dict[str, Any]):
    """What a ledger says of its run; every run's says what it is asked for, if it is whole."""

    def __init__(self, where: str, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.where = where

    def __missing__(self, key: str) -> Any:
        raise CommunityError(
            f"{self.where} lacks the run's {key} and is damaged; restore a copy or start the run "
            "anew"
        )


def _describe(
    conn: Connection,
    values: Mapping[str, Any],
    specs: Sequence[tuple[str, Mapping[str, Any]]],
) -> None:
    if values:
        pairs = [{"key": k, "value": canonical(v)} for k, v in values.items()]
        conn.execute(insert(meta), pairs)
    if specs:
        entries = [
            {"name": name, "position": i, "backend": str(spec.get("backend", "")),
             "spec": json.dumps(dict(spec), ensure_ascii=False)}
            for i, (name, spec) in enumerate(specs)
        ]  # fmt: skip
        conn.execute(insert(members), entries)
    audit.seal_start(conn)


def _per_round(conn: Connection, table: Table) -> dict[int, int]:
    query = select(table.c.round, func.count()).group_by(table.c.round)
    return rows.mapping_of(conn, query)


def _full_id(conn: Connection, table: Table, prefix: str, what: str) -> str:
    # a range and not LIKE: it uses the index everywhere, and "g" follows all hex digits
    starts = and_(table.c.id >= prefix, table.c.id < prefix + "g")
    near = select(table.c.id).where(tables.with_ids(table, starts))
    near = near.distinct().order_by(table.c.id).limit(3)
    # bytes of an argument that are no text cannot even be asked for
    found = conn.scalars(near).all() if prefix.isascii() else []
    if not found:
        raise CommunityError(f"no {what} has an id that starts with {prefix!r}")
    if len(found) > 1:
        raise CommunityError(f"several {what}s start with {prefix!r}: {', '.join(found)}…")
    return str(found[0])
