"""Commands that read a ledger: whatever is wrong with it is one line, and nothing is harmed."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import CROWD, Command, community, write_recipe
from talk import RECIPE

from community import config, database, page, plots, trackers
from community.errors import CommunityError
from community.figures import figures
from community.folder import create
from community.ledger import Ledger
from community.lineage import last_winner

COMMANDS = {
    "plot": ["plot", "talk"],
    "report": ["report", "talk"],
    "track": ["track", "talk", "--with", "tensorboard"],
    "show": ["show", "talk", "--json"],
    "lineage": ["lineage", "talk", "last", "--json"],
}
MADE = {"plot": "plots", "report": "report.html", "track": "tensorboard"}
every_command = pytest.mark.parametrize("name", COMMANDS)


def files(folder: Path) -> dict[str, bytes]:
    """All that is below a folder, but for what SQLite keeps beside a ledger while it is read."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(("-wal", "-shm"))
    }


@every_command
def test_an_unknown_run(name: str, talked: Path) -> None:
    home = talked.parent.parent
    given = ["tlak" if word == "talk" else word for word in COMMANDS[name]]
    assert "there is no run 'tlak'; there are: talk" in community(home, *given).refused()


@every_command
def test_a_ledger_of_a_newer_version(name: str, copied: Path, tmp_path: Path) -> None:
    with sqlite3.connect(copied / "ledger.db") as conn:
        conn.execute("UPDATE meta SET value = '99' WHERE key = 'schema'")
    conn.close()
    before = files(copied)
    line = community(tmp_path, *COMMANDS[name]).refused()
    assert "schema version 99" in line and "update modelcommunity" in line
    assert files(copied) == before


@every_command
def test_a_run_that_recorded_nothing(name: str, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, RECIPE)
    folder = tmp_path / "runs" / "talk"
    create(config.read(Path(recipe), {"run.name": "talk"}), tmp_path, folder)
    before = files(folder)
    line = community(tmp_path, *COMMANDS[name]).refused()
    assert "nothing yet" in line or "no lesson was taught" in line
    assert files(folder) == before and "Traceback" not in line


def test_a_locked_ledger_is_one_sentence(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    blocker = sqlite3.connect(copied / "ledger.db", isolation_level=None)
    blocker.execute("PRAGMA journal_mode = DELETE")  # elsewhere than in WAL a writer shuts out all
    blocker.execute("BEGIN EXCLUSIVE")
    before = sorted(files(copied))
    try:
        for call in (
            lambda: figures(copied),
            lambda: plots.plot(copied, copied / "x", "png"),
            lambda: page.write(copied, copied / "x.html"),
            lambda: trackers.track(copied, "tensorboard", copied / "x"),
        ):
            with pytest.raises(CommunityError, match="in use by another process"):
                call()
    finally:
        blocker.close()
    assert sorted(files(copied)) == before
    assert plots.plot(copied, copied / "x", "png")


@pytest.fixture
def still(talked: Path, tmp_path: Path) -> Iterator[Path]:
    """The home of a copy of the run on a disk that cannot be written to."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a disk, and not in every container")
    shutil.copytree(talked, disk / "runs" / "talk")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@every_command
def test_a_run_that_can_only_be_read(name: str, still: Path, tmp_path: Path) -> None:
    home = {"COMMUNITY_HOME": str(still)}
    if name in MADE:
        line = community(tmp_path, *COMMANDS[name], **home).refused()
        assert "cannot write to" in line and "Read-only" in line
    place = ["--to", str(tmp_path / f"out-{name}")] if name in MADE else []
    done = community(tmp_path, *COMMANDS[name], *place, **home)
    assert (done.code, done.err) == (0, "")
    assert not place or Path(place[1]).exists()


@pytest.mark.slow
def test_a_run_that_is_being_written(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, RECIPE, **{"train = 12": "train = 200"})  # it takes its time
    playing = Command(tmp_path, "run", recipe, "--name", "talk", "--set", "run.rounds=1000")
    while "round 2/1000" not in playing.files[0].read_text():
        assert playing.wait(0.01) is None
    for given in COMMANDS.values():
        done = community(tmp_path, *given)
        assert (done.code, done.err) == (0, ""), given
    assert playing.wait(0) is None, "it ended too early for this test to say anything"
    playing.kill()
    playing.wait()
    with Ledger.open(tmp_path / "runs/talk/ledger.db", read_only=True) as ledger:
        assert not ledger.verify()


FAILING = CROWD.replace("error = 0.3", "crash = 1.0")


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of a run in which every answer failed."""
    home = tmp_path_factory.mktemp("failed")
    assert community(home, "run", write_recipe(home, FAILING), "--name", "talk").code == 0
    return home


@every_command
def test_a_run_with_failures_only(name: str, failed: Path) -> None:
    done = community(failed, *COMMANDS[name])
    if name == "lineage":
        assert "no lesson was taught in this run yet" in done.refused()
        return
    assert (done.code, done.err) == (0, "")
    folder = failed / "runs" / "talk"
    if name == "plot":
        assert "nothing to draw yet for: topology, lineage" in done.out
        assert (folder / "plots" / "learning.png").is_file()
    elif name == "report":
        text = (folder / "report.html").read_text()
        assert "Nothing was taught yet." in text and "48 answers failed" in text
    elif name == "show":
        members = json.loads(done.out)["members"].values()
        assert [m["failures"] for m in members] == [16, 16, 16]


def test_files_that_are_there_are_replaced_only_if_asked_to(talked: Path, tmp_path: Path) -> None:
    run, place = str(talked), tmp_path / "mine"
    place.mkdir()
    (place / "holdout.svg").write_text("mine")
    (place / "notes.txt").write_text("mine, too")
    given = ["plot", run, "--to", str(place), "--format", "svg"]
    line = community(tmp_path, *given).refused()
    assert "holdout.svg is there already" in line and "--force" in line
    assert files(place) == {"holdout.svg": b"mine", "notes.txt": b"mine, too"}
    assert community(tmp_path, *given, "--force").code == 0
    assert (place / "notes.txt").read_text() == "mine, too"
    assert (place / "holdout.svg").read_text().startswith("<?xml")
    (tmp_path / "file").write_text("mine")
    for command, where in (("plot", "file"), ("report", "file/page.html")):
        line = community(tmp_path, command, run, "--to", str(tmp_path / where), "--force").refused()
        assert "cannot write to" in line
    assert (tmp_path / "file").read_text() == "mine"


def test_a_run_that_only_began_and_has_no_holdout(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, CROWD.replace("holdout = 6", "holdout = 0"))
    assert community(tmp_path, "run", recipe, "--name", "talk").code == 0
    with sqlite3.connect(tmp_path / "runs/talk/ledger.db") as conn:  # back to its start
        for table in ("taught", "lessons", "rankings", "verdicts", "parents", "reliability",
                      "edges", "ideas", "tasks", "spent", "rounds"):  # fmt: skip
            conn.execute(f"DELETE FROM {table}")
        conn.execute("DELETE FROM checkpoints WHERE learning > 0")
        conn.execute("DELETE FROM learnings WHERE n > 0")
    conn.close()
    done = community(tmp_path, "plot", "talk", "--to", str(tmp_path / "x"))
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("nothing to draw yet for: learning, rounds")
    for name in ("report", "track", "show"):
        done = community(tmp_path, *COMMANDS[name])
        assert (done.code, done.err) == (0, ""), name
    assert "There is nothing to draw yet." in (tmp_path / "runs/talk/report.html").read_text()


def test_choices_that_do_not_exist(talked: Path, tmp_path: Path) -> None:
    run = str(talked)
    line = community(tmp_path, "plot", run, "--format", "pgn").refused()
    assert "unknown format 'pgn'; did you mean 'png'" in line
    assert "starts with 'zzz'" in community(tmp_path, "plot", run, "--idea", "zzz").refused()
    assert "unknown tracker 'x'" in community(tmp_path, "track", run, "--with", "x").refused()


def test_lineage_is_told_as_text_and_as_json(talked: Path, tmp_path: Path) -> None:
    with Ledger.open(talked / "ledger.db", read_only=True) as ledger:
        last = last_winner(ledger)
    found = json.loads(community(tmp_path, "lineage", str(talked), last, "--json").out)
    text = community(tmp_path, "lineage", str(talked), last).out
    idea = found["idea"]
    assert idea["id"] == last and idea["facts"].keys() >= {
        "task", "text", "author", "checkpoint", "round", "tokens", "place", "strength", "low",
        "high", "comparisons", "confidence", "supporters", "verdicts", "votes",
    }  # fmt: skip
    for verdict in idea["facts"]["verdicts"][:3]:
        assert f"{verdict['judge']}: {verdict['score']:.2f}" in text
    for step in found["descendants"]["steps"]:
        assert step["id"][:10] in text and f"for {step['facts']['learner']}" in text
