"""Sparsemax and 1.5-entmax, softmaxes that give zeros, and attention with them.

Martins and Astudillo 2016 (sparsemax), Peters, Niculae and Martins 2019 (entmax). Both are
max(0, ((a - 1) x - tau)) ^ (1 / (a - 1)) with a = 2 or 1.5 and the threshold tau that makes the
sum 1; tau is found by sorting, exactly. Gradients need the result alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from community.kernels.attention import check, factors, scores, shared

_HALVES = (torch.float16, torch.bfloat16)
ALPHAS = (1.5, 2.0)


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
    tau = _sparsemax_threshold(shifted) if alpha == 2.0 else _entmax15_threshold(shifted)
    kept = (shifted - tau).clamp(min=0)
    return kept if alpha == 2.0 else kept.square()


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
    or 2. Keeps all weights in memory. A query that sees no key gives zeros.
    """
    check(q, k, v, scale, temperature, lengths, mask)
    wide = [x.float() if x.dtype in _HALVES else x for x in (q, k, v)]
    by = factors(q, scale, temperature)
    weights = _entmax(scores(wide[0], wide[1], by, mask, lengths, causal), alpha)
    return (weights @ shared(wide[2], q)).to(q.dtype)


def _entmax(x: Tensor, alpha: float) -> Tensor:
    _check(x, alpha)
    wide = x.float() if x.dtype in _HALVES else x
    return _operation(wide, alpha).to(x.dtype)


def _check(x: Tensor, alpha: float) -> None:
    if alpha not in ALPHAS:
        raise ValueError(f"alpha is {alpha}, and must be 1.5 or 2")
    if not x.is_floating_point():
        raise ValueError(f"entmax needs floating numbers, not {x.dtype}")
    if not x.dim() or not x.shape[-1]:
        raise ValueError(f"entmax needs at least one number in a row; got {tuple(x.shape)}")


@torch.library.custom_op("community::entmax", mutates_args=())
def _operation(x: Tensor, alpha: float) -> Tensor:
    return reference(x, alpha).contiguous()


@_operation.register_fake
def _(x: Tensor, alpha: float) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("community::entmax_backward", mutates_args=())
def _operation_backward(go: Tensor, y: Tensor, alpha: float) -> Tensor:
    slope = (y > 0).to(y.dtype) if alpha == 2.0 else y.sqrt()
    total = slope.sum(-1, keepdim=True).clamp(min=torch.finfo(y.dtype).tiny)
    return (slope * (go - (go * slope).sum(-1, keepdim=True) / total)).contiguous()


@_operation_backward.register_fake
def _(go: Tensor, y: Tensor, alpha: float) -> Tensor:
    return y.new_empty(y.shape)


def _keep(ctx, inputs: tuple[Tensor, float], output: Tensor) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(output)
    ctx.alpha = inputs[1]


def _differentiate(ctx, go: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
    (y,) = ctx.saved_tensors
    return _operation_backward(go, y, ctx.alpha), None


_operation.register_autograd(_differentiate, setup_context=_keep)


def _shifted(x: Tensor, alpha: float) -> Tensor:
    """(alpha - 1) x with a highest number of 0. Below -1 nothing is chosen, so that minus
    infinity may be any such number; in a row of nothing else all are."""
    top = x.detach().amax(-1, keepdim=True)
    top = torch.where(top == -math.inf, 0.0, top)
    return ((x - top) * (alpha - 1)).clamp(min=-2.0)


def _ranks(x: Tensor) -> Tensor:
    return torch.arange(1, x.shape[-1] + 1, device=x.device, dtype=x.dtype)


def _sparsemax_threshold(x: Tensor) -> Tensor:
    down = x.sort(-1, descending=True).values
    taus = (down.cumsum(-1) - 1) / _ranks(x)
    return _chosen(x, down, taus)


def _entmax15_threshold(x: Tensor) -> Tensor:
    down, n = x.sort(-1, descending=True).values, _ranks(x)
    mean = down.cumsum(-1) / n
    spread = n * (down.square().cumsum(-1) / n - mean.square())
    inside = (1 - spread) / n
    positive = inside > 0
    taus = mean - torch.where(positive, torch.where(positive, inside, 1.0).sqrt(), 0.0)
    return _chosen(x, down, taus)


def _chosen(x: Tensor, down: Tensor, taus: Tensor) -> Tensor:
    """The threshold of the largest support; 0 where all of a row is minus infinity."""
    support = (taus <= down).sum(-1, keepdim=True).clamp(min=1)
    tau = taus.gather(-1, support - 1)
    return torch.where(down[..., :1] <= -2.0, 0.0, tau)
