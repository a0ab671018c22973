"""What is typed into a search box -> words, and fields such as author:ada or round:3-7."""

from __future__ import annotations

from collections.abc import Sequence

from community.errors import CommunityError
from community.wanted import rounds_of


def asked(text: str, fields: Sequence[str]) -> tuple[str, dict[str, str]]:
    """The words, and the fields among `fields` with what they are to be.

    Raises CommunityError for a field that is not known or has nothing behind the colon.
    """
    words, found = [], {}
    for word in text.split():
        name, colon, value = word.partition(":")
        if colon and name in fields:
            if not value:
                raise CommunityError(f"{name}: needs a value, as in {name}:{EXAMPLES[name]}")
            found[name] = value
        else:
            words.append(word)
    return " ".join(words), found


EXAMPLES = {"id": "0b12", "author": "ada", "learner": "ada", "arena": "gcd", "round": "3-7"}


def rounds(text: str) -> tuple[int, int | None]:
    """3, 3-7, 3- or nothing -> first and last. Raises CommunityError for anything else."""
    first, last = rounds_of(text)
    return first or 1, last
