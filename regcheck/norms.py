"""Sizes of vectors and columns, as the rounding bound takes them."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

SAMPLE = 32
"""Rows looked at for terms that round alike."""


class Norms(NamedTuple):
    """Norms of a matrix (n, d): of its rows (n,), of its columns (d,), and the columns' peaks."""

    rows: Array
    columns: Array
    peaks: Array


def norms(X: Array) -> Norms:
    """‖x_i‖, ‖x_j‖ and max |x_ij| of each column, safe against overflow of the squares."""
    peaks = np.maximum(X.max(axis=0), -X.min(axis=0))
    peak = float(peaks.max())
    if peak == 0:
        return Norms(np.zeros(len(X)), peaks, peaks)
    scale = 1.0 if 1e-100 < peak < 1e100 else peak
    scaled = X if scale == 1.0 else X / scale
    return Norms(
        scale * np.sqrt(np.einsum("ij,ij->i", scaled, scaled)),
        scale * np.sqrt(np.einsum("ij,ij->j", scaled, scaled)),
        peaks,
    )


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


def sample(rows: Array) -> Array:
    """Take 32 rows spread over all, or all where they are fewer."""
    return rows[:: max(1, len(rows) // SAMPLE)][:SAMPLE]


def close_pairs(columns: Array, tolerance: float) -> Array:
    """Give the share of pairs in each column that differ by at most tolerance times its peak."""
    some = sample(columns).astype(np.float64)
    near = np.abs(some[:, None] - some) <= tolerance * np.abs(some).max(axis=0)
    pairs = max(1, len(some) * (len(some) - 1))
    return np.asarray((np.count_nonzero(near, axis=(0, 1)) - len(some)) / pairs)
