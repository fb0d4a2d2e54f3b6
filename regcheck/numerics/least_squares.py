"""Weighted least squares: factors that are fitted, and how well each is known; Newton's method.

Each residual is divided by its rounding bound, so that the deviation of a factor c is what one
bound makes of it, 1/√Σ (slope/bound)², and a few units in c's own last place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Places = NDArray[np.intp]

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

    def is_near(self, value: float, slack: float = SLACK) -> bool:
        """Whether a value cannot be distinguished from the fitted factor."""
        return abs(self.factor - value) <= slack * self.deviation

    def plain(self, among: Iterable[float] = (), slack: float = SLACK) -> Fit:
        """Replace the factor by the plainest near one: one of some, or the shortest decimal."""
        shortest = (float(f"{self.factor:.{digits}g}") for digits in range(1, 17))
        near = (value for value in chain(among, shortest) if self.is_near(value, slack))
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


def newton(function: Callable[[Array], Array], at: Array, value: Array, rest: Array) -> Array:
    """Return J⁺ rest, by which Newton's method moves w so that f(w) moves by the rest.

    J is taken by forward differences from f(w) = value: column k is (f(w + h e_k) − f(w))/h.
    NaN where it is not finite.
    """
    jacobian = np.empty((len(value), len(at)))
    for entry, number in enumerate(at):
        h = 1e-6 * max(1.0, abs(float(number)))
        moved = at.copy()
        moved[entry] += h
        jacobian[:, entry] = (function(moved) - value) / h
    if not np.isfinite(jacobian).all():
        return np.full_like(at, math.nan)
    return np.asarray(np.linalg.lstsq(jacobian, rest, rcond=1e-13)[0])


def longer(factor: Array | float, slope: Array) -> Array:  # noqa: ARG001
    """Return how many times the bounds of a step hold those of c times it, max(1, |c|/4)."""
    return np.maximum(1.0, np.abs(factor) / 4)


Wider = Callable[[Array | float, Array], Array]
"""How many times its bounds the rounding of c slope may be, by c and the slope."""


def equal_factors(slope: Array, target: Array, u: float, wider: Wider = longer) -> list[Places]:
    """Put columns that are fitted by the same factor together: target ≈ c slope in each.

    Empty where one of them is fitted by none, or has no slope beyond its bounds.
    """
    if not (np.abs(slope) > 1).any(axis=0).all():
        return []
    factors, spread = fit_each(slope, target, 0)
    if (np.abs(target - factors * slope) / wider(factors, slope)).max() > 1:
        return []
    slack = SLACK * np.hypot(spread, ROUNDED * u * factors)
    order = np.argsort(factors, kind="stable")
    differ = np.diff(factors[order]) > np.maximum(slack[order][1:], slack[order][:-1])
    return [np.sort(group) for group in np.split(order, np.flatnonzero(differ) + 1)]
