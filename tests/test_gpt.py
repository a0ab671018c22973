"""Language models in C and OpenCL: the answers and scores of transformers, whatever the batch."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
from backends import compiled
from sanitizers import assert_clean
from tiny_models import ARENA, RESTART, SHAPE, sums, tiny
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MinPLogitsWarper,
    PreTrainedModel,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from community.agents.codec import CharacterCodec
from community.agents.decoding import (
    Generated,
    _draws,
    generate,
    generate_by_kernels,
    score,
    score_by_kernels,
)
from community.agents.transformer import Shape
from community.kernels import bench_generation, build, gpt
from community.kernels.ecosystem import register
from community.kernels.gpt import LanguageModel
from community.kernels.timing import worst
from community.kernels.weights import Unsupported
from community.models import find_model
from community.packaged import weights as packaged
from community.types import Decoding

register()
WORDS = 37
END = 1
IDS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": END, "pad_token_id": 0}
SHARP = 8  # times the usual weights, so that untrained answers depend on the prompt
program = partial(compiled, "gpt")


@pytest.fixture(params=["c", "opencl"])
def backend(request: pytest.FixtureRequest) -> str:
    program(request.param)
    return str(request.param)


def any_program() -> build.Program:
    return program("c" if build.compiler() else "opencl")


def sharp(model: PreTrainedModel) -> PreTrainedModel:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(SHARP)
            elif "bias" in name:
                parameter.normal_(std=0.1)
            else:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def gpt2(**options: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    shape = {"vocab_size": WORDS, "n_positions": 64, "n_embd": 20, "n_layer": 2, "n_head": 2}
    return sharp(GPT2LMHeadModel(GPT2Config(**{**shape, **IDS, **options})))


def llama(family: str = "llama", **options: Any) -> PreTrainedModel:
    """Llama, or a family of the same build."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": WORDS,
        "hidden_size": 48,
        "intermediate_size": 52,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    }
    config = AutoConfig.for_model(family, **{**shape, **IDS, **options})
    return sharp(AutoModelForCausalLM.from_config(config))


MODELS = {
    "gpt2": gpt2,
    "gpt2-relu": lambda: gpt2(activation_function="relu", n_inner=30, n_embd=64, n_head=1),
    "gpt2-untied": lambda: gpt2(tie_word_embeddings=False, scale_attn_by_inverse_layer_idx=True),
    "llama": llama,
    "llama-tied": lambda: llama(tie_word_embeddings=True, num_key_value_heads=1),
    "llama-biases": lambda: llama(attention_bias=True, mlp_bias=True, num_key_value_heads=4),
    "llama-wide-heads": lambda: llama(head_dim=72, num_attention_heads=2),
    "llama-temperature": lambda: llama(
        attn_implementation="community", attention_temperature=[0.5, 0.7, 1.0, 2.0]
    ),
    "mistral": lambda: llama("mistral", sliding_window=None, head_dim=12),
    "qwen2": lambda: llama("qwen2"),
    "qwen3": lambda: llama("qwen3", head_dim=20),
    "smollm3": lambda: llama("smollm3", no_rope_layers=[1, 0]),
    "llama that turns all": lambda: llama(no_rope_layers=[0, 1]),
    "no positions": lambda: llama("smollm3", no_rope_layers=[0, 0]),
    "llama-3": lambda: llama(
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        }
    ),
}


class Numbers(CharacterCodec):
    """Tokens that stand for nothing."""

    def __init__(self) -> None:
        super().__init__("".join(chr(ord("a") + i) for i in range(WORDS - 2)))


def prompts(count: int = 12) -> list[list[int]]:
    """Of different lengths, some twice."""
    torch.manual_seed(1)
    made = [torch.randint(2, WORDS, (n % 29 + 1,)).tolist() for n in range(1, 5 * count, 5)]
    return made + made[:2]


def logs(model: PreTrainedModel, tokens: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return torch.as_tensor(model(torch.tensor([tokens])).logits[0]).log_softmax(-1)


def greedy(
    model: PreTrainedModel, ours: LanguageModel, asked: list[list[int]], longest: int
) -> None:
    """Compares answers with what transformers generates, and what the model says of them."""
    answers, logprobs = ours.generate(asked, None, None, longest, END)
    for prompt, answer, logprob in zip(asked, answers, logprobs, strict=True):
        ids = torch.tensor([prompt])
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=longest, do_sample=False
        )
        assert answer == out[0, len(prompt) :].tolist()
        found = logs(model, prompt + answer)[len(prompt) - 1 : -1]
        assert logprob == pytest.approx(float(found[range(len(answer)), answer].sum()), abs=1e-4)
    assert len({tuple(a) for a in answers}) > 3


def drawn(
    model: PreTrainedModel, ours: LanguageModel, top_p: float, times: int, longest: int
) -> list[Generated]:
    """Compares samples with those of torch; a few draws lie at an edge that rounding moves."""
    codec, decoding = Numbers(), Decoding(temperature=1.3, top_p=top_p, max_tokens=longest)
    asked = [p for p in prompts() for _ in range(times)]
    seeds = list(range(len(asked)))
    expected = generate(model, codec, asked, seeds, decoding)
    found = generate_by_kernels(ours, codec, asked, seeds, decoding)
    same = [(a, b) for a, b in zip(found, expected, strict=True) if a.tokens == b.tokens]
    assert len(same) >= 0.97 * len(asked)
    for a, b in same:
        assert a.logprob == pytest.approx(b.logprob, abs=1e-4)
    return found


@pytest.mark.parametrize("name", MODELS)
def test_greedy_is_what_transformers_generates(name: str, backend: str) -> None:
    model = MODELS[name]()
    greedy(model, LanguageModel(model, program(backend)), prompts(6), 20)


@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.3])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_samples_are_those_of_torch(name: str, top_p: float, backend: str) -> None:
    model = MODELS[name]()
    found = drawn(model, LanguageModel(model, program(backend)), top_p, 5, 12)
    assert any(len(a.tokens) < 12 for a in found)  # some reach the end


TASTES: list[dict[str, Any]] = [
    {"top_k": 4},
    {"min_p": 0.1},
    {"top_k": 9, "top_p": 0.6},
    {"top_p": 0.9, "min_p": 0.2},
    {"top_k": 12, "top_p": 0.8, "min_p": 0.05},
    {"top_k": 20, "top_p": 0.9, "min_p": 0.3},  # min_p would change what top_p is a share of
    {"top_k": 1},
    {"top_k": 10 * WORDS, "min_p": 1e-4},
]


def cut(logits: torch.Tensor, temperature: float, taste: dict[str, Any]) -> torch.Tensor:
    """Chances (V) as the logits processors of transformers leave them, in their order."""
    steps: list[Any] = [TemperatureLogitsWarper(temperature)]
    steps += [TopKLogitsWarper(taste["top_k"])] if "top_k" in taste else []
    steps += [TopPLogitsWarper(taste["top_p"])] if "top_p" in taste else []
    steps += [MinPLogitsWarper(taste["min_p"])] if "min_p" in taste else []
    scores = logits[None]
    for step in steps:
        scores = step(None, scores)
    return scores.softmax(-1)[0].double()


@pytest.mark.parametrize("taste", TASTES, ids=str)
def test_what_is_cut_off_is_what_transformers_cuts_off(taste: dict[str, Any], backend: str) -> None:
    """The first token of many samples, against chances sorted from the most probable on."""
    model = llama()
    asked = [p for p in prompts(4) for _ in range(40)]
    draws = torch.rand(len(asked), 1, generator=torch.Generator().manual_seed(2)).double()
    ours = LanguageModel(model, program(backend))
    found, _ = ours.generate(asked, None, draws, 1, None, 1.5, **taste)
    expected = []
    for prompt, draw in zip(asked, draws[:, 0], strict=True):
        chances, order = cut(logs(model, prompt)[-1], 1.5, taste).sort(descending=True)
        place = torch.searchsorted(chances.cumsum(-1), draw * chances.sum(), right=True)
        expected.append([int(order[place])])
    same = sum(a == b for a, b in zip(found, expected, strict=True))
    assert same >= 0.98 * len(asked)  # the rest are draws at an edge that rounding moves
    assert taste == {"top_k": 1} or len({t[0] for t in found}) > 2


@pytest.mark.parametrize("shape", [SHAPE, RESTART], ids=["plain", "restart"])
def test_positions_of_the_codec(shape: Shape, backend: str) -> None:
    model, codec = tiny(shape)
    model = model.float()
    ours = LanguageModel(model, program(backend))
    asked = [codec.prompt(task.prompt) for task in sums(9, level=5)]
    greedy = Decoding(max_tokens=9)
    none = [0] * len(asked)
    expected = generate(model, codec, asked, none, greedy)
    found = generate_by_kernels(ours, codec, asked, none, greedy)
    assert [a.tokens for a in found] == [a.tokens for a in expected]
    pairs = [(p, codec.answer(ARENA.solve(t))) for p, t in zip(asked, sums(9, 5), strict=True)]
    expected_scores = score(model, codec, pairs)
    assert score_by_kernels(ours, codec, pairs) == pytest.approx(expected_scores, abs=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_scores_are_those_of_torch(name: str, backend: str) -> None:
    model, codec = MODELS[name](), Numbers()
    pairs = [(p, [*p[::-1], END]) for p in prompts(40)]
    found = score_by_kernels(LanguageModel(model, program(backend)), codec, pairs)
    assert found == pytest.approx(score(model, codec, pairs), abs=2e-4)


@pytest.mark.parametrize("start", [1, 95, 96, 97, 149, 150])
def test_scores_of_the_end_of_a_long_row(start: int, backend: str) -> None:
    """Whole passes of 96 tokens, or all of them, may have nothing to score."""
    model = llama()
    row = [2 + (i * i + i // 7) % (WORDS - 2) for i in range(150)]
    expected = float(logs(model, row)[range(start - 1, 149), row[start:]].sum())
    found = LanguageModel(model, program(backend)).score([row, row[:2]], None, [start, 2])
    assert found == [pytest.approx(expected, rel=1e-5), 0.0]


def test_the_last_position_need_not_be_the_largest(backend: str) -> None:
    model, where = llama(max_position_embeddings=16), [40, 2, 3]
    answers, logprobs = LanguageModel(model, program(backend)).generate(
        [[5, 3, 2]], [where], None, 1, None
    )
    with torch.no_grad():
        ids, positions = torch.tensor([[5, 3, 2]]), torch.tensor([where])
        expected = model(ids, position_ids=positions).logits[0, -1].log_softmax(-1)
    assert answers == [[int(expected.argmax())]]
    assert logprobs == [pytest.approx(float(expected.max()), abs=1e-4)]


@pytest.mark.parametrize(
    ("name", "weights"),
    [("gpt2", "float32"), ("gpt2-relu", "bfloat16"), ("llama", "int8"), ("llama", "float32")],
)
def test_a_row_is_the_same_in_every_batch(name: str, weights: str, backend: str) -> None:
    """To the last bit: alone, beside others, in another order, in a block or the next one."""
    ours = LanguageModel(MODELS[name](), program(backend), weights)
    asked = [p for p in prompts(30) for _ in range(4)]  # more than a block holds
    assert len(asked) > gpt.ROWS
    draws = _draws(range(len(asked)), Decoding(temperature=1.0, max_tokens=10))
    whole = ours.generate(asked, None, draws, 10, END, 1.0, 0.9)
    scores = ours.score(asked, None, [1] * len(asked))
    for n in range(0, len(asked), 17):
        tokens, logprobs = ours.generate([asked[n]], None, draws[n : n + 1], 10, END, 1.0, 0.9)
        assert (tokens[0], logprobs[0]) == (whole[0][n], whole[1][n])
        assert ours.score([asked[n]], None, [1]) == [scores[n]]
    for n in range(2, 18):  # tiles of every number of rows
        found = ours.generate(asked[:n], None, draws[:n], 10, END, 1.0, 0.9)
        assert found == (whole[0][:n], whole[1][:n])
    back = ours.generate(asked[::-1], None, draws.flip(0), 10, END, 1.0, 0.9)
    assert (back[0][::-1], back[1][::-1]) == whole


@pytest.mark.parametrize("lengths", [(5, 3, 2), (20, 9, 4), (70, 40, 30)], ids=str)
def test_rows_that_begin_alike_are_what_they_are_alone(
    lengths: tuple[int, int, int], backend: str
) -> None:
    """To the last bit, though what they have in common is read once: a system message, a question
    after it, an answer to that; and the ends of a row are another's beginning."""
    pieces = [[[(3 + 5 * a + b) * (i + 2) % WORDS for i in range(n)] for a in range(3)]
              for b, n in enumerate(lengths)]  # fmt: skip
    asked = [s + q + a for s in pieces[0] for q in pieces[1] for a in pieces[2]]
    asked += [s + q for s in pieces[0][:2] for q in pieces[1]] + pieces[0] + asked[:5]
    draws = _draws(range(len(asked)), Decoding(temperature=1.0, max_tokens=6))
    ours = LanguageModel(gpt2() if lengths[0] < 70 else llama(), program(backend))
    tokens, logprobs = ours.generate(asked, None, draws, 6, END, 1.0, 0.9)
    begins = [max(1, len(row) - 4) for row in asked]
    scores = ours.score(asked, None, begins)
    for n in range(0, len(asked), 3):
        alone = ours.generate([asked[n]], None, draws[n : n + 1], 6, END, 1.0, 0.9)
        assert alone == ([tokens[n]], [logprobs[n]])
        assert ours.score([asked[n]], None, [begins[n]]) == [scores[n]]


def test_blocks_of_several_threads_and_of_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = LanguageModel(gpt2(), any_program())
    whole = ours.generate(prompts(), None, None, 10, END)
    monkeypatch.setattr(gpt, "CACHE", 20000)
    assert ours.generate(prompts(), None, None, 10, END) == whole
    if build.find_spec("pyopencl"):
        before = torch.get_num_threads()
        torch.set_num_threads(3)
        found = LanguageModel(gpt2(), program("opencl")).generate(prompts(), None, None, 10, END)
        torch.set_num_threads(before)
        assert found[0] == whole[0]


@pytest.mark.parametrize("weights", gpt.KINDS)
def test_c_and_opencl_agree(weights: str) -> None:
    asked = [p for p in prompts() for _ in range(5)]
    draws = _draws(range(len(asked)), Decoding(temperature=1.0, max_tokens=16))
    for model in (gpt2(), llama()):
        both = [
            LanguageModel(model, program(b), weights).generate(
                asked, None, draws, 16, END, 1.0, 0.95, 30, 0.01
            )
            for b in ("c", "opencl")
        ]
        assert both[0][0] == both[1][0]
        assert both[0][1] == pytest.approx(both[1][1], abs=1e-4)


def test_new_weights_count_after_a_refresh() -> None:
    model = llama()
    ours = LanguageModel(model, any_program())
    before = ours.score(prompts(), None, [1] * 14)
    with torch.no_grad():
        model.lm_head.weight.mul_(1.1)
    assert ours.score(prompts(), None, [1] * 14) == before
    ours.refresh(model)
    assert ours.score(prompts(), None, [1] * 14) == LanguageModel(model, any_program()).score(
        prompts(), None, [1] * 14
    )


def test_nothing_is_taken_of_a_model_that_is_refused() -> None:
    ours = LanguageModel(llama(), any_program())
    layout, before = ours.layout, ours.score(prompts(), None, [1] * 14)
    with pytest.raises(Unsupported, match="processor"):
        ours.refresh(gpt2().to("meta"))
    assert ours.layout == layout  # by another it would read beyond the weights
    assert ours.score(prompts(), None, [1] * 14) == before


def test_several_threads_may_ask_first() -> None:
    model = llama(max_position_embeddings=2**16)  # whose turns take a while
    ours = LanguageModel(model, any_program())
    asked = prompts()  # drawn once: threads share torch's generator
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: ours.score(asked, None, [1] * 14), range(4)))
    assert found == [ours.score(asked, None, [1] * 14)] * 4


def dequantised(weight: torch.Tensor) -> torch.Tensor:
    """(inputs, outputs) as int8 with a scale for every GROUP inputs stands for it."""
    groups = [
        (part / (top := part.abs().amax(0) / 127).clamp(min=1e-30)).round() * top
        for part in weight.float().split(gpt.GROUP)
    ]
    return torch.cat(groups)


def rounded(model: PreTrainedModel, change: Any) -> PreTrainedModel:
    """The model with every weight of a product changed; embeddings stay."""
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.copy_(change(module.weight.T).T)
            elif "c_" in name and hasattr(module, "weight"):  # GPT-2's own layer
                module.weight.copy_(change(module.weight))
    return model


WIDE = {"hidden_size": 160, "head_dim": 40, "intermediate_size": 333}  # more than one group
STORED = {
    "gpt2": lambda: gpt2(tie_word_embeddings=False, n_embd=140, n_inner=77),
    "llama": lambda: llama(**WIDE),
}
CHANGES = {"int8": dequantised, "bfloat16": lambda weight: weight.bfloat16().float()}


@pytest.mark.parametrize("weights", CHANGES)
@pytest.mark.parametrize("name", STORED)
def test_stored_weights_are_to_the_bit_the_floats_they_stand_for(
    name: str, weights: str, backend: str
) -> None:
    model = STORED[name]()
    if weights == "bfloat16":
        torch.nn.Module.to(model.get_input_embeddings(), torch.bfloat16).float()
        if name == "gpt2":
            torch.nn.Module.to(model.transformer.wpe, torch.bfloat16).float()
    small = LanguageModel(model, program(backend), weights)
    plain = LanguageModel(rounded(model, CHANGES[weights]), program(backend))
    if weights == "bfloat16":  # float32 keeps what is bfloat16 anyway in as many bytes
        assert len(small.weights) == len(plain.weights)
    else:
        assert len(small.weights) < 0.5 * len(plain.weights)
    for asked in (prompts(), prompts()[4:5]):
        assert small.generate(asked, None, None, 12, None) == plain.generate(
            asked, None, None, 12, None
        )
        assert small.score(asked, None, [1] * len(asked)) == plain.score(
            asked, None, [1] * len(asked)
        )


def test_other_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="float32, bfloat16, int8"):
        LanguageModel(llama(), any_program(), "int4")


def test_vectors_of_eight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processors without AVX-512 have them; here both are compiled."""
    if build.compiler() is None:
        pytest.skip("no C compiler")
    usual = {k: LanguageModel(STORED["llama"](), any_program(), k) for k in gpt.KINDS}
    expected = {k: m.generate(prompts(), None, None, 12, END) for k, m in usual.items()}
    monkeypatch.setattr(gpt, "lanes", lambda: 8)
    narrow = build.CProgram("gpt", ("-DLANES=8",))
    for kind, (tokens, logprobs) in expected.items():
        ours = LanguageModel(STORED["llama"](), narrow, kind)
        found = ours.generate(prompts(), None, None, 12, END)
        assert found[0] == tokens
        assert found[1] == pytest.approx(logprobs, abs=1e-3)


def smollm2() -> PreTrainedModel:
    if packaged("smollm2") is None:
        pytest.skip("SmolLM2 is not installed")
    model = AutoModelForCausalLM.from_pretrained(
        find_model("packaged:smollm2"), dtype=torch.float32
    )
    model.generation_config.eos_token_id = None  # it says 200 tokens, ends among them
    return model.eval()


@pytest.mark.slow
def test_a_real_model_says_what_it_says_by_transformers() -> None:
    model = smollm2()
    ours = LanguageModel(model, any_program())
    ids = torch.tensor([[504, 3575, 282, 4649, 314], [28, 284, 253, 1165, 282]])
    answers, _ = ours.generate(ids.tolist(), None, None, 200, None)
    for row, answer in zip(ids, answers, strict=True):
        ones = torch.ones_like(row[None])
        out = model.generate(
            row[None],
            attention_mask=ones,
            max_new_tokens=200,
            do_sample=False,
            pad_token_id=0,
        )
        assert answer == out[0, 5:].tolist()
    # what it says itself is what it knows best: int8 must know it nearly as well
    whole = [[*row, *answer] for row, answer in zip(ids.tolist(), answers, strict=True)]
    exact = ours.score(whole, None, [5, 5])
    small = LanguageModel(model, any_program(), "int8").score(whole, None, [5, 5])
    assert small == pytest.approx(exact, abs=0.01 * 200)


def test_the_benchmark_notices_a_wrong_token() -> None:
    if bench_generation.kernels("gpt") is None:
        pytest.skip("no kernels here")
    case = next(bench_generation.cases("cpu", True))
    assert worst(case) == 0
    model = bench_generation.made(32)
    asked, said = torch.randint(9, (2, bench_generation.PROMPT)), torch.full((2, 5), 3)
    assert not torch.equal(bench_generation._best(model, asked, said, 1e-3), said)


NEOX = GPTNeoXConfig(
    vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
)


@pytest.mark.parametrize(
    ("make", "feature"),
    [
        (lambda: GPTNeoXForCausalLM(NEOX), "GPTNeoXForCausalLM"),
        (lambda: gpt2(activation_function="gelu"), "activation gelu"),
        (lambda: gpt2(attn_implementation="community", attention_sink=True), "attention_sink"),
        (lambda: gpt2(add_cross_attention=True), "cross attention"),
        (lambda: llama().double(), "float64"),
        (lambda: llama("mistral", sliding_window=8, head_dim=12), "sliding window"),
        (
            lambda: llama("qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=1),
            "sliding window",
        ),
        (
            lambda: llama(
                rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
            ),
            "dynamic",
        ),
        (lambda: gpt2(is_causal=False), "is_causal=False"),
    ],
    ids=["family", "activation", "sink", "cross", "double", "window", "windows", "rotary", "both"],
)
def test_what_is_not_supported_is_named(make: Any, feature: str) -> None:
    with pytest.raises(Unsupported, match=feature):
        LanguageModel(make(), any_program())


def test_temperatures_beyond_float32(backend: str) -> None:
    """The greedy answer, and every word as probable as the others; whole numbers are numbers."""
    ours, asked = LanguageModel(llama(), program(backend)), prompts(4)
    draws = _draws(range(len(asked)), Decoding(temperature=1.0, max_tokens=8))
    for extreme, near in ((1e-40, 0.0), (1e-300, 0.0), (1e39, 1e30), (2, 2.0)):
        found = ours.generate(asked, None, draws, 8, END, extreme)
        assert found == ours.generate(asked, None, draws, 8, END, near)


@pytest.mark.parametrize("given", [0.0, -1.0, [1.0, 1.0, 1.0]], ids=str)
def test_temperatures_that_attention_refuses(given: Any) -> None:
    model = gpt2(attn_implementation="community", attention_temperature=given)
    with pytest.raises(Unsupported, match="attention_temperature"):
        LanguageModel(model, any_program())


CHANGED: dict[str, tuple[dict[str, int], str]] = {
    "more words": ({"vocab_size": WORDS + 30}, "shape"),
    "fewer words": ({"vocab_size": WORDS - 3}, "shape"),
    "more heads of keys": ({"num_key_value_heads": 4}, "shape"),
    "a wider middle": ({"intermediate_size": 64}, "shape"),
    "another layer": ({"num_hidden_layers": 3}, "without 'model.layers.2"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_weights_that_are_not_those_of_the_config_are_refused(name: str) -> None:
    model = llama()
    options, feature = CHANGED[name]
    for key, value in options.items():
        setattr(model.config, key, value)
    with pytest.raises(Unsupported, match=feature):
        LanguageModel(model, any_program())


def test_weights_that_are_computed_from_others_are_refused() -> None:
    model = llama()
    torch.nn.utils.parametrizations.weight_norm(model.model.layers[0].mlp.down_proj)
    with pytest.raises(Unsupported, match="without 'model"):
        LanguageModel(model, any_program())


def test_a_model_with_other_embeddings(backend: str) -> None:
    """The config says what is there after `resize_token_embeddings`, not after a replacement."""
    model = llama()
    model.resize_token_embeddings(WORDS + 6)
    row = [3, WORDS + 5, 4, 36]
    score = LanguageModel(model, program(backend)).score([row], None, [1])
    told = logs(model, row)[range(3), row[1:]]
    assert score[0] == pytest.approx(float(told.sum()), abs=1e-3)
    model.set_input_embeddings(torch.nn.Embedding(WORDS + 9, 48))
    with pytest.raises(Unsupported, match="shape"):
        LanguageModel(model, program(backend))


BAD: dict[str, dict[str, Any]] = {
    "empty prompt": {"prompts": [[3], []]},
    "token": {"prompts": [[3, WORDS]]},
    "negative token": {"prompts": [[-1]]},
    "prompt beyond the positions": {"prompts": [[3] * 65]},
    "answer beyond the positions": {"prompts": [[3] * 60], "end": None},
    "negative position": {"positions": [[0, -1]]},
    "position beyond the table": {"positions": [[0, 64]]},
    "positions of another length": {"positions": [[0]]},
    "temperature": {"temperature": float("nan")},
    "infinite temperature": {"temperature": float("inf")},
    "cold": {"temperature": -1.0},
    "top_p": {"top_p": float("nan")},
    "top_k": {"top_k": -1},
    "min_p": {"min_p": 1.5},
    "min_p is no number": {"min_p": float("nan")},
    "no tokens": {"max_tokens": 0},
    "no draws": {"temperature": 1.0},
    "few draws": {"temperature": 1.0, "draws": torch.zeros(1, 3)},
    "draws of one": {"temperature": 1.0, "draws": torch.ones(1, 8)},
    "draws of nothing": {"temperature": 1.0, "draws": torch.full((1, 8), torch.nan)},
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_answered_is_refused(name: str) -> None:
    usual: dict[str, Any] = {"prompts": [[3, 4]], "positions": None, "draws": None}
    usual |= {"max_tokens": 8, "end": END}
    with pytest.raises(ValueError):
        LanguageModel(gpt2(), any_program()).generate(**{**usual, **BAD[name]})


@pytest.mark.parametrize("start", [0, 3, -1])
def test_what_cannot_be_scored_is_refused(start: int) -> None:
    with pytest.raises(ValueError):
        LanguageModel(gpt2(), any_program()).score([[3, 4]], None, [start])


def test_nothing_asked_nothing_said() -> None:
    ours = LanguageModel(gpt2(), any_program())
    assert ours.generate([], None, None, 8, END) == ([], [])
    assert ours.score([], None, []) == []


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), 1e30])
def test_broken_weights_do_no_harm(weight: float, backend: str) -> None:
    model = gpt2()
    with torch.no_grad():
        model.transformer.wte.weight[:] = weight
    ours = LanguageModel(model, program(backend))
    draws = torch.rand(14, 8, dtype=torch.float64)
    for temperature in (0.0, 1e-30, 1.0):
        for top_p in (1.0, 0.5):
            answers, _ = ours.generate(prompts(), None, draws, 8, None, temperature, top_p)
            assert all(0 <= t < WORDS for answer in answers for t in answer)


SANITIZED = """
import test_gpt as t
program = CProgram("gpt", flags)
for make, kind in zip(t.MODELS.values(), 9 * t.gpt.KINDS):
    ours = t.LanguageModel(make(), program, kind)
    asked = [p for p in t.prompts(30) for _ in range(4)]
    draws = torch.rand(len(asked), 9, dtype=torch.float64)
    for p in (1.0, 0.5):
        ours.generate(asked, None, draws, 9, t.END, 1.0, p)
        ours.generate(asked, None, draws, 9, t.END, 1.0, p, 5, 0.1)
    ours.generate(asked[:1], None, None, 9, None)
    ours.score(asked, None, [1] * len(asked))
    alike = [[7] * n + p[:m] for n in (9, 21, 40) for p in asked[:40:4] for m in (0, 3, 9)]
    ours.generate(alike, None, draws[: len(alike)], 9, t.END, 1.0)
    ours.score(alike, None, [max(1, len(row) - 2) for row in alike])
for row in ([3, 4], 150 * [5]):  # nothing to score, in a pass or at all
    t.LanguageModel(t.llama(), program).score([row], None, [len(row)])
    t.LanguageModel(t.llama(), program).generate([row], [row[::-1]], None, 9, None)
"""


@pytest.mark.slow
def test_no_byte_out_of_place() -> None:
    assert_clean(SANITIZED)
