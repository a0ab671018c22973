"""Everything heavy that the command line calls, so that `--help` need not wait for torch."""

from community.baselines import check_baselines, play_baselines
from community.folder import create, reopen, undo
from community.packaged import fetch
from community.plan import plan
from community.progress import Display
from community.report import figures, render, write
from community.run import How, play
from community.scoring import render as render_scores
from community.scoring import score
from community.study import render as render_study
from community.study import study

__all__ = [
    "Display",
    "How",
    "check_baselines",
    "create",
    "fetch",
    "figures",
    "plan",
    "play",
    "play_baselines",
    "render",
    "render_scores",
    "render_study",
    "reopen",
    "score",
    "study",
    "undo",
    "write",
]
