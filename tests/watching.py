"""What tests of the dashboard share: a run to watch, keys, and the screen as text.

`COMMUNITY_SCREENS=write pytest tests/test_dashboard.py` writes the pictures anew; look at
what changed before committing it.
"""

from __future__ import annotations

import asyncio
import io
import os
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from textual.pilot import Pilot

from community import config
from community.dashboard.app import Watch, settled
from community.dashboard.graph import Graph
from community.folder import create
from community.ledger import Ledger
from community.run import How, play

PICTURES = Path(__file__).parent / "screens"

TALK = """\
[run]
seed = 1
rounds = 4
turns = 2
pool = "local"

[arena]
use = "arithmetic"
operations = ["addition", "subtraction"]

[tasks]
train = 6
levels = [2, 3]
validation = 6
holdout = 8
holdout_levels = [2, 3]

[[members]]
name = "ada"
use = "scripted"
error = 0.2
samples = 2

[[members]]
name = "blaise"
use = "scripted"
error = 0.4

[[members]]
name = "carl"
use = "scripted"
error = 0.6
crash = 0.1

[[members]]
name = "emmy"
use = "scripted"
error = 0.8
judge_error = 0.9

[[topology]]
use = "ring"

[[topology]]
from_round = 3
use = "star"

[judging]
pairs = 6
judges = 3
"""
"""Scripted members that read each other's ideas twice; the world and peers judge them."""


def play_talk(folder: Path) -> Path:
    """Play TALK in folder / talk; times are made equal, so that pictures of it are, too."""
    recipe = folder / "talk.toml"
    recipe.write_text(TALK)
    run = folder / "talk"
    create(config.read(recipe, {}), folder, run)
    play(run, How())
    with sqlite3.connect(run / "ledger.db") as conn:
        conn.execute("UPDATE rounds SET seconds = 2.0")
        conn.execute("UPDATE learnings SET seconds = 1.0")
    return run


Session = Callable[[Watch, Pilot[Any]], Awaitable[None]]


def watching(
    place: Path, session: Session, size: tuple[int, int] = (80, 24), every: float = 3600.0
) -> None:
    """Watch a ledger in a terminal of `size`, as `session` does; it looks once, or `every` s."""

    async def run() -> None:
        with Ledger.open(place, read_only=True) as ledger:
            app = Watch(ledger, place.parent.name, every)
            async with app.run_test(size=size) as pilot:
                await settled(app, pilot)
                await session(app, pilot)

    asyncio.run(run())


async def press(app: Watch, pilot: Pilot[Any], *keys: str) -> str:
    """Press keys, each when the one before has had its effect; the screen afterwards."""
    for key in keys:
        await pilot.press(key)
        await settled(app, pilot)
    return text_of(app)


async def type_in(app: Watch, pilot: Pilot[Any], text: str) -> str:
    """Type a text and enter it."""
    names = {" ": "space", ":": "colon", "-": "minus", "+": "plus", "=": "equals_sign"}
    await pilot.press(*(names.get(letter, letter) for letter in text), "enter")
    await settled(app, pilot)
    return text_of(app)


def text_of(app: Watch) -> str:
    """The screen as lines of text."""
    for graph in app.screen.query(Graph):  # ideas are on their way: where they start from
        graph.step = 0
        graph.refresh()
    width, height = app.size
    console = Console(width=width, height=height, file=io.StringIO(), record=True,
                      force_terminal=True, legacy_windows=False)  # fmt: skip
    console.print(app.screen._compositor.render_update(full=True))
    lines = console.export_text(styles=False).splitlines()
    return "\n".join(line.rstrip() for line in lines).rstrip() + "\n"


def same_picture(name: str, shown: str) -> None:
    """The screen is as it was when somebody looked at it."""
    path = PICTURES / f"{name}.txt"
    if os.environ.get("COMMUNITY_SCREENS") == "write":
        path.write_text(shown, encoding="utf-8")
    assert shown == path.read_text(encoding="utf-8"), f"{path} shows another screen"
