"""What a dataset must not hold: the same text twice, and texts of somebody's test."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from community.errors import CommunityError
from community.extras import extra

PERMUTATIONS = 128
"""Hash functions of a MinHash: its error is about 1 / sqrt of this, 0.09."""
SHINGLE = 5
"""Characters of a shingle: short answers have few words."""
SUREST = 0.95
"""The largest similarity that candidates are looked up by; nearly 1 leaves no bands of hashes."""
WEIGHTS = (0.1, 0.9)
"""Of candidates too many and too few: those too many are found out, those too few are not."""
NGRAM = 13
"""Words of an n-gram (Brown et al., "Language models are few-shot learners", 2020, appendix C)."""

_WORD = re.compile(r"\w+")


def digest(*texts: str) -> bytes:
    """16 bytes that stand for texts in a set of millions."""
    joined = "\x1f".join(f"{len(text)}:{text}" for text in texts)
    return blake2b(joined.encode(), digest_size=16).digest()


class Exact:
    """Remembers texts, 16 bytes each, and knows them again."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def seen(self, texts: Sequence[str]) -> bool:
        """Whether the very same texts came before; remembers them."""
        key = digest(*texts)
        if key in self._seen:
            return True
        self._seen.add(key)
        return False


class Near:
    """Remembers texts by their MinHash (Broder, "On the resemblance of documents", 1997).

    Similarity is the share of 5-character shingles that two texts have in common (Jaccard),
    estimated by `datasketch`: candidates come from locality-sensitive hashing, and each is
    checked against the estimate. Takes about 4 KB a text that is kept. Raises CommunityError
    without the extra `export`.
    """

    def __init__(self, similarity: float) -> None:
        self._library = extra("datasketch")
        self._similarity = similarity
        least = min(similarity, SUREST)
        self._index = self._library.MinHashLSH(
            threshold=least, num_perm=PERMUTATIONS, weights=WEIGHTS
        )
        self._sketches: list[Any] = []

    def seen(self, texts: Sequence[str]) -> bool:
        """Whether a text at least as similar came before; remembers it if not."""
        sketch = self._library.MinHash(num_perm=PERMUTATIONS)
        sketch.update_batch(_shingles("\n".join(texts)))
        alike = (self._sketches[k] for k in self._index.query(sketch))
        if any(sketch.jaccard(other) >= self._similarity for other in alike):
            return True
        self._index.insert(len(self._sketches), sketch)
        self._sketches.append(self._library.LeanMinHash(sketch))
        return False


def _shingles(text: str) -> list[bytes]:
    plain = " ".join(text.lower().split())
    last = max(1, len(plain) - SHINGLE + 1)
    return sorted({plain[i : i + SHINGLE].encode() for i in range(last)})


class Overlap:
    """The texts of a file that no row may share: those of a test, for example.

    A row overlaps if it has `ngram` words in a row in common with any text of the file;
    texts of fewer words overlap with a row whose whole prompt they are. Case, punctuation
    and spaces do not count. The file holds one text a line, or, where its name ends in
    .jsonl, one JSON value a line whose strings are all texts; where it ends in .json, one
    such value. Raises CommunityError for a file that cannot be read or holds no text.
    """

    def __init__(self, path: Path, ngram: int = NGRAM) -> None:
        self.name = path.name
        self._ngram = ngram
        self._grams: set[bytes] = set()
        self._short: set[bytes] = set()
        for text in _texts(path):
            words = _words(text)
            if len(words) >= ngram:
                self._grams.update(self._ngrams(words))
            elif words:
                self._short.add(digest(*words))
        if not self._grams and not self._short:
            raise CommunityError(f"{path} holds no text to keep out; name the file of a test")

    def seen(self, texts: Sequence[str]) -> bool:
        """Whether a row of these texts, the prompt first, overlaps."""
        if digest(*_words(texts[0])) in self._short:
            return True
        return any(gram in self._grams for text in texts for gram in self._ngrams(_words(text)))

    def _ngrams(self, words: Sequence[str]) -> Iterator[bytes]:
        return (digest(*words[i : i + self._ngram]) for i in range(len(words) - self._ngram + 1))


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _texts(path: Path) -> Iterator[str]:
    """The texts of a file. Raises CommunityError for one that cannot be read."""
    kind = path.suffix.lower()
    try:
        with path.open(encoding="utf-8-sig") as lines:
            values = [lines.read()] if kind == ".json" else lines
            for number, line in enumerate(values, 1):
                if kind not in (".json", ".jsonl"):
                    yield line
                elif line.strip():
                    yield from _strings(_parsed(line, path, number))
    except OSError as error:
        raise CommunityError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CommunityError(f"{path} is not a text file in UTF-8: {error.reason}") from error


def _parsed(line: str, path: Path, number: int) -> Any:
    try:
        return json.loads(line, parse_int=float)  # of which Python reads any number of digits
    except json.JSONDecodeError as error:
        at = number + error.lineno - 1
        raise CommunityError(f"line {at} of {path} is not JSON: {error.msg}") from error
    except RecursionError as error:
        raise CommunityError(f"line {number} of {path} is nested too deeply") from error


def _strings(value: Any) -> Iterator[str]:
    """All strings in a JSON value but the keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)
