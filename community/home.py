"""Where runs are kept, and the arguments that name one on the command line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from community.errors import CommunityError

RunArgument = Annotated[str, typer.Argument(help="A run's name, or the path of its folder.")]


def home() -> Path:
    """Where runs are kept: `runs/` of the working directory, or of $COMMUNITY_HOME."""
    return Path(os.environ.get("COMMUNITY_HOME", ".")) / "runs"


def run_folder(run: str) -> Path:
    """The folder of a run given by name or path. Raises CommunityError if there is none."""
    path = Path(run)
    for folder in (home() / run, path):
        if os.path.isfile(folder / "recipe.toml"):  # noqa: PTH113  (Path's fails on long names)
            return folder
    known = [p.parent.name for p in sorted(home().glob("[!.]*/recipe.toml"))]
    there = f"there are: {', '.join(known)}" if known else f"there are no runs in {home()} yet"
    raise CommunityError(f"there is no run {run!r}; {there}")
