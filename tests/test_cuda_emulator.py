"""The emulator runs CUDA as it is meant, and finds what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cuda_emulator import EmulatedProgram

from community.kernels.build import BuildError

SOURCE = """
#define THREADS 64
#include "simt.h"
KERNEL reverse(GLOBAL const float *x, GLOBAL float *y ROOM_ARGUMENT) {
    ROOM;
    room[THREAD] = x[BLOCK * THREADS + THREAD];
    %s
    y[BLOCK * THREADS + THREAD] = room[THREADS - 1 - THREAD];
}
"""
TEAM = """
#define THREADS 64
#include "simt.h"
KERNEL reverse(GLOBAL const float *x, GLOBAL float *y ROOM_ARGUMENT) {
    ROOM;
    room[THREAD] = x[BLOCK * THREADS + THREAD];
    y[BLOCK * THREADS + THREAD] = room[THREAD];
    %s
    float other = y[(BLOCK ^ 1) * THREADS + THREAD];
    TEAM_BARRIER;
    y[BLOCK * THREADS + THREAD] = other + 1000.0f * room[THREAD];
}
"""


def run(
    folder: Path, line: str, room: int = 64, source: str = SOURCE, flags: tuple[str, ...] = ()
) -> tuple[torch.Tensor, torch.Tensor]:
    path = folder / f"reverse{abs(hash(line))}.cu"
    path.write_text(source % line)
    try:
        program = EmulatedProgram(str(path.with_suffix("")), flags)
    except BuildError as error:
        pytest.skip(str(error))
    x = torch.arange(128.0)
    y = torch.zeros(128)
    program("reverse", x, y, blocks=2, threads=64, room=room)
    return y, torch.cat([x[:64].flip(0), x[64:].flip(0)])


def test_blocks_reverse_what_they_share(tmp_path: Path, cache: Path) -> None:
    found, wanted = run(tmp_path, "BARRIER;")
    assert found.equal(wanted)


def test_a_missing_barrier_shows(tmp_path: Path, cache: Path) -> None:
    found, wanted = run(tmp_path, "")
    assert not found.equal(wanted)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("if (THREAD % 2) x += (int)sum_of(0.0f, 32, room);", "lanes of a warp part"),
        ("if (THREAD < 32) return;", "end while others wait"),
        ("if (THREAD % 2) __syncwarp(); else largest_of(0.0f, 32, room);", "do different things"),
    ],
)
def test_what_is_not_done_together_is_named(
    line: str, fault: str, tmp_path: Path, cache: Path
) -> None:
    with pytest.raises(AssertionError, match=fault):
        run(tmp_path, line + " BARRIER;")


def test_too_little_shared_memory_is_named(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(AssertionError, match="more shared memory"):
        run(tmp_path, "BARRIER;", room=32)


@pytest.mark.parametrize("read", ["FAR_QUAD(x + BLOCKS / 2)", "QUAD(room + BLOCKS / 2)"])
def test_vectors_that_are_not_aligned_are_named(read: str, tmp_path: Path, cache: Path) -> None:
    with pytest.raises(AssertionError, match="at no multiple of its size"):
        run(tmp_path, f"BARRIER; y[0] = {read}.x;")


@pytest.mark.parametrize(("line", "right"), [("TEAM_BARRIER;", True), ("BARRIER;", False)])
def test_blocks_of_a_team_see_what_the_others_wrote(
    line: str, right: bool, tmp_path: Path, cache: Path
) -> None:
    found, _ = run(tmp_path, line, source=TEAM, flags=("-DTEAM=2",))
    x = torch.arange(128.0)
    assert found.equal(x.view(2, 64).flip(0).flatten() + 1000 * x) == right


def test_a_block_that_leaves_its_team_is_named(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(AssertionError, match="blocks end while their team"):
        run(tmp_path, "if (BLOCK) return;", source=TEAM, flags=("-DTEAM=2",))
