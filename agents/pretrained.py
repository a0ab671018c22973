"""Pretrained models and LoRA adapters, and reading weights back."""

from __future__ import annotations

import re
from collections.abc import Set
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from community.config import Section
from community.errors import CommunityError
from community.extras import installed

if installed("peft"):
    from peft import (
        LoraConfig,
        get_peft_model,
        get_peft_model_state_dict,
        set_peft_model_state_dict,
    )
    from peft.tuners.tuners_utils import BaseTunerLayer

OTHER_SHAPE = "{path} belongs to a model of another shape; name weights made from this member's"
OTHER_ADAPTER = "{path} is an adapter of another rank, alpha or targets; give the member the same"


class Adapter(Section):
    """A LoRA adapter (Hu et al., arXiv 2106.09685)."""

    rank: int = Field(16, ge=1, description="of the matrices")
    alpha: int = Field(32, ge=1, description="scale: alpha / rank")
    targets: str | tuple[str, ...] = Field("all-linear", description="names of layers in peft")


def pretrained(
    folder: str, device: torch.device
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of a folder that `find_model` gave, to be computed on `device`: in
    bfloat16 on a GPU, in float32 on the processor, for few processors have units for bfloat16.
    The others emulate it: a step of learning took 2 to 3 times as long, an answer by torch 3 times.

    Raises CommunityError if it cannot be loaded, or is no chat model.
    """
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0]
        raise CommunityError(f"cannot load the model in {folder}: {first}") from error
    if not tokenizer.chat_template or tokenizer.eos_token_id is None:
        lacking = "end token" if tokenizer.chat_template else "chat template"
        raise CommunityError(
            f"the model in {folder} cannot be asked: its tokenizer has no {lacking}; choose one "
            "that was made for chat"
        )
    return model, tokenizer


def adapted(model: PreTrainedModel, adapter: Adapter) -> PreTrainedModel:
    """The model with a fresh adapter; only that is trained and saved.

    Raises CommunityError without peft, and for targets that are not in the model or no matrices.
    """
    if not installed("peft"):
        raise CommunityError('adapters need peft: pip install "modelcommunity[lora]"')
    targets = adapter.targets if isinstance(adapter.targets, str) else list(adapter.targets)
    config = LoraConfig(
        r=adapter.rank, lora_alpha=adapter.alpha, target_modules=targets, task_type="CAUSAL_LM"
    )
    try:
        # peft's wrapper forwards everything that is used of a PreTrainedModel here
        return cast(PreTrainedModel, get_peft_model(model, config))
    except (ValueError, re.error) as error:  # a text of targets is a pattern
        first = str(error).strip().splitlines()[0]
        raise CommunityError(
            f"no adapter can be made for targets {adapter.targets!r} ({first}); name matrices of "
            "the model, such as q_proj, or leave targets out"
        ) from error


def merged(model: PreTrainedModel) -> PreTrainedModel:
    """A model without an adapter as it is; of one with an adapter a copy in float32 that has the
    adapter in its weights."""
    if not hasattr(model, "peft_config"):
        return model
    copy: Any = deepcopy(model).float()
    for layer in copy.modules():
        if isinstance(layer, BaseTunerLayer):  # a head may share its weights with the embeddings
            whole: Any = layer.get_base_layer()
            whole.weight = nn.Parameter(whole.weight.detach().clone())
    return cast(PreTrainedModel, copy.merge_and_unload())


def weights_file(folder: Path) -> Path:
    """The one safetensors file of a saved checkpoint: an adapter's or a whole model's."""
    adapter = folder / "adapter_model.safetensors"
    return adapter if adapter.is_file() else folder / "model.safetensors"


def load_weights(model: PreTrainedModel, path: Path) -> None:
    """Copy the weights of a saved checkpoint into a model of the same shape.

    Raises CommunityError if they belong to another shape, or the file is damaged.
    """
    adapter = hasattr(model, "peft_config")
    if path.name.startswith("adapter") != adapter:
        wanted = "an adapter's" if adapter else "a whole model's"
        raise CommunityError(f"this model takes {wanted} weights, and {path} holds others")
    try:
        state = load_file(path)
        if adapter:
            _refuse_other(model, path, state.keys())
            set_peft_model_state_dict(model, state)
            return
        missing, unexpected = model.load_state_dict(state, strict=False)
        model.tie_weights()
    except SafetensorError as error:
        first = str(error).strip().splitlines()[0]
        raise CommunityError(f"{path} is damaged ({first}); restore a copy") from error
    except (RuntimeError, ValueError) as error:  # may name every tensor of another size
        said = OTHER_ADAPTER if adapter else OTHER_SHAPE
        raise CommunityError(said.format(path=path)) from error
    tied = set(model.all_tied_weights_keys)
    if set(missing) - tied or unexpected:
        _load_converted(model, path)


def _refuse_other(model: Any, path: Path, names: Set[str]) -> None:
    """peft would take what it finds of an adapter for other targets, and scale it as its own."""
    if names != get_peft_model_state_dict(model).keys():
        raise ValueError("other targets")
    if (path.parent / "adapter_config.json").is_file():
        configs = model.peft_config["default"], LoraConfig.from_pretrained(str(path.parent))
        own, other = ((c.lora_alpha, c.alpha_pattern, c.use_rslora) for c in configs)
        if own != other:
            raise ValueError("another scale")


def _load_converted(model: PreTrainedModel, path: Path) -> None:
    """The same for a layout of weights that transformers saves and does not compute with, such as
    one matrix for each expert."""
    said = logging.get_verbosity()
    logging.set_verbosity_error()  # of weights of another shape it would list every name
    try:
        # of the model's own sizes, whatever the folder says; with what was not found beside it,
        # which its type does not say
        both: Any = type(model).from_pretrained(
            path.parent, config=model.config, dtype=model.dtype, output_loading_info=True
        )
        found, lacking = both
        if any(lacking.values()):
            raise ValueError(lacking)
        model.load_state_dict(found.state_dict())
    except (OSError, ValueError, RuntimeError) as error:
        raise CommunityError(OTHER_SHAPE.format(path=path)) from error
    finally:
        logging.set_verbosity(said)
