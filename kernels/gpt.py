"""GPT-2, Llama and models like it run by `gpt.c`: generation and scores in float32."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from threading import Lock

import torch
from torch import Tensor, nn

from community.kernels.build import CProgram, Program, lanes, numbers, round_up, zeros
from community.kernels.text import Text, keys_of
from community.kernels.weights import (
    Layout,
    Part,
    Product,
    Ready,
    Table,
    Unsupported,
    Vector,
    parts_of,
)

ROWS = 96  # tokens in one pass, and sequences in a block, at most
CACHE = 2**28  # floats of keys and values that a block may have: 1 GiB
NEAR = 2**21  # floats of keys and values that stay near the processor: 8 MiB
KINDS = ("float32", "bfloat16", "int8")  # of weights, in the order of gpt.c
GROUP = 32  # inputs that share a scale of int8 weights, as in gpt.c
FAR = 2**20  # no rotary position is beyond it
COLD = 1e-30  # a temperature below is greedy: logits divided by it leave float32


@dataclass(frozen=True)
class Memory:
    """What blocks work in, one row each, and how much of it is cache."""

    floats: Tensor
    ints: Tensor
    span: int  # tokens of a sequence
    slots: int  # sequences of a block


class LanguageModel:
    """A model of transformers, its weights in the order and shape in which `gpt.c` reads them.

    Every row's answer and score are the same whatever rows share the call.
    """

    halfway = True  # whether rows may share what is not all of a prompt
    device = torch.device("cpu")
    _turning = Lock()

    def __init__(self, model: nn.Module, program: Program, weights: str = "float32") -> None:
        """`model`: a causal GPT-2, Llama, Mistral, Qwen2, Qwen3 or SmolLM3 on the processor;
        `program`: the kernels of "gpt".

        `weights` are kept as "float32" (in half of the bytes where all of them are bfloat16
        anyway), "bfloat16", or "int8": symmetric, a scale for every 32 inputs of an output, the
        embeddings as they are. Everything is computed in float32. Raises Unsupported for a model
        and ValueError for weights that there are not.
        """
        if weights not in KINDS:
            raise ValueError(f"weights are {', '.join(KINDS)}")
        self.program = program
        self.wanted = weights
        self.refresh(model)

    def refresh(self, model: nn.Module) -> None:
        """Take the model's weights as they are now. Raises Unsupported."""
        layout, parts, rotary = parts_of(model)
        products = [w for x in parts if isinstance(x, Product) for w, _ in x.pieces]
        tables = [x.weight for x in parts if isinstance(x, Table)]
        if any(w.device.type != "cpu" for w in (*products, *tables)):
            raise Unsupported("weights are not on the processor")
        kind = self.wanted
        if kind == "float32" and all(map(_narrow, products)):
            kind = "bfloat16"
        half = kind == "bfloat16" or all(map(_narrow, tables))
        packed = [_packed(part, KINDS.index(kind), int(half)) for part in parts]
        weights = torch.cat([part.reshape(-1).view(torch.uint8) for part in packed])
        # nothing is taken of a model that is refused: gpt.c would read other weights by its layout
        self.layout, self.weights, self._rotary = layout, weights, rotary
        self._kind, self._table = KINDS.index(kind), int(half)
        self._turns = zeros(0)
        self._places = self.layout.places if self.layout.learned else 0

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        positions: Sequence[Sequence[int]] | None,
        draws: Tensor | None,
        max_tokens: int,
        end: int | None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
    ) -> tuple[list[list[int]], list[float]]:
        """One answer per prompt, its end token included, and its log-probability (temperature 1).

        `draws` (R, max_tokens), uniform in [0, 1), decide what is sampled; at temperature 0 there
        is nothing to decide. What can be sampled is cut down in the order of transformers: the
        `top_k` most probable tokens (0: all) and what is as probable as the last of them; of
        these the most probable that together first reach `top_p`; of these what has at least
        `min_p` times the chance of the best (Nguyen et al., arXiv 2407.01082).
        `positions` are 0, 1, 2, ... by default and go on by 1 a token.
        Raises ValueError for what cannot be answered.
        """
        if max_tokens < 1 or not (temperature >= 0 and math.isfinite(temperature)):
            raise ValueError("max_tokens is at least 1 and temperature a number from 0 on")
        if not (top_p > 0 and top_k >= 0 and 0 <= min_p <= 1):
            raise ValueError("top_p is above 0, top_k 0 or more, and min_p from 0 to 1")
        places = self._checked(prompts, positions)
        if temperature == 0:
            draws = zeros(len(prompts), max_tokens, dtype=torch.float64)
        elif draws is None or draws.shape != (len(prompts), max_tokens):
            raise ValueError(f"sampling needs draws of shape ({len(prompts)}, {max_tokens})")
        elif not bool(((draws >= 0) & (draws < 1)).all()):
            raise ValueError("draws are numbers from 0 to below 1")
        if end is None or not 0 <= end < self.layout.words:
            end = -1  # which never comes
        self._turn(max((max(*p, p[-1] + max_tokens - 1) for p in places), default=0) + 1)
        tokens: list[list[int]] = [[] for _ in prompts]
        logprobs = [0.0] * len(prompts)
        keys = keys_of(prompts, places)
        order = sorted(range(len(keys)), key=lambda i: (len(keys[i]), keys[i]))
        for blocks, memory in self._blocks(order, prompts, max_tokens):
            text = Text.of(blocks, keys, [*map(len, keys)], 0, self.halfway)
            ids = text.ids
            said = zeros(len(ids), max_tokens, dtype=torch.int32)
            counts = zeros(len(ids), dtype=torch.int32)
            total = zeros(len(ids), dtype=torch.float64)
            self._launch(
                "generate",
                text,
                memory,
                draws[ids].double().contiguous(),
                0.0 if temperature < COLD else min(float(temperature), 1 / COLD),
                float(top_p),
                min(top_k, self.layout.words),
                float(min_p),
                max_tokens,
                end,
                said,
                counts,
                total,
            )
            if int(counts.min()) < 0:
                raise ValueError(f"an answer goes beyond position {self._places - 1}, the last one")
            for i, row, count, logprob in zip(
                ids, said.tolist(), counts.tolist(), total.tolist(), strict=True
            ):
                tokens[i], logprobs[i] = row[:count], logprob
        return tokens, logprobs

    def score(
        self,
        rows: Sequence[Sequence[int]],
        positions: Sequence[Sequence[int]] | None,
        starts: Sequence[int],
    ) -> list[float]:
        """Log-probability of the tokens of each row from place `starts` (1 or later) on.

        Raises ValueError for what cannot be scored.
        """
        places = self._checked(rows, positions)
        if len(starts) != len(rows) or any(
            not 1 <= start <= len(row) for start, row in zip(starts, rows, strict=False)
        ):
            raise ValueError("one start a row, from 1 to the row's length")
        self._turn(max((max(p) for p in places), default=0) + 1)
        scores = [0.0] * len(rows)
        keys = keys_of(rows, places)
        # of one prompt, answers stand together, so that they share it
        order = sorted(range(len(keys)), key=lambda i: (starts[i], keys[i]))
        for blocks, memory in self._blocks(order, rows, 0):
            text = Text.of(blocks, keys, [start - 1 for start in starts], 1, self.halfway)
            total = zeros(len(text.ids), dtype=torch.float64)
            self._launch("score", text, memory, numbers(starts[i] for i in text.ids), total)
            for i, score in zip(text.ids, total.tolist(), strict=True):
                scores[i] = score
        return scores

    # -- calling ---------------------------------------------------------------------------

    def _launch(self, kernel: str, text: Text, memory: Memory, *more: Tensor | int | float) -> None:
        """Run a kernel on blocks of rows."""
        self.program(
            kernel,
            _shape(self.layout, self._places, self._kind, self._table, memory.slots),
            self.weights,
            self._turns,
            self.layout.epsilon,
            *(text.tokens, text.where, text.starts, text.source, text.known, text.edges),
            memory.floats,
            memory.ints,
            numbers((memory.floats.shape[1], memory.ints.shape[1]), torch.int64),
            memory.span,
            *more,
            items=len(text.edges) - 1,
        )

    def _blocks(
        self, order: list[int], rows: Sequence[Sequence[int]], more: int
    ) -> Iterator[tuple[list[list[int]], Memory]]:
        """Rows in blocks, as many a time as may run at once, with memory for rows that grow by
        `more` tokens.

        Every step reads all that a block has cached and all weights. Small blocks leave the cache
        near the processor (1.4 times as fast at width 128 and 96 sequences of 144 tokens), large
        ones read the weights less often: a block reads as much cache as weights on average, or
        more if that is near all the same. Two tiles of 6 rows, or three of 8, compute for as long
        as it takes to fetch the weights that they share.
        """
        if not order:
            return
        span = round_up(max(map(len, rows)) + more, lanes())
        each = _token_floats(self.layout) * span
        tile, few = (8, 24) if lanes() == 16 else (6, 12)
        even = 2 * self.weights.numel() // (4 * each)  # half of the span is cached on average
        most = max(1, min(ROWS, max(few, even, NEAR // each), CACHE // each))
        most -= most % tile if most > tile else 0  # what is left over would fill no tile
        at_once = 1 if isinstance(self.program, CProgram) else torch.get_num_threads()
        count = max(math.ceil(len(order) / most), min(at_once, len(order)))
        slots = math.ceil(len(order) / count)
        blocks = [order[a : a + slots] for a in range(0, len(order), slots)]
        floats, notes = _room(self.layout, span, slots)
        places = min(at_once, len(blocks))
        memory = Memory(
            torch.empty(places, floats, dtype=torch.float32, device="cpu"),
            zeros(places, notes, dtype=torch.int32),
            span,
            slots,
        )
        for n in range(0, len(blocks), at_once):
            yield blocks[n : n + at_once], memory

    def _checked(
        self, rows: Sequence[Sequence[int]], positions: Sequence[Sequence[int]] | None
    ) -> Sequence[Sequence[int]]:
        """The positions. Raises ValueError for rows or positions that the model cannot read."""
        if positions is None:
            positions = [range(len(row)) for row in rows]
        if list(map(len, positions)) != list(map(len, rows)):
            raise ValueError("one position a token")
        for row, where in zip(rows, positions, strict=True):
            if not row:
                raise ValueError("a row without tokens")
            if min(row) < 0 or max(row) >= self.layout.words:
                raise ValueError(f"tokens are from 0 to {self.layout.words - 1}")
            most = self._places - 1 if self.layout.learned else FAR
            if min(where) < 0 or max(where) > most:
                raise ValueError(f"positions are from 0 to {most}")
        return positions

    def _turn(self, places: int) -> None:
        """Have cosines and sines of at least so many positions, (places, 2, size / 2)."""
        with self._turning:  # another thread may just be making them
            if self._rotary is None or places <= self._places:
                return
            speeds, scale = self._rotary
            count = max(places, self.layout.places)
            angles = torch.arange(count, device="cpu").float()[:, None] * speeds
            turns = torch.stack([angles.cos(), angles.sin()], 1) * scale
            self._turns = turns.contiguous().to(self.device)
            self._places = count


def panel() -> int:
    """Outputs of a panel of weights: WIDE in gpt.c."""
    return 2 * lanes()


def padded(n: int) -> int:
    """The next multiple of a panel."""
    return round_up(n, panel())


def _shape(layout: Layout, places: int, kind: int, table: int, slots: int) -> Tensor:
    """`shape` of gpt.c: with as many positions as the table has now, the kinds of the weights and
    of the embeddings, and the sequences that a cache has room for."""
    x = layout
    sizes = (x.layers, x.width, x.heads, x.groups, x.size, x.hidden, x.words, places)
    ways = (x.rms, x.gated, x.activation, x.learned, x.whitened)
    return numbers((*sizes, *ways, kind, table, ROWS, slots))


def _room(layout: Layout, span: int, slots: int) -> tuple[int, int]:
    """Floats and ints of memory that a block needs: sequences of at most `span` tokens."""
    x = layout
    qkv = padded((x.heads + 2 * x.groups) * x.size)
    mix = padded(x.heads * x.size) + panel()
    middle = padded(x.hidden) * (1 + x.gated)
    row = 3 * padded(x.width) + qkv + mix + middle + padded(x.words)
    unpacked = max(padded(x.width), padded(x.hidden), mix) * panel()
    cache = slots * _token_floats(x) * span
    return ROWS * row + unpacked + cache + padded(x.words) + span, 5 * ROWS + x.words


def _token_floats(layout: Layout) -> int:
    """Floats that a token takes in the cache."""
    return layout.layers * layout.groups * (layout.size + padded(layout.size))


# -- packing weights -------------------------------------------------------------------


def _row(weight: Tensor, value: float = 0.0) -> Tensor:
    """(..., n) padded to whole panels with `value`."""
    more = padded(weight.shape[-1]) - weight.shape[-1]
    return nn.functional.pad(weight.detach(), (0, more), value=value)


def _floats(weight: Tensor) -> Tensor:
    return _row(weight.float())


def _narrow(weight: Tensor) -> bool:
    """Whether bfloat16 holds every number exactly."""
    return weight.dtype == torch.bfloat16 or bool((weight.bfloat16() == weight).all())


def _packed(part: Part, kind: int, table: int) -> Tensor:
    """As gpt.c reads it: numbers of other kinds than float32 as bytes."""
    if isinstance(part, Vector):
        return _floats(part.weight)
    if isinstance(part, Ready):
        head = torch.cat([part.factors, numbers([float(part.turns)], torch.float32)])
        return torch.cat([_floats(x) for x in (head, *part.norms)])
    if isinstance(part, Table):
        rows = _row(part.weight).view(-1, panel())
        return _halves(rows) if table else rows.float()
    # where gate and input of an MLP lie beside each other, either begins with a panel
    padding = _row if part.apart else lambda x: x
    weight = torch.cat([padding(w) for w, _ in part.pieces], 1)
    bias = torch.cat([padding(b.float()) for _, b in part.pieces])
    panels = _row(weight).view(len(weight), -1, panel()).transpose(0, 1)  # (P, inputs, WIDE)
    packed = [_whole, _halves, _bytes][kind](panels)
    # what is padding of the head can never be chosen
    bias = _row(bias, -math.inf if part.head else 0.0)
    return torch.cat([bias.view(torch.uint8), packed.reshape(-1).view(torch.uint8)])


def _whole(panels: Tensor) -> Tensor:
    return panels.float().contiguous()


def _halves(panels: Tensor) -> Tensor:
    """bfloat16: output o and output o + LANES share a word."""
    pairs = panels.bfloat16().unflatten(-1, (2, -1)).transpose(-1, -2)
    return pairs.contiguous().view(torch.uint8)


def _bytes(panels: Tensor) -> Tensor:
    """int8: for every GROUP inputs, the scales of the outputs, then words of two inputs by the
    outputs o and o + LANES."""
    count, inputs, wide = panels.shape
    groups = nn.functional.pad(panels.float(), (0, 0, 0, -inputs % GROUP))
    groups = groups.reshape(count, -1, GROUP, wide)
    scales = groups.abs().amax(2, keepdim=True) / 127
    numbers = (groups / scales.clamp(min=1e-30)).round().to(torch.int8)
    words = numbers.reshape(count, -1, GROUP // 2, 4, wide // 2).transpose(-1, -2)
    scales = scales.contiguous().view(torch.uint8).flatten(2)
    packed = torch.cat([scales, words.contiguous().view(torch.uint8).flatten(2)], 2).flatten(1)
    return packed[:, : packed.shape[1] - (-inputs % GROUP) // 2 * 2 * wide].contiguous()
