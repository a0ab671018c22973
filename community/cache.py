"""Where what can be made again is kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache() -> Path:
    """The folder of downloads, conversions and builds: COMMUNITY_CACHE or ~/.cache/community."""
    return Path(os.environ.get("COMMUNITY_CACHE") or "~/.cache/community").expanduser()
