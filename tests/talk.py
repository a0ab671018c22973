"""A finished run in which members talk: every command that reads a ledger has something to show."""

from __future__ import annotations

import json
from pathlib import Path

from command import community

RECIPE = """\
[run]
rounds = 3
turns = 1
pool = "local"
world = "always"

[arena]
use = "arithmetic"
operations = ["addition", "subtraction"]

[tasks]
train = 12
levels = [1, 2]
holdout = 8
holdout_levels = [1, 2]
validation = 8

[[members]]
name = "ann"
use = "scripted"
error = 0.3
samples = 2

[[members]]
name = "bob"
use = "scripted"
error = 0.6
crash = 0.1

[[members]]
name = "cy"
use = "scripted"
error = 0.7

[[topology]]
use = "star"

[[topology]]
use = "complete"
from_round = 3

[judging]
pairs = 4

[baselines]
run = ["majority", "self-consistency"]
"""
EVIL = "<script>alert('$x^{')</script> & \x1b[31m\x00 #222222 漢 " + "long " * 60
"""What a model, or an arena of one's own, may well say."""

ARENA = f"""
from community.arenas.splits import first_in_split
from community.types import Task

EVIL = {json.dumps(EVIL)}


class EvilArena:
    name = "<evil>"
    alphabet = "<>$"

    def pose(self, split, seed, index, level):
        def draw(attempt):
            prompt = f"{{EVIL}} {{split}} {{index}} {{attempt}}"
            return Task(prompt, self.name, EVIL, level, split, seed, index)

        return first_in_split(draw, split)

    def solve(self, task):
        return f"{{EVIL}} {{task.index}}"

    def verify(self, task, idea):
        return float(idea.answer == self.solve(task))

    def answer(self, task, text):
        return text

    def rephrase(self, task, sample):
        return task.prompt
"""


def play_evil(home: Path) -> Path:
    """The folder of a run, below `home`, in which everything that is said is EVIL."""
    (home / "evil.py").write_text(ARENA)
    recipe = RECIPE.replace('"arithmetic"', '"evil.py:EvilArena"')
    recipe = recipe.replace('operations = ["addition", "subtraction"]\n', "")
    (home / "evil.toml").write_text(recipe)
    done = community(home, "run", str(home / "evil.toml"), "--no-baselines")
    assert (done.code, done.err) == (0, "")
    return home / "runs" / "evil"
