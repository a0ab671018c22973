"""What the README says is so: its arena works, its files exist, its commands are known."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from community.cli import app
from community.ledger import Ledger

RECIPE = """
[run]
rounds = 2
pool = "local"

[arena]
use = "parity.py:ParityArena"

[tasks]
train = 8
levels = [12]
holdout = 8
holdout_levels = [12]

[[members]]
use = "scripted"
count = 3
error = 0.3
"""


@pytest.fixture
def readme(root: Path) -> str:
    return (root / "README.md").read_text(encoding="utf-8")


def test_the_arena_plays(
    readme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    code = next(b for b in re.findall(r"```python\n(.*?)```", readme, re.S) if "ParityArena" in b)
    (tmp_path / "parity.py").write_text(code)
    (tmp_path / "parity.toml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["run", "parity.toml"])
    assert done.exit_code == 0, done.output
    with Ledger.open(tmp_path / "runs" / "parity" / "ledger.db", read_only=True) as ledger:
        assert ledger.last_round() == 2 and ledger.lessons() and not ledger.verify()


def test_commands_and_files_are_there(readme: str, root: Path) -> None:
    known = {command.name or command.callback.__name__ for command in app.registered_commands}  # type: ignore[union-attr]
    for named in re.findall(r"community (run|resume|show|lineage|study|fetch)\b", readme):
        assert named in known
    for name in re.findall(r"^  (\w+\.py) ", readme, re.M):
        assert (root / "community" / name).is_file(), name
    for link in re.findall(r"\]\(([\w/.]+)\)", readme):
        assert (root / link).exists(), link
