"""Linear layers whose weights take 8 or 4 bits, with a scale for every group of inputs.

Symmetric rounding to the nearest: weight = scale * integer, the largest of a group is the largest
integer (127 or 7). One row is limited by the memory the weights come from, so fewer bytes are
fewer seconds; several rows unpack the weights in cache. quantized.c computes on the processor (C
or OpenCL), `reference` is the same in plain torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from community.kernels.backend import kernels
from community.kernels.build import CORES, Program, round_up
from community.kernels.checks import DTYPES, widened
from community.kernels.tracing import Operation

WIDE = 32  # outputs of a panel, as in quantized.c
BITS = (8, 4)
_FEW = 128  # rows that the tiles of quantized.c compute; more are left to torch, block by block
_BLOCK = 16  # panels of such a block
_STEP = 64  # inputs that are unpacked at a time: with the rows they fit the nearest cache


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight (outputs, inputs) in integers of `bits` bits, made by `quantize`.

    packed: int32, (panels, words, 32), a panel being 32 outputs. A word holds 32 / bits inputs of
        one output, the first in the lowest bits; every group begins a new word, zeros fill up.
    scales: float32, (inputs / group, 32 * panels), zeros after the last output.
    shape: (outputs, inputs).

    Raises ValueError for parts that do not fit together.
    """

    packed: Tensor
    scales: Tensor
    shape: tuple[int, int]
    bits: int
    group: int

    def __post_init__(self) -> None:
        (outputs, inputs), panels = self.shape, -(-self.shape[0] // WIDE)
        _check_sizes(outputs, inputs, self.bits, self.group)
        groups = inputs // self.group
        words = groups * _width(self.bits, self.group) * self.bits // 32
        wanted = ((panels, words, WIDE), torch.int32), ((groups, panels * WIDE), torch.float32)
        for x, (shape, dtype) in zip((self.packed, self.scales), wanted, strict=True):
            if x.shape != shape or x.dtype != dtype or not x.is_contiguous():
                raise ValueError(
                    f"a quantized weight {self.shape} of {self.bits} bits in groups of "
                    f"{self.group} needs contiguous {dtype} {shape}, not {x.dtype} {tuple(x.shape)}"
                )
        if self.packed.device != self.scales.device:
            raise ValueError(f"packed is on {self.packed.device}, scales on {self.scales.device}")

    @property
    def nbytes(self) -> int:
        """Bytes of memory, scales included."""
        return self.packed.nbytes + self.scales.nbytes


def quantize(weight: Tensor, bits: int = 8, group: int = 64) -> QuantizedWeight:
    """A weight (outputs, inputs) in 8 or 4 bits; `group` neighbouring inputs share a scale.

    Raises ValueError for other shapes and bits, for a group that does not divide the inputs and
    for weights that are not finite.
    """
    if weight.dim() != 2 or not weight.is_floating_point():
        raise ValueError(
            f"a weight must be (outputs, inputs) of a floating dtype; got {tuple(weight.shape)} "
            f"of {weight.dtype}"
        )
    outputs, inputs = weight.shape
    _check_sizes(outputs, inputs, bits, group)
    wide = weight.detach().float().view(outputs, inputs // group, group)
    if not bool(wide.isfinite().all()):
        raise ValueError("a weight that is not finite cannot be quantized")
    most = 2 ** (bits - 1) - 1
    scales = wide.abs().amax(-1) / most
    scales = scales.clamp(min=torch.finfo(torch.float32).tiny)  # of zeros
    whole = (wide / scales.unsqueeze(-1)).round().clamp(-most, most).to(torch.int32)
    more = -outputs % WIDE
    return QuantizedWeight(
        _pack(pad(whole, (0, _width(bits, group) - group, 0, 0, 0, more)), bits),
        pad(scales, (0, 0, 0, more)).t().contiguous(),
        (outputs, inputs),
        bits,
        group,
    )


def dequantize(weight: QuantizedWeight) -> Tensor:
    """(outputs, inputs) in float32: the weight that `quantized_linear` multiplies with."""
    w = weight
    ((_, columns),) = _blocks(w.packed, w.scales, w.bits, w.group, len(w.packed))
    return columns.t()[: w.shape[0]].contiguous()


def quantized_linear(x: Tensor, weight: QuantizedWeight, bias: Tensor | None = None) -> Tensor:
    """x W^T + bias: (.., inputs) -> (.., outputs) in x's dtype; differentiable in x and bias.

    Half precision is computed in float32. Raises ValueError for shapes, dtypes and devices that
    do not fit.
    """
    _check(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])
    run = LINEAR.of(rows)
    y = run(rows, weight.packed, weight.scales, weight.bits, weight.group, weight.shape[0])
    y = y.view(*x.shape[:-1], weight.shape[0])
    return y if bias is None else y + bias


def reference(x: Tensor, weight: QuantizedWeight, bias: Tensor | None = None) -> Tensor:
    """`quantized_linear` with the dequantized weight, in plain torch."""
    _check(x, weight, bias)
    wide = widened(x)
    y = torch.nn.functional.linear(wide, dequantize(weight).to(wide.dtype)).to(x.dtype)
    return y if bias is None else y + bias


# -- what is asked ---------------------------------------------------------------------


def _check_sizes(outputs: int, inputs: int, bits: int, group: int) -> None:
    if bits not in BITS:
        raise ValueError(f"bits is {bits}, and must be 8 or 4")
    if min(outputs, inputs) < 1 or group < 1 or inputs % group:
        raise ValueError(f"a group of {group} does not divide a weight of {(outputs, inputs)}")


def _check(x: Tensor, weight: QuantizedWeight, bias: Tensor | None) -> None:
    outputs, inputs = weight.shape
    if x.dtype not in DTYPES:
        raise ValueError(f"x is {x.dtype}, and must be of a floating dtype")
    if not x.dim() or x.shape[-1] != inputs:
        raise ValueError(f"x {tuple(x.shape)} does not end in the weight's {inputs} inputs")
    if x.device != weight.packed.device:
        raise ValueError(f"x is on {x.device} and the weight on {weight.packed.device}")
    if bias is None:
        return
    if bias.shape != (outputs,) or bias.dtype != x.dtype or bias.device != x.device:
        raise ValueError(
            f"bias must be ({outputs},) of {x.dtype} on {x.device}; got {tuple(bias.shape)} of "
            f"{bias.dtype} on {bias.device}"
        )


# -- the layout ------------------------------------------------------------------------


def _width(bits: int, group: int) -> int:
    """A group's inputs with those that fill its last word."""
    return round_up(group, 32 // bits)


def _pack(whole: Tensor, bits: int) -> Tensor:
    """(32 panels, groups, width) integers -> (panels, words, 32)."""
    per = 32 // bits
    parts = whole.reshape(-1, WIDE, whole[0].numel() // per, per) & (2**bits - 1)
    words = torch.zeros_like(parts[..., 0])
    for n in range(per):
        words |= parts[..., n] << (bits * n)
    return words.transpose(1, 2).contiguous()


def _unpacked(
    packed: Tensor, scales: Tensor, bits: int, group: int, first: int, room: Tensor
) -> Tensor:
    """(inputs, outputs) of the panels from `first` on, the transposed weight in float32.

    As many panels as `room` holds; quantized.c writes them there.
    """
    words, per, width = packed.shape[1], 32 // bits, _width(bits, group)
    outputs = room.numel() // (words * per)
    run = _program(packed.device)
    if run is not None:
        sizes = (first, outputs // WIDE, words * per, scales.shape[1], bits, width)
        run("quantized_unpack", packed, scales, room, *sizes, items=words * per // width)
        w = room.view(-1, width, outputs)
    else:
        left = torch.arange(per - 1, -1, -1, device=packed.device, dtype=torch.int32) * bits
        some = packed[first : first + outputs // WIDE].unsqueeze(2)
        whole = ((some << left.view(-1, 1)) >> (32 - bits)).flatten(1, 2)
        whole = whole.transpose(0, 1).reshape(-1, width, outputs)
        w = whole * scales[:, first * WIDE : first * WIDE + outputs].unsqueeze(1)
    return (w if width == group else w[:, :group]).reshape(-1, outputs)


def _blocks(
    packed: Tensor, scales: Tensor, bits: int, group: int, panels: int = _BLOCK
) -> Iterator[tuple[slice, Tensor]]:
    """The outputs and the transposed weight of some panels at a time, in the same memory."""
    inputs = packed.shape[1] * (32 // bits)
    room = scales.new_empty(min(panels, len(packed)) * inputs * WIDE)
    for first in range(0, len(packed), panels):
        last = min(first + panels, len(packed))
        here = room[: (last - first) * inputs * WIDE]
        w = _unpacked(packed, scales, bits, group, first, here)
        yield slice(first * WIDE, last * WIDE), w


# -- the operation ---------------------------------------------------------------------


def _computed(
    x: Tensor, packed: Tensor, scales: Tensor, bits: int, group: int, outputs: int
) -> Tensor:
    wide = widened(x)
    run = _program(x.device)
    if run is not None and wide.dtype == torch.float32 and 0 < len(x) <= _FEW:
        y = _few(wide, packed, scales, bits, group, run)
    else:
        y = wide.new_empty(len(x), len(packed) * WIDE)
        for place, w in _blocks(packed, scales, bits, group):
            torch.mm(wide, w.to(wide.dtype), out=y[:, place])
    y = y if y.shape[1] == outputs else y[:, :outputs].contiguous()
    return y.to(x.dtype)


_linear = torch.library.custom_op("community::quantized_linear", _computed, mutates_args=())


@_linear.register_fake
def _(x: Tensor, packed: Tensor, scales: Tensor, bits: int, group: int, outputs: int) -> Tensor:
    return x.new_empty(x.shape[0], outputs)


@torch.library.custom_op("community::quantized_linear_backward", mutates_args=())
def _linear_backward(
    go: Tensor, packed: Tensor, scales: Tensor, bits: int, group: int, inputs: int
) -> Tensor:
    wide = widened(go)
    gx = wide.new_zeros(len(go), inputs)
    for place, w in _blocks(packed, scales, bits, group):
        part = wide[:, place]
        gx.addmm_(part, w[:, : part.shape[1]].to(wide.dtype).t())
    return gx.to(go.dtype)


@_linear_backward.register_fake
def _(go: Tensor, packed: Tensor, scales: Tensor, bits: int, group: int, inputs: int) -> Tensor:
    return go.new_empty(go.shape[0], inputs)


def _keep(ctx, inputs: tuple, output: Tensor) -> None:  # type: ignore[no-untyped-def, type-arg]
    x, packed, scales, ctx.bits, ctx.group, _ = inputs
    ctx.save_for_backward(packed, scales)
    ctx.inputs = x.shape[1]


def _differentiate(ctx, go: Tensor) -> tuple:  # type: ignore[no-untyped-def, type-arg]
    packed, scales = ctx.saved_tensors
    gx = _linear_backward(go, packed, scales, ctx.bits, ctx.group, ctx.inputs)
    return gx, None, None, None, None, None


LINEAR = Operation(_linear, _computed, _keep, _differentiate)


def _few(x: Tensor, packed: Tensor, scales: Tensor, bits: int, group: int, run: Program) -> Tensor:
    """(rows, outputs with those that fill the last panel) by quantized.c."""
    rows, panels, width = len(x), len(packed), _width(bits, group)
    if width != group:
        x = pad(x.reshape(rows, -1, group), (0, width - group)).flatten(1)
    inputs = x.shape[1]
    step = _step(inputs, width, 32 // bits)
    if rows > 1:
        x = x.view(rows, inputs // step, step).transpose(0, 1)
    y = x.new_empty(rows, panels * WIDE)
    workers = min(CORES, panels)
    room = None if rows == 1 else x.new_empty(workers * (step + rows) * WIDE)
    sizes = (rows, inputs, panels, bits, width, step)
    run("quantized_linear", x.contiguous(), packed, scales, y, room, *sizes, items=workers)
    return y


@lru_cache
def _step(inputs: int, width: int, per: int) -> int:
    """The most inputs up to 64 that are whole groups or a whole part of one, and divide all."""
    fits = (n for n in range(per, _STEP + 1, per) if n % width == 0 or width % n == 0)
    return max(n for n in fits if inputs % n == 0)


def _program(device: torch.device) -> Program | None:
    return kernels("quantized") if device.type == "cpu" else None
