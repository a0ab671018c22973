"""Attention on the processor: how attention.c is called, which `attention` asks after the GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from community.kernels.attention_gpu import strides
from community.kernels.backend import kernels
from community.kernels.build import CORES, lanes

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
    (b, h, tq, _), hk, tk = q.shape, k.shape[1], k.shape[2]
    as_is = k.dtype == torch.bfloat16 and tq <= FEW
    queries = _wide(q.float())
    keys, values = (_wide(x if as_is else x.float()) for x in (k, v))
    d, dv = queries.shape[-1], values.shape[-1]
    out, lse = queries.new_empty(b, h, tq, dv), queries.new_empty(b, h, tq)
    workers = min(CORES, b * hk)
    mask, by = strides(mask, q, k)
    run(
        "attention_forward",
        *(queries, keys, values, factor.contiguous(), mask, lengths, out, lse),
        *(_room(keys, values, workers), b, h, h // hk, tq, tk, d, dv),
        *(tk - tq + 1 if causal else tk, *by, int(as_is)),
        items=workers,
    )
    return out if dv == v.shape[-1] else out[..., : v.shape[-1]].contiguous(), lse


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
    (b, h, tq, _), hk, tk = q.shape, k.shape[1], k.shape[2]
    queries, keys, values, wide_go = _wide(q), _wide(k), _wide(v), _wide(go)
    d, dv = queries.shape[-1], values.shape[-1]
    grads = [torch.zeros_like(x) for x in (queries, keys, values)]
    moments = lse.new_zeros(b, h, tq, 3)
    workers = min(CORES, b * hk)
    mask, by = strides(mask, q, k)
    run(
        "attention_backward",
        *(wide_go, queries, keys, values, factor.contiguous()),
        *(mask, lengths, lse.contiguous(), delta, *grads, moments),
        _room(keys, values, workers),
        *(b, h, h // hk, tq, tk, d, dv, tk - tq + 1 if causal else tk, *by),
        items=workers,
    )
    gq, gk, gv = (
        g if g.shape == x.shape else g[..., : x.shape[-1]].contiguous()
        for g, x in zip(grads, (q, k, v), strict=True)
    )
    return gq, gk, gv, moments


def _wide(x: Tensor) -> Tensor:
    """Contiguous, filled with zeros up to a width of whole register blocks."""
    missing = -x.shape[-1] % (2 * lanes())
    return torch.nn.functional.pad(x, (0, missing)) if missing else x.contiguous()


def _room(keys: Tensor, values: Tensor, workers: int) -> Tensor:
    """As ROOM in attention.c."""
    padded = -(-keys.shape[2] // (2 * lanes())) * 2 * lanes()
    width = keys.shape[3] + values.shape[3] + 1
    count = workers * (2 * BQ * BK + 2 * BQ + padded * width)
    return keys.new_empty(count, dtype=torch.float32)
