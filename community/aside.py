"""Where to write what is to appear whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory


@contextmanager
def aside(target: Path) -> Iterator[Path]:
    """A free path on the disk of `target`, for what is then moved there (`rename`, `replace`).

    No other process has the same one. What is still there in the end is removed. Raises OSError.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent, prefix=".part-") as place:
        yield Path(place, "new")
