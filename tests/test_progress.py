"""What a run shows of itself: lines that stay, and bars where there is a terminal."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from community.progress import Display
from community.types import Score


def shown(terminal: bool, n: int = 2, width: int = 120) -> str:
    """What is written while round n of 4 is played."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=width, legacy_windows=False)
    with Display(console) as display:
        display.round(n, 4, 3)
        display.phase("propose", 2)
        display.done("ada", 500)
        display.done("bo", 0)
        display._bars.refresh()
        display.result(n, facts())
    return file.getvalue()


def facts(**others: object) -> dict[str, object]:
    scores = [
        Score(2, "community", "holdout", domain, level, right, total)
        for domain, level, right, total in (
            ("addition", 1, 4.0, 4),
            ("addition", 3, 1.0, 4),
            ("subtraction", 3, 0.0, 2),
        )
    ]
    return {
        "level": 3,
        "posed": 10,
        "kept": 6,
        "rollbacks": 1,
        "scores": scores,
        **others,
    }


def test_a_round_leaves_one_plain_line_where_nobody_watches() -> None:
    (line,) = shown(terminal=False, width=40).splitlines()
    assert re.fullmatch(
        r"round 2/4  level 3  posed 10  kept 6  holdout 0\.50 \(at this level 0\.17\)"
        r"  rollbacks 1  \d+ s",
        line,
    )


def test_bars_name_round_phase_member_and_speed_on_a_terminal() -> None:
    written = shown(terminal=True)
    for word in ("round", "level 3", "propose", "bo", "tokens/s", "2/2"):
        assert word in written
    assert "\x1b[?25h" in written  # the cursor is back


def test_what_was_not_measured_is_not_shown() -> None:
    file = io.StringIO()
    with Display(Console(file=file, width=120)) as display:
        display.round(1, 2, 3)
        display.result(1, facts(scores=[], rollbacks=0))
    assert re.fullmatch(r"round 1/2  level 3  posed 10  kept 6  \d+ s\n", file.getvalue())


def test_levels_count_by_their_tasks_as_in_the_report() -> None:
    file = io.StringIO()
    counts = ((1, 2.0, 2), (3, 0.0, 8))
    scores = [Score(1, "community", "holdout", "addition", *count) for count in counts]
    with Display(Console(file=file, width=120)) as display:
        display.round(1, 2, 3)
        display.result(1, facts(scores=scores))
    assert "holdout 0.20 (at this level 0.00)" in file.getvalue()


@pytest.mark.parametrize("total", [0, 3])
def test_first_lessons_are_announced_if_there_are_any(total: int) -> None:
    file = io.StringIO()
    with Display(Console(file=file, width=120)) as display:
        display.round(0, 2, 1)
        display.phase("first lessons", total)
    assert ("first lessons" in file.getvalue()) == bool(total)


def test_time_left_follows_from_the_rounds_that_were_played(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr("community.progress.monotonic", lambda: now[0])
    display = Display(Console(file=io.StringIO()))
    for n in (1, 2):
        display.round(n, 6, 1)
        assert display._left() == ("" if n == 1 else "  about 4 min left")
        now[0] += 50.0
    display.round(3, 6, 1)
    assert display._left() == "  about 3 min left"  # 4 rounds of 50 s
    display.round(6, 6, 1)
    assert display._left().endswith("s left")
