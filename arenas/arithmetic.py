"""Sums, differences and products of a chosen number of digits.

A task's level is the number of digits of both operands. `reverse` writes every number
with the least significant digit first, the order in which a carry travels (Lee et al.,
"Teaching Arithmetic to Small Transformers", arXiv 2307.03381); `padded` fills the answer
with zeros to the width that the digits allow, so that its length says nothing.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Annotated

from community.arenas.splits import first_in_split
from community.config import option
from community.errors import CommunityError, unknown
from community.types import Idea, Split, Task, seed_of

SIGNS = {"addition": "+", "subtraction": "-", "multiplication": "*"}
NAMES = {sign: name for name, sign in SIGNS.items()}
DIGITS = 2000  # of an operand; Python reads and writes numbers of 4300, and products have twice
SUM = re.compile(r"(\d+)([+*-])(\d+)=")


class ArithmeticArena:
    """Addition, subtraction and multiplication, checked exactly."""

    name = "arithmetic"
    alphabet = "0123456789+-*="

    def __init__(
        self,
        operations: Annotated[Sequence[str], option("of addition, subtraction, multiplication")] = (
            "addition",
        ),
        reverse: Annotated[bool, option("numbers begin with the least digit")] = False,
        padded: Annotated[bool, option("zeros fill the answer to its greatest width")] = False,
    ) -> None:
        if not operations:
            raise CommunityError("the arithmetic arena has no operations; name at least one")
        for operation in operations:
            if operation not in SIGNS:
                raise unknown("operation", operation, SIGNS)
        self.operations = tuple(operations)
        self.reverse = reverse
        self.padded = padded

    def pose(self, split: Split, seed: int, index: int, level: int) -> Task:
        """The task at `index` whose operands have `level` digits each.

        Raises CommunityError where the split has no such task, and for a level that is none.
        """
        if not 1 <= level <= DIGITS:
            raise CommunityError(
                f"arithmetic has the levels 1 to {DIGITS}, the digits of an operand, and not "
                f"{level}; choose among them"
            )
        low, high = (10 ** (level - 1) if level > 1 else 0), 10**level - 1

        def draw(attempt: int) -> Task:
            rng = random.Random(seed_of("arithmetic", split, seed, index, level, attempt))
            operation = rng.choice(self.operations)
            a, b = rng.randint(low, high), rng.randint(low, high)
            if operation == "subtraction":
                a, b = max(a, b), min(a, b)
            sign = SIGNS[operation]
            # a+b and b+a are one task: whoever has seen one knows the other.
            key = f"{a}{sign}{b}" if sign == "-" else f"{min(a, b)}{sign}{max(a, b)}"
            prompt = f"{self._write(a)}{sign}{self._write(b)}="
            return Task(prompt, self.name, operation, level, split, seed, index, key)

        return first_in_split(draw, split)

    def verify(self, task: Task, idea: Idea) -> float | None:
        """1.0 if the idea's answer is the sum, digit for digit."""
        return float(not idea.failure and idea.answer == self.solve(task))

    def answer(self, task: Task, text: str) -> str:
        """The digits of `text`; empty if it holds anything else or has an impossible length."""
        digits = text.strip()
        if not digits.isdecimal() or not digits.isascii():
            return ""
        least, most = self._widths(task)
        return digits if least <= len(digits) <= most else ""

    def rephrase(self, task: Task, sample: int) -> str:
        """Every second sample sees the operands of a sum or product the other way round."""
        a, sign, b = self._parse(task)
        return f"{b}{sign}{a}=" if sample % 2 and sign != "-" else task.prompt

    def solve(self, task: Task) -> str:
        """The right answer, for scripted members and first lessons."""
        a, sign, b = self._parse(task)
        x, y = self._read(a), self._read(b)
        value = x + y if sign == "+" else x - y if sign == "-" else x * y
        text = self._write(value)
        if not self.padded:
            return text
        width = self._widths(task)[1]
        return text.ljust(width, "0") if self.reverse else text.rjust(width, "0")

    def domain(self, prompt: str) -> str:
        """The operation that a prompt asks for."""
        match = SUM.fullmatch(prompt)
        return NAMES[match[2]] if match else ""

    def _widths(self, task: Task) -> tuple[int, int]:
        """The shortest and the longest answer possible, in digits."""
        a, sign, _ = self._parse(task)
        digits = len(a)
        most = {"+": digits + 1, "-": digits, "*": 2 * digits}[sign]
        if self.padded:
            return most, most
        return (digits if sign == "+" else 1), most

    def _parse(self, task: Task) -> tuple[str, str, str]:
        match = SUM.fullmatch(task.prompt)
        if match is None:
            raise ValueError(f"not a task of this arena: {task.prompt!r}")
        return match[1], match[2], match[3]

    def _write(self, value: int) -> str:
        return str(value)[::-1] if self.reverse else str(value)

    def _read(self, digits: str) -> int:
        return int(digits[::-1] if self.reverse else digits)
