"""Packages that not everybody needs, loaded when they are."""

from __future__ import annotations

import importlib
from typing import Any

from community.errors import CommunityError


def extra(module: str, name: str = "export") -> Any:
    """The module of a package that the extra `name` installs. CommunityError without it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        raise CommunityError(
            f"{missing} is not installed; it comes with: pip install 'modelcommunity[{name}]'"
        ) from error
