"""Drift by hand: what would have allowed it, and when it counts as amplified."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from regcheck.compare.differences import Difference
from regcheck.compare.drift import AMPLIFIED, NOTHING_PASSES, DriftMeter, Needed, needed
from regcheck.compare.steps import Row
from regcheck.problem.problem import Array, Step
from regcheck.spec.sections.tolerance import Tolerance, Tolerances

NONE = Tolerance()
THIRD = float(np.float32(1 / 3))


def numbers(*values: float, dtype: Any = np.float64) -> Array:
    return np.array([values], dtype)


def local(ratio: float = 0.5, *, judged: bool = True) -> Difference:
    return Difference("weight", (0, 0), 1.0, 1.0, ratio, 1.0, ratio, judged)


# --- needed -------------------------------------------------------------------------------------

# |3 − 4| = 1 is a quarter of 4, |10 − 8| = 2 a quarter of 8, |0.5 − 1| half of 1.
THREE = (numbers(3, 10, 0.5), numbers(4, 8, 1))


@pytest.mark.parametrize(
    ("tolerance", "sides", "rtol", "atol"),
    [
        (NONE, THREE, 0.5, 2.0),
        # Beside atol 0.4: 0.6/4, 1.6/8, 0.1/1.
        (Tolerance(atol=0.4), THREE, 0.2, 2.0),
        # Beside rtol 0.1: 1 − 0.4, 2 − 0.8, 0.5 − 0.1.
        (Tolerance(rtol=0.1), THREE, 0.5, 1.2),
        (Tolerance(rtol=0.1, atol=0.4), THREE, 0.2, 1.2),
        # All that is needed, or more.
        (Tolerance(atol=2.0), THREE, 0.0, 2.0),
        (Tolerance(rtol=0.5), THREE, 0.5, 0.0),
        (Tolerance(exact=True), THREE, 0.5, 2.0),
        (Tolerance(rounding=3.0), THREE, 0.5, 2.0),
        # Signs do not matter, and the framework's size does.
        (NONE, (numbers(-3), numbers(-4)), 1 / 4, 1.0),
        (NONE, (numbers(4), numbers(3)), 1 / 3, 1.0),
        # No rtol allows what differs from 0.
        (NONE, (numbers(1e-9, 1), numbers(0, 1)), math.inf, 1e-9),
        (Tolerance(atol=1e-8), (numbers(1e-9, 2), numbers(0, 1)), 1 - 1e-8, 1.0),
        # A float32 is the number that it is.
        (
            Tolerance(rtol=0.1),
            (numbers(1), numbers(THIRD, dtype=np.float32)),
            (1 - THIRD) / THIRD,
            1 - 1.1 * THIRD,
        ),
    ],
    ids=str,
)
def test_needed_by_hand(
    tolerance: Tolerance, sides: tuple[Array, Array], rtol: float, atol: float
) -> None:
    found = needed(tolerance, local(0.25), *sides)
    # A few roundings in float64; what is left of 2 after 0.8 has those of 2.
    assert found.rtol == pytest.approx(rtol, rel=1e-14, abs=0)
    assert found.atol == pytest.approx(atol, rel=1e-14, abs=0)
    assert (found.rounding, found.exact) == (0.25, False)


def test_needed_of_equal_numbers_is_nothing_unless_a_sign_of_0_differs() -> None:
    for zero, exact in ((0.0, True), (-0.0, False)):
        found = needed(NONE, local(0.0), numbers(0.0, -2), numbers(zero, -2))
        assert found == Needed(0.0, 0.0, 0.0, exact=exact)


@pytest.mark.parametrize("tolerance", [NONE, Tolerance(rtol=1e300, atol=1e300)], ids=str)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_needed_where_one_side_is_not_finite_is_more_than_any_number(
    value: float, tolerance: Tolerance
) -> None:
    for sides in ((numbers(1, value), numbers(1, 2)), (numbers(1, 2), numbers(1, value))):
        assert needed(tolerance, local(math.inf), *sides) == NOTHING_PASSES


@pytest.mark.parametrize(("ratio", "framework"), [(math.nan, 2.0), (3.0, 1.0)])
def test_needed_rounding_of_what_rounding_cannot_judge_is_more_than_any_number(
    ratio: float, framework: float
) -> None:
    unjudged = local(ratio, judged=False)
    found = needed(Tolerance(rtol=1.0), unjudged, numbers(1), numbers(framework))
    assert found.rounding == math.inf


@pytest.mark.parametrize("seed", range(10))
def test_needed_is_enough_however_little_the_other_number_leaves(seed: int) -> None:
    random = np.random.default_rng(seed)
    scratch, framework = random.normal(size=(2, 1, 50)) * 10.0 ** random.integers(-9, 9)
    off, size = np.abs(scratch - framework), np.abs(framework)
    for share in (0.0, *random.random(6), 1 - 1e-9, 1 - 1e-15, 1.0):
        atol = float(off.max() * share)
        rtol = needed(Tolerance(atol=atol), local(), scratch, framework).rtol
        assert (off / (atol + rtol * size) <= 1).all()
        rtol = float((off / size).max() * share)
        atol = needed(Tolerance(rtol=rtol), local(), scratch, framework).atol
        assert (off / (atol + rtol * size) <= 1).all()


def test_joined_needs_pass_both() -> None:
    left, right = Needed(1.0, 0.2, 3.0, exact=True), Needed(2.0, 0.1, 4.0, exact=False)
    assert left.joined(right) == right.joined(left) == Needed(2.0, 0.2, 4.0, exact=False)
    assert left.joined(Needed()) == left


# --- the meter, by hand -------------------------------------------------------------------------


def row(step: int, drift: float, *, judged: bool = True) -> Row:
    one = local(judged=judged)
    both = {"weight": one, "bias": one}
    drifts = {"weight": drift / 2, "bias": drift}
    return Row(step, step, 1, 0.0, 0.0, one, drifts, {}, both, both | {"loss": one})


def still(value: float = 0.0, dtype: Any = np.float64) -> Step:
    """Make a step after which both parameters have one value."""
    both: dict[str, Array] = {name: numbers(value, dtype=dtype) for name in ("weight", "bias")}
    return Step(both, (), 0.0, {}, {}, {}, {}, both)


def metered(*steps: tuple[float, float]) -> DriftMeter:
    """Measure steps of (drift, rounding), of parameters that are 0."""
    meter = DriftMeter(Tolerances())
    for number, (drift, rounding) in enumerate(steps, start=1):
        meter.measure(row(number, drift), rounding)
        meter.need_step(row(number, drift), still(), still())
    return meter


def test_meter_adds_up_rounding_and_reports_the_worst_step() -> None:
    # Sums of rounding: 1, 2, 3, 4; drift over them: 1, 10.5, 30, 25.
    assert metered((1, 1), (21, 1), (90, 1), (100, 1)).amplification == (2, 3, 30.0, 90.0)


def test_meter_reports_nothing_up_to_ten_times_the_rounding() -> None:
    assert AMPLIFIED == 10
    assert metered((10, 1), (20, 1), (30, 1)).amplification is None
    assert metered((10.01, 1)).amplification is not None


@pytest.mark.parametrize(("drift", "amplified"), [(9.9e-3, False), (1.01e-2, True)])
def test_meter_counts_the_start_as_rounding(drift: float, amplified: bool) -> None:
    meter = DriftMeter(Tolerances())
    own = {"weight": numbers(1 + 1e-3), "bias": numbers(0, dtype=np.float32)}
    framework = {"weight": numbers(1), "bias": numbers(0)}
    meter.need_start(dict.fromkeys(own, local()), own, framework)
    meter.measure(row(1, drift), 0.0)
    meter.need_step(row(1, drift), still(), still())
    assert (meter.amplification is not None) == amplified


@pytest.mark.parametrize(("steps", "amplified"), [(1, True), (2, True), (3, False)])
def test_meter_counts_the_last_digit_of_the_coarser_side_at_each_step(
    steps: int, amplified: bool
) -> None:
    # The last digit of 1 in float32 is 2⁻²³; after two steps there are two of them, not 2.1.
    meter = DriftMeter(Tolerances())
    for number in range(1, steps + 1):
        at = row(number, 21 * 2.0**-23 if number == steps else 0.0)
        meter.measure(at, 0.0)
        meter.need_step(at, still(1.0, np.float32), still(1.0))
    assert (meter.amplification is not None) == amplified


def test_meter_keeps_the_largest_drift_and_the_first_step_that_is_lost() -> None:
    meter = metered((1, 1), (3, 1), (2, 1))
    assert (meter.largest, meter.first_lost) == (3, None)
    meter.measure(row(4, math.nan), 1)
    meter.measure(row(5, math.inf), 1)
    assert math.isnan(meter.largest)
    assert meter.first_lost == 4
    unjudged = DriftMeter(Tolerances())
    unjudged.measure(row(1, math.inf, judged=False), 1)
    assert (unjudged.largest, unjudged.first_lost, unjudged.amplification) == (math.inf, None, None)


def needed_loss(tolerance: Tolerance, judged: Difference) -> Needed:
    """Meter one step whose losses are 3 and 2 and cannot be judged by rounding."""
    one = row(1, 0.0)
    one = one._replace(loss=local(math.nan, judged=False), judged=one.judged | {"loss": judged})
    meter = DriftMeter(Tolerances(loss=tolerance))
    meter.need_step(one, still(1.0)._replace(loss=3.0), still(1.0)._replace(loss=2.0))
    return meter.needed.get("loss", Needed())


def test_meter_needs_of_the_loss_what_its_own_tolerance_judges() -> None:
    # The bound of a single step may be inf where the losses themselves can still be compared.
    found = needed_loss(Tolerance(rtol=0.1), local(5.0))
    assert found.rounding == math.inf
    assert (found.rtol, found.atol) == pytest.approx((0.5, 0.8), rel=1e-14)
    assert needed_loss(Tolerance(rounding=8.0), local(math.nan, judged=False)) == Needed()
