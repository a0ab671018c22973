"""Attention on a GPU: how attention.cu is called. `attention` asks it first; tests have the
processor run it by OpenCL (COMMUNITY_KERNELS=simt)."""

from __future__ import annotations

import torch
from torch import Tensor

from community.kernels.backend import simt
from community.kernels.build import SimtProgram

THREADS = 256
WIDTHS = (32, 64, 128, 256)  # that queries, keys and values are padded to, in shared memory
STORED = {torch.float32: 0, torch.bfloat16: 1}


def takes(q: Tensor, v: Tensor, mask: Tensor | None) -> bool:
    """Whether this is computed here: float32 and bfloat16 where there is a program for them."""
    if q.dtype not in STORED or max(q.shape[-1], v.shape[-1]) > WIDTHS[-1]:
        return False
    if mask is not None and mask.numel() >= 2**31:  # its strides are C ints
        return False
    return all(_program(q, v, backward) is not None for backward in (False, True))


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
    run = _program(q, v, False)
    assert run is not None
    rows, room = _tiles(_width(q, v), False)
    mask, by = strides(mask, q, k)
    out, lse = q.new_empty(*q.shape[:3], v.shape[3]), factor.new_empty(q.shape[:3])
    run(
        "attention_forward",
        *(q.contiguous(), k.contiguous(), v.contiguous(), factor.contiguous(), mask, lengths),
        *(out, lse),
        *_sizes(q, k, v, causal),
        *by,
        blocks=q.shape[0] * q.shape[1] * -(-q.shape[2] // rows),
        threads=THREADS,
        room=room,
    )
    return out, lse


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
    run = _program(q, v, True)
    assert run is not None
    rows, room = _tiles(_width(q, v), True)
    mask, by = strides(mask, q, k)
    go, q, k, v = (x.contiguous() for x in (go, q, k, v))
    given = (go, q, k, v, factor.contiguous(), mask, lengths, lse.contiguous(), delta.contiguous())
    gq = torch.empty_like(q, dtype=torch.float32)
    gk, gv = torch.empty_like(k), torch.empty_like(v)
    sizes = (*_sizes(q, k, v, causal), *by)
    blocks = [x.shape[0] * x.shape[1] * -(-x.shape[2] // rows) for x in (q, k)]
    block = {"threads": THREADS, "room": room}
    run("attention_queries", *given, gq, *sizes, blocks=blocks[0], **block)
    run("attention_keys", *given, gk, gv, *sizes, blocks=blocks[1], **block)
    return gq, gk, gv


def strides(mask: Tensor | None, q: Tensor, k: Tensor) -> tuple[Tensor | None, tuple[int, ...]]:
    """The mask with its last dimension in full, and its strides over rows, heads, queries."""
    if mask is None:
        return None, (0, 0, 0)
    mask = mask.view((1,) * (4 - mask.dim()) + tuple(mask.shape))
    mask = mask.expand(*mask.shape[:3], k.shape[2]).contiguous()
    full = mask.expand(*q.shape[:3], k.shape[2])
    return mask, full.stride()[:3]


def _program(q: Tensor, v: Tensor, backward: bool) -> SimtProgram | None:
    width = f"-DWIDTH={_width(q, v)}"
    return simt(
        "attention", q.device.type, width, f"-DSTORED={STORED[q.dtype]}", f"-DBACKWARD={backward:d}"
    )


def _width(q: Tensor, v: Tensor) -> int:
    return next(w for w in WIDTHS if w >= max(q.shape[-1], v.shape[-1]))


def _tiles(width: int, backward: bool) -> tuple[int, int]:
    """ROWS of attention.cu, and the floats that its tiles take."""
    rows = (16 if backward else 32) if width > 128 else 32 if width > 64 and backward else 64
    columns = min(rows, 32) if backward else rows
    sides = (rows + columns) * (width + 4)
    weights = rows * (columns + 4)
    return rows, 2 * (sides + weights) if backward else sides + weights


def _sizes(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[int, ...]:
    (_, h, tq, d), tk = q.shape, k.shape[2]
    return h, h // k.shape[1], tq, tk, d, v.shape[3], tk - tq + 1 if causal else tk
