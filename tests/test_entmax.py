"""Sparsemax and entmax against the entmax package and by their own properties."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from community.kernels import entmax as module
from community.kernels.entmax import entmax15, entmax_attention, reference, sparsemax

ALPHAS = [1.5, 2.0]


@pytest.mark.parametrize("alpha", ALPHAS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(1, 4), st.integers(1, 200), st.sampled_from([0.1, 1.0, 20.0]))
def test_agrees_with_the_entmax_package(alpha: float, rows: int, n: int, spread: float) -> None:
    peer = pytest.importorskip("entmax")
    made = torch.Generator().manual_seed(rows * n)
    x = (torch.randn(rows, n, generator=made) * spread).double().requires_grad_()
    go = torch.randn(rows, n, generator=made).double()
    theirs = (peer.entmax15 if alpha == 1.5 else peer.sparsemax)(x, dim=-1)
    mine = (entmax15 if alpha == 1.5 else sparsemax)(x)
    torch.testing.assert_close(mine, theirs, atol=1e-9, rtol=0)
    (mine,), (theirs,) = (torch.autograd.grad(y, x, go) for y in (mine, theirs))
    torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_is_a_sparse_distribution(alpha: float, dtype: torch.dtype) -> None:
    x = torch.randn(5, 100, generator=torch.Generator().manual_seed(0)).to(dtype) * 3
    y = (entmax15 if alpha == 1.5 else sparsemax)(x)
    assert y.dtype == dtype and (y >= 0).all() and (y == 0).any()
    torch.testing.assert_close(y.float().sum(-1), torch.ones(5), atol=2e-2, rtol=0)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_gradcheck_and_opcheck(alpha: float) -> None:
    made = torch.Generator().manual_seed(2)
    x = torch.randn(3, 7, generator=made, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda x: module._entmax(x, alpha), [x])
    torch.autograd.gradcheck(lambda x: reference(x, alpha), [x])
    torch.library.opcheck(module._operation, (x, alpha))


@pytest.mark.parametrize("alpha", ALPHAS)
def test_what_is_hidden_is_never_chosen(alpha: float) -> None:
    x = torch.tensor([[0.3, -torch.inf, 0.1], [-torch.inf] * 3], requires_grad=True)
    y = (entmax15 if alpha == 1.5 else sparsemax)(x)
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
