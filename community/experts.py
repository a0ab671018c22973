"""First experts: made once by first lessons, and taken from the cache in the runs to come."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from community import __version__
from community.aside import aside
from community.cache import cache, making
from community.config import Recipe
from community.errors import CommunityError
from community.members import Members
from community.plugins import source
from community.pool import Spec
from community.school import first_lessons
from community.types import Arena, Learned, Study, Task, content_hash, seed_of

LABEL = "learned.json"


def begin(
    recipe: Recipe,
    specs: Sequence[Spec],
    members: Members,
    arena: Arena,
    folder: Path,
    held: Sequence[Task],
) -> dict[str, Learned]:
    """Give every member its first checkpoint; returns what those learned that were taught.

    Raises CommunityError for a first lesson on one of the tasks `held` out.

    An expert is cached under the hash of all that made it: member, arena, first lessons,
    seed, the files that these name, and this program's version. Where the cache cannot be
    written, a warning says so.
    """
    checkpoints = folder / "checkpoints"
    if not recipe.first.examples:
        members.save()
        return {}
    shelves = {spec.name: cache() / "experts" / _key(recipe, spec) for spec in specs}
    known = {name: found for name, shelf in shelves.items() if (found := _shelved(shelf))}
    for name, (_, checkpoint) in known.items():
        _copy(shelves[name] / checkpoint, checkpoints / checkpoint)
    damaged = _taken(members, {name: checkpoint for name, (_, checkpoint) in known.items()})
    for name in damaged:
        shutil.rmtree(checkpoints / known.pop(name)[1], ignore_errors=True)
    wanted = [name for name in shelves if name not in known]
    studies = _studies(recipe, arena, members, wanted)
    _refuse_held(studies, held)
    learned = members.learn(studies, "first lessons")
    for name, (fresh, checkpoint) in learned.items():
        if name in damaged:
            shutil.rmtree(shelves[name], ignore_errors=True)
        _shelve(checkpoints / checkpoint, shelves[name], fresh)
    return {name: both[0] for name, both in (known | learned).items()}


def _taken(members: Members, checkpoints: Mapping[str, str]) -> list[str]:
    """Whose checkpoint from the cache is damaged: it would keep every run from starting."""
    try:
        members.load(checkpoints)
    except CommunityError:
        if len(checkpoints) == 1:
            return list(checkpoints)
        return [x for name, id_ in checkpoints.items() for x in _taken(members, {name: id_})]
    return []


def _studies(
    recipe: Recipe, arena: Arena, members: Members, learners: Sequence[str]
) -> dict[str, Study]:
    members.listener.phase("posing first lessons", len(learners))
    made = {}
    for learner in learners:
        made[learner] = _study(recipe, arena, learner)
        members.listener.done(learner, 0)
    return made


def _refuse_held(studies: Mapping[str, Study], held: Sequence[Task]) -> None:
    """No ledger holds first lessons, which would refuse them."""
    split = {task.id: task.split for task in held}
    for learner, study in studies.items():
        for lesson in study.lessons:
            if lesson.task in split:
                raise CommunityError(
                    f"a first lesson of {learner}, {lesson.prompt!r}, is on a task of the "
                    f"{split[lesson.task]} split; the arena must pose no task in two splits"
                )


def _study(recipe: Recipe, arena: Arena, learner: str) -> Study:
    first, domains = recipe.first, dict(recipe.roster())[learner].domains
    return Study(
        round=0,
        seed=seed_of(recipe.run.seed, learner, "first study"),
        lessons=first_lessons(arena, first, learner, recipe.run.seed, first.examples, domains),
        steps=first.steps,
        batch=recipe.learning.batch,
    )


def _key(recipe: Recipe, spec: Spec) -> str:
    made_of = dict(recipe.roster())[spec.name].model_dump(
        mode="json", exclude={"name", "count", "cpus", "gpus"}
    )
    return content_hash(
        "expert", __version__, spec.name, spec.seed, made_of, recipe.arena.model_dump(mode="json"),
        recipe.first.model_dump(mode="json"), recipe.run.seed, recipe.learning.batch,
        _files(spec),
    )  # fmt: skip


def _files(spec: Spec) -> list[Any]:
    """What is by now in the files that a recipe only names: of its arena, its agent, its model."""
    base = Path(spec.base)
    code = [source("arena", spec.arena, base), source("agent", spec.use, base)]
    model = str(spec.options.get("model") or "")
    return [*code, *(_weights(base / Path(model).expanduser()) if model else ())]


def _weights(model: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of each file of a model: to read whole ones would take too long."""
    files = sorted(path for path in (model, *model.rglob("*")) if path.is_file())
    stats = [(str(path.relative_to(model)), path.stat()) for path in files]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def _shelved(shelf: Path) -> tuple[Learned, str] | None:
    """What was learned and the checkpoint, if both are on the shelf."""
    try:
        checkpoint, found = json.loads((shelf / LABEL).read_text())
    except (OSError, ValueError):
        return None
    learned = Learned(**found | {"left_out": ()})  # of first lessons nothing is; JSON has no tuples
    return (learned, checkpoint) if (shelf / checkpoint).is_dir() else None


def _shelve(source: Path, shelf: Path, fresh: Learned) -> None:
    """Put a checkpoint on the shelf; a run needs it there as little as it needs a cache."""
    try:
        _copy(source, shelf / source.name)
        with aside(shelf / LABEL) as part:
            part.write_text(json.dumps([source.name, asdict(fresh)]))
            part.replace(shelf / LABEL)
    except (CommunityError, OSError) as error:
        said = f"first experts are taught anew in every run: {error}"
        warnings.warn(said, RuntimeWarning, stacklevel=2)


def _copy(source: Path, target: Path) -> None:
    """Copy a folder unless it is there. Raises CommunityError where it cannot be written."""
    if not target.exists():
        with making(target) as made:
            shutil.copytree(source, made)
