"""Routing of a mixture of experts: which experts each token goes to.

    chosen = route(logits, k=2)                  # (tokens, experts) -> Route

What moves rows there and back is in dispatch.py.
Computed by routing.c on the processor (C or OpenCL), by routing.cu on a GPU (float32; halves are
widened), and by the same in plain torch everywhere else and in float64.
"""

from __future__ import annotations

import math
import threading
from typing import Any, NamedTuple

import torch
from torch import Tensor

from community.kernels.backend import kernels, operation
from community.kernels.build import lanes
from community.kernels.checks import DTYPES, widened
from community.kernels.routing_gpu import router
from community.kernels.tracing import Operation, plain, remember, traced

SCORINGS = ("softmax", "sigmoid")
OUT_OF_MEMORY = 3  # as in operations.h


class Route(NamedTuple):
    """Where the tokens go. A pair is one of the k choices of one of the N tokens: number
    `token * k + choice`."""

    weights: Tensor
    """(N, k), floating: what each choice counts for its token."""
    experts: Tensor
    """(N, k), int64: the chosen experts."""
    order: Tensor
    """(N k), int64: the pairs sorted by expert, the earlier pair first."""
    place: Tensor
    """(N, k), int64: where each pair stands in that order."""
    offsets: Tensor
    """(E + 1), int64: expert e has the rows from offsets[e] to offsets[e + 1] of that order."""

    @property
    def load(self) -> Tensor:
        """(E), int64: how many pairs each expert has."""
        return self.offsets.diff()


def route(logits: Tensor, k: int, bias: Tensor | None = None, scoring: str = "softmax") -> Route:
    """The k experts of each token, and the pairs in expert order.

    logits is (N, E). Scores are their softmax over the experts, or their sigmoid. The k experts of
    the highest score + bias are chosen, best first, the lower number first where two are equal;
    the weights are the scores alone, in proportion, and sum to 1 for each token. So the bias, (E)
    and without a gradient, steers the choice and not the result (Wang et al. 2024, arXiv
    2408.15664; DeepSeek-V3, 2412.19437, section 2.1.2): see `balanced`.

    Without a bias the logits themselves are compared, which is the same order. Weights are in the
    dtype of the logits, computed in float32 (float64 for float64), and differentiable; scores that
    were not chosen get no gradient, for the weights do not depend on them.

    Raises ValueError for shapes, dtypes, devices and k that do not fit, and for logits or a bias
    that are not finite.
    """
    check(logits, k, bias, scoring)
    wide = widened(logits)
    if bias is not None and (bias.dtype != wide.dtype or bias.requires_grad):
        bias = bias.detach().to(wide.dtype)
    found = ROUTE.of(wide)(wide, bias, k, scoring == "sigmoid")
    if wide is logits:
        return Route._make(found)
    return Route(found[0].to(logits.dtype), *found[1:])


def reference(
    logits: Tensor, k: int, bias: Tensor | None = None, scoring: str = "softmax"
) -> Route:
    """`route` in plain torch, for any device and dtype."""
    check(logits, k, bias, scoring)
    wide = widened(logits)
    bias = None if bias is None else bias.detach().to(wide.dtype)
    weights, experts = _chosen(wide, bias, k, scoring == "sigmoid")
    return Route(weights.to(logits.dtype), experts, *_sorted(experts, logits.shape[1]))


def arranged(experts: Tensor, weights: Tensor, count: int) -> Route:
    """The Route of experts that were chosen elsewhere: experts and weights (N, k), of `count`.

    Raises ValueError for what does not fit, also for an expert outside 0 to count - 1.
    """
    if experts.dim() != 2 or experts.shape != weights.shape or not experts.shape[1]:
        raise ValueError(
            f"experts and weights must both be (tokens, k); got {tuple(experts.shape)} and "
            f"{tuple(weights.shape)}"
        )
    if experts.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"experts must be int64 or int32; got {experts.dtype}")
    if weights.dtype not in DTYPES:
        raise ValueError(f"weights must be of a floating dtype; got {weights.dtype}")
    if experts.device != weights.device:
        raise ValueError(f"experts is on {experts.device} and weights on {weights.device}")
    if count < 1:
        raise ValueError(f"there must be at least one expert; got {count}")
    experts = experts.long()
    sort = _order if plain(experts) else _sort
    return Route(weights, experts, *sort(experts, count))


def balanced(bias: Tensor, load: Tensor, rate: float = 1e-3) -> Tensor:
    """The bias for the next step: up by `rate` for experts with less than the mean load, down for
    those with more (algorithm 1 of Wang et al. 2024, arXiv 2408.15664, which found 0.001 best).

    bias and load are (E), load as `Route.load` gives it or summed over several steps. Raises
    ValueError.
    """
    if bias.dim() != 1 or bias.shape != load.shape:
        raise ValueError(
            f"bias and load must be one number for each expert; got {tuple(bias.shape)} and "
            f"{tuple(load.shape)}"
        )
    if bias.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"bias is {bias.dtype}, in which small steps are lost; use float32")
    if not (rate > 0 and math.isfinite(rate)):
        raise ValueError(f"rate is {rate}, and must be a positive number")
    wide = load.to(torch.float64)
    return (bias + rate * torch.sign(wide.mean() - wide)).to(bias.dtype)


# -- what is asked ---------------------------------------------------------------------


def check(logits: Tensor, k: int, bias: Tensor | None, scoring: str) -> None:
    """Raises ValueError for what `route` cannot compute, apart from numbers that are not finite."""
    shape = logits.shape
    if len(shape) != 2 or not shape[1]:
        raise ValueError(f"logits must be (tokens, experts); got {tuple(shape)}")
    if logits.dtype not in DTYPES:
        raise ValueError(f"logits must be of a floating dtype; got {logits.dtype}")
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= shape[1]:
        raise ValueError(f"k is {k!r}, and must be an int from 1 to {shape[1]}, the experts")
    if scoring not in SCORINGS:
        raise ValueError(f"scoring is {scoring!r}, and must be one of {', '.join(SCORINGS)}")
    if bias is None:
        return
    if bias.shape != (shape[1],):
        raise ValueError(f"bias must be {shape[1]} numbers, one an expert; got {tuple(bias.shape)}")
    if bias.dtype not in DTYPES:
        raise ValueError(f"bias must be of a floating dtype; got {bias.dtype}")
    if bias.device != logits.device:
        raise ValueError(f"bias is on {bias.device} and logits on {logits.device}")


def _unfit(fault: int) -> Exception:
    """What the sources say is wrong with numbers: 1 with the logits, 2 with the bias."""
    if fault == OUT_OF_MEMORY:
        return MemoryError("there is no memory for the route")
    what = "bias" if fault == 2 else "logits"
    return ValueError(f"{what} must be finite: there is NaN or infinity")


def _stray(count: int) -> ValueError:
    return ValueError(f"experts must lie between 0 and {count - 1}")


# -- choosing --------------------------------------------------------------------------


def _chosen(logits: Tensor, bias: Tensor | None, k: int, sigmoid: bool) -> tuple[Tensor, Tensor]:
    """Weights and experts (N, k), by a stable sort."""
    if not traced(logits) and not logits.isfinite().all():
        raise _unfit(1)
    keys = logits.detach()
    if bias is not None:
        if not traced(bias) and not bias.isfinite().all():
            raise _unfit(2)
        keys = (keys.sigmoid() if sigmoid else keys.softmax(-1)) + bias
    order = torch.sort(keys, dim=-1, descending=True, stable=True).indices
    experts = order[:, :k].contiguous()
    chosen = logits.gather(-1, experts)
    # softmax of the logarithms of the scores: never 0 / 0
    return (torch.nn.functional.logsigmoid(chosen) if sigmoid else chosen).softmax(-1), experts


def _sorted(experts: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """order, place and offsets."""
    flat = experts.reshape(-1)
    if flat.numel() and not traced(flat) and bool(((flat < 0) | (flat >= count)).any()):
        raise _stray(count)
    order = torch.sort(flat, stable=True).indices
    place = torch.empty_like(order)
    place[order] = torch.arange(order.numel(), device=order.device)
    offsets = torch.zeros(count + 1, dtype=torch.int64, device=order.device)
    offsets[1:] = torch.bincount(flat, minlength=count).cumsum(0)
    return order, place.view(experts.shape), offsets


_Parts = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def _routed(logits: Tensor, bias: Tensor | None, k: int, sigmoid: bool) -> _Parts:
    if not logits.is_cpu or logits.dtype != torch.float32 or logits.numel() >= 2**31:
        return _routed_elsewhere(logits, bias, k, sigmoid)
    if quick := operation("routing_torch", "route"):
        x = logits.contiguous()
        steer = x if bias is None else bias.contiguous()
        found = quick(x, steer, k << 2 | sigmoid << 1 | (bias is not None))
        if found[5]:
            raise _unfit(found[5])
        return found[:5]
    run = kernels("routing")
    if run is None:
        return _routed_elsewhere(logits, bias, k, sigmoid)
    n, e = logits.shape
    fault, room = _own.fault, _own.floats((e + 2 * (k + _AT_ONCE)) * lanes())
    weights, whole = logits.new_empty(n, k), fault.new_empty
    experts, order, place, offsets = whole(n, k), whole(n * k), whole(n, k), whole(e + 1)
    run(
        "route",
        *(logits.contiguous(), None if bias is None else bias.contiguous(), weights, experts),
        *(order, place, offsets, fault, room, n, e, k, int(sigmoid)),
        items=1,
    )
    if fault.item():
        raise _unfit(int(fault.item()))
    return weights, experts, order, place, offsets


def _routed_elsewhere(logits: Tensor, bias: Tensor | None, k: int, sigmoid: bool) -> _Parts:
    """By routing.cu if it can, or else in plain torch."""
    n, e = logits.shape
    gpu = router(logits.device, e, k, n * k) if logits.dtype == torch.float32 else None
    if gpu is None:
        weights, experts = _chosen(logits, bias, k, sigmoid)
        return weights, experts, *_sorted(experts, e)
    weights, experts, order, fault = gpu.route(logits, bias, k, sigmoid)
    if fault:
        raise _unfit(fault)
    for pairs in order[:2]:  # what moves rows by them need not look at them again
        remember(pairs, n * k)
    return weights, experts, *order


_AT_ONCE = 8  # as in routing.c


class _Own(threading.local):
    """What kernels work in, kept for each thread: making it anew took a tenth of a short call."""

    def __init__(self) -> None:
        self.fault = self._made(1, torch.int64)
        self._floats = self._made(0, torch.float32)

    def floats(self, count: int) -> Tensor:
        """Memory for at least so many float32."""
        if self._floats.numel() < count:
            self._floats = self._made(count, torch.float32)
        return self._floats

    @staticmethod
    @torch.inference_mode(False)  # what is made in that mode cannot be written to outside of it
    def _made(count: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(count, dtype=dtype, device="cpu")


_own = _Own()


def _order(experts: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    run = kernels("routing") if experts.is_cpu else None
    if run is None or experts.numel() >= 2**31:
        gpu = router(experts.device, count, experts.shape[1], experts.numel())
        if gpu is None:
            return _sorted(experts, count)
        found, wrong = gpu.order(experts, count)
        if wrong:
            raise _stray(count)
        return found
    if quick := operation("routing_torch", "route_sort"):
        sort = quick(experts.contiguous(), count)
        if sort[3]:
            raise _unfit(sort[3]) if sort[3] == OUT_OF_MEMORY else _stray(count)
        return sort[:3]
    fault, pairs = _own.fault, experts.numel()
    order, place, offsets = (experts.new_empty(s) for s in (pairs, experts.shape, count + 1))
    run(
        "route_sort",
        *(experts.contiguous(), order, place, offsets, fault, pairs, count),
        items=1,
    )
    if fault.item():
        raise _stray(count)
    return order, place, offsets


_route = torch.library.custom_op("community::route", _routed, mutates_args=())
_sort = torch.library.custom_op("community::route_sort", _order, mutates_args=())


@_route.register_fake
def _(logits: Tensor, bias: Tensor | None, k: int, sigmoid: bool) -> _Parts:
    (n, e), whole = logits.shape, {"dtype": torch.int64}
    sizes = ((n, k), (n * k,), (n, k), (e + 1,))
    return logits.new_empty(n, k), *(logits.new_empty(s, **whole) for s in sizes)  # type: ignore


def _gradient(
    grad: Tensor, weights: Tensor, experts: Tensor, logits: Tensor, sigmoid: bool
) -> Tensor:
    run = kernels("routing") if logits.is_cpu and logits.dtype == torch.float32 else None
    if run and (quick := operation("routing_torch", "route_backward")):
        given = (grad.contiguous(), weights, experts, logits.contiguous())
        found, wrong = quick(*given, sigmoid)
        if wrong:
            raise _unfit(wrong)
        return found
    out = torch.zeros_like(logits, memory_format=torch.contiguous_format)
    if run is None:
        slopes = weights * (grad - (grad * weights).sum(-1, keepdim=True))
        if sigmoid:
            slopes = slopes * torch.sigmoid(-logits.gather(-1, experts))
        return out.scatter_(-1, experts, slopes)
    run(
        "route_backward",
        *(grad.contiguous(), weights, experts, logits.contiguous(), out),
        *(logits.shape[1], experts.shape[1], int(sigmoid)),
        items=logits.shape[0],
    )
    return out


_route_backward = torch.library.custom_op("community::route_backward", _gradient, mutates_args=())


@_route_backward.register_fake
def _(grad: Tensor, weights: Tensor, experts: Tensor, logits: Tensor, sigmoid: bool) -> Tensor:
    return logits.new_empty(logits.shape)


def _keep_route(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    logits, _, _, ctx.sigmoid = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(output[0], output[1], logits)


def _differentiate_route(ctx, grad: Tensor, *_rest: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[no-untyped-def]
    weights, experts, logits = ctx.saved_tensors
    # a graph of gradients is not written for: the custom op says so
    back: Any = _gradient if plain(grad, weights, logits) else _route_backward
    return back(grad, weights, experts, logits, ctx.sigmoid), None, None, None


ROUTE = Operation(_route, _routed, _keep_route, _differentiate_route)


@_sort.register_fake
def _(experts: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    new = experts.new_empty
    return new(experts.numel()), new(experts.shape), new(count + 1)
