"""Which keys do what, over whatever screen is shown."""

from __future__ import annotations

from typing import Any, ClassVar

from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from community.dashboard.page import Page

EVERYWHERE = [
    ("1 to 7", "the screens; also ← and →, or a click"),
    ("esc", "back to where the last idea was opened"),
    ("tab", "the next part of the screen"),
    ("ctrl+p", "all commands by name; themes, screenshot"),
    ("d", "dark or light"),
    ("r", "load again"),
    ("?", "this help"),
    ("q", "quit"),
]
LISTS = [
    ("↑ ↓ pgup pgdn home end", "move in a list or a text"),
    ("enter", "open what the cursor is on"),
]


class Help(ModalScreen[None]):
    """The keys of a screen and those that work everywhere."""

    DEFAULT_CSS = """
    Help { align: center middle; background: $background 60%; }
    Help > VerticalScroll {
        width: 74; max-width: 96%; height: auto; max-height: 96%;
        border: round $primary; background: $surface; padding: 0 2;
    }
    Help Static { height: auto; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,question_mark,q,enter,space", "dismiss", "Close"),
    ]

    def __init__(self, page: Page[Any]) -> None:
        super().__init__()
        self.page = page

    def compose(self) -> ComposeResult:
        with VerticalScroll() as box:
            box.border_title = f"{self.page.name_of_page.title()}: keys"
            box.border_subtitle = "esc closes"
            about = (self.page.__doc__ or "").split("\n")[0]
            yield Static(Text(f"{about}\n", style="italic"))
            yield Static(_table([*self.page.KEYS, *LISTS, *EVERYWHERE]))


def _table(keys: list[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column()
    for key, meaning in keys:
        table.add_row(Text(key, style="bold"), Text(meaning))
    return table
