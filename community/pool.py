"""Where agents run: one after the other in this process, or as Ray actors, one each.

A pool takes one call per member and gives each member's result back. It keeps the
checkpoint that each member stands at, so that an actor that died is made anew from it and
asked again. What a call returns depends on its arguments and that checkpoint alone, so
neither the pool nor the number of workers can be told from a ledger.
"""

from __future__ import annotations

import inspect
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from threading import Event, Lock, Thread, current_thread, main_thread
from typing import Any, Protocol

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError
from ray.util import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from safetensors import SafetensorError

from community.errors import CommunityError
from community.plugins import load
from community.replies import ideas_of, learned_of, verdicts_of
from community.types import Agent, Learned, Study

OF_ARENA = ("alphabet", "solve", "domain")  # what agents may ask the arena for
RAISED = (Exception, SystemExit)  # whatever a member raises is data, and exit() ends no run
DEATHS = (RayActorError, OutOfMemoryError)  # killed by anyone, or by Ray for its memory
ATTEMPTS = 3  # an actor that dies each time is broken, not unlucky
STARTING = Lock()  # baselines start pools side by side
SETTINGS = b"\0\0\0\4\0\0\0\0\0"  # an empty frame of HTTP/2 (RFC 9113, section 6.5)
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SETTINGS
PATIENCE = 5.0  # seconds until a Ray address that says nothing counts as unreachable


@dataclass(frozen=True)
class Spec:
    """All that is needed to make a member anywhere: plain data."""

    name: str
    use: str
    seed: int
    options: Mapping[str, Any]
    base: str  # the recipe's folder, for plugins and models given as paths
    arena: str
    arena_options: Mapping[str, Any] = field(default_factory=dict)
    cpus: float = 0.0  # 0: an even share of the workers
    gpus: float = 0.0


@dataclass(frozen=True)
class Failure:
    """What an agent raised instead of answering."""

    reason: str


class Worker:
    """One member and the folder of its checkpoints."""

    def __init__(self, spec: Spec, folder: str, checkpoint: str = "") -> None:
        self.spec, self.folder, self.checkpoint = spec, Path(folder), checkpoint

    @cached_property
    def agent(self) -> Agent:
        """Made by the first call and not before: what is wrong with it is that call's error.

        Raises CommunityError for a missing model or a damaged checkpoint.
        """
        agent = build(self.spec)
        if self.checkpoint:
            agent.load(self.folder, self.checkpoint)
        return agent

    def propose(self, requests: Sequence[Any]) -> list[Any]:
        agent, name = self.agent, self.spec.name
        return isolate(lambda some: ideas_of(name, some, agent.propose(some)), requests)

    def judge(self, ballots: Sequence[Any]) -> list[Any]:
        agent, name = self.agent, self.spec.name
        return isolate(lambda some: verdicts_of(name, some, agent.judge(some)), ballots)

    def learn(self, study: Study) -> tuple[Learned, str] | Failure:
        """Train and save in one call: an actor that dies between them loses nothing.

        Raises CommunityError if the checkpoint cannot be written, and where the agent does, for
        that is what a user can mend; whatever else an agent raises is a Failure.
        """
        try:
            learned = learned_of(self.agent.learn(study))
        except CommunityError:
            raise
        except RAISED as error:
            return _failure(error)
        return learned, self.save()

    def save(self) -> str:
        """The checkpoint's id. Raises CommunityError if it cannot be written (a full disk)."""
        try:
            checkpoint: object = self.agent.save(self.folder)
        except (OSError, SafetensorError) as error:
            raise CommunityError(
                f"cannot write a checkpoint to {self.folder} ({_first(error)}); make room, then "
                "resume the run"
            ) from error
        if not isinstance(checkpoint, str) or not checkpoint:
            raise CommunityError(
                f"save of {self.spec.name} ({self.spec.use}) gave {checkpoint!r}; it must give the "
                "id of the checkpoint, a text"
            )
        return checkpoint

    def load(self, checkpoint: str) -> str:
        self.agent.load(self.folder, checkpoint)
        return checkpoint


def build(spec: Spec) -> Agent:
    """The member of a spec; parameters that belong to the arena are filled in from it."""
    base = Path(spec.base)
    arena = load("arena", spec.arena, base)(**spec.arena_options)
    make = load("agent", spec.use, base)
    given: dict[str, Any] = {"name": spec.name, "seed": spec.seed}
    parameters = inspect.signature(make).parameters
    for parameter in OF_ARENA:
        if parameter in parameters and hasattr(arena, parameter):
            given[parameter] = getattr(arena, parameter)
    agent: Agent = make(**given, **spec.options)
    return agent


def isolate(
    method: Callable[[Sequence[Any]], list[Any]], batch: Sequence[Any]
) -> list[tuple[int, Any]]:
    """The method's results over a batch as (position, result), halving it around failures.

    A result of position i belongs to `batch[i]` where one item gave it; results of a batch
    that went through have position -1. What raises alone becomes a Failure.
    """
    try:
        return [(-1, result) for result in method(batch)]
    except RAISED as error:
        if len(batch) == 1:
            return [(0, _failure(error))]
    middle = len(batch) // 2
    left, right = isolate(method, batch[:middle]), isolate(method, batch[middle:])
    return left + [(i if i < 0 else i + middle, result) for i, result in right]


def _failure(error: BaseException) -> Failure:
    """In characters that every ledger holds."""
    return Failure(f"{type(error).__name__}: {error}".encode(errors="replace").decode())


class Pool(Protocol):
    """Members that can be called."""

    def call(
        self,
        method: str,
        work: Mapping[str, tuple[Any, ...]],
        done: Callable[[str, Any], None] = lambda name, result: None,
    ) -> dict[str, Any]:
        """Member -> result of `method(*arguments)`, in the order of `work`; a member that
        could not be revived gives a Failure. Raises CommunityError that a member raised."""
        ...

    def close(self) -> None: ...


class LocalPool:
    """All members in this process, called one after the other."""

    def __init__(self, specs: Sequence[Spec], folder: Path) -> None:
        self._workers = {spec.name: Worker(spec, str(folder)) for spec in specs}

    def call(
        self,
        method: str,
        work: Mapping[str, tuple[Any, ...]],
        done: Callable[[str, Any], None] = lambda name, result: None,
    ) -> dict[str, Any]:
        results = {}
        for name, arguments in work.items():
            results[name] = getattr(self._workers[name], method)(*arguments)
            done(name, results[name])
        return results

    def close(self) -> None:
        self._workers.clear()


class RayPool:
    """One Ray actor a member, at most `workers` of them at work at a time."""

    def __init__(
        self, specs: Sequence[Spec], folder: Path, workers: int, address: str = ""
    ) -> None:
        """Starts Ray on this machine, or joins the cluster at `address` or $RAY_ADDRESS.

        Raises CommunityError for an address that does not answer, and for members that ask
        for more than the cluster has.
        """
        with STARTING:
            if not ray.is_initialized():
                _lasting(lambda: _connect(workers, address))
        self._specs = {spec.name: spec for spec in specs}
        self._folder = str(folder.resolve())
        self._workers = workers
        self._share = min(1.0, workers / max(1, len(specs)))
        _refuse_too_many(specs, self._share)
        self._checkpoints = dict.fromkeys(self._specs, "")
        # All members find room together, or wait: of two runs, each with some of its members
        # placed, neither would ever go on.
        self._room = placement_group([self._needs(spec) for spec in specs], "SPREAD")
        self._actors = {name: self._start(name) for name in self._specs}

    def call(
        self,
        method: str,
        work: Mapping[str, tuple[Any, ...]],
        done: Callable[[str, Any], None] = lambda name, result: None,
    ) -> dict[str, Any]:
        waiting, results = list(work), {}
        running: dict[Any, str] = {}
        attempts = dict.fromkeys(work, 0)
        while waiting or running:
            while waiting and len(running) < self._workers:
                name = waiting.pop(0)
                attempts[name] += 1
                reference = getattr(self._actors[name], method).remote(*work[name])
                running[reference] = name
            ready, _ = ray.wait(list(running), num_returns=1)
            name = running.pop(ready[0])
            try:
                results[name] = self._keep(name, method, ray.get(ready[0]))
            except DEATHS as error:
                self._actors[name] = self._start(name)
                if attempts[name] < ATTEMPTS:
                    waiting.insert(0, name)
                    continue
                results[name] = Failure(f"its actor died {ATTEMPTS} times: {_first(error)}")
            except RayTaskError as error:
                raise _cause(error) from error
            done(name, results[name])
        return {name: results[name] for name in work}

    def close(self) -> None:
        """Stop the actors. Ray itself stays up for the pools to come."""
        remove_placement_group(self._room)
        self._actors.clear()

    def _start(self, name: str) -> Any:
        spec = self._specs[name]
        place = PlacementGroupSchedulingStrategy(self._room, list(self._specs).index(name))
        needs = self._needs(spec)
        actor = ray.remote(Worker).options(
            num_cpus=needs["CPU"], num_gpus=needs["GPU"], scheduling_strategy=place
        )
        return actor.remote(spec, self._folder, self._checkpoints[name])

    def _needs(self, spec: Spec) -> dict[str, float]:
        return {"CPU": spec.cpus or self._share, "GPU": spec.gpus}

    def _keep(self, name: str, method: str, result: Any) -> Any:
        """Remember where a member stands, for the day its actor dies."""
        if method in ("save", "load"):
            self._checkpoints[name] = result
        elif method == "learn" and not isinstance(result, Failure):
            self._checkpoints[name] = result[1]
        return result


def _refuse_too_many(specs: Sequence[Spec], share: float) -> None:
    """Ray would let actors that find no room wait for ever, and say nothing."""
    there = ray.cluster_resources()
    wanted = {"CPU": sum(s.cpus or share for s in specs), "GPU": sum(s.gpus for s in specs)}
    for kind, amount in wanted.items():
        if amount > there.get(kind, 0.0) + 0.01:
            raise CommunityError(
                f"the members need {amount:g} {kind}s and Ray has {there.get(kind, 0.0):g}; lower "
                f"{kind.lower()}s of the members or --workers, or join a larger cluster"
            )


def _lasting(start: Callable[[], None]) -> None:
    """Call it in a thread that stays: Ray's processes end with the thread that started them, and
    this process with them."""
    if current_thread() is main_thread():
        start()
        return
    started: Future[None] = Future()

    def stay() -> None:
        try:
            start()
        except BaseException as error:
            started.set_exception(error)
        else:
            started.set_result(None)
            Event().wait()

    Thread(target=stay, daemon=True).start()
    started.result()


def _connect(workers: int, address: str) -> None:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    address = address or os.environ.get("RAY_ADDRESS", "")  # which ray.init would heed anyway
    try:
        if address not in ("", "local"):
            _probe(address)
            ray.init(address=address, **quiet)
        else:
            ray.init("local", num_cpus=workers, include_dashboard=False, **quiet)
    except (RayError, ConnectionError, OSError, RuntimeError, ValueError) as error:
        where = f"the Ray cluster at {address}" if address else "Ray on this machine"
        raise CommunityError(
            f"cannot reach {where} ({_first(error)}); check the address, and RAY_AUTH_MODE=token "
            "if it asks for a token, or use --pool local"
        ) from error


def _probe(address: str) -> None:
    """Ray itself would try for minutes; its servers speak HTTP/2 and send settings first."""
    if address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise ConnectionError("an address looks like host:6379 or ray://host:10001")
    with socket.create_connection((host, int(port)), PATIENCE) as connection:
        connection.sendall(HELLO)
        if connection.recv(len(SETTINGS))[3:4] != SETTINGS[3:4]:
            raise ConnectionError("what answers there is no Ray")


def _cause(error: Exception) -> Exception:
    """The CommunityError inside a Ray error, if that is what the member raised."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, CommunityError) else error


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
