"""`community score`: weights on the holdout of a run, its own and others."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest
from command import RECIPE, community, write_recipe
from rich.console import Console
from safetensors.torch import load_file, save_file

from community.config import read
from community.errors import CommunityError
from community.folder import create
from community.ledger import Ledger
from community.scoring import render, score

# first lessons long enough for carl to know something
CHANGES = {
    "rounds = 3": "rounds = 1",
    "[first]\nexamples = 64\nsteps = 8": "[first]\nexamples = 200\nsteps = 500",
}


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of two transformers and a scripted member. Look, and change nothing."""
    folder = tmp_path_factory.mktemp("played")
    assert community(folder, "run", write_recipe(folder, RECIPE, **CHANGES)).code == 0
    return folder


@pytest.fixture
def run(played: Path) -> Path:
    return played / "runs" / "tiny"


def checkpoints(run: Path, member: str) -> list[Path]:
    with Ledger.open(run / "ledger.db", read_only=True) as ledger:
        return [run / c.path for c in ledger.checkpoints(member)]


def test_a_greedy_member_scores_as_its_ledger_says(run: Path) -> None:
    with Ledger.open(run / "ledger.db", read_only=True) as ledger:
        said = [s for s in ledger.scores() if s.solver == "carl"]
        last = next(c.round for c in reversed(ledger.checkpoints("carl")) if c.kept)
    found = score(run, "carl")
    assert list(found) == ["start", f"round {last}"] and last > 0
    for name, n in (("start", 0), (f"round {last}", last)):
        ours = [(s.level, s.right, s.total) for s in found[name]]
        assert ours == [(s.level, s.right, s.total) for s in said if s.round == n]
    assert {s.level for s in found["start"]} == {1, 2}


def test_others_stand_beside_its_own(run: Path, tmp_path: Path) -> None:
    """The start's copy scores as the start; weights that know nothing answer nothing right."""
    start = checkpoints(run, "carl")[0]
    same, empty = tmp_path / "same", tmp_path / "empty"
    shutil.copytree(start, same)
    shutil.copytree(start, empty)
    weights = load_file(empty / "model.safetensors")
    save_file({k: 0 * v for k, v in weights.items()}, empty / "model.safetensors")
    found = score(run, "carl", [same, empty])
    rights = {name: [s.right for s in scores] for name, scores in found.items()}
    assert rights["start"] == rights[str(same)] and sum(rights["start"]) > 0
    assert sum(rights[str(empty)]) == 0


def test_a_folder_named_as_one_of_its_own_stands_beside_it(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ("start", "tuned[v2]")
    for name in names:
        shutil.copytree(checkpoints(run, "carl")[0], name)
    found = score(run, "carl", list(map(Path, names)))
    assert "start" in found and [*found][-2:] == ["./start", "tuned[v2]"]
    console = Console(file=io.StringIO(), width=120)
    console.print(render(found))
    assert "│ ./start │ tuned[v2] │" in console.file.getvalue().replace("┃", "│")  # type: ignore[attr-defined]


def test_a_task_that_is_too_long_is_not_right(tmp_path: Path) -> None:
    """As in the run: learned positions end at the eighth, and sums of four digits do not."""
    short = {
        "holdout_levels = [1, 2]": "holdout_levels = [1, 4]",
        'heads = 2, positions = "restart"': "heads = 2, context = 8",
    }
    path = write_recipe(tmp_path, RECIPE, **short)
    assert community(tmp_path, "run", path, "--rounds", "0").code == 0
    run = tmp_path / "runs" / "tiny"
    with Ledger.open(run / "ledger.db", read_only=True) as ledger:
        said = [(s.level, s.right, s.total) for s in ledger.scores() if s.solver == "ada"]
    assert [(s.level, s.right, s.total) for s in score(run, "ada")["start"]][1:] == said[1:]
    assert said[1] == (4, 0.0, 6)


def test_the_command_prints_a_row_for_each_level(played: Path) -> None:
    done = community(played, "score", "tiny", "ada")
    assert done.code == 0
    for word in ("addition 1", "addition 2", "all", "start"):
        assert word in done.out


def test_refusals(run: Path, tmp_path: Path) -> None:
    other = checkpoints(run, "ada")[0]
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "model.safetensors").write_bytes(b"not weights")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    shutil.copy(other / "model.safetensors", adapter / "adapter_model.safetensors")
    narrow = tmp_path / "narrow"
    narrow.mkdir()
    weights = load_file(checkpoints(run, "carl")[0] / "model.safetensors")
    halves = {name: tensor[..., ::2].contiguous() for name, tensor in weights.items()}
    save_file(halves, narrow / "model.safetensors")
    for member, folders, said in [
        ("carla", [], "unknown member 'carla'; did you mean 'carl'"),
        ("sam", [], "sam is an agent of kind scripted"),
        ("carl", [tmp_path], "there are no weights in"),
        ("carl", [other], "belongs to a model of another shape; name weights"),
        ("carl", [narrow], "belongs to a model of another shape; name weights"),
        ("carl", [damaged], r"damaged/model\.safetensors is damaged \(.*\); restore a copy"),
        ("carl", [adapter], "takes a whole model's weights"),
    ]:
        with pytest.raises(CommunityError, match=said):
            score(run, member, folders)


@pytest.mark.parametrize(
    ("holdout", "said"), [("holdout = 0", "has no holdout"), ("holdout = 6", "no checkpoint of")]
)
def test_a_run_that_has_nothing_to_score(holdout: str, said: str, tmp_path: Path) -> None:
    recipe = read(Path(write_recipe(tmp_path, RECIPE, **{"holdout = 6": holdout})))
    create(recipe, tmp_path, tmp_path / "run")
    with pytest.raises(CommunityError, match=said):
        score(tmp_path / "run", "carl")
