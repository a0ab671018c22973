"""The `community` command as a process that a test may kill, interrupt and read.

Processes are forked from a server that has loaded the engine already, so that each starts
at once; what runs in them is `main()`, as on a command line.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import runpy
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from community.cli import main
from community.ledger import Ledger

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["community.engine", "community.agents.transformer", "command"])

RECIPE = """\
[run]
seed = 3
rounds = 3
turns = 1
world = "validation"
pool = "local"

[arena]
use = "arithmetic"
reverse = true

[tasks]
train = 12
levels = [1, 2]
phrasings = 2
validation = 6
holdout = 6
holdout_levels = [1, 2]

[first]
examples = 64
steps = 8

[[members]]
name = "ada"
use = "transformer"
samples = 2
temperature = 0.7
max_tokens = 4
shape = { family = "gpt2", width = 16, depth = 1, heads = 2, positions = "restart" }

[[members]]
name = "carl"
use = "transformer"
max_tokens = 4
shape = { width = 16, depth = 1, heads = 2 }

[[members]]
name = "sam"
use = "scripted"
error = 0.3

[judging]
pairs = 3
judges = 2

[ranking]
min_confidence = 0.1

[learning]
steps = 3
batch = 16
replay = 4
revalidate = true
peers = 0.2
"""
"""Two tiny transformers and a scripted member; every phase of a round has something to do."""

CROWD = """\
[run]
rounds = 2
pool = "local"

[arena]
use = "arithmetic"

[tasks]
train = 8
holdout = 6

[[members]]
name = "sam"
use = "scripted"
error = 0.3
count = 3
"""
"""Scripted members alone: no torch, done in a moment."""


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    code: int
    out: str
    err: str

    def refused(self) -> str:
        """The one line of an error that a user can mend."""
        assert self.code == 2, (self.code, self.err, self.out)
        lines = self.err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("community: "), self.err
        return lines[0]


class Command:
    """A running `community` command, in a process group of its own."""

    def __init__(self, folder: Path, *arguments: str, **environment: str) -> None:
        settings = {"COMMUNITY_HOME": str(folder), "COMMUNITY_CACHE": str(folder / "cache")}
        self._start(folder, Path(), ["community", *arguments], settings | environment)

    def _start(
        self, logs: Path, work: Path, words: Sequence[str], environment: Mapping[str, str]
    ) -> None:
        stem = f"{time.monotonic_ns()}"
        self.files = logs / f"{stem}.out", logs / f"{stem}.err"
        for file in self.files:
            file.touch()
        self.process: Any = SERVER.Process(
            target=_process, args=(str(work), list(words), dict(environment), *self.files)
        )
        self.process.start()

    def kill(self, sign: int = signal.SIGKILL) -> None:
        os.kill(self.process.pid, sign)

    def wait(self, seconds: float | None = None) -> Done | None:
        """What it left, or None if it is still at work after so many seconds."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            return None
        return Done(self.process.exitcode, *(file.read_text() for file in self.files))


class Line(Command):
    """A line of a shell in a folder: `community …`, `python FILE …` or `python -m MODULE …`."""

    def __init__(self, folder: Path, words: Sequence[str], **environment: str) -> None:
        self._start(folder.parent, folder, words, environment)


def community(folder: Path, *arguments: str, **environment: str) -> Done:
    """Run a command to its end."""
    done = Command(folder, *arguments, **environment).wait()
    assert done is not None
    return done


def _process(
    work: str, words: list[str], environment: dict[str, str], out: Path, err: Path
) -> None:
    os.setpgrp()
    for file, number in ((out, 1), (err, 2)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    os.environ.update(environment)
    os.chdir(work)
    if words[0] == "community":
        sys.argv = words
        main()
        return
    assert words[0] == "python", words
    sys.path[:0] = [work]
    sys.argv = words[2:] if words[1] == "-m" else words[1:]
    if words[1] == "-m":
        runpy.run_module(words[2], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(words[1], run_name="__main__")


def write_recipe(folder: Path, text: str = RECIPE, **changes: str) -> str:
    """A recipe file; every change replaces a text that must be there."""
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    path = folder / "tiny.toml"
    path.write_text(text)
    return str(path)


@contextmanager
def little_room(most: int) -> Iterator[None]:
    """No file of this process may grow beyond so many bytes, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def hash_of(folder: Path, run: str) -> str:
    """The content hash of a run below `folder`."""
    with Ledger.open(folder / "runs" / run / "ledger.db", read_only=True) as ledger:
        return ledger.content_hash()
