"""Our attention inside the models of transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from community.kernels.ecosystem import register

SMALL = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
WIDE = {**SMALL, "num_key_value_heads": 2, "intermediate_size": 48}
SIDES = {"encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}


def gpt2() -> Any:
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4))


def llama() -> Any:
    return LlamaForCausalLM(LlamaConfig(**WIDE))


def mixtral() -> Any:
    return MixtralForCausalLM(MixtralConfig(**WIDE, num_local_experts=4))


def t5() -> Any:
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=50,
            d_model=32,
            d_kv=8,
            d_ff=48,
            num_layers=2,
            num_heads=4,
            decoder_start_token_id=0,
        )
    )


def bart() -> Any:
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    return BartForConditionalGeneration(
        BartConfig(vocab_size=50, d_model=32, **SIDES, **heads, pad_token_id=0)
    )


MODELS = [gpt2, llama, mixtral, t5, bart]


@pytest.fixture(autouse=True)
def registered() -> None:
    register()
    torch.manual_seed(0)


def batch(model: Any, side: str | None) -> dict[str, torch.Tensor]:
    tokens = torch.randint(1, 50, (3, 9))
    given = {"input_ids": tokens, "labels": tokens}
    if side:
        mask = torch.ones_like(tokens)
        mask[1, slice(0, 4) if side == "left" else slice(-4, None)] = 0
        given["attention_mask"] = mask
    return given


@pytest.mark.parametrize("side", [None, "left", "right"])
@pytest.mark.parametrize("make", MODELS)
def test_logits_and_gradients_are_those_of_sdpa(make: Callable[[], Any], side: str | None) -> None:
    model = make().eval()  # no dropout, so that the two can be compared
    given = batch(model, side)
    seen = given.get("attention_mask", torch.ones(3, 9)).bool()
    found = []
    for name in ("sdpa", "community"):
        model.set_attn_implementation(name)
        model.zero_grad()
        done = model(**given)
        logits = done.logits[seen]
        logits.log_softmax(-1)[..., 3].sum().backward()
        found.append((logits, [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    (logits, grads), (ours, our_grads) = found
    torch.testing.assert_close(ours, logits, atol=1e-4, rtol=0)
    assert len(grads) == len(our_grads)
    for ours, theirs in zip(our_grads, grads, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


def test_a_training_step_with_dropout() -> None:
    model = gpt2().train()
    model.set_attn_implementation("community")
    model(**batch(model, "right")).loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_generation_with_a_cache() -> None:
    model = llama().eval()
    tokens = torch.randint(1, 50, (2, 5))
    texts = []
    for name in ("sdpa", "community"):
        model.set_attn_implementation(name)
        texts.append(model.generate(tokens, max_new_tokens=8, do_sample=False, pad_token_id=0))
    assert texts[0].equal(texts[1])


def test_the_config_sets_temperature_and_sink() -> None:
    model = llama().eval()
    model.set_attn_implementation("community")
    given = batch(model, None)
    plain = model(**given).logits
    model.config.attention_temperature = [1.0, 1.0, 1.0, 1.0]
    torch.testing.assert_close(model(**given).logits, plain)
    model.config.attention_temperature = 0.5
    assert (model(**given).logits - plain).abs().max() > 1e-5
    model.config.attention_temperature, model.config.attention_sink = None, True
    assert (model(**given).logits - plain).abs().max() > 1e-5


def test_what_is_not_supported_says_so() -> None:
    model = llama()
    model.set_attn_implementation("community")
    with pytest.raises(ValueError, match="softcap"):
        model(**batch(model, None), softcap=3.0)
