"""Linear layers of 8 and 4 bits against torch's own in float32 and bfloat16."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
from torch.nn.functional import linear

from community.kernels.quantized import dequantize, quantize, quantized_linear
from community.kernels.timing import Case


def cases(device: str, quick: bool) -> Iterator[Case]:
    """A layer of SmolLM2-135M and one that is larger than most caches; groups of 64."""
    sizes = [(96, 64)] if quick else [(1536, 576), (4096, 4096)]
    for (outputs, inputs), bits in product(sizes, (8, 4)):
        made = torch.Generator().manual_seed(outputs)
        weight = torch.randn(outputs, inputs, generator=made).to(device) * inputs**-0.5
        for rows in (1,) if quick else (1, 8, 64, 256):
            yield _case(weight, bits, torch.randn(rows, inputs, generator=made).to(device))


def _case(weight: torch.Tensor, bits: int, x: torch.Tensor) -> Case:
    packed = quantize(weight, bits)
    dense = dequantize(packed)
    half, half_x = dense.bfloat16(), x.bfloat16()
    return Case(
        f"quantized {bits} bits, {' x '.join(map(str, packed.shape))}, {len(x)} rows",
        lambda: (quantized_linear(x, packed),),
        {"fp32": lambda: linear(x, dense), "bf16": lambda: linear(half_x, half)},
        lambda: (linear(x.double(), dense.double()),),
        note=f"{packed.nbytes / weight.nbytes:.1%} of the float32 weight",
    )
