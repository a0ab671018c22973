"""Routing against its reference, in C, in OpenCL and in plain torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from backends import computed_by
from hypothesis import given, settings
from hypothesis import strategies as st
from sanitizers import assert_clean
from torch import Tensor

from community.kernels import backend as chosen
from community.kernels import dispatch as moving
from community.kernels import routing as module
from community.kernels.build import BuildError, compiler
from community.kernels.dispatch import combine, dispatch
from community.kernels.routing import Route, arranged, balanced, reference, route

HALF = torch.bfloat16
SIZES = st.integers(1, 70).flatmap(
    lambda e: st.tuples(st.integers(0, 90), st.just(e), st.integers(1, e))
)


@pytest.fixture(params=["c", "opencl", "simt"])
def compiled(request: pytest.FixtureRequest) -> Iterator[str]:
    with computed_by(request.param, "routing", "-DTHREADS=64") as name:
        yield name


def scores(logits: Tensor, scoring: str) -> Tensor:
    return logits.sigmoid() if scoring == "sigmoid" else logits.softmax(-1)


def made(sizes: tuple[int, int, int], dtype: torch.dtype = torch.float32) -> Tensor:
    n, e, _ = sizes
    torch.manual_seed(n * 100 + e)
    return torch.randn(n, e).to(dtype) * 3


def is_sorted(found: Route, count: int) -> bool:
    """Whether order, place and offsets are those of the experts, by the definition."""
    flat = found.experts.reshape(-1)
    order = torch.sort(flat, stable=True).indices
    ends = [int((flat < e).sum()) for e in range(count + 1)]
    place = torch.empty_like(order)
    place[order] = torch.arange(order.numel())
    same_place = found.place.reshape(-1).equal(place)
    return found.order.equal(order) and same_place and found.offsets.tolist() == ends


@pytest.mark.parametrize("scoring", module.SCORINGS)
def test_the_same_experts_and_at_most_twice_what_torch_loses(compiled: str, scoring: str) -> None:
    @settings(max_examples=30, deadline=None, derandomize=True)
    @given(SIZES, st.sampled_from([torch.float32, HALF, torch.float16]))
    def holds(sizes: tuple[int, int, int], dtype: torch.dtype) -> None:
        logits, k = made(sizes, dtype).requires_grad_(), sizes[2]
        ours, torchs = route(logits, k, scoring=scoring), reference(logits, k, scoring=scoring)
        wide = logits.detach().double().requires_grad_()
        truth = reference(wide, k, scoring=scoring)
        assert ours.experts.equal(truth.experts) and is_sorted(ours, sizes[1])
        assert ours.weights.dtype == dtype and ours.load.sum() == sizes[0] * k
        grad = torch.randn(sizes[0], k).to(dtype)
        results = [
            (found.weights, *torch.autograd.grad(found.weights, leaf, grad.to(leaf.dtype)))
            for found, leaf in ((ours, logits), (torchs, logits), (truth, wide))
        ]
        floor = torch.finfo(dtype).eps * 4
        for a, b, t in zip(*results, strict=True):
            if t.numel():
                assert (a - t).abs().max() <= 2 * (b - t).abs().max() + floor * t.abs().max()

    holds()


@pytest.mark.parametrize("scoring", module.SCORINGS)
def test_the_bias_steers_the_choice_and_not_the_weights(compiled: str, scoring: str) -> None:
    @settings(max_examples=30, deadline=None, derandomize=True)
    @given(SIZES)
    def holds(sizes: tuple[int, int, int]) -> None:
        logits, k = made(sizes), sizes[2]
        bias = torch.randn(sizes[1]) * 0.3
        found = route(logits, k, bias, scoring)
        given_scores = scores(logits.double(), scoring)
        keys = given_scores + bias.double()
        best = keys.topk(k).values  # rounding may exchange what is equal to 1e-6
        torch.testing.assert_close(keys.gather(1, found.experts), best, atol=1e-6, rtol=0)
        assert all(len(set(row)) == k for row in found.experts.tolist())
        share = given_scores.gather(1, found.experts)
        share = (share / share.sum(-1, keepdim=True)).float()
        torch.testing.assert_close(found.weights, share, atol=1e-6, rtol=1e-5)
        assert is_sorted(found, sizes[1])

    holds()


def test_the_lower_expert_is_first_among_equals(compiled: str) -> None:
    logits = torch.tensor([[1.0, 2.0, 2.0, 1.0, 2.0]]).repeat(33, 1)
    assert route(logits, 4).experts.equal(torch.tensor([[1, 2, 4, 0]]).repeat(33, 1))
    level = route(torch.zeros(20, 40), 20, torch.zeros(40), "sigmoid")
    assert level.experts.equal(torch.arange(20).repeat(20, 1))


def test_scores_that_vanish_still_sum_to_one(compiled: str) -> None:
    logits = torch.tensor([[-200.0, -201.0, -300.0], [300.0, 200.0, -300.0]])
    sigmoid = route(logits, 2, scoring="sigmoid")
    expected = torch.tensor([[1.0, -1.0], [0.0, 0.0]]).sigmoid()
    expected[0] = torch.tensor([0.0, -1.0]).softmax(-1)
    torch.testing.assert_close(sigmoid.weights, expected)
    assert route(logits, 3).weights.sum(-1).equal(torch.ones(2))


def test_rows_go_there_and_back(compiled: str) -> None:
    found = route(made((40, 6, 3)), 3)
    x = torch.randn(40, 21)
    rows = dispatch(x, found)
    for e in range(6):
        first, end = found.offsets[e], found.offsets[e + 1]
        tokens = (found.experts == e).any(-1).nonzero().squeeze(-1)
        assert rows[first:end].equal(x[tokens])
    torch.testing.assert_close(combine(rows, found), x)


def moved(
    x: Tensor, rows: Tensor, found: Route, weights: Tensor, by_hand: bool
) -> tuple[Tensor, ...]:
    found = found._replace(weights=weights)
    if by_hand:
        there = x[found.order // weights.shape[1]]
        back = (rows[found.place] * weights.unsqueeze(-1)).sum(1)
    else:
        there, back = dispatch(x, found), combine(rows, found)
    loss = (there * rows.detach()).sum() + (back * x.detach()).sum()
    return there.detach(), back.detach(), *torch.autograd.grad(loss, [x, rows, weights])


@pytest.mark.parametrize("dtype", [torch.float32, HALF, torch.float16])
def test_moving_loses_at_most_twice_what_torch_loses(compiled: str, dtype: torch.dtype) -> None:
    @settings(max_examples=25, deadline=None, derandomize=True)
    @given(SIZES, st.sampled_from([1, 3, 16, 37, 64]))
    def holds(sizes: tuple[int, int, int], d: int) -> None:
        n, _, k = sizes
        found = reference(made(sizes), k)
        leaves = [torch.randn(n, d), torch.randn(n * k, d), found.weights]
        leaves = [x.to(dtype) for x in leaves]
        narrow = [x.clone().requires_grad_() for x in leaves]
        wide = [x.double().requires_grad_() for x in leaves]
        ours = moved(*narrow[:2], found, narrow[2], by_hand=False)
        torchs = moved(*narrow[:2], found, narrow[2], by_hand=True)
        truth = moved(*wide[:2], found, wide[2], by_hand=True)
        floor = torch.finfo(dtype).eps * 4
        for a, b, t in zip(ours, torchs, truth, strict=True):
            assert a.dtype == dtype
            if t.numel():
                assert (a - t).abs().max() <= 2 * (b - t).abs().max() + floor * t.abs().max()

    holds()


def test_rounding_to_bfloat16_is_that_of_torch(compiled: str) -> None:
    x = torch.cat([torch.randn(200), torch.tensor([torch.inf, -torch.inf, torch.nan, 1e-40])])
    found = arranged(torch.zeros(1, 1, dtype=torch.int64), torch.tensor([[1.0]]), 1)
    for scale in (1.0, 1.2345, 0.77):
        scaled = found._replace(weights=torch.tensor([[scale]]))
        rows = x.to(HALF).unsqueeze(0)
        expected = (rows.float() * scale).to(HALF)
        torch.testing.assert_close(combine(rows, scaled), expected, equal_nan=True, atol=0, rtol=0)


def test_the_bias_balances_the_load() -> None:
    torch.manual_seed(0)
    preferred = torch.linspace(0, 2, 8)
    bias = torch.zeros(8)
    first = route(torch.randn(2000, 8) + preferred, 2, bias, "sigmoid").load
    for _ in range(300):
        load = route(torch.randn(500, 8) + preferred, 2, bias, "sigmoid").load
        bias = balanced(bias, load, rate=5e-3)
    last = route(torch.randn(2000, 8) + preferred, 2, bias, "sigmoid").load
    assert first.max() > 1.8 * first.float().mean() and last.max() < 1.15 * last.float().mean()
    assert balanced(bias, torch.full((8,), 3)).equal(bias)


@pytest.mark.parametrize("scoring", module.SCORINGS)
def test_gradcheck(scoring: str) -> None:
    logits = made((5, 6, 3)).double().requires_grad_()
    bias = torch.randn(6)
    for run in (route, reference):
        torch.autograd.gradcheck(
            lambda x, run=run: run(x, 3, bias, scoring).weights.square(), (logits,)
        )
    found = route(logits.detach(), 3, bias, scoring)
    x, rows = torch.randn(5, 4).double(), torch.randn(15, 4).double()
    leaves = [y.requires_grad_() for y in (x, rows, found.weights)]

    def both(x: Tensor, rows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        used = found._replace(weights=weights)
        return dispatch(x, used), combine(rows, used)

    torch.autograd.gradcheck(both, leaves)
    torch.autograd.gradgradcheck(both, leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(dtype: torch.dtype) -> None:
    logits = made((7, 5, 2), dtype).requires_grad_()
    for bias in (None, torch.randn(5, dtype=dtype)):
        torch.library.opcheck(module._route, (logits, bias, 2, True))
    found = reference(logits.detach(), 2)
    torch.library.opcheck(module._sort, (found.experts, 5))
    x, rows = torch.randn(7, 3, dtype=dtype), torch.randn(14, 3, dtype=dtype)
    x, rows, weights = (y.requires_grad_() for y in (x, rows, found.weights))
    for given_weights in (None, weights):
        tail = (found.order, found.place, given_weights)
        torch.library.opcheck(moving._dispatch, (x, *tail))
        torch.library.opcheck(moving._combine, (rows, *tail))
    torch.library.opcheck(moving._match, (x, rows, found.order, found.place))
    grad = torch.randn_like(weights)
    given_tensors = (grad, weights.detach(), found.experts, logits.detach())
    torch.library.opcheck(module._route_backward, (*given_tensors, True))


def test_it_can_be_traced() -> None:
    def layer(logits: Tensor, x: Tensor) -> Tensor:
        found = route(logits, 2, scoring="sigmoid")
        return combine(dispatch(x, found).square(), found)

    logits, x = made((9, 4, 2)), torch.randn(9, 8)
    traced = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(traced(logits, x), layer(logits, x))


L, B = torch.randn(6, 4), torch.randn(4)
BAD: dict[str, tuple[Any, ...]] = {
    r"\(tokens, experts\); got \(4,\)": (L[0], 2),
    r"\(tokens, experts\); got \(6, 0\)": (L[:, :0], 1),
    "floating dtype; got torch.int64": (L.long(), 2),
    "k is 5, and must be an int from 1 to 4": (L, 5),
    r"k is (np.int64\()?2\)?, and must be an int": (L, np.int64(2)),
    "k is 0": (L, 0),
    "k is 1.0": (L, 1.0),
    "scoring is 'max'": (L, 2, None, "max"),
    r"4 numbers, one an expert; got \(3,\)": (L, 2, B[:3]),
    "bias must be of a floating": (L, 2, B.long()),
    "bias is on meta": (L, 2, B.to("meta")),
    "logits must be finite": (L.clone().fill_(torch.nan), 2),
    "logits must be finite: ": (torch.cat([L, L.new_tensor([[0, 0, torch.inf, 0]])]), 2, B),
    "bias must be finite": (L, 2, B * torch.inf),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_of_route(compiled: str, message: str) -> None:
    for run in (route, reference):
        with pytest.raises(ValueError, match=message):
            run(*BAD[message])


W, E = torch.rand(6, 2), torch.tensor([[0, 1]] * 6)
UNFIT: dict[str, tuple[Any, ...]] = {
    r"both be \(tokens, k\)": (E, W[:, :1], 4),
    "both be": (E[:, :0], W[:, :0], 4),
    "experts must be int64": (E.short(), W, 4),
    "weights must be of": (E, W.long(), 4),
    "weights on meta": (E, W.to("meta"), 4),
    "at least one expert": (E, W, 0),
    "between 0 and 0": (E, W, 1),
    "between 0 and 3": (E - 1, W, 4),
}


@pytest.mark.parametrize("message", UNFIT)
def test_bad_input_of_arranged(compiled: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        arranged(*UNFIT[message])


def test_gradients_of_gradients_are_not_lost(compiled: str) -> None:
    """Also where the gradient that comes in has none of its own, as that of a sum."""
    found = arranged(E, W, 4)
    second = []
    for dtype in (torch.float32, torch.float64):
        rows = torch.linspace(-1, 1, 36).view(12, 3).to(dtype).requires_grad_()
        weights = W.to(dtype).clone().requires_grad_()
        moved = combine(dispatch(combine(rows, found._replace(weights=weights)), found), found)
        (first,) = torch.autograd.grad(moved.sum(), weights, create_graph=True)
        (grad,) = torch.autograd.grad((first**2).sum(), rows)
        second.append(grad)
    assert second[1].abs().max() > 1
    torch.testing.assert_close(second[0].double(), second[1], atol=1e-5, rtol=1e-5)


def test_bad_input_of_the_moves(compiled: str) -> None:
    found, x, rows = arranged(E, W, 4), torch.randn(6, 3), torch.randn(12, 3)
    worse = {
        "x must be \\(6, d\\)": lambda: dispatch(x[:5], found),
        "rows must be \\(12, d\\)": lambda: combine(rows[:, 0], found),
        "x must be of a floating": lambda: dispatch(x.long(), found),
        "x is on meta": lambda: dispatch(x.to("meta"), found),
        "must all be \\(tokens, k\\)": lambda: combine(rows, found._replace(place=E[:, :1])),
        "order and place of a route must": lambda: combine(rows, found._replace(order=E)),
        "names a pair": lambda: combine(rows, found._replace(place=found.place + 1)),
        "names a pair that": lambda: dispatch(x, found._replace(order=found.order - 1)),
        "one number for each expert": lambda: balanced(torch.zeros(3), found.load),
        "rate is -1": lambda: balanced(torch.zeros(4), found.load, -1),
        "use float32": lambda: balanced(torch.zeros(4).bfloat16(), found.load),
    }
    for message, call in worse.items():
        with pytest.raises(ValueError, match=message):
            call()


def test_a_torch_that_takes_no_operations_costs_one_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if compiler() is None:
        pytest.skip("no C compiler")
    logits = made((33, 9, 3))
    quick = [route(logits, 3, bias, "sigmoid") for bias in (None, torch.arange(9.0))]

    def refused(name: str) -> None:
        raise BuildError("undefined symbol")

    monkeypatch.setattr(chosen.build, "operations", refused)
    chosen.operation.cache_clear()
    with pytest.warns(RuntimeWarning, match="slower way .undefined symbol"):
        slow = [route(logits, 3, bias, "sigmoid") for bias in (None, torch.arange(9.0))]
    chosen.operation.cache_clear()
    for a, b in zip(quick, slow, strict=True):
        assert all(x.equal(y) for x, y in zip(a, b, strict=True))


SANITIZED = """
import test_routing as t
from community.kernels import dispatch, routing
from community.kernels.build import operations
program, quick = CProgram("routing", flags), operations("routing_torch", flags)
routing.kernels = dispatch.kernels = lambda name: program
for n, e, k in [(0, 3, 1), (1, 1, 1), (33, 5, 5), (40, 70, 23), (17, 9, 8), (16, 64, 2)]:
    for way in (None, quick):
        routing.operation = lambda _, name: way and getattr(way, name).default
        for scoring in routing.SCORINGS:
            for bias in (None, torch.randn(e)):
                logits = t.made((n, e, k)).requires_grad_()
                found = routing.route(logits, k, bias, scoring)
                found.weights.sum().backward()
    for d, dtype in [(1, torch.float32), (37, torch.bfloat16), (64, torch.float32)]:
        x, rows = torch.randn(n, d).to(dtype), torch.randn(n * k, d).to(dtype)
        leaves = [y.detach().requires_grad_() for y in (x, rows, found.weights)]
        t.moved(*leaves[:2], found, leaves[2], False)
for bad in (-1, 5, 2**40):
    for way in (None, quick):
        routing.operation = lambda _, name: way and getattr(way, name).default
        try:
            routing.arranged(torch.tensor([[bad]]), torch.ones(1, 1), 5)
        except ValueError:
            pass
"""


@pytest.mark.slow
def test_no_byte_out_of_place() -> None:
    assert_clean(SANITIZED)
