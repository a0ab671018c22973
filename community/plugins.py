"""A name in a recipe -> the thing it names; and what there is, without loading any of it.

A name is one of ours (`arithmetic`), `path/to/file.py:Name`, `package.module:Name`, or one
that an installed package registers under the entry points `community.arenas`,
`community.agents`, `community.topologies` or `community.rankers`. There is no list to edit:
arenas/arithmetic.py holds `ArithmeticArena` and agents/scripted.py holds `ScriptedAgent`,
so these are the arena `arithmetic` and the agent `scripted`. The public functions of
topology.py that take `members` first are the topologies; `METHODS` in ranking.py names the
rankers.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple, overload

from community.errors import CommunityError, unknown
from community.types import Agent, Arena, content_hash

Kind = Literal["arena", "agent", "topology", "ranker"]

HERE = Path(__file__).parent
RECIPES = HERE / "runs"
PLURAL = {"arena": "arenas", "agent": "agents", "topology": "topologies", "ranker": "rankers"}
PROTOCOL: dict[str, type] = {"arena": Arena, "agent": Agent}

_loaded: dict[str, tuple[Path, bytes]] = {}  # name of a module -> its file and what was in it


class _Ours(NamedTuple):
    """Where one of our own things is, and the first line of its docstring."""

    module: str
    attribute: str
    line: str


@overload
def load(kind: Literal["arena"], name: str, base: Path | None = None) -> Callable[..., Arena]: ...
@overload
def load(kind: Literal["agent"], name: str, base: Path | None = None) -> Callable[..., Agent]: ...
@overload
def load(kind: Kind, name: str, base: Path | None = None) -> Callable[..., Any]: ...
def load(kind: Kind, name: str, base: Path | None = None) -> Callable[..., Any]:
    """The class or function that a recipe's name stands for.

    File names are relative to `base`, the recipe's folder (the working directory if None).
    Raises CommunityError for an unknown name, a file or module that is not there or cannot
    be imported, a missing attribute, and a class that is not of the kind asked for.
    """
    return _named(kind, *_found(kind, name, base))


def source(kind: Kind, name: str, base: Path | None = None) -> str:
    """A hash of the file in which `load` finds a name; raises CommunityError as it does."""
    _, module = _found(kind, name, base)
    return content_hash(Path(module.__file__).read_bytes().hex() if module.__file__ else "")


def _found(kind: Kind, name: str, base: Path | None) -> tuple[str, ModuleType]:
    """A name with its module, as `module:attribute`, and that module."""
    where, _, attribute = name.rpartition(":")
    if where.endswith(".py"):
        return name, _from_file((base or Path()) / Path(where).expanduser())
    if where:
        return name, _from_module(where)
    ours = _ours(kind)
    if attribute in ours:
        found = ours[attribute]
        return f"{found.module}:{found.attribute}", _from_module(found.module)
    theirs = _theirs(kind)
    if attribute in theirs:
        point = theirs[attribute]
        return f"{point.module}:{point.attr or ''}", _from_module(point.module)
    raise unknown(kind, name, {*ours, *theirs})


def available(kind: Kind) -> dict[str, str]:
    """Name -> one line, for everything of a kind that needs no path; sources are only parsed."""
    lines = {name: f"from {point.module}" for name, point in _theirs(kind).items()}
    return lines | {name: found.line for name, found in _ours(kind).items()}


def recipes() -> dict[str, str]:
    """Name -> first comment line, for every shipped recipe."""
    return {path.stem: _first_comment(path) for path in sorted(RECIPES.glob("*.toml"))}


def recipe(name: str) -> Path:
    """The file of a recipe, given its path or the name of a shipped one.

    Raises CommunityError if there is no such file or name.
    """
    path = Path(name).expanduser()
    if path.suffix == ".toml" or len(path.parts) > 1:
        if not os.path.isfile(path):  # noqa: PTH113  (Path's fails on long names)
            raise CommunityError(f"there is no recipe file {name}; `community list` shows ours")
        return path
    if name not in (known := recipes()):
        raise unknown("recipe", name, known)
    return RECIPES / f"{name}.toml"


def _first_comment(path: Path) -> str:
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.lstrip("# ").rstrip() if first.startswith("#") else ""


def _theirs(kind: Kind) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=f"community.{PLURAL[kind]}")}


@cache  # a community of thousands asks for each member
def _ours(kind: Kind) -> dict[str, _Ours]:
    find = {"topology": _graphs, "ranker": _methods}.get(kind)
    return dict(find() if find else _classes(kind))


def _classes(kind: str) -> Iterator[tuple[str, _Ours]]:
    for path in sorted((HERE / PLURAL[kind]).glob("*.py")):
        wanted = "".join(part.title() for part in path.stem.split("_")) + kind.title()
        tree = ast.parse(path.read_bytes(), path)
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and node.name == wanted:
                line = _first_line(node) or _first_line(tree)
                yield path.stem, _Ours(f"community.{PLURAL[kind]}.{path.stem}", wanted, line)


def _graphs() -> Iterator[tuple[str, _Ours]]:
    for name, node in _functions("topology").items():
        first = node.args.args[0].arg if node.args.args else ""
        if first == "members" and not name.startswith("_"):
            yield name, _Ours("community.topology", name, _first_line(node))


def _methods() -> Iterator[tuple[str, _Ours]]:
    functions = _functions("ranking")
    for name, function in _dict_of_names(_parse("ranking"), "METHODS").items():
        line = _first_line(functions[function]) if function in functions else ""
        yield name, _Ours("community.ranking", function, line)


def _parse(stem: str) -> ast.Module:
    path = HERE / f"{stem}.py"
    return ast.parse(path.read_bytes(), path)


def _functions(stem: str) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in _parse(stem).body if isinstance(node, ast.FunctionDef)}


def _dict_of_names(tree: ast.Module, variable: str) -> dict[str, str]:
    """The keys and the names of the values of a literal dictionary at module level."""
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names = [target.id for target in targets if isinstance(target, ast.Name)]
        value = getattr(node, "value", None)
        if variable in names and isinstance(value, ast.Dict):
            pairs = zip(value.keys, value.values, strict=True)
            return {ast.literal_eval(key): ast.unparse(name) for key, name in pairs if key}
    return {}


def _first_line(node: ast.Module | ast.ClassDef | ast.FunctionDef) -> str:
    return (ast.get_docstring(node) or "").partition("\n")[0]


def _from_module(name: str) -> ModuleType:
    if name.startswith("."):
        raise CommunityError(f"cannot import {name}: a recipe is in no package; name it whole")
    try:
        return importlib.import_module(name)
    except (ImportError, SyntaxError) as error:
        raise CommunityError(f"cannot import {name}: {error}; install or mend it") from error


def reread() -> None:
    """Forget the files that were edited since they were loaded, such as between two runs of a
    notebook; while a run plays, its parts stay what they are."""
    for name, (path, content) in list(_loaded.items()):
        if not path.is_file() or path.read_bytes() != content:
            _loaded.pop(name, None)
            sys.modules.pop(name, None)


def _from_file(path: Path) -> ModuleType:
    """The module in a file, loaded once however many names of a recipe point to it."""
    if not os.path.isfile(path):  # noqa: PTH113  (as above)
        raise CommunityError(f"there is no file {path}; paths are relative to the recipe's folder")
    name = f"community_plugin_{path.stem}_{content_hash(str(path.resolve()), length=8)}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader, "a .py file always has a loader"
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    content = path.read_bytes()
    _loaded[name] = path.resolve(), content
    try:
        # not by the loader: bytecode that it keeps outlives an edit within the same second
        exec(compile(content, path, "exec"), vars(module))
    except BaseException as error:
        del sys.modules[name]  # so that a second try reads the file again
        if isinstance(error, ImportError | SyntaxError):
            raise CommunityError(f"cannot import {path}: {error}; mend it") from error
        raise
    return module


def _named(kind: Kind, name: str, module: ModuleType) -> Callable[..., Any]:
    """What `...:Name` asks for, checked to be of the kind; Name may be dotted."""
    thing: Any = module
    for part in name.rpartition(":")[2].split("."):
        if not hasattr(thing, part):
            public = [each for each in vars(thing) if not each.startswith("_")]
            raise unknown(f"name in {name.rpartition(':')[0]}:", part, public)
        thing = getattr(thing, part)
    missing = _missing(kind, thing)
    if missing:
        raise CommunityError(f"{name} cannot be used as {kind}: it has no {', '.join(missing)}")
    return thing


def _missing(kind: Kind, thing: Any) -> list[str]:
    if not callable(thing):
        return ["call"]
    if not isinstance(thing, type) or kind not in PROTOCOL:  # a function may make anything
        return []
    methods = [name for name, value in vars(PROTOCOL[kind]).items() if callable(value)]
    return [name for name in methods if not name.startswith("_") and not hasattr(thing, name)]
