"""A run's folder -> report.md, report.json and plots; and the same on the terminal.

from community.report import figures, render, write
write(Path("runs/adders"))                             # needs the run's folder alone
rich.print(render(figures(Path("runs/adders"))))
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from community.errors import CommunityError
from community.figures import figures
from community.findings import duration, exact, main_holdout, overall
from community.plots import CAPTIONS, draw
from community.words import markdown, one_line

__all__ = ["figures", "render", "write"]

Facts = Mapping[str, Any]

MANY = 12  # members: of more than that the best and worst are shown
ENDS = 5  # how many of each


@dataclass(frozen=True)
class Table:
    """A heading, a head and rows of cells; the first column is text, the others numbers."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    wide: Collection[str] = ()  # columns left out where 80 characters must do


def write(folder: Path) -> dict[str, Any]:
    """Write report.json, plots/*.png and report.md into a run's folder; returns the figures.

    Raises CommunityError if there is no run, nothing recorded yet, or no room to write.
    """
    found = figures(folder)
    text = json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False)
    try:
        (folder / "report.json").write_text(text + "\n", encoding="utf-8")
        plots = draw(found, folder / "plots")
        (folder / "report.md").write_text(_markdown(found, plots), encoding="utf-8")
    except OSError as error:
        raise CommunityError(
            f"cannot write the report to {folder}: {error.strerror}; the run itself is safe, "
            f"`community show {folder.name}` prints the report"
        ) from error
    return found


def render(facts: Facts) -> RenderableType:
    """The report in short, for a terminal."""
    happened = Text(one_line(" ".join(facts["what_happened"])))
    shown = (_round_table, _holdout_table, _member_table, _topology_table)
    tables = [_rich(table) for make in shown if (table := make(facts)).rows]
    title = Text.assemble((facts["name"], "bold"), f", seed {facts['seed']}")
    return Group(title, happened, Text(facts["world_says"], style="dim"), *tables)


def tables(facts: Facts) -> list[Table]:
    """All tables of the report that have rows, in order."""
    makers = (_round_table, _holdout_table, _member_scores, _member_table, _topology_table,
              _baseline_table)  # fmt: skip
    return [table for make in makers if (table := make(facts)).rows]


# -- tables --------------------------------------------------------------------------------


def _round_table(facts: Facts) -> Table:
    unit = facts["unit"]
    head = ("round", unit, "posed", "kept", "precision", "community", "best", "mean", "tokens",
            "seconds", "rollbacks")  # fmt: skip
    rows = [
        (
            str(r["round"]),
            str(r[unit]),
            f"{r['posed']:,}",
            f"{r['kept']:,}",
            exact(r["precision"]),
            exact(r["community"].get(str(r[unit]))),
            exact(r["best"]),
            exact(r["mean"]),
            f"{r['tokens']:,}",
            f"{r['seconds']:.1f}",
            str(r["rollbacks"]),
        )
        for r in facts["rounds"]
    ]
    note = (
        f"Community, best and mean member: exact match on holdout tasks of the {unit} posed, "
        "after the round's learning. Precision: share of the kept lessons that are right."
    )
    return Table("Rounds", head, rows, note, wide={"rollbacks"})


def _holdout_table(facts: Facts) -> Table:
    """By level, the community and its members at the end, the start, and the baselines."""
    holdout = main_holdout(facts)
    tasks, start = holdout["tasks"], holdout["start"]
    columns = {
        "community": holdout["community"],
        "start": start["community"],
        "best": holdout["best"],
        "mean": holdout["mean"],
        "weakest": holdout["weakest"],
        "weakest, start": start["weakest"],
        **holdout["baselines"],
    }
    head = (facts["unit"], "tasks", *columns)
    rows = [
        (key, f"{total:,}", *(exact(shares.get(key)) for shares in columns.values()))
        for key, total in tasks.items()
    ]
    if len(rows) > 1:
        whole = {name: overall(shares, tasks) if shares else None
                 for name, shares in columns.items()}  # fmt: skip
        ends, begins = (
            [overall(shares, tasks) for shares in at["members"].values()] for at in (holdout, start)
        )
        # no member has all that the best or the weakest have line by line
        whole |= {"best": max(ends, default=None), "weakest": min(ends, default=None)}
        whole |= {"weakest, start": min(begins, default=None)}
        rows.append(("all", f"{sum(tasks.values()):,}", *map(exact, whole.values())))
    note = (
        "Exact match at the end of the run. Best, mean and weakest member are taken line by line, "
        "so the best of two lines may be two members. The community and the baselines answer with "
        "the top of their ranking, a member with its first sample."
    )
    wide = {"tasks", "weakest", "weakest, start"}
    return Table(f"Holdout by {facts['unit']}", head, rows, note, wide)


def _shown(facts: Facts) -> tuple[list[str], str]:
    """The members to list, and what to say if these are not all."""
    names = list(facts["members"])
    if len(names) <= MANY:
        return names, ""
    holdout = main_holdout(facts)
    rank = {
        name: (overall(holdout["members"].get(name, {}), holdout["tasks"]), m["reliability"] or 0.0)
        for name, m in facts["members"].items()
    }
    names.sort(key=lambda name: rank[name], reverse=True)
    by = "by holdout" if holdout["tasks"] else "by reliability"
    note = f"The best and the worst {ENDS} of {len(names)} members {by}; report.json has all."
    return names[:ENDS] + names[-ENDS:], note


def _member_scores(facts: Facts) -> Table:
    holdout, (names, note) = main_holdout(facts), _shown(facts)
    end, start, tasks = holdout["members"], holdout["start"]["members"], holdout["tasks"]

    def cell(name: str, key: str) -> str:
        before = start.get(name, {}).get(key)
        return exact(end.get(name, {}).get(key)) + (f" ({exact(before)})" if before is not None
                                                    else "")  # fmt: skip

    rows = [(name, *(cell(name, key) for key in tasks)) for name in names] if tasks else []
    text = "Exact match on the holdout at the end, and at the start in brackets."
    title = f"Members on the holdout by {facts['unit']}"
    return Table(title, ("member", *tasks), rows, f"{text} {note}".strip())


def _member_table(facts: Facts) -> Table:
    names, note = _shown(facts)
    members = facts["members"]
    common, own = _options({k: {"use": m["backend"]} | m["options"] for k, m in members.items()})
    head = ("member", "differs in", "strength", "reliability", "lessons", "learned from",
            "checkpoints", "rollbacks", "failures", "tokens")  # fmt: skip
    rows = [
        (
            name,
            own[name] or "–",
            _interval(m),
            exact(m["reliability"]),
            f"{m['lessons']:,}",
            f"{m['lessons_learned']:,}",
            f"{m['checkpoints_kept']:,}",
            f"{m['rollbacks']:,}",
            f"{m['failures']:,}",
            f"{m['tokens']:,}",
        )
        for name, m in ((name, members[name]) for name in names)
    ]
    text = f"Common to all: {common}." if common and len(members) > 1 else ""
    text += " Strength: of its ideas in the last round's ranking (0 is average), with two standard"
    text += (
        " errors over tasks. Reliability: as a judge and voter (1 follows the truth, 0 is noise)."
    )
    wide = {"differs in", "learned from", "checkpoints", "tokens"}
    return Table("Members", head, rows, f"{text} {note}".strip(), wide)


def _interval(member: Facts) -> str:
    """1.20 (0.95 to 1.45), or a dash for a member without ideas."""
    if member["strength"] is None:
        return "–"
    mean, low, high = (
        None if member[key] is None else f"{round(member[key], 2) + 0.0:.2f}"  # never -0.00
        for key in ("strength", "low", "high")
    )
    return f"{mean} ({low} to {high})" if low else f"{mean}"


def _topology_table(facts: Facts) -> Table:
    rows = [
        (
            network["use"],
            _span(network["first"], network["last"]),
            f"{len(network['edges']):,}",
            *(f"{sum(edge[key] for edge in network['edges']):,}" for key in ("ideas", "tokens")),
        )
        for network in facts["topology"]
    ]
    note = "Who read whom. An idea is counted once for every answer that its reader gave then."
    return Table("Topology", ("", "rounds", "edges", "ideas read", "tokens read"), rows, note)


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}–{last}"


def _options(options: Mapping[str, Mapping[str, Any]]) -> tuple[str, dict[str, str]]:
    """What all members have in common, and what is each one's own, as text."""
    flat = {name: _flat(own) for name, own in options.items()}
    first = next(iter(flat.values()))
    shared = {key for key in first if all(own.get(key) == first[key] for own in flat.values())}
    texts = {
        name: ", ".join(f"{key} {value}" for key, value in own.items() if key not in shared)
        for name, own in flat.items()
    }
    return ", ".join(f"{key} {first[key]}" for key in first if key in shared), texts


def _flat(options: Mapping[str, Any]) -> dict[str, str]:
    """Options as text; of a table within, its keys by their own names. Empty ones are left out."""
    found: dict[str, str] = {}
    for key, value in options.items():
        if isinstance(value, Mapping):
            found |= _flat(value)
        elif value not in ("", [], None):
            found[key] = one_line(str(value), 40)
    return found


def _baseline_table(facts: Facts) -> Table:
    head = ("", "rounds", "answers a task", "tokens in rounds", "tokens at start", "seconds",
            "kept", "precision")  # fmt: skip
    rows = [
        (
            name,
            f"{f['rounds_played']} of {f['rounds_planned']}",
            f"{f['answers_a_task']:,}",
            f"{f['tokens'] - f['tokens_start']:,}",
            f"{f['tokens_start']:,}",
            f"{f['seconds']:.1f}",
            f"{sum(r['kept'] for r in f['rounds']):,}",
            exact(_precision(f["rounds"])),
        )
        for name, f in [("community", facts), *facts["baselines"].items()]
    ]
    note = "Each baseline is the member that looks best at the start, alone. Tokens are those of"
    note += " answers in the rounds and of learning; exams and the holdout are not counted, so a"
    note += " baseline without rounds has none. Answers a task: to one of the holdout."
    return Table("Baselines", head, rows if facts["baselines"] else [], note)


def _precision(rounds: Sequence[Facts]) -> float | None:
    checked = sum(r["checked"] for r in rounds)
    return sum(r["right"] for r in rounds) / checked if checked else None


# -- the two forms -------------------------------------------------------------------------


def _rich(table: Table) -> RenderableType:
    found = RichTable(
        title=table.title, title_justify="left", title_style="bold", box=None, padding=(0, 1, 0, 0)
    )
    shown = [i for i, name in enumerate(table.head) if name not in table.wide]
    for i in shown:
        found.add_column(
            Text(one_line(table.head[i])), justify="right" if i else "left", no_wrap=not i
        )
    for row in table.rows:
        found.add_row(*(Text(one_line(row[i])) for i in shown))
    return found


def _markdown(facts: Facts, plots: Sequence[str]) -> str:
    """The whole report; `plots` are the names of those that were drawn."""
    pictures = {name: f"![{CAPTIONS[Path(name).stem]}](plots/{name})" for name in plots}
    blocks = [
        f"# {facts['name']}",
        "## What happened",
        markdown(" ".join(facts["what_happened"])),
        facts["world_says"],
        _table(_round_table(facts)),
        pictures.get("rounds.png", ""),
        _table(_holdout_table(facts)),
        pictures.get("holdout.png", ""),
        pictures.get("growth.png", ""),
        _table(_member_scores(facts)),
        _table(_member_table(facts)),
        _table(_topology_table(facts)),
        _table(_baseline_table(facts)),
        "## The run",
        _run(facts),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _table(table: Table) -> str:
    if not table.rows:
        return ""
    cells = [table.head, ["---"] + ["---:"] * (len(table.head) - 1), *table.rows]
    lines = ["| " + " | ".join(map(markdown, row)) + " |" for row in cells]
    return "\n\n".join(
        part for part in (f"## {table.title}", "\n".join(lines), markdown(table.note)) if part
    )


def _run(facts: Facts) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in sorted(facts["versions"].items()))
    start = f"of which the start took {duration(facts['seconds_start'])}"
    lines = [
        f"- recipe {facts['recipe_hash']}, seed {facts['seed']}, arena {facts['arena']}",
        f"- {duration(facts['seconds'])}, {start}",
        f"- {facts['tokens']:,} tokens, of which {facts['tokens_start']:,} at the start",
        f"- {versions}",
    ]
    return "\n".join(lines)
