"""Routing, and rows there and back, against what one would write in torch."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor

from community.kernels.dispatch import combine, dispatch
from community.kernels.routing import route
from community.kernels.timing import Case, Run

SIZES = ((8, 2), (64, 2), (64, 8), (256, 8))  # experts, choices
_SHORT = 20000  # pairs from which torch sorts int16 faster


def cases(device: str, quick: bool) -> Iterator[Case]:
    """The route of float32 logits, with and without a bias, and its gradient; rows of 1024."""
    tokens, sizes = ((32,), SIZES[:1]) if quick else ((64, 512, 8192), SIZES)
    for n, (e, k) in product(tokens, sizes):
        for scoring, steered in (("softmax", False), ("sigmoid", True)):
            yield _routing(n, e, k, scoring, steered, device)
        yield _gradient(n, e, k, device)
    for n, dtype in product((16,) if quick else (64, 1024), (torch.float32, torch.bfloat16)):
        yield from _moves(n, 64 if quick else 1024, dtype, device)


def _by_torch(
    logits: Tensor, k: int, bias: Tensor | None, scoring: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights, experts, order and offsets: without a bias, scores of the chosen alone."""
    if bias is None:
        top, experts = logits.topk(k)
        weights = top.softmax(-1)
    else:
        scores = logits.sigmoid() if scoring == "sigmoid" else logits.softmax(-1)
        experts = (scores + bias).topk(k).indices
        weights = scores.gather(-1, experts)
        weights = weights / weights.sum(-1, keepdim=True)
    flat = experts.view(-1)
    short = flat.to(torch.int16) if flat.numel() > _SHORT else flat
    offsets = flat.bincount(minlength=logits.shape[1]).cumsum(0)
    return weights, experts, short.argsort(stable=True), offsets


def _routing(n: int, e: int, k: int, scoring: str, steered: bool, device: str) -> Case:
    made = torch.Generator().manual_seed(n * e)
    logits = torch.randn(n, e, generator=made).to(device)
    bias = (torch.randn(e, generator=made) * 0.1).to(device) if steered else None

    def truth() -> tuple[Tensor, ...]:
        wide = logits.double()
        scores = wide.sigmoid() if scoring == "sigmoid" else wide.softmax(-1)
        keys = scores if bias is None else scores + bias
        best, experts = keys.topk(k)
        ours = route(logits, k, bias, scoring).experts
        if (keys.gather(1, ours) - best).abs().max() < 1e-6:  # rounding exchanges near equals
            experts = ours
        weights = scores.gather(1, experts)
        order = experts.view(-1).argsort(stable=True)
        ends = [int((experts < i).sum()) for i in range(e + 1)]
        place = order.argsort().view(n, k)
        return weights / weights.sum(1, keepdim=True), experts, order, place, order.new_tensor(ends)

    name = f"route {scoring}{' + bias' if steered else ''} N {n} E {e} k {k}"
    peers = {"torch": lambda: _by_torch(logits, k, bias, scoring)}
    return Case(name, lambda: route(logits, k, bias, scoring), peers, truth)


def _gradient(n: int, e: int, k: int, device: str) -> Case:
    made = torch.Generator().manual_seed(n * e)
    logits = torch.randn(n, e, generator=made).to(device).requires_grad_()
    grad = torch.randn(n, k, generator=made).to(device)

    def ours() -> tuple[Tensor, ...]:
        return torch.autograd.grad(route(logits, k).weights, logits, grad)

    def peer() -> tuple[Tensor, ...]:
        return torch.autograd.grad(_by_torch(logits, k, None, "softmax")[0], logits, grad)

    def truth() -> tuple[Tensor, ...]:
        wide = logits.detach().double().requires_grad_()
        return torch.autograd.grad(wide.topk(k).values.softmax(-1), wide, grad.double())

    return Case(f"route and its gradient N {n} E {e} k {k}", ours, {"torch": peer}, truth)


def _moves(n: int, width: int, dtype: torch.dtype, device: str) -> Iterator[Case]:
    made = torch.Generator().manual_seed(n)
    found = route(torch.randn(n, 8, generator=made).to(device), 2)
    x = torch.randn(n, width, generator=made).to(device, dtype)
    rows = torch.randn(2 * n, width, generator=made).to(device, dtype)
    narrow = found._replace(weights=found.weights.to(dtype))
    tokens, by = found.order // 2, narrow.weights.view(-1)[found.order].unsqueeze(-1)

    def gathered(rows: Tensor, weights: Tensor) -> Tensor:
        return (rows[found.place] * weights.unsqueeze(-1)).sum(1)

    def added() -> Tensor:
        return torch.zeros_like(x).index_add_(0, tokens, rows * by)

    name = f"N {n} k 2 D {width} {str(dtype).removeprefix('torch.')}"
    loss = 1e-6 if dtype == torch.float32 else 2e-2
    there: Run = lambda: (x[tokens],)  # noqa: E731
    yield Case(
        f"dispatch {name}",
        lambda: (dispatch(x, found),),
        {"torch": lambda: x.index_select(0, found.order // 2)},
        there,
        tolerance=0,
    )
    yield Case(
        f"combine {name}",
        lambda: (combine(rows, narrow),),
        {"index_add": added, "gather": lambda: gathered(rows, narrow.weights)},
        lambda: (gathered(rows.double(), narrow.weights.double()),),
        tolerance=loss,
    )
