"""A run: the same whatever happens on the way to its end."""

from __future__ import annotations

import gc
import random
import time
from pathlib import Path

import pytest
from command import CROWD, RECIPE, Command, community, hash_of, write_recipe

from community.config import read
from community.errors import CommunityError
from community.folder import create, refuse_changes, reopen, undo
from community.ledger import Ledger
from community.members import Listener
from community.parts import specs_of
from community.pool import LocalPool
from community.run import How, Run, play

LOCAL = How(pool="local")
TALK = """
from dataclasses import replace
from community.agents.scripted import ScriptedAgent
from community.arenas.arithmetic import ArithmeticArena

class Heard(ArithmeticArena):
    def answer(self, task, text):
        return super().answer(task, text.removeprefix("it is "))

class Talker(ScriptedAgent):
    # half of its answers are in words
    def propose(self, requests):
        ideas = super().propose(requests)
        return [replace(i, text="it is " * (int(i.task, 16) % 2) + i.text) for i in ideas]
"""
LEAKY = """
from dataclasses import replace
from community.arenas.arithmetic import ArithmeticArena

class Leaky(ArithmeticArena):
    def pose(self, split, seed, index, level):
        return replace(super().pose("train", seed, index, level), split=split)
"""
READER = """
[[members]]
name = "ada"
use = "transformer"
max_tokens = 4
shape = { width = 16, depth = 1, heads = 2 }
"""


def made(folder: Path, text: str = CROWD, name: str = "tiny") -> Path:
    """The folder of a run that was laid out and not played."""
    run = folder / "runs" / name
    create(read(Path(write_recipe(folder, text))), folder, run)
    return run


def killed(folder: Path, kills: int, longest: float, seed: int, *options: str) -> None:
    """Play `tiny` to its end, killed `kills` times within `longest` seconds of a start."""
    rng = random.Random(seed)

    def start() -> Command:
        if (folder / "runs" / "tiny").exists():
            return Command(folder, "resume", "tiny", *options)
        return Command(folder, "run", str(folder / "tiny.toml"), *options)

    for left in range(kills, 0, -1):
        process = start()
        if done := process.wait(rng.uniform(0, longest)):  # faster than the kill: begin anew
            assert done.code == 0, done.err
            assert hash_of(folder, "tiny") == hash_of(folder, "calm")
            (folder / "runs" / "tiny").rename(folder / "runs" / f"done-{left}")
        else:
            process.kill()
            process.wait()
    done = start().wait()
    assert done is not None and done.code == 0, done


def calm(folder: Path, rounds: int, *options: str) -> float:
    """Play the recipe undisturbed as `calm`, with a cache of its own; seconds it took."""
    recipe = write_recipe(folder, RECIPE.replace("rounds = 3", f"rounds = {rounds}"))
    community(folder, "runs")  # starts what processes are forked from, which takes a while
    start = time.monotonic()
    cache = {"COMMUNITY_CACHE": str(folder / "calm-cache")}
    assert community(folder, "run", recipe, "--name", "calm", *options, **cache).code == 0
    return time.monotonic() - start


class TestKills:
    @pytest.mark.slow
    def test_three_kills_do_not_show(self, tmp_path: Path) -> None:
        killed(tmp_path, 3, calm(tmp_path, rounds=3) / 2, seed=1)
        assert hash_of(tmp_path, "tiny") == hash_of(tmp_path, "calm")
        assert "sound" in community(tmp_path, "verify", "tiny").out

    @pytest.mark.slow
    @pytest.mark.parametrize("seed", range(2))
    def test_twenty_kills_do_not_show(self, seed: int, tmp_path: Path) -> None:
        killed(tmp_path, 20, calm(tmp_path, rounds=20) / 6, seed)
        assert hash_of(tmp_path, "tiny") == hash_of(tmp_path, "calm")
        assert "sound" in community(tmp_path, "verify", "tiny").out

    @pytest.mark.slow
    def test_kills_on_ray_do_not_show_and_leave_no_process(self, tmp_path: Path) -> None:
        lasts = calm(tmp_path, 3, "--pool", "ray")
        killed(tmp_path, 3, lasts, 4, "--pool", "ray")
        assert hash_of(tmp_path, "tiny") == hash_of(tmp_path, "calm")
        # Ray's own agents see that their node is gone, and ask its store for a minute
        patience = time.monotonic() + 120
        while _started_in(tmp_path) and time.monotonic() < patience:
            time.sleep(0.5)
        assert not _started_in(tmp_path), "processes of a killed run are left"


def _started_in(home: Path) -> list[int]:
    """Processes that runs below this folder have started, Ray's own included."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"COMMUNITY_HOME={home}".encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


class Until(Listener):
    """Ctrl-C at the n-th thing that a run says."""

    def __init__(self, n: int) -> None:
        self.n = n

    def phase(self, name: str, total: int) -> None:
        self.n -= 1
        if self.n == 0:
            raise KeyboardInterrupt


@pytest.mark.usefixtures("cache")
class TestFirstLessons:
    def test_none_is_on_a_task_that_is_held_out(self, tmp_path: Path) -> None:
        (tmp_path / "leaky.py").write_text(LEAKY)
        text = CROWD.replace('use = "arithmetic"', 'use = "leaky.py:Leaky"')
        run = made(tmp_path, text + "[first]\nexamples = 50\n")
        with pytest.raises(CommunityError, match=r"first lesson of sam-1, .* of the holdout split"):
            play(run, LOCAL)


class TestResuming:
    def test_an_interrupt_before_any_phase_does_not_show(self, tmp_path: Path) -> None:
        text = CROWD.replace("[tasks]", "[judging]\npairs = 2\n[tasks]\nvalidation = 4\n")
        text = text.replace("[run]", "[run]\nturns = 1")
        play(made(tmp_path, text, "calm"), LOCAL)
        run = made(tmp_path, text)
        interrupted = True
        n = 0
        while interrupted:
            n += 1
            try:
                # how far each gets shrinks with n, so that every phase has its turn
                play(run, How(pool="local", listener=Until(1 + n % 7)))
                interrupted = False
            except KeyboardInterrupt:
                interrupted = n < 40
        play(run, LOCAL)
        assert hash_of(tmp_path, "tiny") == hash_of(tmp_path, "calm")

    def test_a_round_without_its_learning_is_learned_from(self, tmp_path: Path) -> None:
        play(made(tmp_path, name="calm"), LOCAL)
        run = made(tmp_path)
        heard: list[tuple[int, int]] = []

        class Heard(Listener):
            def phase(self, name: str, total: int) -> None:
                if name == "learn" and not heard:
                    raise KeyboardInterrupt

            def round(self, n: int, of: int, level: int) -> None:
                if between:
                    heard.append((n, of))

        between = False
        with pytest.raises(KeyboardInterrupt):
            play(run, How(pool="local", listener=Heard()))
        with Ledger.open(run / "ledger.db", read_only=True) as ledger:
            assert (ledger.last_round(), ledger.last_learning()) == (1, 0)
        between = True
        heard.append((0, 0))
        play(run, How(pool="local", listener=Heard()))
        assert heard[1:] == [(1, 2), (2, 2)]
        assert hash_of(tmp_path, "tiny") == hash_of(tmp_path, "calm")

    def test_what_is_doubted_is_not_rehearsed(self, tmp_path: Path) -> None:
        folder = made(tmp_path, RECIPE)
        phases: list[str] = []

        class Hears(Listener):
            def phase(self, name: str, total: int) -> None:
                phases.append(name)

        play(folder, How(pool="local", listener=Hears()))
        assert phases.count("revalidate") == 2  # before round 1 there is nothing to doubt
        recipe, base = reopen(folder)
        specs = specs_of(recipe, base)
        pool = LocalPool(specs, folder / "checkpoints")
        with Ledger.open(folder / "ledger.db") as ledger:
            run = Run(recipe, base, folder, ledger, pool, specs, LOCAL)
            run.members.load(ledger.current_checkpoints())
            asked = [x for xs in run._replays(ledger.round(3)).values() for x in xs if x.round]
            doubted = run._doubted(3, asked)
            assert asked and not doubted & {(x.task, x.text) for x in asked}
            everything = {x.task for x in ledger.lessons(before=3)}
            assert len(everything) > len({x.task for x in asked})

    def test_of_two_lessons_on_a_task_the_doubted_one_is_not_rehearsed(
        self, tmp_path: Path
    ) -> None:
        text = CROWD.replace("rounds = 2", "rounds = 4").replace("train = 8", "train = 40")
        text = text.replace("error = 0.3", "error = 0.5").replace("[run]", '[run]\nworld = "never"')
        text += "[ranking]\nmin_confidence = 0.3\n[learning]\nreplay = 100\nrevalidate = true\n"
        folder = made(tmp_path, text)
        play(folder, LOCAL)
        recipe, base = reopen(folder)
        specs = specs_of(recipe, base)
        with Ledger.open(folder / "ledger.db") as ledger:
            pool = LocalPool(specs, folder / "checkpoints")
            run = Run(recipe, base, folder, ledger, pool, specs, LOCAL)
            run.members.load(ledger.current_checkpoints())
            taught = {(x.task, x.text) for x in ledger.lessons(before=4)}
            kept = {(x.task, x.text) for xs in run._replays(ledger.round(4)).values() for x in xs}
        tasks = [task for task, _ in taught]
        twice = {(task, text) for task, text in taught if tasks.count(task) > 1}
        assert twice & kept and twice - kept
        assert len({task for task, _ in kept}) == len(kept)

    def test_a_run_goes_on_with_lessons_that_a_member_cannot_read(self, tmp_path: Path) -> None:
        (tmp_path / "talk.py").write_text(TALK)
        text = CROWD.replace('use = "arithmetic"', 'use = "talk.py:Heard"')
        folder = made(tmp_path, text.replace("scripted", "talk.py:Talker") + READER)
        with pytest.warns(RuntimeWarning, match="ada leaves out lessons"):
            play(folder, LOCAL)
        with Ledger.open(folder / "ledger.db", read_only=True) as ledger:
            given = {x.id: x.text for x in ledger.lessons("ada")}
            learned = [x for c in ledger.checkpoints("ada") for x in c.lessons]
            assert any(not text.isdecimal() for text in given.values())
            assert learned and all(given[x].isdecimal() for x in learned)

    def test_a_finished_run_stays_as_it_is(self, tmp_path: Path) -> None:
        run = made(tmp_path)
        assert play(run, LOCAL) == ""
        before = (run / "ledger.db").read_bytes()
        assert play(run, LOCAL) == ""
        assert (run / "ledger.db").read_bytes() == before

    def test_nothing_of_a_run_stays_in_memory(self, tmp_path: Path) -> None:
        def kept() -> int:
            gc.collect()
            return sum(isinstance(thing, Run) for thing in gc.get_objects())

        before = kept()
        play(made(tmp_path), LOCAL)
        assert kept() == before

    def test_a_token_budget_ends_a_run_at_the_same_clean_point(self, tmp_path: Path) -> None:
        whole = made(tmp_path, CROWD.replace("rounds = 2", "rounds = 4"), "whole")
        play(whole, LOCAL)
        with Ledger.open(whole / "ledger.db", read_only=True) as ledger:
            tokens = sum(s.tokens for s in ledger.rounds()[:2])
        text = CROWD.replace("rounds = 2", "rounds = 4") + f"[budget]\ntokens = {tokens}\n"
        run = made(tmp_path, text)
        for _ in range(2):  # the second time there is nothing to do
            assert play(run, LOCAL).startswith("stopped after round 2 of 4: its budget of")
        with Ledger.open(run / "ledger.db", read_only=True) as ledger:
            assert ledger.last_learning() == 2

    def test_a_budget_of_seconds_ends_a_run(self, tmp_path: Path) -> None:
        run = made(tmp_path, CROWD + "[budget]\nseconds = 1e-6\n")
        assert "0 of 2" not in play(run, LOCAL)
        assert play(run, LOCAL).endswith("its budget of 1e-06 seconds is spent")


class TestLayingOut:
    def test_a_recipe_that_names_what_is_not_there_leaves_nothing(self, tmp_path: Path) -> None:
        text = CROWD + '[topology]\nuse = "file"\npath = "no.json"\n'
        with pytest.raises(CommunityError, match=r"no\.json"):
            made(tmp_path, text)
        assert not (tmp_path / "runs").exists()

    def test_every_topology_of_a_schedule_is_looked_at(self, tmp_path: Path) -> None:
        schedule = '[[topology]]\nuse = "ring"\n[[topology]]\nuse = "rong"\nfrom_round = 2\n'
        with pytest.raises(CommunityError, match="rong"):
            made(tmp_path, CROWD + schedule)

    def test_what_a_killed_start_left_is_no_run_and_no_obstacle(self, tmp_path: Path) -> None:
        part = tmp_path / "runs" / ".part-x" / "tiny"
        part.mkdir(parents=True)
        (part / "ledger.db").write_text("half")
        assert reopen(made(tmp_path))[1] == tmp_path.resolve()
        assert "damaged" not in community(tmp_path, "runs").out

    def test_of_two_starts_of_a_name_at_the_same_time_one_is_refused(self, tmp_path: Path) -> None:
        recipe = write_recipe(tmp_path, CROWD)
        both = [Command(tmp_path, "run", recipe, "--name", "one") for _ in range(2)]
        refused, played = sorted((found.wait() for found in both), key=lambda done: -done.code)
        assert "in runs/one already" in refused.refused().replace(f"{tmp_path}/", "")
        assert played.code == 0, played.err
        assert not list((tmp_path / "runs").glob(".part-*"))

    def test_a_start_is_taken_back_only_if_it_came_to_nothing(self, tmp_path: Path) -> None:
        run = made(tmp_path)
        undo(run)
        assert not run.exists()
        run = made(tmp_path)
        play(run, LOCAL)
        undo(run)
        assert run.exists()

    def test_changes_are_named_with_their_places(self, tmp_path: Path) -> None:
        run = made(tmp_path)
        changed = CROWD.replace("error = 0.3", "error = 0.4").replace("rounds = 2", "rounds = 3")
        recipe = read(Path(write_recipe(tmp_path, changed)))
        with pytest.raises(CommunityError, match=r"members\[0\].error was 0.3 and is 0.4; run.rou"):
            refuse_changes(recipe, run)

    def test_where_and_how_a_run_is_played_is_no_change(self, tmp_path: Path) -> None:
        run = made(tmp_path)
        other = CROWD.replace('"local"', '"ray"').replace("[run]", '[run]\nname = "x"\nworkers = 7')
        refuse_changes(read(Path(write_recipe(tmp_path, other))), run)
