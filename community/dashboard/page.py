"""What all screens share: the lines above and below, loading beside the keyboard, the notices."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar, Generic, TypeVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import BindingType
from textual.containers import Container
from textual.events import Click, Resize, ScreenResume
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Footer, Static
from textual.worker import get_current_worker

from community.dashboard.course import Course, Curves, Pulse
from community.errors import CommunityError
from community.findings import duration
from community.ledger import Ledger
from community.words import clip, count, meter

PAGES = ("overview", "members", "network", "ideas", "lineage", "idea", "lessons")
"""The screens in the order of their keys, 1 to 7."""
LEAST = (74, 16)
"""Columns and lines that the screens need."""

Found = TypeVar("Found")
Answer = TypeVar("Answer")


class Host(App[None]):
    """The application, as far as its screens know it.

    `pulse` and `course` say how far the record goes (None: not known yet), `idea` is the id
    of the idea that the screens Idea and Lineage are about (empty: there is none).
    """

    ledger: Ledger
    run_name: str
    curves: Curves
    course: Course | None
    pulse: Pulse | None
    idea: str
    sought: str  # what the screen Ideas is to search for when it is shown next

    def find(self, text: str) -> None:
        """Search all ideas."""
        raise NotImplementedError

    def open_idea(self, id: str, page: str = "idea") -> None:
        """Look at an idea in one of the screens that are about one."""
        raise NotImplementedError


class Bar(Widget):
    """The run, how far it is, and the screens with their keys; a click opens one."""

    DEFAULT_CSS = """
    Bar {
        height: 2; dock: top; background: $panel;
    }
    """

    def __init__(self, page: str) -> None:
        super().__init__()
        self.page = page
        self.course: Course | None = None
        self.run = ""

    def tell(self, run: str, course: Course | None) -> None:
        """What to say in the first line."""
        self.run, self.course = run, course
        self.refresh()

    def render(self) -> Text:
        width = self.size.width
        line = Text(no_wrap=True)
        line.append(f" {clip(self.run, max(12, width // 3))} ", "bold reverse").append(" ")
        line.append_text(self._progress(width - line.cell_len))
        tabs = Text(no_wrap=True)
        for start, end, name in self._tabs():
            here = name == self.page
            label = f" {PAGES.index(name) + 1} {name.title()} "
            tabs.append(" " * (start - tabs.cell_len))
            tabs.append(label, style="bold reverse" if here else "")
            assert tabs.cell_len == end
        return line.append("\n").append_text(tabs)

    def _progress(self, width: int) -> Text:
        course = self.course
        if course is None:
            return Text("reading the ledger…", style="dim")
        played, of = course.pulse.round, course.planned
        parts = [f"round {played}/{of}" if of else f"round {played}"]
        if of:
            parts[0] += f" {meter(played / of, 10)}"
        parts.append(course.phase)
        if course.silent and course.quiet is not None:
            parts.append(f"quiet for {duration(course.quiet)}")
        elif course.left is not None:
            parts.append(f"about {duration(course.left)} left")
        else:
            parts.append(duration(course.seconds))
        return Text(clip(" · ".join(parts), width))

    def _tabs(self) -> list[tuple[int, int, str]]:
        """First cell, end and name of each tab."""
        found, at = [], 0
        for i, name in enumerate(PAGES):
            end = at + len(f" {i + 1} {name} ")
            found.append((at, end, name))
            at = end + 1 if self.size.width >= 100 else end
        return found

    def on_click(self, event: Click) -> None:
        for start, end, name in self._tabs():
            if event.y == 1 and start <= event.x < end:
                self.app.switch_mode(name)


class Small(Static):
    """Instead of a screen, in a terminal that has no room for it."""

    DEFAULT_CSS = """
    Small { display: none; width: 1fr; height: 1fr; content-align: center middle;
            text-align: center; }
    """


class Page(Screen[None], Generic[Found]):
    """A screen that shows what `load` finds in the ledger.

    `load` runs in a thread, so that no query keeps the keys waiting; `show` gets what it
    returned. Both are called again when the run has recorded something new, or when the
    idea looked at is another one and the screen is about that (`of_idea`).
    """

    app: Host
    AUTO_FOCUS = "Listing"
    name_of_page: ClassVar[str] = ""
    of_idea: ClassVar[bool] = False
    KEYS: ClassVar[list[tuple[str, str]]] = []  # what `?` says of this screen's own keys
    BINDINGS: ClassVar[list[BindingType]] = []
    DEFAULT_CSS = """
    Page #body { height: 1fr; }
    Page .box { border: round $frame; border-title-color: $text; padding: 0 1; }
    Page .box:focus { border: round $primary; }
    Page VerticalScroll { scrollbar-size-vertical: 1; }
    Page #notice { height: auto; max-height: 3; background: $warning-muted;
                   color: $text-warning; display: none; padding: 0 1; }
    Page.-small > * { display: none; }
    Page.-small > Small { display: block; }
    """

    def __init__(self) -> None:
        super().__init__()
        self._loaded: object = None

    def compose(self) -> ComposeResult:
        yield Bar(self.name_of_page)
        with Container(id="body"):
            yield from self.body()
        yield Static(id="notice", markup=False)
        yield Small(markup=False)
        yield Footer(show_command_palette=False)

    def body(self) -> ComposeResult:
        """The widgets between the bar and the footer."""
        raise NotImplementedError

    def load(self, ledger: Ledger) -> Found:
        """What the screen needs; called in a thread. May raise CommunityError."""
        raise NotImplementedError

    def show(self, found: Found) -> None:
        """Put it on the screen."""
        raise NotImplementedError

    # -- loading -------------------------------------------------------------------------

    def on_screen_resume(self, event: ScreenResume) -> None:
        self.tell()
        self.renew()

    def on_resize(self, event: Resize) -> None:
        width, height = event.size
        small = width < LEAST[0] or height < LEAST[1]
        self.set_class(small, "-small")
        self.set_class(width >= 110, "-wide")
        self.query_one(Small).update(
            f"This terminal has {width} columns and {height} lines.\nThe dashboard needs "
            f"{LEAST[0]} and {LEAST[1]}: make it larger.\n\nq quits"
        )

    def tell(self) -> None:
        """Show the run's course above."""
        self.query_one(Bar).tell(self.app.run_name, self.app.course)

    def renew(self) -> None:
        """Load again if there is something new to show."""
        state = (self.app.pulse, self.app.idea if self.of_idea else None)
        if self.app.pulse is not None and state != self._loaded and self.is_mounted:
            self._loaded = state
            self._load()

    def reload(self) -> None:
        """Load now; what is still loading is no longer wanted."""
        self._load()

    def _load(self) -> None:
        self.find_out("load", partial(self.load, self.app.ledger), self._show, self._failed)

    def find_out(
        self,
        group: str,
        question: Callable[[], Answer],
        then: Callable[[Answer], None],
        failed: Callable[[str], None] | None = None,
    ) -> None:
        """`then` gets the answer, which a thread looks for; of a group the latest question's alone.

        A CommunityError is a notice, or what `failed` makes of its sentence.
        """

        def look() -> None:
            worker = get_current_worker()
            tell: tuple[Callable[..., None], object]
            try:
                tell = then, question()
            except CommunityError as error:
                tell = failed or self.notice, str(error)
            if not worker.is_cancelled:
                self.call_later(*tell)

        self.run_worker(look, group=group, exclusive=True, thread=True)

    def _show(self, found: Found) -> None:
        self.notice("")
        self.show(found)

    def _failed(self, sentence: str) -> None:
        """Keep what is on the screen; the next change, or r, tries again."""
        self._loaded = None
        self.notice(sentence)

    def notice(self, sentence: str) -> None:
        """A sentence above the footer; none if empty."""
        line = self.query_one("#notice", Static)
        line.update(f"! {sentence}" if sentence else "")
        line.display = bool(sentence) and not self.has_class("-small")


def nothing_yet(course: Course | None) -> str:
    """What to say where a run has recorded nothing to show."""
    if course is None or course.pulse.learning < 0:
        return "Nothing is recorded yet. This screen fills as the run goes on."
    if not course.pulse.round:
        return f"No round yet: {count(course.members, 'member')} had first lessons."
    return "There is nothing of this kind in the ledger."
