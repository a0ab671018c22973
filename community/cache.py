"""Where what can be made again is kept between runs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from community.aside import aside
from community.errors import CommunityError


def cache() -> Path:
    """The folder of downloads, conversions and builds: COMMUNITY_CACHE or ~/.cache/community.

    Raises CommunityError where nobody knows what `~` is.
    """
    try:
        return Path(os.environ.get("COMMUNITY_CACHE") or "~/.cache/community").expanduser()
    except RuntimeError as error:
        raise CommunityError("no home folder for the cache; name one in COMMUNITY_CACHE") from error


@contextmanager
def making(folder: Path) -> Iterator[Path]:
    """Where to make a folder that then appears whole or not at all; one that is there stays.

    Another process may make the same at the same time. Raises CommunityError where there is
    no room, or no right to write.
    """
    try:
        with aside(folder) as made:
            yield made
            try:
                made.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was faster
                    raise
    except OSError as error:
        reason = error.strerror or _first(error)
        raise CommunityError(f"cannot write {folder}: {reason}; see to it, then go on") from error


def _first(error: OSError) -> str:
    """Copying a folder goes on after a failure, and tells all of them in the end."""
    if isinstance(error, shutil.Error):
        return str(error.args[0][0][-1]).partition(":")[0]
    return str(error)
