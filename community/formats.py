"""Tasks with their candidates -> rows in the columns that TRL's trainers read.

| format | columns | trainer |
| --- | --- | --- |
| sft | messages | SFTTrainer |
| prompt-completion | prompt, completion | SFTTrainer |
| dpo, reward | prompt, chosen, rejected | DPOTrainer, RewardTrainer |
| kto | prompt, completion, label | KTOTrainer |
| grpo | prompt, answer | GRPOTrainer, whose reward functions are given the rest |
| ideas | every idea with all that is known of it | |

Source: the dataset formats of TRL 1.16 (huggingface.co/docs/trl/dataset_formats). After these
columns every row says where it comes from; the trainers leave such columns alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from operator import attrgetter
from typing import Any, Literal, NamedTuple

from community.candidates import Candidate, Posed

Type = Literal["string", "strings", "messages", "bool", "int64", "float64"]
Row = tuple[Any, ...]
"""The values of a dataset's row, in the order of `columns_of`."""


@dataclass(frozen=True)
class Choice:
    """Which of a task's ideas make rows."""

    winners: int = 1  # at most so many a task
    margin: float = 0.0  # a pair's strengths differ by at least this
    verified: bool = False  # the world has spoken on every idea of a row, in its favour
    agents: frozenset[str] = frozenset()  # authors of what is learned; empty: all members
    min_strength: float = -math.inf
    min_confidence: float = 0.0


class Draft(NamedTuple):
    """A row before it is put in columns."""

    task: Posed
    texts: tuple[str, ...]  # the prompt, then what is to be learned and what is not
    ideas: tuple[Candidate, ...]  # whose texts these are; what is to be learned comes first
    label: bool = True  # False: not to be learned


Chooser = Callable[[Posed, Choice, Counter[str]], Iterator[Draft]]

# -- which ideas ---------------------------------------------------------------------------


def _ranked(task: Posed) -> list[Candidate]:
    """Ideas in order of place, each text once, without failures and empty texts."""
    found: dict[str, Candidate] = {}
    for idea in task.candidates:
        if idea.place is not None and idea.text.strip() and not idea.failure:
            found.setdefault(idea.text, idea)
    return list(found.values())


def best(task: Posed, choice: Choice, dropped: Counter[str]) -> Iterator[Draft]:
    """The first places of a task; never what the world calls wrong."""
    for idea in _ranked(task)[: choice.winners]:
        if idea.right is False:
            dropped["winners that the world calls wrong"] += 1
        else:
            yield Draft(task, (task.prompt, idea.text), (idea,))


def beats(a: Candidate, b: Candidate, margin: float) -> bool:
    """Whether it is known that a is better than b, by `margin` of strength.

    The world's word settles it alone. Where it does not, strengths must differ, and be
    comparable: ideas of different components were never compared. Equal ones are a tie.
    """
    if a.right is False or b.right is True:
        return False
    if a.right is True and b.right is False:
        return True
    if a.strength is None or b.strength is None or a.component in (None, -1):
        return False
    gap = round(a.strength - b.strength, 6)  # strengths have three digits
    return a.component == b.component and gap > 0 and gap >= margin


def pairs(task: Posed, choice: Choice, dropped: Counter[str]) -> Iterator[Draft]:
    """Each winner with the last-placed idea that it beats; no idea is in two pairs."""
    order = _ranked(task)
    used: set[str] = set()
    for first, winner in enumerate(order[: choice.winners]):
        rivals = (i for i in reversed(order[first + 1 :]) if i.id not in used)
        loser = next((i for i in rivals if beats(winner, i, choice.margin)), None)
        if winner.id in used:
            continue
        if loser is None:
            dropped["winners that beat no idea (ties, or by less than the margin)"] += 1
        else:
            used |= {winner.id, loser.id}
            texts = (task.prompt, winner.text, loser.text)
            yield Draft(task, texts, (winner, loser))


def labelled(task: Posed, choice: Choice, dropped: Counter[str]) -> Iterator[Draft]:
    """Winners as good and as many of the last places as bad, if the world or the first says so."""
    order = _ranked(task)
    good: list[Candidate] = []
    bad: list[Candidate] = []
    for _ in range(min(choice.winners, len(order))):
        left = [i for i in order if i not in good and i not in bad]
        good += [i for i in left if i.right is not False][:1]
        lost = (i for i in reversed(left) if i not in good)
        known = (i for i in lost if i.right is False or beats(order[0], i, choice.margin))
        bad += [i for _, i in zip(range(1), known, strict=False)]
    for idea in (*good, *bad):
        yield Draft(task, (task.prompt, idea.text), (idea,), label=idea in good)


def one(task: Posed, choice: Choice, dropped: Counter[str]) -> Iterator[Draft]:
    """The task with its first place."""
    for draft in best(task, Choice(winners=1), dropped):
        yield Draft(task, (task.prompt,), draft.ideas)


def every(task: Posed, choice: Choice, dropped: Counter[str]) -> Iterator[Draft]:
    """All ideas, failures included."""
    for idea in task.candidates:
        yield Draft(task, (task.prompt, idea.text), (idea,))


def passes(draft: Draft, choice: Choice, dropped: Counter[str]) -> bool:
    """Whether a row is wanted; counts the reason if not."""
    idea, *others = draft.ideas
    learned = draft.label
    reason = ""
    if choice.agents and idea.author not in choice.agents:
        reason = f"rows by others than {', '.join(sorted(choice.agents))}"
    elif choice.verified and not _verified(draft, others):
        reason = "rows that the world did not verify"
    elif learned and not _least(idea.strength, choice.min_strength, -math.inf):
        reason = f"rows below strength {choice.min_strength:g}"
    elif learned and not _least(idea.confidence, choice.min_confidence, 0.0):
        reason = f"rows below confidence {choice.min_confidence:g}"
    if reason:
        dropped[reason] += 1
    return not reason


def _verified(draft: Draft, others: Sequence[Candidate]) -> bool:
    return draft.ideas[0].right is draft.label and all(i.right is False for i in others)


def _least(value: float | None, least: float, lowest: float) -> bool:
    """Whether a value is not too low; of what was not ranked, only the lowest bound is met."""
    return least <= lowest or (value is not None and value >= least)


# -- which columns -------------------------------------------------------------------------

TASK: Mapping[str, Type] = {
    "task": "string",
    "arena": "string",
    "domain": "string",
    "level": "int64",
    "round": "int64",
}
"""Of the task in every row."""
IDEA: Mapping[str, Type] = {
    "idea": "string",
    "author": "string",  # member@checkpoint
    "strength": "float64",
    "low": "float64",
    "high": "float64",
    "confidence": "float64",
    "supporters": "int64",
    "comparisons": "int64",
    "judges": "strings",
    "world": "float64",
    "parents": "strings",
}
"""Of each idea in a row."""
ALL: Mapping[str, Type] = {
    "failure": "string",
    "turn": "int64",
    "sample": "int64",
    "place": "int64",
    "tokens": "int64",
    "logprob": "float64",
    "temperature": "float64",
    "top_p": "float64",
    "max_tokens": "int64",
    "samples": "int64",
}
"""Of an idea where all is told."""


@dataclass(frozen=True)
class Format:
    """A kind of dataset: which ideas make rows, and the columns that a trainer reads."""

    choose: Chooser
    texts: tuple[str, ...]  # the columns of a draft's texts
    trainer: str  # of TRL
    sides: tuple[str, ...] = ("",)  # a prefix for the columns of each idea
    label: bool = False
    answer: bool = False
    latest: bool = True  # a task counts once, as it was posed last
    whole: bool = False  # everything is told, and nothing is left out as a duplicate


PAIR = ("prompt", "chosen", "rejected")
SIDES = ("chosen_", "rejected_")
FORMATS: Mapping[str, Format] = {
    "sft": Format(best, ("messages",), "SFTTrainer"),
    "prompt-completion": Format(best, ("prompt", "completion"), "SFTTrainer"),
    "dpo": Format(pairs, PAIR, "DPOTrainer", SIDES, latest=False),
    "kto": Format(labelled, ("prompt", "completion"), "KTOTrainer", label=True, latest=False),
    "reward": Format(pairs, PAIR, "RewardTrainer", SIDES, latest=False),
    "grpo": Format(one, ("prompt",), "GRPOTrainer", answer=True),
    "ideas": Format(every, ("prompt", "text"), "", answer=True, latest=False, whole=True),
}


def columns_of(name: str, chat: bool) -> dict[str, Type]:
    """Column -> type of a format, in order; with `chat` its texts are lists of messages."""
    form = FORMATS[name]
    kind: Type = "messages" if chat or name == "sft" else "string"
    columns: dict[str, Type] = dict.fromkeys(form.texts, kind)
    if form.label:
        columns["label"] = "bool"
    if form.answer:
        columns["answer"] = "string"
    columns |= ALL if form.whole else {}
    columns |= TASK
    for side in form.sides:
        columns |= {side + key: type for key, type in IDEA.items()}
    return columns


def row_of(name: str, draft: Draft, chat: bool, parents: Mapping[int, Sequence[str]]) -> Row:
    """The row of a draft: the columns of `columns_of`. `parents` are those of each idea's row."""
    form, task, first = FORMATS[name], draft.task, draft.ideas[0]
    row = [*_texts(name, draft, chat)]
    if form.label:
        row.append(draft.label)
    if form.answer:
        row.append(first.answer)
    if form.whole:
        row += _all(first)
    row += (task.id, task.arena, task.domain, task.level, task.round)
    for idea in draft.ideas:
        author = f"{idea.author}@{idea.checkpoint}"
        read = parents.get(idea.row, ())
        row += (idea.id, author, *_scale(idea), idea.judges, idea.world, read)
    for place in _floats(name, chat):  # JSON has no nan and no infinity
        if row[place] is not None and not math.isfinite(row[place]):
            row[place] = None
    return tuple(row)


_all = attrgetter(*ALL)
_scale = attrgetter("strength", "low", "high", "confidence", "supporters", "comparisons")


@cache
def _floats(name: str, chat: bool) -> tuple[int, ...]:
    """Where the numbers are that may be infinite."""
    kinds = columns_of(name, chat).values()
    return tuple(place for place, kind in enumerate(kinds) if kind == "float64")


def _texts(name: str, draft: Draft, chat: bool) -> Sequence[Any]:
    prompt, *rest = draft.texts
    if name == "sft":
        return ([_message("user", prompt), *(_message("assistant", text) for text in rest)],)
    if not chat:
        return draft.texts
    return ([_message("user", prompt)], *([_message("assistant", text)] for text in rest))


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
