"""Attention against the reference in float64: in C, in OpenCL, in plain torch, and what is written
for GPUs, which the processor runs by OpenCL ("simt") and by the emulator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from backends import computed_by
from cuda_emulator import emulated
from hypothesis import given, settings
from hypothesis import strategies as st
from sanitizers import assert_clean
from torch import Tensor
from torch.autograd import forward_ad

from community.kernels import attention as module
from community.kernels import attention_gpu, build, entmax
from community.kernels.attention import attention, reference
from community.kernels.build import BuildError
from community.kernels.entmax import entmax_attention

SIZES = st.tuples(
    *(st.integers(1, 3), st.sampled_from([1, 2]), st.sampled_from([1, 3])),
    *(st.integers(1, 6) | st.integers(7, 140), st.integers(1, 300)),
    *(st.sampled_from([1, 8, 24, 64]), st.sampled_from([3, 16, 64])),
)


@pytest.fixture(
    params=["c", "opencl", pytest.param("simt", marks=pytest.mark.slow), "emulator", "cuda"]
)
def compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A backend that is chosen; `device` says where its tensors are to lie."""
    name: str = request.param
    if name == "cuda":
        request.getfixturevalue("gpu")
    if name == "emulator":
        monkeypatch.setattr(
            attention_gpu, "simt", lambda source, _, *flags: emulated(source, *flags)
        )
        try:
            emulated("probe")
        except BuildError as error:
            pytest.skip(str(error))
    source = "probe" if name == "simt" else "attention"
    with computed_by("reference" if name == "emulator" else name, source):
        yield name


@pytest.fixture
def device(compiled: str) -> str:
    return "cuda" if compiled == "cuda" else "cpu"


def gradients(out: Tensor, lse: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    made = torch.Generator().manual_seed(1)
    go = torch.randn(out.shape, generator=made).to(out)
    gl = torch.randn(lse.shape, generator=made).to(lse)
    seen = lse.isfinite()
    return list(torch.autograd.grad([out, lse], leaves, [go, gl * seen]))


def results(
    run: Any, inputs: list[Tensor], dtype: torch.dtype, device: str = "cpu", **options: Any
) -> list[Tensor]:
    leaves = [x.to(device, dtype).requires_grad_() for x in inputs]
    options = {n: x.to(device) if isinstance(x, Tensor) else x for n, x in options.items()}
    out, lse = run(*leaves[:3], temperature=leaves[3], **options)
    seen = lse.isfinite()
    return [x.detach().cpu() for x in (out, lse[seen], *gradients(out, lse, leaves))]


def make(sizes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    b, hk, group, tq, tk, d, dv = sizes
    torch.manual_seed(sum(sizes))
    shapes = [(b, hk * group, tq, d), (b, hk, tk, d), (b, hk, tk, dv)]
    made = [torch.randn(s).to(dtype) for s in shapes]
    return [*made, (torch.rand(hk * group) + 0.5).to(dtype)]


def options_for(kind: str, inputs: list[Tensor]) -> dict[str, Any]:
    (b, h, tq, _), tk = inputs[0].shape, inputs[1].shape[2]
    made: dict[str, dict[str, Any]] = {
        "plain": {},
        "lengths": {"lengths": torch.randint(1, tk + 1, (b,))},
        "bool": {"mask": torch.rand(b, 1, tq, tk) > 0.5},
        "added": {"mask": torch.randn(h, 1, tk)},
        "rows": {"mask": torch.randn(b, 1, tq, 1)},
    }
    return made[kind]


@pytest.mark.parametrize("kind", ["plain", "lengths", "bool", "added", "rows"])
def test_loses_at_most_twice_what_torch_loses(device: str, kind: str) -> None:
    @settings(max_examples=12, deadline=None, derandomize=True)
    @given(SIZES, st.booleans(), st.booleans(), st.sampled_from([torch.float32, torch.bfloat16]))
    def holds(sizes: tuple[int, ...], causal: bool, sink: bool, dtype: torch.dtype) -> None:
        inputs = make(sizes, dtype)
        options = {"causal": causal, "sink": sink, **options_for(kind, inputs)}
        wide = [x.double() for x in inputs]
        truth = results(reference, wide, torch.float64, **options)
        ours = results(attention, inputs, dtype, device, **options)
        torchs = results(reference, inputs, dtype, **options)
        floor = torch.finfo(dtype).eps * 16
        for a, b, t in zip(ours, torchs, truth, strict=True):
            if not t.numel():
                continue
            size = max(1.0, float(t.abs().max()))
            assert float((a - t).abs().max()) <= 2 * float((b - t).abs().max()) + floor * size

    holds()


def test_decoding_reads_bfloat16_as_it_is(compiled: str) -> None:
    @settings(max_examples=30, deadline=None, derandomize=True)
    @given(SIZES, st.booleans(), st.sampled_from([torch.float32, torch.bfloat16]))
    def holds(sizes: tuple[int, ...], causal: bool, dtype: torch.dtype) -> None:
        q, k, v, t = make((*sizes[:3], 1 + sizes[3] % 5, *sizes[4:]), dtype)
        given = {"causal": causal, "temperature": t, "sink": True}
        given["lengths"] = torch.randint(1, k.shape[2] + 1, (len(q),))
        truth = reference(q.double(), k.double(), v.double(), **given)
        for a, b, c in zip(
            attention(q, k, v, **given), reference(q, k, v, **given), truth, strict=True
        ):
            seen = c.isfinite()
            assert a.dtype == b.dtype and torch.equal(a.isfinite(), seen)
            if seen.any():
                lost = float((b - c)[seen].abs().max())
                floor = torch.finfo(a.dtype).eps * 8 * max(1.0, float(c[seen].abs().max()))
                assert float((a - c)[seen].abs().max()) <= 2 * lost + floor

    holds()


def test_gradcheck() -> None:
    inputs = [x.double().requires_grad_() for x in make((2, 1, 2, 4, 5, 3, 2))]
    for run in (attention, reference):
        for sink in (False, True):
            torch.autograd.gradcheck(
                lambda q, k, v, t, run=run, sink=sink: run(
                    q, k, v, temperature=t, sink=sink, causal=True
                ),
                inputs,
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_opcheck(dtype: torch.dtype) -> None:
    *inputs, t = make((2, 1, 2, 7, 9, 8, 8))
    q, k, v = (x.to(dtype).requires_grad_() for x in inputs)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    t, mask = t.to(wide).requires_grad_(), torch.randn(1, 1, 7, 9, dtype=wide)
    lengths = torch.tensor([3, 9], dtype=torch.int32)
    torch.library.opcheck(module._attention, (q, k, v, t, mask, lengths, True))


def test_the_two_identities() -> None:
    q, k, v, t = (x.requires_grad_() for x in make((2, 2, 1, 20, 30, 16, 16)))
    out, lse = attention(q, k, v, temperature=t)
    sunk, same = attention(q, k, v, temperature=t, sink=True)
    assert lse.equal(same)
    torch.testing.assert_close(sunk, out * torch.sigmoid(lse).unsqueeze(-1))
    gq, gt = torch.autograd.grad(out.square().sum(), [q, t])
    torch.testing.assert_close(gt, -(q * gq).sum((0, 2, 3)) / t, atol=1e-4, rtol=1e-4)


def test_the_default_is_sdpa() -> None:
    q, k, v, _ = make((2, 2, 2, 33, 33, 64, 64))
    for causal in (False, True):
        theirs = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=causal, enable_gqa=True
        )
        torch.testing.assert_close(attention(q, k, v, causal=causal)[0], theirs)


def test_a_query_that_sees_nothing_gives_zeros(device: str) -> None:
    q, k, v = (x.to(device) for x in make((1, 1, 1, 5, 3, 8, 8))[:3])
    out, lse = attention(q, k, v, causal=True)
    assert not out[0, 0, :2].any() and (lse[0, 0, :2] == -torch.inf).all()
    assert out[0, 0, 2:].any() and lse[0, 0, 2:].isfinite().all()


def test_a_mask_that_learns() -> None:
    q, k, v, _ = make((1, 1, 2, 5, 6, 8, 8))
    bias = torch.randn(1, 2, 5, 6, requires_grad=True)
    attention(q, k, v, mask=bias)[0].square().sum().backward()
    assert bias.grad is not None and bias.grad.any()


def test_lengths_may_be_every_second_number(device: str) -> None:
    q, k, v = (x.to(device) for x in make((2, 1, 1, 5, 6, 8, 8))[:3])
    lengths = torch.tensor([2, 6, 5, 1], dtype=torch.int32, device=device)
    found, _ = attention(q, k, v, lengths=lengths[::2])
    torch.testing.assert_close(found, reference(q, k, v, lengths=lengths[::2])[0])


def test_nan_stays_nan(device: str) -> None:
    q, k, v = (x.to(device) for x in make((1, 1, 1, 8, 8, 8, 8))[:3])
    q[0, 0, 3, 2] = torch.nan
    for run in (attention, reference):
        out, lse = run(q, k, v)
        assert out[0, 0, 3].isnan().all() and lse[0, 0, 3].isnan()
        assert out[0, 0, :3].isfinite().all()


X = torch.randn(2, 4, 6, 8)
BAD: dict[str, tuple[tuple[Tensor, Tensor, Tensor], dict[str, Any]]] = {
    "must be \\(batch": ((X[0], X, X), {}),
    "fit together": ((X, X[..., :4], X), {}),
    "share": ((X, X[:, :3], X[:, :3]), {}),
    "one floating dtype": ((X, X.double(), X), {}),
    "on cpu, meta": ((X, X.to("meta"), X), {}),
    "at least one": ((X, X[:, :, :0], X[:, :, :0]), {}),
    "positive and finite": ((X, X, X), {"temperature": torch.tensor(torch.nan)}),
    "must be positive": ((X, X, X), {"temperature": 0.0}),
    "between 1e-30": ((X, X, X), {"temperature": 1e-40}),
    "and 1e30": ((X, X, X), {"temperature": torch.tensor([1.0, 1e31, 1.0, 1.0])}),
    "shape \\(3,\\)": ((X, X, X), {"temperature": torch.ones(3)}),
    "scale": ((X, X, X), {"scale": -1.0}),
    "between 1 and 6": ((X, X, X), {"lengths": torch.tensor([0, 3])}),
    "2 whole numbers": ((X, X, X), {"lengths": torch.tensor([1])}),
    "broadcast": ((X, X, X), {"mask": torch.ones(5, 6)}),
    "bool or": ((X, X, X), {"mask": torch.ones(6, 6, dtype=torch.int64)}),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message: str) -> None:
    inputs, options = BAD[message]
    for run in (attention, reference):
        with pytest.raises(ValueError, match=message):
            run(*inputs, **options)


@pytest.mark.parametrize("operation", [attention, entmax_attention])
def test_bad_numbers_in_a_compiled_model(operation: Any) -> None:
    """While a model is traced there are no numbers to look at; those that come later are."""

    def asked(x: Tensor, lengths: Tensor, temperature: Tensor) -> Any:
        return operation(x, x, x, lengths=lengths, temperature=temperature)

    x, one = torch.randn(2, 2, 6, 8), torch.ones(2)
    compiled = torch.compile(asked, backend="aot_eager", fullgraph=True)
    good = (x, torch.tensor([3, 6]), one)
    for a, b in zip(compiled(*good), asked(*good), strict=True):
        assert torch.equal(a, b)
    for lengths in ([0, 6], [3, 7], [3, 10**6], [-3, 6]):
        with pytest.raises(ValueError, match="between 1 and 6"):
            compiled(x, torch.tensor(lengths), one)
    for temperature in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="positive and finite"):
            compiled(x, torch.tensor([3, 6]), torch.tensor([1.0, temperature]))


class Asks(torch.nn.Module):
    """A model whose numbers torch.compile takes for sizes that may change."""

    def __init__(self) -> None:
        super().__init__()
        self.options = {"temperature": 0.7, "scale": 0.3}

    def forward(self, x: Tensor) -> Tensor:
        return attention(x, x, x, **self.options)[0]


def test_traced_as_an_operation() -> None:
    q, k, v = (torch.randn(1, 2, 5, 8) for _ in range(3))
    ours = torch.jit.trace(lambda *x: attention(*x, causal=True)[0], (q, k, v))  # type: ignore[no-untyped-call]
    torch.testing.assert_close(ours(v, q, k), attention(v, q, k, causal=True)[0])


def test_compiled_for_any_sizes() -> None:
    model = Asks()
    compiled = torch.compile(model, backend="aot_eager", dynamic=True, fullgraph=True)
    for length in (5, 9):
        x = torch.randn(1, 2, length, 8)
        torch.testing.assert_close(compiled(x), model(x))
    model.options["temperature"] = -1.0
    with pytest.raises(ValueError, match="positive and finite"):
        model(x)


@pytest.mark.parametrize("operation", [attention, reference, entmax_attention])
@pytest.mark.parametrize("backend", ["c", "reference"])
def test_autocast_changes_nothing(
    backend: str, operation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend == "reference":
        for owner in (module.attention_cpu, entmax):
            monkeypatch.setattr(owner, "kernels", lambda name: None)
    q, k, v = make((1, 2, 2, 9, 9, 16, 16))[:3]
    for mask in (None, torch.zeros(9, 9, requires_grad=True)):
        expected = operation(q=q, k=k, v=v, mask=mask)
        with torch.autocast("cpu", torch.bfloat16):
            found = operation(q=q, k=k, v=v, mask=mask)
        for a, b in zip(found, expected, strict=True):
            assert a.dtype == torch.float32 and torch.equal(a, b)


def test_derivatives_forward_are_refused(device: str) -> None:
    """Not taken for zero."""
    q, k, v = (x.to(device) for x in make((1, 2, 2, 9, 9, 16, 16))[:3])
    with forward_ad.dual_level(), pytest.raises(NotImplementedError):
        attention(forward_ad.make_dual(q, torch.ones_like(q)), k, v)


@pytest.mark.parametrize("hiding", [torch.finfo(torch.float32).min, -1e30, -1e16, -1e9, -3e4])
def test_a_query_whose_keys_are_all_hidden_by_a_number(compiled: str, hiding: float) -> None:
    """They are averaged, as by torch, and so are their gradients."""
    if compiled not in ("c", "opencl"):
        pytest.skip("a look at a GPU's numbers would wait")
    inputs = make((1, 2, 2, 40, 40, 16, 16))
    mask = torch.zeros(40, 40)
    mask[1], mask[2, 5:] = hiding, hiding
    found = results(attention, inputs, torch.float32, mask=mask)
    expected = results(reference, inputs, torch.float32, mask=mask)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() < 4e-3 * b.abs().max()  # at -3e4 scores are rounded to 2e-3


SANITIZED = """
from community.kernels import build
build._processor = lambda: "PROCESSOR"
import test_attention as t
from community.kernels import attention_cpu
program = CProgram("attention", flags)
attention_cpu.kernels = lambda name: program
for sizes in ((1, 1, 1, 1, 1, 1, 3), (2, 2, 3, 33, 300, 24, 16), (1, 2, 1, 3, 70, 64, 64)):
    inputs = t.make(sizes)
    for kind in ("plain", "lengths", "bool", "added", "rows"):
        for causal in (False, True):
            options = {"causal": causal, "sink": causal, **t.options_for(kind, inputs)}
            t.results(t.attention, inputs, torch.float32, **options)
            halves = [x.bfloat16() for x in inputs[:3]]
            t.attention(*halves, **options)
    for hiding in (-250.0, -1e30):
        mask = torch.zeros(sizes[3], sizes[4])
        mask[:, sizes[4] // 2 :] = hiding
        t.results(t.attention, inputs, torch.float32, mask=mask)
"""


@pytest.mark.slow
@pytest.mark.parametrize("lanes", sorted({8, build.lanes()}))
def test_no_byte_out_of_place(lanes: int) -> None:
    assert_clean(SANITIZED.replace("PROCESSOR", "avx512f" if lanes == 16 else "narrow"))
