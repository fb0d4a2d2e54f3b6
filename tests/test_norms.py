from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from regcheck.numerics.norms import BLOCK, SAMPLE, chosen, close_pairs, norm, norms


def close(expected: Any, rel: float = 1e-14) -> Any:
    """Compare by relative size alone; 1e-14 is some tens of roundings."""
    return pytest.approx(expected, rel=rel, abs=0.0)


# From 1e-155 down and 1e154 up squares leave float64's range; 1e-100 and 1e100 are where `norms`
# begins to scale, 1e-140 where `norm` does.
SCALES = [1.0, 1e-99, 1e99, 1e-101, 1e101, 1e-139, 1e-141, 1e-160, 1e160, 1e-200, 1e200, 1e-310]


@pytest.mark.filterwarnings("ignore:overflow")  # callers have them ignored
@pytest.mark.parametrize("scale", SCALES)
def test_norm_of_any_scale(scale: float) -> None:
    # Below 1e-308 numbers themselves have few digits.
    rel = 1e-14 if scale > 1e-300 else 1e-8
    X = np.array([[3.0, 0.0], [-4.0, 1.0]]) * scale
    found = norms(X)

    assert norm(np.array([3.0, -4.0]) * scale) == close(5 * scale, rel)
    assert found.columns == close(np.array([5.0, 1.0]) * scale, rel)
    assert found.rows == close(np.array([3.0, math.sqrt(17)]) * scale, rel)
    assert found.peaks == close(np.array([4.0, 1.0]) * scale, rel)


def test_norm_of_what_has_none() -> None:
    assert norm(np.zeros(3)) == 0.0
    assert norm(np.zeros(0)) == 0.0
    assert norm(np.array([1.0, math.inf])) == math.inf
    assert math.isnan(norm(np.array([1.0, math.nan])))
    assert [part.tolist() for part in norms(np.zeros((2, 3)))] == [[0.0] * 2, [0.0] * 3, [0.0] * 3]
    # Squares of float32 that overflow or vanish in float32.
    assert norm(np.array([3e-30, 4e-30], np.float32)) == close(5e-30, rel=1e-6)
    assert norm(np.array([3e30, 4e30], np.float32)) == close(5e30, rel=1e-6)


@pytest.mark.parametrize("rows", [1, 2, SAMPLE - 1, SAMPLE, SAMPLE + 1, 63, 100, 1000, 10**6])
def test_chosen_rows_are_spread_over_all(rows: int) -> None:
    places = chosen(rows)
    count = len(places)

    assert count == (rows if rows <= 3 * SAMPLE else max(SAMPLE, math.isqrt(rows) // 8))
    assert len(set(places.tolist())) == count
    assert (places.min(), places.max() < rows) == (0, True)
    # Multiples of the golden ratio leave no gap larger than φ² = 2.62 of the mean one.
    gaps = np.diff(np.append(np.sort(places), rows))
    assert gaps.max() <= 2.62 * rows / count + 1


def test_chosen_rows_keep_no_step_with_rows_that_repeat() -> None:
    # A million rows, of which each 1,000th, or each 64th, is the same: 125 rows, 7,750 pairs.
    for period in (1000, 64, 2):
        kind = chosen(10**6) % period
        _, counts = np.unique(kind, return_counts=True)
        share = float((counts * (counts - 1)).sum()) / (125 * 124)
        assert share == pytest.approx(1 / period, abs=0.15 / math.sqrt(period))


@pytest.mark.slow
def test_close_pairs_of_columns() -> None:
    rows = np.arange(1000.0)
    columns = np.stack([rows, np.ones(1000), 1 + 1e-9 * rows, rows % 7], axis=1)

    assert close_pairs(0.0, columns)[:3].tolist() == [0.0, 1.0, 0.0]
    assert close_pairs(1e-5, columns)[:3].tolist() == [0.0, 1.0, 1.0]
    assert close_pairs(1e-5, columns)[3] == pytest.approx(1 / 7, abs=0.05)
    assert close_pairs(0.0, np.ones((1, 1))).tolist() == [0.0]


def test_close_pairs_worked_by_hand() -> None:
    # Of 4 · 3 pairs in order, those of two equal rows are 2; of three, 6. The peak is 8, whatever
    # its sign, so that a tolerance of 1/8 of it allows a distance of 1, and no more.
    columns = np.array([[1.0, -8.0, 0.0], [1.0, 8.0, 7.0], [1.0, 8.0, 8.0], [8.0, 7.0, -8.0]])

    assert close_pairs(0.0, columns) == close(np.array([6, 2, 0]) / 12)
    assert close_pairs(1 / 8, columns) == close(np.array([6, 6, 2]) / 12)
    assert close_pairs(0.99 / 8, columns) == close(np.array([6, 2, 0]) / 12)
    assert close_pairs(0.0, np.array([[1.0], [1.0]])).tolist() == [1.0]


def test_close_pairs_are_close_in_every_table() -> None:
    columns = np.array([[1.0, 1.0], [1.0, 2.0], [2.0, 1.0], [2.0, 1.0]])
    other = np.array([[5.0], [5.0], [5.0], [9.0]])

    # Equal in the first column: rows 0 1, 2 3; in the second: 0 2, 0 3, 2 3; in the other: 0 1 2.
    assert close_pairs(0.0, columns) == close(np.array([4, 6]) / 12)
    assert close_pairs(0.0, columns, other) == close(np.array([2, 2]) / 12)


def test_close_pairs_in_float32_are_counted_in_float64() -> None:
    # 3e38 − (−3e38) is inf in float32; a warning would fail here.
    assert close_pairs(1.0, np.array([[3e38], [-3e38]], np.float32)).tolist() == [0.0]


@pytest.mark.filterwarnings("ignore:invalid value")  # callers have them ignored
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("odd", [1, 3, 32])
def test_close_pairs_of_no_numbers_are_none(value: float, odd: int) -> None:
    # A negative share would be the root of a negative number.
    column = np.zeros((32, 1))
    column[:odd] = value

    assert 0 <= close_pairs(1e-5, column).item() <= 1


@pytest.mark.parametrize("rows", [BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 5])
@pytest.mark.parametrize("scale", [1.0, 1e-200, 1e200])
def test_norms_of_more_rows_than_are_taken_at_once(rows: int, scale: float) -> None:
    X = np.random.default_rng(5).normal(size=(rows, 3)) * [1.0, -10.0, 0.1]
    found = norms(scale * X)

    # Sums of a few thousand squares and a root: some ten last digits at most.
    for part, expected in zip(
        found,
        (np.linalg.norm(X, axis=1), np.linalg.norm(X, axis=0), np.abs(X).max(axis=0)),
        strict=True,
    ):
        np.testing.assert_allclose(part, scale * expected, rtol=1e-14)
