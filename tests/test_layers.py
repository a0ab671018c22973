"""The shape of the house, read from its sources: who may import whom, and where things lie."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("agents", "arenas", "kernels", "runs")
SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for folder in ("community", *FOLDERS)
    for path in sorted((ROOT / folder).rglob("*.py"))
    # seen through the links these would be listed twice (Python 3.13 follows links)
    if not (folder == "community" and path.relative_to(ROOT).parts[1] in FOLDERS)
}
MODULES = {
    (name if name.startswith("community") else f"community.{name}").removesuffix(".__init__"): path
    for name, path in SOURCES.items()
}

LAYERS: list[set[str]] = [
    {"kernels", "types", "errors", "extras", "cache", "aside", "world", "replies"},
    {
        *("agents", "arenas", "topology", "router", "teaching", "ranking", "evidence"),
        *(
            "ledger",
            "database",
            "tables",
            "rows",
            "audit",
            "holdout",
            "lineage",
            "lineage_tree",
            "flows",
            "search",
            "textindex",
        ),
        *("config", "plugins", "models", "packaged", "words"),
    },
    {
        *("round", "members", "pool", "school", "parts", "experts", "folder"),
        *("report", "figures", "findings", "standings", "page", "trackers"),
        *("plots", "canvas", "curves", "heatmaps", "networks", "trees"),
        *("export", "candidates", "formats", "wanted", "writers", "dedup", "card"),
    },
    {"run", "baselines", "study", "plan", "scoring"},
    {"cli", "outputs", "home", "engine", "progress", "dashboard", "doctor", "__main__"},
    {"bench"},
]

# Function-level imports hide cycles and cost where nobody looks. These have a reason.
LATE: dict[str, str] = {
    "community.cli": "a command starts fast and loads what it needs, not what the others need",
}

# Modules that are a part of another one are tested through it.
TESTED_WITH: dict[str, str] = {
    "__init__": "layers",
    "__main__": "cli",
    "errors": "types",
    "evidence": "ranking",
    "teaching": "router",
    "tables": "ledger",
    "rows": "ledger",
    "database": "ledger",
    "audit": "ledger",
    "holdout": "ledger",
    "textindex": "search",
    "lineage_tree": "lineage",
    "figures": "report",
    "findings": "report",
    "standings": "report",
    "canvas": "plots",
    "curves": "plots",
    "heatmaps": "plots",
    "networks": "plots",
    "trees": "plots",
    "engine": "cli",
    "home": "cli",
    "cache": "packaged",
    "folder": "run",
    "candidates": "export",
    "formats": "export",
    "wanted": "export",
    "writers": "export",
    "dedup": "export",
    "card": "export",
    "extras": "export",
    "search": "dashboard",
}


def layer(module: str) -> int:
    """0 for the package itself, which everybody may import and which imports nothing of ours."""
    part = [*module.split("."), ""][1]
    found = [n for n, names in enumerate(LAYERS) if part in names]
    assert found or not part, f"{module} is in no layer: give it one in LAYERS"
    return found[0] if found else 0


def imports(path: Path, within_functions: bool = False) -> Iterator[str]:
    """Full names of what a file imports; of what its functions import only, if asked."""
    tree = ast.parse(path.read_bytes(), path)
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    for top in functions if within_functions else [tree]:
        for node in ast.walk(top):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: relative import; write community.…"
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_of(name: str) -> str:
    """`community.types.Task` -> `community.types`."""
    parts = name.split(".")
    prefixes = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((prefix for prefix in prefixes if prefix in MODULES), name)


def ours(path: Path) -> set[str]:
    names = {name for name in imports(path) if name.split(".")[0] == "community"}
    return {module_of(name) for name in names}


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module: str) -> None:
    for imported in ours(MODULES[module]):
        assert layer(imported) <= layer(module), f"{module} imports {imported}, which is above it"


def test_round_is_given_everything() -> None:
    """play_round takes its parts as arguments, so it imports the nouns and nothing else."""
    if "community.round" in MODULES:
        assert {layer(name) for name in ours(MODULES["community.round"])} <= {0}


def test_no_cycles() -> None:
    graph = nx.DiGraph((name, other) for name, path in MODULES.items() for other in ours(path))
    assert not list(nx.simple_cycles(graph))


@pytest.mark.parametrize("module", MODULES)
def test_imports_stand_at_the_top(module: str) -> None:
    late = set(imports(MODULES[module], within_functions=True))
    assert not late or module in LATE, f"{module} imports {sorted(late)} within a function"


def test_folders_are_imported_through_the_package() -> None:
    """`agents`, `kernels` and `runs` are other people's packages; ours are `community.agents`."""
    for path in [*SOURCES.values(), *sorted((ROOT / "tests").rglob("*.py"))]:
        bare = {name for name in imports(path) if name.split(".")[0] in FOLDERS}
        assert not bare, f"{path} imports {bare}; write community.…"


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_are_linked_and_no_packages(folder: str) -> None:
    link = ROOT / "community" / folder
    assert link.is_symlink() and link.readlink() == Path("..") / folder
    assert not (ROOT / folder / "__init__.py").exists(), "it would shadow an installed package"


def test_every_module_has_its_tests() -> None:
    stems = {path.stem for path in (ROOT / "community").glob("*.py")}
    wanted = sorted({TESTED_WITH.get(stem, stem) for stem in stems})
    missing = [stem for stem in wanted if not (ROOT / "tests" / f"test_{stem}.py").exists()]
    assert not missing, f"no tests/test_<module>.py for {missing}"


HEAVY = ("torch", "transformers", "ray", "matplotlib", "peft", "scipy", "sqlalchemy", "networkx")


def loaded(statement: str) -> set[str]:
    """Top-level names in sys.modules after a statement, in a fresh interpreter."""
    code = f"import sys; {statement}; print(*{{m.split('.')[0] for m in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["community", "community.types", "community.plugins"])
def test_importing_the_package_loads_nothing_heavy(module: str) -> None:
    assert not loaded(f"import {module}") & set(HEAVY)


@pytest.mark.parametrize("module", ["ledger", "ranking", "config", "doctor", "cli"])
def test_what_needs_no_model_loads_no_model_library(module: str) -> None:
    if f"community.{module}" in MODULES:
        assert not loaded(f"import community.{module}") & {"torch", "transformers", "ray"}


def test_idle_openmp_threads_sleep_unless_the_user_says_otherwise() -> None:
    code = (
        "import os, community; print(os.environ['OMP_WAIT_POLICY'], os.environ['GOMP_SPINCOUNT'])"
    )
    for given, expected in [({}, "PASSIVE 0"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE 0")]:
        done = subprocess.run(
            [sys.executable, "-c", code], env=given, cwd=ROOT, capture_output=True, text=True
        )
        assert done.stdout.strip() == expected
