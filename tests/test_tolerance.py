"""Tolerances: what each kind lets pass, by torch's own comparison of two trainings."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from regcheck.checking import check
from regcheck.problem.problem import Array, build_problem
from regcheck.report.result import Report
from regcheck.spec import from_mapping
from regcheck.trainers.framework.torch_trainer import TorchTrainer
from regcheck.trainers.numpy_trainer import NumpyTrainer
from tests.conftest import SMALL, Spec, step_of, told

MIXED = {"scratch": "float32", "framework": "float64"}
# In float32 rounding is about 1e-7 of each number, in float64 1e-16; the others differ by far more,
# at once or as the momentum and the lr take hold.
CASES: dict[str, Spec] = {
    "agree-float64": {"epochs": 15},
    "agree-float32": {"epochs": 15, "dtype": "float32"},
    "agree-mixed": {"epochs": 10, "dtype": MIXED},
    "doubled": {"epochs": 10, "convention": "doubled"},
    "nearly": {"epochs": 20, "init": "zeros", "convention": {"penalty_factor": 1 + 1e-9}},
    "late": {
        "epochs": 12,
        "optimizer": {"name": "sgd", "momentum": 0.9},
        "lr": 0.02,
        "lr_schedule": {"kind": "step", "every": 4, "factor": 0.5},
        "convention": {"momentum_form": "lr-inside"},
    },
    "loss-alone": {"epochs": 5, "convention": {"penalty_in_loss": True}},
}
DIFFERING = pytest.mark.parametrize("case", ["doubled", "nearly", "late"])


class Both:
    """Two trainings, each on its own: parameters and reported loss after each step, from 0."""

    def __init__(self, spec: Spec) -> None:
        problem = build_problem(from_mapping(spec))
        scratch, framework = NumpyTrainer(problem), TorchTrainer(problem)
        state = scratch.start()
        self.parameters = [(state.parameters, framework.parameters())]
        self.losses: list[tuple[float, float]] = []
        for batch in problem.schedule.batches():
            update, step = scratch.step(state, batch), framework.step(batch)
            state = update.state
            self.parameters.append((update.step.after, step.after))
            self.losses.append((told(update.step.loss), told(step.loss)))

    def first_difference(self, rtol: float, atol: float) -> int | None:
        """Return the first step at which torch's own comparison refuses a parameter."""
        for number, (scratch, framework) in enumerate(self.parameters):
            if not all(close(scratch[name], framework[name], rtol, atol) for name in framework):
                return max(number, 1)
        return None

    def first_loss_difference(self, rtol: float, atol: float) -> int | None:
        """Return the first step at which torch's own comparison refuses the reported loss."""
        for number, (scratch, framework) in enumerate(self.losses, start=1):
            if not close(np.array(scratch), np.array(framework), rtol, atol):
                return number
        return None


@cache
def both(case: str) -> Both:
    return Both(SMALL | CASES[case])


def close(scratch: Array, framework: Array, rtol: float, atol: float) -> bool:
    """Ask torch.testing.assert_close, in float64: in float32 it rounds what is allowed."""
    actual, expected = (torch.from_numpy(one.astype(np.float64)) for one in (scratch, framework))
    try:
        torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)
    except AssertionError:
        return False
    return True


def verdict(spec: Spec, tolerance: Any) -> str:
    return check(spec | {"tolerance": tolerance}).verdict


# --- rtol and atol ------------------------------------------------------------------------------

powers = st.one_of(st.just(0.0), st.floats(-18, 1).map(lambda power: 10.0**power))


@pytest.mark.slow
@settings(max_examples=25, deadline=None, derandomize=True)
@given(case=st.sampled_from(sorted(CASES)), rtol=powers, atol=powers)
@example(case="late", rtol=0.0, atol=1e-3)
@example(case="agree-mixed", rtol=1e-8, atol=0.0)
def test_drift_tolerance_diverges_where_assert_close_first_raises(
    case: str, rtol: float, atol: float
) -> None:
    report = check(SMALL | CASES[case] | {"tolerance": {"rtol": rtol, "atol": atol}})
    expected = both(case).first_difference(rtol, atol)
    expected_loss = both(case).first_loss_difference(rtol, atol)

    assert step_of(report.first_divergence) == expected
    assert step_of(report.first_loss_divergence) == expected_loss
    agree = expected is expected_loss is None
    assert report.verdict == ("equivalent" if agree else "diverged")


def test_drift_tolerance_cases_differ_early_late_and_never() -> None:
    # An oracle that always said the same would prove nothing of the above.
    assert {None, 1} < {both(case).first_difference(1e-5, 1e-8) for case in CASES}
    assert both("late").first_difference(0, 1e-3) == 5
    assert both("agree-mixed").first_difference(1e-8, 0) == 1


@DIFFERING
def test_first_divergence_on_the_drift_holds_each_sides_own_numbers(case: str) -> None:
    rtol, atol = 1e-12, 1e-13
    report = check(SMALL | CASES[case] | {"tolerance": {"rtol": rtol, "atol": atol}})
    first = report.to_dict()["first_divergence"]
    scratch, framework = (
        float(tensors[first["tensor"]][tuple(first["index"])])
        for tensors in both(case).parameters[first["step"]]
    )

    assert first["on"] == "drift"
    assert (first["scratch"], first["framework"]) == (scratch, framework)
    assert first["difference"] == abs(scratch - framework)
    assert first["bound"] == atol + rtol * abs(framework)
    assert first["ratio"] == first["difference"] / first["bound"] > 1
    assert first["stage"] == {"late": "optimizer"}.get(case, "penalty")


def test_first_divergence_on_the_drift_where_no_stage_differs_is_in_the_update() -> None:
    # Both follow one rule in float32: what exceeds the tolerance is rounding that has added up.
    report = check(SMALL | CASES["agree-float32"] | {"tolerance": {"rtol": 1e-12}})
    first = report.to_dict()["first_divergence"]
    assert (first["stage"], first["on"]) == ("update", "drift")
    assert first["within"] == {key: first[key] for key in first["within"]}
    assert report.comparison.first_by_stage == {}


def test_loss_tolerance_on_the_drift_compares_the_losses_of_both_trajectories() -> None:
    tolerance = {"rounding": 1e300, "loss": {"rtol": 0.01}}
    report = check(SMALL | CASES["doubled"] | {"tolerance": tolerance})
    expected = told(both("doubled").first_loss_difference(0.01, 0))
    assert expected > 1  # the first loss is of the same parameters
    assert (report.verdict, report.first_divergence) == ("diverged", None)
    scratch, framework = both("doubled").losses[expected - 1]
    assert report.to_dict()["first_loss_divergence"] == {
        "step": expected,
        "scratch": scratch,
        "framework": framework,
        "difference": abs(scratch - framework),
        "bound": 0.01 * abs(framework),
    }


# --- rounding -----------------------------------------------------------------------------------


def test_rounding_tolerance_is_on_single_steps_and_not_on_the_drift() -> None:
    # The training blows up, and its rounding with it; each single step still agrees.
    spec = SMALL | {"lr": 0.5, "epochs": 60}
    report = check(spec | {"tolerance": {"rounding": 1.0}})
    assert report.verdict == "equivalent"
    assert report.comparison.drift.largest > 1e-3
    assert verdict(spec, {"atol": 1e-3}) == "diverged"


@pytest.mark.sampled(every=2)
@pytest.mark.slow
@DIFFERING
def test_rounding_tolerance_is_the_ratio_that_a_step_may_reach(case: str) -> None:
    spec = SMALL | CASES[case] | {"compare": ["parameters"]}
    first = check(spec).to_dict()["first_divergence"]
    assert first["on"] == "local"
    below, at = (
        step_of(check(spec | {"tolerance": {"rounding": most}}).first_divergence)
        for most in (math.nextafter(first["ratio"], 0), first["ratio"])
    )
    assert below == first["step"]
    assert at is None or at > first["step"]


# --- one for each -------------------------------------------------------------------------------


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize(
    ("loose", "strict"),
    [
        ({"rounding": 1e300}, {"rtol": 1e-9}),
        ({"atol": 1e300}, "exact"),
        ({"rtol": 1e300}, {"rounding": 8}),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["weight", "bias", "loss"])
def test_tensors_own_tolerance_holds_for_it_and_the_common_one_for_the_rest(
    name: str, loose: Spec, strict: Any
) -> None:
    # From step 2 on all three differ by far more than any strict tolerance allows.
    spec = SMALL | {"convention": "divided-by-batch", "epochs": 2}
    rest = {"weight", "bias", "loss"} - {name}
    of_rest = dict.fromkeys(rest, strict) if strict == "exact" else strict

    assert beyond(check(spec | {"tolerance": of_rest | {name: loose}})) == rest
    assert beyond(check(spec | {"tolerance": loose | {name: strict}})) == {name}


def beyond(report: Report) -> set[str]:
    """Name what exceeds its tolerance at some step."""
    found = {
        name
        for row in report.comparison.trace
        for name, one in row.tensors.items()
        if one.judged > report.spec.tolerance.of(name).limit
    }
    return found | {"loss"} if report.first_loss_divergence else found


def test_tolerance_in_the_report_is_each_tensors_as_used() -> None:
    tolerance = {"rtol": 1e-3, "bias": {"rounding": 3}, "loss": "exact"}
    assert check(SMALL | {"tolerance": tolerance}).to_dict()["tolerance"] == {
        "weight": {"rtol": 1e-3, "atol": 0.0},
        "bias": {"rounding": 3.0},
        "loss": "exact",
    }
    assert check(SMALL).to_dict()["tolerance"]["weight"] == {"rounding": 8.0}
