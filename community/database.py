"""Where a ledger is kept: a path or URL made an engine, and its failures made one sentence."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError

from community.errors import CommunityError

BUSY_SECONDS = 10.0
"""How long a write waits for another process's."""


class Damaged(Exception):
    """What stands in a ledger is not what is written there; `transaction` tells the user."""


def parsed(text: str, kind: type[Any] = object) -> Any:
    """The value of a JSON text that a ledger holds. Raises Damaged for one of another kind."""
    try:
        found = json.loads(text)
    except (TypeError, ValueError) as error:  # TypeError: a number in its place
        raise Damaged from error
    if not isinstance(found, kind):
        raise Damaged
    return found


def url_of(place: str | Path) -> URL:
    """The URL of a path or URL. Raises CommunityError for a URL that is none."""
    if isinstance(place, Path) or "://" not in place:
        return URL.create("sqlite", database=str(place))
    try:
        url = make_url(place)
    except (ArgumentError, ValueError) as error:  # the latter for a port that is no number
        raise CommunityError(f"{place!r} is not a database URL; see SQLAlchemy's") from error
    # the driver that the extra `postgres` installs, whatever SQLAlchemy's own default is
    return url.set(drivername="postgresql+psycopg") if url.drivername == "postgresql" else url


def file_of(url: URL) -> Path | None:
    """The file of an SQLite URL; None for servers and for databases in memory."""
    if url.get_backend_name() != "sqlite" or url.database in (None, "", ":memory:"):
        return None
    return Path(str(url.database))


def engine_of(url: URL, read_only: bool) -> Engine:
    """An engine whose connections are set up; nothing is opened yet.

    Raises CommunityError for an unknown kind of database and for a driver not installed.
    """
    path = file_of(url)
    if path is not None and read_only and not _writable(path):
        url = _read_only(path)
    try:
        engine = create_engine(url)
    except (NoSuchModuleError, ModuleNotFoundError) as error:
        raise CommunityError(
            f"cannot use {url.drivername} databases ({error});"
            " install the driver, which for PostgreSQL is the extra 'postgres'"
        ) from error
    if engine.dialect.name == "sqlite":
        _prepare_sqlite(engine, read_only)
    elif read_only:
        engine = engine.execution_options(postgresql_readonly=True)
    return engine


def _writable(path: Path) -> bool:
    """Whether SQLite may keep its shared memory beside the file, as it does even to read.

    If so it is opened as usual with writing switched off: a connection in SQLite's own
    read-only mode would leave those files behind.
    """
    return os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)


def _read_only(path: Path) -> URL:
    query = {"mode": "ro", "uri": "true"}
    if not os.access(path.parent, os.W_OK):
        query["immutable"] = "1"
    return URL.create("sqlite", database=f"file:{quote(str(path.absolute()))}", query=query)


def _prepare_sqlite(engine: Engine, read_only: bool) -> None:
    @event.listens_for(engine, "connect")
    def connected(connection: sqlite3.Connection, _: Any) -> None:
        connection.isolation_level = None  # `begun` says when and how a transaction starts
        connection.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA cache_size = -65536")  # KiB: indices of a million random ids
        connection.execute("PRAGMA synchronous = NORMAL")
        if read_only:
            connection.execute("PRAGMA query_only = ON")
        else:
            connection.execute("PRAGMA journal_mode = WAL")
            # 64 MiB: rounds touch the same pages of the indices, and these are to be written once
            connection.execute("PRAGMA wal_autocheckpoint = 16384")

    @event.listens_for(engine, "begin")
    def begun(conn: Connection) -> None:
        writes = conn.get_execution_options().get("writes", False)
        conn.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def transaction(engine: Engine, where: str, writes: bool) -> Iterator[Connection]:
    """A connection in a transaction, committed at the end unless an exception leaves it.

    Raises CommunityError where the database fails; exceptions of the body pass through.
    """
    try:
        with engine.connect().execution_options(writes=writes) as conn, conn.begin():
            yield conn
    except (DBAPIError, sqlite3.Error) as error:
        raise _explained(error, where) from error
    except Damaged as error:
        raise CommunityError(_SAYS["malformed"].format(where=where)) from error


def name_of(url: URL) -> str:
    """How to call a database in a message: a path, or the URL without its password."""
    path = file_of(url)
    return str(path) if path is not None else url.render_as_string(hide_password=True)


_SAYS = {
    "disk is full": "the disk that holds {where} is full; free some space and resume,"
    " every recorded round is safe",
    "No space left": "the disk that holds {where} is full; free some space and resume,"
    " every recorded round is safe",
    "disk I/O error": "the disk that holds {where} failed or is full; see to it and resume,"
    " every recorded round is safe",
    "interrupted": "reading {where} was interrupted; ask again",
    "readonly": "{where} cannot be written to; check its permissions",
    "locked": "{where} is in use by another process; wait for it or stop it",
    "unable to open": "{where} cannot be opened; check the folder and its permissions",
    "not a database": "{where} is not a ledger, or a damaged one; name another or restore a copy",
    "malformed": "{where} is damaged; restore a copy or start the run anew",
    "Could not decode": "{where} is damaged; restore a copy or start the run anew",
    "no such table": "{where} lacks a table and is damaged; restore a copy or start the run anew",
}


def _explained(error: Exception, where: str) -> Exception:
    """What a user can do about a failure of the database; the error itself if it is a bug."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    text = str(cause)
    for sign, sentence in _SAYS.items():
        if sign in text and isinstance(cause, sqlite3.DatabaseError):
            return CommunityError(sentence.format(where=where))
    if isinstance(error, OperationalError) and not isinstance(cause, sqlite3.Error):
        reason = text.strip().splitlines()[0]
        return CommunityError(f"the database {where} failed ({reason}); see to it and resume")
    return error
