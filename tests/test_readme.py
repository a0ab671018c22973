"""The README's list of files is that of the repository; tests/test_docs.py runs its commands."""

from __future__ import annotations

import re
from pathlib import Path


def test_the_files_that_it_lists_are_there(root: Path) -> None:
    readme = (root / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^  (\w+\.py) ", readme, re.M)
    assert "types.py" in listed and "round.py" in listed
    for name in listed:
        assert (root / "community" / name).is_file(), name
    for name in re.findall(r"^(\w+)/ ", readme, re.M):
        assert (root / name).is_dir(), name
