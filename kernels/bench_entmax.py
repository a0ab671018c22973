"""Sparsemax and 1.5-entmax, rows and attention, against the entmax package and plain torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from itertools import product

import torch
from torch import Tensor

from community.kernels.entmax import entmax15, entmax_attention, reference, sparsemax
from community.kernels.timing import Case, Run

Peers = dict[str, Callable[[Tensor], Tensor]]


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Rows of scores, then attention forward and backward: H 8, D 64, float32, causal; longer ones
    on a GPU, up to what the peers, who keep all scores, have memory for."""
    sizes = [(1, 256), (1, 1024), (4, 512)]
    if quick:
        sizes = [(1, 32)]
    elif device != "cpu":
        sizes = [(8, 512), (4, 1024), (4, 2048), (1, 4096)]
    for (b, t), alpha in product(sizes, (1.5, 2.0)):
        yield _rows(8 * b * t, t, alpha, device)
        for backward in (False, True):
            yield _attention(b, t, alpha, backward, device)


def _peers(alpha: float) -> Peers:
    """The entmax package where it is installed, and the same by sorting in torch."""
    found: Peers = {}
    if find_spec("entmax") is not None:
        package = import_module("entmax")
        found["entmax"] = package.entmax15 if alpha == 1.5 else package.sparsemax
    return {**found, "torch": lambda x: reference(x, alpha)}


def _rows(rows: int, n: int, alpha: float, device: str) -> Case:
    x = torch.randn(rows, n, generator=torch.Generator().manual_seed(n)).to(device)
    ours = entmax15 if alpha == 1.5 else sparsemax
    return Case(
        f"{ours.__name__}, {rows} rows of {n}",
        lambda: (ours(x),),
        {name: partial(weigh, x) for name, weigh in _peers(alpha).items()},
        lambda: (reference(x.double(), alpha),),
    )


def _attention(b: int, t: int, alpha: float, backward: bool, device: str) -> Case:
    made = torch.Generator().manual_seed(b * t)
    q, k, v, g = (torch.randn(b, 8, t, 64, generator=made).to(device) for _ in range(4))
    hidden = torch.ones(t, t, dtype=torch.bool, device=device).triu(1)

    def plain(weigh: Callable[[Tensor], Tensor], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return weigh((q @ k.mT * 64**-0.5).masked_fill(hidden, -math.inf)) @ v

    def run(attend: Callable[[Tensor, Tensor, Tensor], Tensor], *inputs: Tensor) -> Run:
        leaves = [x.detach().requires_grad_(backward) for x in inputs]
        if not backward:
            return lambda: (attend(*leaves),)
        out = attend(*leaves)
        go = g.to(out.dtype)
        return lambda: torch.autograd.grad(out, leaves, go, retain_graph=True)

    def truth() -> tuple[Tensor, ...]:
        wide = [x.double() for x in (q, k, v)]
        return run(lambda *x: plain(lambda s: reference(s, alpha), *x), *wide)()

    return Case(
        f"entmax {alpha} attention {'backward' if backward else 'forward'} B {b} T {t}",
        run(lambda *x: entmax_attention(*x, alpha=alpha, causal=True), q, k, v),
        {name: run(partial(plain, weigh), q, k, v) for name, weigh in _peers(alpha).items()},
        truth,
    )
