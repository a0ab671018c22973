"""Datasets from a ledger: the columns trainers read, what is left out and why, the same bytes."""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from command import CROWD, community, write_recipe
from huggingface_hub import DatasetCard
from small_rounds import MEMBERS, META, make_ledger, make_task
from sqlalchemy import create_engine, text
from tiny_models import chat_model

from community.candidates import Candidate
from community.card import licence
from community.dedup import Exact, Near, Overlap
from community.errors import CommunityError
from community.export import export, push
from community.extras import extra
from community.formats import FORMATS, Choice, beats, columns_of
from community.ledger import Ledger
from community.types import WORLD, Idea, Ranked, Ranking, Round, Task, Verdict
from community.wanted import Counts, Wanted, rounds_of

ALL_KINDS = ("jsonl", "parquet", "hf")
TRAINED = {
    "sft": ["messages"],
    "prompt-completion": ["prompt", "completion"],
    "dpo": ["prompt", "chosen", "rejected"],
    "kto": ["prompt", "completion", "label"],
    "reward": ["prompt", "chosen", "rejected"],
    "grpo": ["prompt", "answer"],
    "ideas": ["prompt", "text", "answer"],
}
NO_ARROW = "the extra export (datasets, pyarrow, datasketch) is not installed"
needs_extra = pytest.mark.skipif(
    not all(find_spec(name) for name in ("datasets", "pyarrow", "datasketch")), reason=NO_ARROW
)

# -- rounds made for what they hold ----------------------------------------------------------

Said = tuple[str, str, float, float | None]  # author, text, strength, the world's score


def round_of(n: int, said: dict[Task, Sequence[Said]], **more: Any) -> Round:
    """A round in which these ideas were given, the best first."""
    ideas, entries, verdicts = [], [], []
    for task, given in said.items():
        for place, (author, words, strength, world) in enumerate(given, 1):
            idea = Idea(task.id, author, f"c{n}", n, 0, place, words, answer=words)
            ideas.append(idea)
            scale = (strength, strength - 1, strength + 1)
            confidence = 0.5 if world is None else world
            entries.append(Ranked(task.id, idea.id, place, *scale, 4, 0, confidence, 1))
            if world is not None:
                verdicts.append(Verdict(n, task.id, WORLD, idea.id, world))
        first, last = ideas[-len(given)], ideas[-1]
        verdicts.append(Verdict(n, task.id, "cy", first.id, 0.9, 1.0, last.id))
    ranking = Ranking("bradley-terry", tuple(entries), {"cy": 1.0})
    return Round(n, tuple(said), tuple(ideas), tuple(verdicts), ranking, (), **more)


PLAIN: Sequence[Said] = (("ann", "4", 2.0, None), ("bob", "5", 1.0, None), ("cy", "6", -1.0, None))
"""An answer each, none checked by the world."""


def ledger_of(folder: Path, *rounds: Round) -> Ledger:
    ledger = Ledger.create(folder / "ledger.db", META, MEMBERS)
    for round in rounds:
        ledger.record(round)
    return ledger


def exported(ledger: Ledger, folder: Path, form: str, **wanted: Any) -> tuple[Counts, list[Any]]:
    """Counts and rows of a dataset without a test split."""
    counts = export(ledger, folder, Wanted(form, **{"test": 0.0, **wanted}))
    return counts, rows_of(folder / "train.jsonl")


def rows_of(path: Path) -> list[Any]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def bytes_of(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture
def small(tmp_path: Path) -> Ledger:
    """Six rounds of all kinds of fields, and one whose ideas differ."""
    ledger = make_ledger(tmp_path / "ledger.db", rounds=6)
    ledger.record(round_of(7, {make_task(7, i): PLAIN for i in range(12)}))
    return ledger


# -- formats -------------------------------------------------------------------------------


class TestFormats:
    @pytest.mark.parametrize("form", FORMATS)
    @pytest.mark.parametrize("chat", [False, True])
    def test_columns_and_types(self, form: str, chat: bool, tmp_path: Path) -> None:
        ledger = ledger_of(tmp_path, round_of(1, {make_task(1, i): PLAIN for i in range(3)}))
        _, rows = exported(ledger, tmp_path / "out", form, chat=chat)
        columns = columns_of(form, chat)
        assert list(columns)[: len(TRAINED[form])] == TRAINED[form]
        known = {"string": str, "int64": int, "float64": float, "bool": bool}
        for row in rows:
            assert list(row) == list(columns)
            for name, kind in columns.items():
                if kind == "messages":
                    assert all(list(m) == ["role", "content"] for m in row[name])
                elif kind == "strings":
                    assert all(isinstance(x, str) for x in row[name])
                else:
                    assert row[name] is None or type(row[name]) is known[kind], name

    def test_sft_is_the_winner_as_a_conversation(self, tmp_path: Path) -> None:
        task = make_task(1, 0)
        ledger = ledger_of(tmp_path, round_of(1, {task: PLAIN}))
        _, (row,) = exported(ledger, tmp_path / "out", "sft")
        assert row["messages"] == [
            {"role": "user", "content": task.prompt},
            {"role": "assistant", "content": "4"},
        ]
        assert row["author"] == "ann@c1" and row["judges"] == ["cy"] and row["world"] is None
        assert (row["low"], row["strength"], row["high"]) == (1.0, 2.0, 3.0)
        assert row["idea"] == ledger.idea(row["idea"]).id and row["task"] == task.id

    def test_a_pair_is_the_winner_and_the_last_it_beats(self, tmp_path: Path) -> None:
        ledger = ledger_of(tmp_path, round_of(1, {make_task(1, 0): PLAIN}))
        for form in ("dpo", "reward"):
            _, (row,) = exported(ledger, tmp_path / form, form, chat=form == "reward")
            said = [row["chosen"], row["rejected"]]
            if form == "reward":
                said = [messages[0]["content"] for messages in said]
            assert said == ["4", "6"]
            assert (row["chosen_author"], row["rejected_author"]) == ("ann@c1", "cy@c1")

    def test_kto_labels_are_booleans_and_no_text_has_both(self, tmp_path: Path) -> None:
        ledger = ledger_of(tmp_path, round_of(1, {make_task(1, 0): PLAIN}))
        for winners in (1, 2, 3, 9):
            _, rows = exported(
                ledger, tmp_path / str(winners), "kto", choice=Choice(winners=winners)
            )
            labels = {row["completion"]: row["label"] for row in rows}
            assert len(labels) == len(rows) and labels["4"] is True and labels["6"] is False

    def test_grpo_has_each_task_once_as_posed_last(self, tmp_path: Path) -> None:
        task, other = make_task(1, 0), make_task(1, 1)
        later = {task: [("bob", "9", 1.0, None), ("cy", "8", 0.0, None)]}
        ledger = ledger_of(tmp_path, round_of(1, {task: PLAIN, other: PLAIN}), round_of(2, later))
        counts, rows = exported(ledger, tmp_path / "out", "grpo")
        assert {row["task"]: row["answer"] for row in rows} == {task.id: "9", other.id: "4"}
        assert counts.dropped["tasks that a later round poses again"] == 1
        _, rows = exported(ledger, tmp_path / "first", "grpo", last=1)
        assert {row["answer"] for row in rows} == {"4"}

    def test_ideas_are_all_there_with_their_parents(self, small: Ledger, tmp_path: Path) -> None:
        counts, rows = exported(small, tmp_path / "out", "ideas")
        given = {i.id: i for n in range(1, 8) for i in small.round(n).ideas}
        assert counts.ideas == len(rows) == len(given)
        for row in rows:
            idea = given[row["idea"]]
            assert tuple(row["parents"]) == idea.parents and row["text"] == idea.text
            assert row["failure"] == idea.failure and row["logprob"] == idea.logprob

    def test_nan_and_infinity_become_null(self, tmp_path: Path) -> None:
        round = round_of(1, {make_task(1, 0): PLAIN})
        entry = replace(round.ranking.entries[0], low=float("nan"), high=float("inf"))
        ranking = replace(round.ranking, entries=(entry, *round.ranking.entries[1:]))
        ledger = ledger_of(tmp_path, replace(round, ranking=ranking))
        _, (row,) = exported(ledger, tmp_path / "out", "sft")
        assert row["low"] is None and row["high"] is None and row["strength"] == 2.0


# -- what is chosen ------------------------------------------------------------------------


def candidate(strength: float, world: float | None = None, component: int = 0) -> Candidate:
    return Candidate(1, "id", "ann", "c", 0, 0, "t", "t", "", 1, 0.0, 0.0, 1.0, 1, 1, 1, strength,
                     0.0, 0.0, 1, component, 0.5, 1, world, ())  # fmt: skip


class TestChoosing:
    @pytest.mark.parametrize(
        ("a", "b", "margin", "known"),
        [
            (candidate(1.0), candidate(0.0), 0.0, True),
            (candidate(1.0), candidate(1.0), 0.0, False),  # a tie
            (candidate(0.0), candidate(1.0), 0.0, False),
            (candidate(0.3), candidate(0.2), 0.1, True),  # the margin itself is enough
            (candidate(0.3), candidate(0.2), 0.2, False),
            (candidate(1.0), candidate(0.0, component=1), 0.0, False),  # never compared
            (candidate(1.0, component=-1), candidate(0.0, component=-1), 0.0, False),
            (candidate(0.0, world=1.0), candidate(1.0, world=0.0), 5.0, True),  # the world's word
            (candidate(1.0, world=0.0), candidate(0.0), 0.0, False),
            (candidate(1.0), candidate(0.0, world=1.0), 0.0, False),
        ],
    )
    def test_beats(self, a: Candidate, b: Candidate, margin: float, known: bool) -> None:
        assert beats(a, b, margin) is known

    def test_ties_give_no_pair_and_are_counted(self, tmp_path: Path) -> None:
        tie = [("ann", "4", 1.0, None), ("bob", "5", 1.0, None)]
        said = {make_task(1, 0): tie, make_task(1, 1): PLAIN}
        ledger = ledger_of(tmp_path, round_of(1, said))
        counts, rows = exported(ledger, tmp_path / "out", "dpo")
        assert len(rows) == 1
        ((reason, n),) = counts.dropped.items()
        assert "ties" in reason and n == 1

    def test_the_margin(self, tmp_path: Path) -> None:
        ledger = ledger_of(tmp_path, round_of(1, {make_task(1, 0): PLAIN}))
        _, (row,) = exported(ledger, tmp_path / "out", "dpo", choice=Choice(margin=3.0))
        assert row["chosen_strength"] - row["rejected_strength"] == 3.0
        with pytest.raises(CommunityError, match="ties, or by less than the margin\\): 1"):
            exported(ledger, tmp_path / "none", "dpo", choice=Choice(margin=3.5))

    def test_what_the_world_calls_wrong_is_never_learned(self, tmp_path: Path) -> None:
        wrong = [("ann", "4", 2.0, 0.0), ("bob", "5", 1.0, 0.0)]
        right = [("ann", "4", 0.0, 1.0), ("bob", "5", 1.0, 0.0)]
        said = {make_task(1, 0): wrong, make_task(1, 1): right, make_task(1, 2): PLAIN}
        ledger = ledger_of(tmp_path, round_of(1, said))
        for form in ("sft", "prompt-completion", "grpo"):
            counts, rows = exported(ledger, tmp_path / form, form)
            assert len(rows) == 2
            assert counts.dropped["winners that the world calls wrong"] == 1
        _, rows = exported(ledger, tmp_path / "dpo", "dpo")
        assert [row["chosen_world"] for row in rows] == [1.0, None]
        _, rows = exported(ledger, tmp_path / "kto", "kto", choice=Choice(verified=True))
        assert all(row["label"] is (row["world"] == 1.0) for row in rows) and len(rows) == 3

    def test_failures_are_no_winners(self, small: Ledger, tmp_path: Path) -> None:
        _, rows = exported(small, tmp_path / "out", "sft", choice=Choice(winners=9))
        assert all(small.idea(row["idea"]).failure == "" for row in rows)

    def test_an_empty_text_is_no_winner(self, tmp_path: Path) -> None:
        said = [("ann", " ", 2.0, None), ("bob", "5", 1.0, None), ("cy", "", 0.0, None)]
        ledger = ledger_of(tmp_path, round_of(1, {make_task(1, 0): said}))
        _, (row,) = exported(ledger, tmp_path / "out", "prompt-completion")
        assert row["completion"] == "5"


class TestFilters:
    def rows(self, tmp_path: Path, form: str = "sft", **wanted: Any) -> tuple[Counts, list[Any]]:
        sure = [("bob", "7", 5.0, 1.0), ("ann", "8", 0.0, 0.0)]
        one = {make_task(1, 0): PLAIN, replace(make_task(1, 1), domain="product"): sure}
        with ledger_of(tmp_path, round_of(1, one), round_of(2, {make_task(2, 0): PLAIN})) as ledger:
            return exported(ledger, tmp_path / "out", form, **wanted)

    @pytest.mark.parametrize(
        ("wanted", "left", "reason"),
        [
            ({"arenas": ("product",)}, 1, "tasks of other arenas"),
            ({"arenas": ("arithmetic",)}, 3, ""),
            ({"first": 2}, 1, ""),
            ({"last": 1}, 2, ""),
            ({"choice": Choice(agents=frozenset({"bob"}))}, 1, "rows by others than bob"),
            ({"choice": Choice(min_strength=3.0)}, 1, "rows below strength 3"),
            ({"choice": Choice(min_confidence=0.9)}, 1, "rows below confidence 0.9"),
            ({"choice": Choice(verified=True)}, 1, "rows that the world did not verify"),
            ({"choice": Choice(winners=2)}, 5, "winners that the world calls wrong"),
        ],
    )
    def test_each(self, wanted: Any, left: int, reason: str, tmp_path: Path) -> None:
        counts, rows = self.rows(tmp_path, **wanted)
        assert len(rows) == counts.total == left
        assert set(counts.dropped) == ({reason} if reason else set())
        assert (tmp_path / "out/README.md").read_text().count(reason)

    def test_a_least_strength_of_zero_is_one(self, tmp_path: Path) -> None:
        counts, rows = self.rows(tmp_path, "ideas", choice=Choice(min_strength=0.0))
        assert sorted(row["strength"] for row in rows) == [0.0, 1.0, 1.0, 2.0, 2.0, 5.0]
        assert counts.dropped == {"rows below strength 0": 2}

    def test_no_rows_left_says_which_filter_dropped_how_many(self, tmp_path: Path) -> None:
        with pytest.raises(CommunityError, match=r"no rows are left of 8 ideas.*strength 9: 3"):
            self.rows(tmp_path, choice=Choice(min_strength=9.0))
        assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))

    def test_more_winners_than_there_are_ideas_are_all_of_them(self, tmp_path: Path) -> None:
        counts, _ = self.rows(tmp_path, "kto", choice=Choice(winners=10**12))
        assert counts.ideas == 8 and counts.total == 8

    @pytest.mark.parametrize(
        ("given", "rounds"),
        [("", (0, None)), ("3", (3, 3)), ("3-7", (3, 7)), ("3-", (3, None))],
    )
    def test_rounds(self, given: str, rounds: tuple[int, int | None]) -> None:
        assert rounds_of(given) == rounds

    @pytest.mark.parametrize("given", ["x", "-3", "3-x", "3-4-5", "1.5", "9" * 19, "1-" + "9" * 19])
    def test_bad_rounds(self, given: str) -> None:
        with pytest.raises(CommunityError, match="3, 3-7 or 3-"):
            rounds_of(given)


# -- duplicates and tests ------------------------------------------------------------------


class TestDuplicates:
    def test_exact(self, tmp_path: Path) -> None:
        task = make_task(1, 0)
        ledger = ledger_of(tmp_path, round_of(1, {task: PLAIN}), round_of(2, {task: PLAIN}))
        counts, rows = exported(ledger, tmp_path / "out", "dpo")
        assert len(rows) == 1 and counts.dropped == Counter({"exact duplicates": 1})
        _, rows = exported(ledger, tmp_path / "all", "dpo", duplicates=True)
        assert len(rows) == 2
        _, rows = exported(ledger, tmp_path / "ideas", "ideas")
        assert len(rows) == 6

    def test_texts_that_only_join_to_the_same_differ(self) -> None:
        exact = Exact()
        assert (
            not exact.seen(["a", "bc"]) and not exact.seen(["ab", "c"]) and exact.seen(["ab", "c"])
        )

    @needs_extra
    def test_near(self, tmp_path: Path) -> None:
        long = "the quick brown fox jumps over the lazy dog and runs away into the deep dark wood"
        said = [
            {make_task(n, 0): [("ann", words, 1.0, None)]}
            for n, words in enumerate((long, f"{long} now", "something else entirely, it seems"))
        ]
        ledger = ledger_of(tmp_path, *(round_of(n + 1, x) for n, x in enumerate(said)))
        counts, rows = exported(ledger, tmp_path / "out", "sft", near=0.7)
        assert len(rows) == 2 and counts.dropped == Counter({"near duplicates": 1})
        _, rows = exported(ledger, tmp_path / "all", "sft")
        assert len(rows) == 3

    @needs_extra
    def test_similarity_is_checked_and_not_only_guessed(self) -> None:
        words = [f"word{i}" for i in range(60)]
        near = Near(0.9)
        assert not near.seen([" ".join(words)])
        assert not near.seen([" ".join(words[:40] + [f"other{i}" for i in range(20)])])
        assert near.seen([" ".join(words).upper()])  # case does not count

    @needs_extra
    def test_what_is_more_alike_than_asked_for_is_found(self) -> None:
        """Two texts of 276 letters that differ in four: they share .86 of their shingles."""
        found = 0
        for n in range(60):
            letters = random.Random(n).choices("abcdefghijklmnop", k=276)
            near = Near(0.8)
            assert not near.seen(["".join(letters)])
            for place in (30, 100, 170, 240):
                letters[place] = "."
            found += near.seen(["".join(letters)])
        assert found >= 57

    @needs_extra
    @pytest.mark.parametrize("similarity", [0.99, 1.0])
    def test_nearly_the_same_and_all_the_same(self, similarity: float) -> None:
        near = Near(similarity)
        text = " ".join(f"word{i}" for i in range(60))
        assert not near.seen([text])
        assert not near.seen([text.replace("word4", "other")])
        assert near.seen([text.upper()])


class TestDecontamination:
    def test_the_runs_own_holdout(self, tmp_path: Path) -> None:
        held = make_task(1, 1, "holdout")
        said = {make_task(1, 0): PLAIN, held: PLAIN, make_task(1, 2, "validation"): PLAIN}
        ledger = ledger_of(tmp_path, round_of(1, said))
        for form in FORMATS:
            counts, rows = exported(ledger, tmp_path / form, form)
            assert {row["task"] for row in rows} == {make_task(1, 0).id}
            assert counts.dropped["tasks of the run's validation or holdout"] == 2

    def test_a_file_of_short_texts_keeps_whole_prompts_out(self, tmp_path: Path) -> None:
        test = tmp_path / "test.txt"
        test.write_text("1 + 0 = ?\n\n4\n")  # "4" is a completion and no prompt
        ledger = ledger_of(tmp_path, round_of(1, {make_task(1, i): PLAIN for i in range(3)}))
        counts, rows = exported(ledger, tmp_path / "out", "sft", against=(test,))
        assert len(rows) == 2 and counts.dropped == Counter({"rows that overlap with test.txt": 1})
        assert "test.txt (13 words)" in (tmp_path / "out/README.md").read_text()

    def test_ngrams_of_jsonl(self, tmp_path: Path) -> None:
        words = [f"w{i}" for i in range(20)]
        test = tmp_path / "test.jsonl"
        test.write_text(json.dumps({"q": [" ".join(words)], "n": 3}) + "\n\n")
        overlap = Overlap(test, ngram=5)
        assert overlap.seen(["x", f"so, {' '.join(words[3:8]).upper()}!"])
        assert not overlap.seen(["x", f"so, {' '.join(words[3:7])} and then"])

    def test_a_file_of_one_json_value(self, tmp_path: Path) -> None:
        test = tmp_path / "test.JSON"
        test.write_text(json.dumps([{"q": "1 + 0 = ?"}, {"q": "3 * 3"}], indent=2), "utf-8-sig")
        overlap = Overlap(test)
        assert overlap.seen(["1 + 0 =", "1"]) and overlap.seen(["3 * 3", "9"])
        assert not overlap.seen(["q", "9"])

    def test_numbers_of_any_length(self, tmp_path: Path) -> None:
        test = tmp_path / "test.jsonl"
        test.write_text('{"prompt": "two and two", "answer": ' + "9" * 5000 + "}")
        assert Overlap(test).seen(["Two and two?", "4"])

    @pytest.mark.parametrize(
        ("name", "content", "named"),
        [
            ("no.txt", None, "No such file"),
            ("empty.txt", b"\n \n", "holds no text"),
            ("bad.jsonl", b'{"a": "b"}\n{', "line 2 of"),
            ("lines.json", b'{"a": "b"}\n{"a": "c"}', "line 2 of .* not JSON: Extra data"),
            ("deep.jsonl", b"[" * 100_000, "line 1 of .* nested too deeply"),
            ("latin.txt", b"\xe9\xff", "UTF-8"),
        ],
    )
    def test_bad_files(
        self, name: str, content: bytes | None, named: str, small: Ledger, tmp_path: Path
    ) -> None:
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(CommunityError, match=named):
            exported(small, tmp_path / "out", "sft", against=(path,))
        assert not (tmp_path / "out").exists()


# -- files ---------------------------------------------------------------------------------


class TestFiles:
    @pytest.mark.parametrize("kind", ["jsonl", *(pytest.param(k, marks=needs_extra)
                                                 for k in ("parquet", "hf"))])  # fmt: skip
    def test_the_same_ledger_gives_the_same_bytes(self, kind: str, tmp_path: Path) -> None:
        said = {make_task(7, i): PLAIN for i in range(12)}
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            with make_ledger(tmp_path / name / "ledger.db", rounds=6) as ledger:
                ledger.record(round_of(7, said))
                for form in FORMATS:
                    export(ledger, tmp_path / name / form, Wanted(form, kind=kind, test=0.3))
        for form in FORMATS:
            first = bytes_of(tmp_path / "one" / form)
            assert first == bytes_of(tmp_path / "two" / form) and len(first) > 1

    def test_no_task_is_in_two_splits(self, tmp_path: Path) -> None:
        said = {make_task(1, i): PLAIN for i in range(60)}
        again = {make_task(1, i): PLAIN[:2] for i in range(30)}
        ledger = ledger_of(tmp_path, round_of(1, said), round_of(2, again))
        for form in ("dpo", "kto", "ideas"):
            wanted = Wanted(form, test=0.3, validation=0.3)
            counts = export(ledger, tmp_path / form, wanted)
            splits = {name: rows_of(tmp_path / form / f"{name}.jsonl") for name in counts.rows}
            assert set(splits) == {"train", "validation", "test"}
            tasks = [{row["task"] for row in rows} for rows in splits.values()]
            assert sum(map(len, tasks)) == len(set().union(*tasks)) == 60
            assert {k: len(v) for k, v in splits.items()} == dict(counts.rows)

    @needs_extra
    @pytest.mark.parametrize("kind", ALL_KINDS)
    @pytest.mark.parametrize("form", FORMATS)
    def test_datasets_loads_it(
        self, form: str, kind: str, small: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        datasets = importlib.import_module("datasets")
        counts = export(small, tmp_path / "out", Wanted(form, kind=kind, test=0.3))
        if kind == "hf":
            found = datasets.load_from_disk(str(tmp_path / "out"))
        else:
            cache = str(tmp_path / "cache")
            found = datasets.load_dataset(str(tmp_path / "out"), cache_dir=cache)
        assert {split: len(rows) for split, rows in found.items()} == dict(counts.rows)
        again = tmp_path / "jsonl"
        export(small, again, Wanted(form, test=0.3))
        for split, rows in found.items():
            assert list(rows) == rows_of(again / f"{split}.jsonl")
            assert rows.column_names == list(columns_of(form, False))
        if form == "kto":
            assert found["train"].features["label"].dtype == "bool"

    @needs_extra
    @pytest.mark.parametrize("kind", ["jsonl", "parquet"])
    def test_datasets_does_not_confuse_two_of_one_name(
        self, kind: str, small: Ledger, tmp_path: Path
    ) -> None:
        """Its cache knows a local folder by its last name and its card's head alone."""
        datasets = importlib.import_module("datasets")
        for n in (1, 2):
            place, cache = tmp_path / str(n) / "data", str(tmp_path / "cache")
            place.parent.mkdir()
            said = export(small, place, Wanted("ideas", kind, first=n, last=n, test=0.0))
            found = datasets.load_dataset(str(place), cache_dir=cache)["train"]
            assert set(found["round"]) == {n} and len(found) <= said.total

    @pytest.mark.parametrize("form", FORMATS)
    def test_the_card_is_valid_and_tells_what_is_so(
        self, form: str, small: Ledger, tmp_path: Path
    ) -> None:
        counts, _ = exported(small, tmp_path / "out", form)
        card = DatasetCard.load(tmp_path / "out/README.md")
        assert card.data.license == "unknown" and form in card.data.tags
        assert card.data.configs[0]["data_files"] == [{"split": "train", "path": "train.jsonl"}]
        names = [x["name"] for x in card.data.dataset_info["features"]]
        assert names == list(columns_of(form, False))
        assert f"{counts.total:,} row" in card.text and f"{counts.ideas:,} ideas" in card.text
        for name, n in counts.authors.items():
            assert f"| {name} |" in card.text and f"| {n} |" in card.text
        for reason, n in counts.dropped.items():
            assert f"| {reason} | {n} |" in card.text

    @needs_extra
    def test_the_card_names_the_features_that_datasets_would(
        self, small: Ledger, tmp_path: Path
    ) -> None:
        datasets = importlib.import_module("datasets")
        export(small, tmp_path / "out", Wanted("sft", test=0.0))
        card = DatasetCard.load(tmp_path / "out/README.md")
        export(small, tmp_path / "hf", Wanted("sft", kind="hf", test=0.0))
        features = datasets.load_from_disk(str(tmp_path / "hf"))["train"].features
        assert card.data.dataset_info["features"] == features._to_yaml_list()

    def test_licences(self, tmp_path: Path) -> None:
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine/README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
        (tmp_path / "bare").mkdir()
        (tmp_path / "bare/README.md").write_text("# Nothing stated\n")
        (tmp_path / "odd").mkdir()
        (tmp_path / "odd/README.md").write_text("---\nlicense: [\n---\n")
        small = "HuggingFaceTB/SmolLM2-135M-Instruct"
        for spec, found in [
            ({"use": "scripted"}, ("no model", "none")),
            ({"use": "transformer", "shape": {}}, ("made for this run", "none")),
            ({"use": "transformer", "model": "packaged:smollm2"},
             ("packaged:smollm2", "apache-2.0")),
            ({"use": "transformer", "model": small}, (small, "apache-2.0")),
            ({"use": "transformer", "model": "mine"}, ("mine", "mit")),
            ({"use": "transformer", "model": "bare"}, ("bare", "")),
            ({"use": "transformer", "model": "odd"}, ("odd", "")),
            ({"use": "mine.py:Oracle"}, ("mine.py:Oracle", "")),
            ({"use": "mine.py:Oracle", "license": "cc0-1.0"}, ("mine.py:Oracle", "cc0-1.0")),
        ]:  # fmt: skip
            assert licence(spec, tmp_path) == found

    def test_a_model_cannot_break_the_card(self, tmp_path: Path) -> None:
        said = [("ann", "```\n# hi | there\n---\n````", 1.0, None)]
        ledger = ledger_of(tmp_path, round_of(1, {make_task(1, 0): said}))
        exported(ledger, tmp_path / "out", "sft")
        card = (tmp_path / "out/README.md").read_text()
        assert card.rstrip().endswith("\n`````") and "\n# hi" not in card

    def test_a_domain_cannot_break_the_card(self, tmp_path: Path) -> None:
        task = replace(make_task(1, 0), domain="a\n<main> | *b*")
        ledger = ledger_of(tmp_path, round_of(1, {task: [("ann", "3", 1.0, None)]}))
        exported(ledger, tmp_path / "out", "sft")
        card = (tmp_path / "out/README.md").read_text().partition("## The first row")[0]
        assert r"| a \<main> \| \*b\* | 1 | 1 |" in card and "<main>" not in card.replace(r"\<", "")


# -- refusals ------------------------------------------------------------------------------


class TestRefusals:
    def test_where_nobody_answered_no_filter_is_to_blame(self, tmp_path: Path) -> None:
        ledger = ledger_of(tmp_path, round_of(1, {make_task(1, 0): [("ann", "", 0.0, None)]}))
        with pytest.raises(CommunityError, match="none of the 1 ideas is a text") as refused:
            export(ledger, tmp_path / "out", Wanted("sft"))
        assert "filter" not in str(refused.value)

    def test_a_folder_that_is_not_empty(self, small: Ledger, tmp_path: Path) -> None:
        out = tmp_path / "out"
        out.mkdir()
        export(small, out, Wanted("sft"))  # empty is fine
        before = bytes_of(out)
        with pytest.raises(CommunityError, match="--to"):
            export(small, out, Wanted("dpo"))
        assert bytes_of(out) == before
        with pytest.raises(CommunityError, match="--to"):
            export(small, out / "README.md", Wanted("dpo"))

    @pytest.mark.parametrize(
        ("wanted", "named"),
        [
            (Wanted("dpoo"), "did you mean 'dpo'"),
            (Wanted("sft", kind="csv"), "jsonl"),
            (Wanted("sft", arenas=("sums",)), "did you mean 'sum'"),
            (Wanted("sft", choice=Choice(agents=frozenset({"bobb"}))), "did you mean 'bob'"),
            (Wanted("sft", first=3, last=2), "end before they begin"),
            (Wanted("sft", near=1.5), "similarity"),
            (Wanted("sft", test=0.6, validation=0.6), "shares"),
            (Wanted("sft", test=-0.1), "shares"),
            (Wanted("sft", test=math.nan), "shares"),
            (Wanted("sft", validation=math.nan), "shares"),
            (Wanted("sft", near=math.nan), "similarity"),
            (Wanted("dpo", choice=Choice(margin=math.nan)), "margin"),
            (Wanted("sft", choice=Choice(winners=0)), "winners"),
            (Wanted("dpo", choice=Choice(margin=-1.0)), "margin"),
            (Wanted("sft", first=99), "no ideas were recorded"),
        ],
    )
    def test_bad_wishes(self, wanted: Wanted, named: str, small: Ledger, tmp_path: Path) -> None:
        with pytest.raises(CommunityError, match=named):
            export(small, tmp_path / "out", wanted)
        assert not (tmp_path / "out").exists()

    def test_the_folder_one_is_in(
        self, small: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        with pytest.raises(CommunityError, match="the folder you are in"):
            export(small, Path(), Wanted("sft"))

    def test_a_folder_that_cannot_be_made(self, small: Ledger, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(CommunityError, match="cannot write to"):
            export(small, tmp_path / "file" / "out", Wanted("sft"))

    def test_a_missing_extra(self) -> None:
        with pytest.raises(CommunityError, match=r"pip install 'modelcommunity\[export\]'"):
            extra("no_such_package_at_all")

    def test_an_empty_ledger(self, tmp_path: Path) -> None:
        with (
            ledger_of(tmp_path) as ledger,
            pytest.raises(CommunityError, match="nothing to export"),
        ):
            export(ledger, tmp_path / "out", Wanted("sft"))

    def test_a_hub_that_does_not_answer(
        self, small: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        export(small, tmp_path / "out", Wanted("sft"))
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
        for repo in ("me/rows", "not a/valid/name"):
            with pytest.raises(CommunityError, match="cannot push to"):
                push(tmp_path / "out", repo)

    def test_while_the_run_goes_on(self, tmp_path: Path) -> None:
        make_ledger(tmp_path / "ledger.db", rounds=2).close()
        writer = create_engine(f"sqlite:///{tmp_path}/ledger.db").connect()
        writer.exec_driver_sql("BEGIN IMMEDIATE")
        writer.execute(text("UPDATE ideas SET text = 'half written'"))
        with Ledger.open(tmp_path / "ledger.db", read_only=True) as ledger:
            _, rows = exported(ledger, tmp_path / "out", "ideas")
        writer.close()
        assert len(rows) == 24 and "half written" not in {row["text"] for row in rows}


# -- the command ---------------------------------------------------------------------------


class TestCommand:
    def test_it_exports_and_counts(self, played: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        done = community(played, "export", "tiny", "--format", "kto", "--to", str(out))
        assert done.code == 0 and not done.err and "rows (train" in done.out
        assert f"dataset and card are in {out}" in done.out
        card = DatasetCard.load(out / "README.md")
        assert "scripted" not in card.text and "no model" in card.text

    @pytest.mark.parametrize(
        ("given", "named"),
        [
            (["nope", "--format", "sft"], "no run 'nope'"),
            (["tiny", "--format", "stf"], "did you mean 'sft'"),
            (["tiny", "--format", "sft", "--rounds", "x"], "3-7"),
            (["tiny", "--format", "sft", "--agent", "sam"], "unknown member 'sam'"),
            (["tiny", "--format", "sft", "--min-strength", "99"], "rows below strength 99"),
        ],
    )
    def test_refusals(self, given: list[str], named: str, played: Path, tmp_path: Path) -> None:
        line = community(played, "export", *given, "--to", str(tmp_path / "out")).refused()
        assert named in line

    def test_a_ledger_of_a_newer_version(self, tmp_path: Path) -> None:
        assert community(tmp_path, "run", write_recipe(tmp_path, CROWD)).code == 0
        with create_engine(f"sqlite:///{tmp_path}/runs/tiny/ledger.db").begin() as conn:
            conn.execute(text("UPDATE meta SET value = '99' WHERE key = 'schema'"))
        given = ["export", "tiny", "--format", "sft", "--to", str(tmp_path / "out")]
        assert "schema version 99" in community(tmp_path, *given).refused()

    def test_commands_of_the_page_work(self, root: Path) -> None:
        page = (root / "docs/datasets.md").read_text(encoding="utf-8")
        for form in FORMATS:
            assert f"--format {form} " in page


# -- trainers ------------------------------------------------------------------------------

TRAINERS = {
    "sft": "SFT", "prompt-completion": "SFT", "dpo": "DPO", "kto": "KTO", "reward": "Reward",
    "grpo": "GRPO",
}  # fmt: skip


@pytest.mark.slow
@needs_extra
@pytest.mark.skipif(find_spec("trl") is None, reason="TRL is not installed")
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])
@pytest.mark.parametrize("form", TRAINERS)
def test_trl_trains_on_it(form: str, chat: bool, kind: str, tmp_path: Path) -> None:
    """Two real steps of TRL's trainer on a tiny model, every other column left in."""
    trl, datasets = importlib.import_module("trl"), importlib.import_module("datasets")
    model = chat_model(tmp_path / "model")
    said = {make_task(1, i): [("ann", "two", 1.0, None), ("bob", "three", 0.0, None)]
            for i in range(12)}  # fmt: skip
    with ledger_of(tmp_path, round_of(1, said)) as ledger:
        export(ledger, tmp_path / "out", Wanted(form, kind=kind, chat=chat))
    rows = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    name, more, reward = TRAINERS[form], {}, {}
    if name == "GRPO":
        more = {"num_generations": 2, "max_completion_length": 3}
        reward = {"reward_funcs": lambda completions, answer, **_: [float(len(a)) for a in answer]}
    arguments = getattr(trl, f"{name}Config")(
        output_dir=str(tmp_path / "trained"), max_steps=2, per_device_train_batch_size=4,
        use_cpu=True, bf16=False, save_strategy="no", report_to=[], disable_tqdm=True, **more,
    )  # fmt: skip
    trainer = getattr(trl, f"{name}Trainer")(
        model=model, args=arguments, train_dataset=rows["train"], **reward
    )
    assert trainer.train().global_step == 2
