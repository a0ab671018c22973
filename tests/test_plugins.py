"""Names in recipes find their things, wherever these live, and wrong ones say what there is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from community import plugins
from community.config import parse
from community.errors import CommunityError
from community.folder import create
from community.ledger import Ledger
from community.run import How, play

PARROT = '''
"""An arena for tests."""
from __future__ import annotations
from dataclasses import dataclass

@dataclass
class Parrot:
    """Says it again."""
    name: str = "parrot"
    def pose(self, split, seed, index, level): ...
    def verify(self, task, idea): ...
    def answer(self, task, text): ...
    def rephrase(self, task, sample): ...

class Mute:
    name = "mute"
    def pose(self, split, seed, index, level): ...

number = 3
'''


@pytest.fixture
def parrot(tmp_path: Path) -> Path:
    (tmp_path / "parrot.py").write_text(PARROT)
    return tmp_path


def refusal(kind: plugins.Kind, name: str, base: Path | None = None) -> str:
    with pytest.raises(CommunityError) as caught:
        plugins.load(kind, name, base)
    return str(caught.value)


def test_our_own_by_module_name() -> None:
    from community.agents.scripted import ScriptedAgent
    from community.arenas.arithmetic import ArithmeticArena

    assert plugins.load("arena", "arithmetic") is ArithmeticArena
    assert plugins.load("agent", "scripted") is ScriptedAgent


def test_everything_available_has_a_line() -> None:
    for kind in ("arena", "agent", "topology", "ranker"):
        found = plugins.available(kind)
        assert found
        assert all(found.values()), f"a {kind} without a docstring: {found}"
    assert "splits" not in plugins.available("arena")  # a helper, and no arena


@pytest.mark.parametrize("kind", ["topology", "ranker"])
def test_every_available_function_loads(kind: plugins.Kind) -> None:
    for name in plugins.available(kind):
        assert callable(plugins.load(kind, name))


def test_topology_names_are_those_that_topology_builds() -> None:
    from community.topology import TOPOLOGIES

    found = {name: plugins.load("topology", name) for name in plugins.available("topology")}
    assert found == TOPOLOGIES


def test_ranker_names_are_the_methods_of_ranking() -> None:
    from community.ranking import METHODS

    assert {name: plugins.load("ranker", name) for name in plugins.available("ranker")} == METHODS


def test_listing_imports_nothing_heavy() -> None:
    code = (
        "import sys; from community import plugins\n"
        "for kind in plugins.PLURAL: plugins.available(kind)\n"
        "plugins.recipes(); assert not {'torch', 'ray', 'scipy', 'networkx'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_file_relative_to_the_recipe(parrot: Path) -> None:
    found = plugins.load("arena", "parrot.py:Parrot", parrot)
    assert found().name == "parrot"
    assert plugins.load("arena", f"{parrot}/parrot.py:Parrot") is found


def test_a_package_and_a_dotted_name() -> None:
    assert plugins.load("ranker", "json:dumps")([1]) == "[1]"
    assert plugins.load("ranker", "json:JSONEncoder.encode")


def test_entry_points_of_installed_packages(parrot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (parrot / "parrots-1.dist-info").mkdir()
    (parrot / "parrots-1.dist-info" / "METADATA").write_text("Name: parrots\nVersion: 1\n")
    (parrot / "parrots-1.dist-info" / "entry_points.txt").write_text(
        "[community.arenas]\npolly = parrot:Parrot [sound]\nlost = parrot\n"
    )
    monkeypatch.syspath_prepend(str(parrot))
    assert plugins.load("arena", "polly")().name == "parrot"
    assert plugins.available("arena")["polly"] == "from parrot"
    assert "unknown name in parrot: ''" in refusal("arena", "lost")


def test_unknown_names_list_what_there_is() -> None:
    said = refusal("arena", "arithmetik")
    assert "did you mean 'arithmetic'?" in said
    assert "splits" not in said
    assert "scripted" in refusal("agent", "script")


def test_what_cannot_be_found_is_said(parrot: Path) -> None:
    assert "no file" in refusal("arena", "nowhere.py:Parrot", parrot)
    assert "did you mean 'Parrot'?" in refusal("arena", "parrot.py:Parot", parrot)
    assert "cannot import no_such_package" in refusal("arena", "no_such_package.x:Y")
    assert "name it whole" in refusal("arena", ".x:Y")
    assert "'JSON'" in refusal("arena", "json:JSON")


def test_what_is_of_another_kind_is_said(parrot: Path) -> None:
    assert "no verify, answer, rephrase" in refusal("arena", "parrot.py:Mute", parrot)
    assert "no call" in refusal("topology", "parrot.py:number", parrot)


def test_a_broken_file_is_said_and_read_again_when_mended(tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text("def (")
    assert "cannot import" in refusal("arena", "broken.py:Parrot", tmp_path)
    file.write_text(PARROT + "# mended\n")
    assert plugins.load("arena", "broken.py:Parrot", tmp_path)


def test_an_edited_file_is_read_again_by_the_run_that_begins(tmp_path: Path) -> None:
    for error in ("0.0", "1.0"):
        (tmp_path / "mine.py").write_text(f"""
from community.agents.scripted import ScriptedAgent

def mine(name: str, seed: int, solve=None):
    return ScriptedAgent(name, seed, solve=solve, error={error})
""")
        members = [{"use": "mine.py:mine"}]
        tasks = {"train": 3, "holdout": 4}
        run = {"pool": "local", "rounds": 0}
        data = {"run": run, "tasks": tasks, "members": members, "arena": {"use": "arithmetic"}}
        create(parse(data), tmp_path, tmp_path / error)
        play(tmp_path / error, How())
        with Ledger.open(tmp_path / error / "ledger.db") as ledger:
            assert {score.right / score.total for score in ledger.scores()} == {1 - float(error)}


def test_a_bug_in_a_file_keeps_its_traceback(tmp_path: Path) -> None:
    (tmp_path / "bug.py").write_text("1 / 0")
    with pytest.raises(ZeroDivisionError):
        plugins.load("arena", "bug.py:Parrot", tmp_path)


def test_recipes_by_name_and_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "first.toml").write_text("# The first one.\n[run]\n")
    (tmp_path / "ours" / "silent.toml").write_text("[run]\n")
    monkeypatch.setattr(plugins, "RECIPES", tmp_path / "ours")
    monkeypatch.chdir(tmp_path)
    assert plugins.recipes() == {"first": "The first one.", "silent": ""}
    assert plugins.recipe("first") == plugins.recipe("ours/first.toml").absolute()
    for name, said in [("frist", "did you mean 'first'?"), ("first.toml", "no recipe file")]:
        with pytest.raises(CommunityError, match=said.replace("?", r"\?")):
            plugins.recipe(name)


def test_shipped_recipes_say_what_they_are() -> None:
    assert all(plugins.recipes().values())
