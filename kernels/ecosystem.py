"""Our attention and our experts in the models of transformers.

    register()
    model = AutoModelForCausalLM.from_pretrained(
        name, attn_implementation="community", experts_implementation="community"
    )

A model's config may hold `attention_temperature`, one number or one for each head (below 1
sharper, above 1 more relaxed), and `attention_sink`, True for softmax1; of a model made of several
it is the config of the part. Experts are those of mixture-of-experts models: Mixtral, Qwen-MoE and
the many that are built like them.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, _default_apply_gate
from transformers.masking_utils import eager_mask, sdpa_mask

from community.kernels.attention import added, attention, reference
from community.kernels.dispatch import combine, dispatch
from community.kernels.experts import ACTIVATIONS, expert_mlp
from community.kernels.routing import arranged

NAME = "community"
# what models ask of their attention that ours does not do; indices are of keys that they choose
_UNKNOWN = ("softcap", "s_aux", "sinks", "output_attentions", "indices", "block_indices")
# the activation functions of transformers that our experts have
_NAMES = {"swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
_ACTIVATIONS = {
    type(ACT2FN[name]): _NAMES.get(name, name) for name in (*ACTIVATIONS, *_NAMES) if name in ACT2FN
}


def register() -> None:
    """Makes `attn_implementation="community"` and `experts_implementation="community"` known to
    transformers; again does no harm."""
    ALL_EXPERTS_FUNCTIONS.register(NAME, experts)
    AttentionInterface.register(NAME, forward)
    AttentionMaskInterface.register(NAME, mask)


def forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: (B, H, T, D) -> (B, T, H, Dv).

    Dropout and a position bias that learns are computed by `reference`. Raises ValueError for
    softcapped scores, sinks that a model has learned, keys that it chooses and weights to be seen.
    """
    for name in _UNKNOWN:
        if options.get(name) is not None and options[name] is not False:
            raise ValueError(f"attn_implementation={NAME!r} does not know {name}; use 'eager'")
    wanted = getattr(module, "is_causal", True) if is_causal is None else is_causal
    config = getattr(module, "config", None)
    chosen: dict[str, Any] = {
        "causal": bool(wanted) and attention_mask is None and query.shape[2] > 1,
        "scale": scaling,
        "temperature": _temperature(config, query),
        "sink": bool(getattr(config, "attention_sink", False)),
        "mask": _added(attention_mask, position_bias, key),
    }
    if dropout:
        out, _ = reference(query, key, value, **chosen, dropout=dropout)
    else:
        out, _ = attention(query, key, value, **chosen)
    return out.transpose(1, 2).contiguous(), None


def mask(*, config: Any, **given: Any) -> Tensor | None:
    """The mask of a model as transformers asks for it: bool, and none where a flag will do, or
    numbers to add.

    Raises ValueError for a model that computes its attention itself: it would take True for a
    number to add.
    """
    asks, ready = _known_of(type(config))
    if not asks:
        raise ValueError(
            f"models of {type(config).__name__} compute attention themselves, whatever "
            f"attn_implementation={NAME!r} says; use 'eager'"
        )
    # A flag says that the last query sees the last key. In a static cache it does not; transformers
    # would have what was not written yet cut off, and it cannot be told from queries left out.
    if given["q_length"] not in (1, given["kv_length"]):
        given["allow_is_causal_skip"] = False
    if ready:
        return sdpa_mask(**given, config=config)
    return eager_mask(**{**given, "allow_is_bidirectional_skip": False}, config=config)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _known_of(config: type) -> tuple[bool, bool]:
    """`_asks` and `_ready`. Not cached itself: torch.compile would trace what is behind a cache."""
    return _asks(config), _ready(config)


@cache
def _asks(config: type) -> bool:
    """Whether all models of a config ask for the attention that is registered, as far as known."""
    return all("ALL_ATTENTION_FUNCTIONS" in names for names in _modules(config))


@cache
def _ready(config: type) -> bool:
    """Whether all models of a config know SDPA, and so masks of bool and the flag: elsewhere
    `is_causal` of a module may be wrong, and a mask what is added to scores."""
    found = [x for names in _modules(config) for x in names.values() if isinstance(x, type)]
    return all(x._supports_sdpa for x in found if issubclass(x, PreTrainedModel) and x.config_class)


def _modules(config: type) -> list[dict[str, Any]]:
    """What is defined beside a config, in every module of models that reads it."""
    beside = config.__module__.rpartition(".")[0] + ".modeling_"
    near = [vars(m) for name, m in list(sys.modules.items()) if name.startswith(beside)]
    return [names for names in near if names.get(config.__name__) is config]


def _added(mask: Tensor | None, bias: Tensor | None, key: Tensor) -> Tensor | None:
    if mask is not None and mask.dim() == 4:
        mask = mask[..., : key.shape[2]]
    if bias is None:
        return mask
    bias = bias[..., : key.shape[2]]
    return bias if mask is None else bias + added(mask, bias.dtype)


def _temperature(config: Any, query: Tensor) -> float | Tensor | None:
    given = getattr(config, "attention_temperature", None)
    if isinstance(given, list | tuple):
        return torch.tensor(given, dtype=torch.float32, device=query.device)
    return given


def experts(
    module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """The experts of a layer as transformers calls them: (N, D) -> (N, D), for the experts and
    weights (N, k) that the model's own router chose.

    Raises ValueError for experts with biases, a norm or a gate of their own, for activation
    functions that `expert_mlp` does not know, and for experts spread over machines.
    """
    activation = _known(module)
    up, down = module.gate_up_proj if module.has_gate else module.up_proj, module.down_proj
    if module.is_transposed:
        up, down = up.transpose(1, 2), down.transpose(1, 2)
    chosen = arranged(top_k_index, top_k_weights, down.shape[0])
    rows = dispatch(hidden_states.to(down.dtype), chosen)
    out = combine(expert_mlp(rows, chosen.offsets, up, down, activation), chosen)
    return out.to(hidden_states.dtype)


def _known(module: Any) -> str:
    """Our name of the experts' activation function. Raises ValueError for experts unknown here."""
    name = f"experts_implementation={NAME!r} does not know"
    for flag in ("has_bias", "has_post_expert_norm", "_is_expert_parallel"):
        if getattr(module, flag):
            raise ValueError(f"{name} {flag} of {type(module).__name__}; use 'grouped_mm'")
    if module.has_gate and type(module)._apply_gate is not _default_apply_gate:
        raise ValueError(f"{name} the gate of {type(module).__name__}; use 'grouped_mm'")
    activation = _ACTIVATIONS.get(type(module.act_fn))
    if activation is None:
        raise ValueError(f"{name} {type(module.act_fn).__name__}; use 'grouped_mm'")
    return activation
