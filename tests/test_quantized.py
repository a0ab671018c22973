"""Quantized linear layers against the product of the dequantized weight, in C, OpenCL and torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from backends import computed_by
from hypothesis import given, settings
from hypothesis import strategies as st
from sanitizers import assert_clean
from torch import Tensor

from community.kernels import quantized as module
from community.kernels.quantized import dequantize, quantize, quantized_linear, reference

GROUPS = st.tuples(st.integers(1, 5), st.sampled_from([1, 3, 8, 20, 32, 72]))
ROWS = st.sampled_from([0, 1, 2, 3, 5, 7, 8, 13, 31, 64, 130])
DTYPES = st.sampled_from([torch.float32, torch.bfloat16])


@pytest.fixture(params=["c", "opencl", "reference"])
def computed(request: pytest.FixtureRequest) -> Iterator[str]:
    with computed_by(request.param, "quantized") as name:
        yield name


def made(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def as_close_as_torch(ours: Tensor, x: Tensor, w: Tensor) -> bool:
    """Whether `ours` is as near to x w as torch's product is; the floor is a rounding or two."""
    torchs, truth = (x.float() @ w).to(ours.dtype), x.double() @ w.double()
    assert ours.shape == truth.shape
    if not truth.numel():
        return True
    floor = torch.finfo(ours.dtype).eps * float((x.float().abs() @ w.abs()).max())
    return float((ours - truth).abs().max()) <= 2 * float((torchs - truth).abs().max()) + floor


@pytest.mark.parametrize("bits", module.BITS)
def test_computes_with_the_dequantized_weight(computed: str, bits: int) -> None:
    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(st.integers(1, 150), GROUPS, ROWS, DTYPES)
    def holds(outputs: int, groups: tuple[int, int], rows: int, dtype: torch.dtype) -> None:
        weight = quantize(made(outputs, groups[0] * groups[1]), bits, groups[1])
        dense = dequantize(weight)
        x = made(rows, weight.shape[1], seed=1).to(dtype).requires_grad_()
        go = made(rows, outputs, seed=2).to(dtype)
        y = quantized_linear(x, weight)
        (gx,) = torch.autograd.grad(y, x, go)
        x, y = x.detach(), y.detach()
        assert y.dtype == gx.dtype == dtype
        assert as_close_as_torch(y, x, dense.t()) and as_close_as_torch(gx, go, dense)
        assert torch.equal(quantized_linear(x, weight), y)

    holds()


@pytest.mark.parametrize("bits", module.BITS)
@settings(max_examples=40)
@given(st.integers(1, 70), GROUPS, st.sampled_from([1e-30, 1.0, 1e30]))
def test_rounds_to_the_nearest(
    bits: int, outputs: int, groups: tuple[int, int], size: float
) -> None:
    weight = made(outputs, groups[0] * groups[1]) * size
    packed = quantize(weight, bits, groups[1])
    parts = weight.view(outputs, *groups)
    step = parts.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    lost = (dequantize(packed).view_as(parts) - parts).abs()
    assert (lost <= step * 0.50001).all()
    assert packed.shape == (outputs, groups[0] * groups[1])


@pytest.mark.parametrize("bits", module.BITS)
def test_what_is_an_integer_comes_back(computed: str, bits: int) -> None:
    most = 2 ** (bits - 1) - 1
    whole = torch.randint(-most, most + 1, (70, 6, 40), generator=torch.Generator().manual_seed(0))
    whole[..., 0] = most
    weight = whole.flatten(1).float() / 4
    assert torch.equal(dequantize(quantize(weight, bits, 40)), weight)


def test_sizes() -> None:
    weight = made(256, 512)
    eight, four = quantize(weight), quantize(weight, bits=4)
    assert eight.nbytes == weight.numel() * (1 + 4 / 64)
    assert four.nbytes == weight.numel() * (1 / 2 + 4 / 64)


def test_a_group_of_zeros(computed: str) -> None:
    weight = made(40, 64)
    weight[:, :32] = 0
    packed = quantize(weight, 4, 32)
    assert not dequantize(packed)[:, :32].any()
    assert quantized_linear(torch.full((1, 64), 1e30), packed).isfinite().all()


def test_nan_stays_in_its_row(computed: str) -> None:
    x = made(5, 64)
    x[3, 7] = torch.nan
    y = quantized_linear(x, quantize(made(33, 64)))
    assert y[3].isnan().all() and y[[0, 1, 2, 4]].isfinite().all()


def test_shapes_and_bias(computed: str) -> None:
    weight, bias = quantize(made(9, 24), group=12), made(9).requires_grad_()
    x = made(2, 3, 24)
    y = quantized_linear(x.transpose(0, 1), weight, bias)
    assert y.shape == (3, 2, 9)
    torch.testing.assert_close(y, reference(x, weight, bias).transpose(0, 1))
    assert quantized_linear(x[0, 0], weight).shape == (9,)
    (grad,) = torch.autograd.grad(y.sum(), bias)
    assert torch.equal(grad, torch.full((9,), 6.0))


def test_gradcheck() -> None:
    weight = quantize(made(5, 12), group=6)
    x = made(3, 12).double().requires_grad_()
    for run in (quantized_linear, reference):
        torch.autograd.gradcheck(lambda x, run=run: run(x, weight), [x])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype: torch.dtype) -> None:
    w = quantize(made(40, 12), group=6)
    x = made(3, 12).to(dtype).requires_grad_()
    torch.library.opcheck(module._linear, (x, w.packed, w.scales, w.bits, w.group, 40))
    go = made(3, 40).to(dtype)
    torch.library.opcheck(module._linear_backward, (go, w.packed, w.scales, w.bits, w.group, 12))


def test_traced_by_torch() -> None:
    weight = quantize(made(40, 64), 4)
    traced = torch.compile(quantized_linear, backend="aot_eager", fullgraph=True)
    x = made(3, 64)
    torch.testing.assert_close(traced(x, weight), quantized_linear(x, weight))


W = quantize(made(3, 8), group=4)
X = made(2, 8)
BAD: dict[str, Any] = {
    "bits is 5": lambda: quantize(made(3, 8), 5, 4),
    "group of 64 does not divide": lambda: quantize(made(3, 8)),
    "group of 0": lambda: quantize(made(3, 8), group=0),
    "does not divide a weight of \\(0, 8\\)": lambda: quantize(made(0, 8), group=8),
    "must be \\(outputs": lambda: quantize(made(8)),
    "of torch.int64": lambda: quantize(torch.ones(2, 2, dtype=torch.int64)),
    "not finite": lambda: quantize(torch.full((1, 4), torch.inf), group=4),
    "needs contiguous": lambda: replace(W, group=2),
    "not torch.int64": lambda: replace(W, packed=W.packed.long()),
    "scales on meta": lambda: replace(W, scales=W.scales.to("meta")),
    "x is torch.int64": lambda: quantized_linear(X.long(), W),
    "does not end in": lambda: quantized_linear(X[:, :4], W),
    "x is on meta": lambda: quantized_linear(X.to("meta"), W),
    "bias must be": lambda: quantized_linear(X, W, torch.ones(4)),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BAD[message]()


SANITIZED = """
from test_quantized import made, quantize, quantized_linear
from community.kernels import quantized
program = CProgram("quantized", flags)
quantized._program = lambda device: program
for outputs, groups, group in ((1, 1, 1), (33, 3, 20), (64, 2, 64), (5, 1, 7)):
    for bits in quantized.BITS:
        weight = quantize(made(outputs, groups * group), bits, group)
        for rows in (1, 2, 7, 31, 130):
            x = made(rows, groups * group).requires_grad_()
            quantized_linear(x, weight).sum().backward()
"""


@pytest.mark.slow
def test_no_byte_out_of_place() -> None:
    assert_clean(SANITIZED)
