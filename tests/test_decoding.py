"""Generation and scoring: the same as done by hand, whatever shares the batch."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import RESTART, SHAPE, tiny
from transformers import PreTrainedModel

from community.agents.codec import CharacterCodec
from community.agents.decoding import batches, choose, generate, score
from community.agents.transformer import Shape
from community.types import Decoding

PROMPTS = ["12+7=", "3+4=", "12345+678=", "9*9=", "100-1=", "77+1="]
ANSWERS = ["1", "22", "333", "4", "5", "66"]
GREEDY = Decoding(max_tokens=8)
SAMPLED = Decoding(temperature=1.0, top_p=0.9, max_tokens=8)
SHAPES = pytest.mark.parametrize("shape", [SHAPE, RESTART], ids=["plain", "restart"])


def prompts(codec: CharacterCodec) -> list[list[int]]:
    return [codec.prompt(text) for text in PROMPTS]


def logs(model: PreTrainedModel, codec: CharacterCodec, tokens: list[int]) -> torch.Tensor:
    """Log-probabilities after every token, (T, V), from one plain pass without a cache."""
    places = codec.positions(tokens)
    given_places = None if places is None else torch.tensor([places])
    with torch.no_grad():
        ids = torch.tensor([tokens])
        out = model(
            input_ids=ids,
            position_ids=given_places,
            attention_mask=torch.ones_like(ids),
            use_cache=False,
        )
    return torch.as_tensor(out.logits[0]).log_softmax(-1)


def by_hand(model: PreTrainedModel, codec: CharacterCodec, prompt: list[int]) -> list[int]:
    """Greedy decoding by an argmax loop; positions go on as they do in a number."""
    answer: list[int] = []
    while len(answer) < GREEDY.max_tokens and answer[-1:] != [codec.end]:
        answer.append(int(logs(model, codec, prompt + answer)[-1].argmax()))
    return answer


def only_digits(model: PreTrainedModel, codec: CharacterCodec) -> None:
    """Make everything but digits and the end improbable, as it is once sums are learned."""
    head = model.get_output_embeddings()
    assert isinstance(head, torch.nn.Linear)
    bias = torch.full((codec.size,), -1e4, dtype=torch.float64)
    bias[[codec.end, *codec.prompt("0123456789")]] = 0.0
    head.bias = torch.nn.Parameter(bias)


@SHAPES
def test_greedy_is_the_argmax_loop(shape: Shape) -> None:
    model, codec = tiny(shape)
    only_digits(model, codec)
    found = generate(model, codec, prompts(codec), [0] * len(PROMPTS), GREEDY)
    expected = [by_hand(model, codec, prompt) for prompt in prompts(codec)]
    assert [answer.tokens for answer in found] == expected
    assert len({tuple(tokens) for tokens in expected}) > 1  # the prompts do matter


def test_greedy_is_what_transformers_generates() -> None:
    model, codec = tiny()
    for prompt in prompts(codec):
        (found,) = generate(model, codec, [prompt], [0], GREEDY)
        ids = torch.tensor([prompt])
        theirs = model.generate(  # type: ignore[operator]
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=8
        )
        assert theirs[0, len(prompt) :].tolist() == found.tokens


@SHAPES
@pytest.mark.parametrize("decoding", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_an_answer_depends_on_its_own_prompt_and_seed(shape: Shape, decoding: Decoding) -> None:
    model, codec = tiny(shape)
    asked, seeds = prompts(codec), list(range(len(PROMPTS)))
    whole = generate(model, codec, asked, seeds, decoding)
    alone = [
        generate(model, codec, [p], [s], decoding)[0] for p, s in zip(asked, seeds, strict=True)
    ]
    turned = generate(model, codec, asked[::-1], seeds[::-1], decoding, size=4)[::-1]
    tokens = [answer.tokens for answer in whole]
    assert [a.tokens for a in alone] == [a.tokens for a in turned] == tokens
    assert [a.logprob for a in alone] == pytest.approx([a.logprob for a in whole], abs=1e-5)


def test_other_seeds_give_other_answers() -> None:
    model, codec = tiny()
    asked = [codec.prompt("12+7=")] * 20
    answers = generate(model, codec, asked, list(range(20)), SAMPLED)
    assert len({tuple(a.tokens) for a in answers}) > 10
    same = generate(model, codec, asked, [5] * 20, SAMPLED)
    assert len({tuple(a.tokens) for a in same}) == 1


@SHAPES
@pytest.mark.parametrize("decoding", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_the_log_probability_is_what_the_model_says_of_it(shape: Shape, decoding: Decoding) -> None:
    model, codec = tiny(shape)
    asked = [*prompts(codec), codec.prompt("12-")]
    found = generate(model, codec, asked, list(range(len(asked))), decoding)
    pairs = [(p, a.tokens) for p, a in zip(asked, found, strict=True)]
    assert score(model, codec, pairs) == pytest.approx([a.logprob for a in found], abs=1e-4)


@SHAPES
def test_scores_are_sums_over_the_answer_only(shape: Shape) -> None:
    model, codec = tiny(shape)
    pairs = [(codec.prompt(p), codec.answer(a)) for p, a in zip(PROMPTS, ANSWERS, strict=True)]
    pairs.append((codec.prompt("1+1="), [codec.end]))
    expected = []
    for prompt, answer in pairs:
        known = logs(model, codec, prompt + answer)[len(prompt) - 1 : -1]
        expected.append(float(known.gather(1, torch.tensor(answer)[:, None]).sum()))
    assert score(model, codec, pairs) == pytest.approx(expected, abs=1e-4)
    assert score(model, codec, pairs, size=2) == pytest.approx(expected, abs=1e-4)


def test_batches_hold_every_prompt_once_padded_on_the_left() -> None:
    _, codec = tiny()
    asked = prompts(codec)
    found = list(batches([(p, []) for p in asked], codec, 4, torch.device("cpu")))
    assert sorted(place for batch in found for place in batch.places) == list(range(len(asked)))
    for batch in found:
        for row, place in zip(batch.tokens.tolist(), batch.places, strict=True):
            gap = len(row) - len(asked[place])
            assert row == [codec.pad] * gap + asked[place]


def allowed(chances: list[float], top_p: float) -> set[int]:
    """The smallest set of the most probable tokens that holds `top_p`, found one by one."""
    kept: set[int] = set()
    for token in sorted(range(len(chances)), key=lambda i: -chances[i]):
        if math.fsum(chances[i] for i in kept) >= top_p:
            break
        kept.add(token)
    return kept


# Powers of two: sums are exact, and no two orders of summing disagree about an edge.
counts = st.lists(st.integers(1, 12), min_size=2, max_size=8, unique=True)


@given(counts, st.integers(1, 16), st.integers(0, 1023))
def test_top_p_keeps_the_smallest_set(powers: list[int], sixteenths: int, draw: int) -> None:
    raw = [2.0**p for p in powers]
    chances = [c / sum(raw) for c in raw]
    top_p = sixteenths / 16
    logits = torch.tensor([chances]).log()
    picked = int(choose(logits, Decoding(1.0, top_p), torch.tensor([draw / 1024]))[0])
    assert picked in allowed(chances, top_p) | allowed(chances, top_p - 1e-6)


@given(counts, st.sampled_from([0.5, 1.0, 2.0]))
def test_what_is_kept_is_drawn_in_proportion(powers: list[int], temperature: float) -> None:
    logits = torch.tensor([[float(p) for p in powers]])
    draws = (torch.arange(2000) + 0.5) / 2000
    picked = choose(logits.expand(2000, -1), Decoding(temperature, 1.0), draws)
    shares = picked.bincount(minlength=len(powers)) / 2000
    assert torch.allclose(shares, (logits[0] / temperature).softmax(-1), atol=2e-3)


def test_temperature_zero_takes_the_most_probable() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]])
    for cold in (0.0, 1e-40):
        assert choose(logits, Decoding(cold, 0.1), torch.tensor([0.9, 0.9])).tolist() == [1, 0]
    least = choose(logits, Decoding(1.0, 1e-9), torch.tensor([0.9999, 0.9999]))
    assert least.tolist() == [1, 0]  # the most probable token is always kept
