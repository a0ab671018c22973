"""The README's screens: `python docs/screens.py RUN` writes what `community watch RUN` shows."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from community.cli import run_folder
from community.dashboard.app import Watch, settled
from community.dashboard.page import PAGES
from community.ledger import Ledger

SIZE = (100, 30)
SCREENS = {
    "overview": (),
    "members": (),
    "network": ("down", "down"),
    "lineage": ("down", "down", "space", "down", "down"),
}
"""Screen -> the keys to press there."""


async def pictures(folder: Path, to: Path) -> None:
    """Write watch-SCREEN.svg for each screen."""
    with Ledger.open(folder / "ledger.db", read_only=True) as ledger:
        app = Watch(ledger, folder.name)
        async with app.run_test(size=SIZE) as pilot:
            for page, keys in SCREENS.items():
                for key in (str(PAGES.index(page) + 1), *keys):
                    await settled(app, pilot)
                    await pilot.press(key)
                await settled(app, pilot)
                target = to / f"watch-{page}.svg"
                title = f"community watch {folder.name}"
                target.write_text(app.export_screenshot(title=title) + "\n", encoding="utf-8")
                print(f"wrote {target}")


if __name__ == "__main__":
    asyncio.run(pictures(run_folder(sys.argv[1]), Path(__file__).parent))
