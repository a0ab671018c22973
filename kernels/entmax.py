"""Sparsemax and 1.5-entmax, softmaxes that give zeros, and attention with them.

Martins and Astudillo 2016 (sparsemax), Peters, Niculae and Martins 2019 (entmax). Both are
max(0, ((a - 1) x - tau)) ^ (1 / (a - 1)) with a = 2 or 1.5 and the threshold tau that makes the
sum 1. `reference` finds tau by sorting; entmax.c (C or OpenCL) and entmax.cu (on a GPU) by a few
passes that are exact as well. Attention by entmax.c computes nothing for keys that are not chosen,
by entmax.cu it keeps no scores. Gradients need the result, or tau, alone. In float64 plain torch
computes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from community.kernels import entmax_gpu
from community.kernels.attention import added, factors, scores, shared
from community.kernels.attention_cpu import narrow, sizes_of, wide
from community.kernels.backend import kernels
from community.kernels.build import CORES, Program, lanes, round_up
from community.kernels.checks import check, checked, widened
from community.kernels.tracing import Operation, as_given, plain


def sparsemax(x: Tensor) -> Tensor:
    """The point of the simplex nearest to x, over the last dimension; differentiable.

    Minus infinity is never chosen; a row of nothing else gives zeros. Raises ValueError.
    """
    return _entmax(x, 2.0)


def entmax15(x: Tensor) -> Tensor:
    """1.5-entmax over the last dimension: between softmax and sparsemax. As `sparsemax`."""
    return _entmax(x, 1.5)


def reference(x: Tensor, alpha: float) -> Tensor:
    """The same, by autograd through the sorting; alpha is 1.5 or 2."""
    _check(x, alpha)
    shifted = _shifted(x, alpha)
    return _weights(shifted, _threshold(shifted, alpha), alpha)


@as_given
def entmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    alpha: float = 1.5,
    causal: bool = False,
    scale: float | None = None,
    temperature: float | Tensor | None = None,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """entmax(q k^T scale / temperature + mask) v: most weights are exactly zero.

    Shapes, options and errors are those of `community.kernels.attention.attention`; alpha is 1.5
    or 2. A query that sees no key gives zeros.
    """
    check(q, k, v, scale, temperature, lengths, mask)
    _check_alpha(alpha)
    inputs = [widened(x) for x in (q, k, v)]
    by = factors(q, scale, temperature)
    if mask is not None and mask.requires_grad:
        weights = _entmax(scores(inputs[0], inputs[1], by, mask, lengths, causal), alpha)
        return (weights @ shared(inputs[2], q)).to(q.dtype)
    if mask is not None:
        mask = added(mask, inputs[0].dtype)
    if lengths is not None:
        lengths = lengths.to(torch.int32).contiguous()
    out, _ = ATTENTION.of(*inputs, by)(*inputs, by, mask, lengths, causal, alpha)
    return out.to(q.dtype)


def _entmax(x: Tensor, alpha: float) -> Tensor:
    _check(x, alpha)
    floats = widened(x)
    return ROWS.of(floats)(floats, alpha).to(x.dtype)


def _check(x: Tensor, alpha: float) -> None:
    _check_alpha(alpha)
    if not x.is_floating_point():
        raise ValueError(f"entmax needs floating numbers, not {x.dtype}")
    if not x.dim() or not x.shape[-1]:
        raise ValueError(f"entmax needs at least one number in a row; got {tuple(x.shape)}")


def _check_alpha(alpha: float) -> None:
    if alpha != 1.5 and alpha != 2.0:  # a model compiled for any sizes finds no number in a tuple
        raise ValueError(f"alpha is {alpha}, and must be 1.5 or 2")


# -- rows ------------------------------------------------------------------------------


def _computed(x: Tensor, alpha: float) -> Tensor:
    found = entmax_gpu.rows(x, alpha)
    if found is not None:
        return found
    run = _program(x)
    if run is None or not x.numel() or x.numel() >= 2**31:
        return reference(x, alpha).contiguous()
    n = x.shape[-1]
    rows = x.numel() // n
    workers = min(CORES, rows)
    y, room = x.new_empty(x.shape), x.new_empty(workers * (n + 2 * lanes()))
    run("entmax_rows", x.contiguous(), y, room, rows, n, float(alpha), items=workers)
    return y


def _program(x: Tensor, mask: Tensor | None = None) -> Program | None:
    """entmax.c where it computes: float32 on the processor, with a backend that works."""
    if mask is not None and mask.numel() >= 2**31:  # its strides are C ints
        return None
    return kernels("entmax") if x.dtype == torch.float32 and x.device.type == "cpu" else None


_rows = torch.library.custom_op("community::entmax", _computed, mutates_args=())


@_rows.register_fake
def _(x: Tensor, alpha: float) -> Tensor:
    return x.new_empty(x.shape)


def _gradient(go: Tensor, y: Tensor, alpha: float) -> Tensor:
    slope = (y > 0).to(y.dtype) if alpha == 2.0 else y.sqrt()
    total = slope.sum(-1, keepdim=True).clamp(min=torch.finfo(y.dtype).tiny)
    return (slope * (go - (go * slope).sum(-1, keepdim=True) / total)).contiguous()


_rows_backward = torch.library.custom_op("community::entmax_backward", _gradient, mutates_args=())


@_rows_backward.register_fake
def _(go: Tensor, y: Tensor, alpha: float) -> Tensor:
    return y.new_empty(y.shape)


def _keep(ctx, inputs: tuple[Tensor, float], output: Tensor) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(output)
    ctx.alpha = inputs[1]


def _differentiate(ctx, go: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
    (y,) = ctx.saved_tensors
    # a graph of gradients is not written for: the custom op says so
    back: Any = _gradient if plain(go, y) else _rows_backward
    return back(go, y, ctx.alpha), None


ROWS = Operation(_rows, _computed, _keep, _differentiate)


# -- attention -------------------------------------------------------------------------


def _attended(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    factor: Tensor,
    mask: Tensor | None,
    lengths: Tensor | None,
    causal: bool,
    alpha: float,
) -> tuple[Tensor, Tensor]:
    """(B, H, Tq, Dv), and the thresholds (B, H, Tq) of the scores below the highest."""
    if entmax_gpu.takes(q, v, mask):
        return entmax_gpu.Attention(q, k, v, factor, mask, lengths, causal, alpha).forward()
    run = _program(q, mask)
    if run is None:
        shifted = _shifted(scores(q, k, factor, mask, lengths, causal), alpha)
        t = _threshold(shifted, alpha)
        return _weights(shifted, t, alpha) @ shared(v, q), t.squeeze(-1)
    b, h, tq, _ = q.shape
    queries, keys, values = wide(q), wide(k), wide(v)
    out, t = q.new_empty(b, h, tq, values.shape[-1]), q.new_empty(b, h, tq)
    mask, sizes = sizes_of(queries, keys, values, mask, causal)
    workers = min(CORES, b * h)
    tensors = (queries, keys, values, factor.contiguous(), mask, lengths, out, t)
    run("entmax_forward", *tensors, _room(keys, workers), *sizes, float(alpha), items=workers)
    return narrow(out, v), t


_attention = torch.library.custom_op(
    "community::entmax_attention", checked(_attended), mutates_args=()
)


@_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_rest: object) -> tuple[Tensor, Tensor]:
    return q.new_empty(*q.shape[:3], v.shape[3]), q.new_empty(q.shape[:3])


def _attention_gradients(
    go: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    factor: Tensor,
    mask: Tensor | None,
    lengths: Tensor | None,
    causal: bool,
    alpha: float,
    t: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    if entmax_gpu.takes(q, v, mask):
        asked = entmax_gpu.Attention(q, k, v, factor, mask, lengths, causal, alpha)
        return asked.backward(go, t)
    run = _program(q, mask)
    if run is None:
        shifted = _shifted(scores(q, k, factor, mask, lengths, causal), alpha)
        p = _weights(shifted, t.unsqueeze(-1), alpha)
        ds = _gradient(go @ shared(v, q).mT, p, alpha) * factor.view(-1, 1, 1)
        gk, gv = (x.mT @ y for x, y in ((ds, q), (p, go)))
        gk, gv = (g.unflatten(1, (k.shape[1], -1)).sum(2) for g in (gk, gv))
        return ds @ shared(k, q), gk, gv
    queries, keys, values = wide(q), wide(k), wide(v)
    gq, gk, gv = (torch.zeros_like(x) for x in (queries, keys, values))
    mask, sizes = sizes_of(queries, keys, values, mask, causal)
    workers = min(CORES, k.shape[0] * k.shape[1])
    run(
        "entmax_backward",
        *(wide(go), queries, keys, values, factor.contiguous(), mask, lengths, t.contiguous()),
        *(gq, gk, gv, _room(keys, workers)),
        *(*sizes, float(alpha)),
        items=workers,
    )
    return narrow(gq, q), narrow(gk, k), narrow(gv, v)


_attention_backward = torch.library.custom_op(
    "community::entmax_attention_backward", _attention_gradients, mutates_args=()
)


@_attention_backward.register_fake
def _(
    _go: Tensor, q: Tensor, k: Tensor, v: Tensor, *_rest: object
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep_attention(ctx, inputs: tuple, output: tuple) -> None:  # type: ignore[no-untyped-def, type-arg]
    *tensors, ctx.causal, ctx.alpha = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.mark_non_differentiable(output[1])


def _differentiate_attention(ctx, go: Tensor, _gt: Tensor) -> tuple:  # type: ignore[no-untyped-def, type-arg]
    *tensors, t = ctx.saved_tensors
    given = [x for x in tensors if x is not None]
    back: Any = _attention_gradients if plain(go, *given) else _attention_backward
    gq, gk, gv = back(go, *tensors, ctx.causal, ctx.alpha, t)
    q, factor, gf = tensors[0], tensors[3], None
    if ctx.needs_input_grad[3]:  # scores are q factor k: what q's gradient says, factor's repeats
        gf = (q * gq).sum((0, 2, 3)) / factor
    return gq, gk, gv, gf, None, None, None, None


ATTENTION = Operation(_attention, _attended, _keep_attention, _differentiate_attention)


def _room(keys: Tensor, workers: int) -> Tensor:
    """As ROOM in entmax.c."""
    columns, (length, width) = 2 * lanes(), keys.shape[-2:]
    padded = round_up(length, columns)
    rows = 8 if lanes() == 16 else 6  # ROWS in tiles.h
    return keys.new_empty(workers * ((rows + 3) * (padded + columns) + padded * width))


# -- in torch --------------------------------------------------------------------------


def _weights(shifted: Tensor, t: Tensor, alpha: float) -> Tensor:
    kept = (shifted - t).clamp(min=0)
    return kept if alpha == 2.0 else kept.square()


def _threshold(shifted: Tensor, alpha: float) -> Tensor:
    """That of the largest support, by sorting; 0 where all of a row is minus infinity."""
    down = shifted.sort(-1, descending=True).values
    taus = _taus(down, alpha)
    support = (taus <= down).sum(-1, keepdim=True).clamp(min=1)
    return torch.where(down[..., :1] <= -2.0, 0.0, taus.gather(-1, support - 1))


def _taus(down: Tensor, alpha: float) -> Tensor:
    """The threshold of each support: the highest number, the two highest, and so on."""
    n = torch.arange(1, down.shape[-1] + 1, device=down.device, dtype=down.dtype)
    if alpha == 2.0:
        return (down.cumsum(-1) - 1) / n
    mean = down.cumsum(-1) / n
    spread = n * (down.square().cumsum(-1) / n - mean.square())
    inside = (1 - spread) / n
    positive = inside > 0
    return mean - torch.where(positive, torch.where(positive, inside, 1.0).sqrt(), 0.0)


def _shifted(x: Tensor, alpha: float) -> Tensor:
    """(alpha - 1) x with a highest number of 0. Below -1 nothing is chosen, so that minus
    infinity may be any such number; in a row of nothing else all are."""
    top = x.detach().amax(-1, keepdim=True)
    top = torch.where(top == -math.inf, 0.0, top)
    return ((x - top) * (alpha - 1)).clamp(min=-2.0)
