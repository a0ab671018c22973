"""Kernels against torch: `python -m community.kernels.bench --op attention --device cpu`.

Every operation is one function that yields cases. All results are compared with the reference
before anything is timed; then both sides run in turns, and the least time of each counts.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from community.kernels.attention import attention, reference
from community.kernels.backend import backend

Run = Callable[[], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Case:
    """Something computed three ways: by us, by the peer, and by the reference, as the truth."""

    name: str
    ours: Run
    peer: Run
    truth: Run
    tolerance: float = 1e-4  # of the truth's largest number


@dataclass(frozen=True)
class Timing:
    """Seconds, the least of all repetitions; a ratio above 1 means ours is faster."""

    name: str
    ours: float
    peer: float

    @property
    def ratio(self) -> float:
        return self.peer / self.ours


def attention_cases(device: str, quick: bool) -> Iterator[Case]:
    """Forward and backward against torch SDPA: H 8, D 64, float32."""
    sizes = [(1, 64)] if quick else product((1, 8), (256, 512, 1024))
    for (b, t), causal, backward in product(sizes, (True, False), (False, True)):
        yield _attention_case(b, t, causal, backward, device)


def _attention_case(b: int, t: int, causal: bool, backward: bool, device: str) -> Case:
    made = torch.Generator().manual_seed(b * t)
    q, k, v, g = (torch.randn(b, 8, t, 64, generator=made).to(device) for _ in range(4))
    temperature = torch.linspace(0.6, 1.4, 8, device=device)
    sharper = q / temperature.view(-1, 1, 1)  # the peer has no temperature: it is given for free

    def run(make: Callable[[], tuple[Tensor, list[Tensor]]]) -> Run:
        if not backward:
            return lambda: (make()[0],)
        for x in (q, k, v, sharper):
            x.requires_grad_()
        out, leaves = make()
        return lambda: torch.autograd.grad(out, leaves, g, retain_graph=True)

    def ours() -> tuple[Tensor, list[Tensor]]:
        out, _ = attention(q, k, v, causal=causal, temperature=temperature)
        return out, [q, k, v]

    def peer() -> tuple[Tensor, list[Tensor]]:
        return scaled_dot_product_attention(sharper, k, v, is_causal=causal), [sharper, k, v]

    def truth() -> tuple[Tensor, list[Tensor]]:
        wide = [x.detach().double().requires_grad_(backward) for x in (q, k, v)]
        out, _ = reference(*wide, causal=causal, temperature=temperature.double())
        return out, wide

    def true_results() -> tuple[Tensor, ...]:
        out, wide = truth()
        return torch.autograd.grad(out, wide, g.double()) if backward else (out,)

    name = f"attention {'causal' if causal else 'full'} {'backward' if backward else 'forward'}"
    return Case(f"{name} B {b} T {t}", run(ours), run(peer), true_results)


OPERATIONS: dict[str, Callable[[str, bool], Iterator[Case]]] = {"attention": attention_cases}


def worst(case: Case) -> float:
    """The largest difference from the truth, relative to the truth's largest number."""
    pairs = zip(case.ours(), case.truth(), strict=True)
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) for a, b in pairs)


def seconds(run: Run, device: str) -> float:
    """Process CPU time on the processor, wall time on a GPU."""
    if device == "cpu":
        start = time.process_time()
        run()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def timed(case: Case, device: str, budget: float) -> Timing:
    """Both sides in turns until `budget` seconds are spent, at least three times each."""
    best = [float("inf"), float("inf")]
    case.ours(), case.peer()
    spent, turns = 0.0, 0
    while spent < budget or turns < 3:
        both = (seconds(case.ours, device), seconds(case.peer, device))
        best = [min(pair) for pair in zip(best, both, strict=True)]
        spent, turns = spent + sum(both), turns + 1
    return Timing(case.name, *best)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m community.kernels.bench", description=__doc__)
    parser.add_argument("--op", choices=sorted(OPERATIONS), required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--seconds", type=float, default=1.0, help="of timing for each case")
    parser.add_argument("--quick", action="store_true", help="one small size only")
    asked = parser.parse_args(arguments)
    if asked.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU")
    torch.set_num_threads(1)
    cases = OPERATIONS[asked.op]
    errors = {case.name: (worst(case), case.tolerance) for case in cases(asked.device, asked.quick)}
    wrong = [f"{name}: {found:.1e}" for name, (found, most) in errors.items() if not found <= most]
    if wrong:
        print("differs from the reference:", *wrong, sep="\n  ")
        return 1
    print(f"all {len(errors)} results match the reference")
    name, why = backend(asked.device)
    print(f"{name} ({why}), one thread; a ratio above 1 means ours is faster")
    rows = []
    for case in cases(asked.device, asked.quick):
        row = timed(case, asked.device, asked.seconds)
        print(f"{row.name:40} {row.ours * 1e3:9.3f} ms {row.peer * 1e3:9.3f} ms {row.ratio:6.2f}")
        rows.append({"name": row.name, "ours": row.ours, "peer": row.peer, "ratio": row.ratio})
    if asked.json:
        figures = {"op": asked.op, "device": asked.device, "backend": name, "cases": rows}
        asked.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
