"""The README's picture: `python docs/picture.py RUN` writes what `community show RUN` prints."""

from __future__ import annotations

import io
import sys
from pathlib import Path

from rich.console import Console

from community.cli import run_folder
from community.report import figures, render


def main() -> None:
    run = sys.argv[1]
    console = Console(record=True, width=88, file=io.StringIO())
    console.print(f"$ community show {Path(run).name}", highlight=False)
    console.print(render(figures(run_folder(run))))
    target = Path(__file__).with_name("adders.svg")
    console.save_svg(str(target), title="community")
    print(f"wrote {target}")


if __name__ == "__main__":
    main()
