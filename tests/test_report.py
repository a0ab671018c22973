"""The report says what the ledger holds, whoever won."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from community.arenas.arithmetic import ArithmeticArena
from community.errors import CommunityError
from community.findings import beyond, duration, span
from community.ledger import Ledger
from community.report import figures, render, write
from community.types import (
    Checkpoint,
    Idea,
    Learning,
    Lesson,
    Ranked,
    Ranking,
    Round,
    Score,
    Task,
    content_hash,
)

TOTAL = 200  # holdout tasks a level
Shares = Mapping[str, Mapping[int, float]]  # solver -> level -> share right


@dataclass
class Plan:
    """A run to be made up: what each round kept, and everyone's scores after each learning."""

    learnings: Sequence[Shares]  # the first is the start
    kept: Sequence[tuple[int, int]] = ()  # a round: lessons kept, of which right
    members: Sequence[str] = ("ann", "bob")
    planned: int = 0  # rounds; 0: as many as there are
    posed: int = 10
    roll_back: Mapping[int, str] = field(default_factory=dict)
    recipe: str = ""
    world: str = "validation"
    learned: int | None = None  # rounds with a learning; None is all
    tokens: int = 10  # an idea
    domain: str = "addition"  # of the holdout


def make_run(folder: Path, plan: Plan) -> Path:
    """A run's folder with recipe and ledger: round n poses sums of n + 2 digits."""
    folder.mkdir(parents=True)
    members = "".join(
        f'[[members]]\nname = "{m}"\nuse = "scripted"\nerror = 0.{i}\nsamples = 2\n'
        for i, m in enumerate(plan.members, 1)
    )
    (folder / "recipe.toml").write_text(
        f'[run]\nname = "{folder.name}"\nrounds = {plan.planned or max(1, len(plan.kept))}\n'
        f'world = "{plan.world}"\n[arena]\nuse = "arithmetic"\n'
        f"[tasks]\nvalidation = 20\nvalidation_levels = [1, 2]\n{members}{plan.recipe}"
    )
    specs = [
        (m, {"backend": "scripted", "name": m, "use": "scripted", "error": i / 10, "samples": 2})
        for i, m in enumerate(plan.members, 1)
    ]
    meta = {"recipe_hash": "abc", "seed": 7, "base": str(folder), "versions": {"torch": "2.13"}}
    with Ledger.create(folder / "ledger.db", meta, specs) as ledger:
        ledger.learned(_learning(0, plan, ()))
        for n in range(1, len(plan.kept) + 1):
            round_ = _round(n, plan)
            ledger.record(round_)
            if plan.learned is None or n <= plan.learned:
                ledger.learned(_learning(n, plan, round_.lessons))
    return folder


def _round(n: int, plan: Plan) -> Round:
    arena = ArithmeticArena()
    kept, right = plan.kept[n - 1]
    tasks = tuple(arena.pose("train", 1, n * 1000 + i, n + 2) for i in range(plan.posed))
    ideas, lessons, entries = [], [], []
    for i, task in enumerate(tasks):
        answer = arena.solve(task) if i < right else "1" * (n + 2)
        for author in plan.members:
            ideas.append(_idea(task, author, n, answer, plan.tokens))
        top = ideas[-1]
        entries.append(Ranked(task.id, top.id, 1, 1.0, 0.5, 1.5, 3, 0, 0.9, 2))
        if i < kept:
            for name in plan.members:
                lessons.append(Lesson(n, name, task.id, top.id, task.prompt, answer, "all"))
    trust = dict.fromkeys(plan.members, 0.5) | {"world": 1.0}
    ranking = Ranking("bradley-terry", tuple(entries), trust, disconnected=n - 1)
    return Round(n, tasks, tuple(ideas), (), ranking, tuple(lessons), seconds=2.0)


def _idea(task: Task, author: str, n: int, answer: str, tokens: int) -> Idea:
    failure = "timed out" if author == "ann" and task.index % 1000 == 9 else ""
    return Idea(task.id, author, "c", n, 0, 0, answer, "" if failure else answer, tokens=tokens,
                failure=failure)  # fmt: skip


def _learning(n: int, plan: Plan, lessons: Sequence[Lesson]) -> Learning:
    found = plan.learnings[min(n, len(plan.learnings) - 1)]
    checkpoints = tuple(
        Checkpoint(
            content_hash(name, n),
            name,
            n,
            kept=plan.roll_back.get(n) != name,
            lessons=tuple(x.id for x in lessons if x.learner == name),
        )
        for name in plan.members
    )
    scores = tuple(
        Score(n, solver, "holdout", plan.domain, level, share * TOTAL, TOTAL)
        for solver, shares in found.items()
        for level, share in shares.items()
    )
    return Learning(n, checkpoints, scores, dict.fromkeys(plan.members, 100), seconds=1.0)


START = {
    "community": {2: 0.9, 3: 0.1, 4: 0.0},
    "ann": {2: 0.9, 3: 0.2, 4: 0.0},
    "bob": {2: 0.7, 3: 0.1, 4: 0.0},
}
MIDDLE = {
    "community": {2: 0.95, 3: 0.8, 4: 0.3},
    "ann": {2: 0.9, 3: 0.7, 4: 0.2},
    "bob": {2: 0.8, 3: 0.5, 4: 0.1},
}
END = {
    "community": {2: 0.98, 3: 0.95, 4: 0.9},
    "ann": {2: 0.95, 3: 0.9, 4: 0.8},
    "bob": {2: 0.9, 3: 0.7, 4: 0.6},
}
GOOD = Plan([START, MIDDLE, END], kept=[(8, 8), (5, 4)], roll_back={2: "bob"})


def said(facts: Mapping[str, Any]) -> str:
    return " ".join(facts["what_happened"])


def shown(facts: Mapping[str, Any], width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(render(facts))
    return console.file.getvalue()  # type: ignore[attr-defined]


def tables(markdown: str) -> list[list[list[str]]]:
    """The cells of every table."""
    found: list[list[list[str]]] = [[]]
    for line in markdown.splitlines():
        if line.startswith("|"):
            found[-1].append([cell.strip() for cell in line.strip("|").split(" | ")])
        elif found[-1]:
            found.append([])
    return [table for table in found if table]


def test_figures_are_those_of_the_ledger(tmp_path: Path) -> None:
    facts = figures(make_run(tmp_path / "good", GOOD))
    first, second = facts["rounds"]
    assert (first["round"], first["digits"], first["posed"], first["kept"]) == (1, 3, 10, 8)
    assert (first["precision"], second["precision"]) == (1.0, 0.8)
    assert (first["rollbacks"], second["rollbacks"], second["disconnected"]) == (0, 1, 1)
    # two members, ten ideas of ten tokens each, and a hundred learned from by both
    assert first["tokens"] == 2 * 10 * 10 + 2 * 100 and first["seconds"] == 3.0
    assert second["community"] == {"2": 0.98, "3": 0.95, "4": 0.9}
    assert (second["best"], second["mean"]) == (0.8, 0.7)  # at 4 digits
    assert first["reliability"] == {"ann": 0.5, "bob": 0.5}
    assert (facts["seed"], facts["recipe_hash"], facts["world"]) == (7, "abc", "validation")
    assert (facts["tokens"], facts["tokens_start"], facts["seconds"]) == (1000, 200, 7.0)
    assert facts["tokens_by_member"] == {"ann": 500, "bob": 500}


def test_holdout_by_digits_and_by_place(tmp_path: Path) -> None:
    facts = figures(make_run(tmp_path / "good", GOOD))
    digits, places = facts["holdout_by_digits"], facts["holdout"]
    assert digits["community"] == {"2": 0.98, "3": 0.95, "4": 0.9}
    assert digits["members"]["bob"]["4"] == 0.6
    assert digits["start"]["community"]["3"] == 0.1
    assert digits["start"]["members"]["ann"]["2"] == 0.9
    assert digits["best"] == {"2": 0.95, "3": 0.9, "4": 0.8}
    assert digits["mean"] == {"2": 0.925, "3": 0.8, "4": 0.7}
    assert digits["weakest"] == {"2": 0.9, "3": 0.7, "4": 0.6}
    assert digits["baselines"] == {} and digits["tasks"] == dict.fromkeys("234", TOTAL)
    assert places["community"] == {f"addition@{k}": v for k, v in digits["community"].items()}


def test_members_count_what_they_did(tmp_path: Path) -> None:
    bob = figures(make_run(tmp_path / "good", GOOD))["members"]["bob"]
    assert (bob["checkpoints_kept"], bob["rollbacks"]) == (1, 1)
    assert (bob["lessons"], bob["lessons_learned"]) == (13, 8)  # the five of round 2 rolled back
    assert (bob["failures"], bob["tokens"], bob["reliability"]) == (0, 500, 0.5)
    assert bob["options"] == {"error": 0.2, "samples": 2}


def test_what_happened_when_all_goes_well(tmp_path: Path) -> None:
    facts = figures(make_run(tmp_path / "good", GOOD))
    text = said(facts)
    assert "2 members played 2 of 2 rounds in 7.0 s with 1,000 tokens." in text
    assert "exact match rose, from 0.333 to 0.943; at 4 digits, posed last, from 0.000" in text
    assert "within error of its best" not in text and "ahead of its best, ann (0.883)" in text
    assert "Of 20 tasks posed, 13 became lessons, 0.923 of them right (lowest 0.800" in text
    assert "nowhere is the weakest member worse at the end" in text
    assert "On the way: 1 learning rolled back, 2 answers failed and 1 task ranked" in text
    assert 3 <= len(facts["what_happened"]) <= 8


def test_report_files(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "good", GOOD)
    facts = write(folder)
    assert json.loads((folder / "report.json").read_text()) == facts
    text = (folder / "report.md").read_text()
    assert text.startswith("# good\n") and facts["world_says"] in text
    for name in ("rounds.png", "holdout.png", "growth.png"):
        assert f"(plots/{name})" in text
        assert (folder / "plots" / name).read_bytes().startswith(b"\x89PNG")
    found = tables(text)
    assert all(len(row) == len(table[0]) for table in found for row in table)
    rounds, holdout, members, _ = found
    assert rounds[2] == ["1", "3", "10", "8", "1.000", "0.800", "0.700", "0.600", "400", "3.0", "0"]
    assert [row[0] for row in holdout] == ["digits", "---", "2", "3", "4", "all"]
    assert holdout[-1][2] == "0.943"
    assert members[3] == ["bob", "0.900 (0.700)", "0.700 (0.100)", "0.600 (0.000)"]


def test_a_report_can_be_written_again(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "good", GOOD)
    write(folder)
    before = (folder / "report.md").read_bytes(), (folder / "report.json").read_bytes()
    write(folder)
    assert ((folder / "report.md").read_bytes(), (folder / "report.json").read_bytes()) == before


def baseline(scores: Mapping[int, float], tokens: int = 30) -> Plan:
    """One member alone; 30 tokens an answer make it 400 a round, as the two of GOOD."""
    return Plan([{"community": scores, "ann": scores}], [(9, 5)] * 2, ["ann"], tokens=tokens)


def test_a_baseline_that_wins_is_said_to_win(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "good", GOOD)
    rival = baseline({2: 1.0, 3: 1.0, 4: 0.99})
    make_run(folder / "baselines" / "self-consistency", rival)
    make_run(folder / "baselines" / "no-filter", baseline({2: 0.1, 3: 0.0, 4: 0.0}, tokens=10))
    facts = write(folder)
    text = said(facts)
    assert "The baseline self-consistency (ann alone, 100% of the community's tokens) ends" in text
    assert "at 0.997: the baseline wins by 0.053 (baseline ahead at 3–4 digits)." in text
    assert "50% of the community's tokens, so not at equal tokens) ends at 0.033" in text
    assert "the community is ahead by 0.910 (community ahead at 2–4 digits)" in text
    assert facts["holdout_by_digits"]["baselines"]["self-consistency"]["4"] == 0.99
    found = facts["baselines"]["self-consistency"]
    assert (found["member"], found["tokens_share"], found["tokens"]) == ("ann", 1.0, 900)
    assert [r["precision"] for r in found["rounds"]] == [0.555556] * 2
    report = (folder / "report.md").read_text()
    assert "## Baselines" in report and "self-consistency" in shown(facts)


def test_a_baseline_that_learns_nothing_is_compared_by_its_answers(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "good", GOOD)
    rival = make_run(
        folder / "baselines" / "majority", replace(baseline({2: 0.5, 3: 0.5, 4: 0.5}), kept=())
    )
    recipe = rival / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("rounds = 1", "rounds = 0"))
    facts = write(folder)
    found = facts["baselines"]["majority"]
    assert (found["rounds_planned"], found["tokens_share"]) == (0, None)
    assert (found["answers_a_task"], facts["answers_a_task"]) == (2, 4)  # two samples each
    assert "%" not in said(facts).partition("The baseline")[2]
    text = "The baseline majority (ann alone, untrained; it gives 2 answers to a task, the "
    assert f"{text}community 4)" in said(facts)
    table = tables((folder / "report.md").read_text())[-1]
    assert [row[:4] for row in table[2:]] == [
        ["community", "2 of 2", "4", "800"], ["majority", "0 of 0", "2", "0"],
    ]  # fmt: skip
    assert "so a baseline without rounds has none" in (folder / "report.md").read_text()


def test_members_and_topology_are_on_the_terminal(talked: Path) -> None:
    facts = figures(talked)
    text = shown(facts, width=80)
    for name, member in facts["members"].items():
        (line,) = [line for line in text.splitlines() if line.split()[:1] == [name]]
        interval = f"{member['strength']:.2f} ({member['low']:.2f} to {member['high']:.2f})"
        assert interval in line and f"{member['reliability']:.3f}" in line
    assert "Topology" in text and "…" not in text
    star = next(line for line in text.splitlines() if line.startswith("star "))
    ideas = sum(edge["ideas"] for edge in facts["topology"][0]["edges"])
    assert star.split()[1:4] == ["1–2", "4", str(ideas)]


def test_the_whole_holdout_round_by_round(tmp_path: Path) -> None:
    start, middle, end = figures(make_run(tmp_path / "good", GOOD))["holdout_by_round"]
    assert [start["round"], middle["round"], end["round"]] == [0, 1, 2]
    assert end["community"] == 0.943333 and end["members"] == {"ann": 0.883333, "bob": 0.733333}
    assert (end["best"], end["weakest"]) == (0.883333, 0.733333)
    assert end["mean"] == pytest.approx(0.808333, abs=1e-6)


def test_no_member_has_the_best_of_all_lines(tmp_path: Path) -> None:
    crossed = {
        "community": {2: 1.0, 3: 1.0, 4: 1.0},
        "ann": {2: 0.9, 3: 0.3, 4: 0.0},
        "bob": {2: 0.1, 3: 0.7, 4: 0.1},
    }
    folder = make_run(tmp_path / "crossed", Plan([crossed, crossed], [(5, 5)]))
    write(folder)
    (table,) = (t for t in tables((folder / "report.md").read_text()) if "weakest" in t[0])
    column = dict(zip(table[0], zip(*table[2:], strict=True), strict=True))
    assert column["best"] == ("0.900", "0.700", "0.100", "0.400")  # ann has 0.4 of all, bob 0.3
    assert column["weakest"] == column["weakest, start"] == ("0.100", "0.300", "0.000", "0.300")


def test_a_draw_is_no_win(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "good", GOOD)
    make_run(folder / "baselines" / "self-consistency", baseline({2: 0.97, 3: 0.96, 4: 0.91}))
    assert "neither is ahead beyond error." in said(figures(folder))


def test_a_baseline_that_has_not_begun_is_left_out(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "good", GOOD)
    place = make_run(folder / "baselines" / "no-filter", baseline({2: 1.0}))
    (place / "ledger.db").unlink()
    Ledger.create(place / "ledger.db", {}, [("ann", {})]).close()
    assert figures(folder)["baselines"] == {}


def test_what_went_wrong_is_said(tmp_path: Path) -> None:
    fallen = {
        "community": {2: 0.5, 3: 0.1, 4: 0.0},
        "ann": {2: 0.9, 3: 0.3, 4: 0.0},
        "bob": {2: 0.1, 3: 0.1, 4: 0.0},
    }
    text = said(
        figures(make_run(tmp_path / "bad", Plan([START, fallen], [(60, 60), (50, 5)], posed=100)))
    )
    assert "exact match fell, from 0.333 to 0.200" in text
    assert "behind its best, ann (0.400)" in text
    assert "precision fell from 1.000 in round 1 to 0.100 in round 2" in text
    assert "bob (2 digits, 0.700 to 0.100) fell below the start" in text
    assert "the weakest is worse at the end than at the start at 2 digits (beyond error" in text


def test_few_lessons_and_none(tmp_path: Path) -> None:
    few = figures(make_run(tmp_path / "few", Plan([START, END], [(9, 9), (1, 1)])))
    assert "few were kept in round 2 (less than 20% of the tasks)" in said(few)
    none = write(make_run(tmp_path / "none", Plan([START], [(0, 0)])))
    assert "Nothing was kept: none of 10 tasks posed became a lesson." in said(none)
    assert none["rounds"][0]["precision"] is None


def test_a_run_that_a_budget_ended(tmp_path: Path) -> None:
    plan = Plan([START, MIDDLE], [(8, 8)], planned=5, recipe="[budget]\ntokens = 500\n")
    facts = write(make_run(tmp_path / "short", plan))
    assert facts["rounds_played"] == 1
    assert "played 1 of 5 rounds (its budget of 500 tokens is spent) in 4.0 s" in said(facts)
    plan.recipe = "[budget]\nseconds = 3\n"
    timed = figures(make_run(tmp_path / "timed", plan))
    assert timed["stopped"] == "its budget of 3 seconds is spent"


def test_a_run_killed_between_a_round_and_its_learning(tmp_path: Path) -> None:
    plan = Plan([START, MIDDLE], [(8, 8), (5, 5)], planned=5, learned=1)
    folder = make_run(tmp_path / "killed", plan)
    facts = write(folder)
    assert len(facts["rounds"]) == 2 and facts["rounds_played"] == 1
    assert facts["rounds"][1]["community"] == {} and facts["rounds"][1]["best"] is None
    assert facts["holdout_by_digits"]["community"]["3"] == 0.8
    assert facts["stopped"] == "it has not ended; `community resume` goes on if it was stopped"
    assert "–" in (folder / "report.md").read_text()


def test_a_run_that_only_began(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "begun", Plan([START], [], planned=3))
    facts = write(folder)
    assert facts["rounds"] == [] and not (folder / "plots" / "rounds.png").exists()
    assert (folder / "plots" / "holdout.png").exists()
    assert "is right on 0.333 of the holdout" in said(facts) and shown(facts)


def test_an_empty_run_is_one_sentence(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "empty", Plan([START], []))
    (folder / "ledger.db").unlink()
    with pytest.raises(CommunityError, match="there is no ledger"):
        figures(folder)
    Ledger.create(folder / "ledger.db", {}, []).close()
    with pytest.raises(CommunityError, match=r"nothing yet.*`community resume empty` starts it"):
        figures(folder)


def test_without_a_holdout(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "blind", Plan([{}], [(8, 8)]))
    facts = write(folder)
    assert "There was no holdout" in said(facts)
    assert not (folder / "plots" / "holdout.png").exists()
    assert "Holdout by" not in (folder / "report.md").read_text() and shown(facts)


def test_two_hundred_members_are_shortened(tmp_path: Path) -> None:
    names = [f"m{i:03}" for i in range(200)]
    scores = {"community": {2: 0.9}} | {n: {2: i / 200} for i, n in enumerate(names)}
    plan = Plan([scores], [(3, 3)], names, posed=3)
    folder = make_run(tmp_path / "crowd", plan)
    facts = write(folder)
    text = (folder / "report.md").read_text()
    assert "The best and the worst 5 of 200 members by holdout; report.json has all." in text
    members = tables(text)[2]
    assert [row[0] for row in members[2:]] == [f"m{i:03}" for i in (*range(199, 194, -1),
                                                                   *range(4, -1, -1))]  # fmt: skip
    assert len(facts["members"]) == 200


@pytest.mark.parametrize(
    ("world", "says"),
    [
        ("always", "it checked the answers of every round"),
        ("validation", "validation tasks (levels 1, 2) decided on rollbacks"),
        ("never", "The world never spoke"),
    ],
)
def test_the_report_says_what_the_world_did(tmp_path: Path, world: str, says: str) -> None:
    recipe = "[first]\nexamples = 2000\nlevels = [1, 2, 3]\n"
    facts = figures(make_run(tmp_path / "w", Plan([START], [(1, 1)], world=world, recipe=recipe)))
    assert facts["world"] == world
    assert says in facts["world_says"]
    assert "2,000 worked examples (levels 1 to 3)" in facts["world_says"]


MINE = (
    "class Mine:\n"
    "    name = 'mine'\n"
    "    def pose(self, split, seed, index, level): ...\n"
    "    def verify(self, task, idea): return None\n"
    "    def answer(self, task, text): return text\n"
    "    def rephrase(self, task, sample): return task.prompt\n"
)


def test_other_arenas_are_reported_by_domain_and_level(tmp_path: Path) -> None:
    """An arena of one's own, whose world cannot tell and whose levels are no digits."""
    (tmp_path / "mine.py").write_text(MINE)
    folder = make_run(tmp_path / "other", GOOD)
    recipe = folder / "recipe.toml"
    recipe.write_text(recipe.read_text().replace('"arithmetic"', '"../mine.py:Mine"'))
    facts = write(folder)
    assert "holdout_by_digits" not in facts and facts["unit"] == "level"
    assert facts["rounds"][0]["level"] == 3 and facts["rounds"][0]["precision"] is None
    assert facts["rounds"][1]["community"]["4"] == 0.9
    assert "ahead of its best, ann (0.883)" in said(facts)
    assert [row[0] for row in tables((folder / "report.md").read_text())[1]][2] == "addition@2"


WILD = "a\n<main> | *b*\x1b[31m"


def test_a_domain_may_have_any_name(tmp_path: Path) -> None:
    """It breaks no table of the report, and nothing of it is markup or an escape sequence."""
    (tmp_path / "mine.py").write_text(MINE)
    folder = make_run(tmp_path / "wild", replace(GOOD, domain=WILD))
    recipe = folder / "recipe.toml"
    recipe.write_text(recipe.read_text().replace('"arithmetic"', '"../mine.py:Mine"'))
    facts = write(folder)
    text = (folder / "report.md").read_text()
    assert [row[0] for row in tables(text)[1]][2] == r"a \<main> \| \*b\* [31m@2"
    assert "<main>" not in text.replace(r"\<main>", "") and "\x1b" not in text + shown(facts)
    assert "a <main> | *b* [31m@2" in shown(facts)


def test_falls_that_chance_brings_are_put_beside_those_found(tmp_path: Path) -> None:
    """Forty members at one level: one falls, and of forty comparisons one would anyway."""
    names = [f"m{i:02}" for i in range(40)]
    start = {solver: {2: 0.5} for solver in ("community", *names)}
    plan = Plan([start, start | {"m07": {2: 0.3}}], [(2, 2)], names, posed=2)
    text = said(figures(make_run(tmp_path / "chance", plan)))
    assert "m07 (2 digits, 0.500 to 0.300) fell below the start (of 40 comparisons, about 1" in text


def test_what_members_have_in_common_is_said_once(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "good", GOOD)
    write(folder)
    text = (folder / "report.md").read_text()
    assert "Common to all: use scripted, samples 2." in text
    assert tables(text)[3][2][:2] == ["ann", "error 0.1"]


def test_terminal_report_fits_eighty_columns(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "good", GOOD)
    make_run(folder / "baselines" / "self-consistency", baseline({2: 1.0, 3: 0.9, 4: 0.8}))
    text = shown(figures(folder), width=80)
    assert "…" not in text and "self-consistency" in text and "precision" in text


def test_terminal_report(tmp_path: Path) -> None:
    text = shown(figures(make_run(tmp_path / "good", GOOD)))
    assert "good, seed 7" in text and "Rounds" in text and "Holdout by digits" in text
    assert "0.943" in text and "The world spoke on validation only" in text


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "good", GOOD)
    (folder / "plots").write_text("in the way")
    with pytest.raises(CommunityError, match="cannot write the report"):
        write(folder)


def test_words() -> None:
    assert span(["1"], "digits") == "1 digit"
    assert span(["9", "10", "12", "11", "3"], "digits") == "3, 9–12 digits"
    assert span(["gcd@1", "gcd@2"], "level") == "gcd@1, gcd@2"
    assert [duration(s) for s in (3.21, 59.97, 372, 7300)] == [
        "3.2 s", "1 min 0 s", "6 min 12 s", "2 h 1 min",
    ]  # fmt: skip


def test_beyond_by_hand() -> None:
    # 8 of 8 against 6 of 8: .9 and .7 of 10, error sqrt(.009 + .021) = .173, so .2 is within two
    assert beyond(1.0, 8, 0.75, 8) == 0
    assert beyond(1.0, 800, 0.75, 800) == 1 and beyond(0.75, 800, 1.0, 800) == -1


@given(st.integers(0, 50), st.integers(0, 50))
def test_beyond_is_antisymmetric_and_calm(a: int, b: int) -> None:
    assert beyond(a / 50, 50, b / 50, 50) == -beyond(b / 50, 50, a / 50, 50)
    assert beyond(a / 50, 50, a / 50, 50) == 0
