"""What changed from one text to another, and why the one came before the other."""

from __future__ import annotations

import re
from difflib import SequenceMatcher

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from community.dashboard.kin import Contrast, Kin
from community.words import block, count, meter, one_line, share, signed

LETTERS = 120
"""Texts of at most so many characters are compared by character, longer ones by word."""
LONG = 1200
"""Of longer texts the beginning is compared."""
JUDGES = 8
"""Verdicts that are shown."""


def changes(old: str, new: str) -> Text:
    """Two lines, − what was and + what is; what differs is underlined and reversed."""
    old, new = block(old)[:LONG], block(new)[:LONG]
    if old == new:
        return Text("= ").append(new or "(nothing)")
    pieces = list if max(len(old), len(new)) <= LETTERS else _words
    a, b = pieces(old), pieces(new)
    before, after = Text("− "), Text("+ ")
    for kind, i, j, k, m in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        mark = "" if kind == "equal" else "reverse underline"
        before.append("".join(a[i:j]), mark)
        after.append("".join(b[k:m]), mark)
    return before.append("\n").append_text(after)


def _words(text: str) -> list[str]:
    return re.findall(r"\s+|\w+|[^\w\s]", text)


def why(found: Contrast) -> RenderableType:
    """Who is ahead, and what judges and the world said."""
    lines: list[RenderableType] = [_standing(found)]
    said = {1.0: "right", 0.0: "wrong"}
    if found.world:
        who = (("child", found.child), ("parent", found.parent))
        told = (f"{name} {said.get(found.world[k.id], share(found.world[k.id]))}"
                for name, k in who if k.id in found.world)  # fmt: skip
        lines.append(Text(f"The world: {', '.join(told)}."))
    if found.verdicts:
        lines += _verdicts(found)
    elif not found.same and found.child.task == found.parent.task:
        hint = "No judge compared these two answers directly; others' verdicts place them."
        lines.append(Text(hint, style="dim"))
    return Group(*lines)


def _standing(found: Contrast) -> Text:
    child, parent = found.child, found.parent
    if child.task != parent.task:
        return Text("Another task: it reached the child by way of a lesson.")
    if child.place is None or parent.place is None:
        return Text("The two were not ranked.")
    if found.same:
        return Text(f"The same answer, given by {count(child.supporters or 0, 'member')}.")
    verb = "beat" if child.place < parent.place else "did not beat"
    text = Text("The child ").append(verb, "bold").append(" this parent: ")
    return text.append(f"place {_place(child)} against {_place(parent)}.")


def _place(one: Kin) -> str:
    between = f"{signed(one.low)} to {signed(one.high)}"
    backed = f", {count(one.supporters, 'supporter')}" if one.supporters is not None else ""
    return f"{one.place} (strength {signed(one.strength)}, {between}{backed})"


def _verdicts(found: Contrast) -> list[RenderableType]:
    for_child = sum(v.score > 0.5 for v in found.verdicts)
    head = Text(f"{for_child} of {count(len(found.verdicts), 'verdict')} prefer the child:")
    table = Table.grid(padding=(0, 1))
    for last in (False, False, False, True):
        table.add_column(no_wrap=not last)  # where there is no room for it, the last wraps
    for v in found.verdicts[:JUDGES]:
        side = "child" if v.score > 0.5 else "parent" if v.score < 0.5 else "neither"
        sure = f"confidence\N{NO-BREAK SPACE}{share(v.confidence)}"
        if v.reliability is not None:
            sure += f" reliability\N{NO-BREAK SPACE}{share(v.reliability)}"
        table.add_row(f"  {one_line(v.judge, 16)}", meter(v.score, 6), side, sure)
    more = len(found.verdicts) - JUDGES
    rest = [Text(f"  and {more} more", style="dim")] if more > 0 else []
    return [head, table, *rest]
