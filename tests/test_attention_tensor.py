"""Attention on tensor cores: the real sources in the emulator, which executes what ldmatrix, mma,
wgmma and cp.async do to the registers and the shared memory of a block, and on a GPU where there is
one."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch
from cuda_emulator import emulated
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from test_attention import make, options_for, results

from community.kernels import attention_gpu
from community.kernels.attention import attention, reference
from community.kernels.build import BuildError

PHASES = [p for p in settings().phases if p != Phase.shrink]  # which would take minutes
HALVES = [torch.bfloat16, torch.float16]
CASES = st.tuples(
    *(st.integers(1, 2), st.just(1), st.integers(1, 2), st.integers(1, 140)),
    *(st.integers(1, 140), st.sampled_from([64, 128])),
)


OLD, HOPPER = (8, 0), (9, 0)
KINDS = {
    "late": (OLD, False),  # what is asynchronous happens as late as it may
    "early": (OLD, True),
    "hopper, late": (HOPPER, False),
    "hopper, early": (HOPPER, True),
    "cuda": (None, False),  # the tensor cores that the GPU has
    "cuda, old": (OLD, False),  # as if it had those of Ampere
}


@pytest.fixture(params=KINDS)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    cores, early = KINDS[request.param]
    if request.param.startswith("cuda"):
        found = torch.device(request.getfixturevalue("gpu"))
        if not attention_gpu.tensor_cores(found):
            pytest.skip("a GPU without such tensor cores")
        if cores:
            monkeypatch.setattr(attention_gpu, "tensor_cores", lambda device: cores)
        yield "cuda"
        return
    try:
        emulated("probe")
    except BuildError as error:
        pytest.skip(str(error))

    used: list[str] = []

    def program(source: str, _device: str, *flags: str) -> Any:
        used.append(source)
        found = emulated(source, *flags)
        found.early, found.seed = early, found.seed + 1
        return found

    monkeypatch.setattr(attention_gpu, "simt", program)
    monkeypatch.setattr(attention_gpu, "tensor_cores", lambda device: cores)
    yield "cpu"
    assert used, "somebody else has computed it"


def compare(sizes: tuple[int, ...], dtype: torch.dtype, device: str, **options: Any) -> None:
    inputs = make(sizes, dtype)
    q, v = (inputs[i].to(device) for i in (0, 2))
    source = {OLD: "attention_tensor", HOPPER: "attention_hopper"}
    cores = attention_gpu.tensor_cores(q.device)
    assert cores and attention_gpu.tiling(q, v, False, False).source == source[cores]
    wide = [x.double() for x in inputs]
    truth = results(reference, wide, torch.float64, **options)
    ours = results(attention, inputs, dtype, device, **options)
    torchs = results(reference, inputs, dtype, **options)
    eps = torch.finfo(dtype).eps
    for n, (a, b, t) in enumerate(zip(ours, torchs, truth, strict=True)):
        if not t.numel():
            continue
        error, usual = float((a - t).abs().max()), float((b - t).abs().max())
        # weights and their gradients are rounded between two products, which torch's are not here;
        # the gradient of the temperature (the last) is a sum over everything, of both signs
        size = float(t.abs().max()) if n < 5 else 2 * (sizes[0] * sizes[3] * sizes[5]) ** 0.5
        assert error <= 2 * usual + eps * max(1.0, size), (n, error, usual, size)


def takes_long(device: str, kind: str) -> bool:
    """Whether the emulator is to do this in `make slow` only: every kind of mask takes 15 to 20 s.
    A GPU does all of them at once."""
    return not device.startswith("cuda") and kind != "plain"


@pytest.mark.parametrize(
    ("device", "kind"),  # when copies come has nothing to do with masks
    [
        pytest.param(device, kind, marks=[pytest.mark.slow] if takes_long(device, kind) else [])
        for device, kind in product(KINDS, ("plain", "lengths", "bool", "added", "rows"))
        if "early" not in device or kind == "plain"
    ],
    indirect=["device"],
)
def test_loses_little_more_than_torch_loses(device: str, kind: str) -> None:
    @settings(max_examples=6, deadline=None, derandomize=True, phases=PHASES)
    @given(CASES, st.booleans(), st.booleans(), st.sampled_from(HALVES))
    def holds(sizes: tuple[int, ...], causal: bool, sink: bool, dtype: torch.dtype) -> None:
        sizes = (*sizes, sizes[-1])
        options = options_for(kind, make(sizes, dtype))
        compare(sizes, dtype, device, causal=causal, sink=sink, **options)

    holds()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("tq", "tk"), [(128, 64), (129, 65), (64, 128), (1, 200), (200, 1), (300, 40)]
)
def test_edges_of_tiles(device: str, tq: int, tk: int, causal: bool) -> None:
    compare((1, 1, 2, tq, tk, 64, 64), torch.bfloat16, device, causal=causal)


def test_scores_that_grow_from_tile_to_tile(device: str) -> None:
    q, k, v, _ = make((1, 1, 2, 70, 400, 64, 64), torch.bfloat16)
    k *= torch.linspace(0, 12, 400).view(-1, 1).bfloat16()
    out, lse = attention(*(x.to(device) for x in (q, k, v)))
    truth, sums = reference(q.double(), k.double(), v.double())
    torch.testing.assert_close(lse.cpu().double(), sums, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(out.cpu().double(), truth, atol=2e-2, rtol=2e-2)


def test_a_query_that_sees_nothing_gives_zeros(device: str) -> None:
    q, k, v = (x.to(device) for x in make((1, 1, 1, 200, 30, 64, 64), torch.bfloat16)[:3])
    out, lse = attention(q, k, v, causal=True)
    assert not out[0, 0, :170].any() and (lse[0, 0, :170] == -torch.inf).all()
    assert out[0, 0, 170:].any() and lse[0, 0, 170:].isfinite().all()


def test_nan_stays_nan(device: str) -> None:
    q, k, v = (x.to(device) for x in make((1, 1, 1, 8, 8, 64, 64), torch.bfloat16)[:3])
    q[0, 0, 3, 2] = torch.nan
    out, lse = attention(q, k, v)
    assert out[0, 0, 3].isnan().all() and lse[0, 0, 3].isnan()
    assert out[0, 0, :3].isfinite().all()


def test_inputs_may_lie_anywhere(device: str) -> None:
    flat = torch.randn(3 * 20 * 64 + 1, dtype=torch.float16).to(device)
    q, k, v = flat[1:].view(3, 1, 1, 20, 64).unbind()
    assert q.data_ptr() % 16 and q.is_contiguous()
    torch.testing.assert_close(attention(q, k, v)[0], reference(q, k, v)[0], atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("width", [24, 96, 256])
def test_other_widths_are_computed_without_tensor_cores(device: str, width: int) -> None:
    q, k, v, _ = make((1, 1, 1, 20, 20, width, width), torch.float16)
    assert attention_gpu.tiling(q.to(device), v.to(device), False, False).source == "attention"
    found, _ = attention(*(x.to(device) for x in (q, k, v)))
    torch.testing.assert_close(found.cpu(), reference(q, k, v)[0], atol=2e-3, rtol=2e-3)
