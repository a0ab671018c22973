"""Training of GPT-2 and Llama models of transformers by `train.c`, in float32 on one thread.

What torch does with the same rows, optimizers and rates, up to rounding, but for nothing that the
loss does not see: no padding, and in the last layer only tokens whose successor is learned.
Nothing of transformers is imported here: a model is read through its `config` and parameters.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from community.kernels.build import Program, lanes
from community.kernels.gpt import ACTIVATIONS, FIXED_TURNS, Unsupported

FAR = 2**20  # no rotary position is beyond it
ROWS = 128  # tokens of a block, whose activations are to stay in the nearest cache
QUERIES = 64  # of a head at a time, as in train.c
BETAS, EPSILON = (0.9, 0.95), 1e-8  # of AdamW, as in train.c
HEAD = ("embedding", "position", "head", "scale", "shift")  # parts of a model and of a layer,
LAYER = (  # in the order of train.c
    *("scale 1", "shift 1", "query", "query bias", "keys", "keys bias", "out", "out bias"),
    *("scale 2", "shift 2", "middle", "middle bias", "down", "down bias"),
)


@dataclass(frozen=True)
class Sizes:
    """What train.c must know of a model; the first fields are its `shape`, in this order."""

    layers: int
    width: int
    heads: int
    groups: int  # heads of keys and values
    size: int  # of a head
    hidden: int
    words: int
    rms: bool
    gated: bool
    activation: int
    learned: bool  # positions are learned, not rotary
    silent: int = -1  # a word whose embedding does not learn from being read: torch's padding_idx
    places: int = 0  # learned positions
    tied: bool = True
    epsilon: float = 1e-5
    sharpness: float = 1.0  # what scores are multiplied by

    @property
    def mix(self) -> int:
        """Columns of queries."""
        return self.heads * self.size

    @property
    def kv(self) -> int:
        """Columns of keys and values."""
        return 2 * self.groups * self.size

    @property
    def middle(self) -> int:
        """Columns of the MLP's first layer; of a gated one the gate first, in whole vectors."""
        return _up(self.hidden) + self.hidden if self.gated else self.hidden

    def parts(self) -> Iterator[tuple[str, int, int]]:
        """(name, rows, columns) of everything that has weights, in the order of train.c."""
        w, one = self.width, 1
        yield from [("embedding", self.words, w), ("position", self.places, w)]
        yield from [("head", 0 if self.tied else self.words, w), ("scale", one, w)]
        yield "shift", one, w
        rows = [one, one, w, one, w, one, self.mix, one, one, one, w, one, self.hidden, one]
        columns = [w, w, self.mix, self.mix, self.kv, self.kv, w, w, w, w]
        columns += [self.middle, self.middle, w, w]
        for n in range(self.layers):
            yield from [(f"{n} {p}", r, c) for p, r, c in zip(LAYER, rows, columns, strict=True)]

    def room(self, rows: int, span: int) -> int:
        """Floats of memory for blocks of `rows` tokens and sequences of `span`: see `opened`."""
        width, mix, kv, middle, hidden, words, size, longest = map(
            _stride,
            (self.width, self.mix, self.kv, self.middle, self.hidden, self.words, self.size, span),
        )
        layer = 4 * width + 2 * mix + kv + middle + hidden + 4 + self.heads
        row = self.layers * layer + 7 * width + 2 + words + 2 * mix + kv + middle + hidden
        head = (2 * self.size + 2 * QUERIES) * longest + (QUERIES + 2 * span) * size
        return width + mix + kv + middle + words + longest + rows * row + head + lanes()


@dataclass(frozen=True)
class Piece:
    """A parameter of torch, or some columns of it, within a part of the weights."""

    name: str
    first: int  # column of the parameter, as (inputs, outputs)
    columns: int
    at: int  # where in the weights
    rows: int
    stride: int
    flipped: bool  # torch has it as (outputs, inputs)

    def within(self, flat: Tensor) -> Tensor:
        """Its place in weights, gradients or averages, (rows, columns)."""
        return flat.as_strided((self.rows, self.columns), (self.stride, 1), self.at)

    def of(self, parameter: Tensor) -> Tensor:
        """Its place in the parameter, (rows, columns)."""
        matrix = parameter.detach().view(-1, parameter.shape[-1])
        matrix = matrix.T if self.flipped else matrix
        return matrix[:, self.first : self.first + self.columns]


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
        self.sizes, self.pieces, self._rotary = _read(model)
        if not (clip > 0 and 0 <= weight_decay < math.inf):
            raise ValueError("clip is above 0 and weight decay a number from 0 on")
        self.clip, self.weight_decay = clip, weight_decay
        self._lay(model)
        self._keep_rows(rows, positions)
        self._matrices(muon)
        self._turns, self._known = torch.zeros(0), self.sizes.places
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
        loss = torch.zeros(1)
        self.program(
            "train_gradients",
            *(self._shape, self.sizes.epsilon, self.sizes.sharpness, self.weights, self._turned),
            *(self.gradient, self._places, self._turns, self._memory, self._notes),
            *(self._tokens, self._where, self._starts, self._begins, _ints(picked)),
            *(_ints(offsets), len(picked), count, loss),
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
        rates = [self.clip, rate / first, kept[0], math.sqrt(second), muon, kept[1]]
        self.program(
            "train_update",
            *(self._parts, len(self._parts), torch.tensor(rates), self.weights, self.gradient),
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
        found: dict[str, Tensor] = {n: torch.empty(shape) for n, shape in self._shapes.items()}
        for piece in self.pieces:
            piece.of(found[piece.name]).copy_(piece.within(flat))
        return found

    # -- what is laid out once --------------------------------------------------------------

    def _lay(self, model: nn.Module) -> None:
        """Weights and what is as large as they are."""
        parameters = dict(model.named_parameters())
        self._shapes = {name: p.shape for name, p in parameters.items()}
        at, size = _offsets(self.sizes)
        if self.sizes.tied:
            at["head"] = at["embedding"]
        self._places = torch.tensor([*at.values(), size])
        self.weights, self.gradient = torch.zeros(size), torch.zeros(size)
        self._turned = torch.zeros(size)
        self._means, self._squares = torch.zeros(size), torch.zeros(size)
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
        self._tokens = _ints(t for row, _ in rows for t in row)
        self._where = _ints(p for where in places for p in where)
        self._starts = _ints(accumulate((len(row) for row, _ in rows), initial=0))
        self._begins = _ints(begin for _, begin in rows)
        self._learned = [len(row) - begin for row, begin in rows]
        self._extent = [(min(where), max(where)) for where in places]
        span = max((len(row) - 1 for row, _ in rows), default=0)
        block = max(ROWS, span)
        s = self.sizes
        fields = (s.layers, s.width, s.heads, s.groups, s.size, s.hidden, s.words)
        more = (s.rms, s.gated, s.activation, s.learned, s.silent, block, span)
        self._shape = _ints((*fields, *more))
        self._memory = torch.zeros(s.room(block, span))
        self._notes = torch.zeros(7 * block, dtype=torch.int32)

    def _matrices(self, muon: Collection[str]) -> None:
        """What `train_update` reads of every piece, and the memory Muon needs."""
        unknown = set(muon) - set(self._shapes)
        if unknown or any(len(self._shapes[name]) != 2 for name in muon):
            raise ValueError("Muon is for matrices of the model")
        number = {name: n for n, name in enumerate(dict.fromkeys(p.name for p in self.pieces))}
        self._parts = torch.tensor(
            [
                (
                    p.at,
                    p.rows,
                    p.columns,
                    p.stride,
                    number[p.name] if p.name in muon else -1,
                    p.flipped,
                )
                for p in sorted(self.pieces, key=lambda p: number[p.name])
            ]
        )
        needed = 0
        for shape in (self._shapes[name] for name in muon):
            stride = _stride(min(shape))
            needed = max(needed, stride * (1 + 2 * max(shape) + 2 * min(shape)))
        self._scratch = torch.zeros(needed + lanes())

    def _turn(self, places: int) -> None:
        """Have cosines and sines of so many positions, (positions, 2, size / 2)."""
        if self._rotary is None or places <= self._known or places > FAR:
            return
        self._known = max(places, 2 * self._known)
        turns = self._rotary(torch.zeros(1), torch.arange(self._known)[None])
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


def _ints(values: Any) -> Tensor:
    return torch.tensor(list(values), dtype=torch.int32)


def _up(n: int) -> int:
    return -(-n // lanes()) * lanes()


def _stride(n: int) -> int:
    """Floats from one row of n to the next, an odd number of vectors: STRIDE in train.c."""
    return _up(n) + (0 if _up(n) // lanes() % 2 else lanes())


def _offsets(sizes: Sizes) -> tuple[dict[str, int], int]:
    """Where every part begins, with room for it and for it transposed; and the size of all."""
    at, size = {}, 0
    for name, rows, columns in sizes.parts():
        at[name] = size
        turned = columns * _stride(rows) if rows > 1 else 0
        size += max(rows * _stride(columns), turned)
    return at, size


# -- reading models --------------------------------------------------------------------

# A parameter's name, its part, the columns of the parameter and the column of the part where
# they stand, and whether torch has it as (outputs, inputs).
Entry = tuple[str, str, int, int, int, bool]


def _read(model: nn.Module) -> tuple[Sizes, list[Piece], nn.Module | None]:
    """What a model is, its parameters, and its rotary positions. Raises Unsupported."""
    kind = type(model).__name__
    if kind not in _FAMILIES:
        raise Unsupported(f"{kind} is none of {', '.join(_FAMILIES)}")
    parameters = dict(model.named_parameters())
    for name, p in parameters.items():
        if p.dtype != torch.float32 or p.device.type != "cpu" or not p.requires_grad:
            raise Unsupported(f"{name} is not a trainable float32 parameter on the processor")
    config: Any = model.config
    if (config._attn_implementation or "eager") not in ("eager", "sdpa"):
        raise Unsupported(f"attention {config._attn_implementation}")
    sizes, entries = _FAMILIES[kind](config, parameters)
    strange = set(parameters) - {name for name, *_ in entries}
    if strange:
        raise Unsupported(f"parameters that {kind} does not usually have: {min(strange)}")
    rotary = None if sizes.learned else _rotary(model)
    return sizes, list(_pieces(sizes, parameters, entries)), rotary


def _pieces(
    sizes: Sizes, parameters: dict[str, nn.Parameter], entries: list[Entry]
) -> Iterator[Piece]:
    at, _ = _offsets(sizes)
    shapes = {name: (rows, columns) for name, rows, columns in sizes.parts()}
    for name, part, first, columns, column, flipped in entries:
        if name in parameters:
            rows, all_columns = shapes[part]
            stride = _stride(all_columns)
            yield Piece(name, first, columns, at[part] + column, rows, stride, flipped)


def _gpt2(config: Any, parameters: dict[str, nn.Parameter]) -> tuple[Sizes, list[Entry]]:
    if config.add_cross_attention:
        raise Unsupported("cross attention")
    if config.scale_attn_by_inverse_layer_idx:
        raise Unsupported("scale_attn_by_inverse_layer_idx")
    if config.resid_pdrop or config.embd_pdrop or config.attn_pdrop:
        raise Unsupported("dropout")
    w, size = config.n_embd, config.n_embd // config.n_head
    sizes = Sizes(
        layers=config.n_layer,
        width=w,
        heads=config.n_head,
        groups=config.n_head,
        size=size,
        hidden=config.n_inner or 4 * w,
        words=config.vocab_size,
        rms=False,
        gated=False,
        activation=_activation(config.activation_function),
        learned=True,
        places=config.n_positions,
        tied="lm_head.weight" not in parameters,
        epsilon=config.layer_norm_epsilon,
        sharpness=size**-0.5 if config.scale_attn_weights else 1.0,
    )
    entries = [
        _whole("transformer.wte.weight", "embedding", w),
        _whole("transformer.wpe.weight", "position", w),
        _whole("lm_head.weight", "head", w),
        _whole("transformer.ln_f.weight", "scale", w),
        _whole("transformer.ln_f.bias", "shift", w),
    ]
    for n in range(sizes.layers):
        for kind, more in (("weight", ""), ("bias", " bias")):
            at = f"transformer.h.{n}."
            entries.append((f"{at}attn.c_attn.{kind}", f"{n} query{more}", 0, w, 0, False))
            entries.append((f"{at}attn.c_attn.{kind}", f"{n} keys{more}", w, 2 * w, 0, False))
            entries.append(_whole(f"{at}attn.c_proj.{kind}", f"{n} out{more}", w))
            entries.append(_whole(f"{at}mlp.c_fc.{kind}", f"{n} middle{more}", sizes.hidden))
            entries.append(_whole(f"{at}mlp.c_proj.{kind}", f"{n} down{more}", w))
            norm = "shift" if more else "scale"
            entries += [_whole(f"{at}ln_{i}.{kind}", f"{n} {norm} {i}", w) for i in (1, 2)]
    return sizes, entries


def _llama(config: Any, parameters: dict[str, nn.Parameter]) -> tuple[Sizes, list[Entry]]:
    if config.attention_dropout:
        raise Unsupported("dropout")
    w, heads, groups = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
    sizes = Sizes(
        layers=config.num_hidden_layers,
        width=w,
        heads=heads,
        groups=groups,
        size=config.head_dim,
        hidden=config.intermediate_size,
        words=config.vocab_size,
        rms=True,
        gated=True,
        activation=_activation(config.hidden_act),
        learned=False,
        silent=-1 if config.pad_token_id is None else config.pad_token_id,
        tied="lm_head.weight" not in parameters,
        epsilon=config.rms_norm_eps,
        sharpness=config.head_dim**-0.5,
    )
    if sizes.size % 2 or heads % groups:
        raise Unsupported(f"{heads} heads of size {sizes.size} over {groups}")
    keys, hidden = groups * sizes.size, sizes.hidden
    entries = [
        _whole("model.embed_tokens.weight", "embedding", w),
        _whole("lm_head.weight", "head", w),
        _whole("model.norm.weight", "scale", w),
    ]
    for n in range(sizes.layers):
        at = f"model.layers.{n}."
        entries.append(_whole(f"{at}input_layernorm.weight", f"{n} scale 1", w))
        entries.append(_whole(f"{at}post_attention_layernorm.weight", f"{n} scale 2", w))
        for kind, more in (("weight", ""), ("bias", " bias")):
            for name, part, columns, column in (
                ("self_attn.q_proj", "query", sizes.mix, 0),
                ("self_attn.k_proj", "keys", keys, 0),
                ("self_attn.v_proj", "keys", keys, keys),
                ("self_attn.o_proj", "out", w, 0),
                ("mlp.gate_proj", "middle", hidden, 0),
                ("mlp.up_proj", "middle", hidden, _up(hidden)),
                ("mlp.down_proj", "down", w, 0),
            ):
                flipped = kind == "weight"
                name = f"{at}{name}.{kind}"
                entries.append((name, f"{n} {part}{more}", 0, columns, column, flipped))
    return sizes, entries


_FAMILIES = {"GPT2LMHeadModel": _gpt2, "LlamaForCausalLM": _llama}


def _whole(name: str, part: str, columns: int) -> Entry:
    """A parameter that is all of a part."""
    return name, part, 0, columns, 0, False


def _activation(name: str) -> int:
    if name not in ACTIVATIONS:
        raise Unsupported(f"activation {name}")
    return ACTIVATIONS[name]


def _rotary(model: nn.Module) -> nn.Module:
    config: Any = model.config
    kind = (config.rope_parameters or {}).get("rope_type", "default")
    if kind not in FIXED_TURNS:
        raise Unsupported(f"rotary positions of type {kind}")
    rotary: Any = model.get_submodule("model.rotary_emb")
    if len(rotary.inv_freq) * 2 != config.head_dim:
        raise Unsupported("rotary positions for a part of the head")
    module: nn.Module = rotary
    return module
