"""Floating dtypes, and what attention is asked: shapes and numbers that fit, or a ValueError."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from community.kernels.tracing import known, remember, traced

HALVES = (torch.float16, torch.bfloat16)
DTYPES = (*HALVES, torch.float32, torch.float64)
_NO_TEMPERATURE = "temperature must be positive and finite: between 1e-30 and 1e30"


def widened(x: Tensor) -> Tensor:
    """Half precision as float32."""
    return x.float() if x.dtype in HALVES else x


def check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    temperature: float | Tensor | None = None,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
) -> None:
    """Raises ValueError for what `attention` cannot compute."""
    _check_inputs(q, k, v)
    if scale is not None and not 0 < scale < math.inf:
        raise ValueError(f"scale is {scale}, and must be a positive number")
    _check_temperature(q, temperature)
    if lengths is not None:
        _check_lengths(q, k, lengths)
    if mask is not None:
        _check_mask(q, k, mask)


def _check_inputs(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Says what is given only where it is wrong: to write it takes as long as a small product."""

    def given() -> str:
        return ", ".join(
            f"{name} {tuple(x.shape)}" for name, x in zip("qkv", (q, k, v), strict=True)
        )

    if not q.dim() == k.dim() == v.dim() == 4:
        raise ValueError(f"q, k and v must be (batch, heads, length, width); got {given()}")
    if not (q.numel() and k.numel() and v.numel()):
        raise ValueError(f"q, k and v need at least one of everything; got {given()}")
    if k.shape[:3] != v.shape[:3] or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise ValueError(f"q, k and v do not fit together: {given()}")
    if q.shape[1] % k.shape[1]:
        raise ValueError(f"{q.shape[1]} query heads cannot share {k.shape[1]} key heads evenly")
    if q.dtype not in DTYPES or q.dtype != k.dtype or q.dtype != v.dtype:
        kinds = ", ".join(f"{name} {x.dtype}" for name, x in zip("qkv", (q, k, v), strict=True))
        raise ValueError(f"q, k and v must be of one floating dtype; got {kinds}")
    if q.device != k.device or q.device != v.device:
        raise ValueError(f"q, k and v are on {q.device}, {k.device} and {v.device}")


def _check_temperature(q: Tensor, temperature: float | Tensor | None) -> None:
    if isinstance(temperature, Tensor):
        if temperature.shape not in ((), (1,), (q.shape[1],)):
            raise ValueError(
                f"temperature has shape {tuple(temperature.shape)}; one number or one for each of "
                f"{q.shape[1]} heads is needed"
            )
        if temperature.device != q.device and temperature.dim():
            raise ValueError(f"temperature is on {temperature.device} and q on {q.device}")
        if not temperature.is_floating_point():
            raise ValueError(f"temperature is {temperature.dtype}, and must be a floating dtype")
        if traced(temperature) or known(temperature):
            return
        # one number a head: quicker read than compared by four operations
        if all(_is_temperature(x) for x in temperature.view(-1).tolist()):
            return remember(temperature)
    elif temperature is None or _is_temperature(temperature):
        return
    raise ValueError(_NO_TEMPERATURE)


def _is_temperature(x: float) -> bool:
    return 1e-30 <= x <= 1e30  # beyond, scale / temperature may leave float32


def _check_lengths(q: Tensor, k: Tensor, lengths: Tensor) -> None:
    if lengths.shape != (q.shape[0],) or lengths.is_floating_point() or lengths.is_complex():
        raise ValueError(
            f"lengths must be {q.shape[0]} whole numbers; got {tuple(lengths.shape)} "
            f"of {lengths.dtype}"
        )
    if lengths.device != q.device:
        raise ValueError(f"lengths is on {lengths.device} and q on {q.device}")
    if traced(lengths) or known(lengths, k.shape[2]):
        return
    if bool(((lengths < 1) | (lengths > k.shape[2])).any()):
        raise ValueError(f"lengths must lie between 1 and {k.shape[2]}, the number of keys")
    remember(lengths, k.shape[2])


def _check_mask(q: Tensor, k: Tensor, mask: Tensor) -> None:
    full = (*q.shape[:3], k.shape[2])
    fits = mask.dim() <= 4 and all(
        m in (1, n) for m, n in zip(mask.shape[::-1], full[::-1], strict=False)
    )
    if not fits:
        raise ValueError(f"mask {tuple(mask.shape)} does not broadcast to {full}")
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise ValueError(f"mask is {mask.dtype}, and must be bool or a floating dtype")
    if mask.device != q.device:
        raise ValueError(f"mask is on {mask.device} and q on {q.device}")


def checked(compute: Callable[..., Any]) -> Callable[..., Any]:
    """What computes attention, as an operation, which looks at the numbers that `check` did not
    see because the call was traced. Raises ValueError for what `check` refuses.

    A look at a GPU's numbers would wait for all that it was given before; lengths beyond the keys
    are all the keys there.
    """

    @wraps(compute)
    def run(q: Tensor, k: Tensor, v: Tensor, factor: Tensor, *rest: Any) -> Any:
        mask, lengths, *more = rest
        if not k.is_cuda and not all(0 < x < math.inf for x in factor.tolist()):
            raise ValueError(_NO_TEMPERATURE)
        if lengths is not None and k.is_cuda:
            lengths = lengths.clamp(max=k.shape[2])
        elif lengths is not None:
            _check_lengths(q, k, lengths)
        return compute(q, k, v, factor, mask, lengths, *more)

    return run
