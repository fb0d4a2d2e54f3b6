"""Numbers in columns: one format for all of a column, with as many digits as show what differs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

DIGITS = (9, 17)
"""Significant digits: those of a column at first, and where two numbers would look the same."""

NARROW = 5
"""Significant digits where there is little room."""

PLAIN = (1e-3, 1e6)
"""Sizes between which numbers are written without an exponent."""


def in_columns(
    left: Sequence[float], right: Sequence[float], narrow: bool = False
) -> tuple[list[str], list[str]]:
    """Write two columns of numbers in one format, so that unequal neighbours look unequal.

    >>> in_columns([0.5, -0.25], [0.5, 1.0])
    (['0.50000000', '-0.25000000'], ['0.50000000', '1.00000000'])
    >>> in_columns([1e-6], [0.5])
    (['1.00000000e-06'], ['5.00000000e-01'])
    """
    numbers = [*left, *right]
    for digits in (NARROW, *DIGITS) if narrow else DIGITS:
        write = form_of(numbers, digits)
        columns = [write(one) for one in left], [write(one) for one in right]
        pairs = zip(*columns, left, right, strict=True)
        if all(mine != theirs or own == other for mine, theirs, own, other in pairs):
            break
    return columns


def form_of(numbers: Sequence[float], digits: int) -> Callable[[float], str]:
    """Return how all of some numbers are written: without exponents, or with them."""
    sizes = [abs(one) for one in numbers if one and math.isfinite(one)]
    low, high = PLAIN
    if all(low <= size < high for size in sizes):
        before = len(str(int(max(sizes, default=0.0))))
        return lambda value: f"{value:.{digits - before}f}"
    return lambda value: f"{value:.{digits - 1}e}"


def power(value: float) -> str:
    """Write a number with two digits and an exponent, as all of its column.

    >>> power(0.00123), power(0.0)
    ('1.2e-03', '0')
    """
    return "0" if value == 0 else f"{value:.1e}"
