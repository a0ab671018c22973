"""The nouns: identity is content, and seeds come from what a draw is for."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields, replace
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from community.errors import CommunityError, unknown
from community.types import Decoding, Idea, Lesson, Ranked, Ranking, Task, content_hash, seed_of

TASK = Task("1+2=", "arithmetic", "addition", 1, "train", 0, 0)
IDEA = Idea(TASK.id, "ada", "c0", 1, 0, 0, "3", "3", ("p",), "q", 2, -0.5, Decoding(), "")
LESSON = Lesson(1, "ada", TASK.id, IDEA.id, "1+2=", "3", "all", 0.5, "other")

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(plain, max_size=4))
def test_hashes_and_seeds_come_from_the_parts(parts: list[object]) -> None:
    assert content_hash(*parts) == content_hash(*parts)
    assert len(content_hash(*parts)) == 20 and set(content_hash(*parts)) <= set("0123456789abcdef")
    assert 0 <= seed_of(*parts) < 2**63
    assert content_hash(*parts) != content_hash(*parts, "more")


def test_hashes_never_change() -> None:
    """Old ledgers are checked against these: SHA-256 of compact JSON in UTF-8."""
    assert content_hash("task", 1, "é") == sha256('["task",1,"é"]'.encode()).hexdigest()[:20]
    assert seed_of("run", 7) == int(sha256(b'["run",7]').hexdigest()[:16], 16) // 2


def test_parts_are_not_run_together() -> None:
    alike: list[tuple[object, ...]] = [("ab", "c"), ("a", "bc"), ("abc",), (["ab", "c"],)]
    assert len({content_hash(*parts) for parts in alike}) == len(alike)
    assert content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1})
    assert content_hash(1) != content_hash("1")


def test_a_task_is_what_it_asks() -> None:
    elsewhere = replace(TASK, split="holdout", seed=9, index=4, level=2)
    assert elsewhere.id == TASK.id  # or a holdout task could be taught under another name
    mirrored = [replace(TASK, prompt=p, key="1+2") for p in ("1+2=", "2+1=")]
    assert mirrored[0].id == mirrored[1].id
    for other in (
        replace(TASK, prompt="2+1="),
        replace(TASK, arena="gym"),
        replace(TASK, domain="sums"),
    ):
        assert other.id != TASK.id


def changed(value: Any) -> Any:
    if isinstance(value, Decoding):
        return replace(value, top_p=0.5)
    if isinstance(value, tuple):
        return (*value, "x")
    return value + "x" if isinstance(value, str) else value + 1


@pytest.mark.parametrize("noun", [IDEA, LESSON], ids=["idea", "lesson"])
def test_every_field_of_a_recorded_noun_is_in_its_id(noun: Idea | Lesson) -> None:
    ids = {noun.id}
    for field in fields(noun):
        ids.add(replace(noun, **{field.name: changed(getattr(noun, field.name))}).id)
    assert len(ids) == 1 + len(fields(noun))
    assert replace(noun).id == noun.id


def test_zero_has_no_sign() -> None:
    """A database gives -0.0 back as 0.0, and the id has to stay what it was."""
    assert replace(IDEA, logprob=-0.0).id == replace(IDEA, logprob=0.0).id


def test_nouns_do_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        IDEA.text = "4"  # type: ignore[misc]


def test_winners_are_the_first_of_each_task() -> None:
    entries = [
        Ranked(task, f"{task}{place}", place, 0.0, 0.0, 0.0, 1, 0, 1.0, 1)
        for task in ("s", "t")
        for place in (2, 1, 3)
    ]
    winners = Ranking("elo", tuple(entries), {}).winners()
    assert {task: top.idea for task, top in winners.items()} == {"s": "s1", "t": "t1"}


def test_an_unknown_name_gets_the_closest_match_and_all_there_is() -> None:
    error = unknown("arena", "arithmetik", ["gym", "arithmetic"])
    assert isinstance(error, CommunityError)
    expected = "unknown arena 'arithmetik'; did you mean 'arithmetic'? (there are: arithmetic, gym)"
    assert str(error) == expected
    assert "did you mean" not in str(unknown("arena", "zzz", ["gym"]))
