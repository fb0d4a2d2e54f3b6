"""Terms of a sum, and features, that round alike."""

from __future__ import annotations

import math

import numpy as np
import pytest

from regcheck.numerics.bounds.rounding import FEW, RoundingModel
from regcheck.numerics.norms import chosen
from tests.rounded_steps import (
    U64,
    Array,
    close,
    problem_of,
)


def terms(s: Array, *columns: Array) -> Array:
    """Give the terms of each column and the bias, of a batch of all rows."""
    X = np.column_stack(columns).tolist()
    model = RoundingModel(problem_of(data={"X": X, "y": [0.0] * len(s)}))
    return np.broadcast_to(model.terms(slice(0, len(s)), s), len(columns) + 1)


def where_looked(values: Array, size: int = 4 * FEW) -> Array:
    """Make zeros with these 32 values at the places that are looked at."""
    made = np.zeros(size)
    made[chosen(size)] = values
    return made


RANDOM = np.random.default_rng(0).normal(size=4 * FEW)
HALVES = where_looked(np.repeat([1.0, 2.0], 16))
"""Two values; of the 32 · 31 pairs 2 · 16 · 15 agree."""
TURNS = where_looked(np.tile([1.0, 2.0], 16))
"""Two values, of which HALVES has each one at 8 of the other's: 4 · 8 · 7 pairs agree in both."""
HALF, QUARTER = 15 / 31, 7 / 31


def many(size: int, share: float = 1.0) -> float:
    """Give √(B + B² share)."""
    return math.sqrt(size + size**2 * share)


def test_terms_that_are_close_round_alike() -> None:
    ones, rows = np.ones(4 * FEW), 4 * FEW
    expected = np.array([many(rows), math.sqrt(rows), many(rows)])

    assert terms(ones, ones, RANDOM) == close(expected)
    assert terms(1 + 1e-15 * RANDOM, ones, RANDOM) == close(expected)
    assert terms(RANDOM, ones, RANDOM) == close(np.full(3, math.sqrt(rows)))
    assert terms(ones[:FEW], ones[:FEW]) == close(np.full(2, many(FEW)))
    assert terms(ones[: FEW - 1], ones[: FEW - 1]) == close(np.full(2, math.sqrt(FEW - 1)))


def test_terms_that_are_half_alike() -> None:
    ones, rows = np.ones(4 * FEW), 4 * FEW
    for s, shares in [
        (ones, [1, HALF, HALF, 0, 1]),
        (HALVES, [HALF, HALF, QUARTER, 0, HALF]),
        (-HALVES, [HALF, HALF, QUARTER, 0, HALF]),
        (TURNS, [HALF, QUARTER, HALF, 0, HALF]),
    ]:
        expected = [many(rows, share) for share in shares]
        assert terms(s, ones, HALVES, TURNS, RANDOM) == close(np.array(expected))


def test_terms_are_those_of_the_batch() -> None:
    # The first half of the rows is alike, the second is not: in x, with slopes that are all alike.
    rows = 4 * FEW
    column = np.concatenate([np.ones(rows), RANDOM])
    model = RoundingModel(problem_of(data={"X": column[:, None].tolist(), "y": [0.0] * 2 * rows}))
    ones, places = np.ones(rows), np.arange(rows)

    for first, expected in [(0, many(rows)), (rows, math.sqrt(rows))]:
        for index in (slice(first, first + rows), first + places):
            assert model.terms(index, ones) == close(np.array([expected, many(rows)]))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_terms_of_which_some_are_alike(sign: float) -> None:
    # All but one of the 32: 31 · 30 of 32 · 31 pairs. Or 31 numbers, of which neighbours are alike
    # by the measure of the 32nd, which is the largest: 2 · 30 pairs.
    rows, ramp = 4 * FEW, 0.6 * U64 * FEW * np.arange(32.0)
    ramp[31] = 1.0
    for values, pairs in [(np.repeat([0.0, 1.0], [1, 31]), 31 * 30), (ramp, 2 * 30)]:
        found = terms(sign * where_looked(values), np.ones(rows))
        assert found == close(np.full(2, many(rows, pairs / (32 * 31))))


@pytest.mark.parametrize("scale", [1.0, -1.0, 2.0**-20, -(2.0**20)])
@pytest.mark.parametrize(("distance", "share"), [(0.9 / 31, 1.0), (1.1, 0.0)])
def test_terms_are_alike_within_a_quarter_of_the_sum_s_last_digit(
    distance: float, scale: float, share: float
) -> None:
    # u B/4 of the largest, whatever its scale; all 32 that are looked at lie within it, or no two.
    ones, rows = np.ones(4 * FEW), 4 * FEW
    ramp = where_looked(scale * (1 + distance * U64 * rows / 4 * np.arange(32)))

    assert terms(ones, ramp) == close(np.array([many(rows, share), many(rows)]))
    assert terms(ramp, ones) == close(np.full(2, many(rows, share)))


def losses_alike(s: Array) -> float:
    model = RoundingModel(problem_of(data={"X": [[0.0]] * len(s), "y": [0.0] * len(s)}))
    return model.losses_alike(s)


def test_losses_of_slopes_of_one_size_round_alike() -> None:
    ones, rows = np.ones(4 * FEW), 4 * FEW
    for s, share in [
        (ones, 1.0),
        (np.sign(RANDOM), 1.0),
        (HALVES, HALF),
        (1 + 1e-15 * RANDOM, 1.0),
        (RANDOM, 0.0),
    ]:
        assert losses_alike(s) == close(many(rows, share))
    assert losses_alike(ones[:FEW]) == close(many(FEW))
    assert losses_alike(ones[: FEW - 1]) == close(math.sqrt(FEW - 1))


@pytest.mark.parametrize(("distance", "share"), [(0.9 / 31, 1.0), (1.1, 0.0)])
def test_losses_are_alike_within_a_quarter_of_the_sum_s_last_digit(
    distance: float, share: float
) -> None:
    rows = 4 * FEW
    ramp = where_looked(1 + distance * U64 * rows / 4 * np.arange(32))
    assert losses_alike(ramp) == close(many(rows, share))


def features_alike(weight: Array, *rows: Array) -> float:
    model = RoundingModel(problem_of(data={"X": np.stack(rows).tolist(), "y": [1.0] * len(rows)}))
    return model.features_alike(weight[None, :])


def test_features_that_are_alike_round_alike() -> None:
    ones, features = np.ones(4 * FEW), 4 * FEW
    # The row whose features are the most alike counts.
    for weight, row, share in [
        (ones, ones, 1.0),
        (HALVES, ones, HALF),
        (ones, HALVES, HALF),
        (TURNS, HALVES, QUARTER),
        (ones, RANDOM, 0.0),
        (RANDOM, ones, 0.0),
    ]:
        assert features_alike(weight, RANDOM, row) == close(many(features, share))
    for size, expected in [(FEW, many(FEW)), (FEW - 1, math.sqrt(FEW - 1))]:
        assert features_alike(ones[:size], ones[:size]) == close(expected)


@pytest.mark.parametrize(("distance", "share"), [(0.9 / 31, 1.0), (1.1, 0.0)])
def test_features_are_alike_within_a_quarter_of_the_sum_s_last_digit(
    distance: float, share: float
) -> None:
    ones, features = np.ones(4 * FEW), 4 * FEW
    ramp = where_looked(1 + distance * U64 * features / 4 * np.arange(32))

    assert features_alike(ones, ramp) == close(many(features, share))
    assert features_alike(ramp, ones) == close(many(features, share))
