"""Sizes of vectors and columns, as the rounding bound takes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

SAMPLE = 32
"""Rows looked at, at least, for terms that round alike."""

GOLDEN = (math.sqrt(5) - 1) / 2
"""The golden ratio's share of 1."""


class Norms(NamedTuple):
    """Norms of a matrix (n, d): of its rows (n,), of its columns (d,), and the columns' peaks."""

    rows: Array
    columns: Array
    peaks: Array


BLOCK = 2048
"""Rows whose squares are taken together: few enough to stay in the processor's cache."""


def norms(X: Array) -> Norms:
    """‖x_i‖, ‖x_j‖ and max |x_ij| of each column, safe against overflow of the squares."""
    with np.errstate(over="ignore", under="ignore"):
        found = plain_norms(X)
    if 1e-100 < float(found.peaks.max()) < 1e100:
        return found
    peak = float(np.abs(X).max())
    if peak == 0:
        return found
    return Norms(*(peak * each for each in plain_norms(X / peak)))


def plain_norms(X: Array) -> Norms:
    """Take the norms, and each column's largest size, from one pass over the squares."""
    rows, columns, peaks = np.zeros(len(X)), np.zeros(X.shape[1]), np.zeros(X.shape[1])
    for start in range(0, len(X), BLOCK):
        squares = np.square(X[start : start + BLOCK])
        rows[start : start + BLOCK] = squares @ np.ones(X.shape[1])
        columns += squares.sum(axis=0)
        np.maximum(peaks, squares.max(axis=0), out=peaks)
    return Norms(np.sqrt(rows), np.sqrt(columns), np.sqrt(peaks))


def norm(vector: Array) -> float:
    """‖v‖ in float64; computed from v over its largest entry where squares would overflow."""
    vector = np.asarray(vector, np.float64)
    size = math.sqrt(float(np.dot(vector, vector)))
    if math.isfinite(size) and size > 1e-140:
        return size
    peak = float(np.abs(vector).max(initial=0.0))
    if not 0 < peak < math.inf:
        return peak
    scaled = vector / peak
    return peak * math.sqrt(float(np.dot(scaled, scaled)))


def chosen(rows: int) -> NDArray[np.intp]:
    """Choose 32 of so many rows or more, √rows/8, or all where they are few.

    Of two rows' agreeing by a chance of some hundreds in n, they still show a few.
    """
    return spread(rows, max(SAMPLE, math.isqrt(rows) // 8))


def spread(rows: int, count: int) -> NDArray[np.intp]:
    """Choose so many of the rows, or all where they are hardly more.

    They are spread over all by multiples of the golden ratio's share, which keep no step with rows
    that repeat.
    """
    if rows <= 3 * count:  # else two multiples may fall on one row
        return np.arange(rows)
    return (rows * (GOLDEN * np.arange(count) % 1)).astype(np.intp)


def close_pairs(tolerance: float, *tables: Array) -> Array:
    """Return the share of pairs of rows that are close in all tables, column by column.

    Close are two entries that differ by at most tolerance times the column's largest. A table of
    one column goes with every column of the others.
    """
    near: Array | bool = True
    for table in tables:
        some = table.astype(np.float64)
        distances = np.abs(some[:, None] - some)
        near = near & (distances <= tolerance * np.abs(some).max(axis=0))
    rows = len(tables[0])
    # No entry is close to one that is no number, not even to itself.
    pairs = np.maximum(np.count_nonzero(near, axis=(0, 1)) - rows, 0)
    return np.asarray(pairs / max(1, rows * (rows - 1)))


def clipped(
    gradients: Mapping[str, Array],
    clip_norm: float | None,
    clip_value: float | None,
    epsilon: float = 1e-6,
) -> dict[str, Array]:
    """Clip as torch does: g · min(1, C/(‖g‖ + 1e-6)) over all tensors, or each entry to ±C."""
    if clip_value is not None:
        return {name: np.clip(g, -clip_value, clip_value) for name, g in gradients.items()}
    if clip_norm is None:
        return dict(gradients)
    norm = np.sqrt(sum(np.sum(g * g) for g in gradients.values()))
    with np.errstate(divide="ignore"):  # a gradient of 0 is not clipped
        factor = np.minimum(1, clip_norm / (norm + epsilon))
    return {name: g * factor.astype(g.dtype) for name, g in gradients.items()}
