"""CUDA sources run by the processor: what cuda_emulator.h makes of them, as a SimtProgram."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from community.kernels.build import SOURCES, Argument, BuildError, kept
from community.kernels.cuda import _argument

HEADER = Path(__file__).with_name("cuda_emulator.h")
FLAGS = ("-O2", "-std=c++17", "-w", "-U_FORTIFY_SOURCE", "-fno-strict-aliasing", f"-I{SOURCES}")
FLAGS += ("-fsanitize=alignment,signed-integer-overflow,integer-divide-by-zero",)
FLAGS += ("-fsanitize-undefined-trap-on-error",)  # what x86 bears with, and a GPU does not


class EmulatedProgram:
    """The kernels of `name`.cu. Raises BuildError.

    `seed` decides who runs first; with `early`, asynchronous copies arrive at once, without it as
    late as they may.
    """

    def __init__(self, name: str, flags: tuple[str, ...] = ()) -> None:
        self.seed, self.early = 1, False
        compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
        if compiler is None:
            raise BuildError("no C++ compiler (g++ or clang++) is on the path")
        command = [compiler, *FLAGS, *flags, "-include", str(HEADER)]

        def make(part: Path) -> None:
            source = SOURCES / f"{name}.cu"
            text = _said([*command, "-E", "-P", "-x", "c++", str(source)])
            kernels = re.findall(r'extern "C"\s+void\s+(\w+)\(', text)
            wrapped = part.with_suffix(".cpp")
            lines = [f'#include "{source}"', *(f"EMULATE({kernel})" for kernel in kernels)]
            wrapped.write_text("\n".join(lines) + "\n")
            _said([*command, "-shared", "-fPIC", str(wrapped), "-o", str(part)])
            wrapped.unlink()

        facts = (command, HEADER.read_text())
        self.library = ctypes.CDLL(str(kept(f"{name}.cu", ".emulated.so", facts, make)))

    def __call__(
        self, kernel: str, *arguments: Argument, blocks: int, threads: int, room: int = 0
    ) -> None:
        """Runs a kernel. Raises AssertionError for what the emulator finds wrong with it."""
        function: Any = getattr(self.library, f"emulate_{kernel}")
        function.restype = ctypes.c_char_p
        values = [_argument(a) for a in arguments]
        pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        fault = function(pointers, blocks, threads, 4 * room, self.seed, int(self.early))
        assert fault is None, f"{kernel}: {fault.decode()}"


@cache
def emulated(name: str, *flags: str) -> EmulatedProgram:
    """The kernels of `name`.cu, compiled once. Raises BuildError."""
    return EmulatedProgram(name, flags)


def _said(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise BuildError(f"{command[0]}: {done.stderr.strip()[-2000:]}")
    return done.stdout
