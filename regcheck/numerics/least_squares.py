"""Weighted least squares: factors that are fitted, and how well each is known.

Each residual is divided by its rounding bound, so that the deviation of a factor c is what one
bound makes of it, 1/√Σ (slope/bound)², and a few units in c's own last place.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

SLACK = 8.0
"""Deviations within which a value cannot be distinguished from a fitted factor."""

ROUNDED = 4.0
"""Units u in the last place of a factor that are lost to its own computation, on either side.

However many steps determine a factor, a user's lr·c is rounded once for all of them, and its n or λ
too: a few u |c|, which do not average out as the entries' rounding does.
"""


class Fit(NamedTuple):
    """A fitted factor, and its deviation: what one rounding bound makes of it."""

    factor: float
    deviation: float

    def is_near(self, value: float) -> bool:
        """Whether a value cannot be distinguished from the fitted factor."""
        return abs(self.factor - value) <= SLACK * self.deviation

    def plain(self, among: Iterable[float] = ()) -> Fit:
        """Replace the factor by the plainest near one: one of some, or the shortest decimal."""
        shortest = (float(f"{self.factor:.{digits}g}") for digits in range(1, 17))
        near = (value for value in chain(among, shortest) if self.is_near(value))
        return self._replace(factor=next(near, self.factor))


def fit_each(slope: Array, target: Array, axis: int) -> tuple[Array, Array]:
    """Fit target ≈ c slope along an axis, both divided by their bounds.

    Returns c and what one bound makes of it; they are no numbers where the slope is 0 throughout.
    """
    with np.errstate(all="ignore"):
        weight = np.asarray((slope**2).sum(axis=axis))
        return np.asarray((slope * target).sum(axis=axis)) / weight, 1 / np.sqrt(weight)


def fit_all(slope: Array, target: Array) -> tuple[float, float]:
    """Fit one c to all steps, (steps, entries), adding up step after step."""
    with np.errstate(all="ignore"):
        weight = np.float64(sum(float(row @ row) for row in slope))
        moment = sum(float(row @ rest) for row, rest in zip(slope, target, strict=True))
        return float(moment / weight), float(1 / np.sqrt(weight))


def rounded(factor: float, spread: float, u: float) -> Fit:
    """Return a factor with the deviation √(spread² + (4 u c)²)."""
    return Fit(factor, math.hypot(spread, ROUNDED * u * factor))


class Solution(NamedTuple):
    """A fit of several factors.

    Attributes:
        fits: of each column; None where it is within `least` bounds of 0 and says nothing.
        residual: the largest difference left, in bounds.
        unique: whether no column is a combination of the others.
        entries: how many it is fitted to.
    """

    fits: tuple[Fit | None, ...]
    residual: float
    unique: bool
    entries: int


def fit_columns(
    columns: Sequence[Array],
    target: Array,
    bound: Array,
    u: float,
    *,
    least: float = 0.0,
    rcond: float = 1e-12,
) -> Solution:
    """Fit target ≈ Σ c_k column_k, each entry divided by its bound; infinite ones are left out.

    Args:
        columns: what each factor multiplies, in the target's shape.
        target: what they add up to.
        bound: of each entry.
        u: the unit roundoff of the factors' own computation.
        least: the size of a column, in bounds, below which it says nothing.
        rcond: the share of the largest singular value below which one counts as 0.
    """
    with np.errstate(all="ignore"):
        matrix = np.column_stack([np.ravel(column / bound) for column in columns])
        rest = np.ravel(target / bound)
    kept = np.isfinite(rest) & np.isfinite(matrix).all(axis=1)
    matrix, rest = matrix[kept], rest[kept]
    sizes = np.sqrt((matrix**2).sum(axis=0))
    shown = np.flatnonzero(sizes > least)
    fits: list[Fit | None] = [None] * len(columns)
    rank = 0
    if len(shown):
        scaled = matrix[:, shown] / sizes[shown]
        solution, _, rank, _ = np.linalg.lstsq(scaled, rest, rcond=rcond)
        spread = np.sqrt((np.linalg.pinv(scaled, rcond=rcond) ** 2).sum(axis=1))
        rest = rest - scaled @ solution
        for index, factor, own in zip(shown, solution, spread, strict=True):
            fits[index] = rounded(float(factor / sizes[index]), float(own / sizes[index]), u)
    residual = float(np.abs(rest).max(initial=0.0))
    return Solution(tuple(fits), residual, rank == len(shown), len(rest))
