"""Language models in gpt.cu: by OpenCL with one thread a block, by the emulator with all of them
(so barriers and shuffles count), alone or two blocks together, and on a GPU where there is one."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from cuda_emulator import EmulatedProgram, emulated
from test_gpt import END, MODELS, TASTES, WORDS, Numbers, drawn, gpt2, greedy, llama, logs, prompts

from community.agents.decoding import score, score_by_kernels
from community.kernels.backend import kernels
from community.kernels.build import BuildError, simt_program
from community.kernels.gpt import LanguageModel
from community.kernels.gpt_gpu import GpuLanguageModel, Team, flags, team_on
from community.kernels.weights import Unsupported

NAMES = [n for n in MODELS if n.startswith(("gpt2", "llama", "mistral", "qwen2"))]
SLOW = ("emulator", "teams")


@cache
def team(backend: str) -> Team:
    try:
        if backend == "opencl":
            return Team(simt_program("gpt", ("-DTHREADS=1",)), 1, 1)
        if backend != "cuda":
            blocks = 2 if backend == "teams" else 1
            return Team(emulated("gpt", *flags(blocks)), blocks)
    except BuildError as error:
        pytest.skip(str(error))
    found = team_on("cuda")
    assert found is not None
    return found


@pytest.fixture(
    params=[  # compiling gpt.cu by OpenCL takes minutes
        pytest.param("opencl", marks=pytest.mark.slow),
        pytest.param("emulator", marks=pytest.mark.slow),
        "teams",
        "cuda",
    ]
)
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda":
        request.getfixturevalue("gpu")
    team(request.param)
    return str(request.param)


def made(model: torch.nn.Module, backend: str) -> GpuLanguageModel:
    copy = type(model)(model.config)  # the test goes on with the model on the processor
    copy.load_state_dict(model.state_dict())
    return GpuLanguageModel(copy.to("cuda" if backend == "cuda" else "cpu"), team(backend))


@pytest.mark.parametrize("name", NAMES)
def test_greedy_is_what_transformers_generates(name: str, backend: str) -> None:
    model = MODELS[name]()
    longest = 6 if backend in SLOW else 20
    greedy(model, made(model, backend), prompts(), longest)


@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.3])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_samples_are_those_of_torch(name: str, top_p: float, backend: str) -> None:
    model = MODELS[name]()
    times, longest = (1, 4) if backend in SLOW else (5, 12)
    drawn(model, made(model, backend), top_p, times, longest)


@pytest.mark.parametrize("taste", TASTES, ids=str)
def test_samples_are_those_of_gpt_c(taste: dict[str, Any], backend: str) -> None:
    compiled = kernels("gpt")
    if compiled is None:
        pytest.skip("no kernels for the processor")
    model, longest = gpt2(), 4 if backend in SLOW else 12
    asked = prompts(4) if backend in SLOW else prompts() * 3
    draws = torch.rand(len(asked), longest, dtype=torch.float64)
    options: dict[str, Any] = {"temperature": 1.5, **taste}
    expected, _ = LanguageModel(model, compiled).generate(
        asked, None, draws, longest, END, **options
    )
    found, _ = made(model, backend).generate(asked, None, draws, longest, END, **options)
    same = sum(a == b for a, b in zip(found, expected, strict=True))
    assert same >= 0.97 * len(asked)


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_those_of_torch(name: str, backend: str) -> None:
    model, codec = MODELS[name](), Numbers()
    rows = prompts(40)[::8] if backend in SLOW else prompts(40)
    pairs = [(p, [*p[::-1], END]) for p in rows]
    found = score_by_kernels(made(model, backend), codec, pairs)
    assert found == pytest.approx(score(model, codec, pairs), abs=2e-4)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_weights_may_come_early(name: str) -> None:
    """Elsewhere the emulator has copies come as late as they may."""
    try:
        program = EmulatedProgram("gpt", flags(2))
    except BuildError as error:
        pytest.skip(str(error))
    program.early = True
    model = MODELS[name]()
    found = GpuLanguageModel(model, Team(program, 2)).generate(prompts(), None, None, 3, END)
    late = made(model, "teams").generate(prompts(), None, None, 3, END)
    assert found == late


LONG: dict[str, Any] = {
    "gpt2": lambda: gpt2(n_positions=300),
    "llama": lambda: llama(head_dim=136, num_attention_heads=1, num_key_value_heads=1),
}


@pytest.mark.parametrize("name", LONG)
def test_long_rows_and_wide_heads_are_scored(name: str, backend: str) -> None:
    model = LONG[name]()
    row = [2 + (i * i + i // 7) % (WORDS - 2) for i in range(300)]
    expected = float(logs(model, row)[range(299), row[1:]].sum())
    assert made(model, backend).score([row], None, [1]) == pytest.approx([expected], rel=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_row_is_the_same_in_every_batch(name: str, backend: str) -> None:
    ours = made(MODELS[name](), backend)
    draws = torch.rand(14, 5, dtype=torch.float64)
    together = ours.generate(prompts(), None, draws, 5, END, 1.0, 0.9)
    few = ours.generate(prompts()[:3], None, draws[:3], 5, END, 1.0, 0.9)
    assert few == (together[0][:3], together[1][:3])
    for i, prompt in list(enumerate(prompts()))[::3]:
        alone = ours.generate([prompt], None, draws[i : i + 1], 5, END, 1.0, 0.9)
        assert alone == ([together[0][i]], [together[1][i]])


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), 1e30])
def test_broken_weights_do_no_harm(weight: float, backend: str) -> None:
    model = gpt2()
    with torch.no_grad():
        model.transformer.wte.weight[:] = weight
    ours = made(model, backend)
    draws = torch.rand(14, 3, dtype=torch.float64)
    for temperature in (0.0, 1e-30, 1.0):
        for top_p in (1.0, 0.5):
            answers, _ = ours.generate(prompts(), None, draws, 3, None, temperature, top_p)
            assert all(0 <= t < WORDS for answer in answers for t in answer)


def test_an_answer_beyond_the_positions_is_refused(backend: str) -> None:
    with pytest.raises(ValueError, match="position 63"):
        made(gpt2(), backend).generate([[3] * 62], None, None, 8, None)


BAD: dict[str, Any] = {
    "activation gelu": lambda: gpt2(activation_function="gelu"),
    "normalised": MODELS["qwen3"],
    "layers without positions": MODELS["smollm3"],
    "cross attention": lambda: gpt2(add_cross_attention=True),
    "float64": lambda: llama().double(),
    "heads of size 600": lambda: llama(head_dim=600, num_attention_heads=1, num_key_value_heads=1),
    "dynamic": lambda: llama(
        rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    ),
}


@pytest.mark.parametrize("feature", BAD)
def test_what_is_not_supported_is_named(feature: str) -> None:
    with pytest.raises(Unsupported, match=feature):
        GpuLanguageModel(BAD[feature](), team("opencl"))


def test_nothing_is_taken_of_a_model_that_is_refused() -> None:
    ours = GpuLanguageModel(gpt2(), team("teams"))
    layout = ours.layout
    with pytest.raises(Unsupported, match="normalised"):
        ours.refresh(MODELS["qwen3"]())
    assert ours.layout == layout  # by another it would read beyond the weights
