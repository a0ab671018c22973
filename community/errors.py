"""The one error a user can cause, and the suggestion that goes with it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CommunityError(Exception):
    """Something a user can mend: one sentence that says what is wrong and what to do.

    The command line prints it in one line and exits with code 2. Every other
    exception is a bug of ours and shows its traceback.
    """


def unknown(kind: str, name: str, known: Iterable[str]) -> CommunityError:
    """The error for a name that does not exist: lists what there is and the closest match."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return CommunityError(f"unknown {kind} {name!r}{hint} (there are: {', '.join(names)})")
