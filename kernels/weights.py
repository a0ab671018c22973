"""What the kernels must know of a language model of transformers: its layout, and its weights part
by part in the order in which gpt.c and gpt.cu read them.

Nothing of transformers is imported here: a model is read through its `config` and `state_dict`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

ACTIVATIONS = {"gelu_new": 0, "gelu_pytorch_tanh": 0, "relu": 1, "silu": 2}
_FIXED_TURNS = ("default", "linear", "llama3", "yarn")  # rotations that no length changes
_ATTENTIONS = ("eager", "sdpa", "flash_attention_2", "flex_attention", "community")
_NARROW = (torch.float32, torch.bfloat16, torch.float16)


class Unsupported(ValueError):
    """A model that the kernels cannot run. Says which of its features they lack."""


@dataclass(frozen=True)
class Layout:
    """What the kernels must know of a model beside its weights."""

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


@dataclass(frozen=True)
class Table:
    """Rows to be looked up, (rows, width)."""

    weight: Tensor


@dataclass(frozen=True)
class Vector:
    """What a norm multiplies by or adds, (width)."""

    weight: Tensor


@dataclass(frozen=True)
class Ready:
    """How the queries and keys of the product before are made ready."""

    factors: Tensor  # (heads), what queries are multiplied by
    turns: bool  # whether they are rotated
    norms: tuple[Tensor, ...] = ()  # (size) for queries and for keys, where they are normalised


@dataclass(frozen=True)
class Product:
    """x W + b for one or several W, side by side: each weight (inputs, outputs) with its bias."""

    pieces: tuple[tuple[Tensor, Tensor], ...]
    apart: bool = False  # each piece is an operand of its own
    head: bool = False  # gives the logits


Part = Table | Vector | Ready | Product
Rotary = tuple[Tensor, float]
"""Angles per position, (size / 2), and what cosine and sine are multiplied by."""


def parts_of(model: nn.Module) -> tuple[Layout, list[Part], Rotary | None]:
    """A causal GPT-2, Llama, Mistral, Qwen2, Qwen3 or SmolLM3 in parts: tables; of each layer norm,
    product, Ready, product, norm, product, product; norm and head. Raises Unsupported."""
    state, kind = dict(model.state_dict()), type(model).__name__
    if kind not in _FAMILIES:
        raise Unsupported(f"{kind} is none of {', '.join(_FAMILIES)}")
    strange = {w.dtype for w in state.values()} - set(_NARROW)
    if strange:
        raise Unsupported(f"weights are {str(strange.pop()).removeprefix('torch.')}")
    check_causal(model.config)
    try:
        layout, parts = _FAMILIES[kind](model, state)
    except KeyError as error:  # a layer was taken away, or something put around it
        raise Unsupported(f"{kind} without {error}") from error
    if state:
        raise Unsupported(f"weights that {kind} does not usually have: {min(state)}")
    _check_shapes(layout, parts)
    return layout, parts, None if layout.learned else _rotary(model, layout.size)


def check_causal(config: Any) -> None:
    """Raises Unsupported for a model whose tokens see those after them."""
    if not getattr(config, "is_causal", True):
        raise Unsupported("is_causal=False")


def gpt2_layout(config: Any) -> Layout:
    """Of a GPT-2. Raises Unsupported."""
    if config.add_cross_attention:
        raise Unsupported("cross attention")
    width, heads = config.n_embd, config.n_head
    return Layout(
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


def _gpt2(model: nn.Module, state: dict[str, Tensor]) -> tuple[Layout, list[Part]]:
    config: Any = model.config
    layout = gpt2_layout(config)
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
        parts += [*map(Vector, both("ln_1")), Product((both("attn.c_attn"),))]
        parts += [Ready(factors, False), Product((both("attn.c_proj"),))]
        parts += map(Vector, both("ln_2"))
        parts += [Product((both("mlp.c_fc"),)), Product((both("mlp.c_proj"),))]
    parts += [Vector(take(f"transformer.ln_f.{name}")) for name in ("weight", "bias")]
    return layout, [*parts, _head(state)]


def llama_layout(config: Any) -> Layout:
    """Of a Llama and of models like it. Raises Unsupported."""
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
    )
    if layout.size % 2 or heads % layout.groups:
        raise Unsupported(f"{heads} heads of size {layout.size} over {layout.groups}")
    return layout


def _llama(model: nn.Module, state: dict[str, Tensor]) -> tuple[Layout, list[Part]]:
    config: Any = model.config
    whitened = "model.layers.0.self_attn.q_norm.weight" in state
    layout = replace(llama_layout(config), whitened=whitened)
    kinds, window = getattr(config, "layer_types", None), getattr(config, "sliding_window", None)
    if "sliding_attention" in (kinds or ()) or (window and kinds is None):
        raise Unsupported("attention in a sliding window")
    # the other families do not read it
    turning = config.no_rope_layers if config.model_type == "smollm3" else [1] * layout.layers
    parts: list[Part] = [Table(state.pop("model.embed_tokens.weight"))]
    for n in range(layout.layers):
        at = f"model.layers.{n}."

        def linear(name: str, at: str = at) -> tuple[Tensor, Tensor]:
            weight = state.pop(f"{at}{name}.weight").T
            bias = state.pop(f"{at}{name}.bias", None)
            return weight, weight.new_zeros(weight.shape[1]) if bias is None else bias

        def norms(at: str = at) -> tuple[Tensor, ...]:
            return tuple(state.pop(f"{at}self_attn.{x}_norm.weight") for x in "qk")

        parts += _scaling(state.pop(f"{at}input_layernorm.weight"))
        parts += [Product(tuple(linear(f"self_attn.{name}_proj") for name in "qkv"))]
        whitening = norms() if layout.whitened else ()
        parts += [Ready(_sharpness(config, layout), bool(turning[n]), whitening)]
        parts += [Product((linear("self_attn.o_proj"),))]
        parts += _scaling(state.pop(f"{at}post_attention_layernorm.weight"))
        middle = tuple(linear(f"mlp.{name}_proj") for name in ("gate", "up"))
        parts += [Product(middle, apart=True), Product((linear("mlp.down_proj"),))]
    parts += _scaling(state.pop("model.norm.weight"))
    return layout, [*parts, _head(state)]


_LIKE_LLAMA = ("Llama", "Mistral", "Qwen2", "Qwen3", "SmolLM3")
_FAMILIES = {
    "GPT2LMHeadModel": _gpt2,
    **{f"{name}ForCausalLM": _llama for name in _LIKE_LLAMA},
}


def _check_shapes(x: Layout, parts: list[Part]) -> None:
    """Raises Unsupported for weights of other shapes than the config says: the kernels find each by
    the sizes of those before it."""
    w, mix, middle = x.width, x.heads * x.size, x.hidden * (1 + x.gated)
    layer = [(w,), (w,), (w, mix + 2 * x.groups * x.size), (x.size,) * 2 * x.whitened, (mix, w)]
    layer += [(w,), (w,), (w, middle), (x.hidden, w)]
    tables = [(x.words, w), (x.places, w)][: 1 + x.learned]
    wanted = [*tables, *layer * x.layers, (w,), (w,), (w, x.words)]
    for part, shape in zip(parts, wanted, strict=True):
        if _shape(part) != shape:
            raise Unsupported(f"weights of shape {_shape(part)}, and the config says {shape}")


def _shape(part: Part) -> tuple[int, ...]:
    """Of the weights of a part, those of a product side by side."""
    if isinstance(part, Product):
        return len(part.pieces[0][0]), sum(len(bias) for _, bias in part.pieces)
    if isinstance(part, Ready):
        return tuple(len(norm) for norm in part.norms)
    return tuple(part.weight.shape)


def _scaling(weight: Tensor) -> list[Part]:
    """RMSNorm shifts by nothing."""
    return [Vector(weight), Vector(torch.zeros_like(weight))]


def _head(state: dict[str, Tensor]) -> Product:
    weight = state.pop("lm_head.weight").T
    bias = state.pop("lm_head.bias", weight.new_zeros(weight.shape[1]))
    return Product(((weight, bias),), head=True)


def _sharpness(config: Any, layout: Layout) -> Tensor:
    """What scores are multiplied by, and so the queries: (heads)."""
    kind = config._attn_implementation or "eager"
    if kind not in _ATTENTIONS:
        raise Unsupported(f"attention {kind}")
    temperature = torch.ones((), dtype=torch.float32, device="cpu")
    if kind == "community":
        if getattr(config, "attention_sink", False):
            raise Unsupported("attention_sink")
        given = getattr(config, "attention_temperature", None)
        given = 1.0 if given is None else given
        temperature = torch.as_tensor(given, dtype=torch.float32, device="cpu")
        fits = temperature.shape in ((), (1,), (layout.heads,))
        if not fits or not bool(((temperature > 0) & temperature.isfinite()).all()):
            raise Unsupported(f"attention_temperature {given} of {layout.heads} heads")
    return (layout.size**-0.5 / temperature).expand(layout.heads)


def _activation(name: str) -> int:
    if name not in ACTIVATIONS:
        raise Unsupported(f"activation {name}")
    return ACTIVATIONS[name]


def rotary_module(model: nn.Module, size: int) -> nn.Module:
    """What turns heads of `size` by their positions. Raises Unsupported."""
    config: Any = model.config
    kind = (config.rope_parameters or {}).get("rope_type", "default")
    if kind not in _FIXED_TURNS:
        raise Unsupported(f"rotary positions of type {kind}")
    module: Any = model.get_submodule("model.rotary_emb")
    if len(module.inv_freq) * 2 != size:
        raise Unsupported("rotary positions for a part of the head")
    return module


def _rotary(model: nn.Module, size: int) -> Rotary:
    module: Any = rotary_module(model, size)
    return module.inv_freq.detach().float(), float(module.attention_scaling)
