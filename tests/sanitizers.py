"""Kernels under the address and undefined-behaviour sanitizers, in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from community.kernels import build

BEGIN = """
import torch
from community.kernels.build import CProgram
flags = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
"""


def assert_clean(script: str) -> None:
    """Run a script that compiles a `program` of kernels with `flags` and calls some of them.

    It may import the modules of this folder. Skips without a compiler or its sanitizers.
    """
    compiler = build.compiler()
    if compiler is None:
        pytest.skip("no C compiler")
    call = [*compiler, "-print-file-name=libasan.so"]
    library = subprocess.run(call, capture_output=True, text=True).stdout.strip()
    if not Path(library).is_absolute():
        pytest.skip("no address sanitizer")
    given = {**os.environ, "LD_PRELOAD": library, "ASAN_OPTIONS": "detect_leaks=0"}
    # a test that gives its program to nobody would pass whatever the source did
    whole = f"{BEGIN}{script}\nassert program._kernels, 'no kernel was called'\nprint('clean')\n"
    done = subprocess.run(
        [sys.executable, "-c", whole],
        cwd=Path(__file__).parent,
        env=given,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip().endswith("clean"), done.stderr[-3000:]
