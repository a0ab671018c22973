"""The CPU-shaped sources by OpenCL: PoCL makes machine code of them without a C compiler. The
GPU-shaped ones as well, so that they can be tested where there is no GPU.

Imported only where pyopencl is installed (extra `opencl`).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pyopencl as cl
import torch
from torch import Tensor

from community.kernels.build import SOURCES, Argument, BuildError, lanes

_BYTE = torch.uint8
FLAGS = ("-cl-std=CL1.2", "-cl-mad-enable", "-w")


class _Compiled:
    """A source that an OpenCL driver has compiled. Raises BuildError."""

    def __init__(self, source: str, flags: tuple[str, ...]) -> None:
        self.context, self.queue = _queue()
        options = [*FLAGS, *flags, f"-I{SOURCES}"]
        try:
            made = cl.Program(self.context, (SOURCES / source).read_text())
            self.program = made.build(options=options)
        except cl.Error as error:
            raise BuildError(f"OpenCL does not compile {source}: {error}") from error
        self._kernels: dict[str, Any] = {}

    def launch(self, kernel: str, passed: list[Any], size: int, group: int) -> None:
        """Run `size` work items in groups of `group`, and wait for them."""
        found = self._kernels.get(kernel)
        if found is None:
            found = self._kernels[kernel] = cl.Kernel(self.program, kernel)
        found.set_args(*passed)
        cl.enqueue_nd_range_kernel(self.queue, found, (size,), (group,)).wait()

    def passed(self, arguments: tuple[Argument, ...]) -> list[Any]:
        """Arguments as OpenCL takes them; a kernel does not keep its buffers."""
        return [self._argument(a) for a in arguments]

    def _argument(self, value: Argument) -> Any:
        if isinstance(value, Tensor):
            if not value.numel():
                return None
            flags = cl.mem_flags.READ_WRITE | cl.mem_flags.USE_HOST_PTR
            return cl.Buffer(self.context, flags, hostbuf=_bytes(value))
        if value is None:
            return None
        return np.int32(value) if isinstance(value, int) else np.float32(value)


class ClProgram(_Compiled):
    """Kernels compiled by an OpenCL driver for the processor. Raises BuildError."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name}.c", (f"-DLANES={lanes()}",))

    def __call__(self, kernel: str, *arguments: Argument, items: int) -> None:
        units = min(max(items, 1), self.context.devices[0].max_compute_units)
        self.launch(kernel, [*self.passed(arguments), np.int32(items)], units, 1)


class ClSimtProgram(_Compiled):
    """GPU-shaped kernels, run by the processor. Raises BuildError."""

    def __init__(self, name: str, flags: tuple[str, ...]) -> None:
        super().__init__(f"{name}.cu", flags)

    def __call__(
        self, kernel: str, *arguments: Argument, blocks: int, threads: int, room: int = 0
    ) -> None:
        passed = [*self.passed(arguments), cl.LocalMemory(4 * max(room, threads))]
        self.launch(kernel, passed, blocks * threads, threads)


def _bytes(tensor: Tensor) -> Any:
    """The tensor's memory, not copied; bfloat16 too, which numpy does not know."""
    return tensor.detach().view(-1).view(dtype=_BYTE).numpy()


@lru_cache(maxsize=1)
def _queue() -> tuple[Any, Any]:
    """A context and queue on the first OpenCL processor. Raises BuildError if there is none."""
    try:
        devices = [d for p in cl.get_platforms() for d in p.get_devices(cl.device_type.CPU)]
    except cl.Error as error:
        raise BuildError(f"no OpenCL driver: {error}") from error
    if not devices:
        raise BuildError("no OpenCL driver for the processor; pip install 'pyopencl[pocl]'")
    context = cl.Context([devices[0]])
    return context, cl.CommandQueue(context)
