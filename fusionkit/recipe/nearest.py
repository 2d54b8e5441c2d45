"""The name that was probably meant."""

from __future__ import annotations

from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known name most like `word`; None if none is like it."""
    # Only a message needs it, and it is slow to import.
    from difflib import get_close_matches

    return next(iter(get_close_matches(word[:64], list(known), n=1)), None)
