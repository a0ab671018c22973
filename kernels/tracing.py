"""Whether tensors have values yet, which were looked at, and whether a function may stand for its
operation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary


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


_looked_at: WeakIdKeyDictionary = WeakIdKeyDictionary()


def known(x: Tensor, limit: int = 0) -> bool:
    """Whether x, on a GPU, was looked at since it was last written: a look waits until the GPU has
    done all it was given. `limit` is what its numbers were compared with."""
    return x.is_cuda and not x.is_inference() and _looked_at.get(x) == (x._version, limit)


def remember(x: Tensor, limit: int = 0) -> None:
    """x was looked at, and is as it should be."""
    if x.is_cuda and not x.is_inference():
        _looked_at[x] = x._version, limit
