"""GPT-2 and Llama models of transformers run by `gpt.cu`: whole answers in one launch on a GPU.

Weights lie row by row, (inputs, outputs), in float32. Tests have the processor run the same source
by OpenCL.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from community.kernels.build import Argument, SimtProgram
from community.kernels.gpt import (
    NARROW,
    LanguageModel,
    Layout,
    Memory,
    Unsupported,
    _activation,
    _ints,
    _rotary,
    _sharpness,
)

THREADS, ROWS = 512, 8  # as in gpt.cu
SHARED = 5120  # floats: ROWS * CHUNK + THREADS * ROWS
MOST = 2**30  # floats of memory at once: 4 GiB


class GpuLanguageModel(LanguageModel):
    """A model of transformers on its device, called as `LanguageModel` is.

    Small models gain: a block of threads answers a few prompts by itself, from the first token to
    the last, and the weights have to come from the GPU's cache again for every token.
    """

    def __init__(self, model: nn.Module, program: SimtProgram, threads: int = THREADS) -> None:
        """`model`: a GPT2LMHeadModel or LlamaForCausalLM; `program`: the kernels of gpt.cu for the
        device where its weights lie, compiled for so many threads. Raises Unsupported."""
        self.simt, self.threads = program, threads
        self.refresh(model)

    def refresh(self, model: nn.Module) -> None:
        """Take the model's weights as they are now. Raises Unsupported."""
        state, kind = dict(model.state_dict()), type(model).__name__
        if kind not in _FAMILIES:
            raise Unsupported(f"{kind} is none of {', '.join(_FAMILIES)}")
        strange = {w.dtype for w in state.values()} - set(NARROW)
        if strange:
            raise Unsupported(f"weights are {str(strange.pop()).removeprefix('torch.')}")
        devices = {w.device for w in state.values()}
        if len(devices) != 1:
            raise Unsupported(f"weights are on {len(devices)} devices")
        self.device = devices.pop()
        self.layout, parts = _FAMILIES[kind](model, {n: w.float() for n, w in state.items()})
        self.weights = torch.cat([part.reshape(-1) for part in parts])
        self._rotary = None
        if not self.layout.learned:
            speeds, scale = _rotary(model, self.layout.size)
            self._rotary = speeds.cpu(), scale  # cosines and sines are made there
        self._turns = torch.empty(0)
        self._places = self.layout.places if self.layout.learned else 0

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
        self._turns = self._turns.to(self.device)
        lists = [
            _ints(t for row in rows for t in row),
            _ints(p for where in places for p in where),
            _ints(accumulate(map(len, rows), initial=0)),
            _ints(each),
            _ints(accumulate(map(len, blocks), initial=0)),
        ]
        sizes = torch.tensor([memory.floats.shape[1], memory.ints.shape[1]])
        moved = [x.to(self.device) if isinstance(x, Tensor) else x for x in more]
        given: list[Argument] = [_shape(self.layout, self._places).to(self.device), self.weights]
        given += [self._turns, self.layout.epsilon, *(x.to(self.device) for x in lists)]
        given += [memory.floats, memory.ints, sizes.to(self.device), memory.slots, memory.span]
        launch = {"blocks": len(blocks), "threads": self.threads, "room": SHARED}
        self.simt(kernel, *given, *moved, **launch)
        for ours, made in zip(more, moved, strict=True):
            if isinstance(ours, Tensor) and isinstance(made, Tensor):
                ours.copy_(made)

    def _blocks(
        self, order: list[int], rows: Sequence[Sequence[int]], more: int
    ) -> Iterator[tuple[list[list[int]], Memory]]:
        """Rows in blocks, one for every part of the GPU if there are enough, with memory for rows
        that grow by `more` tokens."""
        if not order:
            return
        span = max(map(len, rows)) + more
        slots = max(1, min(ROWS, math.ceil(len(order) / _parts(self.device))))
        blocks = [order[a : a + slots] for a in range(0, len(order), slots)]
        floats, ints = _room(self.layout, span, slots)
        at_once = max(1, min(len(blocks), MOST // floats))
        memory = Memory(
            torch.empty(at_once, floats, device=self.device),
            torch.empty(at_once, ints, dtype=torch.int32, device=self.device),
            span,
            slots,
        )
        for n in range(0, len(blocks), at_once):
            yield blocks[n : n + at_once], memory


def _parts(device: torch.device) -> int:
    """How many blocks run at a time."""
    if device.type != "cuda":
        return 2
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count


def _shape(layout: Layout, places: int) -> Tensor:
    """`shape` of gpt.cu, with as many positions as there are now."""
    one = (layout.layers, layout.width, layout.heads, layout.groups, layout.size, layout.hidden)
    two = (layout.words, places, layout.rms, layout.gated, layout.activation, layout.learned)
    return torch.tensor([*one, *two, layout.places], dtype=torch.int32)


def _room(layout: Layout, span: int, slots: int) -> tuple[int, int]:
    """Floats and ints of memory that a block needs: sequences of at most `span` tokens."""
    mix, kept = layout.heads * layout.size, layout.groups * layout.size
    row = 3 * layout.width + 2 * mix + 2 * kept + layout.hidden * (1 + layout.gated)
    cache = 2 * slots * layout.layers * kept * span
    floats = ROWS * (row + layout.heads * span) + (ROWS + 1) * layout.words + cache
    return floats, 5 * ROWS + layout.words


# -- reading weights -------------------------------------------------------------------


def _gpt2(model: nn.Module, state: dict[str, Tensor]) -> tuple[Layout, list[Tensor]]:
    config: Any = model.config
    if config.add_cross_attention:
        raise Unsupported("cross attention")
    layout = Layout(
        layers=config.n_layer,
        width=config.n_embd,
        heads=config.n_head,
        groups=config.n_head,
        size=config.n_embd // config.n_head,
        hidden=config.n_inner or 4 * config.n_embd,
        words=config.vocab_size,
        places=config.n_positions,
        rms=False,
        gated=False,
        activation=_activation(config.activation_function),
        learned=True,
        epsilon=config.layer_norm_epsilon,
    )
    take = _taker(state)
    parts = [*take("transformer.wte", "weight"), *take("transformer.wpe", "weight")]
    for n in range(layout.layers):
        at = f"transformer.h.{n}."
        scale = torch.ones(3 * layout.width, device=parts[0].device)
        scale[: layout.width] = _sharpness(config, layout).repeat_interleave(layout.size)
        if not config.scale_attn_weights:
            scale[: layout.width] *= layout.size**0.5
        if config.scale_attn_by_inverse_layer_idx:
            scale[: layout.width] /= n + 1
        parts += [*take(f"{at}ln_1"), *(x * scale for x in take(f"{at}attn.c_attn"))]
        for name in ("attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"):
            parts += take(f"{at}{name}")
    parts += take("transformer.ln_f")
    return layout, [*parts, *_head(state, layout)]


def _llama(model: nn.Module, state: dict[str, Tensor]) -> tuple[Layout, list[Tensor]]:
    config: Any = model.config
    heads = config.num_attention_heads
    layout = Layout(
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        heads=heads,
        groups=config.num_key_value_heads,
        size=config.head_dim,
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
    parts = [state.pop("model.embed_tokens.weight")]
    nothing = torch.zeros(layout.width, device=parts[0].device)  # RMSNorm shifts by nothing
    sharpness = _sharpness(config, layout).repeat_interleave(layout.size).to(nothing.device)

    def beside(at: str, *names: str) -> list[Tensor]:
        """Several products of the same inputs as one: (inputs, outputs) and the biases."""
        weights = [state.pop(f"{at}{name}.weight").T for name in names]
        biases = [
            state.pop(f"{at}{name}.bias", w.new_zeros(w.shape[1]))
            for name, w in zip(names, weights, strict=True)
        ]
        if names[0] == "self_attn.q_proj":
            weights[0], biases[0] = weights[0] * sharpness, biases[0] * sharpness
        return [torch.cat(weights, 1), torch.cat(biases)]

    for n in range(layout.layers):
        at = f"model.layers.{n}."
        parts += [state.pop(f"{at}input_layernorm.weight"), nothing]
        parts += beside(f"{at}", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        parts += beside(at, "self_attn.o_proj")
        parts += [state.pop(f"{at}post_attention_layernorm.weight"), nothing]
        parts += [*beside(at, "mlp.gate_proj", "mlp.up_proj"), *beside(at, "mlp.down_proj")]
    parts += [state.pop("model.norm.weight"), nothing]
    return layout, [*parts, *_head(state, layout)]


_Family = Callable[[nn.Module, dict[str, Tensor]], tuple[Layout, list[Tensor]]]
_FAMILIES: dict[str, _Family] = {"GPT2LMHeadModel": _gpt2, "LlamaForCausalLM": _llama}


def _taker(state: dict[str, Tensor]) -> Callable[..., list[Tensor]]:
    def take(name: str, *kinds: str) -> list[Tensor]:
        return [state.pop(f"{name}.{kind}") for kind in kinds or ("weight", "bias")]

    return take


def _head(state: dict[str, Tensor], layout: Layout) -> list[Tensor]:
    """What is left: the product that gives the logits. Raises Unsupported for anything else."""
    weight = state.pop("lm_head.weight").T
    bias = state.pop("lm_head.bias", weight.new_zeros(layout.words))
    if state:
        raise Unsupported(f"weights that such a model does not usually have: {min(state)}")
    return [weight, bias]
