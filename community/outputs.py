"""Commands that make something of a run's ledger: plots, a page, a tracker's run, a dataset."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from community.errors import CommunityError
from community.formats import FORMATS, Choice
from community.home import RunArgument, run_folder
from community.ledger import Ledger
from community.progress import Reading
from community.wanted import Wanted, rounds_of

Force = Annotated[bool, typer.Option("--force", help="Replace files that are there already.")]


def plot(
    run: RunArgument,
    to: Annotated[
        Path | None, typer.Option(help="A folder; the run's own plots/ if not given.")
    ] = None,
    form: Annotated[str, typer.Option("--format", help="png or svg.")] = "png",
    idea: Annotated[
        str, typer.Option(help="Whose lineage: an idea's id or its start; default: last winner.")
    ] = "",
    force: Force = False,
) -> None:
    """Draw a run: learning curves, who read whom, an idea's lineage, routing over time."""
    plots = importlib.import_module("community.plots")
    folder = run_folder(run)
    place = to or folder / "plots"
    names = plots.plot(folder, place, form, idea, again=force or to is None)
    missing = [name for name in plots.CAPTIONS if f"{name}.{form}" not in names]
    if names:
        _say(f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} in {place}")
    if missing:
        _say(f"nothing to draw yet for: {', '.join(missing)}")


def report(
    run: RunArgument,
    to: Annotated[
        Path | None, typer.Option(help="An HTML file; the run's own report.html if not given.")
    ] = None,
    force: Force = False,
) -> None:
    """Write one HTML page with all of a run in it, to open in any browser or send to someone."""
    page = importlib.import_module("community.page")
    folder = run_folder(run)
    place = to or folder / "report.html"
    page.write(folder, place, again=force or to is None)
    _say(f"the report is in {place}")


def track(
    run: RunArgument,
    kind: Annotated[
        str, typer.Option("--with", help="tensorboard, trackio or wandb.", show_default=False)
    ],
    to: Annotated[
        Path | None, typer.Option(help="A folder; a new one in the run's own if not given.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on until the run has ended.")
    ] = False,
) -> None:
    """Log a run's figures, round by round, with a tracker; again adds only what is new."""
    trackers = importlib.import_module("community.trackers")
    folder = run_folder(run)
    told: Any = (lambda n: _say(f"logged up to round {n}")) if follow else (lambda n: None)
    try:
        shows = trackers.track(folder, kind, to or folder / kind, follow, told)
    except KeyboardInterrupt:
        raise CommunityError("stopped; what was logged stays, the same command goes on") from None
    _say(f"to look at it: {shows}")


def export(
    run: RunArgument,
    form: Annotated[
        str, typer.Option("--format", help=f"{', '.join(FORMATS)}.", show_default=False)
    ],
    to: Annotated[Path, typer.Option(help="A new or empty folder.", show_default=False)],
    kind: Annotated[str, typer.Option("--as", help="jsonl, parquet or hf.")] = "jsonl",
    agent: Annotated[
        list[str] | None, typer.Option(help="Learn only from this member. Repeatable.")
    ] = None,
    arena: Annotated[
        list[str] | None, typer.Option(help="Only tasks of this arena or domain. Repeatable.")
    ] = None,
    rounds: Annotated[str, typer.Option(help="Only these rounds: 3, 3-7 or 3-.")] = "",
    winners: Annotated[int, typer.Option(help="Best ideas a task; pairs, for dpo.")] = 1,
    margin: Annotated[float, typer.Option(help="Least difference of strength in a pair.")] = 0.0,
    min_strength: Annotated[float | None, typer.Option(help="Of what is to be learned.")] = None,
    min_confidence: Annotated[float, typer.Option(help="Of what is to be learned.")] = 0.0,
    verified: Annotated[
        bool, typer.Option("--verified", help="Only what the world has checked.")
    ] = False,
    chat: Annotated[
        bool, typer.Option("--chat", help="Texts as lists of messages, for chat models.")
    ] = False,
    duplicates: Annotated[
        bool, typer.Option("--duplicates", help="Keep rows of the very same texts.")
    ] = False,
    near: Annotated[
        float | None, typer.Option(help="Leave out rows at least so similar (0 to 1) to another.")
    ] = None,
    against: Annotated[
        list[Path] | None,
        typer.Option(help="Leave out rows that overlap with this file of texts. Repeatable."),
    ] = None,
    ngram: Annotated[int, typer.Option(help="Words in a row that are an overlap.")] = 13,
    test: Annotated[float, typer.Option(help="Share of the tasks for the split test.")] = 0.1,
    validation: Annotated[float, typer.Option(help="The same for the split validation.")] = 0.0,
    push: Annotated[
        str, typer.Option(help="Also put it on the hub, as this private repository.")
    ] = "",
) -> None:
    """Turn a run's ledger into a dataset that TRL trains on, with its card.

    \b
    The best answers, for SFTTrainer (messages; or prompt, completion):
      community export adders --format sft --to data/sft
      community export adders --format prompt-completion --min-confidence 0.8 --to data/best
    Pairs told apart, for DPOTrainer and RewardTrainer (prompt, chosen, rejected):
      community export adders --format dpo --margin 1 --winners 3 --to data/pairs
      community export adders --format reward --chat --to data/reward
    Good and bad answers, for KTOTrainer (prompt, completion, label):
      community export adders --format kto --rounds 3- --to data/kto
    Tasks with what the community believes, for GRPOTrainer (prompt, answer):
      community export adders --format grpo --arena addition --to data/tasks
    Every idea with all that is known of it:
      community export adders --format ideas --as parquet --to data/ideas
    """
    first, last = rounds_of(rounds)
    least = -math.inf if min_strength is None else min_strength
    agents = frozenset(agent or ())
    wanted = Wanted(
        format=form,
        kind=kind,
        choice=Choice(winners, margin, verified, agents, least, min_confidence),
        arenas=tuple(arena or ()),
        first=first,
        last=last,
        chat=chat,
        duplicates=duplicates,
        near=near,
        against=tuple(against or ()),
        ngram=ngram,
        test=test,
        validation=validation,
    )
    exporter = importlib.import_module("community.export")
    ledger = Ledger.open(run_folder(run) / "ledger.db", read_only=True)
    with ledger, Reading(Console()) as bar:
        counts = exporter.export(ledger, to, wanted, bar.read)
    for line in counts.lines():
        _say(line)
    _say(f"dataset and card are in {to}")
    if push:
        _say(f"pushed to {exporter.push(to, push)}")


def _say(line: str) -> None:
    Console().print(line, highlight=False, soft_wrap=True, markup=False)
