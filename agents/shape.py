"""Small models made from a config of transformers, of any family that can be a member."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from pydantic import Field
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from community.agents.codec import CharacterCodec, Positions
from community.agents.decoding import generate, score
from community.config import Section
from community.errors import CommunityError
from community.types import Decoding
from community.words import clip

# Families have different words for these; a config keeps those of others and does not look at them.
HIDDEN = ("intermediate_size", "n_inner", "ffn_dim")
ACTIVATION = ("hidden_act", "activation_function")
NO_DROPOUT = ("resid_pdrop", "embd_pdrop", "attn_pdrop", "attention_dropout")


class Shape(Section):
    """A model made from a config of transformers."""

    family: str = Field("llama", description="a causal model type of transformers")
    width: int = Field(64, ge=4, description="of the residual stream")
    depth: int = Field(2, ge=1, description="layers")
    heads: int = Field(4, ge=1, description="of attention")
    hidden: int = Field(0, ge=0, description="inner width of the MLP; 0: twice the width")
    activation: str = Field("", description="of the MLP; empty: the family's own")
    context: int = Field(64, ge=8, description="positions the model knows")
    positions: Positions = Field("plain", description="restart: anew in each number")
    offsets: int = Field(0, ge=0, description="restarting positions begin at 0 .. offsets-1")
    spread: float = Field(0.02, gt=0, description="deviation of learned positions at the start")


def made(shape: Shape, codec: CharacterCodec) -> PreTrainedModel:
    """A fresh model of that shape. Raises CommunityError for an impossible one."""
    try:
        config = AutoConfig.for_model(shape.family, **_wanted(shape, codec))
        _refuse_other_sizes(config, shape)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
        learned = getattr(getattr(model, "transformer", None), "wpe", None)
        if learned is not None:
            torch.nn.init.normal_(learned.weight, std=shape.spread)
        _try(model, codec)
    except Exception as error:  # each family has its own way to say what it cannot be
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
        raise CommunityError(
            f"no model of family {shape.family!r} can be made: {clip(reason, 200)}; choose other "
            "sizes or another family, such as llama or gpt2"
        ) from error
    return model


def _refuse_other_sizes(config: PreTrainedConfig, shape: Shape) -> None:
    """Raises ValueError for a family that has other words for its sizes: one that reads images,
    too, would be made as large as it comes, which no memory may hold."""
    text = config.get_text_config(decoder=True)
    for word, wanted in (("hidden_size", shape.width), ("num_hidden_layers", shape.depth)):
        if (own := getattr(text, word, wanted)) != wanted:
            raise ValueError(f"its {word} would be {own}, whatever the shape says")


def _wanted(shape: Shape, codec: CharacterCodec) -> dict[str, Any]:
    """What the config is to say, in the words of all families."""
    gpt2 = shape.family == "gpt2"
    # GPT-2's own GELU in one operation instead of eight
    activation = shape.activation or ("gelu_pytorch_tanh" if gpt2 else "")
    return {
        "vocab_size": codec.size,
        "hidden_size": shape.width,
        "num_hidden_layers": shape.depth,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,  # large models' own numbers fit no small one
        "max_position_embeddings": shape.context,
        "tie_word_embeddings": True,
        "pad_token_id": codec.pad,
        "bos_token_id": None,
        "eos_token_id": codec.end,
        # Dropout would make learning depend on more than the study's seed, and gives
        # nothing here: examples are drawn anew all the time.
        **dict.fromkeys(NO_DROPOUT, 0.0),
        **dict.fromkeys(HIDDEN, shape.hidden or 2 * shape.width),
        **(dict.fromkeys(ACTIVATION, activation) if activation else {}),
    }


def _try(model: PreTrainedModel, codec: CharacterCodec) -> None:
    """Have the model answer and score once, before a run depends on it.

    Raises ValueError for one whose tokens see those after them, or that takes no positions where
    they are to restart, and whatever the model raises.
    """
    if codec.restart and "position_ids" not in inspect.signature(model.forward).parameters:
        raise ValueError("its positions are its own and cannot restart")
    one = codec.end + 1  # the alphabet's first character
    generate(model, codec, [[one], [one, one]], [0, 0], Decoding(max_tokens=2))
    score(model, codec, [([one], [one, codec.end])])
    rows = [torch.tensor([[one, one, last]]) for last in (one, codec.end)]
    with torch.inference_mode():
        a, b = (model(input_ids=row, use_cache=False).logits[0, :2] for row in rows)
    if not torch.allclose(a, b, rtol=1e-5, atol=1e-6):
        raise ValueError("its tokens see those after them, so it cannot learn to answer")
