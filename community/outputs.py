"""Commands that make something to look at from a run's ledger: plots, a page, a tracker's run."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from community.errors import CommunityError
from community.home import RunArgument, run_folder

Force = Annotated[bool, typer.Option("--force", help="Replace files that are there already.")]


def plot(
    run: RunArgument,
    to: Annotated[
        Path | None, typer.Option(help="A folder; the run's own plots/ if not given.")
    ] = None,
    form: Annotated[str, typer.Option("--format", help="png or svg.")] = "png",
    idea: Annotated[
        str, typer.Option(help="Whose lineage: an idea's id or its start; default: last winner.")
    ] = "",
    force: Force = False,
) -> None:
    """Draw a run: learning curves, who read whom, an idea's lineage, routing over time."""
    plots = importlib.import_module("community.plots")
    folder = run_folder(run)
    place = to or folder / "plots"
    names = plots.plot(folder, place, form, idea, again=force or to is None)
    missing = [name for name in plots.CAPTIONS if f"{name}.{form}" not in names]
    if names:
        _say(f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} in {place}")
    if missing:
        _say(f"nothing to draw yet for: {', '.join(missing)}")


def report(
    run: RunArgument,
    to: Annotated[
        Path | None, typer.Option(help="An HTML file; the run's own report.html if not given.")
    ] = None,
    force: Force = False,
) -> None:
    """Write one HTML page with all of a run in it, to open in any browser or send to someone."""
    page = importlib.import_module("community.page")
    folder = run_folder(run)
    place = to or folder / "report.html"
    page.write(folder, place, again=force or to is None)
    _say(f"the report is in {place}")


def track(
    run: RunArgument,
    kind: Annotated[
        str, typer.Option("--with", help="tensorboard, trackio or wandb.", show_default=False)
    ],
    to: Annotated[
        Path | None, typer.Option(help="A folder; a new one in the run's own if not given.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on until the run has ended.")
    ] = False,
) -> None:
    """Log a run's figures, round by round, with a tracker; again adds only what is new."""
    trackers = importlib.import_module("community.trackers")
    folder = run_folder(run)
    told: Any = (lambda n: _say(f"logged up to round {n}")) if follow else (lambda n: None)
    try:
        shows = trackers.track(folder, kind, to or folder / kind, follow, told)
    except KeyboardInterrupt:
        raise CommunityError("stopped; what was logged stays, the same command goes on") from None
    _say(f"to look at it: {shows}")


def _say(line: str) -> None:
    Console().print(line, highlight=False, soft_wrap=True, markup=False)
