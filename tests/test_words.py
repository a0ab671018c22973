"""Texts of models and numbers, as they are shown."""

from __future__ import annotations

import math

import pytest
from rich.cells import cell_len

from community import words


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (950, "950"), (1234, "1,234"), (12_345, "12.3k"), (1e6, "1M"), (2.5, "2.5"),
     (None, "–"), (math.nan, "–"), (3_200_000_000, "3.2G"), (9_994, "9,994"), (999_999, "1M"),
     (999_600_000, "1G"), (-999_700, "-1M"), (2e12, "2T"), (1234.5, "1,234"), (999.5, "1,000")],
)  # fmt: skip
def test_numbers_take_few_cells(value: float | None, text: str) -> None:
    assert words.number(value) == text


def test_a_share_says_one_only_if_it_is() -> None:
    assert [words.share(x) for x in (0.0, 0.5, 0.9994, 1.0, None)] == [
        ".000", ".500", ".999", "1.00", "–",
    ]  # fmt: skip


def test_texts_fit_whatever_letters_they_have() -> None:
    wild = "漢字" * 30 + "\x1b[31m\n\x07é"
    assert cell_len(words.one_line(wild, 21)) <= 21 and words.one_line(wild).isprintable()
    assert words.one_line("a\x1b[0m\nb", 9) == "a [0m b" and words.one_line("abcdef", 4) == "abc…"
    assert words.block("a\x1b\r\nb\tc") == "a \nb c"
    for width in (1, 2, 7, 80):
        assert words.padded("漢字漢字", width).cell_len == width


def test_names_are_no_markdown() -> None:
    assert words.markdown("a <b>\n*c* | \\d") == r"a \<b> \*c\* \| \\d"


def test_intervals_and_meters_have_their_width() -> None:
    drawn = words.interval(-1, 0.5, 2, (-2, 4), 25)
    assert len(drawn) == 25 and drawn.index("├") < drawn.index("●") < drawn.index("┤")
    assert [words.meter(x, 4) for x in (-1, 0, 0.5, 0.625, 1, 9)] == [
        "────", "────", "━━──", "━━╾─", "━━━━", "━━━━",
    ]  # fmt: skip
    assert words.spark([0, None, 1], 5) == "▁ █"
