"""Batched generation and scoring for causal language models of transformers.

Every sequence draws from its own seed, and batches are cut by length from the requests
alone, so an answer does not depend on how many workers there are.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from community.agents.codec import Codec, positions_of
from community.kernels.gpt import COLD, LanguageModel
from community.types import Decoding


@dataclass(frozen=True)
class Generated:
    """The tokens of one answer (end token included if reached) and their log-probability."""

    tokens: list[int]
    logprob: float


@dataclass(frozen=True)
class Batch:
    """Left-padded different rows, (B, T); `mask` is None where nothing is padded."""

    tokens: Tensor
    positions: Tensor | None
    mask: Tensor | None
    places: list[int]  # where each row of `copies` stands among the requests
    copies: Tensor  # (R,) the row of `tokens` that each request asks for: samples share one


def batches(
    pairs: Sequence[tuple[list[int], list[int]]], codec: Codec, size: int, device: torch.device
) -> Iterator[Batch]:
    """Rows of a prompt and an answer, in order of length, `size` at a time, padded on the left."""
    keys = [((*prompt, *answer), len(prompt)) for prompt, answer in pairs]
    order = sorted(range(len(keys)), key=lambda i: len(keys[i][0]))
    for start in range(0, len(order), size):
        places = order[start : start + size]
        number = {key: n for n, key in enumerate(dict.fromkeys(keys[i] for i in places))}
        copies = [number[keys[i]] for i in places]
        yield _batch([(list(row), begin) for row, begin in number], places, copies, codec, device)


def _batch(
    given: list[tuple[list[int], int]],
    places: list[int],
    copies: list[int],
    codec: Codec,
    device: torch.device,
) -> Batch:
    rows = [row for row, _ in given]
    longest = max(map(len, rows))
    gaps = [longest - len(row) for row in rows]
    tokens = torch.tensor([[codec.pad] * g + r for g, r in zip(gaps, rows, strict=True)])
    plain = codec.positions(rows[0]) is None
    where = [[0] * g + _positions(codec, *pair) for g, pair in zip(gaps, given, strict=True)]
    mask = None
    if any(gaps):
        mask = torch.tensor([[0] * g + [1] * len(r) for g, r in zip(gaps, rows, strict=True)])
    positions = None if plain and mask is None else torch.tensor(where).to(device)
    mask = None if mask is None else mask.to(device)
    return Batch(tokens.to(device), positions, mask, places, torch.tensor(copies).to(device))


def _positions(codec: Codec, row: Sequence[int], start: int) -> list[int]:
    known = positions_of(codec, row, start)
    return list(range(len(row))) if known is None else known


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    codec: Codec,
    prompts: Sequence[list[int]],
    seeds: Sequence[int],
    decoding: Decoding,
    size: int = 256,
) -> list[Generated]:
    """One answer per prompt: greedy at temperature 0, else top-p sampling.

    `logprob` is the sum over the answer's tokens under the model itself (temperature 1).
    Top-p: Holtzman et al., "The Curious Case of Neural Text Degeneration", arXiv 1904.09751.
    """
    model.eval()
    answers: dict[int, Generated] = {}
    for batch in batches([(p, []) for p in prompts], codec, size, model.device):
        rows = _generate(model, codec, batch, [seeds[i] for i in batch.places], decoding)
        answers.update(zip(batch.places, rows, strict=True))
    return [answers[i] for i in range(len(prompts))]


def _generate(
    model: PreTrainedModel, codec: Codec, batch: Batch, seeds: Sequence[int], decoding: Decoding
) -> list[Generated]:
    count = len(batch.places)
    draws = _draws(seeds, decoding).to(model.device)  # (R, max_tokens)
    cache = DynamicCache(config=model.config)
    remember: dict[str, Any] = {_cache_word(model): cache, "use_cache": True}
    step = model(
        input_ids=batch.tokens,
        position_ids=batch.positions,
        attention_mask=_ones(batch),
        logits_to_keep=_last(1, batch),
        **remember,
    )
    logits = step.logits[:, -1]
    where = None if batch.positions is None else batch.positions[batch.copies, -1:]
    mask = None if batch.mask is None else batch.mask[batch.copies]
    if len(batch.tokens) < count:  # prompts were read once, however many samples they have
        cache.batch_select_indices(batch.copies)
        logits = logits[batch.copies]
    done = torch.zeros(count, dtype=torch.bool, device=model.device)
    total = torch.zeros(count, dtype=torch.float64, device=model.device)
    tokens: list[Tensor] = []
    for i in range(decoding.max_tokens):
        logits = logits.float()  # (R, V)
        chosen = choose(logits, decoding, draws[:, i])
        chosen = torch.where(done, codec.end, chosen)
        picked = logits.log_softmax(-1).gather(1, chosen[:, None])[:, 0]
        total += torch.where(done, 0.0, picked.double())
        tokens.append(chosen)
        done |= chosen == codec.end
        if bool(done.all()) or i + 1 == decoding.max_tokens:
            break
        if where is not None:
            where = where + 1
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(count, 1)], 1)
        step = model(
            input_ids=chosen[:, None],
            position_ids=where,
            attention_mask=mask,
            **remember,
        )
        logits = step.logits[:, -1]
    return [
        Generated(_until(row, codec.end), round(float(logprob), 6))
        for row, logprob in zip(torch.stack(tokens, 1).tolist(), total.tolist(), strict=True)
    ]


def _cache_word(model: PreTrainedModel) -> str:
    """What the model calls its cache: `cache` from transformers 5.24 on, for most models."""
    known = inspect.signature(model.forward).parameters
    return "cache" if "cache" in known else "past_key_values"


def _last(count: int, batch: Batch) -> Tensor:
    """Their places. With their number torch multiplies row by row with the whole head."""
    length = batch.tokens.shape[1]
    return torch.arange(length - count, length, device=batch.tokens.device)


def _ones(batch: Batch) -> Tensor:
    """A mask even where nothing is padded.

    Without one, transformers takes positions that restart for several packed sequences.
    """
    return torch.ones_like(batch.tokens) if batch.mask is None else batch.mask


def _draws(seeds: Sequence[int], decoding: Decoding) -> Tensor:
    """Uniform numbers in [0, 1), (B, max_tokens): each row from its own seed alone."""
    if decoding.temperature == 0:
        return torch.zeros(len(seeds), decoding.max_tokens)
    rows = [np.random.Generator(np.random.Philox(s)).random(decoding.max_tokens) for s in seeds]
    return torch.from_numpy(np.stack(rows))


def choose(logits: Tensor, decoding: Decoding, draw: Tensor) -> Tensor:
    """One token a row. logits (B, V), draw (B,) uniform in [0, 1) -> (B,)."""
    if decoding.temperature < COLD:
        return logits.argmax(-1)
    chances = (logits / decoding.temperature).softmax(-1)
    if decoding.top_p >= 1:  # nothing is cut off, so nothing need be sorted
        edges = chances.double().cumsum(-1)
        place = torch.searchsorted(edges, (draw.double() * edges[:, -1])[:, None], right=True)
        return place.clamp(max=logits.shape[-1] - 1)[:, 0]
    ordered, index = chances.sort(-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    kept = torch.where(before < decoding.top_p, ordered, 0.0).double()
    edges = kept.cumsum(-1)
    place = torch.searchsorted(edges, (draw.double() * edges[:, -1])[:, None], right=True)
    return index.gather(1, place.clamp(max=logits.shape[-1] - 1))[:, 0]


def _until(tokens: list[int], end: int) -> list[int]:
    return tokens[: tokens.index(end) + 1] if end in tokens else tokens


@torch.inference_mode()
def score(
    model: PreTrainedModel,
    codec: Codec,
    pairs: Sequence[tuple[list[int], list[int]]],
    size: int = 256,
) -> list[float]:
    """Log-probability of each (prompt, answer): the sum over the answer's tokens."""
    model.eval()
    scores = [0.0] * len(pairs)
    for batch in batches(pairs, codec, size, model.device):
        widths = [len(pairs[i][1]) for i in batch.places]
        longest = max(widths)
        logits = model(
            input_ids=batch.tokens,
            position_ids=batch.positions,
            attention_mask=_ones(batch),
            logits_to_keep=_last(longest + 1, batch),
            use_cache=False,
        ).logits
        logits, targets = logits[batch.copies], batch.tokens[batch.copies, -longest:]
        logs = logits[:, :-1].float().log_softmax(-1)  # (B, longest, V)
        picked = logs.gather(2, targets[:, :, None])[:, :, 0].double()  # (B, longest)
        for row, place, width in zip(picked, batch.places, widths, strict=True):
            scores[place] = round(float(row[longest - width :].sum()), 6)
    return scores


# -- the same by the kernels -----------------------------------------------------------


def generate_by_kernels(
    model: LanguageModel,
    codec: Codec,
    prompts: Sequence[list[int]],
    seeds: Sequence[int],
    decoding: Decoding,
) -> list[Generated]:
    """What `generate` gives, ties of rounding aside, in one call for all prompts.

    Raises ValueError for a prompt that the model cannot read.
    """
    if not prompts:
        return []
    draws = _draws(seeds, decoding) if decoding.temperature else None
    tokens, logprobs = model.generate(
        prompts,
        [_positions(codec, p, len(p)) for p in prompts],
        draws,
        decoding.max_tokens,
        codec.end,
        decoding.temperature,
        decoding.top_p,
    )
    return [Generated(t, round(p, 6)) for t, p in zip(tokens, logprobs, strict=True)]


def score_by_kernels(
    model: LanguageModel, codec: Codec, pairs: Sequence[tuple[list[int], list[int]]]
) -> list[float]:
    """What `score` gives, rounding aside. Raises ValueError for what the model cannot read."""
    rows = [prompt + answer for prompt, answer in pairs]
    starts = [len(prompt) for prompt, _ in pairs]
    positions = [_positions(codec, *both) for both in zip(rows, starts, strict=True)]
    scores = model.score(rows, positions, starts)
    return [round(s, 6) for s in scores]
