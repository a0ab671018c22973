"""Rows of tokens in blocks, as the sources of language models read them.

What rows of a block have in common from their first token on, such as a system message, is read
once: the others take it from the cache of the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from torch import Tensor

from community.kernels.build import numbers

LEAST = 8  # tokens in common that are worth waiting for
Key = list[tuple[int, int]]
"""The tokens of a row, each with its position."""


def keys_of(rows: Sequence[Sequence[int]], places: Sequence[Sequence[int]]) -> list[Key]:
    """Tokens and positions of each row side by side."""
    return [[*zip(row, where, strict=True)] for row, where in zip(rows, places, strict=True)]


@dataclass(frozen=True)
class Text:
    """Blocks of rows, in each those first that others take tokens from."""

    ids: list[int]  # numbers of the rows, in order
    tokens: Tensor  # of all rows, one after the other
    where: Tensor  # their positions
    starts: Tensor  # (rows + 1) where each begins
    source: Tensor  # (rows) which of them each takes its first tokens from
    known: Tensor  # (rows) how many
    edges: Tensor  # (blocks + 1) which of them begins each block

    @classmethod
    def of(
        cls,
        blocks: Sequence[Sequence[int]],
        keys: Sequence[Key],
        most: Sequence[int],
        unread: int = 0,
        halfway: bool = True,
    ) -> Text:
        """`blocks` of numbers of rows. A row takes at most `most` tokens from another, of which the
        last `unread` are not read, and only all of its own if not `halfway`."""
        shared = [x for block in blocks for x in _shared(block, keys, most, unread, halfway)]
        ids = [i for i, _, _ in shared]
        place = {i: n for n, i in enumerate(ids)}
        return cls(
            ids,
            numbers(token for i in ids for token, _ in keys[i]),
            numbers(where for i in ids for _, where in keys[i]),
            numbers(accumulate((len(keys[i]) for i in ids), initial=0)),
            numbers(place[source] for _, source, _ in shared),
            numbers(known for _, _, known in shared),
            numbers(accumulate(map(len, blocks), initial=0)),
        )


def _shared(
    block: Sequence[int], keys: Sequence[Key], most: Sequence[int], unread: int, halfway: bool
) -> list[tuple[int, int, int]]:
    """Each row of a block, from which it takes its first tokens, and how many.

    In the order of their tokens, what a row has in common with any before it, it has in common with
    the one before it. It takes that from the first that has it, so that few wait for one another.
    """
    order = sorted(block, key=keys.__getitem__)
    alike = [0, *(_alike(keys[a], keys[b], unread) for a, b in pairwise(order))]
    found, depths = [], [0] * len(order)
    for n, row in enumerate(order):
        known, first = min(alike[n], most[row]), n
        if known < len(keys[row]) and (known < LEAST or not halfway):
            known = 0
        while known and alike[first] >= known:
            first -= 1
        depths[n] = depths[first] + 1 if known else 0
        found.append((row, order[first], known))
    return [found[n] for n in sorted(range(len(order)), key=depths.__getitem__)]


def _alike(a: Key, b: Key, unread: int) -> int:
    """How many tokens that are read two rows have in common from the first on."""
    most = min(len(a), len(b)) - unread
    return next((n for n in range(most) if a[n] != b[n]), most)
