"""Trainings that leave the range of their numbers, on both sides or on one."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from regcheck.checking import check
from regcheck.numerics.bounds.step_rounding import overflowing
from tests.conftest import SMALL, Spec, in_one_line, step_of, told
from tests.test_outcomes import F32_FIRST, X, data, diverges_at, mixed_dtypes, single_dtype

BLOW_UPS: dict[str, Spec] = {
    "slowly": {"lr": 30, "epochs": 140},
    "fast": {"lr": 1e6, "epochs": 60},
    "momentum": {"lr": 100, "epochs": 120, "optimizer": {"name": "sgd", "momentum": 0.9}},
    "logistic": data(X, [1, 0, 0, 1]) | {"model": "logistic", "lr": 1e6, "epochs": 60},
}


@pytest.mark.sampled(every=4)
@single_dtype
@pytest.mark.parametrize("name", BLOW_UPS)
def test_blow_up_of_both_sides_is_inconclusive_from_there_and_what_came_before_is_judged(
    name: str, dtype: str
) -> None:
    spec = SMALL | BLOW_UPS[name] | {"dtype": dtype}
    report = check(spec | {"compare": ["parameters"]})
    found, last = report.comparison, report.comparison.first_unjudged
    assert (report.verdict, report.first_divergence) == ("inconclusive", None)
    assert last is not None
    assert last > 3
    assert found.compared == last - 1 == len(found.trace) - 1
    assert found.first_by_stage == {}
    assert report.verdict_step == last
    out_of_range = f"from step {last} on the numbers are not finite, or too large to be judged"
    assert report.reason == out_of_range
    assert f"; steps 1 to {last - 1} agree." in in_one_line(report)
    # Every step before is judged, by a number.
    assert all(one.ratio < 8 for row in list(found.trace)[:-1] for one in row.tensors.values())
    json_report = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert json_report["first_unjudged"] == last
    # Another rule is a divergence, whatever blows up later.
    other = check(spec | {"convention": "doubled", "epochs": BLOW_UPS[name]["epochs"]})
    assert (other.verdict, step_of(other.first_divergence)) == ("diverged", 1)
    last = other.comparison.first_unjudged
    assert f"From step {last} on the numbers are not finite" in in_one_line(other)


@pytest.mark.sampled(every=4)
@pytest.mark.slow
@single_dtype
@pytest.mark.parametrize("name", ["slowly", "momentum"])
def test_blow_up_of_a_rule_that_is_seen_later_is_a_divergence_at_that_step(
    name: str, dtype: str
) -> None:
    # The two rules are the same until the lr changes, in step 3.
    spec = SMALL | BLOW_UPS[name] | {"dtype": dtype, "optimizer": BLOW_UPS["momentum"]["optimizer"]}
    spec |= {"lr_schedule": {"kind": "step", "every": 2, "factor": 0.5}}
    assert diverges_at(spec | {"convention": {"momentum_form": "lr-inside"}}) == 3
    assert check(spec).first_divergence is None


@single_dtype
def test_blow_up_has_losses_that_leave_the_range_first(dtype: str) -> None:
    report = check(SMALL | BLOW_UPS["fast"] | {"dtype": dtype})
    loss, step = report.comparison.losses.first_unjudged, report.comparison.first_unjudged
    assert report.verdict == "inconclusive"
    assert loss is not None
    assert step is not None
    assert report.verdict_step == loss < step
    text = in_one_line(report)
    assert f"; steps 1 to {loss - 1} agree." in text
    assert (
        f"from step {loss} on the reported losses are out of range, and from step {step} on the "
        "numbers are not finite"
    ) in text


@pytest.mark.sampled(every=8)
@pytest.mark.slow
@mixed_dtypes
@pytest.mark.parametrize("name", BLOW_UPS)
def test_blow_up_of_float32_alone_is_a_divergence_at_that_step(name: str, dtype: Any) -> None:
    report = check(SMALL | BLOW_UPS[name] | {"dtype": dtype})
    first = told(report.first_divergence)
    assert report.verdict == "diverged"
    sides = [first.at.scratch, first.at.framework]
    lost, finite = sides if dtype is F32_FIRST else sides[::-1]
    # float64 is beyond float32's range there, and was not in the step before.
    assert not math.isfinite(lost)
    assert 1e30 < abs(finite) < math.inf
    before = list(report.comparison.trace)[: first.step - 1]
    assert before
    assert all(tensor.ratio < 8 for row in before for tensor in row.tensors.values())
    side = "scratch" if dtype is F32_FIRST else "torch"
    assert f"float32 ends at 3.4e+38: the {side} side overflows" in in_one_line(report)


@pytest.mark.parametrize(
    ("all_finite", "mixed", "expected"),
    [
        (True, False, [1.0, np.inf, np.inf]),
        (True, True, [1.0, np.nan, np.nan]),
        (False, False, [np.nan, np.inf, np.inf]),
        (False, True, [np.nan] * 3),
    ],
)
def test_bound_of_numbers_that_overflow_allows_or_judges_nothing(
    all_finite: bool, mixed: bool, expected: list[float]
) -> None:
    bound = np.array([1.0, np.inf, np.nan])
    found = overflowing(bound, all_finite=all_finite, mixed=mixed)
    np.testing.assert_array_equal(found, expected)
