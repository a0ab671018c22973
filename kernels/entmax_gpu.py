"""Sparsemax and 1.5-entmax on a GPU: how entmax.cu is called.

entmax.py asks it first. Tests have the processor run the same source by OpenCL
(COMMUNITY_KERNELS=simt) and in an emulator.
"""

from __future__ import annotations

import torch
from torch import Tensor

from community.kernels.attention_gpu import WIDTHS, Tiling, strides, without_cores
from community.kernels.backend import simt
from community.kernels.cuda import fits

PASSES = 64  # at most, for a threshold; eight are many
HELD = (4, 8, 16, 32)  # numbers of a row that a thread may hold in registers
LINES = (32, 256)  # threads that may share such a row
LONG = 512  # threads that share a longer one, and read it again in each pass

# -- rows ------------------------------------------------------------------------------


def rows(x: Tensor, alpha: float) -> Tensor | None:
    """Every row's weights, as x (..., N) in float32; None where others are to compute."""
    if x.dtype != torch.float32 or not x.numel():
        return None
    n = x.shape[-1]
    flags, threads = _sharing(n)
    program, blocks = simt("entmax", x.device.type, *flags), x.numel() // n
    if program is None or blocks >= 2**31:
        return None
    y = x.new_empty(x.shape)
    given = (x.contiguous(), y, n, PASSES, float(alpha))
    program("entmax_rows", *given, blocks=blocks, threads=threads, room=threads)
    return y


def _sharing(n: int) -> tuple[tuple[str, ...], int]:
    """How entmax.cu is compiled for rows of n numbers, and how many threads share one."""
    threads, held = next(((t, e) for t in LINES for e in HELD if n <= t * e), (LONG, 0))
    return (f"-DTHREADS={threads}", f"-DEACH={held}"), threads


# -- attention -------------------------------------------------------------------------


def takes(q: Tensor, v: Tensor, mask: Tensor | None) -> bool:
    """Whether attention is computed here: float32, widths up to 256, and a program for it."""
    if q.dtype != torch.float32 or max(q.shape[-1], v.shape[-1]) > WIDTHS[-1]:
        return False
    if mask is not None and mask.numel() >= 2**31:  # its strides are C ints
        return False
    both = (_tiles(q, v, backward) for backward in (False, True))
    return all(x.program(q.device) is not None and fits(x.room, q.device) for x in both)


class Attention:
    """One call: what every kernel is given, and how blocks share the work."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        factor: Tensor,
        mask: Tensor | None,
        lengths: Tensor | None,
        causal: bool,
        alpha: float,
    ) -> None:
        (_, h, tq, d), tk = q.shape, k.shape[2]
        mask, by = strides(mask, q, k)
        held = [x.contiguous() for x in (q, k, v, factor)]
        sizes = (h, h // k.shape[1], tq, tk, d, v.shape[3], tk - tq + 1 if causal else tk)
        self.given = (*held, mask, lengths, *sizes, *by, float(alpha))
        self.q, self.k, self.v = q, k, v
        self.tiles = [_tiles(q, v, backward) for backward in (False, True)]

    def forward(self) -> tuple[Tensor, Tensor]:
        """The output (B, H, Tq, Dv), and the thresholds (B, H, Tq) below the highest scores."""
        out = self.q.new_empty(*self.q.shape[:3], self.v.shape[3])
        top, t = self.thresholds(PASSES)
        self.run("entmax_forward", self.q, top, t, out)
        return out, t

    def backward(self, go: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of q, k and v, from that of the output and the thresholds."""
        top, _ = self.thresholds(0)
        mean = torch.empty_like(top)
        known = (go.contiguous(), top, t.contiguous(), mean)
        gq, gk, gv = (x.new_empty(x.shape) for x in (self.q, self.k, self.v))
        self.run("entmax_means", self.q, *known, backward=True)
        self.run("entmax_queries", self.q, *known, gq, backward=True)
        self.run("entmax_keys", self.k, *known, gk, gv, backward=True)
        return gq, gk, gv

    def run(self, kernel: str, owned: Tensor, *more: Tensor | int, backward: bool = False) -> None:
        self.tiles[backward].run_rows(kernel, owned, (*self.given, *more))

    def thresholds(self, passes: int) -> tuple[Tensor, Tensor]:
        """Each query's highest score and, after enough passes, the threshold below it."""
        top, t = (self.q.new_empty(self.q.shape[:3]) for _ in range(2))
        self.run("entmax_thresholds", self.q, passes, top, t)
        return top, t


def _tiles(q: Tensor, v: Tensor, backward: bool) -> Tiling:
    return without_cores("entmax", max(q.shape[-1], v.shape[-1]), q.dtype, backward)
