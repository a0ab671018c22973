"""Sparsemax and entmax against the entmax package and by their own properties."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from backends import computed_by
from hypothesis import given, settings
from hypothesis import strategies as st
from sanitizers import assert_clean
from test_attention import make, options_for
from torch import Tensor

from community.kernels import entmax as module
from community.kernels.attention import factors, scores, shared
from community.kernels.entmax import entmax15, entmax_attention, reference, sparsemax

ALPHAS = [1.5, 2.0]
SIZES = st.tuples(
    *(st.integers(1, 3), st.sampled_from([1, 2]), st.sampled_from([1, 3])),
    *(st.integers(1, 140), st.integers(1, 140), st.sampled_from([1, 8, 24, 64])),
    st.sampled_from([3, 16, 64]),
)


@pytest.fixture(params=["c", "opencl"])
def compiled(request: pytest.FixtureRequest) -> Iterator[str]:
    with computed_by(request.param, "entmax") as name:
        yield name


def weigh(alpha: float) -> Callable[[Tensor], Tensor]:
    return entmax15 if alpha == 1.5 else sparsemax


def plain(
    q: Tensor, k: Tensor, v: Tensor, temperature: Tensor, alpha: float, **options: Any
) -> Tensor:
    """The attention in words of torch, with gradients by autograd through the sorting."""
    wide = [x.float() if x.dtype == torch.bfloat16 else x for x in (q, k, v)]
    s = scores(
        *wide[:2],
        factors(q, None, temperature),
        options.get("mask"),
        options.get("lengths"),
        options["causal"],
    )
    return (reference(s, alpha) @ shared(wide[2], q)).to(q.dtype)


def results(
    run: Any, inputs: list[Tensor], dtype: torch.dtype, device: str = "cpu", **options: Any
) -> list[Tensor]:
    """The output, and the gradients of q, k, v and the temperature."""
    leaves = [x.to(device, dtype).requires_grad_() for x in inputs]
    options = {n: x.to(device) if isinstance(x, Tensor) else x for n, x in options.items()}
    out = run(*leaves[:3], temperature=leaves[3], **options)
    go = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    return [x.detach().cpu() for x in (out, *torch.autograd.grad(out, leaves, go))]


@pytest.mark.parametrize("kind", ["plain", "lengths", "bool", "added", "rows"])
def test_attention_loses_at_most_twice_what_torch_loses(compiled: str, kind: str) -> None:
    @settings(max_examples=12, deadline=None, derandomize=True)
    @given(
        SIZES,
        st.booleans(),
        st.sampled_from(ALPHAS),
        st.sampled_from([torch.float32, torch.bfloat16]),
    )
    def holds(sizes: tuple[int, ...], causal: bool, alpha: float, dtype: torch.dtype) -> None:
        inputs = make(sizes, dtype)
        torch.manual_seed(0)
        options = {"causal": causal, "alpha": alpha, **options_for(kind, inputs)}
        truth = results(plain, [x.double() for x in inputs], torch.float64, **options)
        ours = results(entmax_attention, inputs, dtype, **options)
        torchs = results(plain, inputs, dtype, **options)
        floor = torch.finfo(dtype).eps * 16
        for a, b_, t in zip(ours, torchs, truth, strict=True):
            size = max(1.0, float(t.abs().max()), sizes[3] ** 0.5 * sizes[5] ** 0.5 / 4)
            assert float((a - t).abs().max()) <= 2 * float((b_ - t).abs().max()) + floor * size

    holds()


@pytest.mark.parametrize("alpha", ALPHAS)
def test_rows_lose_at_most_twice_what_torch_loses(compiled: str, alpha: float) -> None:
    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(
        *(st.integers(0, 4), st.integers(1, 300), st.sampled_from([0.0, 1e-3, 1.0, 30.0])),
        *(st.sampled_from([0.0, -1e4, 1e30]), st.floats(0, 1)),
    )
    def holds(rows: int, n: int, spread: float, add: float, hidden: float) -> None:
        made = torch.Generator().manual_seed(rows * n)
        x = torch.randn(rows, n, generator=made) * spread + add
        x[torch.rand(rows, n, generator=made) < hidden] = -torch.inf
        y, truth = weigh(alpha)(x), reference(x.double(), alpha)
        if rows:
            lost = float((reference(x, alpha) - truth).abs().max())
            assert float((y - truth).abs().max()) <= 2 * lost + 1e-6
            seen = (x > -torch.inf).any(-1).float()
            torch.testing.assert_close(y.sum(-1), seen, atol=1e-4, rtol=0)

    holds()


@pytest.mark.parametrize("alpha", ALPHAS)
def test_numbers_that_are_none(compiled: str, alpha: float) -> None:
    x = torch.randn(4, 70, generator=torch.Generator().manual_seed(0))
    x[1, 60], x[2, 3] = torch.nan, torch.inf
    y = weigh(alpha)(x)
    assert y[1:3].isnan().all() and y[[0, 3]].isfinite().all()
    q, k, v, _ = make((1, 1, 1, 8, 8, 8, 8))
    q[0, 0, 3, 2] = torch.nan
    out = entmax_attention(q, k, v, alpha=alpha)
    assert out[0, 0, 3].isnan().all() and out[0, 0, :3].isfinite().all()


def test_a_query_that_sees_nothing_gives_zeros(compiled: str) -> None:
    q, k, v, _ = (x.requires_grad_() for x in make((1, 1, 1, 5, 3, 8, 8)))
    out = entmax_attention(q, k, v, causal=True)
    assert not out[0, 0, :2].any() and out[0, 0, 2:].any()
    (gq,) = torch.autograd.grad(out.sum(), q)
    assert not gq[0, 0, :2].any() and gq.isfinite().all()
    hidden = torch.zeros(5, 3, dtype=torch.bool)
    assert not entmax_attention(q, k, v, mask=hidden).any()


def test_lengths_may_be_every_second_number(compiled: str) -> None:
    q, k, v, _ = make((2, 1, 1, 5, 6, 8, 8))
    lengths = torch.tensor([2, 6, 5, 1], dtype=torch.int32)[::2]
    found = entmax_attention(q, k, v, lengths=lengths)
    torch.testing.assert_close(found, entmax_attention(q, k, v, lengths=lengths.clone()))


@pytest.mark.parametrize("alpha", ALPHAS)
def test_a_mask_that_learns(alpha: float) -> None:
    q, k, v, _ = make((1, 1, 2, 5, 6, 8, 8))
    bias = torch.randn(1, 2, 5, 6).requires_grad_()
    out = entmax_attention(q, k, v, mask=bias, alpha=alpha)
    torch.testing.assert_close(out, entmax_attention(q, k, v, mask=bias.detach(), alpha=alpha))
    out.square().sum().backward()
    assert bias.grad is not None and bias.grad.any()


@pytest.mark.parametrize("alpha", ALPHAS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(1, 4), st.integers(1, 200), st.sampled_from([0.1, 1.0, 20.0]))
def test_agrees_with_the_entmax_package(alpha: float, rows: int, n: int, spread: float) -> None:
    peer = pytest.importorskip("entmax")
    made = torch.Generator().manual_seed(rows * n)
    x = (torch.randn(rows, n, generator=made) * spread).double().requires_grad_()
    go = torch.randn(rows, n, generator=made).double()
    theirs = (peer.entmax15 if alpha == 1.5 else peer.sparsemax)(x, dim=-1)
    mine = weigh(alpha)(x)
    torch.testing.assert_close(mine, theirs, atol=1e-9, rtol=0)
    (mine,), (theirs,) = (torch.autograd.grad(y, x, go) for y in (mine, theirs))
    torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_is_a_sparse_distribution(alpha: float, dtype: torch.dtype) -> None:
    x = torch.randn(5, 100, generator=torch.Generator().manual_seed(0)).to(dtype) * 3
    y = weigh(alpha)(x)
    assert y.dtype == dtype and (y >= 0).all() and (y == 0).any()
    torch.testing.assert_close(y.float().sum(-1), torch.ones(5), atol=2e-2, rtol=0)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_gradcheck_and_opcheck(alpha: float) -> None:
    made = torch.Generator().manual_seed(2)
    x = torch.randn(3, 7, generator=made, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda x: module._entmax(x, alpha), [x])
    torch.autograd.gradcheck(lambda x: reference(x, alpha), [x])
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        row = x.detach().to(dtype).requires_grad_()
        torch.library.opcheck(module._rows, (row, alpha))


@pytest.mark.parametrize("alpha", ALPHAS)
def test_attention_gradcheck_and_opcheck(alpha: float) -> None:
    wide = [x.double().requires_grad_() for x in make((2, 1, 2, 4, 5, 3, 2))]
    torch.autograd.gradcheck(
        lambda q, k, v, t: entmax_attention(q, k, v, temperature=t, causal=True, alpha=alpha), wide
    )
    for dtype in (torch.float64, torch.float32):
        q, k, v, t = (x.detach().to(dtype).requires_grad_() for x in wide)
        mask, lengths = torch.randn(1, 1, 4, 5).to(dtype), torch.tensor([3, 5], dtype=torch.int32)
        given = (q, k, v, t, mask, lengths, True, alpha)
        torch.library.opcheck(module._attention, given)
        out, thresholds = (x.detach() for x in module._attention(*given))
        gradient = (out, *(x.detach() for x in given[:6]), True, alpha, thresholds)
        torch.library.opcheck(module._attention_backward, gradient)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_compiled_for_any_sizes(alpha: float) -> None:
    def both(x: torch.Tensor) -> torch.Tensor:
        rows = weigh(alpha)(x)
        return entmax_attention(rows, x, x, alpha=alpha)

    compiled = torch.compile(both, backend="aot_eager", dynamic=True, fullgraph=True)
    for length in (5, 9):
        x = torch.randn(1, 2, length, 8)
        torch.testing.assert_close(compiled(x), both(x))


@pytest.mark.parametrize("alpha", ALPHAS)
def test_what_is_hidden_is_never_chosen(alpha: float) -> None:
    x = torch.tensor([[0.3, -torch.inf, 0.1], [-torch.inf] * 3], requires_grad=True)
    y = weigh(alpha)(x)
    assert y[0, 1] == 0 and y[0].sum().isclose(torch.tensor(1.0)) and not y[1].any()
    y.square().sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


@pytest.mark.parametrize("alpha", ALPHAS)
def test_attention(alpha: float) -> None:
    made = torch.Generator().manual_seed(3)
    q = torch.randn(2, 4, 5, 8, generator=made, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(2, 2, 6, 8, generator=made, dtype=torch.float64) for _ in range(2))
    t = torch.linspace(0.5, 1.5, 4, dtype=torch.float64).requires_grad_()
    out = entmax_attention(q, k, v, alpha=alpha, causal=True, temperature=t)
    s = q @ k.repeat_interleave(2, 1).mT * 8**-0.5 / t.view(-1, 1, 1)
    s = s.masked_fill(torch.ones(5, 6).triu(2).bool(), -torch.inf)
    torch.testing.assert_close(out, reference(s, alpha) @ v.repeat_interleave(2, 1))
    gq, gt = torch.autograd.grad(out.square().sum(), [q, t])
    torch.testing.assert_close(gt, -(q * gq).sum((0, 2, 3)) / t)


def test_bad_input() -> None:
    x = torch.randn(1, 1, 2, 4)
    with pytest.raises(ValueError, match=r"must be 1\.5 or 2"):
        entmax_attention(x, x, x, alpha=1.2)
    with pytest.raises(ValueError, match="floating"):
        sparsemax(torch.ones(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="at least one"):
        entmax15(torch.ones(3, 0))
    with pytest.raises(ValueError, match="fit together"):
        entmax_attention(x, x[..., :2], x)


SANITIZED = """
import test_entmax as t
program = CProgram("entmax", flags)
t.module._program = lambda x, mask=None: program
for sizes in ((1, 1, 1, 1, 1, 1, 3), (2, 2, 3, 33, 70, 24, 16), (1, 2, 1, 70, 33, 64, 64)):
    for alpha in t.ALPHAS:
        for causal in (False, True):
            inputs = [x.requires_grad_() for x in t.make(sizes)]
            mask = torch.rand(sizes[3], sizes[4]) > 0.3
            one = torch.ones(sizes[0], dtype=torch.int64)
            for more in ({}, {"mask": mask}, {"lengths": one}):
                options = {"causal": causal, "alpha": alpha, **more}
                t.results(t.entmax_attention, inputs, torch.float32, **options)
        t.module._rows(torch.randn(3, sizes[4]), alpha)
"""


@pytest.mark.slow
def test_no_byte_out_of_place() -> None:
    assert_clean(SANITIZED)
