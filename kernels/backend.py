"""Who computes: C, OpenCL or plain torch (which also serves the GPU). Chosen once a process."""

from __future__ import annotations

import os
from functools import cache

from community.errors import unknown
from community.kernels.build import BuildError, Program, compiler, program, warn_once

BACKENDS = ("reference", "c", "opencl")
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
    if device == "cuda":
        return "reference", "there are no kernels for GPUs yet"
    order = [name] if name in ("c", "opencl") else [] if name else ["c", "opencl"]
    problems = []
    for candidate in order:
        try:
            program("probe", candidate)
        except BuildError as error:
            problems.append(f"{candidate}: {error}")
        else:
            how = compiler() if candidate == "c" else "an OpenCL driver"
            return candidate, f"{VARIABLE}={name}" if name else f"compiled by {how}"
    if problems and (name or compiler()):
        warn_once(f"the kernels run on plain torch ({'; '.join(problems)})")
    return "reference", "; ".join(problems) or f"{VARIABLE}={name}"


@cache
def kernels(name: str) -> Program | None:
    """The kernels of `name`.c on the processor; None where plain torch is to compute.

    A source that does not compile costs one try and one warning.
    """
    chosen, _ = backend("cpu")
    if chosen == "reference":
        return None
    try:
        return program(name, chosen)
    except BuildError as error:
        warn_once(f"{name} runs on plain torch ({error})")
        return None
