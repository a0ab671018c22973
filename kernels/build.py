"""Sources of kernels -> functions to call: C by the machine's compiler, the same by OpenCL.
Those for GPUs (*.cu) are compiled by cuda.py, and for tests by OpenCL as well.

A build is kept in the cache under the hash of everything it depends on (sources, flags,
compiler, processor), written beside its final place and renamed, so that ten workers may
build at once and none ever sees half a library.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache as cache_calls
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from community.cache import cache

SOURCES = Path(__file__).resolve().parent
CORES = os.cpu_count() or 1  # asked once: every answer reads a file
COMPILERS = ("gcc", "clang", "cc")
FLAGS = (
    *("-O3", "-std=gnu11", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-w"),
    "-falign-loops=64",  # a loop of products that begins elsewhere takes up to 5% longer
)
Argument = Tensor | int | float | None
_NUMBERS = {int, bool, float, type(None)}  # arguments that pass as they are


class BuildError(RuntimeError):
    """No compiler, or one that fails. Says what it said."""


class Program(Protocol):
    """The kernels of one source."""

    def __call__(self, kernel: str, *arguments: Argument, items: int) -> None:
        """Run a kernel. Tensors are contiguous CPU memory and pass as pointers, None as a null
        pointer, int as a C int, float as a C float; `items` comes last (see items.h)."""
        ...


class SimtProgram(Protocol):
    """The kernels of one GPU-shaped source."""

    def __call__(
        self, kernel: str, *arguments: Argument, blocks: int, threads: int, room: int = 0
    ) -> None:
        """Run a kernel in `blocks` blocks of `threads` threads with `room` floats of shared memory.
        Arguments pass as in `Program`; tensors are contiguous memory of one device."""
        ...


class CProgram:
    """Kernels compiled to machine code. Raises BuildError."""

    def __init__(self, name: str, flags: tuple[str, ...] = ()) -> None:
        self.path = compiled(name, flags)
        self.library = _loaded(name, self.path)
        self._kernels: dict[str, Callable[..., None]] = {}

    def __call__(self, kernel: str, *arguments: Argument, items: int) -> None:
        call = self._kernels.get(kernel) or self._typed(kernel, arguments)
        call(*[x if type(x) in _NUMBERS else x.data_ptr() for x in arguments], items)  # type: ignore[union-attr]

    def _typed(self, kernel: str, arguments: tuple[Argument, ...]) -> Callable[..., None]:
        """A kernel that knows its parameters: half of a call's time went into telling it."""
        call = getattr(self.library, kernel)
        call.argtypes, call.restype = [*map(_c_type, arguments), ctypes.c_int], None
        self._kernels[kernel] = call
        return call


@cache_calls
def program(name: str, backend: str) -> Program:
    """The kernels of `name`.c by backend "c" or "opencl". Raises BuildError."""
    if backend == "opencl":
        made: Program = _opencl().ClProgram(name)
        return made
    return CProgram(name)


@cache_calls
def operations(name: str, flags: tuple[str, ...] = ()) -> Any:
    """What `name`.c adds to torch (see operations.h): its attributes. Raises BuildError."""
    torchs = Path(torch.__file__).parent / "lib"
    library = _loaded(name, compiled(name, (*flags, f"-L{torchs}", "-ltorch_cpu")))
    if library.join():
        raise BuildError(f"torch does not take the operations of {name}")
    return torch.ops.community_c


def _loaded(name: str, path: Path) -> ctypes.CDLL:
    """A library of the cache, which may be damaged or lie where nothing may be executed."""
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise BuildError(f"{name} does not load: {error}") from error


@cache_calls
def simt_program(name: str, flags: tuple[str, ...] = ()) -> SimtProgram:
    """The kernels of `name`.cu by OpenCL on the processor. Raises BuildError."""
    made: SimtProgram = _opencl().ClSimtProgram(name, flags)
    return made


def _opencl() -> ModuleType:
    if find_spec("pyopencl") is None:
        raise BuildError("pyopencl is not installed; pip install 'modelcommunity[opencl]'")
    return import_module("community.kernels.opencl")


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Memory for kernels on the processor, whatever torch's default dtype and device are."""
    return torch.zeros(shape, dtype=dtype, device="cpu")


_KINDS: dict[torch.dtype, type[np.generic]] = {
    torch.int32: np.int32,
    torch.int64: np.int64,
    torch.float32: np.float32,
}


def numbers(values: Iterable[float], dtype: torch.dtype = torch.int32) -> Tensor:
    """Values as kernels on the processor read them, whatever torch's defaults are. `torch.tensor`
    takes two to three times as long for a list."""
    return torch.from_numpy(np.fromiter(values, _KINDS[dtype]))


def _c_type(value: Argument) -> Any:
    if value is None or isinstance(value, Tensor):
        return ctypes.c_void_p
    return ctypes.c_int if isinstance(value, int) else ctypes.c_float


# -- compiling -------------------------------------------------------------------------


def compiler() -> tuple[str, ...] | None:
    """The C compiler's path: $CC, which may have flags behind it, or the first of gcc, clang and
    cc; None without any."""
    named = os.environ.get("CC", "").strip()
    for name, *flags in ([named], named.split()) if named else ([x] for x in COMPILERS):
        path = shutil.which(name)
        if path:
            return path, *flags
    return None


def compiled(name: str, flags: tuple[str, ...] = ()) -> Path:
    """The shared library of `name`.c, from the cache if it was built before.

    Raises BuildError. An unwritable cache costs one warning and a build a process.
    """
    command = compiler()
    if command is None:
        named = os.environ.get("CC") or "gcc, clang or cc"
        raise BuildError(f"no C compiler ({named}) is on the path")
    flags = (*FLAGS, *_machine_flags(), *flags)
    facts = (flags, _version(command), _processor())
    return kept(f"{name}.c", ".so", facts, lambda part: _compile(command, flags, name, part))


def kept(source: str, suffix: str, facts: tuple[Any, ...], make: Callable[[Path], None]) -> Path:
    """The file that `make` writes from a source, from the cache if it was made before.

    `facts` are what it depends on beside the source and the headers. Raises what `make` raises.
    """
    target = f"{Path(source).stem}-{_key(source, facts)}{suffix}"
    shelf = cache() / "kernels"
    try:
        if not (shelf / target).exists():
            shelf.mkdir(parents=True, exist_ok=True)
            with _alone(shelf / f"{target}.lock"):
                if not (shelf / target).exists():
                    _written(shelf / target, make)
        return shelf / target
    except OSError as error:
        warn_once(f"kernels are built anew in every process: {shelf} cannot be written ({error})")
        return _written(Path(_own_folder().name) / target, make)


def _written(target: Path, make: Callable[[Path], None]) -> Path:
    part = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        make(part)
        return part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _compile(command: tuple[str, ...], flags: tuple[str, ...], name: str, part: Path) -> None:
    source = SOURCES / f"{name}.c"
    call = [*command, f"-I{SOURCES}", str(source), *flags, "-o", str(part), "-lm"]
    try:
        done = subprocess.run(call, capture_output=True, text=True, timeout=300)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command[0]} does not run: {error}") from error
    if done.returncode or not part.exists():
        nothing = f"exit status {done.returncode}" if done.returncode else "no library came of it"
        said = (done.stderr.strip().splitlines() or [nothing])[0]
        raise BuildError(f"{command[0]} does not compile {source.name}: {said}")


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One builder at a time where the system has file locks; elsewhere several do the same work."""
    if find_spec("fcntl") is None:
        yield
        return
    fcntl = import_module("fcntl")
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@cache_calls
def _own_folder() -> tempfile.TemporaryDirectory[str]:
    """Removed when the process ends."""
    return tempfile.TemporaryDirectory(prefix="community-kernels-")


@cache_calls
def lanes() -> int:
    """Floats in a vector: 16 where the processor has AVX-512, else 8."""
    return 16 if "avx512f" in _processor() else 8


def round_up(n: int, multiple: int) -> int:
    """The next multiple, which may be n itself."""
    return -(-n // multiple) * multiple


def _machine_flags() -> tuple[str, ...]:
    width = ("-mprefer-vector-width=512",) if lanes() == 16 else ()
    native = "-march=native" if platform.machine() in ("x86_64", "AMD64") else "-mcpu=native"
    return (native, *width, f"-DLANES={lanes()}")


def _key(source: str, facts: tuple[Any, ...]) -> str:
    digest = hashlib.sha256(repr(facts).encode())
    for path in [SOURCES / source, *sorted(SOURCES.glob("*.h"))]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@cache_calls
def _version(command: tuple[str, ...]) -> str:
    try:
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command[0]} does not run: {error}") from error
    return " ".join(command) + done.stdout


@cache_calls
def _processor() -> str:
    """What the processor can do, as one line: a library made for another may not run here."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return (
            f"{platform.machine()} {platform.processor()} {torch.backends.cpu.get_cpu_capability()}"
        )
    wanted = ("flags", "features", "model name")
    return next((x for x in lines if x.lower().startswith(wanted[:2])), platform.machine())


@cache_calls
def warn_once(text: str) -> None:
    """The same warning only once a process."""
    warnings.warn(text, RuntimeWarning, stacklevel=2)
