"""The CPU-shaped sources by OpenCL: PoCL makes machine code of them without a C compiler. The
GPU-shaped ones as well, so that they can be tested where there is no GPU.

Imported only where pyopencl is installed (extra `opencl`).
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from functools import lru_cache
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any

import numpy as np
import pyopencl as cl
import torch
from torch import Tensor

from community.kernels.build import SOURCES, Argument, BuildError, lanes

_NUMBERS = {int: np.int32, bool: np.int32, float: np.float32}
_TENSORS = {Tensor, torch.nn.Parameter}
_IN_PLACE = cl.mem_flags.READ_WRITE | cl.mem_flags.USE_HOST_PTR
FLAGS = ("-cl-std=CL1.2", "-cl-mad-enable", "-w")
TRIAL = """
import pyopencl as cl
devices = [d for p in cl.get_platforms() for d in p.get_devices(cl.device_type.CPU)]
context = cl.Context(devices[:1])
kernel = cl.Program(context, "kernel void nothing() {}").build().nothing
cl.enqueue_nd_range_kernel(cl.CommandQueue(context), kernel, (1,), (1,)).wait()
"""


class _Compiled:
    """A source that an OpenCL driver has compiled. Raises BuildError."""

    def __init__(self, source: str, flags: tuple[str, ...]) -> None:
        self.context, self.queue = _queue()
        options = [*FLAGS, *flags, f"-I{SOURCES}"]
        try:
            made = cl.Program(self.context, _wide((SOURCES / source).read_text()))
            self.program = made.build(options=options)
        except cl.Error as error:
            raise BuildError(f"OpenCL does not compile {source}: {error}") from error
        self._kernels: dict[str, Any] = {}
        self._alone = Lock()

    def launch(self, kernel: str, arguments: tuple[Any, ...], size: int, group: int) -> None:
        """Run `size` work items in groups of `group`, and wait for them."""
        passed = [_buffer(x.data_ptr(), x.nbytes) if type(x) in _TENSORS else x for x in arguments]
        with self._alone:  # a kernel holds the arguments of one call
            found = self._kernels.get(kernel) or self._typed(kernel, arguments)
            found.set_args(*passed)  # which does not keep them
            started = cl.enqueue_nd_range_kernel(self.queue, found, (size,), (group,))
        started.wait()

    def _typed(self, kernel: str, arguments: tuple[Any, ...]) -> Any:
        """A kernel that knows which of its parameters are numbers: without, a call takes 30 us."""
        found = self._kernels[kernel] = cl.Kernel(self.program, kernel)
        found.set_scalar_arg_dtypes([_NUMBERS.get(type(x)) for x in arguments])
        return found


@lru_cache(maxsize=4096)
def _buffer(address: int, count: int) -> Any:
    """A tensor's own memory, which is not copied. Making this anew for each tensor took half of a
    short call; another tensor that comes to lie at the same place is as well served by it."""
    if not count:
        return None
    memory = (ctypes.c_char * count).from_address(address)
    return cl.Buffer(_queue()[0], _IN_PLACE, hostbuf=memory)


def _wide(source: str) -> str:
    """The source with vectors of 512 bits where there are: clang halves them if not told so."""
    if lanes() < 16:
        return source
    wide = "__attribute__((min_vector_width(512)))"
    push = f"#pragma clang attribute push({wide}, apply_to = function)"
    return f"{push}\n{source}\n#pragma clang attribute pop\n"


class ClProgram(_Compiled):
    """Kernels compiled by an OpenCL driver for the processor. Raises BuildError."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name}.c", (f"-DLANES={lanes()}",))
        self.units: int = self.context.devices[0].max_compute_units

    def __call__(self, kernel: str, *arguments: Argument, items: int) -> None:
        self.launch(kernel, (*arguments, items), min(max(items, 1), self.units), 1)


class ClSimtProgram(_Compiled):
    """GPU-shaped kernels, run by the processor. Raises BuildError."""

    def __init__(self, name: str, flags: tuple[str, ...]) -> None:
        super().__init__(f"{name}.cu", flags)

    def __call__(
        self, kernel: str, *arguments: Argument, blocks: int, threads: int, room: int = 0
    ) -> None:
        shared = cl.LocalMemory(4 * max(room, threads))
        self.launch(kernel, (*arguments, shared), blocks * threads, threads)


@lru_cache(maxsize=1)
def _queue() -> tuple[Any, Any]:
    """A context and queue on an OpenCL processor. Raises BuildError if there is none.

    PoCL has two processors, one with threads and one without, which has no threads to wake: 13
    in place of 50 us a call. A worker with one torch thread takes that one.
    """
    os.environ.setdefault("POCL_DEVICES", "pthread basic")
    try:
        devices = [d for p in cl.get_platforms() for d in p.get_devices(cl.device_type.CPU)]
    except cl.Error as error:
        raise BuildError(f"no OpenCL driver: {error}") from error
    if not devices:
        raise BuildError("no OpenCL driver for the processor; pip install 'modelcommunity[opencl]'")
    _try()
    alone = torch.get_num_threads() == 1
    devices.sort(key=lambda device: (device.max_compute_units == 1) != alone)
    context = cl.Context([devices[0]])
    return context, cl.CommandQueue(context)


def _try() -> None:
    """Raises BuildError where a driver that compiles ends the process at the first call.

    PoCL 3.0 links a kernel when it is called, by `ld` with libraries that come with gcc, and
    aborts where it has not all of these, as on most machines without a compiler. So a kernel is
    called in a process of its own first, with a cache of its own, for one that was kept from
    better days would be linked already.
    """
    with TemporaryDirectory() as kept:
        tried = subprocess.run(
            [sys.executable, "-c", TRIAL],
            env=os.environ | {"POCL_CACHE_DIR": kept},
            capture_output=True,
            text=True,
        )
    if tried.returncode:
        said = tried.stderr.strip().splitlines() or ["nothing"]
        raise BuildError(
            f"OpenCL cannot link, for which PoCL needs ld and gcc's libraries: {said[0]}"
        )
