"""The ledger's tables, and the ordered steps that bring an older ledger up to date.

Rows refer to each other by small integers (`row`), given in the order of recording; the
public identity stays the content id. Types are portable between SQLite and PostgreSQL and
lose nothing: floats are 8-byte and may be nan, texts keep every character.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Connection,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    and_,
    delete,
    insert,
    inspect,
    select,
    text,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.schema import CreateColumn
from sqlalchemy.types import TypeEngine, UserDefinedType

from community import textindex
from community.database import Damaged, parsed
from community.errors import CommunityError


class _SqliteReal(UserDefinedType[float]):
    """SQLite stores nan as NULL, so it goes in as the word."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "DOUBLE"

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any]:
        return lambda value: value if value == value else "nan"

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any]:
        return _real_number


def _real_number(value: Any) -> Any:
    """Raises Damaged for a text: SQLite lets any be written where a number belongs."""
    if not isinstance(value, str | bytes):
        return value
    if value == "nan":
        return math.nan
    raise Damaged


class _PostgresText(TypeDecorator[str]):
    """PostgreSQL refuses the character NUL, which a model may well sample."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return value and value.replace("\x1b", "\x1bE").replace("\x00", "\x1b0")

    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:
        return value and value.replace("\x1b0", "\x00").replace("\x1bE", "\x1b")


Whole = BigInteger().with_variant(Integer(), "sqlite")  # INTEGER makes `row` SQLite's own key
Real: TypeEngine[float] = Double().with_variant(_SqliteReal(), "sqlite")
Words = Text().with_variant(_PostgresText(), "postgresql")
Name = Text().with_variant(Text(collation="C"), "postgresql")  # ids sort and match by bytes

metadata = MetaData()


def _row() -> Column[int]:
    return Column("row", Whole, primary_key=True, autoincrement=False)


def _to(target: str, name: str, *, null: bool = False, key: bool = False) -> Column[int]:
    return Column(name, Whole, ForeignKey(target), nullable=null, primary_key=key)


def _whole(*names: str) -> list[Column[int]]:
    return [Column(name, Whole, nullable=False) for name in names]


def _real(*names: str, null: bool = False) -> list[Column[float]]:
    return [Column(name, Real, nullable=null) for name in names]


def _words(*names: str) -> list[Column[str]]:
    return [Column(name, Words, nullable=False) for name in names]


def _name(*names: str) -> list[Column[str]]:
    return [Column(name, Name, nullable=False) for name in names]


meta = Table("meta", metadata, Column("key", Name, primary_key=True), *_words("value"))
members = Table(
    "members",
    metadata,
    Column("name", Name, primary_key=True),
    *_whole("position"),
    *_name("backend"),
    *_words("spec"),
)
# tasks that no lesson may be on: validation and holdout, by content hash
reserved = Table("reserved", metadata, Column("task", Name, primary_key=True), *_name("split"))
rounds = Table(
    "rounds",
    metadata,
    Column("n", Whole, primary_key=True, autoincrement=False),
    *_name("method"),
    *_whole("disconnected"),
    *_words("router"),
    *_real("seconds"),
    *_name("digest"),
)
by_arena = Index("tasks_arena", "arena", "domain")
tasks = Table(
    "tasks",
    metadata,
    _row(),
    _to("rounds.n", "round"),
    *_name("id"),
    *_words("prompt"),
    *_name("arena", "domain"),
    *_whole("level"),
    *_name("split"),
    *_whole("seed", "index"),
    *_words("key"),
    Index("tasks_round", "round"),
    Index("tasks_id", "id"),
    by_arena,
)
# Ids are random. An index by id alone is written to all over in every round, one page for each
# idea: two thirds of all pages that a round of 5,000 writes into a ledger of a million.
by_id = Index("ideas_by_id", "round", "id", unique=True)
ideas = Table(
    "ideas",
    metadata,
    _row(),
    _to("rounds.n", "round"),
    *_name("id"),
    _to("tasks.row", "task"),
    Column("author", Name, ForeignKey("members.name"), nullable=False),
    *_name("checkpoint"),
    *_whole("turn", "sample"),
    *_words("text", "answer", "prompt", "failure"),
    *_whole("tokens"),
    *_real("logprob", "temperature", "top_p"),
    *_whole("max_tokens", "samples"),
    by_id,
    Index("ideas_round", "round"),
    Index("ideas_checkpoint", "checkpoint"),
)
parents = Table(
    "parents",
    metadata,
    _to("ideas.row", "idea", key=True),
    Column("position", Whole, primary_key=True, autoincrement=False),
    _to("ideas.row", "parent"),
    Index("parents_parent", "parent"),
)
_PAIR = "other IS NOT NULL"
verdicts = Table(
    "verdicts",
    metadata,
    _row(),
    _to("rounds.n", "round"),
    _to("tasks.row", "task"),
    *_name("judge"),
    _to("ideas.row", "idea"),
    _to("ideas.row", "other", null=True),
    *_real("score", "confidence"),
    Index("verdicts_round", "round"),
    Index("verdicts_idea", "idea"),
    Index("verdicts_other", "other", sqlite_where=text(_PAIR), postgresql_where=text(_PAIR)),
)
by_strength = Index("rankings_strength", "strength", "idea", "round")
rankings = Table(
    "rankings",
    metadata,
    _row(),
    _to("rounds.n", "round"),
    _to("tasks.row", "task"),
    _to("ideas.row", "idea"),
    *_whole("place"),
    *_real("strength", "low", "high"),
    *_whole("comparisons", "component"),
    *_real("confidence"),
    *_whole("supporters"),
    Index("rankings_round", "round"),
    Index("rankings_idea", "idea"),
    by_strength,
)
reliability = Table(
    "reliability",
    metadata,
    _to("rounds.n", "round", key=True),
    Column("judge", Name, primary_key=True),
    *_real("value"),
)
edges = Table(
    "edges",
    metadata,
    _row(),
    _to("rounds.n", "round"),
    *_name("reader", "author"),
    Index("edges_round", "round"),
)
lessons = Table(
    "lessons",
    metadata,
    _row(),
    _to("rounds.n", "round"),
    *_name("id"),
    Column("learner", Name, ForeignKey("members.name"), nullable=False),
    _to("tasks.row", "task"),
    _to("ideas.row", "idea", null=True),
    *_words("prompt", "text", "reason"),
    *_real("confidence"),
    _to("ideas.row", "rejected", null=True),
    Index("lessons_id", "id", unique=True),
    Index("lessons_round", "round"),
    Index("lessons_idea", "idea"),
)
learnings = Table(
    "learnings",
    metadata,
    Column("n", Whole, primary_key=True, autoincrement=False),
    *_real("seconds"),
    *_name("digest"),
)
checkpoints = Table(
    "checkpoints",
    metadata,
    _row(),
    _to("learnings.n", "learning"),
    *_name("id", "agent"),
    *_whole("round"),
    *_name("parent"),
    *_words("path"),
    Column("kept", Boolean, nullable=False),
    *_real("before", "after", null=True),
    *_whole("steps"),
    *_real("loss", null=True),
    Index("checkpoints_learning", "learning"),
    Index("checkpoints_id", "id"),
)
# which lessons made a checkpoint
taught = Table(
    "taught",
    metadata,
    _to("checkpoints.row", "checkpoint", key=True),
    Column("position", Whole, primary_key=True, autoincrement=False),
    _to("lessons.row", "lesson"),
    Index("taught_lesson", "lesson"),
)
scores = Table(
    "scores",
    metadata,
    _row(),
    _to("learnings.n", "learning"),
    *_whole("round"),
    *_name("solver", "split", "domain"),
    *_whole("level"),
    *_real("right"),
    *_whole("total"),
    Index("scores_learning", "learning"),
)
# tokens by member, round and purpose ("ideas" or "learning"): the one place they are counted
spent = Table(
    "spent",
    metadata,
    Column("round", Whole, primary_key=True, autoincrement=False),
    Column("purpose", Name, primary_key=True),
    Column("member", Name, primary_key=True),
    *_whole("tokens"),
)

SCHEMA = "schema"
"""The row of `meta` that holds the version: how many of MIGRATIONS were taken."""


def with_ids(table: Table, ids: ColumnElement[bool]) -> ColumnElement[bool]:
    """What is asked of the ids in tasks, ideas or lessons, put so that an index answers: every
    idea is in a round, and whoever says so has `by_id` used."""
    return and_(ideas.c.round.in_(select(rounds.c.n)), ids) if table is ideas else ids


def create_tables(conn: Connection) -> None:
    """Step 1: every table that is not there yet."""
    metadata.create_all(conn)


def index_texts(conn: Connection) -> None:
    """Step 2: the indices behind `search`, for the ideas that are there already."""
    for index in (by_strength, by_arena):
        index.create(conn, checkfirst=True)
    if not textindex.possible(conn):
        return
    textindex.make(conn)
    index_ideas(conn)


def index_ideas(conn: Connection, after: int = 0) -> None:
    """Put the ideas of rows beyond `after` in the index of texts, if there is one."""
    if not textindex.exists(conn):
        return
    i, t = ideas.c, tasks.c
    texts = select(i.row, i.text, i.answer, t.prompt, i.author, t.arena, t.domain)
    found = conn.execute(texts.join_from(ideas, tasks, i.task == t.row).where(i.row > after))
    for part in found.partitions(5000):
        textindex.add(conn, part)


def index_ids(conn: Connection) -> None:
    """Step 3: ids are found by round, then id."""
    by_id.create(conn, checkfirst=True)
    conn.exec_driver_sql("DROP INDEX IF EXISTS ideas_id")


MIGRATIONS: tuple[Callable[[Connection], None], ...] = (create_tables, index_texts, index_ids)
"""Steps from an empty database to now, in order, never reordered or removed.

A new ledger takes all of them and an old one those it lacks. Step 1 makes the tables as
they are today, so a later step must leave alone what is there already (`add_column`).
"""

READABLE = 1
"""The oldest schema that is read as it is: the steps after it made nothing but indices."""


def add_column(conn: Connection, column: Column[Any]) -> None:
    """Add a column to its table unless it is there. NOT NULL ones need a server default."""
    table = column.table.name
    if column.name not in {c["name"] for c in inspect(conn).get_columns(table)}:
        ddl = CreateColumn(column).compile(dialect=conn.dialect)
        conn.exec_driver_sql(f"ALTER TABLE {table} ADD COLUMN {ddl}")


def schema_version(conn: Connection) -> int | None:
    """Number of migrations taken; None where there is no ledger.

    Raises CommunityError for a ledger of a newer version.
    """
    if not inspect(conn).has_table(meta.name):
        return None
    value = conn.scalar(select(meta.c.value).where(meta.c.key == SCHEMA))
    version: int | None = None if value is None else parsed(value, int)
    if version is not None and version > len(MIGRATIONS):
        raise CommunityError(
            f"the ledger has schema version {version} and this program knows up to"
            f" {len(MIGRATIONS)}; update modelcommunity"
        )
    return version


def migrate(conn: Connection) -> None:
    """Take the missing steps. Raises CommunityError for a ledger of a newer version."""
    version = schema_version(conn)
    for step in MIGRATIONS[version or 0 :]:
        step(conn)
    conn.execute(delete(meta).where(meta.c.key == SCHEMA))
    conn.execute(insert(meta).values(key=SCHEMA, value=str(len(MIGRATIONS))))
