"""What is written aside appears whole or not at all, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from community.aside import aside


def test_a_file_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    target = tmp_path / "made" / "on the way" / "file"
    for text in ("old", "new"):
        with aside(target) as part:
            part.write_text(text)
            part.replace(target)
        assert target.read_text() == text and [*target.parent.iterdir()] == [target]


def test_two_at_once_have_places_of_their_own(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    with aside(target) as one, aside(target) as other:
        one.mkdir()
        other.mkdir()
        assert one != other
        one.rename(target)
    assert [*tmp_path.iterdir()] == [target]


def test_what_fails_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(RuntimeError), aside(target) as part:
        part.write_text("half")
        raise RuntimeError
    assert [*tmp_path.iterdir()] == [target] and target.read_text() == "old"
