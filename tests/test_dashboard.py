"""The dashboard's screens, driven by keys over the ledger of a real run."""

from __future__ import annotations

import asyncio
import re
import runpy
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

pytest.importorskip("textual")

from sqlalchemy import text
from textual.pilot import Pilot
from textual.widgets import Input
from watching import play_talk, press, same_picture, text_of, type_in, watching

from community.dashboard.app import Watch, settled
from community.dashboard.graph import Graph
from community.dashboard.kin import latest_idea
from community.dashboard.lineage import KinTree
from community.dashboard.listing import Listing
from community.dashboard.page import PAGES
from community.errors import CommunityError
from community.ledger import Ledger

SIZES = {"80x24": (80, 24), "140x40": (140, 40)}


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ledger of a run of scripted members that talk."""
    return play_talk(tmp_path_factory.mktemp("talk")) / "ledger.db"


@pytest.mark.parametrize("size", SIZES)
def test_every_screen_is_as_it_was_looked_at(talk: Path, size: str) -> None:
    async def session(app: Watch, pilot: Pilot[Any]) -> None:
        for number, page in enumerate(PAGES, 1):
            same_picture(f"{page}-{size}", await press(app, pilot, str(number)))

    watching(talk, session, SIZES[size])


def test_help_names_the_keys_of_the_screen_and_goes_away(talk: Path) -> None:
    async def session(app: Watch, pilot: Pilot[Any]) -> None:
        before = await press(app, pilot, "4")
        shown = await press(app, pilot, "question_mark")
        same_picture("help-80x24", shown)
        assert await press(app, pilot, "escape") == before

    watching(talk, session)


def test_the_palette_goes_to_a_screen_by_name(talk: Path) -> None:
    async def session(app: Watch, pilot: Pilot[Any]) -> None:
        await press(app, pilot, "ctrl+p", *"lessons")
        await pilot.pause(0.5)  # the palette searches beside the keyboard
        await press(app, pilot, "enter")
        assert app.current_mode == "lessons"

    watching(talk, session)


def test_screens_lie_beside_each_other(talk: Path) -> None:
    async def session(app: Watch, pilot: Pilot[Any]) -> None:
        seen = []
        for _ in PAGES:
            seen.append(app.current_mode)
            await press(app, pilot, "right")
        assert tuple(seen) == PAGES and app.current_mode == PAGES[0]
        await press(app, pilot, "left")
        assert app.current_mode == PAGES[-1]

    watching(talk, session)


def test_the_mouse_opens_screens_rows_and_orders(talk: Path) -> None:
    async def session(app: Watch, pilot: Pilot[Any]) -> None:
        tabs = text_of(app).splitlines()[1]
        await pilot.click(offset=(tabs.index("Ideas"), 1))
        await settled(app, pilot)
        assert app.current_mode == "ideas"
        head = text_of(app).splitlines()[4]
        await pilot.click(offset=(head.index("author"), 4))
        await settled(app, pilot)
        assert "by author ▼" in text_of(app)
        listing = app.screen.query_one("#found", Listing)
        wanted = listing.row(3).id
        await pilot.click(offset=(20, 8))
        await pilot.click(offset=(20, 8))
        await settled(app, pilot)
        assert (app.current_mode, app.idea) == ("idea", wanted)

    watching(talk, session)


def test_dark_and_light_say_the_same(talk: Path) -> None:
    async def session(app: Watch, pilot: Pilot[Any]) -> None:
        dark = app.current_theme.dark
        before = text_of(app)
        assert await press(app, pilot, "d") == before
        assert app.current_theme.dark != dark

    watching(talk, session)


def test_a_theme_of_textual_will_do(talk: Path) -> None:
    async def session(app: Watch, pilot: Pilot[Any]) -> None:
        app.theme = "textual-light"
        for key in "1234567":
            assert PAGES[int(key) - 1].title() in await press(app, pilot, key)

    watching(talk, session)


def test_the_pictures_of_the_readme_are_made_of_a_run(
    talk: Path, tmp_path: Path, root: Path
) -> None:
    screens = runpy.run_path(str(root / "docs" / "screens.py"))
    asyncio.run(screens["pictures"](talk.parent, tmp_path))
    made = {path.name: path for path in tmp_path.iterdir()}
    assert made.keys() == {f"watch-{page}.svg" for page in screens["SCREENS"]}
    assert made.keys() <= {path.name for path in (root / "docs").iterdir()}
    for path in made.values():
        words = "".join(ElementTree.parse(path).getroot().itertext())
        assert "community watch talk" in words.replace("\xa0", " ")


# -- Overview ------------------------------------------------------------------------------


def test_the_overview_says_what_the_ledger_says(talk: Path) -> None:
    async def session(app: Watch, pilot: Pilot[Any]) -> None:
        shown = text_of(app)
        with Ledger.open(talk, read_only=True) as ledger:
            ideas = sum(r.ideas for r in ledger.rounds())
            scores = [s for s in ledger.scores() if s.solver == "community" and s.round == 4]
        exact = sum(s.right for s in scores) / sum(s.total for s in scores)
        assert "4 of 4" in shown and "finished" in shown and f"{ideas:,} ideas" in shown
        assert f"all {exact:.2f}" in shown if exact == 1 else f"all {exact:.3f}"[1:] in shown

    watching(talk, session)


# -- Members -------------------------------------------------------------------------------


def test_members_stand_in_order_and_are_told_of_one_by_one(talk: Path) -> None:
    async def session(app: Watch, pilot: Pilot[Any]) -> None:
        shown = await press(app, pilot, "2")
        listing = app.screen.query_one("#members", Listing)
        strengths = [listing.row(i).strength.mean for i in range(4)]
        assert strengths == sorted(strengths, reverse=True)
        for i in range(4):
            name = listing.row(i).name
            assert f" {name} " in shown.split("╭")[1]
            shown = await press(app, pilot, "down")
        assert "✓ kept" in text_of(app)

    watching(talk, session)


def test_domains_are_shown_as_they_are_called(talk: Path, tmp_path: Path) -> None:
    place = tmp_path / "ledger.db"
    shutil.copy(talk, place)
    with closing(sqlite3.connect(place)) as conn, conn:
        for table in ("tasks", "scores"):
            conn.execute(f"UPDATE {table} SET domain = '[/b]:x:' WHERE domain = 'addition'")
            conn.execute(f"UPDATE {table} SET domain = 'list[int]' WHERE domain <> '[/b]:x:'")

    async def session(app: Watch, pilot: Pilot[Any]) -> None:
        shown = await press(app, pilot, "2")
        assert "[/b]:x:" in shown and "list[int]" in shown
        assert re.search(r"task .*(\[/b\]:x:|list\[int\]), level", await press(app, pilot, "6"))

    watching(place, session, SIZES["140x40"])


# -- Network -------------------------------------------------------------------------------


def test_rounds_have_their_own_network(talk: Path) -> None:
    async def session(app: Watch, pilot: Pilot[Any]) -> None:
        assert "round 4 of 4 · star" in await press(app, pilot, "3")
        assert "round 3 of 4 · star" in await press(app, pilot, "left_square_bracket")
        assert "round 2 of 4 · ring" in await press(app, pilot, "left_square_bracket")
        assert "round 3 of 4 · star" in await press(app, pilot, "right_square_bracket")

    watching(talk, session)


def test_lessons_flow_too_and_ideas_move_until_paused(talk: Path) -> None:
    async def session(app: Watch, pilot: Pilot[Any]) -> None:
        assert "ideas read by others" in await press(app, pilot, "3")
        assert "ideas taught" in await press(app, pilot, "f")
        graph = app.screen.query_one(Graph)
        before = graph.step
        while graph.step == before:  # it moves by itself
            await pilot.pause(0.05)
        await press(app, pilot, "space")
        graph.step = 5
        await pilot.pause(0.6)
        assert graph.step == 5

    watching(talk, session)


def test_the_chosen_edge_stands_out(talk: Path) -> None:
    async def session(app: Watch, pilot: Pilot[Any]) -> None:
        await press(app, pilot, "3", "down", "down")
        graph, listing = app.screen.query_one(Graph), app.screen.query_one("#edges", Listing)
        assert graph.chosen == listing.row(2) and graph.chosen.ideas > 0

    watching(talk, session)


# -- Ideas ---------------------------------------------------------------------------------


def test_ideas_are_found_sorted_and_opened(talk: Path) -> None:
    async def session(app: Watch, pilot: Pilot[Any]) -> None:
        await press(app, pilot, "4", "slash")
        shown = await type_in(app, pilot, "author:emmy round:2-3")
        rows = [line.split() for line in shown.splitlines()[5:-1]]
        assert {row[1] for row in rows} == {"emmy"} and {row[0] for row in rows} == {"3"}
        listing = app.screen.query_one("#found", Listing)
        assert f"{listing.total} ideas · by round ▼" in shown
        assert "by strength ▼" in await press(app, pilot, "s")
        await press(app, pilot, "o", "end")
        strongest = listing.current
        assert strongest.strength == max(listing.row(i).strength for i in range(listing.total))
        shown = await press(app, pilot, "enter")
        assert app.current_mode == "idea" and strongest.id[:10] in shown
        assert "by strength ▲" in await press(app, pilot, "escape")

    watching(talk, session)


def test_a_search_that_makes_no_sense_is_told_so(talk: Path) -> None:
    async def session(app: Watch, pilot: Pilot[Any]) -> None:
        await press(app, pilot, "4", "slash")
        assert "rounds are given as" in await type_in(app, pilot, "round:x")
        app.screen.query_one("#query", Input).value = ""
        await press(app, pilot, "slash")
        shown = await type_in(app, pilot, "nosuchword")
        assert "No idea matches." in shown and "0 ideas" in shown and "rounds are" not in shown

    watching(talk, session)


def test_from_the_search_box_to_the_list_and_out(talk: Path) -> None:
    async def session(app: Watch, pilot: Pilot[Any]) -> None:
        app.open_idea(app.idea, "ideas")
        for key in ("escape", "down"):
            await press(app, pilot, "slash")
            assert app.screen.query_one("#query", Input).has_focus
            await press(app, pilot, key)
            assert app.screen.query_one("#found", Listing).has_focus
        assert app.current_mode == "ideas" and app.screen.query_one(Listing).cursor == 0
        await press(app, pilot, "escape")
        assert app.current_mode == "overview"

    watching(talk, session)


def test_failed_ideas_say_so_in_words(talk: Path) -> None:
    async def session(app: Watch, pilot: Pilot[Any]) -> None:
        await press(app, pilot, "4", "slash")
        await type_in(app, pilot, "author:carl")
        listing = app.screen.query_one("#found", Listing)
        at = next(i for i in range(listing.total) if listing.row(i).failure)
        assert "✗ failed" in await press(app, pilot, *["down"] * at)
        assert "✗ failed" in await press(app, pilot, "enter")

    watching(talk, session)


# -- Lineage and Idea ----------------------------------------------------------------------


def test_jumping_along_a_lineage_and_back(talk: Path) -> None:
    async def session(app: Watch, pilot: Pilot[Any]) -> None:
        await press(app, pilot, "5")
        start = app.idea
        with Ledger.open(talk, read_only=True) as ledger:
            assert start == latest_idea(ledger)
            parents = ledger.idea(start).parents
        await press(app, pilot, "down", "down")
        tree = app.screen.query_one(KinTree)
        assert tree.cursor_node is not None and tree.cursor_node.data is not None
        assert tree.cursor_node.data.item.id == parents[0]
        assert "what changed, and why" in text_of(app)
        shown = await press(app, pilot, "enter")
        assert app.idea == parents[0] and f"{parents[0][:10]} and the ideas it read" in shown
        assert parents[0][:10] in await press(app, pilot, "i")
        assert app.current_mode == "idea"
        await press(app, pilot, "escape", "escape")
        assert (app.current_mode, app.idea) == ("lineage", start)

    watching(talk, session)


def test_branches_open_to_any_depth(talk: Path) -> None:
    """From an idea to its author's checkpoint, to a lesson, to the idea that it was made of."""

    async def session(app: Watch, pilot: Pilot[Any]) -> None:
        await press(app, pilot, "5")
        tree = app.screen.query_one(KinTree)
        seen = []
        node = tree.root.children[0]
        for kind in ("checkpoint", "lesson", "idea"):
            node = next(n for n in node.children if kind in _kind(n.data.item))  # type: ignore[union-attr]
            seen.append(node)
            tree.move_cursor(node)
            await settled(app, pilot)
            await press(app, pilot, "space")
            assert node.is_expanded and node.children
        shown = text_of(app)
        assert all(str(n.data.item.id)[:6] in shown for n in seen)  # type: ignore[union-attr]

    watching(talk, session, (140, 60))


def _kind(item: object) -> str:
    return {"Made": "checkpoint", "Taught": "lesson", "Kin": "idea"}[type(item).__name__]


def test_the_path_to_the_best_is_marked_and_taken(talk: Path) -> None:
    with Ledger.open(talk, read_only=True) as ledger:
        round = ledger.round(1)
    best = {e.task: e.idea for e in round.ranking.entries if e.place == 1}
    loser = next(i for i in round.ideas if i.turn == 0 and i.id != best[i.task])

    async def session(app: Watch, pilot: Pilot[Any]) -> None:
        app.open_idea(loser.id, "lineage")
        await settled(app, pilot)
        shown = text_of(app)
        assert "★ path to the best" in shown or "no reading joins" in shown
        shown = await press(app, pilot, "b")
        assert app.idea == best[loser.task] and "★ This is the best idea" in shown

    watching(talk, session, (140, 40))


def test_an_idea_shows_every_verdict_and_leads_to_its_rivals(talk: Path) -> None:
    with Ledger.open(talk, read_only=True) as ledger:
        round = ledger.round(2)
    verdict = next(v for v in round.verdicts if v.other)

    async def session(app: Watch, pilot: Pilot[Any]) -> None:
        app.open_idea(verdict.idea)
        await settled(app, pilot)
        listing = app.screen.query_one("#said", Listing)
        rows = [listing.row(i) for i in range(listing.total)]
        assert {r.judge for r in rows if r.kind == "verdict"} >= {"world", verdict.judge}
        assert {r.judge for r in rows if r.kind == "vote"} <= {"ada", "blaise", "carl", "emmy"}
        at = next(i for i, r in enumerate(rows) if r.rival)
        await press(app, pilot, "home", *["down"] * at, "enter")
        assert app.idea == rows[at].rival

    watching(talk, session)


def test_places_of_a_task_one_after_the_other(talk: Path) -> None:
    async def session(app: Watch, pilot: Pilot[Any]) -> None:
        places = []
        await press(app, pilot, "6", "left_square_bracket", "left_square_bracket")
        for _ in range(3):
            found = re.search(r"place +(\d+),", text_of(app))
            assert found
            places.append(int(found[1]))
            await press(app, pilot, "right_square_bracket")
        assert places == [places[0], places[0] + 1, places[0] + 2]

    watching(talk, session)


# -- Lessons -------------------------------------------------------------------------------


def test_lessons_are_filtered_and_lead_to_their_ideas(talk: Path) -> None:
    async def session(app: Watch, pilot: Pilot[Any]) -> None:
        shown = await press(app, pilot, "7")
        assert "learner ╲ from" in shown
        await press(app, pilot, "slash")
        await type_in(app, pilot, "learner:carl author:ada")
        listing = app.screen.query_one("#found", Listing)
        with Ledger.open(talk, read_only=True) as ledger:
            mine = ledger.lessons("carl")
            wanted = [x for x in mine if ledger.idea(x.idea).author == "ada"]
        assert listing.total == len(wanted) > 0
        assert {listing.row(i).learner for i in range(listing.total)} == {"carl"}
        assert listing.row(0).id == wanted[-1].id
        await press(app, pilot, "l")
        assert (app.current_mode, app.idea) == ("lineage", wanted[-1].idea)

    watching(talk, session)


def test_from_a_member_to_its_ideas_and_back(talk: Path) -> None:
    async def session(app: Watch, pilot: Pilot[Any]) -> None:
        await press(app, pilot, "2", "down", "enter")
        listing = app.screen.query_one("#found", Listing)
        authors = {listing.row(i).author for i in range(min(90, listing.total))}
        assert app.current_mode == "ideas" and len(authors) == 1
        assert f"author:{authors.pop()}" in text_of(app)
        await press(app, pilot, "escape")
        assert app.current_mode == "members"

    watching(talk, session)


def test_an_idea_is_opened_by_its_id(talk: Path) -> None:
    with Ledger.open(talk, read_only=True) as ledger:
        wanted = ledger.round(1).ideas[7].id

    async def session(app: Watch, pilot: Pilot[Any]) -> None:
        await press(app, pilot, "4", "slash")
        assert "no idea has an id that starts with 'zz'" in await type_in(app, pilot, "id:zz")
        app.screen.query_one("#query", Input).value = ""
        await press(app, pilot, "slash")
        assert wanted[:10] in await type_in(app, pilot, f"id:{wanted[:9]}")
        assert (app.current_mode, app.idea) == ("idea", wanted)

    watching(talk, session)


def test_quitting_does_not_wait_for_a_query(talk: Path) -> None:
    """This one never ends by itself."""
    forever = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    ended: list[str] = []

    def ask(app: Watch) -> None:
        try:
            with app.ledger.reading() as conn:
                conn.execute(text(forever))
        except CommunityError as error:
            ended.append(str(error))

    async def session(app: Watch, pilot: Pilot[Any]) -> None:
        app.run_worker(lambda: ask(app), thread=True)
        await pilot.pause(0.2)
        await pilot.press("q")

    watching(talk, session)
    assert len(ended) == 1 and "was interrupted" in ended[0]
