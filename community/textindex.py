"""The index behind `search`: which ideas hold which three characters, by SQLite's FTS5.

Each idea is a document of its text, its answer and its task's prompt. Trigrams alone are
kept, without places and contents, so a match is a candidate whose texts are yet to be read.
Two line ends after each text let every character begin a trigram, so that needles of one and
two characters are found as the beginning of trigrams. Authors, arenas and domains are in it
as one made-up trigram each. It is derived from the ledger and no part of what it says.

SQLite without trigrams (before 3.34) and other databases go without; search reads all then.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

from sqlalchemy import Connection, Integer, Select, Text, column, inspect, literal, select, table

from community.types import content_hash

NAME = "idea_texts"
SIZE = 3
MANY = 300
"""Shorter needles are looked up as so many trigrams; those with more are in most ideas."""

_TEXTS = table(NAME, column("rowid", Integer), column(NAME))
_TERMS = table("idea_trigrams", column("term", Text))
ROW = _TEXTS.c.rowid
"""The row of the idea, in statements that `matching` starts."""

_MAKE = (
    f"CREATE VIRTUAL TABLE {NAME} USING fts5(text, answer, prompt, author, arena, domain,"
    " content='', columnsize=0, detail=none, tokenize='trigram case_sensitive 1')",
    f"CREATE VIRTUAL TABLE idea_trigrams USING fts5vocab({NAME}, instance)",
    # every round leaves a segment; eight at a time are merged, for half the writing that four cost
    f"INSERT INTO {NAME} ({NAME}, rank) VALUES ('automerge', 8)",
)
_ADD = (
    f"INSERT INTO {NAME} (rowid, text, answer, prompt, author, arena, domain) VALUES"
    " (?, lower(?) || char(10, 10), lower(?) || char(10, 10), lower(?) || char(10, 10), ?, ?, ?)"
)


def possible(conn: Connection) -> bool:
    """Whether the database knows full-text search by trigrams."""
    if conn.dialect.name != "sqlite":
        return False
    options = set(conn.exec_driver_sql("PRAGMA compile_options").scalars())
    version = conn.dialect.server_version_info or (0,)
    return "ENABLE_FTS5" in options and version >= (3, 34)


def exists(conn: Connection) -> bool:
    """Whether the ledger has the index."""
    return conn.dialect.name == "sqlite" and inspect(conn).has_table(NAME)


def make(conn: Connection) -> None:
    """An empty index."""
    for statement in _MAKE:
        conn.exec_driver_sql(statement)


def add(conn: Connection, documents: Iterable[Any]) -> None:
    """Index ideas, of each its row, text, answer, task's prompt, author, arena and domain."""
    rows = [
        (row, _whole(text), _whole(answer), _whole(prompt), *_tags(author, arena, domain))
        for row, text, answer, prompt, author, arena, domain in documents
    ]
    conn.exec_driver_sql(_ADD, rows)


def expression(
    conn: Connection, needles: Iterable[str], author: str = "", places: Iterable[str] = ()
) -> str:
    """What FTS5 is to match: all ideas that are wanted, and others; empty if it would be all.

    `needles` are in small letters; `places` are arenas or domains that are all to be the idea's.
    """
    terms = [[_tag("author", author)]] if author else []
    terms += [[_tag("at", place)] for place in places]
    for needle in needles:
        starts = (*range(0, len(needle) - SIZE, SIZE), len(needle) - SIZE)
        terms += [[needle[i : i + SIZE]] for i in starts if i >= 0]
        if len(needle) < SIZE and (found := _beginning(conn, needle)):
            terms.append(found)
    return " AND ".join(f"({' OR '.join(map(_quoted, x))})" for x in terms if "\0" not in x[0])


def matching(match: str) -> Select[tuple[int]]:
    """Rows of the ideas that match an expression, in the order of rows if that is asked for."""
    return select(ROW).where(_TEXTS.c[NAME].op("MATCH")(match))


def _beginning(conn: Connection, needle: str) -> list[str]:
    """The trigrams that begin so, or the needle if there is none; empty if there are too many."""
    end = literal(needle + "\U0010ffff")
    term = select(_TERMS.c.term).limit(1)
    walk = select(term.where(_TERMS.c.term >= needle).scalar_subquery().label("term")).cte(
        "walk", recursive=True
    )
    beyond = term.where(_TERMS.c.term >= walk.c.term + "\1").scalar_subquery()
    walk = walk.union_all(select(beyond).where(walk.c.term < end))
    query = select(walk.c.term).where(walk.c.term < end).limit(MANY + 1)
    found = list(conn.scalars(query))
    return [] if len(found) > MANY else found or [needle.ljust(SIZE, "\1")]


def _quoted(term: str) -> str:
    return '"' + term.replace('"', '""') + '"'


def _whole(text: str) -> str:
    return text.replace("\0", " ")  # the tokenizer stops at NUL


@cache
def _tags(author: str, arena: str, domain: str) -> tuple[str, str, str]:
    return _tag("author", author), _tag("at", arena), _tag("at", domain)


@cache
def _tag(kind: str, name: str) -> str:
    """Three characters for a name; another name may have the same, a thousand will not."""
    number = int(content_hash(kind, name), 16)
    return "\ue000" + chr(0x4E00 + number % 20_000) + chr(0x4E00 + number // 20_000 % 20_000)
