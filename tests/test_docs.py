"""Every command and every block of code in README.md and docs/ is executed.

What becomes of a block follows from the word after its backticks:

- `sh`: its lines are run, one after the other;
- `python`: a script that runs; `sql`: a query of the ledger of `adders`;
- `toml`: part of a recipe, and valid;
- any of these with `title="name"`: a file of that name for what follows; where the repository
  has such a file, the block quotes it, and every line is there;
- `text`, or no word: something to look at.

A page's blocks run in order in a folder of its own. Some things are not what a reader gets:

- runs of shipped recipes and large benchmarks are cut short (`SHORT`), and runs are in one
  process where no cluster is named;
- a page that speaks of `adders` without playing it finds it played;
- `make run` is `community run adders`; `make` and `pip` themselves are not run, but what they
  are asked for must exist;
- nodes of Ray on this machine stand for a cluster;
- what opens a screen (`SCREENS`) is not run, but its words must be understood;
- `--push` has to fail for want of a hub, when the dataset is there.

A line of `SLOW`, and what follows it on its page, is left to `make slow`.
"""

from __future__ import annotations

import re
import shlex
import shutil
import sqlite3
import tomllib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from runpy import run_path
from typing import Any

import pytest
from command import Line
from ray.cluster_utils import Cluster
from typer.main import get_command

from community.cache import cache
from community.cli import app
from community.config import check_options, parse
from community.errors import CommunityError
from community.parts import FILLED_IN
from community.plugins import load
from community.scoring import score

ROOT = Path(__file__).parent.parent
PAGES = {page.stem: page for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
BLOCK = re.compile(r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```$', re.M | re.S)
LEAST: dict[str, Any] = {"arena": {"use": "arithmetic"}, "members": [{"use": "scripted"}]}

SHORT = {
    "adders": (
        "--no-baselines --rounds 3 --set tasks.train=40 --set tasks.levels=[1,1,2] "
        "--set tasks.validation=4 --set tasks.holdout=4 --set tasks.holdout_levels=[1,2] "
        "--set first.examples=400 --set first.levels=[1] --set first.steps=100 "
        "--set learning.steps=4 --set ranking.min_confidence=0 --set ranking.min_supporters=1"
    ),
    "crowd": "--rounds 1 --set tasks.train=4 --set tasks.holdout=2",
    "community.bench.ledger": "--ideas 20000",
}
SCREENS = ("community watch",)
SLOW = (
    "python finetune.py",
    "python -m community.bench",
    "python -m community.kernels.bench",
    "ray start",
)


@dataclass(frozen=True)
class Block:
    """A block of a page: the word after its backticks, its title, and where it is."""

    kind: str
    title: str
    text: str
    place: str

    def lines(self) -> list[list[str]]:
        """The words of each command. A backslash joins two lines; comments are left out."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = [
        Block(m[1], m[2] or "", m[3], f"{page.name}:{text.count(chr(10), 0, m.start()) + 1}")
        for m in BLOCK.finditer(text)
    ]
    assert 2 * len(found) == len(re.findall("^```", text, re.M)), f"{page.name} has an odd fence"
    return found


def is_slow(words: list[str]) -> bool:
    return " ".join(words).startswith(SLOW)


HAS_SLOW = [
    name for name, page in PAGES.items()
    if any(is_slow(words) for b in blocks(page) if b.kind == "sh" for words in b.lines())
]  # fmt: skip


@dataclass
class Reader:
    """Does what a page says, in a folder."""

    folder: Path
    cache: Path
    short: dict[str, str] = field(default_factory=lambda: SHORT)
    patient: bool = False  # does slow things, too
    cluster: Any = None

    def read(self, page: Path) -> None:
        for block in blocks(page):
            for step in self._steps(block):
                if not step():
                    return

    def _steps(self, block: Block) -> Iterator[Callable[[], bool]]:
        """What a block asks for; a step is False where reading ends."""
        if block.title:
            yield lambda: self._file(block)
        elif block.kind == "sh":
            for words in block.lines():
                yield lambda words=words: self._line(words, block.place)  # type: ignore[misc]
        elif block.kind == "python":
            yield lambda: self._script(block)
        elif block.kind == "toml":
            yield lambda: is_part_of_a_recipe(block, self.folder)
        elif block.kind == "sql":
            yield lambda: self._query(block)
        else:
            assert block.kind in ("", "text"), f"{block.place}: nobody runs {block.kind!r}"

    def _file(self, block: Block) -> bool:
        original = ROOT / block.title
        if original.is_file():
            there = {bare(line) for line in original.read_text(encoding="utf-8").splitlines()}
            assert not {bare(line) for line in block.text.splitlines()} - there, block.place
            return True
        target = self.folder / block.title
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(block.text, encoding="utf-8")
        return True

    def _script(self, block: Block) -> bool:
        name = f"{block.place.replace(':', '-')}.py"
        (self.folder / name).write_text(block.text, encoding="utf-8")
        return self._run(["python", name], block.place)

    def _query(self, block: Block) -> bool:
        with closing(sqlite3.connect(self.folder / "runs/adders/ledger.db")) as database:
            assert database.execute(block.text).fetchall(), f"{block.place} finds nothing"
        return True

    # -- lines of a shell ------------------------------------------------------------------

    def _line(self, words: list[str], place: str) -> bool:
        if is_slow(words) and not self.patient:
            return False
        if words[:2] == ["make", "run"]:
            words = ["community", "run", "adders", *made_with(words[2:])]
        match words[0]:
            case "make":
                assert re.search(f"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M), place
            case "pip":
                extras = re.findall(r"\w+", "".join(re.findall(r"\[(.+?)\]", " ".join(words))))
                assert extras and set(extras) <= known_extras(), place
            case "ray":
                self._ray(words)
            case "community" if " ".join(words[:2]) in SCREENS:
                assert has_options(words), f"{place}: {shlex.join(words)}"
            case "community" | "python":
                return self._run(self._here(words), place)
            case _:
                pytest.fail(f"{place}: nobody runs {words[0]!r}")
        return True

    def _run(self, words: list[str], place: str) -> bool:
        kept = {"COMMUNITY_CACHE": self.cache, "HF_DATASETS_CACHE": self.cache / "datasets"}
        done = Line(self.folder, words, **{k: str(v) for k, v in kept.items()}).wait()
        assert done is not None
        said = f"{place}: {shlex.join(words)}\n{done.out}\n{done.err}"
        if "--push" in words:
            assert done.code == 2 and "cannot push to" in done.err, said
            assert (self.folder / words[words.index("--to") + 1] / "README.md").is_file(), said
        else:
            assert done.code == 0, said
        return True

    def _here(self, words: list[str]) -> list[str]:
        """The same line, cut short, and with this machine for a cluster."""
        if words[1] in ("run", "study", "-m") and words[2] in self.short:
            words = words + shlex.split(self.short[words[2]])
        if "--ray-address" in words:
            return [self.cluster.address if w.startswith("$HEAD:") else w for w in words]
        alone = words[1] in ("run", "study", "resume") and "--pool" not in words
        return [*words, "--pool", "local"] if alone else words

    def _ray(self, words: list[str]) -> None:
        if words[1] == "stop":
            self.close()
        elif "--head" in words:
            self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
        else:
            assert words[2] == "--address=$HEAD:6379", words
            self.cluster.add_node(num_cpus=2)

    def close(self) -> None:
        if self.cluster is not None:
            self.cluster.shutdown()
            self.cluster = None


def bare(line: str) -> str:
    """A line of code without its comment and where it stands."""
    return line.partition("  #")[0].strip()


def made_with(arguments: list[str]) -> list[str]:
    """What `make run ARGS="…"` passes on."""
    rule = "community run adders $(ARGS)"
    assert rule in (ROOT / "Makefile").read_text(), "`make run` does something else by now"
    return shlex.split("".join(arguments).removeprefix("ARGS="))


def has_options(words: list[str]) -> bool:
    """Whether there is such a command, with the options that are named."""
    commands: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
    if words[1] not in commands:
        return False
    known = {option for parameter in commands[words[1]].params for option in parameter.opts}
    return {word for word in words if word.startswith("-")} <= known


def known_extras() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return set(project["optional-dependencies"])


def is_part_of_a_recipe(block: Block, folder: Path) -> bool:
    """Checks it as the engine would, down to the options of its parts."""
    recipe = parse(LEAST | tomllib.loads(block.text), block.place)
    check_options(load("arena", recipe.arena.use, folder), recipe.arena.options, block.place)
    for name, table in recipe.roster():
        make = load("agent", table.use, folder)
        check_options(make, table.options, f"{block.place} {name}", FILLED_IN)
    return True


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache for all pages, where first lessons are kept; kernels stay where they are built."""
    builds, folder = cache() / "kernels", tmp_path_factory.mktemp("shelf")
    builds.mkdir(parents=True, exist_ok=True)
    (folder / "kernels").symlink_to(builds.resolve())
    return folder


@pytest.fixture(scope="module")
def adders(shelf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run of the adders."""
    reader = Reader(tmp_path_factory.mktemp("adders"), shelf)
    reader._line(["community", "run", "adders"], "the adders, played")
    return reader.folder / "runs" / "adders"


@pytest.fixture
def reader(tmp_path: Path, shelf: Path) -> Iterator[Reader]:
    folder = tmp_path / "page"
    folder.mkdir()
    reader = Reader(folder, shelf)
    yield reader
    reader.close()


def prepare(reader: Reader, page: Path, adders: Path) -> None:
    text = page.read_text(encoding="utf-8")
    if "adders" in text and not re.search("^(community run adders|make run)", text, re.M):
        shutil.copytree(adders, reader.folder / "runs" / "adders")


@pytest.mark.parametrize("name", PAGES)
def test_a_page_does_what_it_says(name: str, reader: Reader, adders: Path) -> None:
    if name == "datasets":
        pytest.importorskip("pyarrow", reason="the extra export is not installed")
    prepare(reader, PAGES[name], adders)
    reader.read(PAGES[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in HAS_SLOW if name != "tutorial"])
def test_a_page_does_what_it_says_to_its_end(name: str, reader: Reader, adders: Path) -> None:
    prepare(reader, PAGES[name], adders)
    reader.patient = True
    reader.read(PAGES[name])


@pytest.mark.parametrize(
    "page",
    [
        "```sh\ncommunity show nothing\n```\n",
        "```sh\ncommunity watch adders --no-such-option\n```\n",
        '```sh\npip install ".[no-such-extra]"\n```\n',
        "```sh\nmake nothing\n```\n",
        "```sh\nrm -r elsewhere\n```\n",
        "```python\nassert False\n```\n",
        '```python title="community/round.py"\nthe_round_is_played()\n```\n',
        "```toml\n[run]\nruonds = 3\n```\n",
        '```toml\n[[members]]\nuse = "scripted"\neror = 0.1\n```\n',
        "```klingon\n```\n",
        "```sh\n",
    ],
)
def test_a_page_that_is_wrong_is_found_out(page: str, reader: Reader, tmp_path: Path) -> None:
    (tmp_path / "wrong.md").write_text(page)
    with pytest.raises((AssertionError, CommunityError, pytest.fail.Exception)):
        reader.read(tmp_path / "wrong.md")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("trl") is None, reason="TRL is not installed")
def test_the_tutorials_model_beats_its_start(reader: Reader) -> None:
    """As the tutorial has it, with two rounds of the adders in place of twelve."""
    levels = "--set tasks.holdout_levels=[4,5] --set tasks.holdout=40"
    reader.short = {"adders": f"--rounds 2 --set tasks.train=400 {levels}"}
    reader.patient = True
    reader.read(PAGES["tutorial"])
    found = score(reader.folder / "runs" / "adders", "carl", [reader.folder / "tuned"])
    start, tuned = found["start"], found[str(reader.folder / "tuned")]
    assert sum(s.right for s in tuned) > sum(s.right for s in start)
    assert tuned[1].right / tuned[1].total > 0.5  # five digits, which the start knows nothing of
    assert start[1].right / start[1].total < 0.1


def test_the_reference_is_that_of_the_code() -> None:
    pages = run_path(str(ROOT / "docs" / "reference.py"))["PAGES"]
    for name, page in pages.items():
        written = (ROOT / "docs" / name).read_text(encoding="utf-8")
        assert page() == written, f"docs/{name} is out of date: run `python docs/reference.py`"


def test_commands_and_links_in_the_text_are_there() -> None:
    known = {c.name or c.callback.__name__ for c in app.registered_commands}  # type: ignore[union-attr]
    for page in PAGES.values():
        text = BLOCK.sub("", page.read_text(encoding="utf-8"))
        for named in re.findall(r"`community (\w+)", text):
            assert named in known, f"{page.name}: community {named}"
        for link in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", text):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
