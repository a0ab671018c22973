"""The screen Lineage: all that led to an idea, all that came of it, and what changed on the way."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from rich.console import Group, RenderableType
from rich.rule import Rule
from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import Static, Tree
from textual.widgets.tree import TreeNode

from community.dashboard.difference import changes, why
from community.dashboard.kin import (
    Branch,
    Contrast,
    Family,
    Kin,
    Made,
    Taught,
    contrast,
    family,
    grow,
)
from community.dashboard.page import Page, nothing_yet
from community.ledger import Ledger
from community.words import SHORT, count, one_line, share, signed

Node = TreeNode[Branch]


class KinTree(Tree[Branch]):
    """A tree whose keys are named in the footer."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "select_cursor", "Jump"),
        Binding("space", "toggle_node", "Unfold"),
    ]


class LineagePage(Page[Family | None]):
    """Where an idea came from and what came of it; ★ is the best of its task, ☆ the way there."""

    name_of_page = "lineage"
    of_idea = True
    KEYS: ClassVar[list[tuple[str, str]]] = [
        ("↑ ↓", "along the tree; beside it is what changed and why"),
        ("space", "open or close a branch"),
        ("enter", "jump: make the idea under the cursor the one looked at"),
        ("b", "jump to the best idea of the task"),
        ("i", "read the idea under the cursor"),
    ]
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("b", "best", "Best"),
        Binding("i", "read", "Read"),
    ]
    CSS = """
    LineagePage #body { layout: vertical; }
    LineagePage.-wide #body { layout: horizontal; }
    LineagePage Tree { height: 1fr; padding: 0 1; background: $background;
                       scrollbar-size-vertical: 1; scrollbar-size-horizontal: 1; }
    LineagePage Tree:focus { background-tint: $foreground 0%; }
    LineagePage #beside { height: 1fr; }
    LineagePage.-wide Tree { width: 1fr; height: 1fr; }
    LineagePage.-wide #beside { width: 1fr; height: 1fr; }
    """

    def __init__(self) -> None:
        super().__init__()
        self.family: Family | None = None

    def body(self) -> ComposeResult:
        tree = KinTree("", id="tree")
        tree.auto_expand = False
        tree.guide_depth = 3
        yield tree
        with VerticalScroll(id="beside", classes="box"):
            yield Static(id="contrast", markup=False)

    def load(self, ledger: Ledger) -> Family | None:
        return family(ledger, self.app.idea) if self.app.idea else None

    def show(self, found: Family | None) -> None:
        self.family = found
        tree = self.query_one("#tree", KinTree)
        tree.clear()
        if found is None:
            tree.root.set_label(Text(nothing_yet(self.app.course)))
            self.query_one("#contrast", Static).update("")
            return
        tree.root.set_label(self._label(found.root))
        tree.root.data = found.back
        back = tree.root.add("where it came from", expand=True)
        self._fill(back, found.back)
        ahead = tree.root.add("what came of it", expand=True)
        self._fill(ahead, found.ahead)
        tree.root.expand()
        tree.move_cursor(tree.root)
        tree.focus()
        self._describe(tree.root)

    def _fill(self, node: Node, branch: Branch) -> None:
        """Hang what is known of a branch below its node."""
        node.remove_children()
        for inner in branch.inner or ():
            label = self._label(inner.item)
            if inner.inner is None:
                node.add(label, inner)
            else:  # on the path
                self._fill(node.add(label, inner, expand=True), inner)
        if branch.more:
            node.add_leaf(Text(f"and {branch.more:,} more", style="dim italic"))
        if branch.inner is not None and not branch.inner:
            node.add_leaf(Text("nothing", style="dim italic"))

    def _label(self, item: Kin | Made | Taught) -> Text:
        path = self.family.path if self.family else None
        if isinstance(item, Kin):
            best = path is not None and path.best is not None and path.best.id == item.id
            on_path = path is not None and item.id in path.ids
            return _idea(item, "★ " if best else "☆ " if on_path else "")
        return _checkpoint(item) if isinstance(item, Made) else _lesson(item)

    # -- the tree --------------------------------------------------------------------------

    @on(Tree.NodeExpanded)
    def _expanded(self, event: Tree.NodeExpanded[Branch]) -> None:
        node = event.node
        if node.data is not None and node.data.inner is None:
            grown = partial(grow, self.app.ledger, node.data)
            self.find_out(f"branch {node.id}", grown, partial(self._fill, node))

    @on(Tree.NodeHighlighted)
    def _highlighted(self, event: Tree.NodeHighlighted[Branch]) -> None:
        self._describe(event.node)

    @on(Tree.NodeSelected)
    def _selected(self, event: Tree.NodeSelected[Branch]) -> None:
        self._jump(event.node, "lineage")

    def _jump(self, node: Node | None, page: str) -> None:
        item = node.data.item if node is not None and node.data else None
        if isinstance(item, Made) and node is not None:
            node.toggle()
        elif isinstance(item, Taught):
            self.app.open_idea(item.idea_id, page)
        elif isinstance(item, Kin) and (page == "idea" or item.id != self.app.idea):
            self.app.open_idea(item.id, page)

    def action_read(self) -> None:
        self._jump(self.query_one("#tree", KinTree).cursor_node, "idea")

    def action_best(self) -> None:
        best = self.family.path.best if self.family else None
        if best is not None and best.id != self.app.idea:
            self.app.open_idea(best.id, "lineage")

    # -- beside the tree -------------------------------------------------------------------

    def _describe(self, node: Node) -> None:
        """What changed between the idea at a node and the one that it hangs from."""
        found = self.family
        if found is None:
            return
        branch, over = node.data, node.parent
        box = self.query_one("#beside")
        if branch is None or over is None:
            box.border_title = f"{found.root.id[:SHORT]} and the ideas it read"
            self._tell(_root(found))
        elif isinstance(branch.item, Kin):
            near = over.data.item if over.data else found.root
            if isinstance(near, Kin) and near.id != branch.item.id:
                pair = (near, branch.item) if branch.back else (branch.item, near)
                self.find_out("contrast", partial(contrast, self.app.ledger, *pair), self._contrast)
            else:
                box.border_title = branch.item.id[:SHORT]
                self._tell(_alone(branch.item))
        else:
            box.border_title = branch.item.id[:SHORT]
            self._tell(_other(branch.item))

    def _contrast(self, found: Contrast) -> None:
        names = f"{found.parent.id[:SHORT]} → {found.child.id[:SHORT]}"
        self.query_one("#beside").border_title = f"{names}: what changed, and why"
        self._tell(Group(*_pair(found)))

    def _tell(self, what: RenderableType) -> None:
        self.query_one("#contrast", Static).update(what)


def _idea(one: Kin, mark: str) -> Text:
    line = Text().append(mark + one.id[:6], "bold")
    line.append(f" {one.author}")
    line.append(f" r{one.round} t{one.turn}")
    if one.place is not None:
        line.append(f" #{one.place} {signed(one.strength)}")
    return line.append(f"  {one_line(one.said, 40)}", style="italic")


def _lesson(one: Taught) -> Text:
    line = Text().append("lesson ", "dim").append(one.id[:6], "bold")
    line.append(f" r{one.round} → {one.learner}")
    return line.append(f"  {one_line(one.prompt, 24)} {one_line(one.text, 24)}", style="italic")


def _checkpoint(one: Made) -> Text:
    line = Text().append("checkpoint ", "dim").append(one.id[:6], "bold")
    line.append(f" {one.agent} after r{one.learning}")
    return line.append("" if one.kept else "  ✗ rolled back")


def _root(found: Family) -> RenderableType:
    parts: list[RenderableType] = [_alone(found.root), Text(), _path(found)]
    for each in found.contrasts:
        parts += [Rule(f"against {each.parent.id[:6]} by {each.parent.author}", style="dim"),
                  *_pair(each)]  # fmt: skip
    more = sum(isinstance(b.item, Kin) for b in found.back.inner or ()) - len(found.contrasts)
    if more > 0:
        parts.append(Text(f"and {count(more, 'parent')} more, in the tree", style="dim"))
    return Group(*parts)


def _path(found: Family) -> Text:
    path = found.path
    if path.best is None:
        return Text("Its task was not ranked, so none is the best.", style="dim")
    if path.best.id == found.root.id:
        return Text("★ This is the best idea of its task.", style="bold")
    if not path.ids:
        said = one_line(path.best.said, 30)
        return Text(f"★ {path.best.id[:6]} by {path.best.author} is the best of the task ({said}); "
                    "no reading joins the two. b jumps there.")  # fmt: skip
    way = " ☆ ".join(f"{name} {id[:6]}" for name, id in zip(path.names, path.ids, strict=True))
    return Text(f"★ path to the best: {way}")


def _alone(one: Kin) -> Text:
    text = Text().append(f"{one.author} ", "bold")
    text.append(f"in round {one.round}, turn {one.turn}, asked {one_line(one.prompt, 80)}\n")
    text.append(f"said {one_line(one.said, 200)}")
    if one.place is not None:
        between = f"{signed(one.low)} to {signed(one.high)}"
        text.append(f"\nplace {one.place}, strength {signed(one.strength)} ({between})")
    return text


def _pair(found: Contrast) -> list[RenderableType]:
    if found.child.task != found.parent.task:
        return [_alone(found.parent), Text(), _alone(found.child), Text(), why(found)]
    return [changes(found.parent.said, found.child.said), why(found)]


def _other(item: Made | Taught) -> RenderableType:
    if isinstance(item, Taught):
        source = f"from idea {item.idea_id[:SHORT]} by {item.author}" if item.idea_id else ""
        text = Text(f"A lesson of round {item.round} for ").append(item.learner, "bold")
        text.append(f" {source}\n\nasked {one_line(item.prompt, 200)}\n")
        text.append(f"to say {one_line(item.text, 200)}\n\n")
        return text.append(f"why: {item.reason}\nconfidence {share(item.confidence)}")
    text = Text(f"A checkpoint of {item.agent}, made after round {item.learning}\n\n")
    if item.before is not None and item.after is not None:
        text.append(f"validation {share(item.before)} → {share(item.after)}: ")
    return text.append("✓ kept" if item.kept else "✗ rolled back", "bold")
