"""What trackers hold, read back from their own files, is what the ledger says, once."""

from __future__ import annotations

import json
import shlex
import shutil
import sqlite3
import struct
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from command import Command, community, write_recipe
from talk import RECIPE

from community.errors import CommunityError
from community.figures import figures
from community.trackers import PROJECT, TRACKERS, Point, TensorBoard, points, runs_of, track

Scalars = dict[str, dict[int, float]]  # tag -> step -> value


@pytest.fixture(scope="module")
def runs(talked: Path) -> dict[str, list[Point]]:
    """What is to be found: the points of the community and of each baseline."""
    found = {name: list(points(facts)) for name, facts in runs_of(figures(talked))}
    assert [name.rpartition("-")[2] for name in found][1:] == ["majority", "consistency"]
    return found


def scalars(given: list[Point]) -> Scalars:
    found: Scalars = {}
    for point in given:
        for tag, value in point.values.items():
            found.setdefault(tag, {})[point.step] = pytest.approx(value, rel=1e-6)
    return found


# -- what is logged ------------------------------------------------------------------------


def test_points_are_the_figures_of_the_report(talked: Path, runs: Mapping[str, Any]) -> None:
    facts = figures(talked)
    start, *later = next(iter(runs.values()))
    assert (start.step, [p.step for p in later]) == (0, [1, 2, 3])
    assert "round/posed" not in start.values
    for point, round_, entry in zip(
        later, facts["rounds"], facts["holdout_by_round"][1:], strict=True
    ):
        assert point.values["holdout/community"] == entry["community"]
        assert point.values["holdout_member/ann"] == entry["members"]["ann"]
        assert point.values["round/kept"] == round_["kept"]
        assert point.values["reliability/bob"] == round_["reliability"]["bob"]
    assert later[-1].values["total/tokens"] == facts["tokens"]
    assert later[-1].seconds == pytest.approx(facts["seconds"], abs=0.01)
    for place, share in facts["holdout"]["community"].items():
        assert later[-1].values[f"holdout_at/{place}"] == share


def test_a_round_that_was_not_learned_from_yet_waits(copied: Path) -> None:
    with sqlite3.connect(copied / "ledger.db") as conn:
        for table in ("checkpoints", "scores", "learnings"):
            column = "n" if table == "learnings" else "learning"
            conn.execute("DELETE FROM taught WHERE checkpoint IN (SELECT row FROM checkpoints"
                         " WHERE learning = 3)")  # fmt: skip
            conn.execute(f"DELETE FROM {table} WHERE {column} = 3")
    conn.close()
    assert [point.step for point in points(figures(copied))] == [0, 1, 2]


# -- TensorBoard ---------------------------------------------------------------------------


def tensorboard(folder: Path) -> dict[str, Scalars]:
    """Run -> what TensorBoard itself reads."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = {}
    for path in sorted(folder.iterdir()):
        reader = events.EventAccumulator(str(path), size_guidance={"scalars": 0}).Reload()
        found[path.name] = {
            tag: {event.step: event.value for event in reader.Scalars(tag)}
            for tag in reader.Tags()["scalars"]
        }
    return found


def test_tensorboard_reads_every_figure_once(
    talked: Path, tmp_path: Path, runs: Mapping[str, list[Point]]
) -> None:
    for _ in range(2):
        assert str(tmp_path) in track(talked, "tensorboard", tmp_path)
    assert tensorboard(tmp_path) == {name: scalars(given) for name, given in runs.items()}


def test_events_are_appended_and_what_a_kill_cut_off_is_completed(
    tmp_path: Path, runs: Mapping[str, list[Point]]
) -> None:
    pytest.importorskip("tensorboard")
    name, given = next(iter(runs.items()))
    TensorBoard(tmp_path, name, {}).log(given[:2])
    (path,) = tmp_path.rglob("*tfevents*")
    early, file = path.read_bytes(), path.stat().st_ino
    path.write_bytes(early[:-7])
    TensorBoard(tmp_path, name, {}).log(given)
    assert path.read_bytes().startswith(early) and path.stat().st_ino == file
    assert tensorboard(tmp_path) == {name: scalars(given)}
    TensorBoard(tmp_path, name, {}).log(given[1:])  # not what is there: it is written anew
    assert tensorboard(tmp_path) == {name: scalars(given[1:])}


# -- trackio -------------------------------------------------------------------------------


def test_trackio_holds_every_figure_once(
    talked: Path, tmp_path: Path, runs: Mapping[str, list[Point]]
) -> None:
    pytest.importorskip("trackio")
    for _ in range(2):
        done = community(tmp_path, "track", str(talked), "--with", "trackio", "--to",
                         str(tmp_path / "a b"))  # fmt: skip
        assert (done.code, done.err) == (0, "")
        shown = shlex.split(done.out.removeprefix("to look at it: "))
        assert shown[0] == f"TRACKIO_DIR={tmp_path / 'a b'}"  # a shell takes it as one word
    with sqlite3.connect(tmp_path / "a b" / f"{PROJECT}.db") as conn:
        rows = conn.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id").fetchall()
    conn.close()
    assert len(rows) == sum(map(len, runs.values()))
    for name, given in runs.items():
        held = {step: json.loads(metrics) for run, step, metrics in rows if run == name}
        assert held == {point.step: pytest.approx(dict(point.values)) for point in given}


# -- Weights & Biases ----------------------------------------------------------------------


def records(path: Path) -> Iterator[bytes]:
    """The records of a .wandb file: LevelDB's log format, after a header of seven bytes."""
    data, at, part = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # no header fits into the rest of a block
            at += 32768 - at % 32768
            continue
        size, kind = struct.unpack_from("<HB", data, at + 4)
        part += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield part
            part = b""


def wandb_scalars(path: Path) -> Scalars:
    protocol = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    found: Scalars = {}
    for data in records(path):
        record = protocol.Record.FromString(data)
        if record.WhichOneof("record_type") != "history":
            continue
        items = {
            "/".join(item.nested_key) or item.key: json.loads(item.value_json)
            for item in record.history.item
        }
        for tag, value in items.items():
            if not tag.startswith("_"):
                found.setdefault(tag, {})[items["_step"]] = value
    return found


def test_wandb_holds_every_figure_once_and_stays_offline(
    talked: Path, tmp_path: Path, runs: Mapping[str, list[Point]]
) -> None:
    pytest.importorskip("wandb")
    for _ in range(2):
        done = community(tmp_path, "track", str(talked), "--with", "wandb", "--to", str(tmp_path))
        assert (done.code, done.err) == (0, "")
        assert f"wandb sync {tmp_path}" in done.out
    files = {path.stem.removeprefix("run-"): path for path in tmp_path.rglob("*.wandb")}
    assert files.keys() == runs.keys() and len(list(tmp_path.rglob("*.wandb"))) == len(runs)
    for name, given in runs.items():
        assert wandb_scalars(files[name]) == scalars(given)


# -- all -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TRACKERS)
def test_a_missing_extra_is_one_sentence(
    kind: str, talked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, kind, None)
    with pytest.raises(CommunityError, match=rf"pip install 'modelcommunity\[{kind}\]'"):
        track(talked, kind, tmp_path / "x", follow=True)
    assert not (tmp_path / "x").exists()


def test_an_unknown_tracker_and_a_place_that_is_taken(talked: Path, tmp_path: Path) -> None:
    with pytest.raises(CommunityError, match="did you mean 'tensorboard'"):
        track(talked, "tensorbord", tmp_path)
    pytest.importorskip("tensorboard")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CommunityError, match="cannot write to"):
        track(talked, "tensorboard", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_following_a_run_ends_with_it_and_has_all_of_it(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    recipe = write_recipe(tmp_path, RECIPE, **{"rounds = 3": "rounds = 6"})
    playing = Command(tmp_path, "run", recipe, "--no-baselines")
    while not (tmp_path / "runs/tiny/recipe.toml").exists():
        assert playing.wait(0.01) is None
    followed = community(tmp_path, "track", "tiny", "--with", "tensorboard", "--follow")
    done = playing.wait()
    assert done is not None and (done.code, followed.code, followed.err) == (0, 0, "")
    assert followed.out.splitlines()[-2] == "logged up to round 6"
    run = tmp_path / "runs/tiny"
    ((name, facts),) = runs_of(figures(run))
    assert tensorboard(run / "tensorboard") == {name: scalars(list(points(facts)))}


def test_what_is_logged_twice_into_one_folder_are_two_runs(
    talked: Path, copied: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard")
    recipe = copied / "recipe.toml"
    shutil.rmtree(copied / "baselines")
    recipe.write_text(recipe.read_text().replace('name = "talk"', 'name = "other"'))
    for run in (talked, copied):
        track(run, "tensorboard", tmp_path / "all")
    names = [path.name.split("-")[0] for path in (tmp_path / "all").iterdir()]
    assert sorted(names) == ["other", "talk", "talk", "talk"]
