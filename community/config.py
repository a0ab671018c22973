"""One TOML file -> validated settings.

A recipe is read once, checked against the models below, and saved in resolved form
(every default filled in) with the run. Keys that do not exist are refused with their
place and the closest match; what belongs to a part (an arena's options, an agent's) is
checked by `check_options` against that part's own signature.
"""

from __future__ import annotations

import difflib
import inspect
import math
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator

from community.errors import CommunityError
from community.types import COMMUNITY, WORLD, World, content_hash

SEEDS = 2**63  # what a database holds: 64 bits, one of them for the sign
Level = Annotated[int, Field(ge=0)]  # the arena says how high they go
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
Name = Annotated[str, Field(pattern=NAME)]


class Section(BaseModel):
    """A table of a recipe that knows all its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Part(BaseModel):
    """A table that names a part (`use`) and holds that part's own options beside it."""

    model_config = ConfigDict(extra="allow", frozen=True)
    use: str = Field(description="its name")

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class RunSection(Section):
    """How long, how, and where."""

    name: Name = Field("run", description="of its folder; the recipe's own name if not given")
    seed: int = Field(0, ge=-SEEDS, lt=SEEDS, description="everything random follows from it")
    rounds: int = Field(5, ge=0, description="rounds to play; 0: only score the start")
    turns: int = Field(0, ge=0, description="turns of conversation after the first answers")
    world: World = Field("always", description="when the world may speak for learning")
    pool: Literal["local", "ray"] = Field("ray", description="this process, or one actor a member")
    workers: int = Field(2, ge=1, description="agents at work at the same time (ray)")


class TasksSection(Section):
    """What is posed: level n of `levels` in round n (the last one from then on)."""

    train: int = Field(100, ge=1, description="tasks a round")
    levels: tuple[Level, ...] = Field((1,), min_length=1, description="one for each round")
    phrasings: int = Field(1, ge=1, description="wordings of a task; sample n gets the n-th")
    validation: int = Field(0, ge=0, description="validation tasks a level")
    validation_levels: tuple[Level, ...] = Field((1,), description="all of them, each time")
    holdout: int = Field(100, ge=0, description="holdout tasks a level")
    holdout_levels: tuple[Level, ...] = Field((1,), description="all of them, each time")


class FirstSection(Section):
    """What the first experts learn, with answers, before round 1."""

    examples: int = Field(0, ge=0, description="worked examples; 0: members start as they are")
    levels: tuple[Level, ...] = Field((1,), min_length=1, description="drawn equally often")
    steps: int = Field(400, ge=1, description="training steps")


class Member(Part):
    """One member, or `count` of them that differ in their seed; the agent's options beside."""

    name: Name = Field("expert", description="numbered where there are several: expert-1")
    count: int = Field(1, ge=1, description="how many")
    domains: tuple[str, ...] = Field((), description="of its first lessons; none: all there are")
    cpus: float = Field(0, ge=0, description="of a Ray cluster; 0: an even share of the workers")
    gpus: float = Field(0, ge=0, description="of a Ray cluster")


class TopologySection(Part):
    """Who reads whom, with the topology's options; several are a schedule."""

    use: str = Field("complete", description="its name")
    from_round: int = Field(1, ge=1, description="the first round that it holds in")


class JudgingSection(Section):
    """Cross-validation by peers."""

    pairs: int = Field(0, ge=0, description="pairs of different answers judged, a task")
    judges: int = Field(0, ge=0, description="judges a task, drawn at random; 0: every member")


class RankingSection(Section):
    """How ideas are put in order, and when a winner is believed."""

    method: str = Field("bradley-terry", description="the ranker")
    min_confidence: float = Field(0.6, ge=0, le=1, description="share of trust behind a winner")
    min_supporters: int = Field(1, ge=1, description="members that gave the winner's answer")
    best: float = Field(1.0, gt=0, le=1, description="share of the believed winners to teach")


class RouterSection(Section):
    """Who attempts what, and who learns what."""

    top_k: int = Field(0, ge=0, description="members that attempt a task; 0: every one")
    policy: str = Field("all", description="who learns a winner")
    explore: float = Field(0.1, ge=0, le=1, description="share of round 1's tasks with a newcomer")


class LearningSection(Section):
    """How lessons become weights. `steps` or `epochs` says for how long."""

    steps: int = Field(0, ge=0, description="training steps a round; 0: by `epochs`")
    epochs: float = Field(1.0, gt=0, description="passes over the round's lessons")
    batch: int = Field(32, ge=1, description="lessons a step")
    min_lessons: int = Field(1, ge=1, description="with fewer, a member does not learn")
    replay: int = Field(0, ge=0, description="earlier lessons mixed in, for each earlier round")
    revalidate: bool = Field(False, description="rehearse no lesson that most contradict by now")
    peers: float = Field(0.0, ge=0, lt=1, description="share of lessons set aside as validation")
    alpha: float = Field(0.05, ge=0, lt=1, description="a fall less likely than this rolls back")

    @model_validator(mode="after")
    def _half_of_a_batch_is_replay(self) -> LearningSection:
        if self.replay and self.batch < 2:
            raise ValueError("replay takes half of a batch, and a batch of 1 has none; raise batch")
        return self


class BudgetSection(Section):
    """A hard stop at a clean point; 0 is no limit."""

    tokens: int = Field(0, ge=0, description="generated and learned, all members together")
    seconds: float = Field(0, ge=0, description="of rounds and their learning")

    def spent(self, tokens: int, seconds: float) -> str:
        """Which of the two is used up, if one is."""
        if self.tokens and tokens >= self.tokens:
            return f"its budget of {self.tokens:,} tokens is spent"
        if self.seconds and seconds >= self.seconds:
            return f"its budget of {self.seconds:g} seconds is spent"
        return ""


class BaselinesSection(Section):
    """What the member that looks best at the start does alone: `community/baselines.py`."""

    run: tuple[Literal["self-consistency", "no-filter", "greedy", "few-shot", "majority"], ...] = (
        Field((), description="which of them")
    )
    shots: int = Field(4, ge=1, description="worked examples in the prompt of few-shot")


def numbered(name: str, count: int) -> list[str]:
    """The names of the members that a table stands for."""
    return [name] if count == 1 else [f"{name}-{i}" for i in range(1, count + 1)]


class Recipe(Section):
    """A whole recipe. See `runs/` for examples."""

    run: RunSection = RunSection()
    arena: Part = Field(description="What poses the tasks; its own options stand beside `use`.")
    tasks: TasksSection = TasksSection()
    first: FirstSection = FirstSection()
    members: tuple[Member, ...] = Field(min_length=1)
    topology: tuple[TopologySection, ...] = Field((TopologySection(),), min_length=1)
    judging: JudgingSection = JudgingSection()
    ranking: RankingSection = RankingSection()
    router: RouterSection = RouterSection()
    learning: LearningSection = LearningSection()
    budget: BudgetSection = BudgetSection()
    baselines: BaselinesSection = BaselinesSection()

    @model_validator(mode="before")
    @classmethod
    def _one_topology_is_a_schedule_of_one(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("topology"), dict):
            return data | {"topology": [data["topology"]]}
        return data

    @model_validator(mode="after")
    def _names_differ(self) -> Recipe:
        names = [name for name, _ in self.roster()]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"two members are called {twice[0]!r}; give each its own name")
        if taken := sorted({WORLD, COMMUNITY} & set(names)):
            raise ValueError(f"no member can be called {taken[0]!r}; give it another name")
        if self.topology[0].from_round != 1:
            raise ValueError("the first topology must hold from_round = 1")
        return self

    def roster(self) -> list[tuple[str, Member]]:
        """(name, table) of every member, `count` resolved into numbered names."""
        return [(name, m) for m in self.members for name in numbered(m.name, m.count)]

    def level(self, n: int) -> int:
        """The level that round `n` (from 1) poses."""
        return self.tasks.levels[min(n, len(self.tasks.levels)) - 1]

    def content(self) -> dict[str, Any]:
        """The resolved recipe without what may change the wall clock but not the result."""
        data = self.model_dump(mode="json")
        for key in ("name", "pool", "workers"):
            data["run"].pop(key)
        return data

    @property
    def hash(self) -> str:
        return content_hash("recipe", self.content())


def read(path: Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe in a TOML file, with `section.key` overrides applied.

    Raises CommunityError for a file that cannot be read, an unknown key or a wrong value.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CommunityError(f"cannot read recipe {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CommunityError(f"{path} is not valid TOML: {error}") from error
    data.setdefault("run", {})
    for place, value in (overrides or {}).items():
        _set(data, place, value)
    section = data["run"]
    if isinstance(section, dict) and "name" not in section:  # else validation has its word
        section["name"] = _name_of(path)
    return parse(data, str(path))


def _name_of(path: Path) -> str:
    """The name of a recipe's run that has no other. Raises CommunityError for one it cannot be."""
    if not re.match(NAME, path.stem):
        raise CommunityError(
            f"a run has its recipe's name if it is given no other, and it cannot be called "
            f"{path.stem!r}: give it a name of letters, digits, dots and dashes with --name"
        )
    return path.stem


def parse(data: Mapping[str, Any], source: str = "recipe") -> Recipe:
    """A recipe from plain data. Raises CommunityError naming the key's place."""
    if endless := next(_endless(data), ""):
        raise CommunityError(
            f"{source}: {endless}: a number cannot be inf or nan here; give another"
        )
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise CommunityError(_explain(error, Recipe, source)) from error


def _endless(data: Any, place: str = "") -> Iterator[str]:
    """Where plain data holds inf or nan, which JSON does not know and no resolved recipe keeps."""
    if isinstance(data, float) and not math.isfinite(data):
        yield place
    elif isinstance(data, Mapping | list | tuple):
        pairs = data.items() if isinstance(data, Mapping) else enumerate(data)
        for key, value in pairs:
            yield from _endless(value, f"{place}.{key}".lstrip("."))


def option(description: str, **limits: Any) -> Any:
    """What an option of a part is for, and its limits: `Annotated[int, option("…", ge=1)]`."""
    return Field(description=description, **limits)


def setting(text: str) -> tuple[str, Any]:
    """`section.key=value` as given on the command line; the value is read as TOML."""
    place, equals, value = text.partition("=")
    if not equals or not place.strip():
        raise CommunityError(f"--set wants section.key=value, not {text!r}")
    try:
        return place.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return place.strip(), value


def check_options(
    part: Callable[..., Any], options: Mapping[str, Any], place: str, given: Iterable[str] = ()
) -> dict[str, Any]:
    """The options of a part, checked against its signature and converted to its types.

    `given` are parameters that the engine fills in. Raises CommunityError naming the place.
    """
    try:
        parameters = inspect.signature(part, eval_str=True).parameters
    except NameError as error:
        raise CommunityError(
            f"{place}: the options' types cannot be read ({error}); import what annotations name "
            "where it runs, too, and not under TYPE_CHECKING alone"
        ) from error
    wanted: dict[str, Any] = {
        name: (p.annotation, ... if p.default is inspect.Parameter.empty else p.default)
        for name, p in parameters.items()
        if name not in set(given) and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    }
    config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    model = create_model("Options", __config__=config, **wanted)
    try:
        checked = model.model_validate(dict(options))
    except ValidationError as error:
        raise CommunityError(_explain(error, model, place)) from error
    return {name: getattr(checked, name) for name in checked.model_fields_set}


def _set(data: dict[str, Any], place: str, value: Any) -> None:
    *tables, key = place.split(".")
    for table in tables:
        inner: Any = data.setdefault(table, {})
        if isinstance(inner, list):
            raise CommunityError(f"--set {place}: {table} is a list of tables; edit the recipe")
        if not isinstance(inner, dict):
            raise CommunityError(f"--set {place}: {table} is no table")
        data = inner
    data[key] = value


def _explain(error: ValidationError, model: type[BaseModel], source: str) -> str:
    """The first problem in one line: source, place, what is wrong, closest match."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    at = f"{source}: {place}" if place else source
    if first["type"] == "extra_forbidden":
        names = _fields(model, first["loc"][:-1])
        near = difflib.get_close_matches(str(first["loc"][-1]), names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(names)}"
        return f"{at}: unknown key; {hint}"
    if first["type"] == "missing":
        return f"{at}: this key is needed"
    message = first["msg"].removeprefix("Value error, ")
    # the words of TOML, not of Python
    message = re.sub(r"a valid dictionary( or instance of \w+)?", "a table", message)
    message = message.replace("a valid tuple", "a list")
    value = first.get("input")
    shown = f" (not {value!r})" if isinstance(value, str | int | float | bool) else ""
    return f"{at}: {message[0].lower()}{message[1:]}{shown}"


def _fields(model: type[BaseModel], place: tuple[int | str, ...]) -> list[str]:
    """The known keys of the table at `place`."""
    for part in place:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(str(part))
        inner = field.annotation if field else None
        arguments = getattr(inner, "__args__", ())
        table = next((a for a in (inner, *arguments) if _is_model(a)), None)
        if table is None:
            break
        model = table
    return sorted(model.model_fields)


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
