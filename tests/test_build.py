"""Building kernels: the cache, many builders at once, and whatever may be missing."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from test_gpt import llama
from torch import Tensor, nn

from community.errors import CommunityError
from community.kernels import backend as chosen
from community.kernels import build
from community.kernels.attention import attention
from community.kernels.dispatch import combine, dispatch
from community.kernels.entmax import entmax_attention
from community.kernels.gpt import LanguageModel
from community.kernels.lossless import compress, decompress
from community.kernels.routing import route
from community.kernels.train import Trainer

SCALE = """
import torch
from community.kernels.build import program
x, y = torch.arange(5.0), torch.zeros(5)
program("probe", "c")("scale", x, y, 2.0, items=5)
assert y.tolist() == [0, 2, 4, 6, 8]
"""

CALL = """
import torch
from community.kernels.attention import attention
attention(*torch.randn(3, 1, 1, 2, 4))
"""

THREADS = """
import sys, threading, torch
from community.kernels.attention import attention
from community.kernels.entmax import entmax15
sys.setswitchinterval(1e-6)
same = []
def work(n):
    x, y = torch.randn(1, 2, 5 + 7 * n, 16), torch.randn(4 + n, 20 + n)
    found = [(attention(x, x, x)[0], entmax15(y)) for _ in range(500)]
    same.extend(all(map(torch.equal, each, found[0])) for each in found)
threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert len(same) == 2000 and all(same)
"""

needs_compiler = pytest.mark.skipif(build.compiler() is None, reason="no C compiler")


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Every test chooses anew."""
    caches = (
        build.program,
        build.warn_once,
        build._version,
        chosen.backend,
        chosen.kernels,
        chosen.simt,
    )
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


def scale(backend: str) -> list[float]:
    x, y = torch.arange(20.0), torch.zeros(20)
    build.program("probe", backend)("scale", x, y, 0.5, items=20)
    return y.tolist()


@needs_compiler
def test_c(cache: Path) -> None:
    assert scale("c") == [i / 2 for i in range(20)]
    assert len(list((cache / "kernels").glob("probe-*.so"))) == 1


def test_opencl() -> None:
    pytest.importorskip("pyopencl")
    try:
        assert scale("opencl") == [i / 2 for i in range(20)]
    except build.BuildError as error:
        pytest.skip(str(error))


def test_threads_share_a_kernel() -> None:
    pytest.importorskip("pyopencl")
    try:
        build.program("probe", "opencl")
    except build.BuildError as error:
        pytest.skip(str(error))
    given = os.environ | {"COMMUNITY_KERNELS": "opencl"}
    subprocess.run([sys.executable, "-c", THREADS], check=True, env=given)


def test_a_driver_that_cannot_link_is_no_end_of_the_process(tmp_path: Path) -> None:
    """PoCL aborts at the first call where there is no `ld`."""
    pytest.importorskip("pyopencl")
    try:
        build.program("probe", "opencl")
    except build.BuildError as error:
        pytest.skip(str(error))
    given = {"PATH": str(tmp_path), "COMMUNITY_KERNELS": "opencl", "POCL_CACHE_DIR": str(tmp_path)}
    code = f"from community.kernels.backend import backend; print(*backend())\n{CALL}"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | given, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("opencl") or "ld" in done.stdout


@pytest.mark.slow
@needs_compiler
def test_ten_build_at_once(cache: Path) -> None:
    started = [subprocess.Popen([sys.executable, "-c", SCALE]) for _ in range(10)]
    assert [p.wait(timeout=240) for p in started] == [0] * 10
    assert len(list((cache / "kernels").glob("*.so"))) == 1
    assert not list((cache / "kernels").glob(".*"))


@pytest.mark.parametrize("place", ["file/below", 300 * "x"], ids=["written", "looked into"])
@needs_compiler
def test_a_cache_that_cannot_be_written_costs_one_warning(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("COMMUNITY_CACHE", str(tmp_path / place))
    with pytest.warns(RuntimeWarning, match="built anew"):
        assert scale("c")[3] == 1.5


@needs_compiler
def test_a_library_that_does_not_load_falls_back_with_one_warning(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from a folder of which nothing may be executed."""
    monkeypatch.setenv("COMMUNITY_KERNELS", "c")
    build.compiled("probe").write_bytes(b"")
    with pytest.warns(RuntimeWarning, match="probe does not load"):
        assert chosen.backend("cpu")[0] == "reference"


def test_a_failing_compiler_falls_back_with_one_warning(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho this compiler is broken >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    monkeypatch.setenv("COMMUNITY_KERNELS", "c")
    with pytest.warns(RuntimeWarning, match="this compiler is broken") as caught:
        assert chosen.backend("cpu")[0] == "reference"
        assert chosen.kernels("probe") is None
    assert len(caught) == 1


@needs_compiler
def test_flags_after_the_compiler(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", f"{(build.compiler() or ('',))[0]} -DLATER")
    assert scale("c")[3] == 1.5
    assert (build.compiler() or ())[1:] == ("-DLATER",)


def test_a_compiler_that_makes_nothing(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "idle").write_text("#!/bin/sh\n")
    (tmp_path / "idle").chmod(0o755)
    monkeypatch.setenv("CC", str(tmp_path / "idle"))
    with pytest.raises(
        build.BuildError, match=r"idle does not compile probe\.c: no library came of it"
    ):
        build.compiled("probe")


def test_no_compiler_is_no_error(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.delenv("COMMUNITY_KERNELS", raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        name, why = chosen.backend("cpu")
    assert name == "opencl" or (name == "reference" and "no C compiler" in why)
    with pytest.raises(build.BuildError, match="no-such-compiler"):
        build.compiled("probe")


def test_the_reference_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMMUNITY_KERNELS", "reference")
    assert chosen.backend("cpu") == ("reference", "COMMUNITY_KERNELS=reference")
    assert chosen.kernels("probe") is None


def test_an_unknown_backend_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMMUNITY_KERNELS", "opencll")
    with pytest.raises(CommunityError, match="did you mean 'opencl'"):
        chosen.backend("cpu")


@needs_compiler
def test_another_source_is_another_build(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build.compiled("probe")
    assert build.compiled("probe") == first
    assert build.compiled("probe", ("-DOTHER",)) != first
    assert os.access(first, os.R_OK)


def everything(model: nn.Module) -> list[Tensor]:
    """Numbers of every operation that makes memory of its own, with gradients."""
    made = torch.Generator("cpu").manual_seed(0)

    def given(*shape: int) -> Tensor:
        return torch.randn(shape, generator=made, dtype=torch.float32, device="cpu")

    q, k, v = (given(2, 4, 17, 24).requires_grad_() for _ in range(3))
    temperature = (given(4).abs() + 0.5).requires_grad_()
    out, lse = attention(q, k, v, temperature=temperature, causal=True)
    sparse = entmax_attention(q, k, v, temperature=temperature)
    rows, logits = given(9, 16).requires_grad_(), given(9, 4).requires_grad_()
    routed = route(logits, 2)
    moved = combine(dispatch(rows, routed), routed)
    total = sum(x.square().sum() for x in (out, lse, sparse, moved))
    found = [out, lse, sparse, moved]
    found += torch.autograd.grad(total, (q, k, v, temperature, rows, logits))
    for weights in (given(3, 5000), given(3, 5000).bfloat16(), given(3, 5000).half(), given(0, 3)):
        found.append(decompress(compress(weights)))
    rows_of = [([3, 4, 5, 6], 1), ([7, 8, 9], 1)]
    answers = LanguageModel(model, build.program("gpt", "c")).generate(
        [[3, 4], [6]], None, None, 6, None
    )
    trainer = Trainer(model, build.program("train", "c"), rows_of)
    losses = [trainer.step([0, 1], None, 1e-3) for _ in range(3)]
    return [
        *found,
        *(torch.tensor(x, dtype=torch.float64, device="cpu") for x in (answers[1], losses)),
    ]


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16, "meta"])
@needs_compiler
def test_what_torch_takes_by_default_does_not_matter(default: torch.dtype | str) -> None:
    model = llama()  # made by transformers, which takes the defaults
    expected = everything(model)
    try:
        if isinstance(default, str):
            torch.set_default_device(default)
        else:
            torch.set_default_dtype(default)
        found = everything(model)
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)
