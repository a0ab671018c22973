"""Small models of any family, or one line that says why not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import lessons, member, sums

from community.agents.shape import Shape
from community.errors import CommunityError
from community.types import Request, Study


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3", "smollm3", "mixtral"])
def test_families_whose_own_heads_fit_no_small_model(family: str) -> None:
    agent = member(shape=Shape(family=family, width=16, heads=2, depth=1))
    (idea,) = agent.propose([Request(sums(1)[0], 1, 0, 5)])
    assert idea.tokens and not idea.failure


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "qwen2"])
def test_a_checkpoint_is_taken_whatever_layout_transformers_saves(
    family: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    agent = member(shape=Shape(family=family, width=16, heads=2, depth=1))
    before = {name: p.clone() for name, p in agent.model.named_parameters()}
    start = agent.save(tmp_path)
    agent.learn(Study(1, 5, tuple(lessons(4)), steps=2, batch=2))
    assert agent.save(tmp_path) != start
    agent.load(tmp_path, start)
    assert all(torch.equal(p, before[name]) for name, p in agent.model.named_parameters())
    other = member(shape=Shape(family=family, width=16, heads=2, depth=2)).save(tmp_path)
    with pytest.raises(CommunityError, match="of another shape"):
        agent.load(tmp_path, other)
    assert "Loading" not in capfd.readouterr().err


@pytest.mark.parametrize(("family", "inner"), [("llama", "mlp.up_proj"), ("opt", "fc1")])
def test_the_inner_width_is_the_shapes(family: str, inner: str) -> None:
    agent = member(shape=Shape(family=family, width=16, heads=2, depth=1, hidden=24))
    shapes = [tuple(p.shape) for n, p in agent.model.named_parameters() if f"{inner}.weight" in n]
    assert shapes == [(24, 16)]


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        (Shape(family="bert", width=16, heads=2), "its tokens see those after them"),
        (Shape(family="roberta", width=16, heads=2), "its tokens see those after them"),
        (Shape(family="llama", width=6, heads=2), "must match"),
        (Shape(family="bamba", width=16, heads=2), "mamba_n_heads must divide"),
        (Shape(family="stablelm", width=16, heads=3), "choose other sizes"),
        (Shape(family="gemma3", width=16, heads=2), "hidden_size would be 2304, whatever"),
        (Shape(family="nope"), "Unrecognized model identifier: nope"),
        (Shape(family="nemotron_h", width=16, heads=2), "num_hidden_layers would be 4"),
    ],
)
def test_a_shape_that_could_not_answer_is_one_line(shape: Shape, reason: str) -> None:
    with pytest.raises(CommunityError, match=reason) as found:
        member(shape=shape)
    assert "\n" not in str(found.value) and len(str(found.value)) < 400
