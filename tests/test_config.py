"""Recipes: every mistake is named with its place, and a resolved recipe is the same recipe."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from community.agents.scripted import ScriptedAgent
from community.agents.transformer import Shape, TransformerAgent
from community.arenas.arithmetic import ArithmeticArena
from community.config import Recipe, check_options, parse, read, setting
from community.errors import CommunityError
from community.parts import FILLED_IN

LEAST: dict[str, Any] = {"arena": {"use": "arithmetic"}, "members": [{"use": "scripted"}]}
SHIPPED = sorted((Path(__file__).parent.parent / "runs").glob("*.toml"))


def refusal(**sections: Any) -> str:
    with pytest.raises(CommunityError) as caught:
        parse(LEAST | sections)
    return one_line(caught.value)


def one_line(error: CommunityError) -> str:
    assert "\n" not in str(error)
    return str(error)


def written(folder: Path, text: str) -> Path:
    path = folder / "small.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"topolgy": {}}, "recipe: topolgy: unknown key; did you mean 'topology'?"),
        ({"run": {"ruonds": 3}}, "recipe: run.ruonds: unknown key; did you mean 'rounds'?"),
        ({"learning": {"stepps": 3}}, "learning.stepps: unknown key; did you mean 'steps'?"),
        ({"budget": {"zzz": 3}}, "budget.zzz: unknown key; known here: seconds, tokens"),
        ({"run": {"rounds": "many"}}, "run.rounds: input should be a valid integer"),
        ({"run": {"rounds": "many"}}, "(not 'many')"),
        (
            {"run": {"rounds": -1}},
            "run.rounds: input should be greater than or equal to 0 (not -1)",
        ),
        ({"run": {"world": "sometimes"}}, "run.world: input should be 'always', 'validation'"),
        ({"run": {"pool": "threads"}}, "run.pool: input should be 'local' or 'ray'"),
        ({"run": {"name": "a/b"}}, "run.name: string should match pattern"),
        ({"run": 3}, "recipe: run: input should be a table"),
        ({"arena": "arithmetic"}, "recipe: arena: input should be a table"),
        ({"arena": {}}, "recipe: arena.use: this key is needed"),
        ({"members": []}, "recipe: members: "),
        ({"members": 3}, "recipe: members: input should be a list (not 3)"),
        ({"members": [{"name": "ada"}]}, "recipe: members.0.use: this key is needed"),
        ({"members": [{"use": "scripted", "count": 0}]}, "members.0.count: input should be"),
        ({"tasks": {"levels": []}}, "tasks.levels: "),
        ({"tasks": {"levels": [1, -3]}}, "tasks.levels.1: input should be greater than or equal"),
        ({"tasks": {"holdout_levels": [-3]}}, "tasks.holdout_levels.0: input should be greater"),
        ({"tasks": {"validation_levels": [-3]}}, "tasks.validation_levels.0: input should be"),
        ({"first": {"levels": [-3]}}, "first.levels.0: input should be greater than or equal"),
        ({"first": {"levels": []}}, "first.levels: "),
        ({"run": {"seed": 2**63}}, "run.seed: input should be less than"),
        ({"run": {"seed": -(2**63) - 1}}, "run.seed: input should be greater than or equal to"),
        ({"ranking": {"min_confidence": 1.5}}, "ranking.min_confidence: input should be less"),
        ({"learning": {"replay": 5, "batch": 1}}, "learning: replay takes half of a batch"),
        ({"learning": {"epochs": math.inf}}, "learning.epochs: a number cannot be inf or nan"),
        (
            {"members": [{"use": "transformer", "optimizer": {"clip": math.inf}}]},
            "members.0.optimizer.clip: a number cannot be inf or nan",
        ),
        ({"topology": []}, "recipe: topology: "),
        ({"topology": {"use": "ring", "from_round": 2}}, "first topology must hold from_round = 1"),
    ],
)
def test_a_mistake_is_named_with_its_place(sections: dict[str, Any], expected: str) -> None:
    assert expected in refusal(**sections)


def test_a_needed_section_that_is_missing() -> None:
    with pytest.raises(CommunityError, match="recipe: arena: this key is needed"):
        parse({"members": LEAST["members"]})
    with pytest.raises(CommunityError, match="recipe: members: this key is needed"):
        parse({"arena": LEAST["arena"]})


def test_no_two_members_of_one_name() -> None:
    twins = [{"name": "ada", "use": "scripted"}] * 2
    assert "two members are called 'ada'; give each its own name" in refusal(members=twins)
    counted = [{"name": "ada", "use": "scripted", "count": 2}, {"name": "ada-2", "use": "scripted"}]
    assert "two members are called 'ada-2'" in refusal(members=counted)


@pytest.mark.parametrize("name", ["world", "community"])
def test_no_member_votes_or_scores_in_the_name_of_another(name: str) -> None:
    """A member called so had its verdicts counted as the world's, or hid the community's score."""
    called = [{"name": name, "use": "scripted"}]
    assert f"no member can be called {name!r}; give it another name" in refusal(members=called)


def test_a_member_with_a_count_is_that_many() -> None:
    recipe = parse(LEAST | {"members": [{"use": "scripted", "count": 3}, *LEAST["members"]]})
    assert [name for name, _ in recipe.roster()] == ["expert-1", "expert-2", "expert-3", "expert"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"shap": {}}, "members.ada: shap: unknown key; did you mean 'shape'?"),
        ({"shape": {"widht": 8}}, "members.ada: shape.widht: unknown key; did you mean 'width'?"),
        ({"shape": {"width": "big"}}, "members.ada: shape.width: input should be a valid integer"),
        ({"shape": {"positions": "x"}}, "members.ada: shape.positions: input should be 'plain'"),
        ({"optimizer": {"lr": 0}}, "members.ada: optimizer.lr: input should be greater than 0"),
        ({"optimizer": {"muno": 1}}, "optimizer.muno: unknown key; did you mean 'muon'?"),
        ({"name": "bo"}, "members.ada: name: unknown key"),
    ],
)
def test_a_members_own_options_are_checked(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(CommunityError) as caught:
        check_options(TransformerAgent, options, "members.ada", FILLED_IN)
    assert expected in one_line(caught.value)


def test_options_come_back_as_the_parts_own_types() -> None:
    options = {"shape": {"width": 8, "heads": 2}, "temperature": 1}
    found = check_options(TransformerAgent, options, "members.ada", FILLED_IN)
    assert found == {"shape": Shape(width=8, heads=2), "temperature": 1.0}
    assert check_options(ArithmeticArena, {"reverse": True}, "arena", ("self",)) == {
        "reverse": True
    }
    assert check_options(ScriptedAgent, {}, "members.ada", FILLED_IN) == {}


def test_an_option_that_a_part_needs() -> None:
    with pytest.raises(CommunityError, match=r"members\.ada: solve: this key is needed"):
        check_options(ScriptedAgent, {}, "members.ada", ("name", "seed"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("run.rounds=3", ("run.rounds", 3)),
        ("run.rounds = 3", ("run.rounds", 3)),
        ("learning.alpha=0.5", ("learning.alpha", 0.5)),
        ("tasks.levels=[1, 2]", ("tasks.levels", [1, 2])),
        ("arena.reverse=true", ("arena.reverse", True)),
        ("run.world=never", ("run.world", "never")),
        ('run.world="never"', ("run.world", "never")),
        ("arena.path=a=b", ("arena.path", "a=b")),
        ("tasks.levels=[1,", ("tasks.levels", "[1,")),  # refused later, where a list is wanted
    ],
)
def test_settings_of_the_command_line(text: str, expected: tuple[str, Any]) -> None:
    assert setting(text) == expected


@pytest.mark.parametrize("text", ["run.rounds", "=3", " = 3", ""])
def test_a_setting_that_is_none(text: str) -> None:
    with pytest.raises(CommunityError, match=r"--set wants section\.key=value"):
        setting(text)


SMALL = """
[arena]
use = "arithmetic"
[[members]]
use = "scripted"
"""


def test_overrides_apply_and_are_checked_too(tmp_path: Path) -> None:
    path = written(tmp_path, SMALL)
    assert read(path).run.name == "small"
    changed = read(path, {"run.rounds": 7, "tasks.levels": [3, 4], "arena.reverse": True})
    assert (changed.run.rounds, changed.tasks.levels) == (7, (3, 4))
    assert changed.arena.options == {"reverse": True}
    assert [changed.level(n) for n in (1, 2, 3)] == [3, 4, 4]  # the last one from then on
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"run.ruonds": 7}, "run.ruonds: unknown key; did you mean 'rounds'?"),
        ({"members.0.name": "x"}, "--set members.0.name: members is a list of tables"),
        ({"arena.use.x": 1}, "--set arena.use.x: use is no table"),
        ({"run": 3}, "run: input should be"),
    ]
    for overrides, expected in wrong:
        with pytest.raises(CommunityError) as caught:
            read(path, overrides)
        assert expected in one_line(caught.value)


def test_a_file_name_that_no_run_can_have(tmp_path: Path) -> None:
    path = written(tmp_path, SMALL).rename(tmp_path / "ti ny.toml")
    with pytest.raises(CommunityError, match=r"recipe's name .* called 'ti ny'.* with --name"):
        read(path)
    assert read(path, {"run.name": "tiny"}).run.name == "tiny"
    path.write_text(f"[run]\nname = 'own'\n{SMALL}")
    assert read(path).run.name == "own"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"[run", "is not valid TOML"),
        (b"[run]\nseed = 1\nseed = 2", "is not valid TOML"),
        (b"name = '\xff'", "is not valid TOML"),
        (b"run = 3", "run: input should be a table"),
        (b"[[run]]\nseed = 1", "run: input should be a table"),
        (b"", "this key is needed"),
    ],
)
def test_a_file_that_is_no_recipe(content: bytes, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(CommunityError) as caught:
        read(path)
    assert expected in one_line(caught.value) and str(path) in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "gone.toml", tmp_path):
        with pytest.raises(CommunityError, match="cannot read recipe"):
            read(path)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_resolved_recipe_is_the_same_recipe(path: Path, tmp_path: Path) -> None:
    recipe = read(path)
    data = recipe.model_dump(mode="json", exclude_none=True)
    again = read(written(tmp_path, tomli_w.dumps(data)))
    assert again == recipe and again.hash == recipe.hash
    assert again.content() == tomllib.loads(tomli_w.dumps(recipe.content()))


@given(
    st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9_.-]{0,9}\Z"),
    st.sampled_from(["local", "ray"]),
    st.integers(1, 64),
)
def test_what_changes_the_clock_only_does_not_change_the_hash(
    name: str, pool: str, workers: int
) -> None:
    recipe = parse(LEAST | {"run": {"name": name, "pool": pool, "workers": workers}})
    assert recipe.hash == parse(LEAST).hash


@pytest.mark.parametrize(
    "sections",
    [
        {"run": {"seed": 1}},
        {"run": {"rounds": 6}},
        {"run": {"world": "never"}},
        {"arena": {"use": "arithmetic", "reverse": True}},
        {"members": [{"use": "scripted", "error": 0.3}]},
        {"topology": {"use": "ring"}},
        {"learning": {"alpha": 0.01}},
    ],
    ids=str,
)
def test_what_changes_the_result_changes_the_hash(sections: dict[str, Any]) -> None:
    assert parse(LEAST | sections).hash != parse(LEAST).hash


def test_one_topology_or_a_schedule() -> None:
    one, schedule = {"use": "ring"}, [{"use": "ring"}, {"use": "star", "from_round": 3}]
    assert parse(LEAST | {"topology": one}) == parse(LEAST | {"topology": [one]})
    assert [t.from_round for t in parse(LEAST | {"topology": schedule}).topology] == [1, 3]


def test_a_recipe_does_not_change() -> None:
    recipe: Recipe = parse(LEAST)
    with pytest.raises(ValueError, match="frozen"):
        recipe.run.seed = 3  # type: ignore[misc]


def test_an_options_limits_are_checked_before_a_run_starts() -> None:
    with pytest.raises(CommunityError) as caught:
        check_options(TransformerAgent, {"temperature": -1}, "members.ada", FILLED_IN)
    expected = "members.ada: temperature: input should be greater than or equal to 0 (not -1)"
    assert one_line(caught.value) == expected


def test_types_that_only_type_checkers_know() -> None:
    def part(rate: Unheard = 0.1) -> None:  # type: ignore[name-defined]  # noqa: F821
        del rate

    with pytest.raises(CommunityError, match=r"members.ada: .*'Unheard'.*TYPE_CHECKING"):
        check_options(part, {}, "members.ada")
