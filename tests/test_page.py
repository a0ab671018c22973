"""The HTML page holds all of a run, needs nothing else, and does no harm whatever members said."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from command import community
from small_rounds import MEMBERS, META, make_task
from talk import play_evil

from community.errors import CommunityError
from community.figures import figures
from community.ledger import Ledger
from community.page import html, write
from community.plots import CAPTIONS
from community.report import tables
from community.types import Idea, Ranked, Ranking, Round


class Page(HTMLParser):
    """What a browser sees: tags with their attributes, ids, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br", "link", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, "a tag that was never opened, or not yet closed"

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def of(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


@pytest.fixture(scope="module")
def source(talked: Path) -> str:
    return html(talked)


@pytest.fixture(scope="module")
def page(source: str) -> Page:
    found = Page(source)
    assert not found.open, "tags that are never closed"
    return found


def test_the_page_holds_the_whole_run(page: Page, talked: Path) -> None:
    facts = figures(talked)
    assert " ".join(facts["what_happened"]) in page.text and facts["world_says"] in page.text
    for table in tables(facts):
        assert table.title in page.text
        for row in table.rows:
            assert all(cell in page.texts for cell in row)
    assert len(page.of("svg")) == len(CAPTIONS)
    assert all(caption in page.text for caption in CAPTIONS.values())
    for name, version in facts["versions"].items():
        assert f"{name} {version}" in page.text
    recipe = " ".join((talked / "recipe.toml").read_text().split())
    assert recipe in page.text and "voted for by" in page.text  # the lineage of the best ideas


def test_the_best_are_the_surest_winners_of_the_hardest_tasks(page: Page) -> None:
    best = re.findall(r"Idea (\w{10}) by (\w+) in round (\d), .*? confidence ([\d.]+), ", page.text)
    assert len(best) == 5 and len({idea for idea, *_ in best}) == 5
    sure = [float(confidence) for *_, confidence in best]
    assert sure == sorted(sure, reverse=True) and sure[0] == 1.0
    assert {n for _, _, n, _ in best} <= {"2", "3"}  # levels are 1, 2 and 2


def test_nothing_is_loaded_from_anywhere(page: Page, source: str) -> None:
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "action", "style"):
            value = attributes.get(name) or ""
            assert not re.search(r"//|@import|javascript:", value.replace("data:", "")), value[:80]
        assert not [name for name in attributes if name.startswith("on")]
    styles = re.findall(r"<style.*?</style>", source, re.S)
    assert styles and not [text for text in styles if "//" in text or "@import" in text]
    (policy,) = [m["content"] for m in page.of("meta") if m.get("http-equiv")]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_plots_do_not_share_ids_and_follow_light_and_dark(page: Page, source: str) -> None:
    ids = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    own = [id for id in ids if "DejaVuSans" not in str(id)]
    assert len(own) == len(set(own))
    wanted = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', source)
    assert wanted and {a or b for a, b in wanted} <= set(ids)
    assert "@media (prefers-color-scheme: dark)" in source
    drawn = source[source.index("<svg") :]
    assert "var(--ink)" in drawn and "#222222" not in drawn and "#ffffff" not in drawn


def test_what_members_say_is_only_text(tmp_path: Path) -> None:
    source = html(play_evil(tmp_path))
    page = Page(source)
    assert "<script>alert('$x^{')</script> & " in page.text
    assert not page.of("script") and "<script" not in source
    assert "\x00" not in source and "\x1b" not in source
    assert not page.open


def test_where_nobody_answered_no_idea_is_the_best(tmp_path: Path) -> None:
    task = make_task(1, 0)
    idea = Idea(task.id, "ann", "c", 1, 0, 0, "well")
    entry = Ranked(task.id, idea.id, 1, 0.0, 0.0, 0.0, 0, -1, 0.0, 0)
    ranking = Ranking("bradley-terry", (entry,), {})
    members = "".join(f'[[members]]\nname = "{name}"\nuse = "scripted"\n' for name, _ in MEMBERS)
    (tmp_path / "recipe.toml").write_text(f'[arena]\nuse = "arithmetic"\n{members}')
    with Ledger.create(tmp_path / "ledger.db", META | {"base": "."}, MEMBERS) as ledger:
        ledger.record(Round(1, (task,), (idea,), (), ranking, ()))
    source = html(tmp_path)
    assert "<article>" not in source and "No task has an answer yet." in source


def test_the_same_run_gives_the_same_page_in_any_process(
    source: str, talked: Path, tmp_path: Path
) -> None:
    to = tmp_path / "new" / "page.html"
    assert community(tmp_path, "report", str(talked), "--to", str(to)).code == 0
    assert to.read_text() == source


def test_a_file_is_replaced_only_if_asked_to(talked: Path, tmp_path: Path) -> None:
    to = tmp_path / "page.html"
    to.write_text("mine")
    with pytest.raises(CommunityError, match=r"page\.html is there already"):
        write(talked, to)
    assert to.read_text() == "mine"
    with pytest.raises(CommunityError, match="/dev/null is no file"):
        write(talked, Path("/dev/null"), again=True)
    with pytest.raises(CommunityError, match="is a folder"):
        write(talked, tmp_path, again=True)
    write(talked, to, again=True)
    assert to.read_text().startswith("<!doctype html>")


def test_it_is_in_the_runs_folder_if_no_file_is_named(copied: Path, tmp_path: Path) -> None:
    for _ in range(2):  # again after more rounds is the usual thing to do
        done = community(tmp_path, "report", "talk")
        assert done.code == 0 and str(copied / "report.html") in done.out
    assert (copied / "report.html").is_file()
