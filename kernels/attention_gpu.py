"""Attention on a GPU: how attention.cu and attention_tensor.cu are called.

`attention` asks it first. Tests have the processor run attention.cu by OpenCL
(COMMUNITY_KERNELS=simt), and both in an emulator.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from community.kernels.backend import simt
from community.kernels.build import Argument, SimtProgram
from community.kernels.cuda import PLENTY

WIDTHS = (32, 64, 128, 256)  # that attention.cu pads queries, keys and values to, in shared memory
TENSOR_WIDTHS = (64, 128)  # of attention_tensor.cu
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
        if device.type == "cuda":
            found = torch.cuda.get_device_properties(device)
            if 4 * self.room > getattr(found, "shared_memory_per_block_optin", PLENTY):
                return None
        return simt(self.source, device.type, *self.flags)

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
    return all(tiling(q, v, backward).program(q.device) is not None for backward in (False, True))


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
    tiles = tiling(q, v, False)
    given = tiles.held(q, k, v)
    out = given[0].new_empty(*q.shape[:3], v.shape[3])
    lse = factor.new_empty(q.shape[:3])
    mask, by = strides(mask, q, k)
    more = (factor.contiguous(), mask, lengths, out, lse, *_sizes(q, k, v, causal, tiles), *by)
    _run("attention_forward", tiles, q, (*given, *more))
    return out.to(q.dtype), lse


def backward(
    go: Tensor,
    delta: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    factor: Tensor,
    mask: Tensor | None,
    lengths: Tensor | None,
    causal: bool,
    lse: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, in float32, and of k and v in theirs; delta is sum(go * out) - glse."""
    tiles = tiling(q, v, True)
    given = tiles.held(go, q, k, v)
    mask, by = strides(mask, q, k)
    more = (factor.contiguous(), mask, lengths, lse.contiguous(), delta.contiguous())
    sizes = (*_sizes(q, k, v, causal, tiles), *by)
    gq = torch.empty_like(given[1], dtype=torch.float32)
    gk, gv = torch.empty_like(given[2]), torch.empty_like(given[3])
    _run("attention_queries", tiles, q, (*given, *more, gq, *sizes))
    _run("attention_keys", tiles, k, (*given, *more, gk, gv, *sizes))
    return gq, gk.to(k.dtype), gv.to(v.dtype)


def strides(mask: Tensor | None, q: Tensor, k: Tensor) -> tuple[Tensor | None, tuple[int, ...]]:
    """The mask with its last dimension in full, and its strides over rows, heads, queries."""
    if mask is None:
        return None, (0, 0, 0)
    mask = mask.view((1,) * (4 - mask.dim()) + tuple(mask.shape))
    mask = mask.expand(*mask.shape[:3], k.shape[2]).contiguous()
    full = mask.expand(*q.shape[:3], k.shape[2])
    return mask, full.stride()[:3]


def tiling(q: Tensor, v: Tensor, backward: bool) -> Tiling:
    """Tensor cores for half precision where they fit, else attention.cu, float16 as float32."""
    d, dv = q.shape[-1], v.shape[-1]
    if q.dtype != torch.float32 and d == dv and d in TENSOR_WIDTHS and tensor_cores(q.device):
        rows = 64 if backward else 128
        halves = (2 * rows + 4 * 64 if backward else rows + 2 * 64) * d
        room = halves // 2 + 4 * 64 * backward
        flags = _flags(d, q.dtype, backward)
        return Tiling("attention_tensor", flags, q.dtype, 128, rows, room)
    width = next(w for w in WIDTHS if w >= max(d, dv))
    stored = torch.float32 if q.dtype == torch.float16 else q.dtype
    rows = (16 if backward else 32) if width > 128 else 32 if width > 64 and backward else 64
    columns = min(rows, 32) if backward else rows
    room = (1 + backward) * ((rows + columns) * (width + 4) + rows * (columns + 4))
    return Tiling("attention", _flags(width, stored, backward), stored, 256, rows, room)


def tensor_cores(device: torch.device) -> bool:
    """Whether the GPU has those that attention_tensor.cu needs: Ampere or later."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def _flags(width: int, stored: torch.dtype, backward: bool) -> tuple[str, ...]:
    return f"-DWIDTH={width}", f"-DSTORED={STORED[stored]}", f"-DBACKWARD={backward:d}"


def _run(kernel: str, tiles: Tiling, x: Tensor, arguments: tuple[Argument, ...]) -> None:
    """Blocks that own the rows of x (B, H, T, D)."""
    run = tiles.program(x.device)
    assert run is not None
    blocks = x.shape[0] * x.shape[1] * -(-x.shape[2] // tiles.rows)
    run(kernel, *arguments, blocks=blocks, threads=tiles.threads, room=tiles.room)


def _sizes(q: Tensor, k: Tensor, v: Tensor, causal: bool, tiles: Tiling) -> tuple[int, ...]:
    (_, h, tq, d), tk = q.shape, k.shape[2]
    widths = () if tiles.source == "attention_tensor" else (d, v.shape[3])
    return h, h // k.shape[1], tq, tk, *widths, tk - tq + 1 if causal else tk
