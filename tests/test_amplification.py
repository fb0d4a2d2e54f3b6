"""Rounding that a training amplifies, and a trajectory that is lost by it."""

from __future__ import annotations

import math
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regcheck.checking import check
from regcheck.compare.drift import AMPLIFIED
from regcheck.trainers.numpy_state import State, Update
from regcheck.trainers.numpy_trainer import NumpyTrainer
from tests.conftest import Spec, in_one_line, told
from tests.random_specs import CURVATURE, random_training

# --- amplified rounding -------------------------------------------------------------------------

MIXED = {"scratch": "float32", "framework": "float64"}
CHAOS: Spec = {
    "data": {"synthetic": {"rows": 60, "features": 2, "seed": 3}},
    "model": "logistic",
    "weight_decay": 0.001,
    "epochs": 140,
}


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize(
    ("lr", "loss", "dtype"),
    [
        (60, "mse", "float32"),
        (200, "mse", "float64"),
        (60, "mse", MIXED),
        (200, "bce", "float32"),
        (60, "bce", "float64"),
        (200, "bce_with_logits", MIXED),
    ],
    ids=str,
)
def test_chaos_is_equivalent_and_reported_as_amplified_rounding(
    lr: float, loss: str, dtype: Any
) -> None:
    report = check(CHAOS | {"lr": lr, "loss": loss, "dtype": dtype})
    assert (report.verdict, report.first_divergence) == ("equivalent", None)
    found, trace = report.comparison.drift.amplification, report.comparison.trace
    assert found is not None
    assert found.first_step <= found.step
    assert found.factor > AMPLIFIED
    assert report.to_dict()["amplification"] == found._asdict()
    text = in_one_line(report)
    assert text.count("The accumulated difference is amplified rounding") == 1
    assert f"from step {found.first_step:,} on" in text
    assert f"After step {found.step:,} " in text
    assert found.drift == max(one.drift for one in trace[found.step - 1].tensors.values())
    # Nothing before: each step's drift is within what a step can put in, times some.
    before = [trace[index].tensors for index in range(found.first_step - 1)]
    most = max((one.drift / one.bound for row in before for one in row.values()), default=0.0)
    assert most < 1e4


def test_large_rounding_in_single_steps_is_not_called_amplified() -> None:
    # In float32 σ(z) is 1 from z = 17 on, where BCELoss has no slope: float64 has one up to 28.
    # A single step rounds that much; nothing is amplified where the drift is no more than the sum.
    report = check(CHAOS | {"lr": 60, "loss": "bce", "dtype": MIXED})
    single = sum(max(one.local for one in row.tensors.values()) for row in report.comparison.trace)
    assert report.verdict == "equivalent"
    assert 1 < report.comparison.drift.largest < AMPLIFIED * single
    assert report.comparison.drift.amplification is None


@pytest.mark.slow
def test_chaos_of_the_squared_error_ends_with_other_numbers_altogether() -> None:
    # Otherwise the above would be about nothing: in a table the two trainings look unrelated.
    spec = CHAOS | {"lr": 200, "loss": "mse"}
    drift = check(spec).comparison.drift
    assert drift.largest > 1
    assert told(drift.amplification).factor > 1e10
    assert check(spec | {"tolerance": {"rtol": 1e-5, "atol": 1e-8}}).verdict == "diverged"
    doubled = check(spec | {"epochs": 60, "convention": "doubled"})
    assert doubled.verdict == "diverged"
    assert "amplified" not in in_one_line(doubled)


def linear_at(share: float) -> Spec:
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
        "epochs": 60,
    }


def test_linear_beyond_the_stability_limit_amplifies_and_within_it_does_not() -> None:
    # From the optimum on, rounding is all that grows: by 1 − 2·1.3 = −1.6 a step.
    beyond = check(linear_at(1.3))
    assert beyond.verdict == "equivalent"
    assert beyond.comparison.drift.amplification is not None
    # Growth by 1.6 reaches ten times the sum of all rounding within 20 steps of its first bit.
    assert beyond.comparison.drift.amplification.first_step < 30
    assert beyond.comparison.drift.amplification.step == 60
    within = check(linear_at(0.95))
    # Each step from the optimum is rounding: any lr would do.
    assert within.verdict == "inconclusive"
    assert "any lr or gradient would pass" in within.reason
    assert within.comparison.drift.amplification is None
    assert "amplified" not in in_one_line(within)


FEW_NUMBERS = 3_000
"""Numbers in X up to which a random spec takes a few milliseconds."""


def stable_spec(seed: int, folder: Path) -> Spec:
    """Make a random spec in which each step contracts: lr below 1/‖H‖ of every single row."""
    for attempt in count():
        file, random = folder / f"{attempt}.npz", np.random.default_rng([seed, 7, attempt])
        spec, _ = random_training(random, file, strange=False)
        X = np.load(file)["X"] if "npz" in spec["data"] else np.array(spec["data"]["X"])
        if X.size <= FEW_NUMBERS:
            break
    steepest = CURVATURE[spec["model"]] * (1 + float(np.einsum("ij,ij->i", X, X).max()))
    spec.pop("lr_schedule", None)
    # λ is 1 at most.
    return spec | {"lr": min(spec["lr"], 1 / (steepest + 1))}


@pytest.mark.search(sample=18, whole=320)
def test_stable_random_spec_scares_nobody(seed: int, tmp_path: Path) -> None:
    drift = check(stable_spec(seed, tmp_path)).comparison.drift
    assert (drift.amplification, drift.first_lost) == (None, None)


@pytest.mark.parametrize("lr", [0.0, 1e-12])
def test_start_that_float32_rounds_is_no_amplification(small: Spec, lr: float) -> None:
    # 0.1 is another number in float32: the sides are apart before anything moves, and stay so.
    dtype = {"scratch": "float64", "framework": "float32"}
    report = check(small | {"lr": lr, "dtype": dtype, "epochs": 5})
    assert report.verdict == "equivalent"
    assert report.comparison.drift.largest > 1e-9
    assert report.comparison.drift.amplification is None
    assert "The two trajectories are never more than 1.2e-08 apart, " in in_one_line(report)


# --- one trajectory that is lost ----------------------------------------------------------------


def lose_own_trajectory(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    """Put a value into the scratch side's own training: from torch's parameters all steps agree."""
    real, seen = NumpyTrainer.step, set[int]()

    def poisoned(self: NumpyTrainer, state: State, batch: Any, seen_rows: Any = None) -> Update:
        update = real(self, state, batch, seen_rows)
        if batch.step == 2 and 2 not in seen:  # its own step is taken before the one beside torch
            update.step.after["weight"][0, 0] = value
        seen.add(batch.step)
        return update

    monkeypatch.setattr(NumpyTrainer, "step", poisoned)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_own_trajectory_that_is_lost_alone_is_inconclusive_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, small: Spec, value: float
) -> None:
    lose_own_trajectory(monkeypatch, value)
    report = check(small | {"epochs": 5})
    found = report.comparison
    assert (report.verdict, report.verdict_step) == ("inconclusive", 2)
    assert (found.drift.first_lost, found.first_unjudged, found.first_divergence) == (2, None, None)
    assert found.compared == 5
    assert not math.isfinite(found.drift.largest)
    assert (
        "INCONCLUSIVE: from step 2 on the scratch side's own training is not finite, though every "
        "step agrees; step 1 agrees."
    ) in in_one_line(report)


def test_own_trajectory_that_is_lost_alone_diverges_where_the_drift_is_judged(
    monkeypatch: pytest.MonkeyPatch, small: Spec
) -> None:
    lose_own_trajectory(monkeypatch, math.nan)
    report = check(small | {"epochs": 5, "tolerance": {"rtol": 1.0, "atol": 1.0}})
    assert report.verdict == "diverged"
    first = told(report.first_divergence)
    assert (first.step, first.at.index, first.at.ratio) == (2, (0, 0), math.inf)
