"""All tensors' entries one after the other: many small tensors at the cost of one."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

FEW_TENSORS = 2
"""Up to so many, each on its own takes no longer than all together."""

LARGE = 2**16
"""Entries from which on a copy of all takes longer than a few calls for each tensor."""


def flat(tensors: Mapping[str, Array]) -> Array:
    """Put all tensors' entries one after the other, in float64."""
    return np.concatenate([x.ravel() for x in tensors.values()], dtype=np.float64)


def worth_packing(tensors: Mapping[str, Array]) -> bool:
    """Return whether tensors are so many and so small that one vector of them is faster."""
    return len(tensors) > FEW_TENSORS and sum(x.size for x in tensors.values()) <= LARGE


def starts(tensors: Mapping[str, Array]) -> list[int]:
    """Return where each tensor's entries begin."""
    found, place = [], 0
    for x in tensors.values():
        found.append(place)
        place += x.size
    return found


def position(place: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the index of an entry that is counted along the rows.

    >>> position(7, (2, 4))
    (1, 3)
    """
    index: tuple[int, ...] = ()
    for size in reversed(shape):
        place, at = divmod(place, size)
        index = (at, *index)
    return index


def largest_in_each(entries: Array, begins: list[int]) -> list[float]:
    """Return the largest entry of each tensor; NaN where there is one."""
    return np.maximum.reduceat(entries, begins).tolist()  # type: ignore[no-any-return]


def finite(*arrays: Array) -> bool:
    """Return whether all entries are finite, and their sums."""
    return all(math.isfinite(float(np.add.reduce(x))) for x in arrays)
