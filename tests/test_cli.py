"""The command line: what it prints, and one line and exit code 2 for what a user can mend."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import typer
from command import CROWD, RECIPE, Command, community, hash_of, write_recipe

from community.cli import app

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
CODES = re.compile(r"\x1b|\r")


@pytest.fixture
def copy(played: Path, tmp_path: Path) -> Path:
    """The same, to be spoilt."""
    shutil.copytree(played, tmp_path, dirs_exist_ok=True)
    return tmp_path


class TestHelp:
    @pytest.mark.parametrize("name", COMMANDS)
    def test_every_command_and_option_says_what_it_is_for(self, name: str) -> None:
        command = COMMANDS[name]
        assert command.help
        for parameter in command.params:
            assert getattr(parameter, "help", ""), f"{name}: {parameter.name}"

    def test_help_starts_without_torch(self) -> None:
        code = (
            "import sys; from community.cli import main\n"
            "sys.argv = ['community', 'run', '--help']\n"
            "try: main()\n"
            "finally: print({'torch', 'ray', 'transformers'} & set(sys.modules))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0 and done.stdout.rstrip().endswith("set()")

    @pytest.mark.parametrize("given", [["run"], ["run", "x", "--no-such-option"], ["nonsense"]])
    def test_wrong_usage_exits_2(self, given: list[str], tmp_path: Path) -> None:
        assert community(tmp_path, *given).code == 2


class TestLooking:
    def test_list(self, tmp_path: Path) -> None:
        done = community(tmp_path, "list")
        assert done.code == 0
        for name in ("scripted", "transformer", "arithmetic", "small_world", "adders"):
            assert name in done.out

    def test_runs(self, played: Path, tmp_path: Path) -> None:
        done = community(played, "runs")
        assert "tiny" in done.out and "2/2" in done.out
        assert "there are no runs" in community(tmp_path, "runs").out

    def test_runs_counts_the_seconds_that_show_does(self, copy: Path) -> None:
        with closing(sqlite3.connect(copy / "runs/tiny/ledger.db")) as conn, conn:
            conn.execute("UPDATE learnings SET seconds = 100 * (n + 1)")
        shown = json.loads(community(copy, "show", "tiny", "--json").out)["seconds"]
        assert shown >= 600 and f" {shown:.0f} " in community(copy, "runs").out

    def test_a_terminal_of_few_characters_gets_those_it_has(self, tmp_path: Path) -> None:
        home = {"COMMUNITY_HOME": str(tmp_path / "läufe"), "PYTHONIOENCODING": "ascii"}
        words = [sys.executable, "-m", "community", "runs"]
        done = subprocess.run(words, env=os.environ | home, capture_output=True, text=True)
        assert done.returncode == 0 and "l?ufe" in done.stdout.replace("\n", ""), done.stderr

    def test_a_run_is_listed_as_its_folder_is_called(self, copy: Path) -> None:
        (copy / "runs/tiny").rename(copy / "runs/tiny[v2]")
        assert " tiny[v2] " in community(copy, "runs").out
        assert "of tiny[v2] is sound" in community(copy, "verify", "tiny[v2]").out

    def test_show(self, played: Path) -> None:
        assert "round" in community(played, "show", "tiny").out
        facts = json.loads(community(played, "show", "tiny", "--json").out)
        written = json.loads((played / "runs/tiny/report.json").read_text())
        assert facts == written and [r["round"] for r in facts["rounds"]] == [1, 2]

    def test_a_run_is_found_by_its_path_too(self, played: Path, tmp_path: Path) -> None:
        by_path = community(tmp_path, "hash", str(played / "runs/tiny"))
        assert by_path.out == community(played, "hash", "tiny").out

    def test_lineage_of_the_last_winner(self, played: Path) -> None:
        found = json.loads(community(played, "lineage", "tiny", "last", "--json").out)
        assert found["idea"]["facts"]["round"] == 2
        again = community(played, "lineage", "tiny", found["idea"]["id"])
        assert again.code == 0 and found["idea"]["facts"]["author"] in again.out
        assert "starts with 'zzz'" in community(played, "lineage", "tiny", "zzz").refused()

    def test_hash_and_verify(self, played: Path) -> None:
        assert community(played, "hash", "tiny").out.strip() == hash_of(played, "tiny")
        assert "sound" in community(played, "verify", "tiny").out

    def test_what_is_piped_holds_plain_lines_alone(self, tmp_path: Path) -> None:
        done = community(tmp_path, "run", write_recipe(tmp_path, CROWD))
        assert not CODES.search(done.out + done.err)
        rounds = [line for line in done.out.splitlines() if re.match(r"round \d", line)]
        assert [line.split()[1] for line in rounds] == ["1/2", "2/2"]


class TestPlaying:
    def test_a_dry_run_tells_and_leaves_nothing(self, tmp_path: Path) -> None:
        done = community(tmp_path, "run", write_recipe(tmp_path, CROWD), "--dry-run")
        assert done.code == 0 and "sam-1" in done.out and "complete" in done.out
        assert not (tmp_path / "runs").exists()

    def test_a_dry_run_refuses_the_baselines_that_a_run_refuses(self, tmp_path: Path) -> None:
        given = [write_recipe(tmp_path, CROWD), "--set", 'baselines.run=["greedy"]', "--dry-run"]
        assert "cannot play baseline greedy" in community(tmp_path, "run", *given).refused()
        assert community(tmp_path, "run", *given, "--no-baselines").code == 0

    def test_options_override_the_recipe(self, tmp_path: Path) -> None:
        recipe = write_recipe(tmp_path, CROWD)
        given = ["--name", "x", "--rounds", "1", "--seed", "0", "--set", "tasks.train=5"]
        assert community(tmp_path, "run", recipe, *given).code == 0
        (rounds,) = json.loads(community(tmp_path, "show", "x", "--json").out)["rounds"]
        assert rounds["posed"] <= 5

    def test_a_finished_run_is_resumed_to_the_same_report(self, copy: Path) -> None:
        before = hash_of(copy, "tiny")
        assert community(copy, "resume", "tiny").code == 0
        assert hash_of(copy, "tiny") == before

    def test_a_spent_budget_stops_between_rounds_and_resume_says_so(self, tmp_path: Path) -> None:
        recipe = write_recipe(tmp_path, CROWD)
        done = community(tmp_path, "run", recipe, "--set", "budget.tokens=1")
        sentence = "stopped after round 1 of 2: its budget of 1 tokens is spent"
        assert done.code == 0 and sentence in done.out
        done = community(tmp_path, "resume", "tiny")
        assert done.code == 0 and sentence in done.out
        assert "sound" in community(tmp_path, "verify", "tiny").out

    def test_a_study_prints_each_seed_and_goes_on(self, tmp_path: Path) -> None:
        recipe = write_recipe(tmp_path, CROWD)
        first = community(tmp_path, "study", recipe, "--seeds", "1", "--rounds", "1")
        assert first.code == 0 and "seed 0" in first.out
        both = community(tmp_path, "study", recipe, "--seeds", "2", "--rounds", "1")
        assert both.code == 0 and "seed 1" in both.out and "mean" in both.out
        other = community(tmp_path, "study", recipe, "--seeds", "2", "--rounds", "2")
        assert "run.rounds was 1 and is 2" in other.refused()


BAD = {
    "unknown key": ("[tasks]\ntrain", "[tasks]\ntrian = 1\ntrain", "'train'"),
    "wrong type": ("train = 8", 'train = "many"', "tasks.train"),
    "impossible value": ("train = 8", "train = 0", "tasks.train"),
    "too low a level": ("train = 8", "train = 8\nlevels = [1, 0]", "levels 1 to 2000"),
    "too high a level": ("train = 8", "train = 8\nholdout_levels = [5000]", "levels 1 to 2000"),
    "too hard first lessons": (
        "[tasks]", "[first]\nexamples = 1\nlevels = [5000]\n[tasks]", "levels 1 to 2000"
    ),
    "unknown arena": ('"arithmetic"', '"arithmetik"', "did you mean 'arithmetic'"),
    "unknown agent": ('"scripted"', '"scriptd"', "did you mean 'scripted'"),
    "unknown option": ("error = 0.3", "eror = 0.3", "error"),
    "unknown policy": ("[tasks]", '[router]\npolicy = "al"\n[tasks]', "policy"),
    "unknown ranking": ("[tasks]", '[ranking]\nmethod = "eloo"\n[tasks]', "elo"),
    "unknown topology": ("[tasks]", '[topology]\nuse = "rings"\n[tasks]', "did you mean 'ring'"),
    "unknown pool": ('"local"', '"cloud"', "run.pool"),
    "no TOML": ("[run]", "[run", "not valid TOML"),
    "missing model": (
        'use = "scripted"\nerror = 0.3\ncount = 3',
        'use = "transformer"\nmodel = "./no/model"',
        "no/model",
    ),
    "no graph file": ("[tasks]", TOPOLOGY := '[topology]\nuse = "file"\npath = "g.edges"\n[tasks]',
                      "g.edges"),
}  # fmt: skip


def test_no_rounds_are_not_those_of_the_recipe(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, CROWD)
    assert community(tmp_path, "run", recipe, "--rounds", "0").code == 0
    assert json.loads(community(tmp_path, "show", "tiny", "--json").out)["rounds_played"] == 0


class TestRefusals:
    @pytest.mark.parametrize("kind", BAD)
    def test_a_bad_recipe(self, kind: str, tmp_path: Path) -> None:
        old, new, named = BAD[kind]
        recipe = write_recipe(tmp_path, CROWD, **{old: new})
        assert named in community(tmp_path, "run", recipe).refused()
        assert not list((tmp_path / "runs").glob("*")), "a run that never began left something"

    @pytest.mark.parametrize(
        ("graph", "named"), [("", "empty"), ("sam-1 eve\n", "names eve, who are not members")]
    )
    def test_a_bad_graph(self, graph: str, named: str, tmp_path: Path) -> None:
        (tmp_path / "g.edges").write_text(graph)
        recipe = write_recipe(tmp_path, CROWD, **{"[tasks]": TOPOLOGY})
        line = community(tmp_path, "run", recipe).refused()
        assert named in line and "g.edges" in line

    @pytest.mark.parametrize("setting", ["run", "run.rounds", "members.error=1", "run.rond=1"])
    def test_a_bad_setting(self, setting: str, tmp_path: Path) -> None:
        recipe = write_recipe(tmp_path, CROWD)
        line = community(tmp_path, "run", recipe, "--set", setting).refused()
        assert setting.partition("=")[0] in line

    def test_a_study_has_seeds_of_its_own(self, tmp_path: Path) -> None:
        recipe = write_recipe(tmp_path, CROWD)
        assert "--seeds" in community(tmp_path, "study", recipe, "--set", "run.seed=7").refused()
        assert not (tmp_path / "runs").exists()

    def test_missing_files(self, tmp_path: Path) -> None:
        assert "no.toml" in community(tmp_path, "run", "no.toml").refused()
        assert "did you mean 'adders'" in community(tmp_path, "run", "addrs").refused()
        assert "no run 'x'" in community(tmp_path, "resume", "x").refused()

    @pytest.mark.parametrize("command", ["run", "resume"])
    @pytest.mark.parametrize("path", [LONG := "x" * 300, f"{LONG}/x.toml", f"{LONG}.toml"])
    def test_a_path_that_no_disk_can_hold(self, command: str, path: str, tmp_path: Path) -> None:
        assert path[:250] in community(tmp_path, command, path).refused()

    @pytest.mark.parametrize("command", ["plot", "report", "export", "study"])
    def test_a_name_that_no_disk_can_hold(self, command: str, played: Path) -> None:
        given = ["--name"] if command == "study" else ["--format", "sft"] * (command == "export")
        given += ["--to"] * (command != "study")
        what = write_recipe(played, CROWD) if command == "study" else "tiny"
        line = community(played, command, what, *given, "x" * 250 + "y" * 50).refused()
        assert "xxx" in line and "long" in line

    def test_a_plugin_whose_path_no_disk_can_hold(self, tmp_path: Path) -> None:
        recipe = write_recipe(tmp_path, CROWD, arithmetic=f"{'x' * 300}.py:Arena")
        assert "there is no file" in community(tmp_path, "run", recipe).refused()

    def test_a_run_whose_folder_cannot_be_made(self, tmp_path: Path) -> None:
        recipe = write_recipe(tmp_path, CROWD)
        line = community(tmp_path, "run", recipe, "--name", "x" * 300).refused()
        assert "File name too long" in line and "--name" in line
        (tmp_path / "runs").mkdir(exist_ok=True)
        (tmp_path / "runs/tiny").touch()
        assert "tiny is a file; --name" in community(tmp_path, "run", recipe).refused()
        assert "no run 'tiny'" in community(tmp_path, "resume", "tiny").refused()
        assert "there are no runs" in community(tmp_path, "runs").out

    def test_a_plugin_that_fails_at_once_leaves_the_name_free(self, tmp_path: Path) -> None:
        (tmp_path / "mine.py").write_text(
            "from community.agents.scripted import ScriptedAgent\n"
            "class Broken(ScriptedAgent):\n"
            "    def save(self, folder): raise ZeroDivisionError('mine')\n"
        )
        recipe = write_recipe(tmp_path, CROWD, **{'"scripted"': '"mine.py:Broken"'})
        for _ in range(2):  # the second time there is nothing in the way
            done = community(tmp_path, "run", recipe)
            assert done.code == 1 and done.err.rstrip().endswith("ZeroDivisionError: mine")
            assert not list((tmp_path / "runs").iterdir())

    def test_a_name_that_is_taken(self, played: Path) -> None:
        line = community(played, "run", str(played / "tiny.toml")).refused()
        assert "`community resume tiny`" in line and "--name" in line

    def test_an_unknown_pool_when_resuming(self, copy: Path) -> None:
        unfinish(copy)
        assert "'cloud'" in community(copy, "resume", "tiny", "--pool", "cloud").refused()

    def test_a_recipe_that_was_changed(self, copy: Path) -> None:
        recipe = copy / "runs/tiny/recipe.toml"
        recipe.write_text(recipe.read_text().replace("train = 8", "train = 9"))
        assert "tasks.train was 8 and is 9" in community(copy, "resume", "tiny").refused()

    @pytest.mark.parametrize("command", ["resume", "show", "hash", "verify"])
    @pytest.mark.parametrize("damage", ["noise", "cut", "empty", "gone"])
    def test_a_corrupt_ledger(self, command: str, damage: str, copy: Path) -> None:
        ledger = copy / "runs/tiny/ledger.db"
        data = ledger.read_bytes()
        if damage == "gone":
            ledger.unlink()
        else:
            ledger.write_bytes(
                {"noise": b"x" * len(data), "cut": data[:5000], "empty": b""}[damage]
            )
        assert "ledger.db" in community(copy, command, "tiny").refused()

    def test_a_run_that_cannot_be_listed_does_not_hide_the_others(self, copy: Path) -> None:
        shutil.copytree(copy / "runs/tiny", copy / "runs/other")
        (copy / "runs/other/ledger.db").write_bytes(b"x" * 100)
        done = community(copy, "runs")
        assert "tiny" in done.out and "other" in done.out and done.code == 0

    @pytest.mark.parametrize(
        "damage",
        [
            "UPDATE meta SET value = '{' WHERE key = 'recipe'",
            "UPDATE meta SET value = '[]' WHERE key = 'recipe'",
            "UPDATE rounds SET seconds = 'long'",
        ],
    )
    def test_a_ledger_damaged_by_hand(self, damage: str, copy: Path) -> None:
        shutil.copytree(copy / "runs/tiny", copy / "runs/other")
        with closing(sqlite3.connect(copy / "runs/other/ledger.db")) as conn, conn:
            conn.execute(damage)
        lines = community(copy, "runs").out.splitlines()
        listed = [line for line in lines if "other" in line or "tiny" in line]
        assert ["unreadable" in line for line in listed] == [True, False]
        if "recipe" in damage:
            assert "; see above" in community(copy, "verify", "other").refused()
            community(copy, "resume", "other").refused()

    def test_a_ray_that_does_not_answer(self, tmp_path: Path) -> None:
        recipe = write_recipe(tmp_path, CROWD)
        line = community(tmp_path, "run", recipe, "--ray-address", "127.0.0.1:9").refused()
        assert "127.0.0.1:9" in line


def unfinish(folder: Path) -> None:
    """Make the finished run `tiny` one that was stopped after its first round."""
    shutil.rmtree(folder / "runs")
    recipe = str(folder / "tiny.toml")
    process = Command(folder, "run", recipe, "--set", "run.rounds=200")
    while "1/200" not in process.files[0].read_text():
        assert process.wait(0.01) is None
    process.kill()
    process.wait()


class TestCheckpoints:
    @pytest.mark.parametrize("name", ["model.safetensors", "state.json"])
    def test_a_truncated_checkpoint(self, name: str, tmp_path: Path) -> None:
        recipe = write_recipe(tmp_path)
        stopped = Command(tmp_path, "run", recipe, "--rounds", "100")
        while "round 1/100" not in stopped.files[0].read_text():
            assert stopped.wait(0.01) is None
        stopped.kill()
        stopped.wait()
        for path in (tmp_path / "runs/tiny/checkpoints").rglob(name):
            path.write_bytes(path.read_bytes()[:-20])
        line = community(tmp_path, "resume", "tiny").refused()
        assert "checkpoint" in line and str(tmp_path / "runs/tiny/checkpoints") in line


class TestInterrupts:
    def test_ctrl_c_leaves_a_run_that_goes_on_to_the_same_end(self, tmp_path: Path) -> None:
        recipe = write_recipe(tmp_path)
        environment = os.environ | {
            "COMMUNITY_HOME": str(tmp_path), "COMMUNITY_CACHE": str(tmp_path / "cache")
        }  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "-m", "community", "run", recipe, "--rounds", "6"],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:  # asked again: Python drops an interrupt within a __del__
            if line.startswith(("round 1/6", "round 3/6", "round 5/6")):
                process.send_signal(signal.SIGINT)
        _, err = process.communicate()
        assert process.returncode == 2
        assert err.splitlines()[-1].startswith("community: stopped; ")
        assert "`community resume tiny`" in err and "Traceback" not in err
        assert community(tmp_path, "resume", "tiny").code == 0
        assert community(tmp_path, "run", recipe, "--rounds", "6", "--name", "calm").code == 0
        assert hash_of(tmp_path, "tiny") == hash_of(tmp_path, "calm")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of two megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk, and not in every container")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


class TestFullDisk:
    def fill(self, disk: Path, leave: int) -> Path:
        """A file that leaves so many bytes free."""
        free = shutil.disk_usage(disk).free
        (disk / "ballast").write_bytes(bytes(free - leave))
        return disk / "ballast"

    @pytest.mark.parametrize("leave", [0, 40_000, 250_000, 400_000])
    @pytest.mark.parametrize("text", [CROWD, RECIPE], ids=["scripted", "transformers"])
    def test_a_full_disk_at_the_start(
        self, leave: int, text: str, small_disk: Path, tmp_path: Path
    ) -> None:
        ballast = self.fill(small_disk, leave)
        recipe = write_recipe(tmp_path, text.replace("rounds = ", "rounds = 10"))
        home = {"COMMUNITY_HOME": str(small_disk)}
        line = community(tmp_path, "run", recipe, **home).refused()
        assert str(small_disk) in line
        ballast.unlink()

    def test_what_was_recorded_is_safe(self, small_disk: Path, tmp_path: Path) -> None:
        recipe = write_recipe(tmp_path, CROWD.replace("rounds = 2", "rounds = 20"))
        ballast = self.fill(small_disk, 700_000)
        home = {"COMMUNITY_HOME": str(small_disk)}
        assert str(small_disk) in community(tmp_path, "run", recipe, **home).refused()
        ballast.unlink()
        assert "sound" in community(tmp_path, "verify", "tiny", **home).out
        assert community(tmp_path, "resume", "tiny", **home).code == 0
        assert community(tmp_path, "run", recipe).code == 0
        assert hash_of(small_disk, "tiny") == hash_of(tmp_path, "tiny")


def test_time_is_not_in_what_is_hashed(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, CROWD)
    for name in ("a", "b"):
        assert community(tmp_path, "run", recipe, "--name", name).code == 0
        time.sleep(0.01)
    assert hash_of(tmp_path, "a") == hash_of(tmp_path, "b")
