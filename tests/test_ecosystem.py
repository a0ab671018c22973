"""Our attention and our experts inside the models of transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    BartForConditionalGeneration,
    BigBirdPegasusConfig,
    BlipTextConfig,
    BloomConfig,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    DeepseekV32Config,
    Gemma4ForCausalLM,
    Gemma4TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MegatronBertConfig,
    MixtralConfig,
    MixtralForCausalLM,
    NemotronHConfig,
    NemotronHForCausalLM,
    NllbMoeConfig,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    SplinterConfig,
    T5Config,
    T5ForConditionalGeneration,
    XGLMConfig,
)
from transformers.masking_utils import create_causal_mask
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel

from community.kernels import ecosystem
from community.kernels.ecosystem import register
from community.kernels.experts import expert_mlp

SMALL = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
WIDE = {**SMALL, "num_key_value_heads": 2, "intermediate_size": 48}
SIDES = {"encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
SIDES |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "pad_token_id": 0}
SIDES |= {"vocab_size": 50, "d_model": 32}
MOE = {**WIDE, "moe_intermediate_size": 24, "num_experts_per_tok": 2}
LATENT = {**MOE, "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16}
LATENT |= {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
GEMMA = {"head_dim": 8, "global_head_dim": 8}
GEMMA |= {"vocab_size_per_layer_input": 50, "hidden_size_per_layer_input": 8}


def gpt2() -> Any:
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4))


def llama() -> Any:
    return LlamaForCausalLM(LlamaConfig(**WIDE))


def mixtral() -> Any:
    return MixtralForCausalLM(MixtralConfig(**WIDE, num_local_experts=4))


def t5() -> Any:
    sizes = {"vocab_size": 50, "d_model": 32, "d_kv": 8, "d_ff": 48}
    config = T5Config(**sizes, num_layers=2, num_heads=4, decoder_start_token_id=0)
    return T5ForConditionalGeneration(config)


def bart() -> Any:
    return BartForConditionalGeneration(BartConfig(**SIDES))


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
    plain = model(**batch(model, None), softcap=None, output_attentions=False)
    assert plain.logits.isfinite().all()
    asked = {"softcap": 3.0, "output_attentions": True}
    asked |= dict.fromkeys(("s_aux", "sinks", "indices", "block_indices"), torch.zeros(4))
    for name, value in asked.items():
        with pytest.raises(ValueError, match=f"does not know {name}; use 'eager'"):
            model(**batch(model, None), **{name: value})


def test_keys_that_a_model_chooses_are_not_ignored() -> None:
    config = DeepseekV32Config(
        **LATENT,
        n_routed_experts=4,
        n_group=1,
        topk_group=1,
        index_topk=3,
        index_n_heads=2,
        index_head_dim=16,
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="community")
    with pytest.raises(ValueError, match="does not know indices"):
        model(**batch(model, None))


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_queries_that_a_model_leaves_out(cache: str) -> None:
    """The last layers of Gemma 4 have queries only for the logits that are kept."""
    model = Gemma4ForCausalLM(
        Gemma4TextConfig(
            **{**WIDE, **GEMMA, "num_hidden_layers": 4},
            num_kv_shared_layers=2,
            sliding_window=4,
            layer_types=["sliding_attention", "full_attention"] * 2,
        )
    ).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    tokens, found = torch.randint(1, 50, (2, 9)), []
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    options["disable_compile"] = True
    for name in ("eager", "community"):
        model.set_attn_implementation(name)
        for keep in (1, 3):
            found.append([model(tokens, logits_to_keep=keep).logits])
        said = model.generate(
            tokens,
            **options,
            cache_implementation=cache,
            output_logits=True,
            return_dict_in_generate=True,
        )
        found.append(said.logits)
    for theirs, ours in zip(found[:3], found[3:], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.filterwarnings("error:Dynamo detected")
def test_what_is_known_of_a_model_is_looked_up_and_not_traced() -> None:
    config = llama().config
    config._attn_implementation = "community"

    def made(x: torch.Tensor, seen: torch.Tensor) -> Any:
        return create_causal_mask(config, x, seen, None)

    given = torch.randn(1, 3, 32), torch.tensor([[0, 1, 1]])
    assert torch.equal(torch.compile(made, backend="eager")(*given), made(*given))


@pytest.mark.slow
def test_a_compiled_model_learns_the_same() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2)).eval()
    model.set_attn_implementation("community")
    given = batch(model, "left")
    found = []
    for run in (model, torch.compile(model, backend="aot_eager")):
        model.zero_grad()
        loss = run(**given).loss  # transformers writes to its log there, which breaks the graph
        loss.backward()
        found.append([loss, *(p.grad.clone() for p in model.parameters())])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(theirs, ours)


def splinter() -> Any:
    return AutoModel.from_config(SplinterConfig(**SMALL, intermediate_size=48))


def nllb_moe() -> Any:
    return AutoModelForSeq2SeqLM.from_config(NllbMoeConfig(**SIDES, num_experts=4))


def bigbird() -> Any:
    return AutoModelForSeq2SeqLM.from_config(BigBirdPegasusConfig(**SIDES))


@pytest.mark.parametrize("side", [None, "left", "right"])
@pytest.mark.parametrize("make", [splinter, nllb_moe, bigbird])
def test_models_that_do_not_know_sdpa(make: Callable[[], Any], side: str | None) -> None:
    """What their modules say of causality is wrong, and they add masks."""
    model, found = make().eval(), []
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    given = batch(model, side)
    given.pop("labels")
    if make is not splinter:
        given["decoder_input_ids"] = given["input_ids"].flip(1)
    seen = given.get("attention_mask", torch.ones(3, 9)).bool()
    for name in ("eager", "community"):
        model.set_attn_implementation(name)
        found.append(model(**given)[0])
    if make is splinter:
        found = [x[seen] for x in found]
    torch.testing.assert_close(found[1], found[0], atol=1e-4, rtol=0)


def bloom() -> Any:
    return by_name(BloomConfig(vocab_size=50, hidden_size=32, n_layer=2, n_head=4))


def xglm() -> Any:
    return by_name(
        XGLMConfig(vocab_size=50, d_model=32, num_layers=2, attention_heads=4, ffn_dim=48)
    )


def megatron() -> Any:
    return by_name(MegatronBertConfig(**SMALL, intermediate_size=48, is_decoder=True))


def blip() -> Any:
    config = BlipTextConfig(**SMALL, intermediate_size=48, is_decoder=True)
    return BlipTextLMHeadModel._from_config(config, attn_implementation="community")


def by_name(config: Any) -> Any:
    return AutoModelForCausalLM.from_config(config, attn_implementation="community")


@pytest.mark.parametrize("make", [bloom, xglm, megatron, blip])
def test_models_that_compute_attention_themselves_are_refused(make: Callable[[], Any]) -> None:
    """They would add a mask of True and False to their scores."""
    model = make()
    with pytest.raises(ValueError, match="compute attention themselves"):
        model(input_ids=torch.randint(1, 50, (3, 9)))


# -- experts ---------------------------------------------------------------------------


def qwen2_moe() -> Any:
    return Qwen2MoeForCausalLM(
        Qwen2MoeConfig(**MOE, num_experts=6, shared_expert_intermediate_size=24)
    )


def qwen3_moe() -> Any:
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**MOE, num_experts=6, head_dim=8))


def deepseek_v3() -> Any:
    return DeepseekV3ForCausalLM(
        DeepseekV3Config(
            **LATENT, n_routed_experts=8, n_group=2, topk_group=1, first_k_dense_replace=1
        )
    )


def gemma4() -> Any:
    """Experts with GELU."""
    return Gemma4ForCausalLM(
        Gemma4TextConfig(
            **{**MOE, **GEMMA, "num_experts_per_tok": None},
            enable_moe_block=True,
            num_experts=4,
            top_k_experts=2,
        )
    )


def nemotron_h() -> Any:
    """Experts without a gate."""
    return NemotronHForCausalLM(
        NemotronHConfig(
            **{name: MOE[name] for name in MOE if name != "num_hidden_layers"},
            layers_block_type=["attention", "moe", "attention", "moe"],
            head_dim=8,
            n_routed_experts=8,
            moe_shared_expert_intermediate_size=24,
        )
    )


MIXTURES = [mixtral, qwen2_moe, qwen3_moe, deepseek_v3, gemma4, nemotron_h]


@pytest.mark.parametrize("side", [None, "left", "right"])
@pytest.mark.parametrize("make", MIXTURES)
def test_experts_are_those_of_eager(make: Callable[[], Any], side: str | None) -> None:
    model = make().eval()
    for p in model.parameters():  # as they come some are zeros, and experts make no difference
        torch.nn.init.normal_(p, std=0.1)
    given = batch(model, side)
    seen = given.get("attention_mask", torch.ones(3, 9)).bool()
    found = []
    for name in ("eager", "community"):
        model.set_experts_implementation(name)
        model.zero_grad()
        logits = model(**given).logits[seen]
        with torch.no_grad():  # without gradients it is another path
            torch.testing.assert_close(model(**given).logits[seen], logits, atol=1e-4, rtol=0)
        logits.log_softmax(-1)[..., 3].sum().backward()
        found.append((logits, {n: p.grad for n, p in model.named_parameters()}))
    (logits, grads), (ours, our_grads) = found
    torch.testing.assert_close(ours, logits, atol=1e-4, rtol=0)
    assert any("experts" in name and grad.any() for name, grad in grads.items() if grad is not None)
    for name, theirs in grads.items():
        if theirs is None:
            assert our_grads[name] is None
        else:
            size = float(theirs.abs().max())
            torch.testing.assert_close(our_grads[name], theirs, atol=1e-4 * size + 1e-5, rtol=1e-4)


@pytest.mark.parametrize("make", MIXTURES)
def test_our_experts_are_called(make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    def noted(*given: Any) -> torch.Tensor:
        called.append(given[-1])
        return expert_mlp(*given)

    monkeypatch.setattr(ecosystem, "expert_mlp", noted)
    model = make()
    model(**batch(model, None))
    assert not called
    model.set_experts_implementation("community")
    model(**batch(model, None))
    acts = {"gemma4": "gelu_tanh", "nemotron_h": "relu2"}
    layers = 1 if make is deepseek_v3 else 2
    assert called == [acts.get(make.__name__, "silu")] * layers


def test_the_config_chooses_our_experts() -> None:
    config = MixtralConfig(**WIDE, num_local_experts=4)
    model = MixtralForCausalLM._from_config(config, experts_implementation="community")
    assert model.config._experts_implementation == "community"


def test_training_steps_of_a_mixture() -> None:
    losses = []
    for name in ("eager", "community"):
        torch.manual_seed(0)
        model = mixtral().train()
        model.set_experts_implementation(name)
        steps = torch.optim.AdamW(model.parameters(), lr=1e-2)
        given = batch(model, "right")
        for _ in range(5):
            loss = model(**given).loss
            loss.backward()
            steps.step()
            steps.zero_grad()
        losses.append(loss.detach())
    torch.testing.assert_close(losses[1], losses[0], atol=1e-3, rtol=1e-3)


def test_a_mixture_in_bfloat16_generates() -> None:
    model = qwen3_moe().eval().to(torch.bfloat16)
    model.set_experts_implementation("community")
    tokens = torch.randint(1, 50, (2, 5))
    written = model.generate(tokens, max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert written.shape == (2, 13)


def test_experts_that_are_not_supported_say_so() -> None:
    heads = {"head_dim": 8, "num_local_experts": 4}
    gpt_oss = GptOssForCausalLM(GptOssConfig(**WIDE, **heads))
    gpt_oss.set_experts_implementation("community")
    with pytest.raises(ValueError, match="has_bias of GptOssExperts; use 'grouped_mm'"):
        gpt_oss(**batch(gpt_oss, None))
    relu = MixtralForCausalLM(MixtralConfig(**WIDE, num_local_experts=4, hidden_act="relu"))
    relu.set_experts_implementation("community")
    with pytest.raises(ValueError, match="does not know ReLU"):
        relu(**batch(relu, None))
    spread = mixtral()
    spread.set_experts_implementation("community")
    spread.model.layers[0].mlp.experts._is_expert_parallel = True
    with pytest.raises(ValueError, match="_is_expert_parallel"):
        spread(**batch(spread, None))
