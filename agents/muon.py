"""Muon in float32, matrices of one shape at a time.

`torch.optim.Muon` orthogonalises in bfloat16 and one matrix after the other. Processors without
bfloat16 units emulate it: there it took more than half of a tiny expert's training step.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5
MOMENTUM = 0.95


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised (Jordan et al., 2024), for (m, n) matrices.

    The same rule as `torch.optim.Muon` with its defaults: Nesterov momentum, rates times
    sqrt(max(1, m / n)). Raises ValueError for a parameter that is no matrix.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        if any(p.ndim != 2 for group in self.param_groups for p in group["params"]):
            raise ValueError("Muon is for matrices; give other parameters to another optimizer")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    alike[p.shape].append(p)
            for (rows, columns), matrices in alike.items():
                updates = [self._momentum(p) for p in matrices]
                rate = group["lr"] * max(1.0, rows / columns) ** 0.5
                torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
                for p, update in zip(matrices, orthogonal(torch.stack(updates)), strict=True):
                    p.add_(update, alpha=-rate)

    def _momentum(self, p: Tensor) -> Tensor:
        """Nesterov's look ahead on an average of gradients, (m, n)."""
        assert p.grad is not None
        mean = self.state[p].setdefault("mean", torch.zeros_like(p.grad))
        mean.lerp_(p.grad, 1 - MOMENTUM)
        return p.grad.lerp(mean, MOMENTUM)


def orthogonal(matrices: Tensor) -> Tensor:
    """(B, m, n) -> (B, m, n), singular values near 1: a quintic Newton-Schulz iteration."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.float().mT if tall else matrices.float()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)
