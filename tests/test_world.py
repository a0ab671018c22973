"""What an arena of one's own may say: a wrong word ends in one line, not in a ledger."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command import CROWD, community, write_recipe

from community.arenas.arithmetic import ArithmeticArena
from community.errors import CommunityError
from community.types import Split, Task
from community.world import answered, posed, said

TASK = ArithmeticArena().pose("train", 0, 0, 1)


class Saying(ArithmeticArena):
    """It poses what it is given, and answers so."""

    def __init__(self, word: Any) -> None:
        super().__init__()
        self.word = word

    def pose(self, split: Split, seed: int, index: int, level: int) -> Task:
        task: Task = self.word
        return task

    def answer(self, task: Task, text: str) -> str:
        word: str = self.word
        return word


@pytest.mark.parametrize(
    "task",
    [
        None,
        replace(TASK, split="holdout"),
        replace(TASK, prompt=3),
        replace(TASK, domain=3),
        replace(TASK, prompt="\ud800"),
        replace(TASK, level="hard"),
        replace(TASK, level=2.5),
        replace(TASK, seed=2**63),
        replace(TASK, index=None),
    ],
)
def test_only_a_task_of_the_split_and_of_texts_is_posed(task: Any) -> None:
    assert posed(Saying(TASK), "train", 0, 0, 1) is TASK
    with pytest.raises(CommunityError, match="pose of the arena arithmetic gave"):
        posed(Saying(task), "train", 0, 0, 1)


@pytest.mark.parametrize("word", [None, 3, b"3", "\ud800"])
def test_only_a_text_is_an_answer(word: Any) -> None:
    for text in ("", "3", "ü\n\0漢"):
        assert answered(Saying(text), TASK, "") == text
    with pytest.raises(CommunityError, match="answer of the arena arithmetic gave"):
        answered(Saying(word), TASK, "")
    with pytest.raises(CommunityError, match="solve of the arena arithmetic gave"):
        said(ArithmeticArena(), "solve", word)


@pytest.fixture
def answering(tmp_path: Path) -> Callable[[str], str]:
    def recipe(answer: str) -> str:
        (tmp_path / "mine.py").write_text(
            "from community.arenas.arithmetic import ArithmeticArena\n"
            "class Mine(ArithmeticArena):\n"
            "    def __init__(self):\n"
            "        super().__init__()\n"
            "    def answer(self, task, text):\n"
            f"        return {answer}\n"
        )
        return write_recipe(tmp_path, CROWD.replace('"arithmetic"', '"mine.py:Mine"'))

    return recipe


def test_a_run_whose_arena_answers_with_numbers_is_refused_before_its_ledger_is_wrong(
    answering: Callable[[str], str], tmp_path: Path
) -> None:
    line = community(tmp_path, "run", answering("len(text)"), "--name", "mine").refused()
    assert "answer of the arena arithmetic gave 2; it must give a text" in line
    answering("text")  # the file is mended
    done = community(tmp_path, "resume", "mine")
    assert done.code == 0, done.err
