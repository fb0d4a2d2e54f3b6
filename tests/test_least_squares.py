"""Weighted least squares: factors worked by hand, how well they are known, and plain numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from regcheck.numerics.least_squares import (
    Fit,
    equal_factors,
    fit_all,
    fit_columns,
    fit_each,
    longer,
    newton,
    rounded,
)

SLOPE = np.array([[1.0, 2.0], [2.0, 4.0]])


def test_one_factor_is_fitted_to_all_steps_or_to_each() -> None:
    # c = Σ s t / Σ s², and one bound makes 1/√Σ s² of it.
    target = SLOPE * [[3.0], [5.0]]
    assert fit_all(SLOPE, target) == pytest.approx(((5 * 3 + 20 * 5) / 25, 1 / 5))
    factors, spread = fit_each(SLOPE, target, 1)
    assert factors == pytest.approx([3, 5])
    assert spread == pytest.approx([1 / math.sqrt(5), 1 / math.sqrt(20)])
    assert math.isnan(fit_all(0 * SLOPE, target)[0])


def test_columns_are_fitted_each_weighted_by_its_bound() -> None:
    one, other = np.array([1.0, 0.0, 1.0, 9.0]), np.array([0.0, 1.0, 0.0, np.nan])
    # Of 2 and 4 for one, the first is known four times as well: (16·2 + 4)/17. NaN is left out.
    target, bound = np.array([2.0, 3.0, 4.0, 1.0]), np.array([0.25, 1.0, 1.0, 1.0])
    found = fit_columns([one, other], target, bound, 0.0)
    assert (found.unique, found.entries) == (True, 3)
    first, second = found.fits
    assert first == pytest.approx((36 / 17, 1 / math.sqrt(17)))
    assert second == pytest.approx((3, 1))
    assert found.residual == pytest.approx(4 - 36 / 17)


def test_column_that_says_nothing_and_one_that_repeats_another_are_known() -> None:
    one, target = np.array([1.0, 2.0]), np.array([3.0, 6.0])
    small = fit_columns([one, 1e-3 * one], target, np.ones(2), 0.0, least=1.0)
    assert (small.fits[1], small.unique) == (None, True)
    assert small.fits[0] == pytest.approx((3, 1 / math.sqrt(5)))
    assert not fit_columns([one, 2 * one], target, np.ones(2), 0.0).unique
    nothing = fit_columns([0 * one], target, np.ones(2), 0.0)
    assert (nothing.fits, nothing.residual) == ((None,), 6)


def test_factor_is_known_to_its_spread_and_to_its_own_last_places() -> None:
    # √(3² + (4 · 0.25 · 4)²)
    assert rounded(4.0, 3.0, 0.25) == Fit(4.0, 5.0)


@pytest.mark.parametrize(
    ("fit", "among", "plain"),
    [
        (Fit(0.333333, 1e-6), (1 / 3,), 1 / 3),
        (Fit(0.333333, 1e-6), (), 0.33333),
        (Fit(0.1000000001, 1e-10), (0.5,), 0.1),
        (Fit(0.1000000001, 1e-12), (0.5,), 0.1000000001),
        (Fit(math.pi, 0.0), (), math.pi),
    ],
)
def test_plainest_number_is_taken_that_is_near(
    fit: Fit, among: tuple[float, ...], plain: float
) -> None:
    assert fit.plain(among) == Fit(plain, fit.deviation)
    assert fit.is_near(plain)
    assert not fit.is_near(plain + 17 * fit.deviation + 1e-15)


def test_newtons_step_goes_to_where_the_tangent_is_the_target() -> None:
    slope = np.array([[2.0, 1.0], [0.0, 4.0]])
    at, wanted = np.array([3.0, -5.0]), np.array([1.0, 2.0])
    rest = wanted - slope @ at
    # J is that slope but for the rounding of a difference over 1e-6.
    assert slope @ (at + newton(lambda w: slope @ w, at, slope @ at, rest)) == pytest.approx(
        wanted, abs=1e-7
    )
    # w² = 4 from 3: (4 − 9)/6
    assert newton(np.square, np.array([3.0]), np.array([9.0]), np.array([-5.0])) == pytest.approx(
        [-5 / 6], rel=1e-5
    )
    assert np.isnan(newton(lambda w: w * np.inf, at, at, at)).all()


def test_newtons_step_where_a_direction_says_nothing_leaves_it() -> None:
    at = np.array([1.0, 7.0])
    moved = newton(lambda w: np.array([w[0], 0.0]), at, np.array([1.0, 0.0]), np.array([2.0, 0.0]))
    assert moved == pytest.approx([2, 0])


def test_columns_of_equal_factors_are_put_together() -> None:
    slope = np.array([[10.0, 20.0, 30.0, 40.0], [20.0, 10.0, 10.0, 10.0]])
    groups = equal_factors(slope, slope * [2.0, 5.0, 2.0, 5.0], 1e-16)
    assert [group.tolist() for group in groups] == [[0, 2], [1, 3]]
    # Of slopes near 22, factors 0.1 apart are the same to a bound each, within 8 deviations.
    near = equal_factors(slope, slope * [2.0, 2.1, 2.0, 2.1], 1e-16)
    assert [group.tolist() for group in near] == [[0, 1, 2, 3]]


def test_columns_without_a_factor_or_a_slope_have_no_groups() -> None:
    slope = np.array([[10.0, 20.0], [20.0, 10.0]])
    assert equal_factors(slope, slope * [[2.0], [3.0]], 1e-16) == []
    assert equal_factors(slope * [1.0, 0.01], slope, 1e-16) == []


def test_bounds_of_a_longer_step_grow_from_the_fourfold_on() -> None:
    ones = np.ones(4)
    assert longer(np.array([-8.0, 0.5, 4.0, 6.0]), ones) == pytest.approx([2, 1, 1, 1.5])


def test_columns_have_one_factor_within_the_bounds_that_are_asked_for() -> None:
    # 400 times a slope that falls by a tenth is 40 off: within 400/4 bounds, and not within one.
    slope, target = np.array([[1.1], [1.0]]), np.array([[400.0], [400.0]])
    assert len(equal_factors(slope, target, 1e-16)) == 1
    assert equal_factors(slope, target, 1e-16, lambda factor, slope: np.ones(1)) == []
    wide = equal_factors(slope, target, 1e-16, lambda factor, slope: abs(factor * slope))
    assert len(wide) == 1
