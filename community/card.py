"""The card of an exported dataset: a README.md that says, from the data, how it came about."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCardData, metadata_load
from yaml import YAMLError

from community.candidates import RIGHT
from community.formats import FORMATS, columns_of
from community.ledger import Ledger
from community.packaged import PACKAGED
from community.wanted import Counts, Wanted
from community.words import count, markdown

MANY = 20
"""Members and kinds of tasks that are listed; further ones are counted."""
SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"),
         (10**7, "1M<n<10M"))  # fmt: skip


def text(ledger: Ledger, wanted: Wanted, counts: Counts, digest: str) -> str:
    """The card: a YAML head that hubs and `datasets.load_dataset` read, then the story.

    `digest` is of the rows: `load_dataset` (5.2) knows a local folder by its last name and its
    card's head alone, and would give the rows of another export from its cache.
    """
    meta, members = ledger.meta, ledger.members()
    base = Path(meta.get("base", "."))
    licences = {name: licence(spec, base) for name, spec in members.items()}
    head = _head(meta, wanted, counts, [licences[n][1] for n in counts.authors], digest)
    parts = [
        f"---\n{head.to_yaml()}\n---",
        f"# {markdown(_title(meta, wanted))}",
        _story(ledger, meta, wanted, counts),
        _loading(wanted, counts),
        "## Rows\n\n" + _rows(wanted, counts),
        "## What was asked for\n\n" + _filters(wanted),
        "## What was left out\n\n" + _dropped(counts),
        "## Members\n\n" + _members(members, licences, counts),
        "## Columns\n\n" + _columns(wanted),
        "## The first row\n\n" + _fenced(counts.example),
    ]
    return "\n\n".join(parts) + "\n"


def licence(spec: Mapping[str, Any], base: Path) -> tuple[str, str]:
    """(model, licence) of a member's spec; the licence is empty where nothing states it.

    It is "none" where no model of others is behind the member. `base` is the recipe's folder.
    """
    model = str(spec.get("model") or "")
    own = {"scripted": "no model", "transformer": "made for this run"}.get(spec.get("use", ""), "")
    stated = str(spec.get("license") or "")
    if not model:
        return own or str(spec.get("use", "")), stated or ("none" if own else "")
    return model, stated or _packaged(model) or _model_card(base / model / "README.md")


def _packaged(model: str) -> str:
    name = model.removeprefix("packaged:")
    found = (p.license for key, p in PACKAGED.items() if name in (key, p.stands_for))
    return next(found, "")


def _model_card(readme: Path) -> str:
    """The licence that a model's own card states; empty if there is none to be read."""
    try:
        stated = metadata_load(readme) if readme.is_file() else None
    except (OSError, ValueError, YAMLError):
        return ""
    return str((stated or {}).get("license") or "")


def _head(
    meta: Mapping[str, Any],
    wanted: Wanted,
    counts: Counts,
    licences: Iterable[str],
    digest: str,
) -> DatasetCardData:
    own = {name for name in licences if name != "none"}
    size = next((name for most, name in SIZES if counts.total < most), "n>10M")
    facts: dict[str, Any] = {
        "license": own.pop() if len(own) == 1 and "" not in own else "unknown",
        "task_categories": ["text-generation"],
        "tags": ["synthetic", "modelcommunity", wanted.format]
        + ["trl"] * bool(FORMATS[wanted.format].trainer),
        "pretty_name": _title(meta, wanted),
        "size_categories": [size],
    }
    if wanted.kind != "hf":
        files = [{"split": s, "path": f"{s}.{wanted.kind}"} for s in _splits(counts)]
        named = {"config_name": "default", "description": f"sha256 {digest}"}
        facts["configs"] = [{**named, "data_files": files}]
        features = [_feature(*c) for c in columns_of(wanted.format, wanted.chat).items()]
        facts["dataset_info"] = {"features": features}
    return DatasetCardData(**facts)


def _splits(counts: Counts) -> list[str]:
    return [split for split in ("train", "validation", "test") if counts.rows[split]]


def _feature(name: str, kind: str) -> dict[str, Any]:
    """A column as the YAML of `datasets` writes it."""
    if kind == "messages":
        said = [{"name": key, "dtype": "string"} for key in ("role", "content")]
        return {"name": name, "list": said}
    return {"name": name, "list": "string"} if kind == "strings" else {"name": name, "dtype": kind}


def _title(meta: Mapping[str, Any], wanted: Wanted) -> str:
    arena = meta.get("recipe", {}).get("arena", {}).get("use", "")
    return f"{wanted.format} rows of a community of models" + (f" on {arena}" if arena else "")


# -- the story -----------------------------------------------------------------------------


def _story(ledger: Ledger, meta: Mapping[str, Any], wanted: Wanted, counts: Counts) -> str:
    first, last = min(counts.rounds), max(counts.rounds)
    rounds = f"round {first}" if first == last else f"rounds {first} to {last}"
    domains = ", ".join(sorted({domain for domain, _ in counts.domains}))
    world = _world(counts)
    played = (
        f"A community of {count(len(ledger.members()), 'model')} answered tasks, read and judged "
        "each other's ideas, and ranked them; every idea is in the run's ledger, and these rows "
        "were taken from it by `community export`. "
    )
    return (
        played + f"They come from {rounds} of {ledger.last_round()} ({markdown(domains)}); "
        f"{counts.ideas:,} ideas were read and {count(counts.total, 'row')} written. {world} "
        "Tasks of the run's own validation and holdout are not among them.\n\n"
        f"Recipe `{meta.get('recipe_hash', '')}`, seed {meta.get('seed', 0)}. Texts were written "
        "by the models and nobody has read them all: a winner is the answer the community "
        "believed in most, and may be wrong."
    )


def _world(counts: Counts) -> str:
    right, wrong, silent = (counts.world[key] for key in (True, False, None))
    if not right + wrong:
        return "No world has checked any of them: they rest on the members' judgement alone."
    return (
        f"The world checked the idea of {right + wrong:,} rows and found {right:,} right; on "
        f"{silent:,} it was silent."
    )


def _loading(wanted: Wanted, counts: Counts) -> str:
    trainer = FORMATS[wanted.format].trainer
    call = "load_from_disk" if wanted.kind == "hf" else "load_dataset"
    code = f'from datasets import {call}\n\ndataset = {call}("path/of/this/folder")'
    if trainer:
        code += f'\n# trl.{trainer}(..., train_dataset=dataset["{_splits(counts)[0]}"])'
    return _fenced(code, "python")


def _rows(wanted: Wanted, counts: Counts) -> str:
    splits = _table(("split", "rows"), [(s, f"{counts.rows[s]:,}") for s in _splits(counts)])
    places = [(d, str(level), f"{n:,}") for (d, level), n in sorted(counts.domains.items())]
    tasks = _table(("domain", "level", "rows"), _first(places))
    return f"Splits are by task: no task is in two of them.\n\n{splits}\n\n{tasks}"


def _filters(wanted: Wanted) -> str:
    choice = wanted.choice
    facts = {
        "format": wanted.format,
        "texts as chat messages": wanted.chat or wanted.format == "sft",
        "rounds": f"{wanted.first or 'first'} to {wanted.last or 'last'}",
        "members": ", ".join(sorted(choice.agents)) or "all",
        "arenas or domains": ", ".join(wanted.arenas) or "all",
        "winners a task": choice.winners,
        "least strength": "any" if choice.min_strength == -math.inf else choice.min_strength,
        "least confidence": choice.min_confidence or "any",
        "verified by the world only": choice.verified,
        "margin of strength in a pair": choice.margin,
        "exact duplicates": "kept" if wanted.keeps_duplicates else "left out",
        "near duplicates": "kept" if wanted.near is None else f"left out from {wanted.near:g} on",
        "kept apart from": ", ".join(f"{p.name} ({wanted.ngram} words)" for p in wanted.against)
        or "nothing else",
    }
    words = {True: "yes", False: "no"}
    values = [(k, words[v] if isinstance(v, bool) else str(v)) for k, v in facts.items()]
    return _table(("filter", "value"), values)


def _dropped(counts: Counts) -> str:
    lines = [(reason, f"{n:,}") for reason, n in counts.dropped.most_common() if n]
    return _table(("what", "how many"), lines) if lines else "Nothing."


def _members(
    members: Mapping[str, Any], licences: Mapping[str, tuple[str, str]], counts: Counts
) -> str:
    """Who wrote what is to be learned, most rows first."""
    order = sorted(members, key=lambda name: (-counts.authors[name], name))
    lines = [
        (name, licences[name][0], licences[name][1] or "not stated", f"{counts.authors[name]:,}")
        for name in order
    ]
    return _table(("member", "model", "licence", "rows"), _first(lines))


def _columns(wanted: Wanted) -> str:
    columns = columns_of(wanted.format, wanted.chat)
    lines = [
        (f"`{name}`", kind, MEANING[name.removeprefix("chosen_").removeprefix("rejected_")])
        for name, kind in columns.items()
    ]
    return _table(("column", "type", "meaning"), lines)


MEANING = {
    "messages": "the task and the idea, as a conversation",
    "prompt": "the task",
    "completion": "the idea's text",
    "text": "the idea's text",
    "chosen": "the text of the better idea",
    "rejected": "the text of the other",
    "label": "whether it is to be learned",
    "answer": "the idea's answer in canonical form; a belief of the community, no reference",
    "task": "content hash of the task",
    "arena": "the test ground",
    "domain": "the kind of task",
    "level": "its difficulty",
    "round": "the round that posed it",
    "idea": "content hash of the idea",
    "author": "member@checkpoint that wrote it",
    "strength": "of its answer among those of the task (Bradley-Terry, or as the run ranked)",
    "low": "start of the strength's 95% interval",
    "high": "end of the strength's 95% interval",
    "confidence": "share of the voters' trust behind the answer, or the world's word",
    "supporters": "members that gave this answer",
    "comparisons": "comparisons behind the strength",
    "judges": "members that judged the answer",
    "world": f"the world's score, right from {RIGHT:g} on; null where it was silent",
    "parents": "ideas that the author had read",
    "failure": "why there is no answer",
    "turn": "of the conversation",
    "sample": "of the author's samples",
    "place": "in the ranking of the task, 1 is best",
    "tokens": "generated",
    "logprob": "of the text",
    "temperature": "of sampling",
    "top_p": "of sampling",
    "max_tokens": "that were allowed",
    "samples": "that were drawn",
}


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(map(markdown, row))} |" for row in rows)


def _first(lines: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """As many lines as a reader looks at, and how many more there are."""
    more = len(lines) - MANY
    rest = [(f"and {more:,} more", *[""] * (len(lines[0]) - 1))] if more > 0 else []
    return [*lines[:MANY], *rest]


def _fenced(text: str, language: str = "json") -> str:
    """A block of code that its own text cannot end."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text}\n{fence}"
