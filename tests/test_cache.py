"""A folder of the cache is there whole or not at all, whoever else makes it and whatever fails."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import pytest
from command import little_room

from community.cache import cache as place
from community.cache import making
from community.errors import CommunityError

FORK = get_context("fork")
FILES = 8


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    for n in range(FILES):
        (folder / str(n)).write_bytes(bytes(200_000))
    return folder


def copy(source: Path, target: Path, together: Callable[[], object] = lambda: None) -> None:
    together()
    with making(target) as made:
        shutil.copytree(source, made)


def test_several_processes_make_the_same_folder(source: Path, cache: Path) -> None:
    for n in range(8):
        start = FORK.Barrier(3)
        target = place() / str(n) / "made"
        others = [FORK.Process(target=copy, args=(source, target, start.wait)) for _ in range(3)]
        for other in others:
            other.start()
        for other in others:
            other.join()
        assert [other.exitcode for other in others] == [0, 0, 0]
        assert len(list(target.iterdir())) == FILES
        assert [path.name for path in target.parent.iterdir()] == ["made"]


def test_without_room_nothing_is_left(source: Path, cache: Path) -> None:
    with little_room(100_000), pytest.raises(CommunityError, match=r"cannot write .*too large"):
        copy(source, cache / "made")
    assert list(cache.iterdir()) == []
    copy(source, cache / "made")
    assert len(list((cache / "made").iterdir())) == FILES


def test_where_nothing_can_be_written(source: Path) -> None:
    with pytest.raises(CommunityError, match="cannot write /proc/nope/made: "):
        copy(source, Path("/proc/nope/made"))


def test_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a user whom the system does not know, in a container."""
    monkeypatch.setenv("COMMUNITY_CACHE", "~no-such-user/cache")
    with pytest.raises(CommunityError, match="COMMUNITY_CACHE"):
        place()
