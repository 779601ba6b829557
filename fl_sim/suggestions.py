"""The answer to a name that nobody knows: those that are known, and the nearest of them."""

from collections.abc import Collection, Iterable
from difflib import get_close_matches


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` with the known name nearest to ``name``, or nothing."""
    matches = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def one_of(name: str, known: Collection[str]) -> str:
    """Return which names are known, and the one nearest to ``name``."""
    return f"one of {', '.join(known)}{nearest(name, known)}" if known else "it takes none"
