"""The dashboard as an application: seven screens over one ledger that is only read."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from textual import work
from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.pilot import Pilot
from textual.screen import Screen
from textual.theme import Theme

from community.dashboard.course import Course, Curves, tick
from community.dashboard.help import Help
from community.dashboard.idea import IdeaPage
from community.dashboard.ideas import IdeasPage
from community.dashboard.kin import latest_idea
from community.dashboard.lessons import LessonsPage
from community.dashboard.lineage import LineagePage
from community.dashboard.members import MembersPage
from community.dashboard.network import NetworkPage
from community.dashboard.overview import OverviewPage
from community.dashboard.page import PAGES, Host, Page
from community.dashboard.queries import Queries
from community.errors import CommunityError
from community.extras import extra
from community.ledger import Ledger

EVERY = 1.0
"""Seconds between two looks at the ledger."""

# The colours of Okabe and Ito, which the colour-blind tell apart, as in the report's plots.
DARK = Theme(
    name="community-dark",
    primary="#56B4E9",
    secondary="#CC79A7",
    accent="#E69F00",
    success="#2FBF91",
    warning="#F0E442",
    error="#E8743B",
    background="#12161C",
    surface="#181D25",
    panel="#222A35",
    foreground="#DCE3EA",
    dark=True,
)
LIGHT = Theme(
    name="community-light",
    primary="#0072B2",
    secondary="#A34F80",
    accent="#B35900",
    success="#00734F",
    warning="#7A5C00",
    error="#B33A00",
    background="#FAFAF7",
    surface="#F1F2EE",
    panel="#E2E5E0",
    foreground="#1B232B",
    dark=False,
)


async def settled(app: App[Any], pilot: Pilot[Any]) -> None:
    """Wait until nothing is being loaded and everything is drawn; for programs at the keys."""
    quiet = 0
    while quiet < 3:
        await pilot.pause(0.01)
        quiet = 0 if any(worker.is_running for worker in app.workers) else quiet + 1


class Watch(Host):
    """Watch a run, while it writes its ledger or afterwards; looks every so many seconds."""

    MODES: ClassVar[dict[str, Any]] = {
        "overview": OverviewPage,
        "members": MembersPage,
        "network": NetworkPage,
        "ideas": IdeasPage,
        "lineage": LineagePage,
        "idea": IdeaPage,
        "lessons": LessonsPage,
    }
    DEFAULT_MODE = "overview"
    TITLE = "community"
    ENABLE_COMMAND_PALETTE = True
    CSS = """
    Screen { background: $background; }
    Footer { background: $panel; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        *(Binding(str(i + 1), f"page('{name}')", name.title(), show=False)
          for i, name in enumerate(PAGES)),
        Binding("left", "beside(-1)", "Screen before", show=False),
        Binding("right", "beside(1)", "Next screen", show=False),
        Binding("escape,backspace", "return", "Back", show=False),
        Binding("question_mark", "help", "Help", key_display="?"),
        Binding("ctrl+p", "command_palette", "Commands", key_display="^p"),
        Binding("d", "dark", "Dark or light", show=False),
        Binding("r", "reload", "Load again", show=False),
        Binding("q", "quit", "Quit"),
    ]  # fmt: skip

    def __init__(self, ledger: Ledger, run_name: str, every: float = EVERY) -> None:
        super().__init__()
        self.ledger, self.run_name, self.every = ledger, run_name, every
        self.curves = Curves(ledger)
        self.course = self.pulse = None
        self.idea = self.sought = ""
        self._queries = Queries(ledger.engine)
        self._past: list[tuple[str, str]] = []
        self._polling = False
        self._troubled: set[Page[Any]] = set()  # screens that say why looking failed

    def on_mount(self) -> None:
        self.register_theme(DARK)
        self.register_theme(LIGHT)
        self.theme = DARK.name
        self.set_interval(self.every, self.poll)
        self.poll()

    def on_unmount(self) -> None:
        """Quitting does not wait for what the ledger is being asked."""
        self._queries.interrupt()

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """`$faint` is for lines that are to stand back, `$frame` for those around things."""
        return {"faint": "#7B8794", "frame": "#3A4655" if self.current_theme.dark else "#AEB6BE"}

    # -- the ledger ------------------------------------------------------------------------

    def poll(self) -> None:
        """Look whether the run has recorded something new."""
        if not self._polling:
            self._polling = True
            self._look()

    @work(thread=True, group="poll")
    def _look(self) -> None:
        try:
            found = tick(self.ledger, self.course)
            idea = self.idea or latest_idea(self.ledger)
        except CommunityError as error:
            self.call_later(self._looked, None, "", str(error))
        else:
            self.call_later(self._looked, found, idea, "")

    def _looked(self, found: Course | None, idea: str, sentence: str) -> None:
        self._polling = False
        page = self.page
        if found is not None:
            while self._troubled:
                self._troubled.pop().notice("")
            self.course, self.pulse = found, found.pulse
            self.idea = self.idea or idea
        if page is not None and page.is_mounted:
            page.tell()
            if sentence:
                page.notice(sentence)
                self._troubled.add(page)
            elif self.pulse is not None:
                page.renew()

    @property
    def page(self) -> Page[Any] | None:
        """The screen that is shown, below whatever lies over it."""
        return next((s for s in reversed(self.screen_stack) if isinstance(s, Page)), None)

    # -- going about -----------------------------------------------------------------------

    def open_idea(self, id: str, page: str = "idea") -> None:
        """Look at an idea; `action_return` returns to where one was."""
        if id:
            self._past.append((self.current_mode, self.idea))
            self._go(page, id)

    def find(self, text: str) -> None:
        """Search all ideas; `action_return` returns to where one was."""
        self._past.append((self.current_mode, self.idea))
        self.sought = text
        self._go("ideas", self.idea)

    def _go(self, page: str, idea: str) -> None:
        self.idea = idea
        if page != self.current_mode:
            self.switch_mode(page)
        elif self.page is not None:
            self.page.renew()

    def action_page(self, name: str) -> None:
        """Show a screen."""
        self._go(name, self.idea)

    def action_beside(self, step: int) -> None:
        """Show the screen to the left or right of this one."""
        at = PAGES.index(self.current_mode) + step
        self.action_page(PAGES[at % len(PAGES)])

    def action_return(self) -> None:
        """Return to where the last idea was opened."""
        if self._past:
            self._go(*self._past.pop())

    def action_help(self) -> None:
        """Say which keys do what."""
        if self.page is not None:
            self.push_screen(Help(self.page))

    def action_dark(self) -> None:
        """Change between dark and light."""
        self.theme = LIGHT.name if self.current_theme.dark else DARK.name

    def action_reload(self) -> None:
        """Load the screen again."""
        self.poll()
        if self.page is not None:
            self.page.reload()

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """What the command palette offers."""
        for i, name in enumerate(PAGES):
            yield SystemCommand(
                f"Go to {name.title()}", f"The same as key {i + 1}", partial(self.action_page, name)
            )
        yield SystemCommand("Back", "To where the last idea was opened", self.action_return)
        yield SystemCommand("Dark or light", "Change the colours", self.action_dark)
        yield SystemCommand("Help", "Which keys do what", self.action_help)
        yield from super().get_system_commands(screen)


def watch(folder: Path) -> None:
    """Watch the run in a folder until the user quits.

    Raises CommunityError without a terminal, and as `Ledger.open` does.
    """
    with Ledger.open(folder / "ledger.db", read_only=True) as ledger:
        # the web driver, which --serve starts, brings a terminal of its own
        if not (sys.stdout.isatty() and sys.stdin.isatty()) and "TEXTUAL_DRIVER" not in os.environ:
            raise CommunityError(
                f"`community watch` needs a terminal; `community show {folder.name}` does without"
            )
        Watch(ledger, folder.name).run()


def serve(folder: Path, host: str, port: int) -> None:
    """Show the same in browsers, at http://host:port, until stopped.

    Raises CommunityError without textual-serve, as `Ledger.open` does, and for an address
    that is taken or not of this machine.
    """
    server = extra("textual_serve.server", "watch")
    Ledger.open(folder / "ledger.db", read_only=True).close()
    command = [sys.executable, "-m", "community", "watch", str(folder.resolve())]
    title = f"community: {folder.name}"
    try:
        server.Server(shlex.join(command), host, port, title=title).serve()
    except (OSError, UnicodeError) as error:  # UnicodeError: no name of a machine
        reason = getattr(error, "strerror", None) or error
        raise CommunityError(
            f"cannot serve at {host}:{port} ({reason}); give another --port or --host"
        ) from error
