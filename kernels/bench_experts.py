"""The experts of a mixture against torch, expert by expert and grouped."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor
from torch.nn.functional import grouped_mm, linear, silu

from community.kernels.experts import expert_mlp, reference
from community.kernels.timing import Case

SIZES = ((8, 256, 512), (8, 1024, 512), (64, 64, 128), (64, 256, 512))  # experts, width, inner


def cases(device: str, quick: bool) -> Iterator[Case]:
    """SwiGLU experts with 1 to 256 rows each; with gradients for some."""
    sizes = ((2, 32, 16),) if quick else SIZES
    for size, dtype in product(sizes, (torch.float32, torch.bfloat16)):
        for rows in (3,) if quick else (1, 4, 8, 64, 256):
            yield _forward(*size, rows, dtype, device)
        yield _gradients(*size, 3 if quick else 64, dtype, device)


def _one_by_one(x: Tensor, offsets: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """An expert after the other, as models do it; offsets are the ends."""
    parts, first = [], 0
    for e, end in enumerate(offsets.tolist()):
        gate, value = linear(x[first:end], up[e]).chunk(2, -1)
        parts.append(linear(silu(gate) * value, down[e]))
        first = end
    return torch.cat(parts)


def _grouped(x: Tensor, offsets: Tensor, up: Tensor, down: Tensor) -> Tensor:
    gate, value = grouped_mm(x, up.transpose(1, 2), offs=offsets).chunk(2, -1)
    return grouped_mm(silu(gate) * value, down.transpose(1, 2), offs=offsets)


def _made(
    e: int, width: int, inner: int, rows: int, dtype: torch.dtype, device: str
) -> tuple[str, Tensor, Tensor, Tensor, Tensor]:
    made = torch.Generator().manual_seed(e * width + rows)
    up = torch.randn(e, 2 * inner, width, generator=made) / width**0.5
    down = torch.randn(e, width, inner, generator=made) / inner**0.5
    x = torch.randn(e * rows, width, generator=made)
    offsets = (torch.arange(e + 1) * rows).to(device)
    name = f"E {e} D {width} I {inner} rows {rows} {str(dtype).removeprefix('torch.')}"
    up, down, x = (y.to(device, dtype) for y in (up, down, x))
    return name, x, offsets, up, down


def _forward(e: int, width: int, inner: int, rows: int, dtype: torch.dtype, device: str) -> Case:
    name, x, offsets, up, down = _made(e, width, inner, rows, dtype, device)
    ends = offsets[1:].to(torch.int32)
    return Case(
        f"experts {name}",
        lambda: (expert_mlp(x, offsets, up, down),),
        {
            "one by one": lambda: _one_by_one(x, ends, up, down),
            "grouped_mm": lambda: _grouped(x, ends, up, down),
        },
        lambda: (reference(x.double(), offsets, up.double(), down.double()),),
        tolerance=1e-5 if dtype == torch.float32 else 2e-2,
    )


def _gradients(e: int, width: int, inner: int, rows: int, dtype: torch.dtype, device: str) -> Case:
    name, x, offsets, up, down = _made(e, width, inner, rows, dtype, device)
    ends = offsets[1:].to(torch.int32)
    grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    leaves = [y.requires_grad_() for y in (x, up, down)]

    def truth() -> tuple[Tensor, ...]:
        wide = [y.detach().double().requires_grad_() for y in leaves]
        return torch.autograd.grad(
            reference(wide[0], offsets, wide[1], wide[2]), wide, grad.double()
        )

    return Case(
        f"experts and gradients {name}",
        lambda: torch.autograd.grad(expert_mlp(x, offsets, up, down), leaves, grad),
        {
            "grouped_mm": lambda: torch.autograd.grad(_grouped(x, ends, up, down), leaves, grad),
            "one by one": lambda: torch.autograd.grad(_one_by_one(x, ends, up, down), leaves, grad),
        },
        truth,
        tolerance=1e-5 if dtype == torch.float32 else 2e-2,
    )
