"""Attention on the processor: how attention.c is called, which `attention` asks after the GPU."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from community.kernels.attention_gpu import strides
from community.kernels.backend import kernels
from community.kernels.build import lanes

BQ, BK = 96, 64  # as in attention.c
_CORES = os.cpu_count() or 1  # asked once: every answer reads a file
_ROOM = 2 * BQ * BK + 2 * BQ


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
    """The output and the logsumexp, all in float32. Shapes as in `attention`."""
    run = kernels("attention")
    assert run is not None
    (b, h, tq, _), hk, tk = q.shape, k.shape[1], k.shape[2]
    queries, keys, values = _wide(q), _wide(k), _wide(v)
    d, dv = queries.shape[-1], values.shape[-1]
    out, lse = queries.new_empty(b, h, tq, dv), queries.new_empty(b, h, tq)
    workers = max(1, min(_CORES, b * h))
    mask, by = strides(mask, q, k)
    run(
        "attention_forward",
        *(queries, _packed(keys), values, factor.contiguous(), mask, lengths, out, lse),
        *(queries.new_empty(workers * _ROOM), b, h, h // hk, tq, tk, d, dv),
        *(tk - tq + 1 if causal else tk, *by),
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, all in float32; delta is sum(go * out) - glse."""
    run = kernels("attention")
    assert run is not None
    (b, h, tq, _), hk, tk = q.shape, k.shape[1], k.shape[2]
    queries, keys, values, wide_go = _wide(q), _wide(k), _wide(v), _wide(go)
    d, dv = queries.shape[-1], values.shape[-1]
    grads = [torch.zeros_like(x) for x in (queries, keys, values)]
    workers = max(1, min(_CORES, b * hk))
    mask, by = strides(mask, q, k)
    run(
        "attention_backward",
        *(wide_go, queries, keys, _packed(keys), _packed(values), factor.contiguous()),
        *(mask, lengths, lse.contiguous(), delta, *grads, queries.new_empty(workers * _ROOM)),
        *(b, h, h // hk, tq, tk, d, dv, tk - tq + 1 if causal else tk, *by),
        items=workers,
    )
    gq, gk, gv = (
        g if g.shape == x.shape else g[..., : x.shape[-1]].contiguous()
        for g, x in zip(grads, (q, k, v), strict=True)
    )
    return gq, gk, gv


def _wide(x: Tensor) -> Tensor:
    """Contiguous, filled with zeros up to a width of whole register blocks."""
    missing = -x.shape[-1] % (2 * lanes())
    return torch.nn.functional.pad(x, (0, missing)) if missing else x.contiguous()


def _packed(x: Tensor) -> Tensor:
    b, h, t, d = x.shape
    columns = 2 * lanes()
    packed = x.new_empty(b, h, -(-t // columns) * columns, d)
    run = kernels("attention")
    assert run is not None
    run("attention_pack", x, packed, t, d, items=b * h)
    return packed
