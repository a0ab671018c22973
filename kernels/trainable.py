"""What train.c must know of a model of transformers: its sizes, and where its parameters lie.

Nothing of transformers is imported here: a model is read through its `config` and parameters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from community.kernels.build import lanes, round_up
from community.kernels.weights import (
    Layout,
    Unsupported,
    check_causal,
    gpt2_layout,
    llama_layout,
    rotary_module,
)

QUERIES = 64  # of a head at a time, as in train.c
LAYER = (  # parts of a layer, in the order of train.c
    *("scale 1", "shift 1", "query", "query bias", "keys", "keys bias", "out", "out bias"),
    *("scale 2", "shift 2", "middle", "middle bias", "down", "down bias"),
)
TURNED = ("embedding", "head", "query", "keys", "out", "middle", "down")  # read transposed too


@dataclass(frozen=True)
class Sizes(Layout):
    """What train.c must know of a model."""

    silent: int = -1  # a word whose embedding does not learn from being read: torch's padding_idx
    tied: bool = True
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
        return round_up(self.hidden, lanes()) + self.hidden if self.gated else self.hidden

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
            stride,
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


def stride(n: int) -> int:
    """Floats from one row of n to the next, an odd number of vectors: STRIDE in train.c."""
    whole = round_up(n, lanes())
    return whole + (0 if whole // lanes() % 2 else lanes())


def lay_out(sizes: Sizes) -> tuple[dict[str, int], int]:
    """Where every part begins, with room for it, transposed where needed; and the size of all."""
    at, size = {}, 0
    for name, rows, columns in sizes.parts():
        at[name] = size
        turned = columns * stride(rows) if name.split()[-1] in TURNED else 0
        size += max(rows * stride(columns), turned)
    return at, size


# -- reading models --------------------------------------------------------------------

# A parameter's name, its part, the columns of the parameter and the column of the part where
# they stand, and whether torch has it as (outputs, inputs).
Entry = tuple[str, str, int, int, int, bool]


def read(model: nn.Module) -> tuple[Sizes, list[Piece], nn.Module | None]:
    """What a model is, its parameters, and its rotary positions. Raises Unsupported."""
    kind = type(model).__name__
    if kind not in _FAMILIES:
        raise Unsupported(f"{kind} is none of {', '.join(_FAMILIES)}")
    parameters = dict(model.named_parameters())
    every = model.named_parameters(remove_duplicate=False)
    shared = {name for name, _ in every} - set(parameters) - {"lm_head.weight"}
    if shared:
        raise Unsupported(f"{min(shared)} is another parameter too")
    for name, p in parameters.items():
        if p.dtype != torch.float32 or p.device.type != "cpu" or not p.requires_grad:
            raise Unsupported(f"{name} is not a trainable float32 parameter on the processor")
    config: Any = model.config
    if (config._attn_implementation or "eager") not in ("eager", "sdpa"):
        raise Unsupported(f"attention {config._attn_implementation}")
    check_causal(config)
    sizes, entries = _FAMILIES[kind](config, parameters)
    # a word that learns nothing is the embedding's, whatever the config has come to say
    silent = model.get_input_embeddings().padding_idx  # type: ignore[operator]
    sizes = replace(sizes, silent=-1 if silent is None else silent)
    names = {name for name, *_ in entries}
    strange = set(parameters) - names
    if strange:
        raise Unsupported(f"parameters that {kind} does not usually have: {min(strange)}")
    needed = {name for name in names if name.endswith("weight")} - {"lm_head.weight"}
    missing = needed - set(parameters)
    if missing:
        raise Unsupported(f"{kind} without {min(missing)}")
    rotary = None if sizes.learned else rotary_module(model, sizes.size)
    return sizes, list(_pieces(sizes, parameters, entries)), rotary


def _pieces(
    sizes: Sizes, parameters: dict[str, nn.Parameter], entries: list[Entry]
) -> Iterator[Piece]:
    at, _ = lay_out(sizes)
    shapes = {name: (rows, columns) for name, rows, columns in sizes.parts()}
    for name, part, first, columns, column, flipped in entries:
        if name in parameters:
            rows, all_columns = shapes[part]
            apart = stride(all_columns)
            piece = Piece(name, first, columns, at[part] + column, rows, apart, flipped)
            if piece.of(parameters[name]).shape != (rows, columns):
                raise Unsupported(f"{name} of shape {tuple(parameters[name].shape)}")
            yield piece


def _gpt2(config: Any, parameters: dict[str, nn.Parameter]) -> tuple[Sizes, list[Entry]]:
    if config.scale_attn_by_inverse_layer_idx:
        raise Unsupported("scale_attn_by_inverse_layer_idx")
    if config.resid_pdrop or config.embd_pdrop or config.attn_pdrop:
        raise Unsupported("dropout")
    layout = gpt2_layout(config)
    w = layout.width
    sizes = Sizes(
        **vars(layout),
        tied="lm_head.weight" not in parameters,
        sharpness=layout.size**-0.5 if config.scale_attn_weights else 1.0,
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
    layout = replace(llama_layout(config), places=0)  # none are learned
    w = layout.width
    sizes = Sizes(
        **vars(layout),
        tied="lm_head.weight" not in parameters,
        sharpness=layout.size**-0.5,
    )
    keys, hidden = layout.groups * layout.size, layout.hidden
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
                ("mlp.up_proj", "middle", hidden, round_up(hidden, lanes())),
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
