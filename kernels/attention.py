"""Attention with a temperature per head, softmax1, ragged batches and the logsumexp.

`attention` computes with attention.c on the processor (C or OpenCL), with attention.cu on a GPU,
and in plain torch, as `reference` does, everywhere else and in float64.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from community.kernels import attention_cpu, attention_gpu
from community.kernels.checks import HALVES, check, checked, widened
from community.kernels.tracing import Operation, as_given, traced

_HIDING = -1e4  # what lies below is no score, but a number that hides keys


@as_given
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    temperature: float | Tensor | None = None,
    sink: bool = False,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """softmax(q k^T scale / temperature + mask) v, and the logsumexp of the scores.

    q is (B, H, Tq, D), k (B, Hkv, Tk, D) and v (B, Hkv, Tk, Dv); H is a multiple of Hkv, and
    neighbouring heads share keys. Returns (B, H, Tq, Dv) in q's dtype and (B, H, Tq) in float32
    (float64 for float64); both are differentiable, half precision is computed in float32.

    causal: query i sees the keys up to i + Tk - Tq, so the last query sees all (SDPA's
        `is_causal` aligns at the first key instead; the two agree where Tq = Tk).
    scale: 1 / sqrt(D) without.
    temperature: one number or (H,), differentiable; below 1 sharper, above 1 more relaxed.
    sink: softmax1, one more score of zero with no value: a head may attend to nothing. The
        logsumexp is the one without the sink.
    lengths: (B,), the number of keys that each row has; those after are not seen.
    mask: broadcastable to (B, H, Tq, Tk); bool (True is seen) or added to the scores. One that
        requires a gradient is computed by `reference`.

    A query that sees no key gives zeros and a logsumexp of minus infinity. Raises ValueError for
    shapes, dtypes, devices and numbers that do not fit.
    """
    check(q, k, v, scale, temperature, lengths, mask)
    if mask is not None and mask.requires_grad:
        options = {"causal": causal, "scale": scale, "temperature": temperature, "sink": sink}
        return reference(q, k, v, **options, lengths=lengths, mask=mask)  # type: ignore[arg-type]
    by = factors(q, scale, temperature)
    if mask is not None:
        mask = added(mask, by.dtype)
    if lengths is not None:
        lengths = lengths.to(torch.int32).contiguous()
    out, lse = ATTENTION.of(q, k, v, by)(q, k, v, by, mask, lengths, causal)
    if sink:
        out = (out * torch.sigmoid(lse).unsqueeze(-1)).to(q.dtype)
    return out, lse


@as_given
def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    temperature: float | Tensor | None = None,
    sink: bool = False,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """`attention` in plain torch, for any device and dtype; keeps all scores in memory.

    dropout: the probability with which each weight is dropped, as in training.
    """
    check(q, k, v, scale, temperature, lengths, mask)
    wide = [widened(x) for x in (q, k, v)]
    s = scores(wide[0], wide[1], factors(q, scale, temperature), mask, lengths, causal)
    top = s.detach().amax(-1, keepdim=True).clamp(min=torch.finfo(s.dtype).min)
    weights = torch.exp(s - top)
    total = weights.sum(-1, keepdim=True)
    seen = total != 0  # NaN stays what it is
    lse = torch.where(seen, top + torch.where(seen, total, 1).log(), -math.inf)
    weights = weights / torch.where(seen, total, 1)
    if sink:
        weights = weights * torch.sigmoid(lse)
    if dropout:
        weights = torch.dropout(weights, dropout, True)
    return (weights @ shared(wide[2], q)).to(q.dtype), lse.squeeze(-1)


def scores(
    q: Tensor,
    k: Tensor,
    factor: Tensor,
    mask: Tensor | None,
    lengths: Tensor | None,
    causal: bool,
) -> Tensor:
    """(B, H, Tq, Tk): q k^T factor + mask, minus infinity where a key is not seen."""
    s = (q * factor.view(-1, 1, 1)) @ shared(k, q).transpose(-1, -2)
    if mask is not None:
        s = s + added(mask, s.dtype)
    keys = torch.arange(k.shape[2], device=q.device)
    if causal:
        queries = torch.arange(q.shape[2], device=q.device) + k.shape[2] - q.shape[2]
        s = s.masked_fill(keys > queries.unsqueeze(-1), -math.inf)
    if lengths is not None:
        s = s.masked_fill(keys >= lengths.to(q.device).view(-1, 1, 1, 1), -math.inf)
    return s


def shared(x: Tensor, q: Tensor) -> Tensor:
    """Keys or values once for every head of q."""
    group = q.shape[1] // x.shape[1]
    return x if group == 1 else x.repeat_interleave(group, dim=1)


def added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask as the numbers to add: 0, or minus infinity where it is False."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, -math.inf)


def factors(q: Tensor, scale: float | None, temperature: float | Tensor | None) -> Tensor:
    """(H,): scale / temperature of every head, in float32 (float64 for float64)."""
    dtype = torch.float32 if q.dtype in HALVES else q.dtype
    by = torch.full((q.shape[1],), scale or q.shape[-1] ** -0.5, dtype=dtype, device=q.device)
    if isinstance(temperature, Tensor):
        return by / temperature.to(dtype)
    return by if temperature is None else by / temperature


# -- the operation ---------------------------------------------------------------------


def _computed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    factor: Tensor,
    mask: Tensor | None,
    lengths: Tensor | None,
    causal: bool,
) -> tuple[Tensor, Tensor]:
    if attention_gpu.takes(q, v, mask):
        return attention_gpu.forward(q, k, v, factor, mask, lengths, causal)
    if attention_cpu.takes(q, mask):
        out, lse = attention_cpu.forward(q, k, v, factor, mask, lengths, causal)
    else:
        s = scores(widened(q), widened(k), factor, mask, lengths, causal)
        out, lse = _weights(s) @ shared(widened(v), q), torch.logsumexp(s, -1)
    return out.to(q.dtype), lse


_attention = torch.library.custom_op("community::attention", checked(_computed), mutates_args=())


@_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_rest: object) -> tuple[Tensor, Tensor]:
    lse = q.new_empty(q.shape[:3], dtype=torch.float32 if q.dtype in HALVES else q.dtype)
    return q.new_empty(*q.shape[:3], v.shape[3]), lse


def _gradients(
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
    """Gradients of q, k and v and, if `wanted`, every query's sum of q times its gradient."""
    more = (factor, mask, lengths, causal)
    if attention_gpu.takes(q, v, mask):
        return attention_gpu.backward(go, glse, q, k, v, *more, out, lse, wanted)
    delta = (widened(go) * widened(out)).sum(-1) - glse
    ours = attention_cpu.takes(q, mask) and not _hidden(mask, lse)
    compute = attention_cpu.backward if ours else _backward_in_torch
    given = (widened(go), delta, widened(q), widened(k), widened(v), *more, lse)
    gq, gk, gv, moments = compute(*given)
    dots = attention_gpu.dots_of(moments, glse, factor) if wanted else lse.new_empty(0)
    return gq.to(q.dtype), gk.to(k.dtype), gv.to(v.dtype), dots


_attention_backward = torch.library.custom_op(
    "community::attention_backward", _gradients, mutates_args=()
)


@_attention_backward.register_fake
def _(
    _go: Tensor,
    _glse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    _factor: Tensor,
    _mask: Tensor | None,
    _lengths: Tensor | None,
    _causal: bool,
    _out: Tensor,
    lse: Tensor,
    wanted: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dots = lse.new_empty(lse.shape if wanted else (0,))
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), dots


def _keep(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple) -> None:  # type: ignore[type-arg]
    *tensors, causal = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.causal = causal  # type: ignore[attr-defined]


def _differentiate(ctx, go: Tensor, glse: Tensor) -> tuple:  # type: ignore[no-untyped-def, type-arg]
    q, k, v, factor, mask, lengths, out, lse = ctx.saved_tensors
    wanted, more = ctx.needs_input_grad[3], (mask, lengths, ctx.causal, out, lse)
    # a graph of gradients is not written for: the custom op says so
    run: Any = _attention_backward if torch.is_grad_enabled() or traced(go) else _gradients
    gq, gk, gv, dots = run(go, glse, q, k, v, factor, *more, wanted)
    # scores are q factor k: what q's gradient says, factor's repeats
    return gq, gk, gv, dots.sum((0, 2)) / factor if wanted else None, None, None, None


ATTENTION = Operation(_attention, _computed, _keep, _differentiate)


def _backward_in_torch(
    go: Tensor,
    delta: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    factor: Tensor,
    mask: Tensor | None,
    lengths: Tensor | None,
    causal: bool,
    _lse: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    p = _weights(scores(q, k, factor, mask, lengths, causal))
    ds = p * (go @ shared(v, q).transpose(-1, -2) - delta.unsqueeze(-1)) * factor.view(-1, 1, 1)
    gk, gv = ds.transpose(-1, -2) @ q, p.transpose(-1, -2) @ go
    gk, gv = (g.unflatten(1, (k.shape[1], -1)).sum(2) for g in (gk, gv))
    gq, means = ds @ shared(k, q), p @ shared(k, q)
    moments = torch.stack([(q * gq).sum(-1), ds.sum(-1), (q * means).sum(-1)], -1)
    return gq, gk, gv, moments


def _weights(s: Tensor) -> Tensor:
    """The softmax of scores; zeros where no key is seen."""
    return torch.where(torch.isneginf(s.amax(-1, keepdim=True)), 0.0, s.softmax(-1))


def _hidden(mask: Tensor | None, lse: Tensor) -> bool:
    """Whether a query has nothing but keys that a large finite number hides: its logsumexp is that
    number, to which the logarithm of their sum was lost, and gives no weights back."""
    return mask is not None and bool(((lse < _HIDING) & (lse > -math.inf)).any())
