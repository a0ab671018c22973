"""A backend of the kernels, chosen for a test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from community.kernels import backend
from community.kernels.build import BuildError, Program, program, simt_program


def forget() -> None:
    """The next call chooses anew."""
    for cached in (backend.backend, backend.kernels, backend.operation, backend.simt):
        cached.cache_clear()


def compiled(source: str, by: str) -> Program:
    """The kernels of a source by "c" or "opencl"; skips where that cannot compile it."""
    try:
        return program(source, by)
    except BuildError as error:
        pytest.skip(str(error))


@contextmanager
def computed_by(name: str, source: str, *flags: str) -> Iterator[str]:
    """COMMUNITY_KERNELS is `name`; skips where that cannot compile the source."""
    if name == "simt":
        try:
            simt_program(source, flags)
        except BuildError as error:
            pytest.skip(str(error))
    elif name in ("c", "opencl"):
        compiled(source, name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMMUNITY_KERNELS", name)
        forget()
        try:
            yield name
        finally:
            forget()
