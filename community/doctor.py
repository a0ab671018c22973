"""What this machine offers, and what is missing for what (`community doctor`).

Nothing heavy is imported here: versions come from package metadata, and torch is asked in
a process of its own, so a torch that cannot even be imported is a finding and not a crash.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from rich.table import Table
from rich.text import Text

from community.cache import cache
from community.packaged import PACKAGED, weights

GIB = 2**30
ASK_TORCH = """
import json, torch
from community.errors import CommunityError
from community.kernels.backend import backend
try:
    kernels = backend("cpu"), backend("cuda")
except CommunityError as error:
    kernels = [("", str(error))] * 2
cuda = torch.cuda.is_available()
print(json.dumps({
    "torch": torch.__version__,
    "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] * cuda,
    "mps": torch.backends.mps.is_available(),
    "kernels": kernels,
}))
"""


@dataclass(frozen=True)
class Check:
    """One thing a machine may offer: `there` describes it, `missing` says what its lack costs."""

    name: str
    ok: bool
    there: str = ""
    missing: str = ""


def checks() -> list[Check]:
    """Every check, in the order they are shown; takes a few seconds, nearly all of it torch's."""
    return [
        _python(),
        _machine(),
        _disk("runs", "COMMUNITY_HOME", Path(os.environ.get("COMMUNITY_HOME") or ".")),
        _disk("cache", "COMMUNITY_CACHE", cache()),
        *_torch(),
        _package("transformers", "transformer agents"),
        _package("ray", "pool ray; `--pool local` works without"),
        _package("peft", "adapters in place of full fine-tuning; extra lora"),
        _package("gguf", "models stored as GGUF files; extra gguf"),
        _package("reasoning-gym", "the gym arenas; extra gym, needs a C compiler"),
        _package("psycopg", "a ledger in PostgreSQL; extra postgres"),
        *(
            _package(name, f"`community track`; extra {name}")
            for name in ("tensorboard", "trackio", "wandb")
        ),
        _package("textual", "the dashboard, community watch; extra watch"),
        _compiler("C compiler", ("cc", "gcc", "clang"), "reasoning-gym and the C kernels"),
        _opencl(),
        *(_weights(name) for name in PACKAGED),
    ]


def render(found: Iterable[Check]) -> Table:
    """The checks as a table: what is there, and what the missing ones are wanted for."""
    table = Table("", "what", "there", "missing for", box=None, pad_edge=False)
    for check in found:
        mark = Text("yes", "green") if check.ok else Text("no", "yellow")
        texts = (check.name, check.there, "" if check.ok else check.missing)
        table.add_row(mark, *map(Text, texts))
    return table


def _python() -> Check:
    good = (3, 11) <= sys.version_info[:2] <= (3, 13)
    return Check("Python", good, platform.python_version(), "everything: 3.11 to 3.13 work")


def _machine() -> Check:
    # the cores this process may use, which a container or taskset makes fewer
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Check("machine", True, f"{cores} cores, {_memory()}, {platform.platform(terse=True)}")


def _memory() -> str:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not a POSIX system
        return "memory unknown"
    return f"{total / GIB:.0f} GiB"


def _disk(what: str, variable: str, folder: Path) -> Check:
    folder = folder.expanduser().absolute()
    there = next(f for f in (folder, *folder.parents) if f.exists())
    free = shutil.disk_usage(there).free
    writable = os.access(there, os.W_OK)
    state = f"{free / GIB:.1f} GiB free in {folder}" + ("" if writable else ", not writable")
    missing = f"{what}: make room, or name another folder in {variable}"
    return Check(f"room for {what}", writable and free > GIB, state, missing)


def _torch() -> list[Check]:
    try:
        done = subprocess.run(
            [sys.executable, "-c", ASK_TORCH], capture_output=True, text=True, timeout=120
        )
        said = done.stderr.strip().splitlines() or ["nothing"]
    except subprocess.TimeoutExpired:
        return [Check("torch", False, "does not answer within two minutes", "transformer agents")]
    if done.returncode:
        return [Check("torch", False, said[-1], "transformer agents")]
    found = json.loads(done.stdout.splitlines()[-1])
    devices = [*found["gpus"], *(["Apple GPU"] if found["mps"] else [])]
    return [
        Check("torch", True, found["torch"]),
        Check("GPU", bool(devices), ", ".join(devices), "speed; everything runs on the CPU too"),
        *map(_kernels, ("kernels", "kernels on the GPU"), found["kernels"]),
    ]


def _kernels(name: str, found: tuple[str, str]) -> Check:
    backend, why = found
    own = backend not in ("", "reference")
    missing = "speed; plain torch computes" if backend else "transformer agents, until it is mended"
    return Check(name, own, f"{backend}: {why}".lstrip(": "), missing)


def _package(distribution: str, wanted_for: str) -> Check:
    try:
        return Check(distribution, True, version(distribution))
    except PackageNotFoundError:
        return Check(distribution, False, missing=wanted_for)


def _compiler(name: str, commands: Iterable[str], wanted_for: str) -> Check:
    path = next(filter(None, map(shutil.which, commands)), None)
    return Check(name, path is not None, path or "", wanted_for)


def _opencl() -> Check:
    drivers = sorted(path.stem for path in Path("/etc/OpenCL/vendors").glob("*.icd"))
    drivers += ["PoCL"] * (find_spec("pocl_binary_distribution") is not None)  # pyopencl[pocl]
    binding = find_spec("pyopencl") is not None
    there = f"drivers: {', '.join(drivers) or 'none'}; pyopencl: {'yes' if binding else 'no'}"
    return Check("OpenCL", bool(drivers) and binding, there, "the OpenCL kernels")


def _weights(name: str) -> Check:
    path = weights(name)
    missing = f"this model offline ({PACKAGED[name].line}); `community fetch {name}`"
    return Check(f"model {name}", path is not None, str(path or ""), missing)
