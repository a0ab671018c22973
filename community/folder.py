"""A run's folder: laid out whole or not at all, found again, refused if its recipe was changed."""

from __future__ import annotations

import errno
import shutil
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tomli_w

from community.aside import aside
from community.config import Recipe, read
from community.errors import CommunityError
from community.ledger import Ledger
from community.parts import arena_of, graph_of, router_of, rules_of, specs_of
from community.plugins import reread
from community.types import Arena, Split
from community.world import posed

VERSIONS = ("modelcommunity", "torch", "transformers", "ray", "numpy", "scipy", "sqlalchemy")


def create(recipe: Recipe, base: Path, folder: Path) -> None:
    """Lay out a new run: its folder, the resolved recipe and an empty ledger, all or nothing.

    Raises CommunityError if the name is taken, the recipe names what does not exist, or
    there is no room.
    """
    check(recipe, base)
    try:
        _refuse_taken(folder)
        with aside(folder) as part:
            (part / "checkpoints").mkdir(parents=True)
            text = tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True))
            (part / "recipe.toml").write_text(text, encoding="utf-8")
            _new_ledger(recipe, base, part / "ledger.db")
            part.rename(folder)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            _refuse_taken(folder)
        hint = "; --name gives the run a shorter one" * (error.errno == errno.ENAMETOOLONG)
        raise CommunityError(f"cannot write to {folder.parent}: {error.strerror}{hint}") from error


def _refuse_taken(folder: Path) -> None:
    if folder.is_dir():
        if any(folder.iterdir()):
            raise CommunityError(
                f"there is a run in {folder} already; `community resume {folder.name}` goes on "
                "with it, --name gives the new one another name"
            )
    elif folder.exists():
        raise CommunityError(f"{folder} is a file; --name gives the run another name")


def check(recipe: Recipe, base: Path) -> None:
    """Raises CommunityError for what the recipe names in vain, before anything is written."""
    reread()
    names = [spec.name for spec in specs_of(recipe, base)]
    _pose_each(recipe, arena_of(recipe, base))
    router_of(recipe, names)
    rules_of(recipe, base)
    for topology in recipe.topology:
        graph_of(recipe, names, topology.from_round, base)


def _pose_each(recipe: Recipe, arena: Arena) -> None:
    """A task of every level that is to be posed. Raises CommunityError where there is none."""
    wanted = recipe.tasks
    plan: list[tuple[Split, Sequence[int]]] = [
        ("train", wanted.levels[: recipe.run.rounds]),
        ("train", recipe.first.levels * bool(recipe.first.examples)),
        ("validation", wanted.validation_levels * bool(wanted.validation)),
        ("holdout", wanted.holdout_levels * bool(wanted.holdout)),
    ]
    for split, level in {(split, level) for split, levels in plan for level in levels}:
        posed(arena, split, recipe.run.seed, 0, level)


def _new_ledger(recipe: Recipe, base: Path, path: Path) -> None:
    meta = {
        "recipe": recipe.content(),
        "recipe_hash": recipe.hash,
        "seed": recipe.run.seed,
        "base": str(base.resolve()),
        "versions": {name: version(name) for name in VERSIONS} | {"python": sys.version.split()[0]},
    }
    members = [
        (name, {"backend": table.use, **table.model_dump(mode="json")})
        for name, table in recipe.roster()
    ]
    Ledger.create(path, meta, members).close()


def undo(folder: Path) -> None:
    """Take `create` back if nothing was learned or recorded since, so that the name is free."""
    with Ledger.open(folder / "ledger.db", read_only=True) as ledger:
        begun = ledger.last_learning() >= 0
    if not begun and not any((folder / "checkpoints").iterdir()):
        shutil.rmtree(folder)


def reopen(folder: Path) -> tuple[Recipe, Path]:
    """The recipe of a run that was started before, and the folder its paths are relative to.

    Raises CommunityError if there is no run or its recipe was changed since.
    """
    path = folder / "recipe.toml"
    if not path.is_file():
        raise CommunityError(f"there is no run in {folder}; `community runs` lists what there is")
    recipe = read(path)
    reread()
    return recipe, refuse_changes(recipe, folder)


def refuse_changes(recipe: Recipe, folder: Path) -> Path:
    """The folder that the paths of a run's recipe are relative to.

    Raises CommunityError if `recipe` is not the one that the run was started with.
    """
    with Ledger.open(folder / "ledger.db", read_only=True) as ledger:
        meta = ledger.meta
    changed = list(_differences(meta["recipe"], recipe.content()))
    if changed:
        raise CommunityError(
            f"the recipe of {folder.name} was changed since it started: {'; '.join(changed)}; "
            "undo that, or start a new run with --name"
        )
    return Path(meta["base"])


def _differences(old: Any, new: Any, place: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(key), new.get(key), f"{place}.{key}".lstrip("."))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, (x, y) in enumerate(zip(old, new, strict=True)):
            yield from _differences(x, y, f"{place}[{i}]")
    elif old != new:
        yield f"{place} was {old!r} and is {new!r}"
