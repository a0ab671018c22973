"""Our attention in the models of transformers: `attn_implementation="community"`.

    register()
    model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="community")

A model's config may hold `attention_temperature`, one number or one for each head (below 1
sharper, above 1 more relaxed), and `attention_sink`, True for softmax1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from community.kernels.attention import added, attention, reference

NAME = "community"


def register() -> None:
    """Makes `attn_implementation="community"` known to transformers; again does no harm."""
    AttentionInterface.register(NAME, forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)  # bool masks, none where a flag will do


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
    softcapped scores and for sinks that a model has learned.
    """
    for name in ("softcap", "s_aux"):
        if options.get(name) is not None:
            raise ValueError(f"attn_implementation={NAME!r} does not know {name}; use 'eager'")
    wanted = getattr(module, "is_causal", True) if is_causal is None else is_causal
    causal = bool(wanted) and attention_mask is None and query.shape[2] > 1
    if (
        causal and key.shape[2] > query.shape[2]
    ):  # an empty static cache: what is written comes first
        key, value = key[:, :, : query.shape[2]], value[:, :, : query.shape[2]]
    mask = _mask(attention_mask, position_bias, query, key)
    config = getattr(module, "config", None)
    chosen: dict[str, Any] = {
        "causal": causal,
        "scale": scaling,
        "temperature": _temperature(config, query),
        "sink": bool(getattr(config, "attention_sink", False)),
        "mask": mask,
    }
    if dropout:
        out, _ = reference(query, key, value, **chosen, dropout=dropout)
    else:
        out, _ = attention(query, key, value, **chosen)
    return out.transpose(1, 2).contiguous(), None


def _mask(mask: Tensor | None, bias: Tensor | None, query: Tensor, key: Tensor) -> Tensor | None:
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
