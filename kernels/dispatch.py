"""Rows of tokens to their experts and back.

    rows = dispatch(x, chosen)                   # (tokens, d) -> (tokens k, d), expert by expert
    out = combine(some_mlp(rows), chosen)        # back to (tokens, d), weighted

Computed by routing.c on the processor (C or OpenCL) and by the same in plain torch everywhere
else and in float64 and float16.
"""

from __future__ import annotations

import torch
from torch import Tensor

from community.kernels.backend import kernels
from community.kernels.build import zeros
from community.kernels.checks import DTYPES
from community.kernels.routing import Route
from community.kernels.tracing import Operation, known, remember, traced

_KINDS = {torch.float32: "f32", torch.bfloat16: "bf16"}  # rows that routing.c moves


def dispatch(x: Tensor, chosen: Route) -> Tensor:
    """The rows of x (N, d) in expert order: (N k, d), each token once for each of its experts.

    Differentiable, more than once. Raises ValueError for what does not fit.
    """
    _check_rows(x, chosen, chosen.weights.shape[0], "x")
    return DISPATCH.of(x)(x, chosen.order, chosen.place, None)


def combine(rows: Tensor, chosen: Route) -> Tensor:
    """For each token the weighted sum of its rows (N k, d), which are in expert order: (N, d).

    In the dtype of rows, summed in float32 (float64 for float64). Differentiable in rows and
    weights, more than once. Raises ValueError for what does not fit.
    """
    _check_rows(rows, chosen, chosen.weights.numel(), "rows")
    weights = chosen.weights.to(_wide(rows.dtype))
    return COMBINE.of(rows, weights)(rows, chosen.order, chosen.place, weights)


def _check_rows(x: Tensor, chosen: Route, count: int, name: str) -> None:
    weights, experts, order, place, _ = chosen
    if place.dim() != 2 or not place.shape == weights.shape == experts.shape:
        raise ValueError("weights, experts and place of a route must all be (tokens, k)")
    if order.shape != (place.numel(),) or order.dtype != torch.int64 != place.dtype:
        raise ValueError("order and place of a route must be int64, one for each pair")
    if x.dim() != 2 or x.shape[0] != count:
        raise ValueError(f"{name} must be ({count}, d) for this route; got {tuple(x.shape)}")
    if x.dtype not in DTYPES:
        raise ValueError(f"{name} must be of a floating dtype; got {x.dtype}")
    if not x.device == order.device == place.device == weights.device:
        raise ValueError(f"{name} is on {x.device} and its route on {order.device}")


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


# -- moving rows: three operations, each of whose gradients are the two others ------------


def _dispatched(x: Tensor, order: Tensor, place: Tensor, weights: Tensor | None) -> Tensor:
    """rows[r] = weights[order[r]] x[order[r] / k]"""
    k = place.shape[1]
    rows = x.new_empty(order.numel(), x.shape[1])
    if _moved("dispatch", x, (order, weights), rows, rows.shape[0], k):
        return rows
    if weights is None:
        return x[order // k]
    return (x[order // k] * weights.reshape(-1)[order].unsqueeze(-1)).to(x.dtype)


_dispatch = torch.library.custom_op("community::dispatch", _dispatched, mutates_args=())


@_dispatch.register_fake
def _(x: Tensor, order: Tensor, place: Tensor, weights: Tensor | None) -> Tensor:
    return x.new_empty(order.numel(), x.shape[1])


def _combined(rows: Tensor, order: Tensor, place: Tensor, weights: Tensor | None) -> Tensor:
    """out[t] = sum_j weights[t, j] rows[place[t, j]]"""
    out = rows.new_empty(place.shape[0], rows.shape[1])
    if _moved("combine", rows, (place, weights), out, out.shape[0], place.shape[1]):
        return out
    picked = rows[place].to(_wide(rows.dtype))
    picked = picked if weights is None else picked * weights.unsqueeze(-1)
    return picked.sum(1).to(rows.dtype)


_combine = torch.library.custom_op("community::combine", _combined, mutates_args=())


@_combine.register_fake
def _(rows: Tensor, order: Tensor, place: Tensor, weights: Tensor | None) -> Tensor:
    return rows.new_empty(place.shape[0], rows.shape[1])


def _matched(x: Tensor, rows: Tensor, order: Tensor, place: Tensor) -> Tensor:
    """dots[t, j] = x[t] . rows[place[t, j]], in float32 or float64"""
    dots = x.new_empty(place.shape, dtype=_wide(x.dtype))
    if _moved("match", x, (rows, place), dots, place.shape[0], place.shape[1]):
        return dots
    wide = x.to(dots.dtype).unsqueeze(1)
    return (wide * rows[place].to(dots.dtype)).sum(-1)


_match = torch.library.custom_op("community::match", _matched, mutates_args=())


@_match.register_fake
def _(x: Tensor, rows: Tensor, order: Tensor, place: Tensor) -> Tensor:
    return x.new_empty(place.shape, dtype=_wide(x.dtype))


def _moved(
    kernel: str, x: Tensor, rest: tuple[Tensor | None, ...], out: Tensor, items: int, k: int
) -> bool:
    """Whether routing.c did it. Raises ValueError for a route with indices that are none."""
    kind = _KINDS.get(x.dtype)
    run = kernels("routing") if kind and x.is_cpu else None
    if run is None or items * k >= 2**31:
        for pairs in rest:
            if pairs is not None and not pairs.is_floating_point():
                _check_pairs(pairs)
        return False
    fault = zeros(1, dtype=torch.int32)
    others = [None if y is None else y.contiguous() for y in rest]
    run(f"{kernel}_{kind}", x.contiguous(), *others, out, fault, x.shape[1], k, items=items)
    if fault.item():
        raise _stray()
    return True


def _stray() -> ValueError:
    return ValueError("order or place of the route names a pair that does not exist")


def _check_pairs(pairs: Tensor) -> None:
    """Raises ValueError if order or place of a route has numbers of no pair."""
    count = pairs.numel()
    if not count or traced(pairs) or known(pairs, count):
        return
    if int(pairs.min()) < 0 or int(pairs.max()) >= count:
        raise _stray()
    remember(pairs, count)


def _keep_move(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs)


def _differentiate_dispatch(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
    x, order, place, weights = ctx.saved_tensors
    learns = ctx.needs_input_grad[3]
    gw = MATCH.of(x, grad)(x, grad, order, place) if learns else None
    given = (grad,) if weights is None else (grad, weights)
    return COMBINE.of(*given)(grad, order, place, weights), None, None, gw


def _differentiate_combine(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
    rows, order, place, weights = ctx.saved_tensors
    learns = ctx.needs_input_grad[3]
    gw = MATCH.of(grad, rows)(grad, rows, order, place) if learns else None
    given = (grad,) if weights is None else (grad, weights)
    return DISPATCH.of(*given)(grad, order, place, weights), None, None, gw


def _differentiate_match(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
    x, rows, order, place = ctx.saved_tensors
    gx = COMBINE.of(rows, grad)(rows, order, place, grad)
    return gx, DISPATCH.of(x, grad)(x, order, place, grad), None, None


DISPATCH = Operation(_dispatch, _dispatched, _keep_move, _differentiate_dispatch)
COMBINE = Operation(_combine, _combined, _keep_move, _differentiate_combine)
MATCH = Operation(_match, _matched, _keep_move, _differentiate_match)
