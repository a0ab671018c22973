"""Whether tensors have values yet, which were looked at, and whether a function may stand for its
operation."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch._C import _is_tracing as is_tracing  # torch.jit's own asks it, in twice the time
from torch.autograd import forward_ad
from torch.compiler import is_compiling
from torch.utils.weak import WeakIdKeyDictionary

P = ParamSpec("P")
R = TypeVar("R")
_UNTRACED = (Tensor, torch.nn.Parameter)


def traced(x: Tensor) -> bool:
    """Whether x has no values yet, or those of an example: it is being traced."""
    return type(x) not in _UNTRACED or is_compiling() or is_tracing()


def plain(*tensors: Tensor) -> bool:
    """Whether nobody differentiates or traces: then a function is called in place of its operation,
    whose call alone costs as much as routing 500 tokens."""
    if forward_ad._current_level >= 0:  # of derivatives forward: the function has none, and says so
        return False
    for x in tensors:  # a generator takes longer than what it asks
        if (x.requires_grad and torch.is_grad_enabled()) or type(x) not in _UNTRACED:
            return False
    return not (is_compiling() or is_tracing())


def as_given(compute: Callable[P, R]) -> Callable[P, R]:
    """A function of q and more, in the dtypes that it is given under autocast too, as kernels
    compute."""

    @wraps(compute)
    def run(*inputs: P.args, **options: P.kwargs) -> R:
        q: Any = inputs[0] if inputs else options["q"]
        if not torch.is_autocast_enabled(q.device.type):
            return compute(*inputs, **options)
        with torch.autocast(q.device.type, enabled=False):
            return compute(*inputs, **options)

    return run


class Operation:
    """A custom operation of torch.library, and two quicker ways to the same numbers where nothing
    is traced: the function itself, and the function with a gradient."""

    def __init__(
        self,
        operation: Any,
        compute: Callable[..., Any],
        keep: Callable[[Any, tuple[Any, ...], Any], None],
        differentiate: Callable[..., Any],
    ) -> None:
        """operation: a `custom_op`; keep and differentiate: what its `register_autograd` takes."""
        operation.register_autograd(differentiate, setup_context=keep)
        self.operation, self.compute = operation, compute

        class Learning(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *inputs: Any) -> Any:
                found = compute(*inputs)
                keep(ctx, inputs, found)
                return found

            backward = staticmethod(differentiate)

        self.learn = Learning.apply

    def of(self, *tensors: Tensor) -> Callable[..., Any]:
        """The quickest way for these inputs: those that may be traced, or have a gradient."""
        if plain(*tensors):
            return self.compute
        return self.operation if any(map(traced, tensors)) else self.learn


_looked_at: WeakIdKeyDictionary = WeakIdKeyDictionary()


def known(x: Tensor, limit: int = 0) -> bool:
    """Whether x, on a GPU, was looked at since it was last written: a look waits until the GPU has
    done all it was given. `limit` is what its numbers were compared with."""
    return x.is_cuda and not x.is_inference() and _looked_at.get(x) == (x._version, limit)


def remember(x: Tensor, limit: int = 0) -> None:
    """x was looked at, and is as it should be."""
    if x.is_cuda and not x.is_inference():
        _looked_at[x] = x._version, limit
