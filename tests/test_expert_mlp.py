"""The experts of a mixture against plain torch, in C, in OpenCL and grouped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from backends import computed_by
from hypothesis import given, settings
from hypothesis import strategies as st
from sanitizers import assert_clean
from torch import Tensor

from community.kernels import backend as chosen
from community.kernels import experts as module
from community.kernels.experts import ACTIVATIONS, expert_mlp, reference

HALF = torch.bfloat16


@pytest.fixture(params=["c", "opencl"])
def compiled(request: pytest.FixtureRequest) -> Iterator[str]:
    with computed_by(request.param, "experts") as name:
        yield name


def made(
    counts: list[int], d: int, inner: int, out: int, gated: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows, offsets, up and down of experts with so many rows."""
    torch.manual_seed(sum(counts) + d)
    e = len(counts)
    offsets = torch.tensor([0, *counts]).cumsum(0)
    up = torch.randn(e, inner * (1 + gated), d) / d**0.5
    down = torch.randn(e, out, inner) / inner**0.5
    rows = torch.randn(sum(counts), d)
    return rows.to(dtype), offsets, up.to(dtype), down.to(dtype)


def results(run: Any, inputs: tuple[Tensor, ...], activation: str, learn: bool) -> list[Tensor]:
    rows, offsets, up, down = inputs
    if not learn:
        return [run(rows, offsets, up, down, activation)]
    leaves = [x.detach().clone().requires_grad_() for x in (rows, up, down)]
    out = run(leaves[0], offsets, *leaves[1:], activation)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


COUNTS = st.lists(st.sampled_from([0, 1, 2, 3, 4, 5, 9, 30]), min_size=1, max_size=5)
WIDTHS = st.sampled_from([(16, 32, 16), (64, 48, 32), (37, 21, 5), (128, 16, 160)])


@pytest.mark.parametrize("dtype", [torch.float32, HALF, torch.float16])
@pytest.mark.parametrize("learn", [False, True])
def test_loses_at_most_twice_what_torch_loses(
    compiled: str, dtype: torch.dtype, learn: bool
) -> None:
    @settings(max_examples=25, deadline=None, derandomize=True)
    @given(COUNTS, WIDTHS, st.booleans(), st.sampled_from(sorted(ACTIVATIONS)))
    def holds(counts: list[int], widths: tuple[int, int, int], gated: bool, name: str) -> None:
        inputs = made(counts, *widths, gated, dtype)
        wide = tuple(x.double() if x.is_floating_point() else x for x in inputs)
        ours = results(expert_mlp, inputs, name, learn)
        torchs = results(reference, inputs, name, learn)
        truth = results(reference, wide, name, learn)
        floor = torch.finfo(dtype).eps * 4
        for a, b, t in zip(ours, torchs, truth, strict=True):
            if t.numel():
                assert a.dtype == dtype
                assert (a - t).abs().max() <= 2 * (b - t).abs().max() + floor * t.abs().max()

    holds()


@pytest.mark.parametrize("counts", [[300, 500], [2, 1, 0, 3], [40, 60, 50]])
def test_every_way_of_computing_gives_the_same(compiled: str, counts: list[int]) -> None:
    inputs = made(counts, 64, 48, 32, True, torch.float32)
    torch.testing.assert_close(expert_mlp(*inputs), reference(*inputs), atol=1e-5, rtol=1e-5)


def test_the_few_are_computed_by_our_source(compiled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    run = chosen.kernels("experts")
    assert run is not None

    def noted(kernel: str, *arguments: Any, items: int) -> None:
        called.append(kernel)
        run(kernel, *arguments, items=items)

    monkeypatch.setattr(module, "kernels", lambda _name: noted)
    for dtype, kind in ((torch.float32, "f32"), (HALF, "bf16")):
        inputs = made([1, 3, 0, 7], 64, 48, 32, True, dtype)
        expert_mlp(*inputs)
        assert called == [f"experts_product_{kind}"] * 2
        called.clear()
    expert_mlp(*made([40, 40], 64, 48, 32, True, torch.float32))
    expert_mlp(*made([1, 1], 63, 48, 32, True, torch.float32)[:4])
    assert called == ["experts_product_f32"]  # a width of 63 is left to torch, one of 48 is not


def test_frozen_experts_still_give_their_rows_a_gradient() -> None:
    rows, offsets, up, down = made([2, 3], 16, 32, 16, True, torch.float32)
    rows.requires_grad_()
    (grad,) = torch.autograd.grad(expert_mlp(rows, offsets, up, down).sum(), rows)
    (expected,) = torch.autograd.grad(reference(rows, offsets, up, down).sum(), rows)
    torch.testing.assert_close(grad, expected)


def test_weights_may_be_views() -> None:
    rows, offsets, up, down = made([20, 0, 30], 16, 32, 16, True, torch.float32)
    wide = torch.randn(3, 16, 35)
    views = {
        "transposed": (up.transpose(1, 2).contiguous().transpose(1, 2), down),
        "sliced": (up, wide[:, :, 1:33]),
        "shared": (up[:1].expand(3, -1, -1), down),
    }
    for up_view, down_view in views.values():
        for learn in (False, True):
            given_tensors = (rows, offsets, up_view, down_view)
            ours, theirs = (
                results(run, given_tensors, "silu", learn) for run in (expert_mlp, reference)
            )
            for a, b in zip(ours, theirs, strict=True):
                torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gradcheck(name: str) -> None:
    rows, offsets, up, down = made([2, 0, 3], 4, 3, 2, True, torch.float64)
    leaves = [x.requires_grad_() for x in (rows, up, down)]

    def run(rows: Tensor, up: Tensor, down: Tensor) -> Tensor:
        return expert_mlp(rows, offsets, up, down, name)

    torch.autograd.gradcheck(run, leaves)
    torch.autograd.gradgradcheck(run, leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(dtype: torch.dtype) -> None:
    rows, offsets, up, _ = made([2, 0, 3], 16, 32, 16, True, dtype)
    rows, up = rows.requires_grad_(), up.requires_grad_()
    torch.library.opcheck(module._product, (rows, up, offsets))
    g = torch.randn(5, 64, dtype=dtype, requires_grad=True)
    torch.library.opcheck(module._outer, (g, rows, offsets))


def test_it_can_be_traced() -> None:
    traced = torch.compile(expert_mlp, backend="aot_eager", fullgraph=True)
    for counts in ([2, 0, 3], [4, 1, 3]):  # the second makes the number of rows a symbol
        inputs = made(counts, 16, 32, 16, True, torch.float32)
        torch.testing.assert_close(traced(*inputs), reference(*inputs))


X, OFF, U, D = made([2, 1], 8, 4, 8, True, torch.float32)
BAD: dict[str, tuple[Any, ...]] = {
    "activation is 'relu'": (X, OFF, U, D, "relu"),
    r"rows must be \(S, D\)": (X[0], OFF, U, D),
    "rows must be": (X, OFF, U[:0], D[:0]),
    "do not fit together": (X[:, :4], OFF, U, D),
    "do not fit": (X, OFF, U, D[:1]),
    "up must give 4 or 8": (X, OFF, U[:, :6], D),
    "one floating dtype": (X.double(), OFF, U, D),
    "offsets must be 3": (X, OFF[1:], U, D),
    "numbers of int64": (X, OFF.int(), U, D),
    "are on cpu, cpu, meta": (X, OFF, U.to("meta"), D),
    "offsets must rise from 0 to 3": (X, OFF + 1, U, D),
    "offsets must rise": (X, torch.tensor([0, 5, 3]), U, D),
    "offsets must rise from": (X, torch.tensor([0, 1, 2]), U, D),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message: str) -> None:
    for run in (expert_mlp, reference):
        with pytest.raises(ValueError, match=message):
            run(*BAD[message])


SANITIZED = """
import test_expert_mlp as t
program = CProgram("experts", flags)
t.module.kernels = lambda name: program
for counts in ([1], [0, 5, 2], [4, 0], [9, 1, 1, 3]):
    for dtype in (torch.float32, t.HALF):
        for widths in ((16, 32, 16), (64, 48, 32), (128, 16, 160)):
            inputs = t.made(counts, *widths, True, dtype)
            assert t.module._few(inputs[0], inputs[2], sum(n > 0 for n in counts))
            t.expert_mlp(*inputs)
"""


@pytest.mark.slow
def test_no_byte_out_of_place() -> None:
    assert_clean(SANITIZED)
