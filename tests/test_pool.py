"""Neither pool, number of workers nor a dead actor shows in what comes of a run."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import ray
from command import RECIPE, hash_of

from community import pool as pool_module
from community.config import Recipe, read
from community.errors import CommunityError
from community.folder import create
from community.pool import Failure, LocalPool, RayPool, Spec, isolate
from community.run import How, play
from community.types import Study

FRAGILE = """
import os, signal
from pathlib import Path
from community.agents.scripted import ScriptedAgent

class Fragile(ScriptedAgent):
    '''Its process dies once in each phase of round 2, and leaves a mark.'''

    def _die_once(self, phase, n):
        mark = Path(__file__).with_name(f"{self.name}-{phase}")
        if n == 2 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def propose(self, requests):
        self._die_once(f"propose {requests[0].turn}", requests[0].round)
        return super().propose(requests)

    def judge(self, ballots):
        self._die_once("judge", ballots[0].round)
        return super().judge(ballots)

    def learn(self, study):
        learned = super().learn(study)
        self._die_once("learn", study.round)
        return learned
"""
LIGHT = (
    RECIPE.replace('name = "carl"\nuse = "transformer"\nmax_tokens = 4', 'name = "carl"')
    .replace("shape = { width = 16, depth = 1, heads = 2 }\n", 'use = "scripted"\n')
    .replace("[first]\nexamples = 64\nsteps = 8\n", "")
)
PHASES = ("propose 0", "propose 1", "judge", "learn")


@pytest.fixture(scope="module")
def one_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One Ray for all tests of this file, with room for two members at work: started by a thread
    that is gone, beside a cluster that was killed on this machine, which left its address."""
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as short:
        (Path(short) / "ray").mkdir()
        (Path(short) / "ray/ray_current_cluster").write_text("127.0.0.1:9")
        patch.setenv("RAY_TMPDIR", short)  # whose sockets take no long path
        folder = tmp_path_factory.mktemp("ray")
        thread = threading.Thread(target=lambda: RayPool([spec()], folder, workers=2).close())
        thread.start()
        thread.join()
        yield
        ray.shutdown()


def spec(name: str = "sam", **options: Any) -> Spec:
    return Spec(name, "scripted", 1, options, ".", "arithmetic")


def recipe_of(folder: Path, text: str = RECIPE) -> Recipe:
    path = folder / "tiny.toml"
    path.write_text(text)
    return read(path)


def played(folder: Path, recipe: Recipe, name: str, how: How) -> str:
    """The content hash of a recipe played in a certain way."""
    run = folder / "runs" / name
    create(recipe, folder, run)
    assert play(run, how) == ""
    return hash_of(folder, name)


def fragile(folder: Path) -> Recipe:
    """Two members that die once in every phase, beside a transformer."""
    (folder / "fragile.py").write_text(FRAGILE)
    text = LIGHT.replace('use = "scripted"', 'use = "fragile.py:Fragile"')
    return recipe_of(folder, text)


@pytest.mark.parametrize("kind", [ValueError, SystemExit])
def test_what_a_member_raises_concerns_only_the_request_that_raised_it(
    kind: type[BaseException],
) -> None:
    def method(batch: Any) -> list[int]:
        if 3 in batch:
            raise kind("three")
        return [10 * x for x in batch]

    found = isolate(method, [1, 2, 3, 4, 5])
    assert [r for _, r in found] == [10, 20, Failure(f"{kind.__name__}: three"), 40, 50]
    assert [i for i, r in found if isinstance(r, Failure)] == [2]


def test_a_local_pool_answers_in_order_and_says_when_each_is_done(tmp_path: Path) -> None:
    pool = LocalPool([spec("a"), spec("b")], tmp_path)
    heard: list[str] = []
    found = pool.call("save", {"b": (), "a": ()}, lambda name, _: heard.append(name))
    assert list(found) == heard == ["b", "a"]
    assert pool.call("load", {"a": (found["a"],)}) == {"a": found["a"]}
    pool.close()


def test_a_member_that_exits_while_it_learns_ends_no_run(tmp_path: Path) -> None:
    text = """
from community.agents.scripted import ScriptedAgent

class Exits(ScriptedAgent):
    def learn(self, study):
        raise SystemExit(7)
"""
    (tmp_path / "exits.py").write_text(text)
    one = Spec("eve", "exits.py:Exits", 1, {}, str(tmp_path), "arithmetic")
    found = LocalPool([one], tmp_path).call("learn", {"eve": (Study(1, 0, ()),)})
    assert found == {"eve": Failure("SystemExit: 7")}


def test_a_full_disk_is_named_and_not_a_failure_of_the_member(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    pool = LocalPool([spec()], tmp_path / "file")
    with pytest.raises(CommunityError, match="cannot write a checkpoint"):
        pool.call("learn", {"sam": (Study(1, 0, ()),)})


@pytest.mark.parametrize("kind", ["closed", "silent", "other"])
def test_a_ray_address_that_does_not_answer_is_refused_soon(kind: str, tmp_path: Path) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if kind != "closed":
            server.listen()
        if kind == "other":
            threading.Thread(target=_speak, args=(server,), daemon=True).start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(CommunityError, match=f"cannot reach the Ray cluster at {address}"):
            RayPool([spec()], tmp_path, 1, address)


def test_the_address_in_the_environment_is_the_one_that_is_not_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    for given, asked in (("", "127.0.0.1:9"), ("127.0.0.1:7", "127.0.0.1:7")):
        with pytest.raises(CommunityError, match=f"cannot reach the Ray cluster at {asked} "):
            RayPool([spec()], tmp_path, 1, given)


def _speak(server: socket.socket) -> None:
    connection, _ = server.accept()
    connection.sendall(b"220 a mail server\r\n")


@pytest.mark.usefixtures("one_ray", "cache")
class TestRay:
    @pytest.mark.slow
    @pytest.mark.parametrize("text", [LIGHT, RECIPE])
    def test_one_worker_two_workers_and_this_process_agree(
        self, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        recipe = recipe_of(tmp_path, text)
        ways = {f"ray-{n}": How(pool="ray", workers=n) for n in (1, 2)}
        hashes = set()
        for name, how in {"local": How(pool="local"), **ways}.items():
            # each its own cache: else the later ones would take their first experts from it
            monkeypatch.setenv("COMMUNITY_CACHE", str(tmp_path / f"cache-{name}"))
            hashes.add(played(tmp_path, recipe, name, how))
        assert len(hashes) == 1

    def test_actors_that_die_in_any_phase_do_not_show(self, tmp_path: Path) -> None:
        recipe = fragile(tmp_path)
        died = played(tmp_path, recipe, "ray", How(pool="ray", workers=2))
        marks = {f"{name}-{phase}" for name in ("carl", "sam") for phase in PHASES}
        assert {path.name for path in tmp_path.iterdir()} >= marks
        assert played(tmp_path, recipe, "local", How(pool="local")) == died

    def test_an_actor_killed_between_calls_stands_where_it_stood(self, tmp_path: Path) -> None:
        pool = RayPool([spec("a"), spec("b")], tmp_path, 2)
        first = pool.call("save", {"a": (), "b": ()})
        ray.kill(pool._actors["a"])
        assert pool.call("save", {"a": (), "b": ()}) == first
        pool.close()

    @pytest.mark.slow
    def test_two_pools_that_start_together_do_not_wait_for_each_other(self, tmp_path: Path) -> None:
        saved = []

        def save() -> None:
            names = dict.fromkeys("abc", ())
            pool = RayPool([spec(name) for name in names], tmp_path, 2)
            saved.append(pool.call("save", names))
            pool.close()

        threads = [threading.Thread(target=save, daemon=True) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert len(saved) == 2 and saved[0] == saved[1]

    def test_one_that_always_dies_is_a_failure(self, tmp_path: Path) -> None:
        (tmp_path / "fragile.py").write_text(FRAGILE.replace("mark.touch()", ""))
        dying = Spec("a", "fragile.py:Fragile", 1, {}, str(tmp_path), "arithmetic")
        pool = RayPool([dying], tmp_path, 1)
        found = pool.call("learn", {"a": (Study(2, 0, ()),)})
        assert isinstance(found["a"], Failure) and "died 3 times" in found["a"].reason
        pool.close()

    def test_one_that_takes_too_much_memory_is_a_failure(self, tmp_path: Path) -> None:
        text = """
from ray.exceptions import OutOfMemoryError
from community.agents.scripted import ScriptedAgent

class Greedy(ScriptedAgent):
    def load(self, folder, checkpoint):
        raise OutOfMemoryError("which Ray gives where it killed an actor for its memory")
"""
        (tmp_path / "greedy.py").write_text(text)
        greedy = Spec("a", "greedy.py:Greedy", 1, {}, str(tmp_path), "arithmetic")
        pool = RayPool([greedy], tmp_path, 1)
        found = pool.call("load", {"a": ("c",)})
        assert isinstance(found["a"], Failure) and "died 3 times" in found["a"].reason
        pool.close()

    def test_what_keeps_a_member_from_being_made_is_said(self, tmp_path: Path) -> None:
        pool = RayPool([spec(error=2.0)], tmp_path, 1)
        with pytest.raises(CommunityError, match="error"):
            pool.call("save", {"sam": ()})
        pool.close()

    def test_a_ray_that_answers_is_taken_for_one(self) -> None:
        pool_module._probe(ray.get_runtime_context().gcs_address)

    def test_members_that_find_no_room_are_refused(self, tmp_path: Path) -> None:
        many = Spec("a", "scripted", 1, {}, ".", "arithmetic", cpus=1000)
        with pytest.raises(CommunityError, match="need 1000 CPUs"):
            RayPool([many], tmp_path, 1)
