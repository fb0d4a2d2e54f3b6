"""Differences of one tensor: the entry that differs most, in bounds or by a tolerance."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from regcheck.compare.differences import (
    Difference,
    difference_of,
    drift,
    each,
    exceeds,
    greatest,
    within_tolerance,
    worst,
)
from regcheck.spec.sections.tolerance import Tolerance

Array = NDArray[np.floating]
NAN, INF = math.nan, math.inf
ONE_SIDED = [(NAN, 1.0), (1.0, NAN), (INF, 1.0), (1.0, -INF)]
NEITHER = [(NAN, NAN), (INF, INF), (INF, -INF), (NAN, INF), (-INF, NAN)]


# --- in bounds ----------------------------------------------------------------------------------


@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_worst_finds_the_one_entry_that_differs(place: int, dtype: type[np.floating]) -> None:
    framework = np.arange(5).astype(dtype)
    scratch = framework.copy()
    scratch[place] += 0.5
    found = worst("weight", scratch, framework, np.full(5, 0.25))

    assert found == Difference(
        "weight", (place,), place + 0.5, float(place), 0.5, 0.25, 2.0, judged=True
    )


WORST: dict[str, tuple[Any, Any, Any, tuple[int, ...], float, bool]] = {
    "in bounds, not in size": ([1, 0.01], [0, 0], [1, 0.001], (1,), 10.0, True),
    # Less its bound, the first entry is off by more; divided without a rest, both are 1.
    "not less its bound": ([0.5, 0.02], [0, 0], [0.4, 0.001], (1,), 20.0, True),
    "by the last digit": ([1.2, 1.7], [0, 0], [1, 1], (1,), 1.7, True),
    "in the tensor's own shape": ([[0, 0], [1, 0]], [[0, 0]] * 2, [[1, 1]] * 2, (1, 0), 1.0, True),
    "of one": ([1], [0], [1], (0,), 1.0, True),
    "of one in a row": ([[1]], [[0]], [[1]], (0, 0), 1.0, True),
    "too far apart to subtract": ([1, 1e308], [1, -1e308], [1, 1], (1,), INF, True),
    "without a bound": ([5, 9], [0, 0], [NAN, 1], (1,), 9.0, False),
    "with an infinite bound": ([5, 9], [0, 0], [INF, 1], (1,), 9.0, False),
    "none that can be judged": ([NAN, INF], [NAN, INF], [1, 1], (0,), NAN, False),
    "a bound of 0, kept": ([0, 0], [0, 0], [0, 0], (0,), 0.0, True),
    "a bound of 0, not kept": ([0, 1e-300], [0, 0], [0, 0], (1,), INF, True),
    "of one, a bound of 0, kept": ([0], [0], [0], (0,), 0.0, True),
    "of one, a bound of 0, not kept": ([1e-300], [0], [0], (0,), INF, True),
}


@pytest.mark.parametrize("name", WORST)
def test_worst_entry_is_the_one_of_most_bounds(name: str) -> None:
    *three, index, ratio, judged = WORST[name]
    found = worst("weight", *(np.array(values, np.float64) for values in three))

    assert (found.index, found.judged) == (index, judged)
    assert found.ratio == pytest.approx(ratio, nan_ok=True)


def test_worst_measures_float32_in_float64() -> None:
    # In float32 the difference of these two would overflow.
    top = np.array([3e38, 0.0], np.float32)

    assert worst("weight", top, -top, np.ones(2)).difference == pytest.approx(6e38)


@pytest.mark.parametrize("odd", range(3))
@pytest.mark.parametrize("shape", [(1, 3), (3, 1), (1,), (2,), (4,), (0,)], ids=str)
def test_worst_broadcasts_nothing(odd: int, shape: tuple[int, ...]) -> None:
    three = [np.zeros(3), np.zeros(3), np.ones(3)]
    three[odd] = np.ones(shape)
    with pytest.raises(ValueError, match="weight: cannot compare the shapes"):
        worst("weight", *three)


def test_worst_refuses_a_tensor_without_entries() -> None:
    with pytest.raises(ValueError, match="cannot compare the shapes"):
        worst("weight", np.zeros(0), np.zeros(0), np.zeros(0))


@pytest.mark.parametrize(("scratch", "framework"), ONE_SIDED)
@pytest.mark.parametrize("bound", [0.0, 1.0, 1e300, NAN])
def test_one_side_alone_not_finite_is_infinitely_far(
    scratch: float, framework: float, bound: float
) -> None:
    found = difference_of("bias", (0,), scratch, framework, bound)

    assert (found.ratio, found.judged) == (INF, True)
    for place in range(3):
        pair = np.zeros((2, 3))
        pair[:, place] = scratch, framework
        within = worst("weight", pair[0], pair[1], np.full(3, bound if bound else 1.0))
        assert (within.index, within.ratio) == ((place,), INF)


@pytest.mark.parametrize(
    ("scratch", "framework", "bound"),
    [(*pair, 1.0) for pair in NEITHER]
    + [(*pair, INF) for pair in [*NEITHER, *ONE_SIDED, (1.0, 1.0), (1.0, 9.0)]],
)
def test_neither_side_finite_or_no_bound_is_not_judged(
    scratch: float, framework: float, bound: float
) -> None:
    found = difference_of("bias", (0,), scratch, framework, bound)

    assert math.isnan(found.ratio)
    assert not found.judged
    assert not exceeds(found, 8.0)


@pytest.mark.parametrize(("scratch", "framework"), NEITHER)
@pytest.mark.parametrize("place", range(3))
def test_an_entry_that_cannot_be_judged_hides_no_other(
    place: int, scratch: float, framework: float
) -> None:
    pair = np.zeros((2, 4))
    pair[:, place] = scratch, framework
    pair[0, 3] = 9.0
    found = worst("weight", pair[0], pair[1], np.ones(4))

    assert (found.index, found.ratio, found.judged) == ((3,), 9.0, False)
    assert exceeds(found, 8.0)


def test_exceeds_is_strict() -> None:
    assert not exceeds(difference_of("bias", (0,), 8.0, 0.0, 1.0), 8.0)
    assert exceeds(difference_of("bias", (0,), 8.0 + 1e-9, 0.0, 1.0), 8.0)


@pytest.mark.parametrize("side", range(3))
@pytest.mark.parametrize("names", [("weight",), ("weight", "bias", "more"), ("weight", "Bias")])
def test_each_refuses_missing_and_extra_tensors(side: int, names: tuple[str, ...]) -> None:
    three: list[dict[str, Array]] = [
        {name: np.ones(2) for name in ("weight", "bias")} for _ in range(3)
    ]
    three[side] = {name: np.ones(2) for name in names}

    with pytest.raises(ValueError, match="different tensors"):
        each(*three)


def test_greatest_takes_a_number_over_one_that_is_none() -> None:
    one = difference_of("bias", (0,), 1.0, 0.0, 1.0)
    none, zero = one._replace(ratio=NAN, judged=False), one._replace(ratio=0.0)

    assert greatest([none, one, none]) is one
    assert greatest([none, zero]) is zero
    assert greatest([one, one._replace(ratio=2.0), none]).ratio == 2.0


@pytest.mark.parametrize("value", [NAN, INF])
def test_drift_does_not_lose_what_is_not_finite(value: float) -> None:
    assert not drift(np.array([1.0, value]), np.array([1.0, 1.0])) < INF


# --- by a tolerance -----------------------------------------------------------------------------

CLOSE = Tolerance(rtol=0.5, atol=1.0)
EXACT = Tolerance(exact=True)


def within(tolerance: Tolerance, scratch: Any, framework: Any) -> Difference:
    return within_tolerance(tolerance, "weight", np.asarray(scratch), np.asarray(framework))


def test_drift_may_be_atol_and_rtol_of_the_frameworks() -> None:
    found = within(CLOSE, [9.0, -7.0], [6.0, -4.0])

    # 1 + 0.5·6 = 4 and 1 + 0.5·4 = 3, so that 3 are 3/4 of the one, and all of the other.
    assert (found.index, found.difference, found.bound, found.ratio) == ((1,), 3.0, 3.0, 1.0)
    assert within(CLOSE, [9.0], [6.0]).ratio == 0.75
    assert within(Tolerance(atol=2.0), [9.0], [6.0]).ratio == 1.5
    assert within(Tolerance(rtol=0.25), [9.0], [6.0]).ratio == 2.0
    assert within(Tolerance(rtol=0.25), [9.0], [0.0]).ratio == INF
    # Beyond the range of float64, all that is finite is allowed.
    assert within(Tolerance(rtol=1e308), [9e3], [6e3]).ratio < 1


def test_drift_of_an_infinite_side_is_never_allowed() -> None:
    for tolerance, pair in product([CLOSE, Tolerance(rtol=1e308)], ONE_SIDED):
        found = within(tolerance, [pair[0]], [pair[1]])
        assert (found.ratio, found.judged) == (INF, True)
    assert not within(CLOSE, [INF], [INF]).judged


@pytest.mark.parametrize(
    ("scratch", "framework", "index", "difference"),
    [
        ([1.0, -0.0, 5e-324], [1.0, 0.0, 5e-324], (1,), 0.0),
        ([1.0, 0.0, 5e-324], [1.0, -0.0, 5e-324], (1,), 0.0),
        ([1.0, -0.0, 5e-324], [1.0, 0.0, 1e-323], (2,), 5e-324),
    ],
)
def test_exact_takes_the_same_bits_alone(
    scratch: list[float], framework: list[float], index: tuple[int], difference: float
) -> None:
    found = within(EXACT, scratch, framework)

    assert (found.index, found.ratio, found.difference) == (index, INF, difference)
    assert within(EXACT, scratch, scratch).ratio == 0
    # A sign is no matter to any other tolerance.
    assert within(Tolerance(atol=0.0), scratch, framework).ratio == (INF if difference else 0)


def test_exact_does_not_judge_what_is_no_number() -> None:
    assert not within(EXACT, [-0.0, NAN], [0.0, NAN]).judged


def test_exact_takes_float32_for_the_number_that_it_is() -> None:
    tenth = np.array([0.1], np.float32)
    assert within(EXACT, tenth, tenth.astype(np.float64)).ratio == 0
    assert within(EXACT, tenth, [0.1]).ratio == INF
