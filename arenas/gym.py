"""The tasks of reasoning-gym, each by its name (extra `gym`).

In a recipe:

    [arena]
    use = "gym"
    tasks = ["gcd", {name = "chain_sum", min_terms = "level", max_terms = "level"}]

Everything beside `name` is the task's own configuration; where a value is "level", the
level that is posed stands in its place. Reasoning-gym gives partial credit for texts that
only contain the answer; here an answer is extracted first and is right or wrong.
"""

from __future__ import annotations

import json
import re
import string
import warnings
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any

from community.arenas.splits import first_in_split
from community.config import option
from community.errors import CommunityError, unknown
from community.types import Idea, Split, Task, seed_of

try:
    import reasoning_gym
    from reasoning_gym.factory import DATASETS
except ImportError:
    reasoning_gym = None

_NO_REFERENCE = "it has no reference answer"
_SLOW = "posing or scoring it takes too long"
_EVALUATES = "its scorer runs the answer as code"
_NOT_REPEATABLE = "the same seed gives another question in another process"

UNSUITABLE: dict[str, str] = {
    "boxnet": _NO_REFERENCE,
    "composite": "it only mixes other tasks: list those",
    "game_of_life_halting": "its scorer accepts any text as the answer False",
    "graph_color": _NO_REFERENCE,
    "intermediate_integration": _EVALUATES,
    "isomorphic_strings": _NOT_REPEATABLE,
    "knight_swap": _SLOW,
    "polynomial_multiplication": _EVALUATES,
    "propositional_logic": _NO_REFERENCE,
    "ransom_note": _NOT_REPEATABLE,
    "rubiks_cube": _NO_REFERENCE,
    "rush_hour": _NO_REFERENCE,
    "simple_integration": _EVALUATES,
    "zebra_puzzles": _SLOW,
}

_ARITHMETIC = re.compile(r"(?!.*\*\*)[\d\s()+*/.-]{,200}")
_LISTS = re.compile(r"[\w\s,'\"\[\]]{,2000}")
# These scorers give the answer to eval, parse_expr or Fraction, which must not see code
# or 1e999999999: only texts of these characters reach them.
_GUARDED = {
    "binary_matrix": _LISTS,
    "coin_flip": _ARITHMETIC,
    "countdown": _ARITHMETIC,
    "n_queens": _LISTS,
    "puzzle24": _ARITHMETIC,
    "spiral_matrix": _LISTS,
    "string_insertion": _LISTS,
}

_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][+-]?\d+)?")
_MARKER = re.compile(r"\banswer(?:\s+is\b\s*:?|\s*[:=])\s*", re.IGNORECASE)
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
_WORDS = {"yes": "Yes", "no": "No", "true": "True", "false": "False"}


def suitable() -> list[str]:
    """The names of the tasks that can be posed. Raises CommunityError without the extra."""
    _require()
    return sorted(set(DATASETS) - set(UNSUITABLE))


class GymArena:
    """An arena over reasoning-gym tasks, posed in turn by index.

    `tasks` holds names, or mappings with a `name` and the task's own configuration.
    Raises CommunityError for a task that is unknown or unsuitable (saying why), that is
    listed twice, or whose configuration reasoning-gym refuses.
    """

    name = "gym"
    # ASCII and Latin letters with accents, which its word lists hold here and there
    alphabet = string.printable + "".join(map(chr, range(0xA1, 0x180)))

    def __init__(
        self,
        tasks: Annotated[
            Sequence[str | Mapping[str, Any]],
            option("names, or tables of a name and the task's own configuration"),
        ],
    ) -> None:
        _require()
        if not tasks:
            raise CommunityError("the gym arena has no tasks; name at least one in arena.tasks")
        self._configs: dict[str, dict[str, Any]] = {}
        for entry in tasks:
            config = {"name": entry} if isinstance(entry, str) else dict(entry)
            domain = str(config.pop("name", ""))
            _check_name(domain)
            if domain in self._configs:
                raise CommunityError(f"gym task {domain!r} is listed twice; keep one of them")
            _check_keys(domain, config)
            self._configs[domain] = config
        self._domains = tuple(self._configs)

    def pose(self, split: Split, seed: int, index: int, level: int) -> Task:
        """The task at `index`, of the domain at `index` modulo their number.

        Raises CommunityError for a level the task cannot have, or a split it cannot fill.
        """
        return self._pose(split, seed, index, level)[0]

    def verify(self, task: Task, idea: Idea) -> float | None:
        """1.0 if reasoning-gym gives the idea's answer full marks, else 0.0."""
        given = self.answer(task, idea.text)
        guard = _GUARDED.get(task.domain)
        if not given or (guard and not guard.fullmatch(given)):
            return 0.0
        scorer = _dataset(task.domain, self._config(task.domain, task.level), 0)
        reference = self._reference(task)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # scorers warn about texts they cannot read
                score = float(scorer.score_answer(given, reference))
        except Exception:  # a scorer that chokes on a text has not accepted it
            return 0.0
        return 1.0 if score >= 0.99 else 0.0

    def answer(self, task: Task, text: str) -> str:
        r"""What the text answers: what follows its last "answer:" or "the answer is", or
        stands in \boxed{}, else its last number, last line or all of it, whichever form
        the domain's answers have. The form comes from other tasks of the domain."""
        return _extract(text, _form(task.domain, self._config(task.domain, task.level)))

    def rephrase(self, task: Task, sample: int) -> str:
        """The task's own prompt: reasoning-gym has no equivalents."""
        return task.prompt

    def solve(self, task: Task) -> str:
        """The reference answer, for first lessons and scripted members."""
        return str(self._reference(task)["answer"])

    def _config(self, domain: str, level: int) -> str:
        """The configuration at a level, as JSON (hashable, so that what it makes is cached)."""
        if domain not in self._configs:
            raise unknown("gym task", domain, self._configs)
        config = {k: level if v == "level" else v for k, v in self._configs[domain].items()}
        return json.dumps(config, sort_keys=True)

    def _pose(self, split: Split, seed: int, index: int, level: int) -> tuple[Task, dict[str, Any]]:
        domain = self._domains[index % len(self._domains)]
        config, entries = self._config(domain, level), []

        def draw(attempt: int) -> Task:
            drawn = seed_of("gym", domain, split, seed, index, level, attempt) % 2**31  # numpy's
            entries.append(_entry(domain, config, drawn))
            question = str(entries[-1]["question"])
            return Task(question, self.name, domain, level, split, seed, index)

        return first_in_split(draw, split), entries[-1]

    def _reference(self, task: Task) -> dict[str, Any]:
        """The entry behind a task, drawn again from what the task says of itself."""
        posed, entry = self._pose(task.split, task.seed, task.index, task.level)
        if posed.id != task.id:
            raise CommunityError(
                f"task {task.id} was not posed by this arena; use the recipe that posed it"
            )
        return entry


def _require() -> None:
    if reasoning_gym is None:
        raise CommunityError(
            'the gym arena needs reasoning-gym; run pip install "modelcommunity[gym]"'
        )


def _check_name(domain: str) -> None:
    if domain in UNSUITABLE:
        listed = ", ".join(f"{name}: {why}" for name, why in UNSUITABLE.items())
        raise CommunityError(
            f"gym task {domain!r} cannot be used, {UNSUITABLE[domain]}; choose another "
            f"(not usable are {listed})"
        )
    if domain not in DATASETS:
        raise unknown("gym task", domain, suitable())


def _check_keys(domain: str, config: Mapping[str, Any]) -> None:
    known = set(DATASETS[domain][1].__dataclass_fields__) - {"seed", "size"}
    for key in config:
        if key not in known:
            raise unknown(f"setting of gym task {domain}", key, known)


@lru_cache(maxsize=64)
def _dataset(domain: str, config: str, seed: int) -> Any:
    try:
        return reasoning_gym.create_dataset(domain, seed=seed, size=1, **json.loads(config))
    except (AssertionError, TypeError, ValueError) as error:
        raise CommunityError(
            f"reasoning-gym refuses {domain} with {config} ({error}); change its settings or level"
        ) from error


@lru_cache(maxsize=8192)
def _entry(domain: str, config: str, seed: int) -> dict[str, Any]:
    if _counts_on(domain, config):
        return _at(_dataset(domain, config, 0), seed)
    return _first(domain, config, seed)


def _first(domain: str, config: str, seed: int) -> dict[str, Any]:
    return _at(_dataset.__wrapped__(domain, config, seed), 0)


def _at(dataset: Any, n: int) -> dict[str, Any]:
    """Entry n without its number, so that equal entries are equal."""
    entry = dict(dataset[n])
    entry["metadata"] = {k: v for k, v in entry["metadata"].items() if k != "source_index"}
    return entry


@lru_cache(maxsize=256)
def _counts_on(domain: str, config: str) -> bool:
    """Whether entry n of seed 0 is entry 0 of seed n, as for nearly all domains.

    Then one dataset serves for all seeds: making one takes up to half a second, as many read
    their word lists anew.
    """
    try:
        one = _dataset(domain, config, 0)
        return all(_at(one, s) == _first(domain, config, s) for s in (1, 5, 12345))
    except IndexError:  # it looks at its size, which is 1
        return False


@lru_cache(maxsize=256)
def _form(domain: str, config: str) -> str:
    """ "number", "line" or "text": what a few references of the domain look like."""
    answers = [str(_entry(domain, config, seed)["answer"]).strip() for seed in range(5)]
    if all(_NUMBER.fullmatch(a) for a in answers):
        return "number"
    return "text" if any("\n" in a for a in answers) else "line"


def _extract(text: str, form: str) -> str:
    boxed, marked = _BOXED.findall(text), _MARKER.split(text)
    rest = (boxed[-1] if boxed else marked[-1]).strip()
    if form == "number":
        numbers = _NUMBER.findall(rest)
        if numbers:
            return str(numbers[0 if boxed or len(marked) > 1 else -1]).replace(",", "")
    if form != "text":
        lines = [line for line in rest.splitlines() if line.strip()]
        rest = lines[0 if len(marked) > 1 else -1] if lines else ""
    rest = rest.strip().strip("*`")
    rest = rest if " " in rest else rest.strip("*`.")  # a sentence keeps its full stop
    return _WORDS.get(rest.lower(), rest)
