"""The tree of an idea: what it came from and what came of it, in the talk and across learning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import networkx as nx
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

from community.canvas import DARK, ORANGE, figure_of
from community.lineage import Lineage, Node, Side
from community.words import one_line

STEPS = 3  # of learning that are drawn, in either direction
LESSONS = 3  # that are drawn of those an idea became
ACROSS, DOWN = 3.15, 1.0  # inches from box to box
HALF = 0.3  # of a box, in height
WIDE = 40  # characters of a line in a box
LOOKS = {  # kind -> face, border, shape of the box
    "idea": ("#D9ECF8", "#0072B2", "round,pad=0.4,rounding_size=0.8"),
    "lesson": ("#FBEBC8", "#B87F00", "square,pad=0.4"),
    "checkpoint": ("#D5EFE5", "#00805F", "roundtooth,pad=0.5,tooth_size=0.35"),
}


class _Tree:
    """Boxes by row, the idea's own being 0 and its ancestors' negative, and arrows in time."""

    def __init__(self, found: Lineage) -> None:
        self.graph: nx.DiGraph[str] = nx.DiGraph()
        self.rows: dict[int, list[str]] = {}
        self.root = self._put(found.idea, 0)
        for side, sign in ((found.ancestors, -1), (found.descendants, 1)):
            self._conversation(self.root, side.ideas, sign, sign)
        self._taught_by(found.ancestors.steps[:STEPS])
        self._came_of(found)

    def _put(self, node: Node, row: int) -> str:
        """The node's box, made unless it is there."""
        key = f"{node.kind} {node.id}"
        if key not in self.graph:
            self.graph.add_node(key, node=node)
            self.rows.setdefault(row, []).append(key)
        return key

    def _join(self, first: str, then: str, best: bool = False) -> None:
        self.graph.add_edge(first, then, best=best)

    def _conversation(self, key: str, nodes: Sequence[Node], row: int, sign: int) -> None:
        """Ideas that were read, above; those that read, below."""
        for node in nodes:
            other = self._put(node, row)
            self._join(*((other, key) if sign < 0 else (key, other)))
            self._conversation(other, node.nodes, row + sign, sign)

    def _taught_by(self, steps: Sequence[Node]) -> None:
        """Checkpoints and the lessons that made them; the first lesson leads on."""
        below, row = self.root, -1
        for step in steps:
            checkpoint = self._put(step, row)
            self._join(checkpoint, below, best=True)
            row -= 1
            below = checkpoint
            for i, lesson in enumerate(step.nodes):
                key = self._put(lesson, row)
                self._join(key, checkpoint, best=i == 0)
                below = key if i == 0 else below
            row -= bool(step.nodes)

    def _came_of(self, found: Lineage) -> None:
        """Lessons the idea became, checkpoints these made, and the ideas that came of them."""
        rows = {found.idea.id: 0}
        own = [s for s in found.descendants.steps if s.facts["idea"] == found.idea.id]
        later = [s for s in found.descendants.steps if s.facts["idea"] != found.idea.id]
        for i, lesson in enumerate([*own[:LESSONS], *later[: STEPS - 1]]):
            source = lesson.facts["idea"]
            if source not in rows:
                continue
            row, best = rows[source], i == 0 or i >= len(own[:LESSONS])
            key = self._put(lesson, row + 1)
            self._join(f"idea {source}", key, best)
            for checkpoint in lesson.nodes[:1]:
                made = self._put(checkpoint, row + 2)
                self._join(key, made, best)
                for j, idea in enumerate(checkpoint.nodes[: 1 + best]):
                    given = self._put(idea, row + 3)
                    self._join(made, given, best and j == 0)
                    rows.setdefault(idea.id, row + 3)


def lineage(found: Lineage) -> Figure:
    """The tree of an idea, time going down; bold arrows follow the best lesson and its idea."""
    tree = _Tree(found)
    widest = max(len(row) for row in tree.rows.values())
    figure = figure_of(max(8.4, ACROSS * widest + 0.2), DOWN * len(tree.rows) + 0.9)
    axes = figure.subplots()
    at = {
        key: ((i - (len(tree.rows[n]) - 1) / 2) * ACROSS, -y * DOWN)
        for y, n in enumerate(sorted(tree.rows))
        for i, key in enumerate(tree.rows[n])
    }
    for key, (x, y) in at.items():
        node = tree.graph.nodes[key]["node"]
        face, border, shape = LOOKS[node.kind]
        box = {"boxstyle": shape, "facecolor": face, "edgecolor": border, "linewidth": 1.0}
        box |= {"edgecolor": ORANGE, "linewidth": 2.6} if key == tree.root else {}
        axes.text(x, y, "\n".join(_lines(node)), fontsize=7.5, color=DARK, ha="center",
                  va="center", linespacing=1.35, bbox=box, zorder=3)  # fmt: skip
    for first, then, data in tree.graph.edges(data=True):
        axes.add_patch(
            FancyArrowPatch(
                (at[first][0], at[first][1] - HALF), (at[then][0], at[then][1] + HALF),
                arrowstyle="-|>", mutation_scale=12, shrinkA=0, shrinkB=0,
                color=ORANGE if data["best"] else "#7A7A7A", zorder=2,
                linewidth=2.4 if data["best"] else 1.0,
            )
        )  # fmt: skip
    axes.set_xlim(-ACROSS * widest / 2, ACROSS * widest / 2)
    axes.set_ylim(-DOWN * (len(tree.rows) - 0.5), DOWN * 0.5)
    axes.set_axis_off()
    figure.suptitle(_title(found), x=0.01, ha="left", fontsize=10)
    return figure


def _title(found: Lineage) -> str:
    """What the picture shows and what it leaves out."""
    back, ahead = found.ancestors, found.descendants
    own = one_line(found.idea.facts["task"], 40)
    hidden = _hidden(back, len(back.steps)), _hidden(ahead, len(ahead.steps) + ahead.more)
    left_out = ""
    if any(hidden):
        left_out = "; there is more"
    return (
        f"Lineage of idea {found.idea.id[:10]} (bold border), which answers {own}\n"
        f"It builds on {back.total:,} ideas of its talk, {ahead.total:,} build on it\n"
        f"Arrows go forward in time, bold ones along the best{left_out}"
    )


def _hidden(side: Side, steps: int) -> bool:
    return steps > STEPS or any(node.more for node in side.ideas)


def _lines(node: Node) -> list[str]:
    """What a box says, in three lines."""
    return [one_line(line, WIDE) for line in _SAYS[node.kind](node.id[:8], node.facts)]


def _idea(id: str, facts: Any) -> list[str]:
    said = facts["answer"] or facts["text"] or facts["failure"]
    rank = ""
    if facts["place"] is not None:
        rank = f"place {facts['place']}, strength {facts['strength']:.1f}"
        rank += f" ({facts['low']:.1f} to {facts['high']:.1f})"
    return [f"idea {id}, round {facts['round']}", f"{facts['author']}: {said}", rank]


def _lesson(id: str, facts: Any) -> list[str]:
    source = f"from {facts['author']}'s {facts['idea'][:8]}, " if facts["idea"] else ""
    sure = f"{source}confidence {facts['confidence']:.2f}"
    return [f"lesson for {facts['learner']}, round {facts['round']}", f"{facts['task']}", sure]


def _checkpoint(id: str, facts: Any) -> list[str]:
    exam = ""
    if facts["before"] is not None and facts["after"] is not None:
        exam = f"validation {facts['before']:.3f} → {facts['after']:.3f}"
    fate = "" if facts["kept"] else "rolled back"
    return [f"{facts['agent']} after round {facts['learning']}", f"checkpoint {id}",
            ", ".join(filter(None, (exam, fate)))]  # fmt: skip


_SAYS = {"idea": _idea, "lesson": _lesson, "checkpoint": _checkpoint}
