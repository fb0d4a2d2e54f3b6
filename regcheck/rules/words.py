"""Names in a sentence."""

from __future__ import annotations

from collections.abc import Iterable


def all_of(names: Iterable[str], word: str = "and", most: int = 0) -> str:
    """List names; of many only the first `most`, and how many more there are; 0 lists all.

    >>> all_of(["a", "b"]), all_of(["a", "b", "c"]), all_of("abcd", "or", most=2)
    ('a and b', 'a, b and c', 'a, b or 2 more')
    """
    found = list(names)
    if 0 < most < len(found) - 1:
        found = [*found[:most], f"{len(found) - most} more"]
    *others, last = found
    return f"{', '.join(others)} {word} {last}" if others else last
