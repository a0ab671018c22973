"""A backend of the kernels, chosen for a test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from community.kernels import backend
from community.kernels.build import BuildError, program, simt_program


def forget() -> None:
    """The next call chooses anew."""
    for cached in (backend.backend, backend.kernels, backend.operation, backend.simt):
        cached.cache_clear()


@contextmanager
def computed_by(name: str, source: str, *flags: str) -> Iterator[str]:
    """COMMUNITY_KERNELS is `name`; skips where that cannot compile the source."""
    try:
        if name == "simt":
            simt_program(source, flags)
        elif name in ("c", "opencl"):
            program(source, name)
    except BuildError as error:
        pytest.skip(str(error))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMMUNITY_KERNELS", name)
        forget()
        try:
            yield name
        finally:
            forget()
