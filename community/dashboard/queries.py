"""The queries that an engine is at work on, so that they can be stopped."""

from __future__ import annotations

import sqlite3
from typing import Any

from sqlalchemy import Engine, event


class Queries:
    """Keeps account of an engine's connections in use. SQLite's can be interrupted."""

    def __init__(self, engine: Engine) -> None:
        self._busy: set[sqlite3.Connection] = set()
        event.listen(engine, "checkout", self._begins)
        event.listen(engine, "checkin", self._ends)

    def interrupt(self) -> None:
        """Stop all that is being asked; whoever asked gets a CommunityError."""
        for connection in list(self._busy):
            connection.interrupt()

    def _begins(self, connection: Any, *_: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            self._busy.add(connection)

    def _ends(self, connection: Any, *_: object) -> None:
        self._busy.discard(connection)
