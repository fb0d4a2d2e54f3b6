"""Tolerances: what each kind lets pass, and the smallest that a report says would have passed."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from regcheck.checking import check
from regcheck.problem.problem import Array, Step, build_problem
from regcheck.report.result import Report
from regcheck.report.terminal import report_text
from regcheck.spec import from_mapping
from regcheck.trainers.numpy_trainer import NumpyTrainer, State, Update
from regcheck.trainers.torch_trainer import TorchTrainer
from tests.conftest import SMALL, told

Spec = dict[str, Any]

MIXED = {"scratch": "float32", "framework": "float64"}
MOMENTUM = {"name": "sgd", "momentum": 0.9}
# In float32 rounding is about 1e-7 of each number, in float64 1e-16; the others part by far more,
# at once or as the momentum and the lr take hold.
CASES: dict[str, Spec] = {
    "agree-float64": {"epochs": 15},
    "agree-float32": {"epochs": 15, "dtype": "float32"},
    "agree-mixed": {"epochs": 10, "dtype": MIXED},
    "doubled": {"epochs": 10, "convention": "doubled"},
    "nearly": {"epochs": 20, "init": "zeros", "convention": {"penalty_factor": 1 + 1e-9}},
    "late": {
        "epochs": 12,
        "optimizer": MOMENTUM,
        "lr": 0.02,
        "lr_schedule": {"kind": "step", "every": 4, "factor": 0.5},
        "convention": {"momentum_form": "lr-inside"},
    },
    "loss-alone": {"epochs": 5, "convention": {"penalty_in_loss": True}},
}


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

    def first_apart(self, rtol: float, atol: float) -> int | None:
        """Give the first step at which torch's own comparison refuses a parameter."""
        for number, (scratch, framework) in enumerate(self.parameters):
            if not all(close(scratch[name], framework[name], rtol, atol) for name in framework):
                return max(number, 1)
        return None

    def first_loss_apart(self, rtol: float, atol: float) -> int | None:
        """Give the first step at which torch's own comparison refuses the reported loss."""
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


def step_of(found: Any) -> int | None:
    return None if found is None else found.step


powers = st.one_of(st.just(0.0), st.floats(-18, 1).map(lambda power: 10.0**power))


# --- rtol and atol ------------------------------------------------------------------------------


@settings(max_examples=45, deadline=None, derandomize=True)
@given(case=st.sampled_from(sorted(CASES)), rtol=powers, atol=powers)
@example(case="late", rtol=0.0, atol=1e-3)
@example(case="agree-mixed", rtol=1e-8, atol=0.0)
def test_drift_tolerance_diverges_where_assert_close_first_raises(
    case: str, rtol: float, atol: float
) -> None:
    report = check(SMALL | CASES[case] | {"tolerance": {"rtol": rtol, "atol": atol}})
    expected = both(case).first_apart(rtol, atol)
    expected_loss = both(case).first_loss_apart(rtol, atol)

    assert step_of(report.first_divergence) == expected
    assert step_of(report.first_loss_divergence) == expected_loss
    agree = expected is expected_loss is None
    assert report.verdict == ("equivalent" if agree else "diverged")


def test_drift_tolerance_cases_part_early_late_and_never() -> None:
    # An oracle that always said the same would prove nothing of the above.
    steps = {both(case).first_apart(1e-5, 1e-8) for case in CASES}
    assert {None, 1} < steps
    assert both("late").first_apart(0, 1e-3) == 5
    assert both("agree-mixed").first_apart(1e-8, 0) == 1


def test_drift_tolerance_is_relative_to_torch_and_not_to_scratch(small: Spec) -> None:
    # After one step from 1 with lr 1: scratch 1 − 0.5, torch 1 − 0.25 (the gradient is 0).
    spec = small | {
        "data": {"X": [[1.0], [-1.0]], "y": [2.0, 0.0]},
        "init": {"weight": [1.0], "bias": [1.0]},
        "lr": 1.0,
        "weight_decay": 0.25,
        "epochs": 1,
        "convention": "doubled",
        "compare": ["parameters"],
    }
    # |0.5 − 0.75| is a third of torch's 0.75, and half of the scratch side's 0.5.
    assert check(spec | {"tolerance": {"rtol": 0.34}}).verdict == "equivalent"
    assert check(spec | {"tolerance": {"rtol": 0.33}}).verdict == "diverged"
    assert check(spec | {"tolerance": {"atol": 0.25}}).verdict == "equivalent"
    assert check(spec | {"tolerance": {"atol": 0.2499}}).verdict == "diverged"
    # 0.1 + 0.2 · 0.75 is the 0.25 that is needed: neither would do alone.
    assert check(spec | {"tolerance": {"rtol": 0.2, "atol": 0.1001}}).verdict == "equivalent"
    assert check(spec | {"tolerance": {"rtol": 0.2, "atol": 0.0999}}).verdict == "diverged"


@pytest.mark.parametrize("case", ["doubled", "nearly", "late"])
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


def test_first_divergence_on_the_drift_where_no_stage_parts_is_told_as_the_update() -> None:
    # Both follow one rule in float32: what exceeds the tolerance is rounding that has added up.
    report = check(SMALL | CASES["agree-float32"] | {"tolerance": {"rtol": 1e-12}})
    first = report.to_dict()["first_divergence"]
    assert (first["stage"], first["on"]) == ("update", "drift")
    assert first["within"] == {key: first[key] for key in first["within"]}
    assert report.comparison.first_by_stage == {}


def test_first_divergence_at_the_start_is_told_at_the_start() -> None:
    # −0.3 and 0.1 are not the same number in float32; 0.5 is.
    report = check(SMALL | CASES["agree-mixed"] | {"tolerance": "exact"})
    first = report.to_dict()["first_divergence"]
    assert (first["step"], first["stage"], first["on"]) == (1, "initial", "drift")
    assert first["scratch"] == float(np.float32(first["framework"])) != first["framework"]


# --- rounding -----------------------------------------------------------------------------------


def test_rounding_tolerance_is_on_single_steps_and_not_on_the_drift(small: Spec) -> None:
    # The training blows up, and its rounding with it; each single step still agrees.
    spec = small | {"lr": 0.5, "epochs": 60}
    report = check(spec | {"tolerance": {"rounding": 1.0}})
    assert report.verdict == "equivalent"
    assert report.comparison.drift.largest > 1e-3
    assert check(spec | {"tolerance": {"atol": 1e-3}}).verdict == "diverged"


@pytest.mark.parametrize("case", ["doubled", "nearly", "late"])
def test_rounding_tolerance_is_the_ratio_that_a_step_may_reach(case: str) -> None:
    spec = SMALL | CASES[case] | {"compare": ["parameters"]}
    first = check(spec).to_dict()["first_divergence"]
    assert first["on"] == "local"
    at = first["ratio"]
    same = check(spec | {"tolerance": {"rounding": math.nextafter(at, 0)}}).first_divergence
    assert same is not None
    assert same.step == first["step"]
    later = check(spec | {"tolerance": {"rounding": at}}).first_divergence
    assert later is None or later.step > first["step"]


# --- exact --------------------------------------------------------------------------------------

ONE_ROW: Spec = {
    # One row of one feature: both sides do the same few operations, in the same order.
    "data": {"X": [[1.3]], "y": [0.7]},
    "model": "linear",
    "init": {"weight": [0.4], "bias": [0.1]},
    "lr": 0.1,
    "weight_decay": 0.01,
    "epochs": 20,
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_exact_passes_where_all_bits_are_the_same(dtype: str) -> None:
    spec = ONE_ROW | {"dtype": dtype}
    found = Both(spec)
    for scratch, framework in found.parameters:
        assert all(scratch[name].tobytes() == framework[name].tobytes() for name in scratch)
    report = check(spec | {"tolerance": "exact", "compare": ["parameters"]})
    assert report.verdict == "equivalent"
    assert report.comparison.drift.needed["weight"].exact
    assert report.comparison.drift.needed["bias"].exact


@pytest.mark.parametrize("case", sorted(CASES))
def test_exact_diverges_at_the_first_bit_that_differs(case: str) -> None:
    pairs = both(case).parameters
    unlike = [
        number
        for number, (scratch, framework) in enumerate(pairs)
        if any(
            scratch[name].astype(np.float64).tobytes() != framework[name].astype(float).tobytes()
            for name in framework
        )
    ]
    report = check(SMALL | CASES[case] | {"tolerance": "exact"})
    expected = max(unlike[0], 1) if unlike else None
    assert step_of(report.first_divergence) == expected
    assert all(report.comparison.drift.needed[name].exact for name in ("weight", "bias")) == (
        not unlike
    )


def nudge(monkeypatch: pytest.MonkeyPatch, tensor: str, value: float, step: int = 2) -> None:
    """Put a value into one entry of torch's parameters after a step; torch trains on without."""
    real = TorchTrainer.step

    def nudged(self: TorchTrainer, batch: Any) -> Step:
        taken = real(self, batch)
        if batch.step == step:
            taken.after[tensor][(0,) * taken.after[tensor].ndim] = value
        return taken

    monkeypatch.setattr(TorchTrainer, "step", nudged)


def test_exact_tells_zeros_of_different_sign_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    # Neither moves: the data are 0, and so is the start.
    spec = ONE_ROW | {"data": {"X": [[0.0]], "y": [0.0]}, "init": "zeros"}
    exact = {"tolerance": "exact"}
    assert check(spec | exact).verdict == "equivalent"
    nudge(monkeypatch, "weight", -0.0)
    report = check(spec | exact)
    first = report.to_dict()["first_divergence"]
    assert (first["step"], first["tensor"], first["index"]) == (2, "weight", [0, 0])
    assert (str(first["scratch"]), str(first["framework"])) == ("0.0", "-0.0")
    assert (first["difference"], first["bound"], first["ratio"]) == (0.0, 0.0, "inf")
    assert not report.comparison.drift.needed["weight"].exact
    assert report.comparison.drift.needed["bias"].exact
    assert check(spec).verdict == check(spec | {"tolerance": {"rtol": 0}}).verdict == "equivalent"


@pytest.mark.parametrize("tensor", ["weight", "bias"])
def test_exact_sees_the_last_bit_of_each_tensor(
    monkeypatch: pytest.MonkeyPatch, tensor: str
) -> None:
    after = Both(ONE_ROW).parameters[2][1][tensor].item()
    nudge(monkeypatch, tensor, math.nextafter(after, 1))
    report = check(ONE_ROW | {"tolerance": "exact", "compare": ["parameters"]})
    assert report.first_divergence is not None
    assert (report.first_divergence.step, report.first_divergence.at.tensor) == (2, tensor)
    # The last bit is one bound or less: no other kind minds it.
    assert check(ONE_ROW | {"compare": ["parameters"]}).verdict == "equivalent"


def test_exact_names_the_first_stage_whose_bits_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    real = TorchTrainer.step

    def nudged(self: TorchTrainer, batch: Any) -> Step:
        taken = real(self, batch)
        if batch.step == 2:
            for part in (told(taken.gradient), taken.after):
                part["weight"][0, 0] = math.nextafter(part["weight"][0, 0], 9)
        return taken

    monkeypatch.setattr(TorchTrainer, "step", nudged)
    # The last bit is within rounding: at any other limit, only the update itself has parted.
    first = check(ONE_ROW | {"tolerance": "exact"}).to_dict()["first_divergence"]
    assert (first["step"], first["stage"], first["on"]) == (2, "gradient", "drift")
    assert 0 < first["within"]["ratio"] < 8
    by_drift = check(ONE_ROW | {"tolerance": {"rtol": 0}}).to_dict()["first_divergence"]
    assert (by_drift["step"], by_drift["stage"]) == (2, "update")


# --- one for each -------------------------------------------------------------------------------


LOOSE: list[Spec] = [{"rounding": 1e300}, {"atol": 1e300}, {"rtol": 1e300}]
STRICT: list[Any] = [{"rounding": 8}, {"rtol": 1e-9}, "exact"]


@pytest.mark.parametrize("strict", STRICT, ids=str)
@pytest.mark.parametrize("loose", LOOSE, ids=str)
@pytest.mark.parametrize("name", ["weight", "bias", "loss"])
def test_tensors_own_tolerance_holds_for_it_and_the_common_one_for_the_rest(
    name: str, loose: Spec, strict: Any
) -> None:
    # From step 2 on all three differ by far more than any strict tolerance allows.
    spec = SMALL | {"convention": "divided-by-batch", "epochs": 2}
    rest = {"weight", "bias", "loss"} - {name}
    of_rest = dict.fromkeys(rest, strict) if strict == "exact" else strict

    assert parted(check(spec | {"tolerance": of_rest | {name: loose}})) == rest
    assert parted(check(spec | {"tolerance": loose | {name: strict}})) == {name}


def parted(report: Report) -> set[str]:
    """Name what exceeds its tolerance at some step."""
    found = {name for name in ("weight", "bias") if beyond(report, name)}
    return found | {"loss"} if report.first_loss_divergence else found


def beyond(report: Report, name: str) -> bool:
    limit = report.spec.tolerance.of(name).limit
    return any(row.tensors[name].judged > limit for row in report.comparison.trace)


def test_two_kinds_at_once_name_the_tensor_that_breaks_its_own(small: Spec) -> None:
    spec = small | {"convention": {"penalize_bias": False}, "compare": ["parameters"]}
    by_drift = check(spec | {"tolerance": {"rounding": 8, "bias": {"rtol": 1e-9}}})
    by_step = check(spec | {"tolerance": {"rtol": 1e300, "bias": {"rounding": 8}}})
    found = [report.to_dict()["first_divergence"] for report in (by_drift, by_step)]
    assert [(one["tensor"], one["step"], one["on"]) for one in found] == [
        ("bias", 1, "drift"),
        ("bias", 1, "local"),
    ]
    assert [one["stage"] for one in found] == ["penalty", "penalty"]
    loose = check(spec | {"tolerance": {"rounding": 8, "bias": {"atol": 1.0}}})
    # The weights follow the same rule at every step; that the bias has drifted is allowed.
    assert loose.verdict == "equivalent"
    assert loose.comparison.drift.largest > 1e-3


def test_loss_tolerance_on_the_drift_compares_the_losses_of_both_trajectories() -> None:
    found = both("doubled")
    spec = SMALL | CASES["doubled"] | {"tolerance": {"rounding": 1e300, "loss": {"rtol": 0.01}}}
    report = check(spec)
    expected = found.first_loss_apart(0.01, 0)
    assert expected is not None
    assert expected > 1  # the first loss is of the same parameters
    assert report.first_divergence is None
    assert report.verdict == "diverged"
    first = report.to_dict()["first_loss_divergence"]
    scratch, framework = found.losses[expected - 1]
    assert first == {
        "step": expected,
        "scratch": scratch,
        "framework": framework,
        "difference": abs(scratch - framework),
        "bound": 0.01 * abs(framework),
    }


# --- what is no number never passes -------------------------------------------------------------

LARGEST: list[Any] = [
    {"rounding": 1e308},
    {"atol": 1.7e308},
    {"atol": 1e300, "rtol": 0.0},
    {"rounding": 1e308, "weight": {"atol": 1.7e308}, "bias": {"atol": 1.7e308}},
]
WITH_RTOL: list[Any] = [{"rtol": 1e-5, "atol": 1e-8}, {"rtol": 1e308}]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("tensor", ["weight", "bias"])
@pytest.mark.parametrize("tolerance", LARGEST, ids=str)
def test_torch_alone_not_finite_passes_under_no_tolerance(
    monkeypatch: pytest.MonkeyPatch, small: Spec, tolerance: Any, tensor: str, value: float
) -> None:
    nudge(monkeypatch, tensor, value)
    report = check(small | {"tolerance": tolerance})
    assert report.verdict == "diverged"
    assert report.first_divergence is not None
    assert (report.first_divergence.step, report.first_divergence.at.tensor) == (2, tensor)
    assert report.comparison.drift.needed[tensor][:3] == (math.inf, math.inf, math.inf)
    assert report.smallest_tolerance()[:3] == (math.inf, math.inf, math.inf)
    assert re.search(rf"pass(es)?:.* ({tensor} )?none[.;]", " ".join(report_text(report).split()))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("tolerance", WITH_RTOL, ids=str)
def test_torch_alone_not_finite_passes_under_no_rtol(
    monkeypatch: pytest.MonkeyPatch, small: Spec, tolerance: Any, value: float
) -> None:
    # rtol |inf| is inf, and so is the difference; torch.testing.assert_close refuses it.
    assert not close(np.array([1.0]), np.array([value]), 1e-5, 1e-8)
    nudge(monkeypatch, "weight", value)
    report = check(small | {"tolerance": tolerance})
    assert (report.verdict, step_of(report.first_divergence)) == ("diverged", 2)


def test_tolerance_beyond_the_range_of_float64_allows_every_finite_number(small: Spec) -> None:
    spec = small | {"init": {"constant": 1e3}, "convention": "doubled"}
    assert check(spec | {"tolerance": {"rtol": 1e300}}).verdict == "equivalent"
    assert check(spec | {"tolerance": {"rtol": 1e308}}).verdict == "equivalent"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "tolerance", [*LARGEST, {"rtol": 1e-5, "atol": 1e-8}, {"rtol": 1e300}, "exact"], ids=str
)
def test_scratch_alone_not_finite_passes_under_no_tolerance(
    monkeypatch: pytest.MonkeyPatch, small: Spec, tolerance: Any, value: float
) -> None:
    real = NumpyTrainer.step

    def poisoned(self: NumpyTrainer, state: State, batch: Any, seen: Any = None) -> Update:
        update = real(self, state, batch, seen)
        if batch.step == 2:
            update.step.after["bias"][0] = value
        return update

    monkeypatch.setattr(NumpyTrainer, "step", poisoned)
    report = check(small | {"tolerance": tolerance})
    assert (report.verdict, step_of(report.first_divergence)) == ("diverged", 2)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("tolerance", [*LARGEST, *WITH_RTOL], ids=str)
def test_both_sides_not_finite_is_no_pass_either(
    monkeypatch: pytest.MonkeyPatch, small: Spec, tolerance: Any, value: float
) -> None:
    real = NumpyTrainer.step

    def poisoned(self: NumpyTrainer, state: State, batch: Any, seen: Any = None) -> Update:
        update = real(self, state, batch, seen)
        if batch.step == 2:
            update.step.after["weight"][0, 0] = value
        return update

    monkeypatch.setattr(NumpyTrainer, "step", poisoned)
    nudge(monkeypatch, "weight", value)
    report = check(small | {"tolerance": tolerance})
    assert report.verdict == "inconclusive"
    assert (report.comparison.first_unjudged, report.comparison.compared) == (2, 1)


# --- the smallest tolerance ---------------------------------------------------------------------

TENSORS = ("weight", "bias", "loss")


def any_spec(seed: int) -> Spec:
    """Make a small spec, of two sides that agree or differ, that ends with finite numbers."""
    random = np.random.default_rng([seed, 20])
    rows, features = int(random.integers(1, 9)), int(random.integers(1, 4))
    model, loss = [("linear", "mse"), ("logistic", "bce"), ("logistic", "mse")][seed % 3]
    X = random.normal(size=(rows, features)).round(3) * 10 ** random.uniform(-2, 2)
    y = random.integers(2, size=rows) if model == "logistic" else random.normal(size=rows)
    conventions = ["pytorch", "pytorch", "doubled", {"penalty_factor": 1 + 1e-10}, "keras-l2"]
    curvature = 2 * (1 + float(np.square(X).sum(axis=1).max()))
    return {
        "data": {"X": X.tolist(), "y": y.tolist()},
        "model": model,
        "loss": loss,
        "init": {"normal": {"std": 1.0, "seed": seed}},
        "optimizer": ["sgd", MOMENTUM][seed % 2],
        "lr": float(random.uniform(0.05, 1.2)) / curvature,
        "weight_decay": float(10 ** random.uniform(-4, -1)),
        "epochs": int(random.integers(1, 7)),
        "batch_size": ["full", 2][int(random.integers(2))],
        "dtype": ["float32", "float64", MIXED][int(random.integers(3))],
        "convention": conventions[int(random.integers(len(conventions)))],
    }


def smallest_of(report: Report) -> dict[str, dict[str, float]]:
    """Read the JSON's smallest tolerances."""
    smallest = report.to_dict()["smallest_tolerance"]
    return {
        name: {kind: float(value) for kind, value in smallest[name].items()} for name in TENSORS
    }


def lowered(tolerance: dict[str, dict[str, float]], kind: str) -> Iterator[tuple[str, Spec]]:
    """Lower one tensor's number by a thousandth, one after the other."""
    for name in TENSORS:
        value = tolerance[name][kind]
        if value > 1e-300:
            yield name, tolerance | {name: tolerance[name] | {kind: value * 0.999}}


@pytest.mark.parametrize("seed", range(12))
def test_smallest_tolerance_put_into_the_spec_passes_and_a_smaller_one_does_not(seed: int) -> None:
    spec = any_spec(seed)
    report = check(spec)
    assert report.verdict != "inconclusive"
    smallest = smallest_of(report)
    for kind in ("rounding", "rtol", "atol"):
        # A number that must be positive stands in where 0 would do.
        each = {name: {kind: smallest[name][kind] or 1e-300} for name in TENSORS}
        assert all(math.isfinite(one[kind]) for one in each.values())
        assert check(spec | {"tolerance": each}).verdict == "equivalent", kind
        common = {kind: max(one[kind] for one in each.values())}
        assert check(spec | {"tolerance": common}).verdict == "equivalent", kind
        for name, less in lowered(each, kind):
            found = check(spec | {"tolerance": less})
            assert found.verdict == "diverged", (kind, name)
            first = found.first_loss_divergence if name == "loss" else found.first_divergence
            assert first is not None
            assert first.at.tensor == name


@pytest.mark.parametrize("seed", range(24, 33))
@pytest.mark.parametrize("kind", ["rtol", "atol"])
def test_smallest_rtol_and_atol_are_those_beside_the_spec_s_other_one(seed: int, kind: str) -> None:
    spec = any_spec(seed)
    free = smallest_of(check(spec))
    other = "atol" if kind == "rtol" else "rtol"
    # Half of what would do alone, so that both count; a third of the seeds has next to all.
    share = [0.5, 0.9, 1 - 1e-12][seed % 3]
    given_other = {name: {other: free[name][other] * share, kind: 0.0} for name in TENSORS}
    smallest = smallest_of(check(spec | {"tolerance": given_other}))
    each = {name: given_other[name] | {kind: smallest[name][kind]} for name in TENSORS}

    assert check(spec | {"tolerance": each}).verdict == "equivalent"
    if share < 0.99:  # else what is left is of the size of its own rounding
        for name, less in lowered(each, kind):
            assert check(spec | {"tolerance": less}).verdict == "diverged", name


def test_smallest_atol_beside_an_rtol_is_taken_in_float64_where_parameters_are_float32() -> None:
    # In float32 rtol |w| would be off by 6e-8 of itself, far more than is left.
    spec = SMALL | {"dtype": "float32", "epochs": 1, "convention": "doubled"}
    spec |= {"compare": ["parameters"], "init": {"weight": [0.5, -0.3], "bias": [0.0]}}
    free = check(spec | {"tolerance": {"rtol": 0.0}}).comparison.drift.needed["weight"]
    beside = {"rtol": free.rtol * (1 - 1e-9)}
    left = check(spec | {"tolerance": beside}).smallest_tolerance().atol
    assert 0 < left < 1e-8
    assert check(spec | {"tolerance": beside | {"atol": left}}).verdict == "equivalent"
    assert check(spec | {"tolerance": beside | {"atol": left * 0.99}}).verdict == "diverged"


FORM = re.compile(r"\{[^}]*\}|\bexact\b")


def printed_forms(report: Report) -> list[str]:
    text = " ".join(report_text(report).split())
    found = re.search(r"Smallest tolerance that passes: (.*?)\.(?: |$)", text)
    assert found
    return FORM.findall(found[1])


@pytest.mark.parametrize("seed", range(40, 50))
def test_smallest_tolerance_as_printed_passes_as_a_spec_s_own(seed: int, tmp_path: Path) -> None:
    spec = any_spec(seed)
    if seed % 2:
        spec["tolerance"] = {"rtol": 1e-3, "atol": 1e-7}
    report = check(spec)
    smallest = report.smallest_tolerance()
    forms = printed_forms(report)
    assert forms
    kinds = set()
    for form in forms:
        path = tmp_path / "again.yaml"
        head = {key: value for key, value in spec.items() if key != "tolerance"}
        path.write_text(f"{yaml.safe_dump(head)}tolerance: {form}\n", encoding="utf-8")
        assert check(path).verdict == "equivalent", form
        number = re.search(r"(rounding|rtol|atol): ([^,}]*)\}?$", form.split(", atol: 1e-07")[0])
        if number and "exact" not in form:
            kinds.add(number[1])
            alone = "rounding" not in form and not ("rtol" in form and "atol" in form)
            value = getattr(smallest, number[1] + ("_alone" if alone else ""))
            # Two digits, rounded up: at most a tenth more, and never less.
            assert value <= float(number[2]) <= value * 1.1001
    assert kinds == {"rounding", "rtol", "atol"} or forms == ["exact"]


@pytest.mark.parametrize("seed", range(56, 71))
def test_verdict_json_and_text_agree_on_whether_the_tolerance_is_kept(seed: int) -> None:
    random = np.random.default_rng(seed)
    kind = ("rounding", "rtol", "atol")[seed % 3]
    tolerance = {kind: float(10 ** random.uniform(*((-2, 12) if seed % 3 == 0 else (-17, 0))))}
    report = check(any_spec(seed) | {"tolerance": tolerance})
    data = report.to_dict()
    text = " ".join(report_text(report).split())
    most = max(float(data["smallest_tolerance"][name][kind]) for name in TENSORS)
    kept = most <= tolerance[kind]

    assert data["verdict"] == ("equivalent" if kept else "diverged")
    assert (data["first_divergence"] or data["first_loss_divergence"]) is None or not kept
    assert ("EQUIVALENT over" in text) == kept
    assert ("DIVERGED at step" in text) == (not kept)
    limit = tolerance[kind] if kind == "rounding" else 1.0
    judged = [
        float(ratio)
        for row in data["rows"]
        for ratio in (
            row["loss"]["tolerance_ratio"],
            *(one["tolerance_ratio"] for one in row["tensors"].values()),
        )
    ]
    start_kept = data["first_divergence"] is None or data["first_divergence"]["stage"] != "initial"
    assert (max(judged) <= limit and start_kept) == kept
    assert ("!" in text or "≠" in text) == (max(judged) > limit)


def test_tolerance_in_the_report_is_each_tensors_as_used(small: Spec) -> None:
    tolerance = {"rtol": 1e-3, "bias": {"rounding": 3}, "loss": "exact"}
    data = check(small | {"tolerance": tolerance}).to_dict()
    assert data["tolerance"] == {
        "weight": {"rtol": 1e-3, "atol": 0.0},
        "bias": {"rounding": 3.0},
        "loss": "exact",
    }
    assert check(small).to_dict()["tolerance"]["weight"] == {"rounding": 8.0}
