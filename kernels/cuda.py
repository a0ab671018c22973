"""GPU-shaped sources on NVIDIA GPUs: compiled by NVRTC, loaded and launched by the driver.

Neither nvcc nor a C++ compiler is needed. NVRTC comes with torch's CUDA wheels, with the wheel
nvidia-cuda-nvrtc or with a CUDA toolkit; it compiles for GPUs that are not there.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from ctypes.util import find_library
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from community.kernels.build import SOURCES, Argument, BuildError, kept

FLAGS = ("--std=c++17", "-w", f"--include-path={SOURCES}")
MAX_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
PLENTY = 48 * 1024  # bytes of shared memory that every kernel may have without asking


class CudaProgram:
    """The kernels of `name`.cu on the GPU where its tensors lie. Raises BuildError."""

    def __init__(self, name: str, flags: tuple[str, ...] = ()) -> None:
        self.name, self.flags = name, flags
        self._functions: dict[tuple[int, str], Any] = {}
        self._modules: dict[int, tuple[Any, Any]] = {}
        self._module(torch.cuda.current_device())

    def __call__(
        self, kernel: str, *arguments: Argument, blocks: int, threads: int, room: int = 0
    ) -> None:
        device = next(a.device for a in arguments if isinstance(a, Tensor))
        index = torch.cuda.current_device() if device.index is None else device.index
        with torch.cuda.device(index):
            context, function = self._function(index, kernel)
            _call("cuCtxSetCurrent", context)  # autograd's threads begin without one
            stream = torch.cuda.current_stream(index).cuda_stream
            launch(function, arguments, blocks, threads, room, stream)

    def _function(self, index: int, kernel: str) -> tuple[Any, Any]:
        """Its context, and a kernel in it."""
        context, module = self._module(index)
        found = self._functions.get((index, kernel))
        if found is None:
            found = ctypes.c_void_p()
            _call("cuModuleGetFunction", ctypes.byref(found), module, kernel.encode())
            self._functions[index, kernel] = found
        return context, found

    def _module(self, index: int) -> tuple[Any, Any]:
        if index not in self._modules:
            major, minor = torch.cuda.get_device_capability(index)
            image = compiled(self.name, 10 * major + minor, self.flags).read_bytes()
            context, module = ctypes.c_void_p(), ctypes.c_void_p()
            with torch.cuda.device(index):
                torch.cuda.current_stream().synchronize()  # there is a context from here on
                _call("cuCtxGetCurrent", ctypes.byref(context))
                _call("cuModuleLoadData", ctypes.byref(module), image)
            self._modules[index] = context, module
        return self._modules[index]


def fits(room: int, device: torch.device) -> bool:
    """Whether a block on the GPU may have `room` floats of shared memory; true elsewhere."""
    if device.type != "cuda":
        return True
    found = torch.cuda.get_device_properties(device)
    return 4 * room <= getattr(found, "shared_memory_per_block_optin", PLENTY)


def launch(
    function: Any,
    arguments: tuple[Argument, ...],
    blocks: int,
    threads: int,
    room: int,
    stream: int,
) -> None:
    """Starts a kernel of the current context on a stream. Raises BuildError."""
    values = [_argument(a) for a in arguments]
    pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
    if 4 * room > PLENTY:
        _call("cuFuncSetAttribute", function, MAX_SHARED, 4 * room)
    sizes = (blocks, 1, 1, threads, 1, 1, 4 * room)
    _call("cuLaunchKernel", function, *sizes, ctypes.c_void_p(stream), pointers, None)


def _argument(value: Argument) -> Any:
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    if value is None:
        return ctypes.c_void_p()
    return ctypes.c_int(value) if isinstance(value, int) else ctypes.c_float(value)


@cache
def cuda_program(name: str, flags: tuple[str, ...] = ()) -> CudaProgram:
    """The kernels of `name`.cu. Raises BuildError."""
    return CudaProgram(name, flags)


@cache
def ready() -> str:
    """What runs kernels here, after a first one has run. Raises BuildError for what is missing."""
    if not torch.cuda.is_available():
        raise BuildError("torch finds no NVIDIA GPU")
    x = torch.arange(100.0, device="cuda")
    y = torch.zeros_like(x)
    cuda_program("probe")("scale", x, y, 0.5, x.numel(), blocks=1, threads=64)
    if not y.equal(x / 2):
        raise BuildError("the first kernel on the GPU gave wrong numbers")
    return f"NVRTC {'.'.join(map(str, version()))} on {torch.cuda.get_device_name()}"


# -- the driver ------------------------------------------------------------------------


@cache
def _driver() -> Any:
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        raise BuildError(f"no NVIDIA driver: {error}") from error


def _call(function: str, *arguments: Any) -> None:
    """Raises BuildError with the driver's own words."""
    status = getattr(_driver(), function)(*arguments)
    if status:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(status, ctypes.byref(text))
        said = (text.value or b"unknown error").decode()
        raise BuildError(f"{function} says {status}: {said}")


# -- NVRTC -----------------------------------------------------------------------------


def compiled(name: str, architecture: int, flags: tuple[str, ...] = ()) -> Path:
    """The machine code of `name`.cu for a GPU such as 90 (sm_90), from the cache if it was made
    before; for a GPU newer than NVRTC, code that the driver translates. Raises BuildError."""
    known = [a for a in architectures() if a <= architecture]
    if not known:
        raise BuildError(f"NVRTC {version()} does not know sm_{architecture}")
    kind = "sm" if max(known) == architecture else "compute"
    own = "a" if kind == "sm" and architecture == 90 else ""  # with what no other GPU has: wgmma
    options = (*FLAGS, *flags, f"--gpu-architecture={kind}_{max(known)}{own}")

    def make(part: Path) -> None:
        part.write_bytes(_compile(f"{name}.cu", options, "CUBIN" if kind == "sm" else "PTX"))

    return kept(f"{name}.cu", ".cubin" if kind == "sm" else ".ptx", (options, version()), make)


def _compile(source: str, options: tuple[str, ...], kind: str) -> bytes:
    library, program = _nvrtc(), ctypes.c_void_p()
    text = (SOURCES / source).read_bytes()
    given = (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
    _checked(
        library.nvrtcCreateProgram(ctypes.byref(program), text, source.encode(), 0, None, None)
    )
    try:
        if library.nvrtcCompileProgram(program, len(options), given):
            said = _output(program, "ProgramLog").decode(errors="replace").strip("\0\n ")
            raise BuildError(f"NVRTC does not compile {source}: {said}")
        return _output(program, kind)
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _output(program: Any, what: str) -> bytes:
    size = ctypes.c_size_t()
    _checked(getattr(_nvrtc(), f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    text = ctypes.create_string_buffer(size.value)
    _checked(getattr(_nvrtc(), f"nvrtcGet{what}")(program, text))
    return text.raw


def _checked(status: int) -> None:
    if status:
        said = _nvrtc().nvrtcGetErrorString(status)
        raise BuildError(f"NVRTC says {status}: {said.decode()}")


@cache
def version() -> tuple[int, int]:
    """NVRTC's version. Raises BuildError."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _checked(_nvrtc().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    return major.value, minor.value


@cache
def architectures() -> list[int]:
    """The GPUs that NVRTC compiles for, such as 80, 90 and 100. Raises BuildError."""
    count = ctypes.c_int()
    _checked(_nvrtc().nvrtcGetNumSupportedArchs(ctypes.byref(count)))
    found = (ctypes.c_int * count.value)()
    _checked(_nvrtc().nvrtcGetSupportedArchs(found))
    return list(found)


@cache
def _nvrtc() -> Any:
    problems = []
    for path in _places():
        try:
            library = ctypes.CDLL(str(path))
        except OSError as error:
            problems.append(str(error))
        else:
            library.nvrtcGetErrorString.restype = ctypes.c_char_p
            return library
    raise BuildError("; ".join(problems) or "no NVRTC; pip install nvidia-cuda-nvrtc")


def _places() -> Iterator[str | Path]:
    """Where NVRTC may be: in torch's wheels, those for torch's own CUDA first, then the system."""
    spec = find_spec("nvidia")
    folders = [Path(f) for f in (spec.submodule_search_locations or ())] if spec else []
    found = [p for f in folders for p in f.glob("*/lib/libnvrtc.so.*")]
    found += [p for f in folders for p in f.glob("*/bin/**/nvrtc64_*_0.dll")]
    found += (Path(torch.__file__).parent / "lib").glob("nvrtc64_*_0.dll")
    major = (torch.version.cuda or "").split(".")[0]
    yield from sorted(found, key=lambda p: not p.name.endswith(f".so.{major}"))
    for home in filter(None, (os.environ.get("CUDA_HOME"), "/usr/local/cuda")):
        yield from Path(home).glob("lib64/libnvrtc.so")
    system = find_library("nvrtc")
    if system:
        yield system
