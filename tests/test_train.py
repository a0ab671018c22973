"""Training in C and OpenCL: losses, gradients and steps are torch's, up to rounding."""

from __future__ import annotations

import copy
import random
from functools import partial
from typing import Any

import pytest
import torch
from backends import compiled
from hypothesis import given, settings
from hypothesis import strategies as st
from sanitizers import assert_clean
from test_gpt import NEOX, WORDS, gpt2, llama
from torch import Tensor, nn
from transformers import GPTNeoXForCausalLM, PreTrainedModel

from community.agents.muon import Muon
from community.kernels import build, train
from community.kernels.train import Trainer
from community.kernels.weights import Unsupported

STILL: dict[str, Any] = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
RELU: dict[str, Any] = {"activation_function": "relu", "n_inner": 30, "n_embd": 64, "n_head": 1}
MODELS = {
    "gpt2": lambda: gpt2(**STILL),
    "gpt2-relu": lambda: gpt2(**STILL, **RELU, n_layer=3),
    "gpt2-untied": lambda: gpt2(**STILL, tie_word_embeddings=False, n_layer=1),
    "gpt2-unscaled": lambda: gpt2(**STILL, scale_attn_weights=False, activation_function="silu"),
    "llama": llama,
    "llama-tied": lambda: llama(tie_word_embeddings=True, num_key_value_heads=1),
    "llama-biases": lambda: llama(attention_bias=True, mlp_bias=True, num_key_value_heads=4),
    "llama-wide-heads": lambda: llama(head_dim=72, num_attention_heads=2),
}
Row = tuple[list[int], int]
program = partial(compiled, "train")


@pytest.fixture(params=["c", "opencl"])
def backend(request: pytest.FixtureRequest) -> str:
    program(request.param)
    return str(request.param)


def any_program() -> build.Program:
    return program("c" if build.compiler() else "opencl")


def examples(
    count: int = 30, longest: int = 40, words: int = WORDS
) -> tuple[list[Row], list[list[int]]]:
    """Rows of 1 to `longest` tokens, some with nothing to learn, and restarting positions."""
    rng = random.Random(1)
    lengths = [rng.randint(1, longest) for _ in range(count)] + [longest]
    rows = [([rng.randrange(words) for _ in range(n)], rng.randint(1, n)) for n in lengths]
    rows[-1] = (rows[-1][0], 1)
    return rows, [[i % 7 + i // 20 for i in range(n)] for n in lengths]


def cross_entropy(
    model: nn.Module, rows: list[Row], positions: list[list[int]] | None, offsets: list[int]
) -> Tensor:
    """As torch computes it: padded rows, the tokens that are given have the label -100."""
    n = max(len(row) for row, _ in rows)
    tokens = torch.tensor([row + [0] * (n - len(row)) for row, _ in rows])
    labels = [[-100] * start + row[start:] + [-100] * (n - len(row)) for row, start in rows]
    places = positions or [[*range(len(row))] for row, _ in rows]
    where = [
        [p + o for p in place] + [0] * (n - len(place))
        for place, o in zip(places, offsets, strict=True)
    ]
    logits = model(
        input_ids=tokens,
        position_ids=torch.tensor(where),
        attention_mask=torch.ones_like(tokens),
        use_cache=False,
    ).logits
    return nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), torch.tensor(labels)[:, 1:].flatten()
    )


def gradients(model: PreTrainedModel, dtype: torch.dtype, *batch: Any) -> tuple[Tensor, Any]:
    """The loss and parameter -> gradient, in float64."""
    model = copy.deepcopy(model).to(dtype)  # type: ignore[arg-type]
    loss = cross_entropy(model, *batch)
    loss.backward()
    found = {n: p.grad.double() for n, p in model.named_parameters() if p.grad is not None}
    return loss.detach().double(), found


def error(found: dict[str, Tensor], truth: dict[str, Tensor]) -> float:
    """The largest difference, relative to the largest number of a parameter, or to a hundredth of
    the largest of all: a query with one key has no gradient but for the rounding of others."""
    assert found.keys() == truth.keys()
    high = {n: float(t.abs().max()) for n, t in truth.items()}
    least = max(1e-3, max(high.values()) / 100)
    return max(
        float((found[n].double() - t).abs().max()) / max(high[n], least) for n, t in truth.items()
    )


def batch(count: int = 25) -> tuple[list[int], list[int]]:
    """Which rows, some twice, and offsets of their positions."""
    rng = random.Random(2)
    picked = [rng.randrange(30) for _ in range(count)] + [30]
    return picked, [rng.randrange(9) for _ in picked]


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_those_of_torch(name: str, backend: str) -> None:
    model, (rows, positions), (picked, offsets) = MODELS[name](), examples(), batch()
    trainer = Trainer(model, program(backend), rows, positions)
    loss = trainer.gradients(picked, offsets)
    given_ = ([rows[i] for i in picked], [positions[i] for i in picked], offsets)
    truth_loss, truth = gradients(model, torch.float64, *given_)
    torch_loss, torchs = gradients(model, torch.float32, *given_)
    assert abs(loss - truth_loss) <= 2 * abs(torch_loss - truth_loss) + 1e-6 * truth_loss
    ours = trainer.named(trainer.gradient)
    assert error(ours, truth) <= 2 * error(torchs, truth) + 1e-6


@pytest.mark.parametrize("muon", [False, True], ids=["adamw", "muon"])
@pytest.mark.parametrize("name", ["gpt2", "gpt2-relu", "llama", "llama-biases"])
def test_ten_steps_follow_torch(name: str, muon: bool, backend: str) -> None:
    model, (rows, positions) = MODELS[name](), examples()
    inner = {n for n, p in model.named_parameters() if p.ndim == 2 and (".h." in n or "rs." in n)}
    hidden = inner if muon else set()
    decay, clip = 0.1, 0.5
    trainer = Trainer(
        model, program(backend), rows, positions, muon=hidden, clip=clip, weight_decay=decay
    )
    rng = random.Random(3)
    steps = [
        ([rng.randrange(31) for _ in range(8)] + [30], [rng.randrange(9) for _ in range(9)])
        for _ in range(10)
    ]
    found = [trainer.step(*step, 1e-3 / (n + 1), 2e-3) for n, step in enumerate(steps)]
    trainer.write(model)
    both = []
    for dtype in (torch.float64, torch.float32):
        other = MODELS[name]().to(dtype)
        rest = [p for n, p in other.named_parameters() if n not in hidden]
        adam = torch.optim.AdamW(rest, lr=1e-3, betas=(0.9, 0.95), weight_decay=decay)
        optimizers: list[torch.optim.Optimizer] = [adam]
        if hidden:
            matrices = [p for n, p in other.named_parameters() if n in hidden]
            optimizers.append(Muon(matrices, lr=2e-3, weight_decay=decay))
        losses = []
        for n, (picked, offsets) in enumerate(steps):
            adam.param_groups[0]["lr"] = 1e-3 / (n + 1)
            inputs = [rows[i] for i in picked], [positions[i] for i in picked], offsets
            loss = cross_entropy(other, *inputs)
            loss.backward()
            nn.utils.clip_grad_norm_(other.parameters(), clip)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            losses.append(float(loss.detach()))
        both.append((losses, dict(other.named_parameters())))
    (losses, truth), (_, torchs) = both
    assert found == pytest.approx(losses, rel=2e-5)
    ours = dict(model.named_parameters())
    for n, t in truth.items():
        if n.endswith("k_proj.bias"):
            continue  # its gradient is zero but for rounding, which AdamW makes a whole step
        parts = (slice(0, None),)
        if n.endswith("c_attn.bias"):  # as are the middle third of these
            third = len(t) // 3
            parts = (slice(0, third), slice(2 * third, None))
        for part in parts:
            lost = (torchs[n].double() - t)[part].norm() / t[part].norm()
            assert (ours[n].double() - t)[part].norm() / t[part].norm() <= 2 * lost + 1e-5, n


@pytest.mark.parametrize("longest", [98, 130])
def test_more_tokens_than_a_block_of_queries(longest: int, backend: str) -> None:
    model = llama(vocab_size=2, hidden_size=2, head_dim=2, num_attention_heads=2, eos_token_id=1)
    rows, _ = examples(4, longest, 2)
    trainer, offsets = Trainer(model, program(backend), rows), [0, 1, 2, 3, 4]
    trainer.gradients([*range(5)], offsets)
    truth, torchs = (
        gradients(model, dtype, rows, None, offsets)[1] for dtype in (torch.float64, torch.float32)
    )
    assert error(trainer.named(trainer.gradient), truth) <= 3 * error(torchs, truth) + 1e-5


@settings(max_examples=15, deadline=None)
@given(
    groups=st.integers(1, 3),
    per=st.integers(1, 2),
    half=st.integers(1, 20),
    width=st.integers(4, 40),  # one or two numbers, normalised, are 1: a gradient of rounding alone
    hidden=st.integers(1, 70),
    words=st.integers(2, 70),
    longest=st.integers(2, 140),
    learned=st.booleans(),
)
def test_any_shape(
    groups: int,
    per: int,
    half: int,
    width: int,
    hidden: int,
    words: int,
    longest: int,
    learned: bool,
) -> None:
    common: dict[str, Any] = {"vocab_size": words, "pad_token_id": None, "eos_token_id": 1}
    if learned:
        shape = {"n_embd": width * groups, "n_head": groups, "n_inner": hidden, "n_positions": 200}
        model = gpt2(**STILL, **shape, **common)
    else:
        model = llama(
            **common,
            hidden_size=width * per * groups,
            head_dim=2 * half,
            num_attention_heads=per * groups,
            num_key_value_heads=groups,
            intermediate_size=hidden,
        )
    rows, _ = examples(4, longest, words)
    trainer = Trainer(model, any_program(), rows)
    offsets = [0, 1, 2, 3, 4]
    loss = trainer.gradients([*range(5)], offsets)
    truth_loss, truth = gradients(model, torch.float64, rows, None, offsets)
    _, torchs = gradients(model, torch.float32, rows, None, offsets)
    assert loss == pytest.approx(float(truth_loss), rel=1e-5, abs=1e-6)
    assert error(trainer.named(trainer.gradient), truth) <= 3 * error(torchs, truth) + 1e-4


def trained(backend: str, name: str, **options: Any) -> dict[str, Tensor]:
    model, (rows, positions), (picked, offsets) = MODELS[name](), examples(), batch()
    hidden = [n for n, p in model.named_parameters() if p.ndim == 2 and "0." in n]
    trainer = Trainer(model, program(backend), rows, positions, muon=hidden, **options)
    for _ in range(3):
        trainer.step(picked, offsets, 1e-3, 1e-3)
    return trainer.named(trainer.weights)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_same_steps_give_the_same_bits(name: str, backend: str) -> None:
    one, two = trained(backend, name), trained(backend, name)
    assert all(torch.equal(one[n], two[n]) for n in one)


def test_blocks_do_not_show(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, (rows, positions), step = MODELS["llama"](), examples(), batch()
    whole = Trainer(model, program(backend), rows, positions)
    monkeypatch.setattr(train, "ROWS", 1)
    single = Trainer(model, program(backend), rows, positions)
    assert whole.gradients(*step) == pytest.approx(single.gradients(*step), rel=1e-6)
    truth = {n: g.double() for n, g in whole.named(whole.gradient).items()}
    assert error(single.named(single.gradient), truth) < 1e-5


def test_weights_are_given_back() -> None:
    for make in MODELS.values():
        model = make()
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        trainer = Trainer(model, any_program(), *examples())
        trainer.write(model)
        assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
        trainer.step(*batch(), 1e-3)
        assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
        trainer.write(model)
        assert all(not torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_steps_lower_the_loss(backend: str) -> None:
    rows, positions = examples(8, 12)
    trainer = Trainer(MODELS["gpt2"](), program(backend), rows, positions)
    losses = [trainer.step([*range(9)], [0] * 9, 3e-3) for _ in range(40)]
    assert losses[-1] < losses[0] / 3


@pytest.mark.parametrize(("made", "set_later"), [(None, 5), (5, None), (5, 9), (-1, -1)], ids=str)
def test_a_padding_word_that_the_embedding_does_not_know_learns(
    made: int | None, set_later: int | None
) -> None:
    model, (rows, _), (picked, offsets) = llama(pad_token_id=made), examples(), batch()
    model.config.pad_token_id = set_later
    trainer = Trainer(model, any_program(), rows)
    trainer.gradients(picked, offsets)
    _, truth = gradients(model, torch.float64, [rows[i] for i in picked], None, offsets)
    assert error(trainer.named(trainer.gradient), truth) < 1e-3


def frozen() -> PreTrainedModel:
    model = llama()
    model.get_input_embeddings().weight.requires_grad_(False)  # type: ignore[union-attr]
    return model


def repeated() -> PreTrainedModel:
    model = llama()
    model.model.layers[1] = model.model.layers[0]
    return model


def shorter() -> PreTrainedModel:
    model = llama()
    model.model.layers = model.model.layers[:1]
    return model


def wider() -> PreTrainedModel:
    model = llama()
    model.set_input_embeddings(nn.Embedding(WORDS + 5, 48))
    return model


@pytest.mark.parametrize(
    ("make", "feature"),
    [
        (lambda: GPTNeoXForCausalLM(NEOX), "GPTNeoXForCausalLM"),
        (lambda: gpt2(**STILL, activation_function="gelu"), "activation gelu"),
        (lambda: gpt2(), "dropout"),
        (lambda: llama(attention_dropout=0.1), "dropout"),
        (lambda: gpt2(**STILL, add_cross_attention=True), "cross attention"),
        (lambda: gpt2(**STILL, scale_attn_by_inverse_layer_idx=True), "inverse_layer"),
        (lambda: llama(attn_implementation="community"), "attention community"),
        (lambda: llama().double(), "float32"),
        (lambda: llama(is_causal=False), "is_causal=False"),
        (frozen, "trainable"),
        (repeated, "model.layers.1.input_layernorm.weight is another parameter too"),
        (shorter, "without model.layers.1.input_layernorm.weight"),
        (wider, "model.embed_tokens.weight of shape"),
        (
            lambda: llama(
                rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
            ),
            "dynamic",
        ),
    ],
)
def test_what_is_not_supported_is_named(make: Any, feature: str) -> None:
    with pytest.raises(Unsupported, match=feature):
        Trainer(make(), any_program(), *examples())


BAD: dict[str, dict[str, Any]] = {
    "empty row": {"rows": [([], 1)]},
    "learned from the start": {"rows": [([3, 4], 0)]},
    "learned beyond the end": {"rows": [([3, 4], 3)]},
    "token": {"rows": [([3, WORDS], 1)]},
    "negative token": {"rows": [([3, -100], 1)]},
    "positions of another length": {"positions": [[0]]},
    "fewer positions": {"rows": [([3, 4], 1)] * 2, "positions": [[0, 1]]},
    "negative position": {"positions": [[0, -1]]},
    "position beyond the table": {"positions": [[0, 64]]},
    "offset beyond the table": {"offsets": [63]},
    "offset before the table": {"offsets": [-1]},
    "offsets": {"offsets": [0, 0]},
    "no rows": {"picked": [], "offsets": []},
    "row": {"picked": [1]},
    "negative row": {"picked": [-1]},
    "nothing to learn": {"rows": [([3, 4], 2)]},
    "rate": {"rate": float("nan")},
    "infinite rate": {"rate": float("inf")},
    "rate of muon": {"muon_rate": -1.0},
    "clip": {"clip": 0.0},
    "clip nan": {"clip": float("nan")},
    "weight decay": {"weight_decay": float("inf")},
    "vector for muon": {"muon": ["transformer.ln_f.weight"]},
    "unknown for muon": {"muon": ["transformer.h.9.mlp"]},
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_trained_is_refused(name: str) -> None:
    asked: dict[str, Any] = {"rows": [([3, 4], 1)], "positions": [[0, 1]]}
    asked |= {"picked": [0], "offsets": [0], "rate": 1e-3, "muon_rate": 0.0} | BAD[name]
    step = [asked.pop(key) for key in ("picked", "offsets", "rate", "muon_rate")]
    if "rows" in BAD[name] and "positions" not in BAD[name]:
        asked["positions"] = None
    with pytest.raises(ValueError):
        Trainer(MODELS["gpt2"](), any_program(), **asked).step(*step)


def test_rotary_positions_end_far_away() -> None:
    trainer = Trainer(MODELS["llama"](), any_program(), [([3, 4], 1)])
    assert trainer.gradients([0], [5000]) == pytest.approx(trainer.gradients([0], [0]), rel=1e-4)
    with pytest.raises(ValueError, match="positions"):
        trainer.gradients([0], [train.FAR])


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), 1e30])
def test_broken_weights_do_no_harm(weight: float, backend: str) -> None:
    model = MODELS["gpt2"]()
    with torch.no_grad():
        model.transformer.wte.weight[:] = weight
    hidden = ["transformer.h.0.mlp.c_fc.weight"]
    trainer = Trainer(model, program(backend), *examples(), muon=hidden)
    for _ in range(2):
        trainer.step(*batch(), 1e-3, 1e-3)


SANITIZED = """
import test_train as t
program = CProgram("train", flags)
for make in t.MODELS.values():
    for rows in (1, 128):
        t.train.ROWS = rows
        model = make()
        hidden = [n for n, p in model.named_parameters() if p.ndim == 2]
        for names in ((), hidden):
            trainer = t.Trainer(model, program, *t.examples(), muon=names)
            for _ in range(2):
                trainer.step(*t.batch(), 1e-3, 1e-3)
"""


@pytest.mark.slow
def test_no_byte_out_of_place() -> None:
    assert_clean(SANITIZED)
