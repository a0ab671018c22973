"""Attention on a GPU: how attention.cu, attention_tensor.cu and attention_hopper.cu are called.

`attention` asks it first. Tests have the processor run attention.cu by OpenCL
(COMMUNITY_KERNELS=simt), and all in an emulator.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from community.kernels.backend import simt
from community.kernels.build import Argument, SimtProgram
from community.kernels.cuda import fits

WIDTHS = (32, 64, 128, 256)  # that attention.cu pads queries, keys and values to, in shared memory
TENSOR_WIDTHS = (64, 128)  # of attention_tensor.cu and attention_hopper.cu
# of attention_hopper.cu, by width and direction: groups of four warps in a block, columns of a tile
HOPPER = {(64, False): (2, 64), (128, False): (2, 128), (64, True): (2, 64), (128, True): (2, 64)}
STORED = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


@dataclass(frozen=True)
class Tiling:
    """Which source computes, and how its blocks are laid out."""

    source: str
    flags: tuple[str, ...]
    stored: torch.dtype  # of what it reads
    threads: int
    rows: int  # that a block owns
    room: int  # floats of shared memory

    def program(self, device: torch.device) -> SimtProgram | None:
        return simt(self.source, device.type, *self.flags)

    def run(
        self,
        kernel: str,
        device: torch.device,
        arguments: tuple[Argument, ...],
        blocks: int,
        room: int = 0,
    ) -> None:
        run = self.program(device)
        assert run is not None
        run(kernel, *arguments, blocks=blocks, threads=self.threads, room=room)

    def run_rows(self, kernel: str, x: Tensor, arguments: tuple[Argument, ...]) -> None:
        """Blocks that own the rows of x (B, H, T, D)."""
        blocks = x.shape[0] * x.shape[1] * -(-x.shape[2] // self.rows)
        self.run(kernel, x.device, arguments, blocks, self.room)

    def held(self, *inputs: Tensor) -> list[Tensor]:
        """What the kernels read: in one piece that begins at a multiple of 16 bytes."""
        held = [x.to(self.stored).contiguous() for x in inputs]
        return [x.clone() if x.data_ptr() % 16 else x for x in held]


def takes(q: Tensor, v: Tensor, mask: Tensor | None) -> bool:
    """Whether this is computed here: widths up to 256, and a program for it."""
    if q.dtype not in STORED or max(q.shape[-1], v.shape[-1]) > WIDTHS[-1]:
        return False
    if mask is not None and mask.numel() >= 2**31:  # its strides are C ints
        return False
    for backward in (False, True):
        tiles = tiling(q, v, backward, mask is not None)
        if tiles.program(q.device) is None or not fits(tiles.room, q.device):
            return False
    return True


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    factor: Tensor,
    mask: Tensor | None,
    lengths: Tensor | None,
    causal: bool,
) -> tuple[Tensor, Tensor]:
    """The output in q's dtype, the logsumexp in float32. Shapes as in `attention`."""
    tiles = tiling(q, v, False, mask is not None)
    given = tiles.held(q, k, v)
    out = given[0].new_empty(*q.shape[:3], v.shape[3])
    lse = factor.new_empty(q.shape[:3])
    mask, by = strides(mask, q, k)
    more = (factor.contiguous(), mask, lengths, out, lse, *_sizes(q, k, v, causal, tiles), *by)
    tiles.run_rows("attention_forward", q, (*given, *more))
    return out.to(q.dtype), lse


def backward(
    go: Tensor,
    glse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    factor: Tensor,
    mask: Tensor | None,
    lengths: Tensor | None,
    causal: bool,
    out: Tensor,
    lse: Tensor,
    wanted: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k and v in their dtype and, if `wanted`, each query's sum of q times its
    gradient, (B, H, Tq) in float32, else a tensor of nothing."""
    tiles = tiling(q, v, True, mask is not None)
    given, glse = tiles.held(go, q, k, v), glse.contiguous()
    cores = tiles.source != "attention"
    if cores:
        delta = torch.empty_like(glse)
        rows, each = glse.numel(), tiles.threads * 8 // q.shape[-1]
        both = (given[0], *tiles.held(out))
        tiles.run("attention_delta", q.device, (*both, glse, delta, rows), -(-rows // each))
    else:
        delta = (go.float() * out.float()).sum(-1) - glse
    mask, by = strides(mask, q, k)
    more = (factor.contiguous(), mask, lengths, lse.contiguous(), delta)
    sizes = (*_sizes(q, k, v, causal, tiles), *by)
    gq = torch.empty_like(given[1], dtype=None if cores else torch.float32)
    gk, gv = torch.empty_like(given[2]), torch.empty_like(given[3])
    dots = lse.new_empty(lse.shape if wanted else 0)
    if cores:
        to = (gq, dots if wanted else None)
        tiles.run_rows("attention_queries", q, (*given, *more, *to, *sizes))
    else:
        moments = lse.new_empty(*lse.shape, 3)
        tiles.run_rows("attention_queries", q, (*given, *more, gq, moments, *sizes))
        dots = dots_of(moments, glse, factor) if wanted else dots
    tiles.run_rows("attention_keys", k, (*given, *more, gk, gv, *sizes))
    return gq.to(q.dtype), gk.to(k.dtype), gv.to(v.dtype), dots


def dots_of(moments: Tensor, glse: Tensor, factor: Tensor) -> Tensor:
    """(B, H, Tq): every query's sum of its scores (without factor or mask) times their gradients
    ds, which is q times its gradient.

    moments (B, H, Tq, 3): the sums of ds s, ds and p s. The gradients of a query's scores add up
    to glse factor. What rounding adds to that would be multiplied by what its scores have in
    common, and is taken away at their mean.
    """
    both, slope, level = moments.unbind(-1)
    return both - (slope - glse * factor.view(-1, 1)) * level


def strides(mask: Tensor | None, q: Tensor, k: Tensor) -> tuple[Tensor | None, tuple[int, ...]]:
    """The mask with its last dimension in full, and its strides over rows, heads, queries."""
    if mask is None:
        return None, (0, 0, 0)
    mask = mask.view((1,) * (4 - mask.dim()) + tuple(mask.shape))
    mask = mask.expand(*mask.shape[:3], k.shape[2]).contiguous()
    full = mask.expand(*q.shape[:3], k.shape[2])
    return mask, full.stride()[:3]


def tiling(q: Tensor, v: Tensor, backward: bool, masked: bool) -> Tiling:
    """Tensor cores for half precision where they fit, else attention.cu, float16 as float32."""
    d, dv = q.shape[-1], v.shape[-1]
    if q.dtype != torch.float32 and d == dv and d in TENSOR_WIDTHS:
        cores = tensor_cores(q.device)
        if cores:
            return (_hopper if cores >= (9, 0) else _tensor)(d, q.dtype, backward, masked)
    stored = torch.float32 if q.dtype == torch.float16 else q.dtype
    return without_cores("attention", max(d, dv), stored, backward)


@cache
def without_cores(source: str, widest: int, stored: torch.dtype, backward: bool) -> Tiling:
    """That of a source with simt_tiles.h, for queries, keys and values of a width up to 256."""
    width = next(w for w in WIDTHS if w >= widest)
    rows = (16 if backward else 32) if width > 128 else 32 if width > 64 and backward else 64
    columns = min(rows, 32) if backward else rows
    room = (1 + backward) * ((rows + columns) * (width + 4) + rows * (columns + 4))
    return Tiling(source, _flags(width, stored, backward), stored, 256, rows, room)


@cache
def _tensor(d: int, stored: torch.dtype, backward: bool, _masked: bool) -> Tiling:
    rows = 64 if backward else 128
    halves = (2 * rows + 4 * 64 if backward else rows + 2 * 64) * d
    room = halves // 2 + 4 * 64 * backward
    return Tiling("attention_tensor", _flags(d, stored, backward), stored, 128, rows, room)


@cache
def _hopper(d: int, stored: torch.dtype, backward: bool, masked: bool) -> Tiling:
    groups, columns = HOPPER[d, backward]
    rows = 64 * groups
    halves = (2 * rows + 6 * columns if backward else rows + 4 * columns) * d
    room = halves // 2 + 6 * columns * backward
    flags = _flags(d, stored, backward)
    flags = (*flags, f"-DGROUPS={groups}", f"-DCOLS={columns}", f"-DMASKED={masked:d}")
    return Tiling("attention_hopper", flags, stored, 128 * groups, rows, room)


def tensor_cores(device: torch.device) -> tuple[int, int] | None:
    """The newest tensor cores that are written for and that the GPU has: those of compute
    capability (8, 0), which later ones have too, or (9, 0), which no other has."""
    if device.type != "cuda":
        return None
    found = torch.cuda.get_device_capability(device)
    return found if found == (9, 0) else (8, 0) if found >= (8, 0) else None


def _flags(width: int, stored: torch.dtype, backward: bool) -> tuple[str, ...]:
    return f"-DWIDTH={width}", f"-DSTORED={STORED[stored]}", f"-DBACKWARD={backward:d}"


def _sizes(q: Tensor, k: Tensor, v: Tensor, causal: bool, tiles: Tiling) -> tuple[int, ...]:
    (_, h, tq, d), tk = q.shape, k.shape[2]
    widths = (d, v.shape[3]) if tiles.source == "attention" else ()
    return h, h // k.shape[1], tq, tk, *widths, tk - tq + 1 if causal else tk
