"""The experts of a mixture: one small network each, over rows that stand expert by expert.

    chosen = route(logits, k=2)                                     # community.kernels.routing
    rows = expert_mlp(dispatch(x, chosen), chosen.offsets, up, down)
    out = combine(rows, chosen)

Few rows an expert take as long as reading the weights, and experts.c (C or OpenCL) reads each
once; more are left to torch, grouped or expert by expert, whichever was measured to be faster.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from community.kernels.backend import kernels
from community.kernels.build import CORES, lanes
from community.kernels.checks import DTYPES
from community.kernels.tracing import plain, traced

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu2": lambda h: F.relu(h).square(),  # So et al. 2021, arXiv 2109.08668
}
# What was measured: experts.c is the fastest up to so many rows an expert, or products of one, and
# one expert after the other is from _MANY rows: its intermediate numbers stay in the cache.
_FEW = {torch.float32: ("f32", 16, 0), torch.bfloat16: ("bf16", 4, 2**19)}
_MANY = 128


def expert_mlp(
    rows: Tensor, offsets: Tensor, up: Tensor, down: Tensor, activation: str = "silu"
) -> Tensor:
    """down_e (act(gate) * value) with (gate, value) = up_e row, for each row of each expert e.

    rows is (S, D), those from offsets[e] to offsets[e + 1] being expert e's; offsets (E + 1),
    int64, as in `routing.Route`. up is (E, 2 I, D), the gates first (SwiGLU, GEGLU: Shazeer 2020,
    arXiv 2002.05202), or (E, I, D) for down_e act(up_e row) without a gate. down is (E, Dout, I).
    activation: silu, gelu, gelu_tanh or relu2. Returns (S, Dout); differentiable.

    Raises ValueError for shapes, dtypes, devices, offsets and names that do not fit.
    """
    _check(rows, offsets, up, down, activation)
    groups = None if traced(rows) else _groups(offsets, rows.shape[0])
    if groups and plain(rows, up, down) and rows.shape[0] > _MANY * len(groups):
        return _one_by_one(rows, groups, up, down, activation)
    h = _linear(rows, up, offsets, groups)
    return _linear(_activated(h, down.shape[2], activation), down, offsets, groups)


def reference(
    rows: Tensor, offsets: Tensor, up: Tensor, down: Tensor, activation: str = "silu"
) -> Tensor:
    """`expert_mlp` in plain torch, an expert after the other; autograd differentiates it."""
    _check(rows, offsets, up, down, activation)
    _groups(offsets, rows.shape[0])
    parts = []
    for e, (first, end) in enumerate(pairwise(offsets.tolist())):
        h = _activated(F.linear(rows[first:end], up[e]), down.shape[2], activation)
        parts.append(F.linear(h, down[e]))
    return torch.cat(parts)


def _check(rows: Tensor, offsets: Tensor, up: Tensor, down: Tensor, activation: str) -> None:
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"activation is {activation!r}, and must be one of {', '.join(ACTIVATIONS)}"
        )

    def shapes() -> str:  # only where they are wrong: torch.compile does not trace words
        named = {"rows": rows, "up": up, "down": down}
        return ", ".join(f"{name} {tuple(x.shape)}" for name, x in named.items())

    if rows.dim() != 2 or up.dim() != 3 or down.dim() != 3 or 0 in (*up.shape, *down.shape):
        raise ValueError(
            f"rows must be (S, D), up (E, 2 I, D) and down (E, Dout, I); got {shapes()}"
        )
    inner = down.shape[2]
    if up.shape[0] != down.shape[0] or up.shape[2] != rows.shape[1]:
        raise ValueError(f"rows, up and down do not fit together: {shapes()}")
    if up.shape[1] not in (inner, 2 * inner):
        raise ValueError(
            f"up must give {inner} or {2 * inner} numbers, as down takes; got {shapes()}"
        )
    if rows.dtype not in DTYPES or not rows.dtype == up.dtype == down.dtype:
        kinds = ", ".join(f"{x.dtype}" for x in (rows, up, down))
        raise ValueError(f"rows, up and down must be of one floating dtype; got {kinds}")
    if offsets.shape != (up.shape[0] + 1,) or offsets.dtype != torch.int64:
        raise ValueError(
            f"offsets must be {up.shape[0] + 1} numbers of int64; got {tuple(offsets.shape)} of "
            f"{offsets.dtype}"
        )
    if not rows.device == up.device == down.device == offsets.device:
        places = ", ".join(str(x.device) for x in (rows, offsets, up, down))
        raise ValueError(f"rows, offsets, up and down are on {places}")


_Groups = list[tuple[int, slice]]


def _groups(offsets: Tensor, rows: int) -> _Groups:
    """The experts that have rows, and which. Raises ValueError."""
    ends = offsets.tolist()
    if ends[0] != 0 or ends[-1] != rows or any(b < a for a, b in pairwise(ends)):
        raise ValueError(f"offsets must rise from 0 to {rows}, the number of rows")
    return [(e, slice(a, b)) for e, (a, b) in enumerate(pairwise(ends)) if a < b]


def _activated(h: Tensor, inner: int, activation: str) -> Tensor:
    """(rows, 2 I) or (rows, I) -> (rows, I)"""
    act = ACTIVATIONS[activation]
    if h.shape[1] == inner:
        return act(h)
    gate, value = h.chunk(2, -1)
    return act(gate) * value


def _one_by_one(rows: Tensor, groups: _Groups, up: Tensor, down: Tensor, activation: str) -> Tensor:
    out = rows.new_empty(rows.shape[0], down.shape[1])
    room = rows.new_empty(max(mine.stop - mine.start for _, mine in groups), up.shape[1])
    for e, mine in groups:
        h = room[: mine.stop - mine.start]
        torch.mm(rows[mine], up[e].t(), out=h)
        torch.mm(_activated(h, down.shape[2], activation), down[e].t(), out=out[mine])
    return out


def _linear(x: Tensor, weights: Tensor, offsets: Tensor, groups: _Groups | None) -> Tensor:
    """(S, in) by (E, outputs, in) -> (S, outputs); groups are known unless x is being traced."""
    if groups is not None and plain(x, weights):
        return _by_expert(x, weights, offsets, groups)
    if groups is not None and _grouped(x, *weights.shape[1:]):  # its gradients are torch's
        y = _in_groups(x, weights, offsets)
        y.register_hook(Tensor.contiguous)  # it takes no gradient that was expanded
        return y
    return _product(x, weights, offsets)


def _by_expert(x: Tensor, weights: Tensor, offsets: Tensor, groups: _Groups) -> Tensor:
    if _few(x, weights, len(groups)):
        return _in_c(x, weights, offsets)
    if _grouped(x, *weights.shape[1:]):
        return _in_groups(x, weights, offsets)
    y = x.new_empty(x.shape[0], weights.shape[1])
    for e, mine in groups:
        torch.mm(x[mine], weights[e].t(), out=y[mine])
    return y


# -- two operations, each of whose gradients are made of both -----------------------------


@torch.library.custom_op("community::expert_product", mutates_args=())
def _product(x: Tensor, weights: Tensor, offsets: Tensor) -> Tensor:
    """(S, in) by (E, outputs, in) -> (S, outputs): every expert's rows by its weights."""
    return _by_expert(x, weights, offsets, _groups(offsets, x.shape[0]))


@_product.register_fake
def _(x: Tensor, weights: Tensor, offsets: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weights.shape[1])


@torch.library.custom_op("community::expert_outer", mutates_args=())
def _outer(g: Tensor, x: Tensor, offsets: Tensor) -> Tensor:
    """(S, outputs), (S, in) -> (E, outputs, in): the sum over an expert's rows of g x^T."""
    groups = _groups(offsets, x.shape[0])
    if _grouped(x, g.shape[1], x.shape[1]):
        ends = offsets[1:].to(torch.int32)
        return F.grouped_mm(g.contiguous().t(), x.contiguous(), offs=ends)
    out = x.new_zeros(offsets.shape[0] - 1, g.shape[1], x.shape[1])
    for e, mine in groups:
        torch.mm(g[mine].t(), x[mine], out=out[e])
    return out


@_outer.register_fake
def _(g: Tensor, x: Tensor, offsets: Tensor) -> Tensor:
    return x.new_empty(offsets.shape[0] - 1, g.shape[1], x.shape[1])


def _keep(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs)


def _differentiate_product(ctx, g: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
    x, weights, offsets = ctx.saved_tensors
    learns = ctx.needs_input_grad
    gx = _product(g, weights.transpose(1, 2), offsets) if learns[0] else None
    return gx, _outer(g, x, offsets) if learns[1] else None, None


def _differentiate_outer(ctx, gw: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
    g, x, offsets = ctx.saved_tensors
    return _product(x, gw, offsets), _product(g, gw.transpose(1, 2), offsets), None


_product.register_autograd(_differentiate_product, setup_context=_keep)
_outer.register_autograd(_differentiate_outer, setup_context=_keep)


def _grouped(x: Tensor, outputs: int, inputs: int) -> bool:
    """Whether torch's grouped product takes it, which wants strides of whole 16 bytes."""
    size = x.element_size()
    known = x.device.type == "cpu" and size < 8
    return known and outputs * size % 16 == 0 and inputs * size % 16 == 0


def _in_groups(x: Tensor, weights: Tensor, offsets: Tensor) -> Tensor:
    size = weights.element_size()
    fits = all(step == 1 or (step and step * size % 16 == 0) for step in weights.stride())
    if not fits or 1 not in weights.stride()[1:]:
        weights = weights.contiguous()
    ends = offsets[1:].to(torch.int32)
    return F.grouped_mm(x.contiguous(), weights.transpose(1, 2), offs=ends)


def _few(x: Tensor, weights: Tensor, active: int) -> bool:
    """Whether experts.c computes the product."""
    if x.dtype not in _FEW or x.device.type != "cpu" or not active:
        return False
    _, rows, products = _FEW[x.dtype]
    mean = x.shape[0] / active
    if mean > rows and mean * weights[0].numel() > products:
        return False
    if any(n % lanes() for n in weights.shape[1:]) or not weights.is_contiguous():
        return False
    return kernels("experts") is not None


def _in_c(x: Tensor, weights: Tensor, offsets: Tensor) -> Tensor:
    run = kernels("experts")
    assert run is not None
    kind, _, _ = _FEW[x.dtype]
    e, outputs, inputs = weights.shape
    wide = x.float().contiguous()
    y = wide.new_empty(x.shape[0], outputs)
    room = (wide.new_empty(CORES * inputs * lanes()),) if kind == "bf16" else ()
    run(
        f"experts_product_{kind}",
        *(wide, weights, offsets.contiguous(), y),
        *room,
        *(e, inputs, outputs),
        items=CORES,
    )
    return y.to(x.dtype)
