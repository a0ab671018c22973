"""Training: on the answers only, from the seed only, with what the settings say."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import RESTART, SHAPE, lessons, tiny
from transformers import PreTrainedModel

from community.agents.decoding import score
from community.agents.learning import Optimizer, _schedule, train
from community.agents.transformer import Shape
from community.errors import CommunityError
from community.types import Learned, Lesson, Study

LESSONS = tuple(lessons(20))


def study(taught: Sequence[Lesson] = LESSONS, **options: Any) -> Study:
    options = {"round": 0, "seed": 1, "steps": 3, "batch": 4} | options
    return Study(lessons=tuple(taught), **options)


def weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def moved(before: dict[str, torch.Tensor], model: PreTrainedModel) -> dict[str, float]:
    """Parameter -> the largest change of one of its numbers."""
    return {n: float((p.detach() - before[n]).abs().max()) for n, p in model.named_parameters()}


@pytest.mark.parametrize("shape", [SHAPE, RESTART], ids=["plain", "restart"])
def test_the_loss_is_that_of_the_answers_tokens(shape: Shape) -> None:
    model, codec = tiny(shape)
    (lesson,) = lessons(1)
    answer = codec.answer(lesson.text)
    expected = -score(model, codec, [(codec.prompt(lesson.prompt), answer)])[0] / len(answer)
    learned = train(model, codec, study([lesson], steps=1), Optimizer())
    assert learned.loss == pytest.approx(expected, abs=1e-5)


def test_a_step_is_that_of_transformers_own_labels() -> None:
    """The prompt's tokens have the label that transformers ignores: nothing is learned of them."""
    model, codec = tiny()
    (lesson,) = lessons(1)
    settings = Optimizer(lr=1e-2, clip=0.5, warmup=0, decay=0)
    ours, theirs = model, copy.deepcopy(model)
    train(ours, codec, study([lesson], steps=1, batch=1), settings)
    prompt, answer = codec.prompt(lesson.prompt), codec.answer(lesson.text)
    labels = torch.tensor([[-100] * len(prompt) + answer])
    theirs(input_ids=torch.tensor([prompt + answer]), labels=labels).loss.backward()
    torch.nn.utils.clip_grad_norm_(theirs.parameters(), settings.clip)
    torch.optim.AdamW(theirs.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0).step()
    for name, parameter in ours.named_parameters():
        other = theirs.get_parameter(name)
        # Adam divides by the gradient's size, so a rounding difference of a zero shows
        assert torch.allclose(parameter, other, atol=1e-6), name


@pytest.mark.parametrize("shape", [SHAPE, RESTART], ids=["adamw", "restart"])
def test_the_same_study_gives_the_same_bits(shape: Shape) -> None:
    settings = Optimizer(muon=0.02)
    results = []
    for seed in (1, 1, 2):
        model, codec = tiny(shape)
        learned = train(model.float(), codec, study(seed=seed), settings, offsets=3)
        results.append((learned, weights(model)))
    (one, first), (two, second), (_, other) = results
    assert one == two
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_learning_lowers_the_loss() -> None:
    model, codec = tiny()
    start = train(model, codec, study(steps=1), Optimizer()).loss
    end = train(model, codec, study(steps=60, batch=16), Optimizer(lr=1e-2)).loss
    assert start is not None and end is not None and end < start / 2


def test_half_of_a_batch_is_replay() -> None:
    model, codec = tiny()
    new, old = lessons(1, level=1)[0], lessons(1, level=4)[0]
    length = {x: len(codec.prompt(x.prompt) + codec.answer(x.text)) for x in (new, old)}
    alone = train(model, codec, study([new], steps=2, batch=5), Optimizer())
    mixed = train(model, codec, study([new], replay=(old,), steps=2, batch=5), Optimizer())
    assert (alone.steps, alone.tokens) == (2, 10 * length[new])
    assert mixed.tokens == 2 * (3 * length[new] + 2 * length[old])


def test_lessons_in_other_characters_are_left_out() -> None:
    later = lessons(3, round=1)
    strange = replace(later[1], text="the sum is 7")
    mixed, own = tiny()[0], tiny()[0]
    found = train(mixed, tiny()[1], study([*later, strange], replay=(strange,)), Optimizer())
    train(own, tiny()[1], study(later), Optimizer())
    assert found.left_out == (strange.id,)
    assert moved(weights(own), mixed) == dict.fromkeys(weights(own), 0.0)


def test_nothing_is_learned_of_other_characters_alone() -> None:
    model, codec = tiny()
    strange = replace(lessons(1, round=1)[0], text="seven")
    before = weights(model)
    found = train(model, codec, study([strange], replay=LESSONS), Optimizer())
    assert found == Learned(0, None, 0, (strange.id,))
    assert set(moved(before, model).values()) == {0.0}


def test_first_lessons_are_in_characters_of_the_arena() -> None:
    with pytest.raises(CommunityError, match="not in the alphabet of this arena"):
        train(*tiny(), study([replace(LESSONS[0], text="seven")]), Optimizer())


@pytest.mark.parametrize("shape", [SHAPE, RESTART], ids=["llama", "gpt2"])
def test_muon_moves_the_hidden_matrices_and_nothing_else(shape: Shape) -> None:
    model, codec = tiny(shape)
    before = weights(model)
    train(model, codec, study(), Optimizer(lr=1e-12, muon=0.1))
    found = {name for name, change in moved(before, model).items() if change > 1e-6}
    inner = ("layers.", "transformer.h.")
    hidden = {n for n, p in before.items() if p.ndim == 2 and any(part in n for part in inner)}
    assert found == hidden
    assert not any("wte" in n or "wpe" in n or "embed" in n for n in hidden) and hidden


def test_later_rounds_take_smaller_steps() -> None:
    settings = Optimizer(lr=1e-3, again=0.25, warmup=0, decay=0)
    changes = []
    for n in (0, 1):
        model, codec = tiny()
        before = weights(model)
        train(model, codec, study(round=n, steps=1), settings)
        changes.append(max(moved(before, model).values()))
    assert changes == pytest.approx([1e-3, 0.25e-3], rel=1e-3)  # Adam's first step is its rate


def test_no_steps_change_nothing() -> None:
    model, codec = tiny()
    before = weights(model)
    learned = train(model, codec, study(steps=0), Optimizer())
    assert (learned.steps, learned.loss, learned.tokens) == (0, None, 0)
    assert max(moved(before, model).values()) == 0


@given(st.integers(1, 300), st.floats(0, 0.99), st.floats(0, 1))
def test_the_rate_rises_stays_and_falls(steps: int, warmup: float, decay: float) -> None:
    settings = Optimizer(warmup=warmup, decay=decay)
    rates = [_schedule(step, steps, settings) for step in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
