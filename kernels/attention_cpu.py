"""Attention on the processor: how attention.c is called, which `attention` asks after the GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from community.kernels.attention_gpu import strides
from community.kernels.backend import kernels
from community.kernels.build import CORES, lanes, round_up

BQ, BK = 48, 256  # as in attention.c
FEW = 4  # queries that read the keys as they are, also bfloat16; as in attention.c


def takes(q: Tensor, mask: Tensor | None) -> bool:
    """Whether attention.c computes this: on the processor, with a backend that works."""
    if q.dtype == torch.float64 or q.device.type != "cpu":
        return False
    if mask is not None and mask.numel() >= 2**31:  # its strides are C ints
        return False
    return kernels("attention") is not None


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    factor: Tensor,
    mask: Tensor | None,
    lengths: Tensor | None,
    causal: bool,
) -> tuple[Tensor, Tensor]:
    """The output and the logsumexp in float32. Shapes as in `attention`, any dtype but float64."""
    run = kernels("attention")
    assert run is not None
    b, h, tq, _ = q.shape
    as_is = k.dtype == torch.bfloat16 and tq <= FEW
    queries = wide(q.float())
    keys, values = (wide(x if as_is else x.float()) for x in (k, v))
    out, lse = queries.new_empty(b, h, tq, values.shape[-1]), queries.new_empty(b, h, tq)
    workers = min(CORES, b * k.shape[1])
    mask, sizes = sizes_of(queries, keys, values, mask, causal)
    run(
        "attention_forward",
        *(queries, keys, values, factor.contiguous(), mask, lengths, out, lse),
        _room(keys, values, workers),
        *(*sizes, int(as_is)),
        items=workers,
    )
    return narrow(out, v), lse


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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, and moments as in attention.c, all in float32; delta is
    sum(go * out) - glse."""
    run = kernels("attention")
    assert run is not None
    queries, keys, values = wide(q), wide(k), wide(v)
    gq, gk, gv = (torch.zeros_like(x) for x in (queries, keys, values))
    moments = lse.new_zeros(*q.shape[:3], 3)
    workers = min(CORES, k.shape[0] * k.shape[1])
    mask, sizes = sizes_of(queries, keys, values, mask, causal)
    run(
        "attention_backward",
        *(wide(go), queries, keys, values, factor.contiguous()),
        *(mask, lengths, lse.contiguous(), delta, gq, gk, gv, moments),
        _room(keys, values, workers),
        *sizes,
        items=workers,
    )
    return narrow(gq, q), narrow(gk, k), narrow(gv, v), moments


def wide(x: Tensor) -> Tensor:
    """Contiguous, filled with zeros up to a width of whole register blocks."""
    missing = -x.shape[-1] % (2 * lanes())
    return torch.nn.functional.pad(x, (0, missing)) if missing else x.contiguous()


def narrow(x: Tensor, like: Tensor) -> Tensor:
    """Without what `wide` filled up, contiguous."""
    width = like.shape[-1]
    return x if x.shape[-1] == width else x[..., :width].contiguous()


def sizes_of(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool
) -> tuple[Tensor | None, tuple[int, ...]]:
    """The mask, and the numbers that attention.c and entmax.c take."""
    (b, h, tq, d), hk, tk = q.shape, k.shape[1], k.shape[2]
    mask, by = strides(mask, q, k)
    return mask, (b, h, h // hk, tq, tk, d, v.shape[-1], tk - tq + 1 if causal else tk, *by)


def _room(keys: Tensor, values: Tensor, workers: int) -> Tensor:
    """As ROOM in attention.c."""
    padded = round_up(keys.shape[2], 2 * lanes())
    width = keys.shape[3] + values.shape[3] + 1
    count = workers * (2 * BQ * BK + 2 * BQ + padded * width)
    return keys.new_empty(count, dtype=torch.float32)
