"""CUDA without a GPU: every source compiles for the GPUs we name, the loader says what fails."""

from __future__ import annotations

import ctypes
import subprocess
import warnings
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from community.kernels import backend as chosen
from community.kernels import build, cuda, gpt_gpu
from community.kernels.attention_gpu import TENSOR_WIDTHS, WIDTHS, _hopper
from community.kernels.build import SOURCES, BuildError
from community.kernels.entmax_gpu import _sharing

GPUS = (80, 90, 100)
ATTENTION = [("attention_forward",), ("attention_queries", "attention_keys")]
ENTMAX = [
    ("entmax_thresholds", "entmax_forward"),
    ("entmax_means", "entmax_queries", "entmax_keys"),
]


def attentions(widths: tuple[int, ...], stored: tuple[int, ...]) -> list[Any]:
    return [
        ((f"-DWIDTH={width}", f"-DSTORED={kind}", f"-DBACKWARD={n}"), kernels)
        for width, kind in product(widths, stored)
        for n, kernels in enumerate(ATTENTION)
    ]


WANTED: dict[str, list[tuple[tuple[str, ...], tuple[str, ...]]]] = {  # flags, kernels
    "probe": [((), ("scale",))],
    "gpt": [((), ("generate", "score"))],
    "attention": attentions(WIDTHS, (0, 1)),
    "entmax": [
        *((flags, ENTMAX[n % 2]) for n, (flags, _) in enumerate(attentions(WIDTHS, (0,)))),
        *((_sharing(n)[0], ("entmax_rows",)) for n in (1, 1024, 8192, 8193)),
    ],
    "routing": [(("-DTHREADS=512",), ("route", "route_counts", "route_starts", "route_places"))],
    "attention_tensor": attentions(TENSOR_WIDTHS, (1, 2)),
    "attention_hopper": [
        (_hopper(width, stored, backward, masked).flags, ATTENTION[backward])
        for width, backward in product(TENSOR_WIDTHS, (False, True))
        for stored, masked in (
            (torch.bfloat16, False),
            (torch.bfloat16, True),
            (torch.float16, False),
        )
    ],
}
ONLY = {"attention_hopper": 90}  # what no other GPU has


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test chooses anew."""
    monkeypatch.delenv("COMMUNITY_KERNELS", raising=False)
    caches = (build.warn_once, chosen.backend, chosen.kernels, chosen.simt, cuda.ready)
    caches = (*caches, cuda._driver, cuda._nvrtc, cuda.cuda_program)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


@pytest.fixture
def nvrtc() -> None:
    try:
        cuda.version()
    except BuildError as error:
        pytest.skip(str(error))


def test_every_source_is_compiled_below() -> None:
    assert set(WANTED) == {path.stem for path in SOURCES.glob("*.cu")}


@pytest.mark.usefixtures("nvrtc")
@pytest.mark.parametrize(
    ("name", "gpu"),
    [
        pytest.param(name, gpu, marks=[] if gpu == 90 and name not in ONLY else [pytest.mark.slow])
        for name, gpu in product(WANTED, GPUS)
        if gpu == ONLY.get(name, gpu)
    ],
)
def test_it_compiles(name: str, gpu: int) -> None:
    every = WANTED[name]
    if name == "gpt":
        blocks = gpt_gpu.together((gpu // 10, gpu % 10))
        every = [(gpt_gpu.flags(blocks), kernels) for _, kernels in every]
    for flags, kernels in every if gpu in (GPUS[0], ONLY.get(name)) else every[-4:]:
        image = cuda.compiled(name, gpu, flags).read_bytes()
        assert image[:4] == b"\x7fELF"
        assert all(kernel.encode() in image for kernel in kernels)


@pytest.mark.usefixtures("nvrtc")
def test_a_build_is_kept(cache: Path) -> None:
    first = cuda.compiled("probe", 90)
    written = first.stat().st_mtime_ns
    assert first.parent == cache / "kernels"
    assert cuda.compiled("probe", 90) == first and first.stat().st_mtime_ns == written
    assert cuda.compiled("probe", 90, ("-DSTORED=1",)) != first


@pytest.mark.usefixtures("nvrtc")
def test_a_gpu_newer_than_nvrtc_gets_what_its_driver_translates(cache: Path) -> None:
    made = cuda.compiled("probe", 9999)
    assert made.suffix == ".ptx" and b".entry scale" in made.read_bytes()


@pytest.mark.usefixtures("nvrtc")
def test_a_gpu_older_than_nvrtc_is_refused() -> None:
    with pytest.raises(BuildError, match="does not know sm_30"):
        cuda.compiled("probe", 30)


@pytest.mark.usefixtures("nvrtc")
def test_what_does_not_compile_says_where(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wrong.cu").write_text("int x = ;\n")
    monkeypatch.setattr(cuda, "SOURCES", tmp_path)
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    with pytest.raises(BuildError, match=r"wrong.cu\(1\): error"):
        cuda.compiled("wrong", 90)


def test_no_nvrtc_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_places", lambda: iter(()))
    with pytest.raises(BuildError, match="pip install nvidia-cuda-nvrtc"):
        cuda._nvrtc()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_no_warning_unless_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert chosen.backend("cuda") == ("reference", "torch finds no NVIDIA GPU")
        assert chosen.simt("probe", "cuda") is None
    chosen.backend.cache_clear()
    monkeypatch.setenv("COMMUNITY_KERNELS", "cuda")
    with pytest.warns(RuntimeWarning, match="no NVIDIA GPU"):
        assert chosen.backend("cuda")[0] == "reference"


DRIVER = """
#include <string.h>
int log_of[16];
int cuGetErrorString(int status, const char **text) { *text = "the driver is ill"; return 0; }
int cuModuleGetFunction(void **f, void *module, const char *name) { return 999; }
int cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared, void *stream, void **given, void **extra) {
    int numbers[] = {gx, gy, gz, bx, by, bz, shared, stream == (void *)77, extra == 0};
    memcpy(log_of, numbers, sizeof numbers);
    log_of[9] = ((float **)given[0])[0][2] == 5.0f; /* a tensor */
    log_of[10] = *(int *)given[1], log_of[11] = *(float *)given[2] == 0.5f;
    log_of[12] = *(void **)given[3] == 0;
    return 0;
}
"""


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A library with a driver's calls that notes what it is given."""
    compiler = build.compiler()
    if compiler is None:
        pytest.skip("no C compiler")
    (tmp_path / "driver.c").write_text(DRIVER)
    call = [*compiler, "-shared", "-fPIC", "driver.c", "-o", "driver.so"]
    subprocess.run(call, cwd=tmp_path, check=True)
    library = ctypes.CDLL(str(tmp_path / "driver.so"))
    monkeypatch.setattr(cuda, "_driver", lambda: library)
    return library


def test_a_launch_passes_every_argument_as_its_kind(driver: Any) -> None:
    x = torch.tensor([3.0, 4.0, 5.0])
    cuda.launch(ctypes.c_void_p(1), (x, -7, 0.5, None), 9, 64, 100, 77)
    noted = list((ctypes.c_int * 16).in_dll(driver, "log_of"))
    assert noted[:9] == [9, 1, 1, 64, 1, 1, 400, 1, 1]
    assert noted[9:13] == [1, -7, 1, 1]


def test_a_driver_that_fails_is_quoted_and_costs_one_warning(
    driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first_kernel() -> str:
        cuda._call("cuModuleGetFunction", None, None, b"scale")
        raise AssertionError("the driver's answer was not looked at")

    monkeypatch.setattr(cuda, "ready", first_kernel)
    monkeypatch.setenv("COMMUNITY_KERNELS", "cuda")
    with pytest.warns(RuntimeWarning, match="999: the driver is ill") as caught:
        for name in ("probe", "attention"):
            assert chosen.simt(name, "cuda") is None
    assert len(caught) == 1


def test_the_first_kernel_runs(gpu: str) -> None:
    name, why = chosen.backend(gpu)
    assert name == "cuda", why
