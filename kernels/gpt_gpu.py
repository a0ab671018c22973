"""GPT-2, Llama, Mistral and Qwen2 run by `gpt.cu`: whole answers in one launch on a GPU.

Weights lie row by row, (inputs, outputs), in float32. Tests have the processor run the same source
by OpenCL.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from community.kernels.build import Argument, SimtProgram
from community.kernels.gpt import LanguageModel, Memory, ints
from community.kernels.weights import Layout, Part, Product, Ready, Unsupported, parts_of

THREADS, ROWS = 512, 8  # as in gpt.cu
SHARED = 5120  # floats: ROWS * CHUNK + THREADS * ROWS
MOST = 2**30  # floats of memory at once: 4 GiB


class GpuLanguageModel(LanguageModel):
    """A model of transformers on its device, called as `LanguageModel` is.

    Small models gain: a block of threads answers a few prompts by itself, from the first token to
    the last, and the weights have to come from the GPU's cache again for every token.
    """

    def __init__(self, model: nn.Module, program: SimtProgram, threads: int = THREADS) -> None:
        """`model`: a GPT-2, Llama, Mistral or Qwen2; `program`: the kernels of gpt.cu for the
        device where its weights lie, compiled for so many threads. Raises Unsupported."""
        self.simt, self.threads = program, threads
        self.refresh(model)

    def refresh(self, model: nn.Module) -> None:
        """Take the model's weights as they are now. Raises Unsupported."""
        devices = {w.device for w in model.state_dict().values()}
        if len(devices) != 1:
            raise Unsupported(f"weights are on {len(devices)} devices")
        self.device = devices.pop()
        self.layout, parts, self._rotary = parts_of(model)
        self.weights = torch.cat([x.to(self.device) for x in _flat(self.layout, parts)])
        if self._rotary:  # cosines and sines are made on the processor
            self._rotary = self._rotary[0].cpu(), self._rotary[1]
        self._turns = torch.empty(0)
        self._places = self.layout.places if self.layout.learned else 0

    def _launch(
        self,
        kernel: str,
        rows: list[list[int]],
        places: list[list[int]],
        each: list[int],
        blocks: list[list[int]],
        memory: Memory,
        *more: Tensor | int | float,
    ) -> None:
        """Run a kernel on blocks of rows; `each` is one number a row."""
        self._turns = self._turns.to(self.device)
        lists = [
            ints(t for row in rows for t in row),
            ints(p for where in places for p in where),
            ints(accumulate(map(len, rows), initial=0)),
            ints(each),
            ints(accumulate(map(len, blocks), initial=0)),
        ]
        sizes = torch.tensor([memory.floats.shape[1], memory.ints.shape[1]])
        moved = [x.to(self.device) if isinstance(x, Tensor) else x for x in more]
        given: list[Argument] = [_shape(self.layout, self._places).to(self.device), self.weights]
        given += [self._turns, self.layout.epsilon, *(x.to(self.device) for x in lists)]
        given += [memory.floats, memory.ints, sizes.to(self.device), memory.slots, memory.span]
        launch = {"blocks": len(blocks), "threads": self.threads, "room": SHARED}
        self.simt(kernel, *given, *moved, **launch)
        for ours, made in zip(more, moved, strict=True):
            if isinstance(ours, Tensor) and isinstance(made, Tensor):
                ours.copy_(made)

    def _blocks(
        self, order: list[int], rows: Sequence[Sequence[int]], more: int
    ) -> Iterator[tuple[list[list[int]], Memory]]:
        """Rows in blocks, one for every part of the GPU if there are enough, with memory for rows
        that grow by `more` tokens."""
        if not order:
            return
        span = max(map(len, rows)) + more
        slots = max(1, min(ROWS, math.ceil(len(order) / _parts(self.device))))
        blocks = [order[a : a + slots] for a in range(0, len(order), slots)]
        floats, notes = _room(self.layout, span, slots)
        at_once = max(1, min(len(blocks), MOST // floats))
        memory = Memory(
            torch.empty(at_once, floats, device=self.device),
            torch.empty(at_once, notes, dtype=torch.int32, device=self.device),
            span,
            slots,
        )
        for n in range(0, len(blocks), at_once):
            yield blocks[n : n + at_once], memory


def _parts(device: torch.device) -> int:
    """How many blocks run at a time."""
    if device.type != "cuda":
        return 2
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count


def _shape(layout: Layout, places: int) -> Tensor:
    """`shape` of gpt.cu, with as many positions as there are now."""
    one = (layout.layers, layout.width, layout.heads, layout.groups, layout.size, layout.hidden)
    two = (layout.words, places, layout.rms, layout.gated, layout.activation, layout.learned)
    return torch.tensor([*one, *two, layout.places], dtype=torch.int32)


def _room(layout: Layout, span: int, slots: int) -> tuple[int, int]:
    """Floats and ints of memory that a block needs: sequences of at most `span` tokens."""
    mix, kept = layout.heads * layout.size, layout.groups * layout.size
    row = 3 * layout.width + 2 * mix + 2 * kept + layout.hidden * (1 + layout.gated)
    cache = 2 * slots * layout.layers * kept * span
    floats = ROWS * (row + layout.heads * span) + (ROWS + 1) * layout.words + cache
    return floats, 5 * ROWS + layout.words


def _flat(layout: Layout, parts: list[Part]) -> list[Tensor]:
    """Parts as gpt.cu reads them, rows of float32. Raises Unsupported.

    What queries are multiplied by is multiplied into the weights that make them.
    """
    found: list[Tensor] = []
    for part, after in zip(parts, [*parts[1:], None], strict=True):
        if isinstance(part, Product):
            weight = torch.cat([w.float() for w, _ in part.pieces], 1)
            bias = torch.cat([b.float() for _, b in part.pieces])
            if isinstance(after, Ready):
                scale = torch.ones_like(bias)
                factors = after.factors.to(scale.device).repeat_interleave(layout.size)
                scale[: len(factors)] = factors
                weight, bias = weight * scale, bias * scale
            found += [weight.reshape(-1), bias]
        elif isinstance(part, Ready):
            if part.norms:
                raise Unsupported("queries and keys that are normalised")
            if part.turns == layout.learned:
                raise Unsupported("layers without positions")
        else:
            found.append(part.weight.float().reshape(-1))
    return found
