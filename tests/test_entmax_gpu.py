"""Sparsemax and entmax by entmax.cu: by OpenCL, in the emulator (barriers and shuffles count), and
on a GPU where there is one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from backends import computed_by
from cuda_emulator import emulated
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from test_attention import make, options_for
from test_entmax import ALPHAS, plain, results, weigh

from community.kernels import backend as chosen
from community.kernels import entmax as module
from community.kernels import entmax_gpu
from community.kernels.build import BuildError, simt_program
from community.kernels.entmax import entmax_attention, reference

PHASES = [p for p in settings().phases if p != Phase.shrink]  # which would take minutes
KINDS = ["plain", "lengths", "bool", "added", "rows"]
HEADS = st.tuples(st.integers(1, 2), st.sampled_from([1, 2]), st.sampled_from([1, 3]))
# batch, heads of keys, queries' heads for each; queries, keys; widths, for which PoCL compiles once
SIZES = st.tuples(
    HEADS,
    st.tuples(st.integers(1, 80), st.integers(1, 140)),
    st.tuples(st.sampled_from([1, 8, 24]), st.sampled_from([3, 16, 32])),
).map(lambda parts: sum(parts, ()))


@pytest.fixture(params=[pytest.param("opencl", marks=pytest.mark.slow), "emulator", "cuda"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where tensors are to lie so that entmax.cu computes."""
    used: list[str] = []
    if request.param == "cuda":
        request.getfixturevalue("gpu")
    kinds: dict[str, Callable[..., Any]] = {
        "opencl": lambda source, _, *flags: simt_program(source, flags),
        "emulator": lambda source, _, *flags: emulated(source, *flags),
        "cuda": chosen.simt,
    }
    try:
        if request.param != "cuda":
            kinds[request.param]("probe", "cpu")
    except BuildError as error:
        pytest.skip(str(error))

    def program(source: str, device: str, *flags: str) -> Any:
        used.append(source)
        return kinds[request.param](source, device, *flags)

    # entmax_gpu's own, and that of its tilings
    monkeypatch.setattr(entmax_gpu, "simt", program)
    monkeypatch.setattr("community.kernels.attention_gpu.simt", program)
    yield "cuda" if request.param == "cuda" else "cpu"
    assert used and set(used) == {"entmax"}, "somebody else has computed it"


def compare(
    sizes: tuple[int, ...], dtype: torch.dtype, device: str, kind: str, **options: Any
) -> None:
    """At most twice what plain torch loses, forward and backward."""
    inputs = make(sizes, dtype)
    torch.manual_seed(0)
    options |= options_for(kind, inputs)
    wide = [x.double() for x in inputs]
    truth = results(plain, wide, torch.float64, **options)
    ours = results(entmax_attention, inputs, dtype, device, **options)
    torchs = results(plain, inputs, dtype, **options)
    floor = torch.finfo(dtype).eps * 16
    # the temperature's gradient is a sum of q times q's gradient, terms of both signs
    terms = (wide[0] * truth[1] / wide[3].view(-1, 1, 1)).abs().sum((0, 2, 3))
    for a, b, t, many in zip(
        ours, torchs, truth, [0.0] * 4 + [float(terms.detach().max())], strict=True
    ):
        size = max(1.0, float(t.abs().max()), many / 4)
        assert a.dtype == dtype
        assert float((a - t).abs().max()) <= 2 * float((b - t).abs().max()) + floor * size


@pytest.mark.parametrize("kind", KINDS)
def test_attention_loses_at_most_twice_what_torch_loses(device: str, kind: str) -> None:
    @settings(max_examples=12, deadline=None, derandomize=True, phases=PHASES)
    @given(
        SIZES,
        st.booleans(),
        st.sampled_from(ALPHAS),
        st.sampled_from([torch.float32, torch.bfloat16]),
    )
    def holds(sizes: tuple[int, ...], causal: bool, alpha: float, dtype: torch.dtype) -> None:
        compare(sizes, dtype, device, kind, causal=causal, alpha=alpha)

    holds()


@pytest.mark.parametrize("device", ["emulator", "cuda"], indirect=True)  # PoCL compiles for long
@pytest.mark.parametrize("sizes", [(70, 90, 64, 64), (40, 70, 100, 36), (40, 70, 3, 200)])
def test_wide_heads(sizes: tuple[int, ...], device: str) -> None:
    compare((1, 1, 2, *sizes), torch.float32, device, "lengths", causal=True, alpha=1.5)


def test_widths_that_are_not_for_it(device: str) -> None:
    q, k, v, _ = (x.to(device) for x in make((1, 1, 1, 3, 4, 8, 257)))
    assert entmax_gpu.takes(q, q, None)
    assert not entmax_gpu.takes(q, v, None)
    assert not entmax_gpu.takes(q.double(), q.double(), None)
    assert entmax_attention(q, k, v).isfinite().all()


@pytest.mark.parametrize("alpha", ALPHAS)
def test_rows_lose_at_most_twice_what_torch_loses(device: str, alpha: float) -> None:
    @settings(max_examples=25, deadline=None, derandomize=True, phases=PHASES)
    @given(
        *(st.integers(1, 4), st.integers(1, 160) | st.sampled_from([1100, 8193, 9000])),
        *(st.sampled_from([0.0, 1e-3, 1.0, 30.0]), st.sampled_from([0.0, -1e4, 1e30])),
        st.floats(0, 1),
    )
    def holds(rows: int, n: int, spread: float, add: float, hidden: float) -> None:
        made = torch.Generator().manual_seed(rows * n)
        x = torch.randn(rows, n, generator=made) * spread + add
        x[torch.rand(rows, n, generator=made) < hidden] = -torch.inf
        y, truth = weigh(alpha)(x.to(device)).cpu(), reference(x.double(), alpha)
        lost = float((reference(x, alpha) - truth).abs().max())
        assert float((y - truth).abs().max()) <= 2 * lost + 1e-6
        seen = (x > -torch.inf).any(-1).float()
        torch.testing.assert_close(y.sum(-1), seen, atol=1e-4, rtol=0)

    holds()


def test_rows_are_shared_in_every_way() -> None:
    """By few threads and by many, in registers and read again: the sizes above meet all of it."""
    found = {entmax_gpu._sharing(n)[0] for n in (1, 128, 129, 160, 1100, 8193)}
    wanted = [(32, 4), (32, 8), (256, 8), (512, 0)]
    assert found == {(f"-DTHREADS={t}", f"-DEACH={e}") for t, e in wanted}


@pytest.mark.parametrize("alpha", ALPHAS)
def test_rows_have_gradients(device: str, alpha: float) -> None:
    x = torch.randn(3, 70, generator=torch.Generator().manual_seed(0))
    go = torch.randn(3, 70, generator=torch.Generator().manual_seed(1))
    mine, wide = x.to(device).requires_grad_(), x.double().requires_grad_()
    (found,) = torch.autograd.grad(weigh(alpha)(mine), mine, go.to(device))
    (truth,) = torch.autograd.grad(reference(wide, alpha), wide, go.double())
    torch.testing.assert_close(found.cpu().double(), truth, atol=1e-5, rtol=0)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("n", [70, 9000])
def test_ties_and_numbers_that_are_none(device: str, n: int, alpha: float) -> None:
    x = torch.zeros(6, n)
    x[1, n - 10], x[2, 3], x[3] = torch.nan, torch.inf, -torch.inf
    x[4, ::2], x[5, 5] = -torch.inf, 1e30
    y = weigh(alpha)(x.to(device)).cpu()
    assert y[1:3].isnan().all() and not y[3].any()
    torch.testing.assert_close(y[0], torch.full((n,), 1 / n))
    torch.testing.assert_close(y[4, 1::2], torch.full((n // 2,), 2 / n))
    assert not y[4, ::2].any() and y[5].equal((x[5] > 0).float())


@pytest.mark.parametrize("alpha", ALPHAS)
def test_scores_that_are_none(device: str, alpha: float) -> None:
    """NaN and infinity spoil their query alone, and its gradient."""
    inputs = [x.to(device) for x in make((1, 1, 1, 8, 8, 8, 8))[:3]]
    inputs[0][0, 0, 3, 2] = torch.nan
    leaves = [x.requires_grad_() for x in inputs]
    out = entmax_attention(*leaves, alpha=alpha)
    spoiled = torch.arange(8) == 3
    assert out[0, 0].isnan().all(-1).cpu().equal(spoiled)
    gq, gk, gv = torch.autograd.grad(out.sum(), leaves)
    assert gq[0, 0].isnan().all(-1).cpu().equal(spoiled)
    assert gv.isfinite().all()
    assert gk[0, 0].isfinite().all(0).cpu().equal(torch.arange(8) != 2)  # products with 0 count
    for value, is_nan in ((torch.inf, True), (-torch.inf, False)):
        mask = torch.zeros(8, 8, device=device)
        mask[3, 5] = value
        out = entmax_attention(inputs[1], inputs[1], inputs[2], mask=mask, alpha=alpha)
        assert out[0, 0].isnan().all(-1).cpu().equal(spoiled & is_nan)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_a_query_that_sees_nothing_gives_zeros(device: str, alpha: float) -> None:
    leaves = [x.to(device).requires_grad_() for x in make((1, 1, 1, 75, 3, 8, 8))[:3]]
    out = entmax_attention(*leaves, causal=True, alpha=alpha)
    assert not out[0, 0, :72].any() and out[0, 0, 72:].any(-1).all()
    gq, gk, gv = torch.autograd.grad(out.square().sum(), leaves)
    assert not gq[0, 0, :72].any() and all(g.isfinite().all() for g in (gq, gk, gv))
    hidden = torch.zeros(75, 3, dtype=torch.bool, device=device)
    assert not entmax_attention(*leaves, mask=hidden, alpha=alpha).any()


@pytest.mark.parametrize("alpha", ALPHAS)
def test_equal_keys_share(device: str, alpha: float) -> None:
    """Queries of zeros see all keys alike: the output is the values' mean."""
    q, k, v, _ = (x.to(device) for x in make((1, 1, 1, 5, 130, 8, 8)))
    out = entmax_attention(q * 0, k, v, alpha=alpha)
    torch.testing.assert_close(out, v.mean(2, keepdim=True).expand_as(out))


@pytest.mark.parametrize("slow", [0, 9, 15, 40])
def test_a_block_waits_for_its_slowest_query(device: str, slow: int) -> None:
    """All others see every key alike, and have their thresholds after two passes."""
    q, k, v, one = make((1, 1, 1, 41, 140, 8, 8))
    q[0, 0, torch.arange(41) != slow] = 0
    out = entmax_attention(*(x.to(device) for x in (q, k, v)))
    truth = plain(*(x.double() for x in (q, k, v)), one.double() * 0 + 1, 1.5, causal=False)
    torch.testing.assert_close(out.cpu().double(), truth, atol=1e-5, rtol=0)


def test_it_is_the_same_again(device: str) -> None:
    inputs = make((1, 1, 2, 70, 90, 8, 8))
    options = {"causal": True, "alpha": 1.5}
    first, again = (
        results(entmax_attention, inputs, torch.float32, device, **options) for _ in range(2)
    )
    assert all(a.equal(b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("alpha", ALPHAS)
def test_opcheck(device: str, alpha: float) -> None:
    made = [x.to(device).requires_grad_() for x in make((2, 1, 2, 4, 5, 3, 2))]
    torch.library.opcheck(module._rows, (made[0], alpha))
    mask = torch.randn(1, 1, 4, 5, device=device)
    lengths = torch.tensor([3, 5], dtype=torch.int32, device=device)
    asked = (*made, mask, lengths, True, alpha)
    torch.library.opcheck(module._attention, asked)
    out, t = (x.detach() for x in module._attention(*asked))
    backward = (out, *(x.detach() for x in asked[:6]), True, alpha, t)
    torch.library.opcheck(module._attention_backward, backward)


@pytest.mark.slow
def test_simt_is_a_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """COMMUNITY_KERNELS=simt takes what is public here, and asks nobody else."""
    monkeypatch.delattr(module, "_program")
    with computed_by("simt", "probe"):
        q = make((1, 1, 1, 3, 5, 8, 8))[0].requires_grad_()
        for alpha in ALPHAS:
            out = entmax_attention(q, q, q, alpha=alpha)
            found = [out, weigh(alpha)(q)]
            expected = [plain(q, q, q, torch.ones(1), alpha, causal=False), reference(q, alpha)]
            gradients = [torch.autograd.grad(x[0].sum(), q)[0] for x in (found, expected)]
            for a, b in [*zip(found, expected, strict=True), gradients]:
                torch.testing.assert_close(a, b)
