"""Rows to training and test rows: held-out share, then standardizing by the training rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from regcheck.problem.data.files import held_out
from regcheck.problem.data.load import Rows
from regcheck.problem.data.npz import Numbers
from regcheck.spec import LoadedSpec


class Split(NamedTuple):
    """Training rows and test rows; the test rows may be none (shape (0, ..))."""

    X: Numbers
    y: Numbers
    X_test: Numbers
    y_test: Numbers


def prepare(loaded: LoadedSpec, rows: Rows) -> Split:
    """Split off the test rows and standardize.

    Without a seed the first rows train and the last are held out; with one, a permutation from
    `numpy.random.default_rng(seed)` decides, and its first rows train.

    Raises:
        InputError: no row is left to train on, or the scales overflow.
    """
    data = loaded.spec.data
    X, y = rows.X, rows.y
    train = len(y)
    if data.test is not None:
        train -= held_out(len(y), data.test.share)
        if train < 1:
            text = f"holds out all {len(y)} samples, and none is left to train on; lower the share"
            raise loaded.error(("data", "test"), text)
        if data.test.seed is not None:
            order = np.random.default_rng(data.test.seed).permutation(len(y))
            X, y = X[order], y[order]
    if data.standardize is not None:
        X = standardized(loaded, X, train, data.standardize.ddof)
    return Split(np.ascontiguousarray(X[:train]), y[:train], X[train:], y[train:])


def standardized(loaded: LoadedSpec, X: Numbers, train: int, ddof: int) -> Numbers:
    """Return (X − mean)/s with mean and s of the first `train` rows.

    s divides by train − ddof, as NumPy's `std`; a column that is constant there keeps s = 1, as
    scikit-learn's StandardScaler does.
    """
    if X.ndim > 2:
        text = f"standardizes the columns of X (n, d), and X is {X.shape}; do it before you save X"
        raise loaded.error(("data", "standardize"), text)
    if train <= ddof:
        text = f"ddof {ddof} needs at least {ddof + 1} training samples, got {train}"
        raise loaded.error(("data", "standardize"), text)
    with np.errstate(over="ignore", invalid="ignore"):
        mean = X[:train].mean(axis=0)
        spread = X[:train].std(axis=0, ddof=ddof)
        # Rounding leaves a constant column with a spread of a few ulps of its value.
        constant = spread <= 10 * np.finfo(np.float64).eps * np.abs(mean)
        scaled: Numbers = (X - mean) / np.where(constant, 1.0, spread)
    # A spread that overflows would make the column 0, which is finite and wrong.
    if not (np.isfinite(spread).all() and np.isfinite(scaled).all()):
        text = "overflows: the numbers are too large; scale them down in the file"
        raise loaded.error(("data", "standardize"), text)
    return scaled
