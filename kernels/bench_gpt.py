"""Whole generations against transformers: `python -m community.kernels.bench_gpt --width 128`.

Prompts of 16 tokens, 128 greedy tokens, 4 layers, float32, one thread. Tokens are compared before
anything is timed; then both sides run in turns, and the least process CPU time of each counts
(wall time with `--device cuda`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from community.kernels.backend import backend, kernels, simt
from community.kernels.gpt import LanguageModel
from community.kernels.gpt_gpu import GpuLanguageModel
from community.kernels.timing import seconds

PROMPT, ANSWER, WORDS = 16, 128, 1024


def made(family: str, width: int) -> PreTrainedModel:
    """Four layers, heads of 32, weights large enough that the prompt matters."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {"vocab_size": WORDS, "hidden_size": width, "num_hidden_layers": 4}
    shape |= {"num_attention_heads": width // 32, "max_position_embeddings": 256}
    ends: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    model: PreTrainedModel
    if family == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(**shape, **ends))
    else:
        config = LlamaConfig(**shape, intermediate_size=8 * width // 3, **ends)
        model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        parameter.data.mul_(4 if parameter.ndim == 2 else 1)
    return model.eval()


def _compiled(model: PreTrainedModel, device: str) -> LanguageModel:
    program = kernels("gpt") if device == "cpu" else None
    if program is not None:
        return LanguageModel(model, program)
    on_gpu = simt("gpt", device)
    if on_gpu is None:
        raise SystemExit(f"no kernels here: {backend(device)[1]}")
    return GpuLanguageModel(model, on_gpu)


def measured(
    family: str, width: int, sizes: list[int], device: str = "cpu", repeats: int = 3
) -> Iterator[tuple[int, float, float]]:
    """(batch, our seconds, seconds of transformers). Raises AssertionError for other tokens."""
    model = made(family, width)
    torch.nn.Module.to(model, device)
    ours = _compiled(model, device)
    for size in sizes:
        prompts = torch.randint(WORDS, (size, PROMPT), device=device)
        lists = prompts.tolist()

        def we(rows: list[list[int]] = lists) -> list[list[int]]:
            return ours.generate(rows, None, None, ANSWER, None)[0]

        def they(rows: torch.Tensor = prompts) -> list[list[int]]:
            out = model.generate(  # type: ignore[operator]
                rows,
                attention_mask=torch.ones_like(rows),
                max_new_tokens=ANSWER,
                do_sample=False,
            )
            return out[:, PROMPT:].tolist()

        same = sum(a == b for a, b in zip(we(), they(), strict=True))
        if same < 0.9 * size:  # the rest are ties that rounding decides
            raise AssertionError(f"{same} of {size} answers are those of transformers")
        best = [float("inf")] * 2
        calls: tuple[Callable[[], object], ...] = (we, they)
        for _ in range(repeats):
            for n, call in enumerate(calls):
                best[n] = min(best[n], seconds(call, device))
        yield size, best[0], best[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", choices=("gpt2", "llama"), default="gpt2")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{given.family}, width {given.width}, {backend(given.device)[0]}")
    for size, ours, theirs in measured(given.family, given.width, given.batches, given.device):
        speed = size * ANSWER / ours
        print(f"batch {size:4}  {theirs / ours:5.1f} times  {speed:8.0f} tokens/s", flush=True)


if __name__ == "__main__":
    main()
