"""A run -> one HTML page that needs nothing else: to open in any browser, or to send to someone.

Whatever members said is escaped by the template, and the page forbids the browser to load
anything (Content-Security-Policy), so that it is safe to open. The same run gives the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from rich.console import Console
from sqlalchemy import func, select

from community.canvas import FAINT, INK, PAPER
from community.errors import CommunityError
from community.figures import figures
from community.findings import duration
from community.ledger import Ledger
from community.lineage import Lineage, lineage
from community.lineage_tree import render
from community.plots import CAPTIONS, pictures, save
from community.report import tables
from community.tables import ideas, lessons, rankings, tasks

Facts = dict[str, Any]

BEST = 5  # ideas
LESSONS = 12  # that are shown of the last round that has any
WIDE = 110  # characters of a lineage
UNWANTED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
"""Control characters, which HTML forbids, halves of characters, and what turns text around."""
THEMED = {INK: "ink", PAPER: "paper", FAINT: "faint"}
"""Colours of the plots that follow the page's, light or dark."""


def write(run: Path, to: Path, again: bool = False) -> None:
    """Write the page of the run in a folder to the file `to`.

    Raises CommunityError where nothing was recorded yet, for a file that is there already
    unless `again` says that it may be replaced, and for one that cannot be written.
    """
    if to.is_dir():
        raise CommunityError(f"{to} is a folder; give --to the name of a file")
    if to.exists() and not to.is_file():  # a device, which a file must not take the place of
        raise CommunityError(f"{to} is no file; give --to the name of one")
    if to.exists() and not again:
        raise CommunityError(f"{to} is there already; give --to another, or --force to replace it")
    save({to.name: html(run).encode()}, to.parent, again=True)


def html(run: Path) -> str:
    """The page. Raises CommunityError where nothing was recorded yet."""
    facts = figures(run)
    with Ledger.open(run / "ledger.db", read_only=True) as ledger:
        best = _best(ledger)
        recent = _recent(ledger)
    recipe = (run / "recipe.toml").read_text(encoding="utf-8")
    drawn = pictures(facts, best[0] if best else None, "svg")
    page = _environment().get_template("page.html")
    return page.render(
        facts=facts,
        duration=duration,
        plots=[(name, CAPTIONS[name], _inline(drawn[name], name)) for name in CAPTIONS
               if name in drawn],
        tables=tables(facts),
        best=[(found.idea, _text(found)) for found in best],
        lessons=recent,
        recipe=recipe,
    )  # fmt: skip


def _environment() -> Environment:
    """Everything is escaped; a name that is not there is an error."""
    return Environment(
        loader=PackageLoader("community", "."),
        autoescape=True,
        finalize=_plain,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _plain(value: Any) -> Any:
    """What goes into the page, texts without the characters of UNWANTED."""
    return type(value)(UNWANTED.sub("�", value)) if isinstance(value, str) else value


def _inline(svg: bytes, name: str) -> Markup:
    """The plot as an element of the page: ids that no other plot has, colours of the page."""
    text = svg.decode()
    text = text[text.index("<svg") :]

    def tag(match: re.Match[str]) -> str:
        own = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{name}-", match[0])
        for colour, variable in THEMED.items():
            own = own.replace(colour, f"var(--{variable})")
        return own

    # not within texts, where matplotlib escapes every < and > that it is given
    return Markup(re.sub(r"<[^>]*>", tag, text))


def _text(found: Lineage) -> str:
    """A lineage as `community lineage` prints it."""
    console = Console(file=io.StringIO(), width=WIDE, color_system=None)
    console.print(render(found))
    return console.file.getvalue()  # type: ignore[attr-defined]


def _best(ledger: Ledger) -> list[Lineage]:
    """The surest winners of the hardest tasks, one a task, each with its lineage."""
    query = (
        select(ideas.c.id, tasks.c.id)
        .join_from(rankings, ideas, rankings.c.idea == ideas.c.row)
        .join(tasks, rankings.c.task == tasks.c.row)
        .where(rankings.c.place == 1, ideas.c.answer != "")
        .order_by(tasks.c.level.desc(), rankings.c.confidence.desc(), rankings.c.strength.desc())
        .order_by(rankings.c.round.desc(), rankings.c.row)
        .limit(BEST * BEST)  # a task may be posed again
    )
    with ledger.reading() as conn:
        by_task: dict[str, str] = {}
        for idea, task in conn.execute(query):
            by_task.setdefault(task, idea)
    return [lineage(ledger, idea) for idea in list(by_task.values())[:BEST]]


def _recent(ledger: Ledger) -> Sequence[Mapping[str, Any]]:
    """Some lessons of the last round that has any, the surest first."""
    own = (lessons.c.round, lessons.c.learner, lessons.c.text, lessons.c.reason,
           lessons.c.confidence)  # fmt: skip
    last = select(func.max(lessons.c.round)).scalar_subquery()
    query = (
        select(*own, tasks.c.prompt.label("task"), ideas.c.author)
        .join_from(lessons, tasks, lessons.c.task == tasks.c.row)
        .outerjoin(ideas, lessons.c.idea == ideas.c.row)
        .where(lessons.c.round == last)
        .order_by(lessons.c.confidence.desc(), lessons.c.row)
        .limit(LESSONS)
    )
    with ledger.reading() as conn:
        return [dict(row) for row in conn.execute(query).mappings()]
