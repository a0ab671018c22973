"""Whether tensors have values yet, and whether a function may stand for its operation."""

from __future__ import annotations

import torch
from torch import Tensor


def traced(x: Tensor) -> bool:
    """Whether x has no values yet: it is being traced."""
    return torch.compiler.is_compiling() or type(x) not in (Tensor, torch.nn.Parameter)


def plain(*tensors: Tensor) -> bool:
    """Whether nobody differentiates or traces: then a function is called in place of its operation,
    whose call alone costs as much as routing 500 tokens."""
    learning = torch.is_grad_enabled()
    for x in tensors:  # noqa: SIM110  (a generator takes longer than what it asks)
        if (learning and x.requires_grad) or traced(x):
            return False
    return True
