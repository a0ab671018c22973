"""A run's figures, round by round -> TensorBoard, trackio or Weights & Biases.

All come from the ledger, during a run or after it, so no run needs a tracker. Logging again
adds what is new and repeats nothing. Nothing leaves the machine: Weights & Biases is offline
unless WANDB_MODE says otherwise.
"""

from __future__ import annotations

import io
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from shlex import quote
from time import sleep
from typing import Any, Protocol

from community.errors import CommunityError, unknown
from community.extras import extra, installed
from community.figures import figures
from community.ledger import Ledger
from community.types import content_hash

Facts = Mapping[str, Any]
PROJECT = "modelcommunity"
PAUSE = 1.0  # seconds between looks at a run that is followed
OF_ROUND = ("posed", "kept", "precision", "diversity", "tokens", "rollbacks", "disconnected")


@dataclass(frozen=True)
class Point:
    """What is known after a round; `seconds` are those of the run so far."""

    step: int
    seconds: float
    values: Mapping[str, float]


class Tracker(Protocol):
    """One run of a tracker, written below a folder."""

    def log(self, points: Sequence[Point]) -> None:
        """Log those of all points so far that are not there yet."""
        ...

    def close(self) -> None: ...


def track(
    run: Path,
    kind: str,
    to: Path,
    follow: bool = False,
    told: Callable[[int], None] = lambda n: None,
) -> str:
    """Log the run in a folder and its baselines; returns the command that shows what was logged.

    With `follow` it goes on until the run has ended, and `told` hears of each round. Raises
    CommunityError for an unknown tracker or a missing extra, a run without anything recorded,
    and a folder that cannot be written.
    """
    if kind not in TRACKERS:
        raise unknown("tracker", kind, TRACKERS)
    if not installed(kind):
        extra(kind, kind)
    make, shows = TRACKERS[kind]
    with ExitStack() as stack:
        trackers: dict[str, Tracker] = {}
        for facts in _news(run, follow):
            for name, mine in runs_of(facts):
                try:
                    if name not in trackers:
                        to.mkdir(parents=True, exist_ok=True)
                        config = {key: facts[key] for key in ("seed", "arena", "recipe_hash")}
                        trackers[name] = make(to.absolute(), name, config)
                        stack.callback(trackers[name].close)
                    trackers[name].log(list(points(mine)))
                except (OSError, sqlite3.Error) as error:
                    reason = getattr(error, "strerror", None) or error
                    raise CommunityError(f"cannot write to {to}: {reason}") from error
            told(facts["rounds_played"])
    return shows.format(to=quote(str(to)), project=PROJECT)


def _news(run: Path, follow: bool) -> Iterator[Facts]:
    """The run's figures, and again whenever a round was learned from, until there is no more."""
    while follow and _learned(run) < 0:
        sleep(PAUSE)
    while True:
        facts = figures(run)
        yield facts
        if not follow or not facts["stopped"] or "budget" in facts["stopped"]:
            return
        while _learned(run) <= facts["rounds_played"]:
            sleep(PAUSE)


def _learned(run: Path) -> int:
    with Ledger.open(run / "ledger.db", read_only=True) as ledger:
        return ledger.last_learning()


def runs_of(facts: Facts) -> list[tuple[str, Facts]]:
    """The community's figures and those of each baseline, under names that no other run has."""
    own = content_hash(facts["name"], facts["seed"], facts["recipe_hash"], length=8)
    rivals = [(f"{facts['name']}-{own}-{kind}", b) for kind, b in facts["baselines"].items()]
    return [(f"{facts['name']}-{own}", facts), *rivals]


def points(facts: Facts) -> Iterator[Point]:
    """What is known after each learning, the start (0) included; what is not known is left out.

    The whole holdout by solver, and the community's by domain and level; what the round posed,
    kept and cost; how reliable each member was in it.
    """
    course = {entry["round"]: entry for entry in facts["holdout_by_round"]}
    places = facts.get("holdout", {}).get("by_round", {})
    rounds = {r["round"]: r for r in facts["rounds"]}
    seconds, tokens = facts["seconds_start"], facts["tokens_start"]
    for n in range(facts["rounds_played"] + 1):
        scores, round_ = course.get(n, {}), rounds.get(n, {})
        seconds += round_.get("seconds", 0.0)
        tokens += round_.get("tokens", 0)
        values = {f"holdout/{k}": v for k, v in scores.items() if k not in ("round", "members")}
        values |= {f"holdout_member/{k}": v for k, v in scores.get("members", {}).items()}
        values |= {f"holdout_at/{k}": v for k, v in places.get(str(n), {}).items()}
        values |= {f"round/{key}": round_.get(key) for key in OF_ROUND}
        values |= {f"reliability/{k}": v for k, v in round_.get("reliability", {}).items()}
        values["total/tokens"], values["total/seconds"] = tokens, seconds
        yield Point(n, seconds, {k: float(v) for k, v in values.items() if v is not None})


# -- TensorBoard ---------------------------------------------------------------------------


class TensorBoard:
    """One file of events. The same points give the same bytes, so that more are appended."""

    def __init__(self, folder: Path, name: str, config: Facts) -> None:
        self._records = extra("tensorboard.summary.writer.record_writer", "tensorboard")
        self._events = extra("tensorboard.compat.proto.event_pb2", "tensorboard")
        self._path = folder / name / "events.out.tfevents.0.community"
        self._path.parent.mkdir(exist_ok=True)

    def log(self, points: Sequence[Point]) -> None:
        data = self._bytes(points)
        old = self._path.read_bytes() if self._path.exists() else b""
        if data.startswith(old):  # also what a kill cut off: it is completed
            with self._path.open("ab") as file:
                file.write(data[len(old) :])
        else:
            self._path.write_bytes(data)

    def _bytes(self, points: Sequence[Point]) -> bytes:
        """A file format of TensorFlow: length, its checksum, an event, its checksum."""
        buffer = io.BytesIO()
        writer = self._records.RecordWriter(buffer)
        writer.write(self._events.Event(file_version="brain.Event:2").SerializeToString())
        for point in points:
            event = self._events.Event(wall_time=point.seconds, step=point.step)
            for tag, value in point.values.items():
                event.summary.value.add(tag=tag, simple_value=value)
            writer.write(event.SerializeToString(deterministic=True))
        return buffer.getvalue()

    def close(self) -> None: ...


# -- trackio -------------------------------------------------------------------------------


class Trackio:
    """A run in trackio's own SQLite file below the folder."""

    def __init__(self, folder: Path, name: str, config: Facts) -> None:
        os.environ["TRACKIO_DIR"] = str(folder)  # read once, when it is imported
        self._trackio = extra("trackio", "trackio")
        own = extra("trackio.utils", "trackio").TRACKIO_DIR
        if Path(own) != folder:
            raise CommunityError(
                f"this process logs with trackio to {own}; start another for {folder}"
            )
        self._store = extra("trackio.sqlite_storage", "trackio").SQLiteStorage
        self._name, self._config = name, dict(config)

    def log(self, points: Sequence[Point]) -> None:
        last = self._store.get_max_step_for_run(PROJECT, self._name)
        new = [point for point in points if last is None or point.step > last]
        if not new:
            return
        with redirect_stdout(io.StringIO()):  # it greets
            self._trackio.init(
                project=PROJECT, name=self._name, config=self._config, resume="allow",
                embed=False, auto_log_gpu=False, auto_log_cpu=False,
            )  # fmt: skip
            for point in new:
                self._trackio.log(dict(point.values), step=point.step)
            self._trackio.finish()

    def close(self) -> None: ...


# -- Weights & Biases ----------------------------------------------------------------------


class Wandb:
    """A run of Weights & Biases: offline anew in its folder, or resumed online."""

    def __init__(self, folder: Path, name: str, config: Facts) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read when it is imported
        self._wandb = extra("wandb", "wandb")
        mode = os.environ.get("WANDB_MODE", "offline")
        if mode == "offline":
            for former in (folder / "wandb").glob(f"offline-run-*-{escape(name)}"):
                shutil.rmtree(former)
        quiet = self._wandb.Settings(silent=True, console="off", x_disable_stats=True,
                                     x_disable_meta=True)  # fmt: skip
        try:
            self._run = self._wandb.init(
                project=PROJECT, id=name, name=name, config=dict(config), dir=str(folder),
                mode=mode, settings=quiet, reinit="create_new",
                resume=None if mode == "offline" else "allow",
            )  # fmt: skip
        except self._wandb.errors.Error as error:
            raise CommunityError(
                f"Weights & Biases failed ({error}); unset WANDB_MODE to log offline"
            ) from error
        self._next = self._run.step

    def log(self, points: Sequence[Point]) -> None:
        for point in points:
            if point.step >= self._next:
                self._run.log(dict(point.values), step=point.step)
                self._next = point.step + 1

    def close(self) -> None:
        self._run.finish()


TRACKERS: dict[str, tuple[Callable[[Path, str, Facts], Tracker], str]] = {
    "tensorboard": (TensorBoard, "tensorboard --logdir {to}"),
    "trackio": (Trackio, "TRACKIO_DIR={to} trackio show --project {project}"),
    "wandb": (Wandb, "wandb sync {to}/wandb/offline-run-*"),
}
"""Name -> its class, and the command that shows what it logged."""
