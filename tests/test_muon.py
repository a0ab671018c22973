"""Muon against torch's own, which computes in bfloat16."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from community.agents.muon import Muon, orthogonal


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(2, 40), st.integers(2, 40), st.integers(0, 99))
def test_singular_values_come_near_one(count: int, rows: int, columns: int, seed: int) -> None:
    torch.manual_seed(seed)
    matrices = torch.randn(count, rows, columns)
    before, after = torch.linalg.svdvals(matrices), torch.linalg.svdvals(orthogonal(matrices))
    large = before > before[:, :1] * 0.1  # five steps do not lift the smallest
    assert after.max() < 1.3
    assert after[large].min() > 0.3


def test_a_step_is_the_one_of_torch() -> None:
    torch.manual_seed(0)
    shapes = [(8, 24), (24, 8), (8, 24), (16, 16)]
    ours = [torch.randn(s) for s in shapes]
    theirs = [p.clone() for p in ours]
    mine = Muon([p.requires_grad_() for p in ours], lr=0.1, weight_decay=0.1)
    peer = torch.optim.Muon([p.requires_grad_() for p in theirs], lr=0.1, weight_decay=0.1)
    for step in range(5):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
            q.grad = p.grad.clone()
        mine.step()
        peer.step()
    for p, q in zip(ours, theirs, strict=True):
        assert torch.allclose(p, q, atol=0.02)  # bfloat16 in theirs


def test_who_has_no_gradient_stays() -> None:
    still, moved = torch.ones(3, 4, requires_grad=True), torch.ones(3, 4, requires_grad=True)
    optimizer = Muon([still, moved], lr=0.1)
    moved.grad = torch.randn(3, 4)
    optimizer.step()
    assert torch.equal(still, torch.ones(3, 4))
    assert not torch.equal(moved, torch.ones(3, 4))


def test_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match="matrices"):
        Muon([torch.ones(3, requires_grad=True)], lr=0.1)
