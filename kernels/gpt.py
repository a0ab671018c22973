"""GPT-2, Llama and models like it run by `gpt.c`: generation and scores in float32.

Nothing of transformers is imported here: a model is read through its `config` and `state_dict`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from community.kernels.build import CProgram, Program, lanes

ROWS = 96  # tokens in one pass, and sequences in a block, at most
CACHE = 2**28  # floats of keys and values that a block may have: 1 GiB
NEAR = 2**22  # floats of keys and values that stay near the processor: 16 MiB
FEW = 24  # sequences that suffice to use what is loaded of the weights
TILE = 8  # rows of the largest tile in gpt.c
KINDS = ("float32", "bfloat16", "int8")  # of weights, in the order of gpt.c
GROUP = 32  # inputs that share a scale of int8 weights, as in gpt.c
ACTIVATIONS = {"gelu_new": 0, "gelu_pytorch_tanh": 0, "relu": 1, "silu": 2}
FAR = 2**20  # no rotary position is beyond it
FIXED_TURNS = ("default", "linear", "llama3", "yarn")  # rotations that no length changes
ATTENTIONS = ("eager", "sdpa", "flash_attention_2", "flex_attention", "community")
NARROW = (torch.float32, torch.bfloat16, torch.float16)


class Unsupported(ValueError):
    """A model that the kernels cannot run. Says which of its features they lack."""


@dataclass(frozen=True)
class Layout:
    """What the kernels must know of a model; the order is that of `shape` in gpt.c."""

    layers: int
    width: int
    heads: int
    groups: int  # heads of keys and values
    size: int  # of a head
    hidden: int
    words: int
    places: int  # positions in the table
    rms: bool
    gated: bool
    activation: int
    learned: bool  # positions are learned, not rotary
    epsilon: float
    whitened: bool = False  # queries and keys are normalised, head by head

    def numbers(self, places: int, kind: int, table: int, slots: int) -> Tensor:
        """With as many positions as the table has now, the kinds of the weights and of the
        embeddings, and the sequences that a cache has room for."""
        fields = (self.layers, self.width, self.heads, self.groups, self.size, self.hidden)
        more = (self.words, places, self.rms, self.gated, self.activation, self.learned)
        kinds = (self.whitened, kind, table, ROWS, slots)
        return torch.tensor([*fields, *more, *kinds], dtype=torch.int32)

    def room(self, span: int, slots: int) -> tuple[int, int]:
        """Floats and ints of memory that a block needs: sequences of at most `span` tokens."""
        qkv = padded((self.heads + 2 * self.groups) * self.size)
        mix = padded(self.heads * self.size) + panel()
        middle = padded(self.hidden) * (1 + self.gated)
        row = 3 * padded(self.width) + qkv + mix + middle + padded(self.words)
        unpacked = max(padded(self.width), padded(self.hidden), mix) * panel()
        cache = slots * self.token_floats() * span
        return ROWS * row + unpacked + cache + padded(self.words) + span, 5 * ROWS + self.words

    def token_floats(self) -> int:
        """Floats that a token takes in the cache."""
        return self.layers * self.groups * (self.size + padded(self.size))


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
        state = dict(model.state_dict())
        kind = type(model).__name__
        if kind not in _FAMILIES:
            raise Unsupported(f"{kind} is none of {', '.join(_FAMILIES)}")
        strange = {w.dtype for w in state.values()} - set(NARROW)
        if strange:
            raise Unsupported(f"weights are {str(strange.pop()).removeprefix('torch.')}")
        if any(w.device.type != "cpu" for w in state.values()):
            raise Unsupported("weights are not on the processor")
        self.layout, parts = _FAMILIES[kind](model, state)
        if state:
            raise Unsupported(f"weights that {kind} does not usually have: {min(state)}")
        products = [part.weight for part in parts if isinstance(part, Product)]
        tables = [part.weight for part in parts if isinstance(part, Table)]
        kind = self.wanted
        if kind == "float32" and all(map(_narrow, products)):
            kind = "bfloat16"
        half = kind == "bfloat16" or all(map(_narrow, tables))
        self._kind, self._table = KINDS.index(kind), int(half)
        packed = [_packed(part, self._kind, self._table) for part in parts]
        self.weights = torch.cat([part.reshape(-1).view(torch.uint8) for part in packed])
        self._rotary = None if self.layout.learned else _rotary(model, self.layout.size)
        self._turns = torch.empty(0)
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
            draws = torch.zeros(len(prompts), max_tokens, dtype=torch.float64)
        elif draws is None or draws.shape != (len(prompts), max_tokens):
            raise ValueError(f"sampling needs draws of shape ({len(prompts)}, {max_tokens})")
        longest = max((p[-1] for p in places), default=0) + max_tokens
        self._turn(longest)
        tokens: list[list[int]] = [[] for _ in prompts]
        logprobs = [0.0] * len(prompts)
        keys = [(tuple(row), tuple(where)) for row, where in zip(prompts, places, strict=True)]
        order = sorted(range(len(keys)), key=lambda i: (len(prompts[i]), keys[i]))
        for blocks, memory in self._blocks(order, prompts, max_tokens):
            ids = [i for block in blocks for i in block]
            source: list[int] = []
            for block in blocks:
                first: dict[Any, int] = {}
                for i in block:
                    source.append(first.setdefault(keys[i], len(source)))
            said = torch.zeros(len(ids), max_tokens, dtype=torch.int32)
            counts = torch.zeros(len(ids), dtype=torch.int32)
            total = torch.zeros(len(ids), dtype=torch.float64)
            self._launch(
                "generate",
                [[*prompts[i]] for i in ids],
                [[*places[i]] for i in ids],
                source,
                blocks,
                memory,
                draws[ids].double().contiguous(),
                float(temperature),
                float(top_p),
                min(top_k, self.layout.words),
                float(min_p),
                max_tokens,
                -1 if end is None else end,
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
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        for blocks, memory in self._blocks(order, rows, 0):
            ids = [i for block in blocks for i in block]
            total = torch.zeros(len(ids), dtype=torch.float64)
            self._launch(
                "score",
                [[*rows[i]] for i in ids],
                [[*places[i]] for i in ids],
                [starts[i] for i in ids],
                blocks,
                memory,
                total,
            )
            for i, score in zip(ids, total.tolist(), strict=True):
                scores[i] = score
        return scores

    # -- calling ---------------------------------------------------------------------------

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
        self.program(
            kernel,
            self.layout.numbers(self._places, self._kind, self._table, memory.slots),
            self.weights,
            self._turns,
            self.layout.epsilon,
            _ints(t for row in rows for t in row),
            _ints(p for where in places for p in where),
            _ints(accumulate(map(len, rows), initial=0)),
            _ints(each),
            _ints(accumulate(map(len, blocks), initial=0)),
            memory.floats,
            memory.ints,
            torch.tensor([memory.floats.shape[1], memory.ints.shape[1]]),
            memory.span,
            *more,
            items=len(blocks),
        )

    def _blocks(
        self, order: list[int], rows: Sequence[Sequence[int]], more: int
    ) -> Iterator[tuple[list[list[int]], Memory]]:
        """Rows in blocks, as many a time as may run at once, with memory for rows that grow by
        `more` tokens.

        Every step reads all that a block has cached: blocks are small enough for that to stay
        near the processor (1.4 times as fast at width 128 and 96 sequences of 144 tokens), unless
        the weights, which every step reads as well, are not near either.
        """
        if not order:
            return
        span = _span(max(map(len, rows)) + more)
        each = self.layout.token_floats() * span
        few = FEW if self.weights.numel() <= 4 * NEAR else ROWS
        most = max(1, min(ROWS, max(few, NEAR // each), CACHE // each))
        at_once = 1 if isinstance(self.program, CProgram) else torch.get_num_threads()
        count = max(math.ceil(len(order) / most), min(at_once, len(order)))
        slots = min(most, TILE * math.ceil(len(order) / count / TILE))
        blocks = [order[a : a + slots] for a in range(0, len(order), slots)]
        floats, ints = self.layout.room(span, slots)
        places = min(at_once, len(blocks))
        memory = Memory(
            torch.empty(places, floats), torch.empty(places, ints, dtype=torch.int32), span, slots
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
        if self._rotary is None or places <= self._places:
            return
        speeds, scale = self._rotary
        self._places = max(places, self.layout.places)
        angles = torch.arange(self._places).float()[:, None] * speeds
        self._turns = (torch.stack([angles.cos(), angles.sin()], 1) * scale).contiguous()


def _ints(values: Any) -> Tensor:
    return torch.tensor(list(values), dtype=torch.int32)


def panel() -> int:
    """Outputs of a panel of weights: WIDE in gpt.c."""
    return 2 * lanes()


def padded(n: int) -> int:
    """The next multiple of a panel."""
    return -(-n // panel()) * panel()


def _span(tokens: int) -> int:
    return -(-tokens // lanes()) * lanes()


# -- reading weights -------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """Rows to be looked up, (rows, width)."""

    weight: Tensor


@dataclass(frozen=True)
class Product:
    """x W + b: weight (inputs, outputs), bias (outputs); `pad` is the bias of padding."""

    weight: Tensor
    bias: Tensor
    pad: float = 0.0


Part = Table | Product | Tensor


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
    if isinstance(part, Table):
        rows = _row(part.weight).view(-1, panel())
        return _halves(rows) if table else rows.float()
    if isinstance(part, Tensor):
        return part
    inputs = len(part.weight)
    panels = _row(part.weight).view(inputs, -1, panel()).transpose(0, 1)  # (P, inputs, WIDE)
    packed = [_whole, _halves, _bytes][kind](panels)
    bias = _row(part.bias.float(), part.pad)
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


def _ready(factors: Tensor, turns: bool) -> Tensor:
    """What queries are multiplied by, head by head, and whether the layer rotates."""
    return _floats(torch.cat([factors, torch.tensor([float(turns)])]))


def _gpt2(model: nn.Module, state: dict[str, Tensor]) -> tuple[Layout, list[Part]]:
    config: Any = model.config
    if config.add_cross_attention:
        raise Unsupported("cross attention")
    width, heads = config.n_embd, config.n_head
    layout = Layout(
        layers=config.n_layer,
        width=width,
        heads=heads,
        groups=heads,
        size=width // heads,
        hidden=config.n_inner or 4 * width,
        words=config.vocab_size,
        places=config.n_positions,
        rms=False,
        gated=False,
        activation=_activation(config.activation_function),
        learned=True,
        epsilon=config.layer_norm_epsilon,
    )
    take = state.pop
    parts: list[Part] = [Table(take(f"transformer.{name}.weight")) for name in ("wte", "wpe")]
    for n in range(layout.layers):
        at = f"transformer.h.{n}."

        def both(name: str, at: str = at) -> tuple[Tensor, Tensor]:
            return take(f"{at}{name}.weight"), take(f"{at}{name}.bias")

        factors = _sharpness(config, layout)
        if not config.scale_attn_weights:
            factors = factors * layout.size**0.5
        if config.scale_attn_by_inverse_layer_idx:
            factors = factors / (n + 1)
        parts += [*map(_floats, both("ln_1")), Product(*both("attn.c_attn"))]
        parts += [_ready(factors, False), Product(*both("attn.c_proj"))]
        parts += map(_floats, both("ln_2"))
        parts += [Product(*both("mlp.c_fc")), Product(*both("mlp.c_proj"))]
    parts += [_floats(take(f"transformer.ln_f.{name}")) for name in ("weight", "bias")]
    return layout, [*parts, _head(state)]


def _llama(model: nn.Module, state: dict[str, Tensor]) -> tuple[Layout, list[Part]]:
    config: Any = model.config
    heads = config.num_attention_heads
    layout = Layout(
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        heads=heads,
        groups=config.num_key_value_heads,
        size=getattr(config, "head_dim", None) or config.hidden_size // heads,
        hidden=config.intermediate_size,
        words=config.vocab_size,
        places=config.max_position_embeddings,
        rms=True,
        gated=True,
        activation=_activation(config.hidden_act),
        learned=False,
        epsilon=config.rms_norm_eps,
        whitened="model.layers.0.self_attn.q_norm.weight" in state,
    )
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        raise Unsupported("attention in a sliding window")
    window = getattr(config, "sliding_window", None)
    if window and getattr(config, "layer_types", None) is None:
        raise Unsupported("attention in a sliding window")
    turning = getattr(config, "no_rope_layers", None) or [1] * layout.layers
    if layout.size % 2 or heads % layout.groups:
        raise Unsupported(f"{heads} heads of size {layout.size} over {layout.groups}")
    nothing = torch.zeros(padded(layout.width))  # RMSNorm shifts by nothing
    parts: list[Part] = [Table(state.pop("model.embed_tokens.weight"))]
    for n in range(layout.layers):
        at = f"model.layers.{n}."

        def norm(name: str, at: str = at) -> list[Tensor]:
            return [_floats(state.pop(f"{at}{name}.weight")), nothing]

        def linear(name: str, at: str = at) -> tuple[Tensor, Tensor]:
            weight = state.pop(f"{at}{name}.weight").T
            bias = state.pop(f"{at}{name}.bias", None)
            return weight, torch.zeros(weight.shape[1]) if bias is None else bias

        attention = [linear(f"self_attn.{name}_proj") for name in "qkv"]
        middle = [linear(f"mlp.{name}_proj") for name in ("gate", "up")]
        middle = [(_row(w), _row(b)) for w, b in middle]  # either begins with a panel
        parts += [*norm("input_layernorm"), _beside(attention)]
        parts += [_ready(_sharpness(config, layout), bool(turning[n]))]
        if layout.whitened:
            parts += [_floats(state.pop(f"{at}self_attn.{x}_norm.weight")) for x in "qk"]
        parts += [Product(*linear("self_attn.o_proj"))]
        parts += [*norm("post_attention_layernorm"), _beside(middle)]
        parts += [Product(*linear("mlp.down_proj"))]
    parts += [_floats(state.pop("model.norm.weight")), nothing]
    return layout, [*parts, _head(state)]


_LIKE_LLAMA = ("Llama", "Mistral", "Qwen2", "Qwen3", "SmolLM3")
_FAMILIES = {
    "GPT2LMHeadModel": _gpt2,
    **{f"{name}ForCausalLM": _llama for name in _LIKE_LLAMA},
}


def _beside(layers: list[tuple[Tensor, Tensor]]) -> Product:
    """Several products of the same inputs as one."""
    return Product(torch.cat([w for w, _ in layers], 1), torch.cat([b for _, b in layers]))


def _head(state: dict[str, Tensor]) -> Product:
    """What is padding can never be chosen: its bias is minus infinity."""
    weight = state.pop("lm_head.weight").T
    bias = state.pop("lm_head.bias", torch.zeros(weight.shape[1]))
    return Product(weight, bias, -math.inf)


def _sharpness(config: Any, layout: Layout) -> Tensor:
    """What scores are multiplied by, and so the queries: (heads)."""
    kind = config._attn_implementation or "eager"
    if kind not in ATTENTIONS:
        raise Unsupported(f"attention {kind}")
    temperature = torch.ones(())
    if kind == "community":
        if getattr(config, "attention_sink", False):
            raise Unsupported("attention_sink")
        given = getattr(config, "attention_temperature", None)
        temperature = torch.as_tensor(1.0 if given is None else given, dtype=torch.float32)
    return (layout.size**-0.5 / temperature).expand(layout.heads)


def _activation(name: str) -> int:
    if name not in ACTIVATIONS:
        raise Unsupported(f"activation {name}")
    return ACTIVATIONS[name]


def _rotary(model: nn.Module, size: int) -> tuple[Tensor, float]:
    """Angles per position, (size / 2), and what cosine and sine are multiplied by."""
    config: Any = model.config
    kind = (config.rope_parameters or {}).get("rope_type", "default")
    if kind not in FIXED_TURNS:
        raise Unsupported(f"rotary positions of type {kind}")
    module: Any = model.get_submodule("model.rotary_emb")
    if len(module.inv_freq) * 2 != size:
        raise Unsupported("rotary positions for a part of the head")
    return module.inv_freq.detach().float(), float(module.attention_scaling)
