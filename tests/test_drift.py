"""Drift: what would have allowed it, and whether the training amplified it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regcheck.checking import check
from regcheck.compare.differences import Difference
from regcheck.compare.drift import AMPLIFIED, NOTHING_PASSES, DriftMeter, Needed, needed
from regcheck.compare.steps import Row
from regcheck.problem.problem import Array, Step
from regcheck.report.json import json_chunks
from regcheck.report.result import Report
from regcheck.report.terminal import report_text
from regcheck.spec.tolerance import Tolerance, Tolerances
from regcheck.trainers.numpy_trainer import NumpyTrainer, State, Update
from tests.random_specs import CURVATURE, random_training

Spec = dict[str, Any]

NONE = Tolerance()


def numbers(*values: float, dtype: Any = np.float64) -> Array:
    return np.array([values], dtype)


def local(ratio: float = 0.5, *, judged: bool = True) -> Difference:
    return Difference("weight", (0, 0), 1.0, 1.0, ratio, 1.0, ratio, judged)


# --- needed -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tolerance", "rtol", "atol"),
    [
        # |3 − 4| = 1 is a quarter of 4, |10 − 8| = 2 a quarter of 8, |0.5 − 1| half of 1.
        (NONE, 0.5, 2.0),
        # Beside atol 0.4: 0.6/4, 1.6/8, 0.1/1.
        (Tolerance(atol=0.4), 0.2, 2.0),
        # Beside rtol 0.1: 1 − 0.4, 2 − 0.8, 0.5 − 0.1.
        (Tolerance(rtol=0.1), 0.5, 1.2),
        (Tolerance(rtol=0.1, atol=0.4), 0.2, 1.2),
        # All that is needed, or more.
        (Tolerance(atol=2.0), 0.0, 2.0),
        (Tolerance(rtol=0.5), 0.5, 0.0),
        (Tolerance(exact=True), 0.5, 2.0),
        (Tolerance(rounding=3.0), 0.5, 2.0),
    ],
    ids=str,
)
def test_needed_by_hand(tolerance: Tolerance, rtol: float, atol: float) -> None:
    found = needed(tolerance, local(0.25), numbers(3, 10, 0.5), numbers(4, 8, 1))
    # A few roundings in float64; what is left of 2 after 0.8 has those of 2.
    assert found.rtol == pytest.approx(rtol, rel=1e-14, abs=0)
    assert found.atol == pytest.approx(atol, rel=1e-14, abs=0)
    assert (found.rounding, found.exact) == (0.25, False)


def test_needed_signs_do_not_matter_and_the_frameworks_size_does() -> None:
    found = needed(NONE, local(), numbers(-3), numbers(-4))
    assert found == needed(NONE, local(), numbers(3), numbers(4))
    assert found.rtol == pytest.approx(1 / 4, rel=1e-14)
    swapped = needed(NONE, local(), numbers(4), numbers(3))
    assert swapped.rtol == pytest.approx(1 / 3, rel=1e-14)


def test_needed_no_rtol_allows_what_differs_from_0() -> None:
    found = needed(NONE, local(), numbers(1e-9, 1), numbers(0, 1))
    assert (found.rtol, found.atol) == (math.inf, 1e-9)
    beside = needed(Tolerance(atol=1e-8), local(), numbers(1e-9, 2), numbers(0, 1))
    assert beside.rtol == pytest.approx(1 - 1e-8, rel=1e-14)


def test_needed_of_equal_numbers_is_nothing_unless_a_sign_of_0_differs() -> None:
    same = needed(NONE, local(0.0), numbers(0, -2), numbers(0, -2))
    assert same == Needed(0.0, 0.0, 0.0, exact=True)
    signs = needed(NONE, local(0.0), numbers(0.0, -2), numbers(-0.0, -2))
    assert signs == Needed(0.0, 0.0, 0.0, exact=False)


@pytest.mark.parametrize("tolerance", [NONE, Tolerance(rtol=1e300, atol=1e300)], ids=str)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_needed_where_one_side_is_not_finite_is_more_than_any_number(
    value: float, tolerance: Tolerance
) -> None:
    for sides in ((numbers(1, value), numbers(1, 2)), (numbers(1, 2), numbers(1, value))):
        found = needed(tolerance, local(math.inf), *sides)
        assert found == NOTHING_PASSES


def test_needed_rounding_of_what_rounding_cannot_judge_is_more_than_any_number() -> None:
    found = needed(Tolerance(rtol=1.0), local(math.nan, judged=False), numbers(1), numbers(2))
    assert found.rounding == math.inf
    some = needed(Tolerance(rtol=1.0), local(3.0, judged=False), numbers(1), numbers(1))
    assert some.rounding == math.inf


def test_needed_takes_float32_as_the_numbers_that_they_are() -> None:
    third = np.float32(1 / 3)
    found = needed(
        Tolerance(rtol=0.1), local(), numbers(1), numbers(float(third), dtype=np.float32)
    )
    left = 1 - float(third) - 0.1 * float(third)
    assert found.atol == pytest.approx(left, rel=1e-14)


@pytest.mark.parametrize("seed", range(30))
def test_needed_is_enough_however_little_the_other_number_leaves(seed: int) -> None:
    random = np.random.default_rng(seed)
    scratch, framework = random.normal(size=(2, 1, 50)) * 10.0 ** random.integers(-9, 9)
    apart, size = np.abs(scratch - framework), np.abs(framework)
    for share in (0.0, *random.random(6), 1 - 1e-9, 1 - 1e-15, 1.0):
        atol = float(apart.max() * share)
        rtol = needed(Tolerance(atol=atol), local(), scratch, framework).rtol
        assert (apart / (atol + rtol * size) <= 1).all()
        rtol = float((apart / size).max() * share)
        atol = needed(Tolerance(rtol=rtol), local(), scratch, framework).atol
        assert (apart / (atol + rtol * size) <= 1).all()


def test_joined_needs_pass_both() -> None:
    left, right = Needed(1.0, 0.2, 3.0, exact=True), Needed(2.0, 0.1, 4.0, exact=False)
    assert left.joined(right) == right.joined(left) == Needed(2.0, 0.2, 4.0, exact=False)
    assert left.joined(Needed()) == left


# --- the meter, by hand -------------------------------------------------------------------------


def row(step: int, drift: float, *, judged: bool = True) -> Row:
    one = local(judged=judged)
    parts = {"weight": one, "bias": one}
    return Row(
        step=step,
        epoch=step,
        batch=1,
        scratch_loss=0.0,
        framework_loss=0.0,
        loss=one,
        drift={"weight": drift / 2, "bias": drift},
        within={},
        local=parts,
        judged=parts | {"loss": one},
    )


def still(value: float = 0.0, dtype: Any = np.float64) -> Step:
    """Make a step after which both parameters have one value."""
    parts: dict[str, Array] = {name: numbers(value, dtype=dtype) for name in ("weight", "bias")}
    return Step(parts, (), 0.0, {}, {}, {}, {}, parts)


def metered(*steps: tuple[float, float]) -> DriftMeter:
    """Measure steps of (drift, rounding), of parameters that are 0."""
    meter = DriftMeter(Tolerances())
    for number, (drift, rounding) in enumerate(steps, start=1):
        meter.measure(row(number, drift), rounding)
        meter.need_step(row(number, drift), still(), still())
    return meter


def test_meter_adds_up_rounding_and_tells_the_worst_step() -> None:
    # Sums of rounding: 1, 2, 3, 4; drift over them: 1, 10.5, 30, 25.
    found = metered((1, 1), (21, 1), (90, 1), (100, 1)).amplification
    assert found is not None
    assert (found.first_step, found.step, found.factor, found.drift) == (2, 3, 30.0, 90.0)


def test_meter_tells_nothing_up_to_ten_times_the_rounding() -> None:
    assert AMPLIFIED == 10
    assert metered((10, 1), (20, 1), (30, 1)).amplification is None
    assert metered((10.01, 1)).amplification is not None


def test_meter_counts_the_start_as_rounding() -> None:
    for drift, amplified in ((9.9e-3, False), (1.01e-2, True)):
        meter = DriftMeter(Tolerances())
        meter.need_start(
            {"weight": local(), "bias": local()},
            {"weight": numbers(1 + 1e-3), "bias": numbers(0, dtype=np.float32)},
            {"weight": numbers(1), "bias": numbers(0)},
        )
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


# --- amplified rounding -------------------------------------------------------------------------

MIXED = {"scratch": "float32", "framework": "float64"}
SEED_3: Spec = {
    "data": {"synthetic": {"rows": 60, "features": 2, "seed": 3}},
    "model": "logistic",
    "weight_decay": 0.001,
}


def told(report: Report) -> str:
    return " ".join(report_text(report).split())


@pytest.mark.parametrize(
    ("loss", "dtype"),
    [
        ("mse", "float32"),
        ("mse", "float64"),
        ("mse", MIXED),
        ("bce", "float32"),
        ("bce", "float64"),
        ("bce_with_logits", MIXED),
    ],
    ids=str,
)
@pytest.mark.parametrize("lr", [60, 200])
def test_chaos_is_equivalent_and_told_as_amplified_rounding(
    lr: float, loss: str, dtype: Any
) -> None:
    report = check(SEED_3 | {"lr": lr, "loss": loss, "dtype": dtype, "epochs": 140})
    assert report.verdict == "equivalent"
    assert report.first_divergence is None
    found = report.comparison.drift.amplification
    assert found is not None
    assert found.first_step <= found.step
    assert found.factor > AMPLIFIED
    data = json.loads("".join(json_chunks(report)))["amplification"]
    assert data == {
        "first_step": found.first_step,
        "step": found.step,
        "factor": found.factor,
        "drift": found.drift,
    }
    text = told(report)
    assert text.count("The drift is amplified rounding") == 1
    assert f"from step {found.first_step:,} on" in text
    assert f"After step {found.step:,} " in text
    assert found.drift == max(
        one.drift for one in report.comparison.trace[found.step - 1].tensors.values()
    )
    # Nothing before: each step's drift is within ten times what one step alone can put in.
    before = [report.comparison.trace[index].tensors for index in range(found.first_step - 1)]
    most = max((one.drift / one.bound for row in before for one in row.values()), default=0.0)
    assert most < 1e4


def test_large_rounding_in_single_steps_is_not_called_amplified() -> None:
    # In float32 σ(z) is 1 from z = 17 on, where BCELoss has no slope: float64 has one up to 28.
    # A single step rounds that much; nothing is amplified where the drift is no more than the sum.
    report = check(SEED_3 | {"lr": 60, "loss": "bce", "dtype": MIXED, "epochs": 140})
    single = sum(max(one.local for one in row.tensors.values()) for row in report.comparison.trace)
    assert report.verdict == "equivalent"
    assert 1 < report.comparison.drift.largest < AMPLIFIED * single
    assert report.comparison.drift.amplification is None


def test_chaos_of_the_squared_error_ends_with_other_numbers_altogether() -> None:
    # Otherwise the above would be about nothing: in a table the two trainings look unrelated.
    report = check(SEED_3 | {"lr": 200, "loss": "mse", "epochs": 140})
    assert report.comparison.drift.largest > 1
    assert report.comparison.drift.amplification is not None
    assert report.comparison.drift.amplification.factor > 1e10
    assert (
        check(
            SEED_3
            | {"lr": 200, "loss": "mse", "epochs": 140}
            | {"tolerance": {"rtol": 1e-5, "atol": 1e-8}}
        ).verdict
        == "diverged"
    )


def linear_at(share: float, **changes: Any) -> Spec:
    """Make a linear spec at a share of its largest stable lr, 2/‖H‖, started at the optimum."""
    random = np.random.default_rng(0)
    X = random.normal(size=(40, 3))
    y = X @ [1.0, 2.0, 3.0] + random.normal(size=40)
    ones = np.c_[X, np.ones(40)]
    largest = float(np.linalg.eigvalsh(2 * ones.T @ ones / 40).max())
    best = np.linalg.lstsq(ones, y, rcond=None)[0]
    return {
        "data": {"X": X.tolist(), "y": y.tolist()},
        "model": "linear",
        "init": {"weight": best[:3].tolist(), "bias": best[3:].tolist()},
        "lr": share * 2 / largest,
        **changes,
    }


def test_linear_beyond_the_stability_limit_amplifies_and_within_it_does_not() -> None:
    # From the optimum on, rounding is all that grows: by 1 − 2·1.3 = −1.6 a step.
    beyond = check(linear_at(1.3, epochs=60))
    assert beyond.verdict == "equivalent"
    assert beyond.comparison.drift.amplification is not None
    # Growth by 1.6 reaches ten times the sum of all rounding within 20 steps of its first bit.
    assert beyond.comparison.drift.amplification.first_step < 30
    assert beyond.comparison.drift.amplification.step == 60
    within = check(linear_at(0.95, epochs=60))
    # Each step from the optimum is rounding: any lr would do.
    assert within.verdict == "inconclusive"
    assert "any lr or gradient would pass" in within.reason
    assert within.comparison.drift.amplification is None
    assert "amplified" not in told(within)


FEW_NUMBERS = 3_000
"""Numbers in X up to which a random spec takes a few milliseconds; larger ones are left out."""


def stable_spec(seed: int, folder: Path) -> Spec | None:
    """Make a random spec in which each step contracts: lr below 1/‖H‖ of every single row."""
    file = folder / f"{seed}.npz"
    spec, _ = random_training(np.random.default_rng([seed, 7]), file, strange=False)
    data = spec["data"]
    X = np.load(file)["X"] if "npz" in data else np.array(data["X"])
    if X.size > FEW_NUMBERS:
        return None
    steepest = CURVATURE[spec["model"]] * (1 + float(np.einsum("ij,ij->i", X, X).max()))
    spec.pop("lr_schedule", None)
    # λ is 1 at most.
    return spec | {"lr": min(spec["lr"], 1 / (steepest + 1))}


@pytest.mark.search(sample=60, whole=320)
def test_stable_random_spec_scares_nobody(seed: int, tmp_path: Path) -> None:
    spec = stable_spec(seed, tmp_path)
    if spec is not None:
        drift = check(spec).comparison.drift
        assert drift.amplification is None
        assert drift.first_lost is None


def test_stable_random_specs_are_with_and_without_momentum(tmp_path: Path) -> None:
    specs = [spec for seed in range(60) if (spec := stable_spec(seed, tmp_path))]
    assert len(specs) > 30
    assert 10 < sum(spec["optimizer"] != "sgd" for spec in specs) < len(specs) - 10


@pytest.mark.parametrize("lr", [0.0, 1e-12])
def test_start_that_float32_rounds_is_no_amplification(small: Spec, lr: float) -> None:
    # 0.1 is another number in float32: the sides are apart before anything moves, and stay so.
    dtype = {"scratch": "float64", "framework": "float32"}
    report = check(small | {"lr": lr, "dtype": dtype, "epochs": 5})
    assert report.verdict == "equivalent"
    assert report.comparison.drift.largest > 1e-9
    assert report.comparison.drift.amplification is None
    assert "The two trajectories are never more than 1.2e-08 apart, " in told(report)


def test_amplification_is_not_told_of_a_run_that_diverges(small: Spec) -> None:
    report = check(SEED_3 | {"lr": 200, "loss": "mse", "epochs": 60, "convention": "doubled"})
    assert report.verdict == "diverged"
    assert "amplified" not in told(report)


# --- one trajectory that is lost ----------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_own_trajectory_that_is_lost_alone_is_inconclusive_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, small: Spec, value: float
) -> None:
    # Only the scratch side's own training is poisoned: from torch's parameters all steps agree.
    real = NumpyTrainer.step
    calls: dict[int, int] = {}

    def poisoned(self: NumpyTrainer, state: State, batch: Any, seen: Any = None) -> Update:
        update = real(self, state, batch, seen)
        calls[batch.step] = calls.get(batch.step, 0) + 1
        if batch.step == 2 and calls[2] == 1:  # its own step is taken before the one beside torch
            update.step.after["weight"][0, 0] = value
        return update

    monkeypatch.setattr(NumpyTrainer, "step", poisoned)
    report = check(small | {"epochs": 5})
    assert (report.verdict, report.verdict_step) == ("inconclusive", 2)
    assert (
        report.comparison.drift.first_lost,
        report.comparison.first_unjudged,
        report.first_divergence,
    ) == (2, None, None)
    assert report.comparison.compared == 5
    text = told(report)
    assert (
        "INCONCLUSIVE: from step 2 on the scratch side's own training is not finite, though every "
        "step agrees; step 1 agrees." in text
    )
    assert "Traceback" not in text
    assert (
        math.isnan(report.comparison.drift.largest) or report.comparison.drift.largest == math.inf
    )


def test_own_trajectory_that_is_lost_alone_diverges_where_the_drift_is_judged(
    monkeypatch: pytest.MonkeyPatch, small: Spec
) -> None:
    real = NumpyTrainer.step
    calls: dict[int, int] = {}

    def poisoned(self: NumpyTrainer, state: State, batch: Any, seen: Any = None) -> Update:
        update = real(self, state, batch, seen)
        calls[batch.step] = calls.get(batch.step, 0) + 1
        if batch.step == 2 and calls[2] == 1:
            update.step.after["weight"][0, 0] = math.nan
        return update

    monkeypatch.setattr(NumpyTrainer, "step", poisoned)
    report = check(small | {"epochs": 5, "tolerance": {"rtol": 1.0, "atol": 1.0}})
    assert report.verdict == "diverged"
    assert report.first_divergence is not None
    assert (report.first_divergence.step, report.first_divergence.at.index) == (2, (0, 0))
    assert report.first_divergence.at.ratio == math.inf


def needed_loss(tolerance: Tolerance, own: float, framework: float, judged: Difference) -> Needed:
    """Meter one step whose loss cannot be judged by rounding."""
    parts: dict[str, Array] = {"weight": numbers(1), "bias": numbers(1)}
    step = Step(parts, (), own, {}, {}, {}, {}, parts)
    one = row(1, 0.0)
    one = one._replace(loss=local(math.nan, judged=False), judged=one.judged | {"loss": judged})
    meter = DriftMeter(Tolerances(loss=tolerance))
    meter.need_step(one, step, step._replace(loss=framework))
    return meter.needed.get("loss", Needed())


def test_meter_needs_of_the_loss_what_its_own_tolerance_judges() -> None:
    # The bound of a single step may be inf where the losses themselves can still be compared.
    found = needed_loss(Tolerance(rtol=0.1), 3.0, 2.0, local(5.0))
    assert found.rounding == math.inf
    assert (found.rtol, found.atol) == pytest.approx((0.5, 0.8), rel=1e-14)
    unjudged = local(math.nan, judged=False)
    assert needed_loss(Tolerance(rounding=8.0), 3.0, 2.0, unjudged) == Needed()
