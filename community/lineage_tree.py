"""An idea's lineage as a tree for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text
from rich.tree import Tree

from community.lineage import WIDTH, Lineage, Node
from community.words import count, one_line

WIDE = 60  # cells of a text


def render(found: Lineage) -> Tree:
    """The lineage as a tree for the terminal."""
    facts = found.idea.facts
    tree = Tree(_line(found.idea))
    tree.add(Text(f"asked: {one_line(facts['task'], WIDE)}"))
    tree.add(Text(f"said: {one_line(facts['text'] or facts['failure'], WIDE)}"))
    judged = tree.add(f"judged by {count(len(facts['verdicts']), 'verdict')}")
    for verdict in facts["verdicts"][: 3 * WIDTH]:
        against = f" against {verdict['against'][:10]}" if verdict["against"] else ""
        said = f"{verdict['judge']}: {verdict['score']:.2f}{against}"
        judged.add(Text(f"{said} (confidence {verdict['confidence']:.2f})"))
    _more(judged, len(facts["verdicts"]) - 3 * WIDTH)
    _render_votes(tree, facts["votes"])
    back, ahead = found.ancestors, found.descendants
    _branch(tree, f"builds on {count(back.total, 'idea')} of its conversation", back.ideas)
    _branch(tree, "taught by, back to the start", back.steps)
    _branch(tree, f"built on by {count(ahead.total, 'idea')} of its conversation", ahead.ideas)
    _branch(tree, "taught, and what came of that", ahead.steps, ahead.more)
    return tree


def _render_votes(tree: Tree, votes: Sequence[Mapping[str, Any]]) -> None:
    """Members that gave the same answer, then those that gave another."""
    agreed = sum(vote["score"] == 1 for vote in votes)
    branch = tree.add(f"voted for by {agreed} of the {count(len(votes), 'member')} that answered")
    for vote in sorted(votes, key=lambda v: -v["score"])[: 3 * WIDTH]:
        said = "" if vote["score"] else f", said {one_line(vote['answer'], 30)}"
        known = vote["reliability"]
        weight = "" if known is None else f" (reliability {known:.2f})"
        branch.add(Text(f"{vote['judge']}: {vote['score']:.2f}{weight}{said}"))
    _more(branch, len(votes) - 3 * WIDTH)


def _branch(tree: Tree, title: str, nodes: Sequence[Node], more: int = 0) -> None:
    branch = tree.add(title)
    for node in nodes:
        _add(branch, node)
    _more(branch, more)


def _add(tree: Tree, node: Node) -> None:
    branch = tree.add(_line(node))
    for inner in node.nodes:
        _add(branch, inner)
    _more(branch, node.more)


def _more(tree: Tree, count: int) -> None:
    if count > 0:
        tree.add(Text(f"and {count} more", style="dim"))


def _line(node: Node) -> Text:
    """One line about a node."""
    f = node.facts
    line = Text(f"{node.kind} ", style="dim").append(node.id[:10], style="bold cyan")
    if node.kind == "idea":
        line.append(f" round {f['round']}, {f['author']}@{f['checkpoint'][:10]}")
        if f["place"] is not None:
            line.append(f", place {f['place']} (confidence {f['confidence']:.2f})")
        line.append(f" → {one_line(f['answer'] or f['text'] or f['failure'], WIDE)}", style="green")
    elif node.kind == "lesson":
        source = f" from idea {f['idea'][:10]} by {f['author']}" if f["idea"] else ""
        line.append(f" round {f['round']}, for {f['learner']}{source}")
        line.append(
            f" ({f['reason']}, confidence {f['confidence']:.2f}): {one_line(f['task'], WIDE)}"
        )
    else:
        line.append(f" {f['agent']} after round {f['learning']}")
        if f["before"] is not None and f["after"] is not None:
            line.append(f", validation {f['before']:.3f} → {f['after']:.3f}")
        line.append("" if f["kept"] else ", rolled back", style="red")
        line.append(f", {count(len(node.nodes) + node.more, 'idea' if 'ideas' in f else 'lesson')}")
    return line
