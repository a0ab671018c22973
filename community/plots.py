"""A run -> plots as files: learning curves, topology, lineage, routing, and those of the report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from community import curves, heatmaps, networks, trees
from community.aside import aside
from community.canvas import encoded, settings
from community.errors import CommunityError, unknown
from community.figures import figures
from community.findings import main_holdout
from community.ledger import Ledger
from community.lineage import Lineage, last_winner
from community.lineage import lineage as lineage_of

Facts = Mapping[str, Any]

FORMS = ("png", "svg")
CAPTIONS = {
    "learning": "Holdout, precision, diversity and tokens, round by round",
    "rounds": "What each round kept, and how much of it is right",
    "holdout": "Exact match on the holdout",
    "growth": "The community's exact match on the holdout after each round",
    "topology": "Who read whom, and what flowed",
    "routing": "Who attempted and who was taught, by round and domain",
    "lineage": "Where the idea came from and what came of it",
}
REPORT = ("rounds", "holdout", "growth")
"""Those that every run leaves."""


def draw(facts: Facts, folder: Path) -> list[str]:
    """Write the plots that the figures of a report have something for; returns their names.

    Raises OSError where the folder cannot be written.
    """
    with settings():
        drawn = {f"{name}.png": encoded(figure, "png") for name, figure in _some(facts, REPORT)}
    if drawn:
        _write(drawn, folder)
    return list(drawn)


def pictures(facts: Facts, found: Lineage | None, form: str) -> dict[str, bytes]:
    """Name -> file of every plot that there is something to draw for, in the order of CAPTIONS.

    `found` is the lineage to draw, `form` png or svg.
    """
    with settings():
        drawn = {name: encoded(figure, form) for name, figure in _some(facts, CAPTIONS)}
        if found is not None:
            drawn["lineage"] = encoded(trees.lineage(found), form)
    return drawn


def plot(run: Path, to: Path, form: str, idea: str = "", again: bool = False) -> list[str]:
    """Write the plots of the run in a folder to `to`; returns the names of the files.

    Lineage is that of `idea`, or of the last winner that was taught. Raises CommunityError for
    an unknown form or idea, where nothing was recorded yet, and for files that are there
    already, unless `again` says that they may be replaced.
    """
    if form not in FORMS:
        raise unknown("format", form, FORMS)
    facts = figures(run)
    with Ledger.open(run / "ledger.db", read_only=True) as ledger:
        found = _lineage(ledger, idea)
    files = {f"{name}.{form}": data for name, data in pictures(facts, found, form).items()}
    save(files, to, again)
    return list(files)


def _lineage(ledger: Ledger, idea: str) -> Lineage | None:
    """That of an idea, or of the last winner; None where nothing was taught yet."""
    try:
        chosen = idea or last_winner(ledger)
    except CommunityError:
        return None
    return lineage_of(ledger, chosen)


def save(files: Mapping[str, bytes], folder: Path, again: bool) -> None:
    """Write files. Raises CommunityError for those that are there, unless `again`, before any."""
    there = [name for name in files if (folder / name).exists()]
    if there and not again:
        raise CommunityError(
            f"{folder / there[0]} is there already; give --to another place, or --force to replace"
        )
    try:
        _write(files, folder)
    except OSError as error:
        raise CommunityError(f"cannot write to {folder}: {error.strerror or error}") from error


def _write(files: Mapping[str, bytes], folder: Path) -> None:
    """All of them or, on a disk that is full, none: what is there is not spoilt."""
    with aside(folder / "all") as part:
        part.mkdir()
        for name, data in files.items():
            (part / name).write_bytes(data)
        for name in files:
            (part / name).replace(folder / name)


def _some(facts: Facts, names: Mapping[str, str] | tuple[str, ...]) -> Iterator[tuple[str, Figure]]:
    """Those of the named plots that the figures have something for."""
    holdout = main_holdout(facts)
    possible: dict[str, tuple[Any, Callable[[], Figure]]] = {
        "learning": (facts["rounds"], lambda: curves.learning(facts)),
        "rounds": (facts["rounds"], lambda: curves.rounds(facts)),
        "holdout": (holdout["tasks"], lambda: curves.levels(facts, holdout)),
        "growth": (len(holdout["by_round"]) > 1, lambda: heatmaps.growth(facts, holdout)),
        "topology": (facts["topology"], lambda: networks.topology(facts)),
        "routing": (facts["routing"], lambda: heatmaps.routing(facts)),
    }
    for name in names:
        has, make = possible.get(name, (False, Figure))
        if has:
            yield name, make()
