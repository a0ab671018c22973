"""A computation done by us, by peers and by the reference: compared first, then timed in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Run = Callable[[], tuple[Tensor, ...]]
AT_ONCE = {"cpu": 1e-3, "cuda": 0.02}  # seconds of calls that follow each other


@dataclass(frozen=True)
class Case:
    """One computation; `truth` is what the reference gives. The first peer is the one to beat."""

    name: str
    ours: Run
    peers: Mapping[str, Callable[[], object]]
    truth: Run
    tolerance: float = 1e-4  # of the truth's largest number; 0: the same to the last bit
    note: str = ""  # what else is worth knowing, such as the size of what was compressed


@dataclass(frozen=True)
class Timing:
    """Seconds, the least of all repetitions."""

    name: str
    ours: float
    peers: Mapping[str, float]
    note: str = ""

    @property
    def ratios(self) -> dict[str, float]:
        """Peer -> its seconds by ours: above 1 ours is faster."""
        return {name: spent / self.ours for name, spent in self.peers.items()}


def worst(case: Case) -> float:
    """The largest difference from the truth, relative to the truth's largest number."""
    pairs = zip(case.ours(), case.truth(), strict=True)
    return max(_difference(a, b) for a, b in pairs)


def _difference(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape:
        return float("inf")
    a, b = a.double(), b.double()
    found = float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) if b.numel() else 0.0
    return found if found == found else float("inf")


def seconds(run: Callable[[], object], device: str) -> float:
    """Process CPU time on the processor, wall time on a GPU, of a call that follows others: as in a
    model, where the processor prepares the next call while a GPU works. A short call alone takes
    10 us more, for whoever makes it: reading the clock is a system call, which leaves the
    processor's branch predictors cold."""
    first = _together(run, 1, device)
    calls = max(1, min(100, int(AT_ONCE[device] / max(first, 1e-6))))
    return first if calls == 1 else _together(run, calls, device) / calls


def _together(run: Callable[[], object], calls: int, device: str) -> float:
    clock = time.process_time if device == "cpu" else _synchronized
    start = clock()
    for _ in range(calls):
        run()
    return clock() - start


def _synchronized() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


def timed(case: Case, device: str, budget: float) -> Timing:
    """All sides in turns until `budget` seconds have passed, at least three times each."""
    calls: dict[str, Callable[[], object]] = {"": case.ours, **case.peers}
    best = dict.fromkeys(calls, float("inf"))
    for call in calls.values():
        call()
    end, turns = time.perf_counter() + budget, 0
    while time.perf_counter() < end or turns < 3:
        for name, call in calls.items():
            took = seconds(call, device)
            if took:  # some clocks of a processor's time stand still for microseconds
                best[name] = min(best[name], took)
        turns += 1
    return Timing(case.name, best.pop(""), best, case.note)
