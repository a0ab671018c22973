"""The pages that follow from the code: `python docs/reference.py` writes them anew."""

from __future__ import annotations

import inspect
import json
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from sqlalchemy import Boolean, Column, Double, Integer, Table

from community import plugins, tables
from community.config import Recipe
from community.parts import FILLED_IN
from community.ranking import METHODS
from community.teaching import POLICIES
from community.topology import TOPOLOGIES

HERE = Path(__file__).parent
MADE = "<!-- made by docs/reference.py from the code; do not edit -->"

RECIPE = """\
# A recipe's keys

A recipe is one TOML file; [runs/](../runs) holds those that are shipped. Only `[arena]` and one
of `[[members]]` are needed. An unknown key is refused with its place and the closest match;
`community run RECIPE --dry-run` checks without playing, `--set section.key=value` overrides a
key. The resolved recipe, every default filled in, is saved as `recipe.toml` with the run.

```toml
[arena]
use = "arithmetic"
operations = ["addition", "subtraction"]

[[members]]
name = "able"
use = "scripted"
count = 2
error = 0.1
```
"""

LEDGER = """\
# The ledger's tables

`runs/NAME/ledger.db` is an SQLite file that any tool reads, also while a run goes on. Tables
refer to each other by `row`; an `id` is a hash of the content, the same in every run that says
the same. In Python no SQL is needed:

```python
from community.ledger import Ledger

with Ledger.open("runs/adders/ledger.db", read_only=True) as ledger:
    print(ledger.last_round(), "rounds", len(ledger.lessons()), "lessons")
    lesson = ledger.lessons()[-1]
    print(lesson.learner, "learned", ledger.idea(lesson.idea).text, "for", lesson.prompt)
```

Which ideas were best, and who gave them:

```sql
SELECT tasks.prompt, ideas.answer, ideas.author, rankings.confidence
FROM rankings
JOIN ideas ON ideas.row = rankings.idea
JOIN tasks ON tasks.row = rankings.task
WHERE rankings.place = 1
ORDER BY rankings.confidence DESC
LIMIT 5;
```

How everyone does on the holdout, round by round:

```sql
SELECT round, solver, SUM("right") / SUM(total) AS exact
FROM scores
GROUP BY round, solver
ORDER BY round, solver;
```

An older ledger is brought up to date when its run is resumed. SQLite stores not-a-number as
the text `nan`.
"""

TABLES = {
    "meta": "What holds for the whole run, as JSON: the recipe, its hash, the seed, versions.",
    "members": "Who takes part, in the order of the recipe; `spec` is the member's table as JSON.",
    "reserved": "Tasks that no lesson may be on: validation and holdout.",
    "rounds": "One row a round: the ranker, the router's state afterwards, a digest of it all.",
    "tasks": "What a round posed.",
    "ideas": "What was answered. A member that failed gives an idea with `failure` and no text.",
    "parents": "The ideas that the author of an idea had read.",
    "verdicts": "Who judged what: an idea, or `idea` against `other` (score 1: idea is better).",
    "rankings": "The ideas of a task in order. Place 1 is best.",
    "reliability": "How far a judge was to be trusted: 1 follows the truth, 0 is noise;"
    " the mean over the round's domains, each of which is ranked by itself.",
    "edges": "Who read whom, in rounds with a conversation.",
    "lessons": "What is to be learned, by whom, from which idea, and why.",
    "learnings": "One row for the members' learning after a round; 0 is the start.",
    "checkpoints": "A member's weights after a learning; not `kept` where it fell and went back.",
    "taught": "Which lessons made a checkpoint.",
    "scores": "Exact match on the holdout: `right` of `total`, by domain and level.",
    "spent": 'Tokens by member, round and purpose: "ideas" or "learning".',
}

COLUMNS = {
    "members.backend": "the agent's `use`",
    "rounds.method": "the ranker",
    "rounds.disconnected": "tasks whose comparisons fall into several components",
    "rounds.router": "JSON",
    "rounds.seconds": "wall clock; no part of the content hash",
    "learnings.seconds": "wall clock; no part of the content hash",
    "rounds.digest": "of all that the round recorded",
    "learnings.digest": "of all that the learning recorded",
    "tasks.id": "hash of the content: equal tasks have equal ids, whatever the round",
    "tasks.key": "what makes two tasks the same (a+b and b+a); the prompt if empty",
    "ideas.answer": "the canonical answer within `text`; empty if there is none",
    "ideas.prompt": "what the author read, where it is not the task's prompt",
    "ideas.failure": "why there is no answer",
    "ideas.turn": "0: a first answer; 1 and up: revised after reading",
    "ideas.tokens": "generated",
    "ideas.logprob": "of the whole answer, in nats",
    "verdicts.judge": "a member, or `world`",
    "verdicts.score": "of one idea: 1 right, 0 wrong; of a pair: 1 where `idea` is better",
    "rankings.strength": "log-odds, centred in the component",
    "rankings.low": "of a 95% interval of the strength",
    "rankings.high": "of a 95% interval of the strength",
    "rankings.comparisons": "that stand behind the strength",
    "rankings.component": "ideas in different ones were never compared; -1 has no answer",
    "rankings.confidence": "share of the voters' trust; the world's word where it spoke",
    "rankings.supporters": "members that gave this answer",
    "lessons.rejected": "the idea that it was preferred over",
    "checkpoints.id": "hash of the weights",
    "checkpoints.parent": "the checkpoint before",
    "checkpoints.path": "in the run's folder",
    "checkpoints.before": "validation score of `parent`",
    "checkpoints.after": "validation score of this one",
    "checkpoints.loss": "of the last step",
    "scores.solver": "a member, or `community`",
}


# -- recipes ---------------------------------------------------------------------------


def recipe_page() -> str:
    """The keys of a recipe: its tables, then the options of all that it can name."""
    parts = [MADE, RECIPE, *_sections(), "## Arenas\n", *_parts("arena"), "## Agents\n"]
    parts += [*_parts("agent"), "## Topologies\n", _topologies()]
    parts += ["## Rankers\n", _rankers(), "## Policies of the router\n", _policies()]
    return "\n".join(part.rstrip() + "\n" for part in parts)


def _sections() -> Iterator[str]:
    for name, field in Recipe.model_fields.items():
        model = _model(field.annotation)
        assert model, f"{name} is no table"
        many = get_origin(field.annotation) is tuple
        head = f"`[[{name}]]`" if many else f"`[{name}]`"
        line = field.description or inspect.getdoc(model)
        yield f"## {head}\n\n{line}\n\n{_keys(model.model_fields.items())}"


def _parts(kind: plugins.Kind) -> Iterator[str]:
    for name in plugins.available(kind):
        part = plugins.load(kind, name)
        nested: dict[str, type[BaseModel]] = {}
        yield f'### `use = "{name}"`\n\n{_said(part)}\n\n{_keys(_options(part, nested))}'
        for key, model in nested.items():
            yield f"`{key}`: {inspect.getdoc(model)}\n\n{_keys(model.model_fields.items())}"


def _options(
    part: Callable[..., Any], nested: dict[str, type[BaseModel]]
) -> Iterator[tuple[str, FieldInfo]]:
    """Its parameters as fields; those that are tables of their own are noted in `nested`."""
    for name, p in inspect.signature(part, eval_str=True).parameters.items():
        if name in FILLED_IN:
            continue
        default = PydanticUndefined if p.default is p.empty else p.default
        field = FieldInfo.from_annotated_attribute(p.annotation, default)
        if model := _model(field.annotation):
            nested[name] = model
        yield name, field


def _topologies() -> str:
    rows = []
    for name, function in TOPOLOGIES.items():
        given = list(inspect.signature(function).parameters.values())[1:]
        options = ", ".join(f"`{p.name} = {_toml(p.default)}`" for p in given if p.name != "seed")
        rows.append((f"`{name}`", _first(function), options))
    return _table(("`use`", "what it is", "options"), rows)


def _rankers() -> str:
    return _table(("`method`", "what it is"), [(f"`{n}`", _first(f)) for n, f in METHODS.items()])


def _policies() -> str:
    rows = [(f"`{name}`", _first(policy.choose)) for name, policy in POLICIES.items()]
    return _table(("`policy`", "who learns a winner"), rows)


def _keys(fields: Iterable[tuple[str, FieldInfo]]) -> str:
    """A table of keys. Raises ValueError for one that does not say what it is for."""
    rows = []
    for name, field in fields:
        if not field.description:
            raise ValueError(f"{name} has no description")
        rows.append((f"`{name}`", _kind(field), _default(field), field.description))
    return _table(("key", "value", "default", ""), rows)


def _kind(field: FieldInfo) -> str:
    """Type and limits in words."""
    return ", ".join([_words(field.annotation), *filter(None, map(_limit, field.metadata))])


def _words(kind: Any) -> str:
    names = {int: "whole number", float: "number", str: "text", bool: "true or false"}
    origin, arguments = get_origin(kind), get_args(kind)
    if kind in names:
        return names[kind]
    if origin is Annotated:
        return _words(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{_toml(a)}`" for a in arguments)
    if _model(kind) or origin is Mapping or (isinstance(origin, type) and issubclass(origin, dict)):
        return "table"
    if origin in (Union, types.UnionType):
        return " or ".join(_words(a) for a in arguments if a is not type(None))
    if origin in (tuple, list) or (isinstance(origin, type) and issubclass(origin, Sequence)):
        return f"list of: {_words(arguments[0])}"
    raise ValueError(f"no words for {kind}")


def _limit(limit: Any) -> str:
    match limit:
        case annotated_types.Ge(ge=value):
            return f"{value} or more"
        case annotated_types.Gt(gt=value):
            return f"more than {value}"
        case annotated_types.Le(le=value):
            return f"at most {value}"
        case annotated_types.Lt(lt=value):
            return f"less than {value}"
        case annotated_types.MinLen(min_length=value):
            return f"{value} or more of them"
    return ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "needed"
    return "" if field.default is None else f"`{_toml(field.default)}`"


def _toml(value: Any) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def _model(kind: Any) -> type[BaseModel] | None:
    """The model in `Model`, `Model | None` or `tuple[Model, ...]`."""
    found = [k for k in (kind, *get_args(kind)) if inspect.isclass(k) and issubclass(k, BaseModel)]
    return found[0] if found else None


def _said(part: Any) -> str:
    """The first line of its docstring, and what its constructor says before it speaks of errors."""
    own = part.__init__.__doc__ if "__init__" in vars(part) else ""
    more = " ".join((own or "").split()).partition("Raises ")[0]
    return f"{_first(part)} {more}".rstrip()


def _first(thing: Any) -> str:
    return (inspect.getdoc(thing) or "").partition("\n")[0]


# -- ledgers ---------------------------------------------------------------------------


def ledger_page() -> str:
    """The tables of a ledger. Raises ValueError for one that TABLES does not describe."""
    known = tables.metadata.tables
    columns = {str(column) for table in known.values() for column in table.columns}
    if odd := (known.keys() ^ TABLES.keys()) | (COLUMNS.keys() - columns):
        raise ValueError(f"docs/reference.py and the ledger differ in {odd}")
    order = [tables.metadata.tables[name] for name in TABLES]
    return "\n".join([MADE, LEDGER, *map(_schema, order)])


def _schema(table: Table) -> str:
    rows = [(f"`{c.name}`", _column(c), _reference(c)) for c in table.columns]
    head = f"## {table.name}\n\n{TABLES[table.name]}\n\n"
    return head + _table(("column", "type", ""), rows)


def _column(column: Column[Any]) -> str:
    kind = column.type
    if isinstance(kind, Boolean):
        return "true or false"
    if isinstance(kind, Integer):
        return "whole number"
    return "number" if isinstance(kind, Double) else "text"


def _reference(column: Column[Any]) -> str:
    notes = ["key"] * column.primary_key + ["may be NULL"] * bool(column.nullable)
    notes += [f"refers to `{key.target_fullname}`" for key in column.foreign_keys]
    notes.append(COLUMNS.get(str(column), ""))
    return "; ".join(filter(None, notes))


# -- both ------------------------------------------------------------------------------


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


PAGES = {"recipe.md": recipe_page, "ledger.md": ledger_page}


def main() -> None:
    for name, page in PAGES.items():
        (HERE / name).write_text(page(), encoding="utf-8")
        print(f"wrote {HERE / name}")


if __name__ == "__main__":
    main()
