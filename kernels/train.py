"""Training of GPT-2 and Llama models of transformers by `train.c`, in float32 on one thread.

What torch does with the same rows, optimizers and rates, up to rounding, but for nothing that the
loss does not see: no padding, and in the last layer only tokens whose successor is learned.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from community.kernels.build import Program, lanes, numbers, zeros
from community.kernels.trainable import lay_out, read, stride

FAR = 2**20  # no rotary position is beyond it
ROWS = 128  # tokens of a block, whose activations are to stay in the nearest cache
BETAS = (0.9, 0.95)  # of AdamW, as in train.c


class Trainer:
    """Trains a GPT2LMHeadModel or LlamaForCausalLM on rows of tokens.

    It has its own weights, gradients and averages of gradients: `write` gives the weights back.
    Results depend on the arguments alone.
    """

    def __init__(
        self,
        model: nn.Module,
        program: Program,
        rows: Sequence[tuple[Sequence[int], int]],
        positions: Sequence[Sequence[int]] | None = None,
        *,
        muon: Collection[str] = (),
        clip: float = 1.0,
        weight_decay: float = 0.0,
    ) -> None:
        """`rows` are (tokens, place of the first token to be learned, 1 or later) with positions,
        0, 1, 2, ... by default; steps pick from them. `muon` names the matrices that Muon
        trains, AdamW (betas .9 and .95) trains the rest; gradients are clipped to the norm
        `clip`. Raises Unsupported for a model that train.c cannot train, ValueError for rows
        and numbers that do not fit.
        """
        self.program = program
        self.sizes, self.pieces, self._rotary = read(model)
        if not (clip > 0 and 0 <= weight_decay < math.inf):
            raise ValueError("clip is above 0 and weight decay a number from 0 on")
        self.clip, self.weight_decay = clip, weight_decay
        self._lay(model)
        self._keep_rows(rows, positions)
        self._matrices(muon)
        self._turns, self._known = zeros(0), self.sizes.places
        self.steps = 0

    # -- steps -----------------------------------------------------------------------------

    def step(
        self, picked: Sequence[int], offsets: Sequence[int] | None, rate: float, muon: float = 0.0
    ) -> float:
        """One step on the rows `picked`: rates of AdamW and Muon. Returns the mean cross-entropy
        of the tokens to be learned, before the step. `offsets` are added to each row's
        positions. Raises ValueError for rows, positions and rates that do not fit."""
        loss = self.gradients(picked, offsets)
        self.update(rate, muon)
        return loss

    def gradients(self, picked: Sequence[int], offsets: Sequence[int] | None = None) -> float:
        """The loss of these rows; its gradients are kept for `update`. Raises ValueError."""
        offsets = [0] * len(picked) if offsets is None else offsets
        count = self._checked(picked, offsets)
        loss = zeros(1)
        self.program(
            "train_gradients",
            *(self._shape, self.sizes.epsilon, self.sizes.sharpness, self.weights, self._turned),
            *(self.gradient, self._places, self._turns, self._memory, self._notes),
            *(self._tokens, self._where, self._starts, self._begins, numbers(picked)),
            *(numbers(offsets), len(picked), count, loss),
            items=1,
        )
        return float(loss)

    def update(self, rate: float, muon: float = 0.0) -> None:
        """Apply the gradients. Raises ValueError for rates that are no finite numbers from 0."""
        if not (0 <= rate < math.inf and 0 <= muon < math.inf):
            raise ValueError("rates are finite numbers from 0 on")
        self.steps += 1
        first, second = (1 - beta**self.steps for beta in BETAS)
        kept = [1 - rate * self.weight_decay, 1 - muon * self.weight_decay]
        rates = numbers(
            (self.clip, rate / first, kept[0], math.sqrt(second), muon, kept[1]), torch.float32
        )
        self.program(
            "train_update",
            *(self._parts, len(self._parts), rates, self.weights, self.gradient),
            *(self._means, self._squares, self._scratch),
            items=1,
        )

    def write(self, model: nn.Module) -> None:
        """Give the model the weights as they are now."""
        for name, values in self.named(self.weights).items():
            with torch.no_grad():
                model.get_parameter(name).copy_(values)

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """Parameter of torch -> its values in `weights` or `gradient`, copied."""
        found: dict[str, Tensor] = {n: zeros(*shape) for n, shape in self._shapes.items()}
        for piece in self.pieces:
            piece.of(found[piece.name]).copy_(piece.within(flat))
        return found

    # -- what is laid out once --------------------------------------------------------------

    def _lay(self, model: nn.Module) -> None:
        """Weights and what is as large as they are."""
        parameters = dict(model.named_parameters())
        self._shapes = {name: p.shape for name, p in parameters.items()}
        at, size = lay_out(self.sizes)
        if self.sizes.tied:
            at["head"] = at["embedding"]
        self._places = numbers((*at.values(), size), torch.int64)
        self.weights, self.gradient = zeros(size), zeros(size)
        self._turned = zeros(size)
        self._means, self._squares = zeros(size), zeros(size)
        for piece in self.pieces:
            piece.within(self.weights).copy_(piece.of(parameters[piece.name]))

    def _keep_rows(
        self,
        rows: Sequence[tuple[Sequence[int], int]],
        positions: Sequence[Sequence[int]] | None,
    ) -> None:
        """The rows as the kernels read them, and memory for the longest."""
        places = [range(len(row)) for row, _ in rows] if positions is None else positions
        for (row, begin), where in zip(rows, places, strict=True):
            if len(where) != len(row):
                raise ValueError("one position a token")
            if not 1 <= begin <= len(row):
                raise ValueError("what is to be learned begins at place 1 to the row's length")
            if min(row) < 0 or max(row) >= self.sizes.words:
                raise ValueError(f"tokens are from 0 to {self.sizes.words - 1}")
        self._tokens = numbers(t for row, _ in rows for t in row)
        self._where = numbers(p for where in places for p in where)
        self._starts = numbers(accumulate((len(row) for row, _ in rows), initial=0))
        self._begins = numbers(begin for _, begin in rows)
        self._learned = [len(row) - begin for row, begin in rows]
        self._extent = [(min(where), max(where)) for where in places]
        span = max((len(row) - 1 for row, _ in rows), default=0)
        block = max(ROWS, span)
        s = self.sizes
        fields = (s.layers, s.width, s.heads, s.groups, s.size, s.hidden, s.words)
        more = (s.rms, s.gated, s.activation, s.learned, s.silent, block, span)
        self._shape = numbers((*fields, *more))
        self._memory = zeros(s.room(block, span))
        self._notes = zeros(7 * block, dtype=torch.int32)

    def _matrices(self, muon: Collection[str]) -> None:
        """What `train_update` reads of every piece, and the memory Muon needs."""
        unknown = set(muon) - set(self._shapes)
        if unknown or any(len(self._shapes[name]) != 2 for name in muon):
            raise ValueError("Muon is for matrices of the model")
        number = {name: n for n, name in enumerate(dict.fromkeys(p.name for p in self.pieces))}
        own = {name: n for name, n in number.items() if name in muon}
        parts = [
            (p.at, p.rows, p.columns, p.stride, own.get(p.name, -1), p.flipped)
            for p in sorted(self.pieces, key=lambda p: number[p.name])
        ]
        self._parts = torch.tensor(parts, device="cpu")
        needed = 0
        for shape in (self._shapes[name] for name in muon):
            apart = stride(min(shape))
            needed = max(needed, apart * (1 + 2 * max(shape) + 2 * min(shape)))
        self._scratch = zeros(needed + lanes())

    def _turn(self, places: int) -> None:
        """Have cosines and sines of so many positions, (positions, 2, size / 2)."""
        if self._rotary is None or places <= self._known or places > FAR:
            return
        self._known = max(places, 2 * self._known)
        turns = self._rotary(zeros(1), torch.arange(self._known, device="cpu")[None])
        half = self.sizes.size // 2
        self._turns = torch.stack([x[0, :, :half] for x in turns], 1).contiguous()

    def _checked(self, picked: Sequence[int], offsets: Sequence[int]) -> int:
        """The tokens to be learned. Raises ValueError for what cannot be read."""
        if not picked or len(offsets) != len(picked):
            raise ValueError("a step needs rows, and an offset for each")
        if min(picked) < 0 or max(picked) >= len(self._learned):
            raise ValueError(f"rows are from 0 to {len(self._learned) - 1}")
        count = sum(self._learned[i] for i in picked)
        if not count:
            raise ValueError("none of these rows has a token to be learned")
        extent = [self._extent[i] for i in picked]
        low = min(a + o for (a, _), o in zip(extent, offsets, strict=True))
        high = max(b + o for (_, b), o in zip(extent, offsets, strict=True))
        self._turn(high + 1)
        if low < 0 or high >= self._known:
            raise ValueError(f"positions are from 0 to {self._known - 1}")
        return count
