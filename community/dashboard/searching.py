"""What Ideas and Lessons share: a line to type into, what it found, and a list that stays put."""

from __future__ import annotations

from typing import ClassVar, TypeVar

from textual import on
from textual.actions import SkipAction
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.timer import Timer
from textual.widgets import Input, Static

from community.dashboard.listing import Column, Listing
from community.dashboard.page import Page
from community.errors import CommunityError

PAUSE = 0.25
"""Seconds without a key before what was typed is searched for."""

Found = TypeVar("Found")


class Searching(Page[Found]):
    """A screen with a search box over a list of what it finds.

    The list stays as it is while somebody is looking around in it, whatever the run records
    meanwhile; `r` loads what is new.
    """

    EXAMPLE: ClassVar[str] = ""
    COLUMNS: ClassVar[tuple[Column, ...]] = ()
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "search", "Search", key_display="/"),
        Binding("l", "lineage", "Lineage"),
        Binding("escape,down", "leave", "To the list", show=False),
    ]
    DEFAULT_CSS = """
    Searching #query { height: 1; border: none; padding: 0 1; background: $surface; }
    Searching #query:focus { background: $panel; }
    Searching #count { height: 1; padding: 0 1; color: $text-muted; }
    """

    def __init__(self) -> None:
        super().__init__()
        self._typed: Timer | None = None

    def body(self) -> ComposeResult:
        yield Input(placeholder=f"/ {self.EXAMPLE}", id="query", compact=True)
        yield Static(id="count", markup=False)
        yield Listing(self.COLUMNS, id="found")

    def understand(self, typed: str) -> object:
        """What is typed as something to look for. CommunityError where it makes no sense."""
        raise NotImplementedError

    def wanted(self) -> object:
        """What is looked for now."""
        raise NotImplementedError

    def seek(self, wanted: object) -> None:
        """Look for something else."""
        raise NotImplementedError

    def idea_of(self, row: object) -> str:
        """The id of the idea that a row is about."""
        raise NotImplementedError

    @property
    def box(self) -> Input:
        return self.query_one("#query", Input)

    @property
    def listing(self) -> Listing:
        return self.query_one("#found", Listing)

    def say(self, text: str) -> None:
        """Above the list."""
        self.query_one("#count", Static).update(text)

    def in_use(self) -> bool:
        """Whether somebody is looking around in a list that is to stay; says what r does."""
        listing = self.listing
        busy = listing.cursor > 0 and listing.tag == self.wanted()
        if busy:
            self.say("the run went on; r loads what is new")
        return busy

    def reload(self) -> None:
        self.listing.cursor = 0
        super().reload()

    # -- typing ----------------------------------------------------------------------------

    @on(Input.Changed, "#query")
    def _changed(self, event: Input.Changed) -> None:
        self._stop()
        self._typed = self.set_timer(PAUSE, self.ask)

    @on(Input.Submitted, "#query")
    def _submitted(self, event: Input.Submitted) -> None:
        self._stop()
        self.ask()
        self.listing.focus()

    def _stop(self) -> None:
        if self._typed is not None:
            self._typed.stop()

    def ask(self) -> None:
        """Look for what is typed, if it can be understood and is not what is shown."""
        try:
            wanted = self.understand(self.box.value)
        except CommunityError as error:
            self.notice(str(error))
            return
        self.notice("")
        if wanted != self.wanted():
            self.seek(wanted)

    # -- the list --------------------------------------------------------------------------

    @on(Listing.Failed)
    def _unfetched(self, event: Listing.Failed) -> None:
        self.notice(event.sentence)

    @on(Listing.Chosen, "#found")
    def _chosen(self, event: Listing.Chosen) -> None:
        self.app.open_idea(self.idea_of(event.row))

    def action_leave(self) -> None:
        """From the box to the list; elsewhere the keys do what they do."""
        if not self.box.has_focus:
            raise SkipAction
        self.listing.focus()

    def action_search(self) -> None:
        self.box.focus()

    def action_lineage(self) -> None:
        row = self.listing.current
        if row is not None:
            self.app.open_idea(self.idea_of(row), "lineage")
