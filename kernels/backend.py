"""Who computes: C, OpenCL or plain torch; CUDA or plain torch on a GPU. Chosen once a process.

COMMUNITY_KERNELS names one: `c` and `opencl` for the processor, `cuda` for the GPU, `reference`
(plain torch) for both; `simt` has the processor run what is written for GPUs, to test it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from community.errors import unknown
from community.kernels import build, cuda
from community.kernels.build import (
    BuildError,
    Program,
    SimtProgram,
    compiler,
    program,
    simt_program,
    warn_once,
)

PROCESSOR = ("c", "opencl", "simt")
BACKENDS = ("reference", *PROCESSOR, "cuda")
VARIABLE = "COMMUNITY_KERNELS"


def wanted() -> str:
    """What COMMUNITY_KERNELS names; "" without. Raises CommunityError for an unknown name."""
    name = os.environ.get(VARIABLE, "")
    if name and name not in BACKENDS:
        raise unknown(f"{VARIABLE} backend", name, BACKENDS)
    return name


@cache
def backend(device: str = "cpu") -> tuple[str, str]:
    """(backend, why) for tensors on "cpu" or "cuda". Raises CommunityError: see `wanted`."""
    name = wanted()
    if name == "reference":
        return "reference", f"{VARIABLE}=reference"
    if device == "cuda":
        return _on_gpu(name)
    problems = []
    for candidate in [name] if name in PROCESSOR else ["c", "opencl"]:
        try:
            simt_program("probe") if candidate == "simt" else program("probe", candidate)
        except BuildError as error:
            problems.append(f"{candidate}: {error}")
        else:
            how = " ".join(compiler() or ()) if candidate == "c" else "an OpenCL driver"
            return candidate, f"{VARIABLE}={name}" if name == candidate else f"compiled by {how}"
    if name in PROCESSOR or compiler():
        warn_once(f"the kernels run on plain torch ({'; '.join(problems)})")
    return "reference", "; ".join(problems)


def _on_gpu(name: str) -> tuple[str, str]:
    try:
        return "cuda", cuda.ready()
    except (BuildError, RuntimeError) as error:
        if name == "cuda" or torch.cuda.is_available():
            warn_once(f"the kernels on the GPU run on plain torch ({error})")
        return "reference", str(error)


@cache
def kernels(name: str) -> Program | None:
    """The kernels of `name`.c on the processor; None where plain torch is to compute.

    A source that does not compile costs one try and one warning.
    """
    chosen, _ = backend("cpu")
    if chosen not in ("c", "opencl"):
        return None
    try:
        return program(name, chosen)
    except BuildError as error:
        warn_once(f"{name} runs on plain torch ({error})")
        return None


@cache
def operation(source: str, name: str) -> Callable[..., Any] | None:
    """The operation `name` that `source`.c adds to torch (see operations.h); None where OpenCL or
    plain torch is to compute, or torch does not take it: then `kernels` is called by ctypes."""
    if backend("cpu")[0] != "c":
        return None
    try:
        found: Callable[..., Any] = getattr(build.operations(source), name).default
    except BuildError as error:
        warn_once(f"{source} is called in a slower way ({error})")
        return None
    return found


@cache
def simt(name: str, device: str, *flags: str) -> SimtProgram | None:
    """The kernels of `name`.cu for tensors on `device`; None where others are to compute.

    A source that does not compile costs one try and one warning.
    """
    chosen = backend(device)[0] if device in ("cpu", "cuda") else ""
    try:
        if chosen == "cuda":
            return cuda.cuda_program(name, flags)
        return simt_program(name, flags) if chosen == "simt" else None
    except BuildError as error:
        warn_once(f"{name} runs on plain torch ({error})")
        return None
