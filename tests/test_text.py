"""Rows in blocks: what is read once stands in a row before those that take it."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from community.kernels.text import LEAST, Key, Text, keys_of

# few different pieces, so that rows begin alike, are beginnings of others, or the same
PIECE = st.sampled_from([(1,) * 3, (2,) * 9, (3, 4) * 5, (5,)])
ROW = st.lists(PIECE, min_size=1, max_size=5).map(lambda pieces: sum(pieces, ()))


@given(st.lists(st.tuples(ROW, st.sampled_from([0, 7])), min_size=1, max_size=24), st.data())
def test_what_a_row_takes_is_its_own_and_was_read_before(
    rows: list[tuple[tuple[int, ...], int]], data: st.DataObject
) -> None:
    keys = keys_of([r for r, _ in rows], [range(p, p + len(r)) for r, p in rows])
    unread = data.draw(st.integers(0, 1))
    most = [data.draw(st.integers(0, len(key) - unread)) for key in keys]
    cut = data.draw(st.integers(0, len(keys)))
    halfway = data.draw(st.booleans())
    blocks = [b for b in ([*range(cut)], [*range(cut, len(keys))]) if b]
    text = Text.of(blocks, keys, most, unread, halfway)
    edges, starts = text.edges.tolist(), text.starts.tolist()
    assert [sorted(text.ids[a:b]) for a, b in pairwise(edges)] == blocks
    for n, (source, known) in _taken(text):
        key = keys[text.ids[n]]
        read = [x[starts[n] : starts[n + 1]].tolist() for x in (text.tokens, text.where)]
        assert [*zip(*read, strict=True)] == key
        if not known:
            assert source == n
            continue
        assert max(e for e in edges if e <= n) <= source < n
        assert keys[text.ids[source]][: -unread or None][:known] == key[:known]
        assert known <= most[text.ids[n]]
        assert known == len(key) or (halfway and known >= LEAST)


def key(*tokens: int) -> Key:
    return [(t, n) for n, t in enumerate(tokens)]


def test_a_row_takes_all_it_can_from_the_first_that_has_it() -> None:
    system, question = [9] * 20, [8] * 10
    keys = [key(*system, *question, n) for n in range(3)] + [key(*system, 7, n) for n in range(2)]
    text = Text.of([[*range(5)]], keys, [len(k) for k in keys])
    took = {text.ids[n]: (text.ids[s], k) for n, (s, k) in _taken(text)}
    assert took == {3: (3, 0), 4: (3, 21), 0: (3, 20), 1: (0, 30), 2: (0, 30)}


@pytest.mark.parametrize("halfway", [True, False])
def test_the_same_rows_are_read_once_however_short(halfway: bool) -> None:
    keys = [key(1, 2), key(1, 3), key(1, 2), key(1, 2)]
    text = Text.of([[*range(4)]], keys, [2] * 4, halfway=halfway)
    assert sorted(text.known.tolist()) == [0, 0, 2, 2]


def _taken(text: Text) -> list[tuple[int, tuple[int, int]]]:
    return [*enumerate(zip(text.source.tolist(), text.known.tolist(), strict=True))]
