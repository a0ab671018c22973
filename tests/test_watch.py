"""`community watch`: in a terminal, in a browser, while a run writes, and over bad ledgers."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("textual")

from command import CROWD, Command, community, write_recipe
from small_rounds import MEMBERS, META, make_learning, make_ledger, make_round, make_task
from textual.pilot import Pilot
from typer.testing import CliRunner
from watching import press, text_of, watching

from community import database
from community.cli import app as command_line
from community.dashboard.app import Watch, settled
from community.dashboard.listing import Listing
from community.dashboard.page import LEAST, PAGES
from community.errors import CommunityError
from community.ledger import Ledger
from community.types import Idea, Ranking, Round

ROOT = Path(__file__).parent.parent
SHORT = 0.05
"""Seconds between two looks, and that a locked ledger is waited for."""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where the ledger of a run named small is."""
    (tmp_path / "small").mkdir()
    return tmp_path / "small" / "ledger.db"


async def until(app: Watch, pilot: Pilot[Any], text: str) -> str:
    """The screen as soon as it shows a text; the test's own limit ends this if it never does."""
    for _ in range(600):
        await settled(app, pilot)
        if text in (shown := text_of(app)):
            return shown
        await pilot.pause(SHORT)
    raise AssertionError(f"{text!r} never came:\n{text_of(app)}")


# -- while a run writes --------------------------------------------------------------------


def test_every_round_shows_as_soon_as_it_is_recorded(place: Path) -> None:
    async def session(app: Watch, pilot: Pilot[Any]) -> None:
        assert "Nothing is recorded yet" in text_of(app) or "first lessons" in text_of(app)
        with Ledger.open(place) as writer:
            writer.learned(make_learning(0))
            await until(app, pilot, "playing round 1")
            for n in (1, 2):
                round = make_round(n)
                writer.record(round)
                await until(app, pilot, f"learning from round {n}")
                writer.learned(make_learning(n, round))
                await until(app, pilot, f"playing round {n + 1}")
        assert "24 ideas" in await until(app, pilot, "4 lessons")

    Ledger.create(place, META | {"recipe": {"run": {"rounds": 3}}}, MEMBERS).close()
    watching(place, session, every=SHORT)


@pytest.mark.parametrize(("key", "each"), [("4", 12), ("7", 2)])
def test_a_list_stays_as_it_is_while_somebody_looks_around_in_it(
    place: Path, key: str, each: int
) -> None:
    async def session(app: Watch, pilot: Pilot[Any]) -> None:
        await press(app, pilot, key, "down")
        listing = app.screen.query_one("#found", Listing)
        before = listing.current
        with Ledger.open(place) as writer:
            writer.record(make_round(2))
        await until(app, pilot, "the run went on; r loads what is new")
        assert (listing.current, listing.cursor, listing.total) == (before, 1, each)
        await press(app, pilot, "r")
        assert (listing.cursor, listing.total) == (0, 2 * each)
        assert listing.current.round == 2
        with Ledger.open(place) as writer:
            writer.record(make_round(3))
        while listing.total < 3 * each:  # at the top the newest come by themselves
            await pilot.pause(SHORT)
            await settled(app, pilot)

    make_ledger(place, rounds=1).close()
    watching(place, session, every=SHORT)


@pytest.mark.slow
def test_looking_around_while_a_run_in_another_process_writes(tmp_path: Path) -> None:
    """The run would go on for hours; it is stopped when enough of it was seen."""
    recipe = write_recipe(
        tmp_path, CROWD, **{"rounds = 2": "rounds = 9999", "count = 3": "count = 60"}
    )
    running = Command(tmp_path, "run", recipe, "--name", "live")
    place = tmp_path / "runs" / "live" / "ledger.db"
    while not place.exists():
        assert running.wait(SHORT) is None
    seen: list[int] = []

    async def session(app: Watch, pilot: Pilot[Any]) -> None:
        while len(set(seen)) < 3:
            for key in "1234567":
                await press(app, pilot, key)
                assert app.page is not None and not app.page.query_one("#notice").display
                seen.append(app.course.pulse.round if app.course else 0)
        running.kill(signal.SIGINT)

    watching(place, session, every=10 * SHORT)
    done = running.wait(30)
    if done is None:  # Python loses an interrupt that falls into a __del__: one asks again
        running.kill(signal.SIGINT)
        done = running.wait()
    assert done is not None and done.code == 2 and "nothing that was recorded is lost" in done.err
    assert seen == sorted(seen)
    with Ledger.open(place, read_only=True) as ledger:
        assert ledger.last_round() >= seen[-1] and not ledger.verify()


# -- bad ledgers ---------------------------------------------------------------------------


def refused(*arguments: str) -> str:
    """What the command line says, having refused."""
    with pytest.raises(CommunityError) as caught:
        CliRunner().invoke(command_line, arguments, catch_exceptions=False)
    return str(caught.value)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A run named small below a home of its own."""
    monkeypatch.setenv("COMMUNITY_HOME", str(tmp_path))
    folder = tmp_path / "runs" / "small"
    folder.mkdir(parents=True)
    (folder / "recipe.toml").touch()
    make_ledger(folder / "ledger.db", rounds=2).close()
    yield folder


def test_an_unknown_run(run: Path) -> None:
    assert "there is no run 'nope'; there are: small" in refused("watch", "nope")


def test_without_a_terminal(run: Path) -> None:
    assert "`community show small` does without" in refused("watch", "small")


def test_without_textual(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "textual", None)
    assert "modelcommunity[watch]" in refused("watch", "small")


@pytest.mark.parametrize("more", [(), ("--serve",)])
def test_a_ledger_of_a_newer_version(run: Path, more: tuple[str, ...]) -> None:
    with sqlite3.connect(run / "ledger.db") as conn:
        conn.execute("UPDATE meta SET value = '999' WHERE key = 'schema'")
    assert "update modelcommunity" in refused("watch", "small", *more)


@pytest.mark.parametrize("host", ["nowhere.invalid", "203.0.113.7", f"{'x' * 70}.example"])
def test_an_address_that_cannot_be_served_at(run: Path, host: str, tmp_path: Path) -> None:
    pytest.importorskip("textual_serve")
    said = community(tmp_path, "watch", run.name, "--serve", "--host", host).refused()
    assert f"cannot serve at {host}:8000" in said


def test_a_port_that_is_taken(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("textual_serve")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        place = ["--host", "127.0.0.1", "--port", port]
        said = community(tmp_path, "watch", run.name, "--serve", *place).refused()
    assert f"127.0.0.1:{port}" in said and "--port" in said


def test_what_is_no_ledger(run: Path) -> None:
    (run / "ledger.db").write_bytes(b"no ledger at all" * 500)
    assert "not a ledger, or a damaged one" in refused("watch", "small")
    (run / "ledger.db").unlink()
    assert "there is no ledger" in refused("watch", "small")


def locked(place: Path) -> sqlite3.Connection:
    """A connection that keeps everybody out until it is closed."""
    conn = sqlite3.connect(place, isolation_level=None)
    conn.execute("PRAGMA journal_mode = DELETE")
    conn.execute("BEGIN EXCLUSIVE")
    return conn


def test_a_locked_ledger_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", SHORT)
    conn = locked(run / "ledger.db")
    assert "is in use by another process" in refused("watch", "small")
    conn.close()


def test_a_ledger_that_is_locked_for_a_while(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", SHORT)
    with sqlite3.connect(run / "ledger.db") as conn:
        conn.execute("PRAGMA journal_mode = DELETE")

    async def session(app: Watch, pilot: Pilot[Any]) -> None:
        before = text_of(app)
        keeper = locked(run / "ledger.db")
        shown = await until(app, pilot, "is in use by another process")
        assert "2 Members" in shown  # what is known stays
        await press(app, pilot, "2")
        assert "is in use" in await until(app, pilot, "is in use")
        keeper.close()
        await until(app, pilot, "ann")
        await press(app, pilot, "1")
        for _ in range(100):
            if (after := text_of(app)) == before:
                break
            await pilot.pause(SHORT)
        assert after == before

    watching(run / "ledger.db", session, every=SHORT)


def test_a_ledger_that_cannot_be_written_to(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)

    async def session(app: Watch, pilot: Pilot[Any]) -> None:
        for i, page in enumerate(PAGES):
            shown = await press(app, pilot, str(i + 1))
            assert "! " not in shown, page
        assert "ann" in await press(app, pilot, "2")

    before = sorted(run.iterdir())
    watching(run / "ledger.db", session)
    assert sorted(run.iterdir()) == before


def test_an_empty_run(place: Path) -> None:
    Ledger.create(place, META, MEMBERS).close()

    async def session(app: Watch, pilot: Pilot[Any]) -> None:
        for i in (0, 3, 4, 5, 6):
            shown = await press(app, pilot, str(i + 1))
            assert "Nothing is recorded yet" in shown, PAGES[i]
        assert "ann" in await press(app, pilot, "2")
        shown = await press(app, pilot, "3", "left_square_bracket", "f")
        assert "No lesson was given" in shown or "Nothing is recorded yet" in shown

    watching(place, session)


def test_a_run_of_failures_only(place: Path) -> None:
    task = make_task(1, 0)
    failed = tuple(
        Idea(task.id, name, "c", 1, 0, 0, "", failure=f"no {name} today\x1b[31m")
        for name, _ in MEMBERS
    )
    with Ledger.create(place, META, MEMBERS) as ledger:
        ledger.learned(make_learning(0))
        ledger.record(Round(1, (task,), failed, (), Ranking("bradley-terry", (), {}), ()))
        ledger.learned(replace(make_learning(1), checkpoints=(), scores=()))

    async def session(app: Watch, pilot: Pilot[Any]) -> None:
        for i in range(len(PAGES)):
            assert "! " not in await press(app, pilot, str(i + 1)), PAGES[i]
        shown = await press(app, pilot, "4")
        assert shown.count("✗ failed: no") == 3 and "\x1b" not in shown
        shown = await press(app, pilot, "enter")
        assert "✗ failed" in shown and "it was not ranked" in shown
        assert "Nobody judged this idea." in shown
        assert "none is the best" in await press(app, pilot, "l")

    watching(place, session)


def test_a_terminal_that_is_too_small(run: Path) -> None:
    async def session(app: Watch, pilot: Pilot[Any]) -> None:
        for key in "1234567":
            shown = await press(app, pilot, key)
            assert "This terminal has 40 columns and 12" in shown and "make it" in shown
            assert len(shown.splitlines()) <= 12
        await pilot.resize_terminal(*LEAST)
        await settled(app, pilot)
        shown = text_of(app)
        assert "make it larger" not in shown and "lesson" in shown
        await pilot.resize_terminal(20, 5)
        await settled(app, pilot)
        assert "larger" in text_of(app)

    watching(run / "ledger.db", session, (40, 12))


@pytest.mark.parametrize("page", PAGES)
def test_the_least_terminal_is_enough(run: Path, page: str) -> None:
    async def session(app: Watch, pilot: Pilot[Any]) -> None:
        shown = await press(app, pilot, str(PAGES.index(page) + 1))
        assert "larger" not in shown and page.title() in shown
        assert all(len(line) <= LEAST[0] for line in shown.splitlines())

    watching(run / "ledger.db", session, LEAST)


# -- a terminal and a browser --------------------------------------------------------------


def test_in_a_real_terminal(run: Path) -> None:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = os.environ | {"TERM": "xterm-256color", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "community", "watch", str(run)]
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environment)
    os.close(slave)
    said = b""
    while b"finished" not in said and b"playing" not in said:
        said += os.read(master, 65536)
    os.write(master, b"q")
    while process.poll() is None:  # a terminal that nobody reads would keep it waiting
        try:
            said += os.read(master, 65536)
        except OSError:
            break
    assert process.wait() == 0
    os.close(master)
    assert b"Overview" in said and b"small" in said


def test_in_a_browser(run: Path) -> None:
    aiohttp = pytest.importorskip("aiohttp")
    pytest.importorskip("textual_serve")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "community", "watch", str(run), "--serve", "--port", str(port)]
    server = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )

    async def visit() -> tuple[str, bytes]:
        async with aiohttp.ClientSession() as session:
            while True:
                try:
                    async with session.get(f"http://localhost:{port}/") as answer:
                        page = await answer.text()
                    break
                except aiohttp.ClientConnectorError:
                    assert server.poll() is None
                    await asyncio.sleep(SHORT)
            seen = b""
            async with session.ws_connect(f"http://localhost:{port}/ws?width=80&height=24") as ws:
                async for message in ws:
                    seen += message.data if isinstance(message.data, bytes) else b""
                    if b"Overview" in seen:
                        break
            return page, seen

    try:
        page, seen = asyncio.run(asyncio.wait_for(visit(), 60))
    finally:
        server.send_signal(signal.SIGINT)
        server.wait()
    assert "community: small" in page and b"Overview" in seen
