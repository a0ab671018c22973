"""Packages that not everybody needs, loaded when they are."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import Any

from community.errors import CommunityError


def installed(package: str) -> bool:
    """Whether there is such a package. A folder of its name where Python looks, such as the one
    that wandb logs to, is none."""
    spec = find_spec(package)
    return spec is not None and spec.origin is not None


def extra(module: str, name: str = "export") -> Any:
    """The module of a package that the extra `name` installs. CommunityError without it."""
    try:
        if not installed(package := module.partition(".")[0]):
            raise ModuleNotFoundError(name=package)
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        raise CommunityError(
            f"{missing} is not installed; it comes with: pip install 'modelcommunity[{name}]'"
        ) from error
