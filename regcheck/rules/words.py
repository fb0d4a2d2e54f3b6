"""Names in a sentence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def all_of(names: Iterable[str], word: str = "and", most: int = 0) -> str:
    """List names; of many only the first `most`, and how many more there are; 0 lists all.

    >>> all_of(["a", "b"]), all_of(["a", "b", "c"]), all_of("abcd", "or", most=2)
    ('a and b', 'a, b and c', 'a, b or 2 more')
    """
    found = list(names)
    shown = first_of(found, most)
    if len(shown) < len(found):
        shown = [*shown, f"{len(found) - len(shown)} more"]
    *others, last = shown
    return f"{', '.join(others)} {word} {last}" if others else last


def first_of(names: Sequence[str], most: int) -> Sequence[str]:
    """Return those names that a list of at most so many has: one more stands for itself."""
    return names[:most] if 0 < most < len(names) - 1 else names
