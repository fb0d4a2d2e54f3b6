"""Bounds against actual errors, and runs in which nothing but rounding differs."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regcheck.problem.problem import Problem
from regcheck.trainers.numpy_trainer import NumpyTrainer
from tests.conftest import told
from tests.random_specs import KINDS
from tests.rounded_steps import (
    MIXED,
    U64,
    bounds_of,
    first_bounds,
    first_step,
    no_alarm,
    problem_of,
)


def errors_in_bounds(problem: Problem) -> dict[str, float]:
    """Give the largest errors of a float32 step against the same one in float64, in bounds."""
    batch, exact, _ = first_step(problem)
    single = NumpyTrainer(problem)
    single.dtype = np.dtype(np.float32)
    single.X, single.y = problem.X.astype(np.float32), problem.y.astype(np.float32)
    update = single.step(single.start(), batch)
    bounds = bounds_of(problem, batch, update.step, update.dloss_dz)
    pairs = {
        "forward": (told(update.step.outputs)[0], told(exact.outputs)[0], bounds.outputs[0]),
        "loss": (np.array(update.step.loss), np.array(exact.loss), np.array(bounds.loss)),
    }
    for part in ("gradient", "penalty", "delta", "after"):
        for name in ("weight", "bias"):
            pairs[f"{part} {name}"] = tuple(
                getattr(one, part)[name] for one in (update.step, exact, bounds)
            )
    return {
        name: float((np.abs(left - right.astype(np.float64)) / bound).max())
        for name, (left, right, bound) in pairs.items()
    }


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 30, 3000])
@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_errors_of_float32_are_within_the_bounds_and_not_far_below(
    kind: tuple[str, str], rows: int, scale: float
) -> None:
    random = np.random.default_rng(rows)
    X = random.normal(size=(rows, 5)) * scale
    y = (random.random(rows) < 0.5).astype(float)
    largest: dict[str, float] = {}
    for seed in range(5):
        problem = problem_of(
            data={"X": X.tolist(), "y": y.tolist()},
            model=kind[0],
            loss=kind[1],
            init={"normal": {"std": 1.0, "seed": seed}},
            weight_decay=0.1,
            lr=0.01,
            dtype=MIXED,
        )
        for name, ratio in errors_in_bounds(problem).items():
            largest[name] = max(largest.get(name, 0.0), ratio)

    # The limit of 8 is for what the bounds do not foresee; here they must hold as they stand.
    assert max(largest.values()) < 1.0, largest
    assert min(largest["forward"], largest["after weight"], largest["after bias"]) > 0.01, largest


SATURATED = [-200.0, -104.0, -90.0, -40.0, -28.0, -27.0, -15.0, 0.0, 8.0, 14.0, 15.0, 16.6, 17.0]
SATURATED += [20.0, 27.0, 28.0, 35.0, 37.0, 50.0, 90.0, 101.0, 200.0, 710.0, 750.0, -710.0, -750.0]


@pytest.mark.sampled(every=6)
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("dtype", ["float64", "float32", MIXED], ids=str)
def test_saturated_sigmoid_is_no_divergence(kind: tuple[str, str], dtype: Any) -> None:
    for z, y in product(SATURATED, (0.0, 0.5, 1.0)):
        no_alarm(
            kind,
            data={"X": [[1.0]], "y": [y]},
            init={"weight": [z * 0.7], "bias": z * 0.3},
            lr=1e-3,
            epochs=2,
            dtype=dtype,
        )


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("y", [0.0, 0.5, 1.0])
def test_errors_of_a_saturated_sigmoid_are_within_the_bounds(
    kind: tuple[str, str], y: float
) -> None:
    # As they stand, without the limit of 8.
    ratios = {
        z: max(
            errors_in_bounds(
                problem_of(
                    data={"X": [[1.0]], "y": [y]},
                    model=kind[0],
                    loss=kind[1],
                    init={"weight": [z * 0.7], "bias": z * 0.3},
                    dtype=MIXED,
                )
            ).values()
        )
        for z in (*SATURATED, *map(float, range(-110, 111, 2)))
    }

    assert max(ratios.values()) < 1.0, max(ratios, key=lambda z: ratios[z])


@pytest.mark.parametrize("z", [-40.0, 40.0])
def test_bounds_shrink_where_the_sigmoid_is_saturated_and_right(z: float) -> None:
    # σ′ is e^(−40) there, so that the error of z reaches nothing: a quarter of it would.
    start = {"weight": [z / 6.0, 0.0], "bias": z / 2}
    common = {"data": {"X": [[3.0, 4.0]], "y": [float(z > 0)]}, "init": start}
    bounds = first_bounds(model="logistic", loss="bce_with_logits", **common)
    of_output = bounds.outputs[0].item() / 4

    assert bounds.gradient["bias"].item() < (of_output / 10 if z < 0 else 3 * U64)


def test_a_learning_rate_too_small_for_float32_is_no_divergence() -> None:
    # 1e-50 is 0 in float32, and the gradient is large enough for it to be seen in float64.
    data = {"X": [[1e15], [2e15]], "y": [1e15, 0.0]}
    no_alarm(KINDS[0], data=data, lr=1e-50, epochs=3, dtype=MIXED, compare=["parameters"])


@pytest.mark.parametrize("dtype", ["float32", MIXED], ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=" ".join)
def test_denormal_and_huge_data_raise_no_alarm(kind: tuple[str, str], dtype: Any) -> None:
    for scale in (1e-44, 1e-40, 1e-30, 1e-3, 1e3, 1e15):
        no_alarm(
            kind,
            data={
                "X": (np.random.default_rng(0).normal(size=(40, 3)) * scale).tolist(),
                "y": [0.0, 1.0] * 20,
            },
            init={"constant": 1.0},
            lr=0.1 / (1 + scale * scale),
            weight_decay=0.01,
            epochs=5,
            dtype=dtype,
        )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", KINDS, ids=" ".join)
def test_equal_terms_in_great_number_raise_no_alarm(
    kind: tuple[str, str], dtype: str, tmp_path: Path
) -> None:
    # Roundings add up instead of cancelling: over rows, and over features in x·w.
    rows = {"X": [[1000.1, 0.3]] * 6000, "y": [1.0] * 6000}
    no_alarm(kind, data=rows, lr=1e-7, epochs=3, dtype=dtype)
    np.savez(tmp_path / "equal.npz", X=np.full((4, 40_000), 0.1), y=np.array([1.0, 0, 1, 0]))
    features = {"npz": str(tmp_path / "equal.npz")}
    no_alarm(kind, data=features, init={"constant": 0.1}, lr=1e-7, epochs=2, dtype=dtype)


def test_zero_learning_rate_in_a_schedule_is_no_divergence() -> None:
    schedule = {"kind": "list", "values": [0.0, 0.1, 0.0]}
    data = {"X": [[100.0], [200.0]], "y": [1.0, 0.0]}
    settings = {"init": {"constant": 1.0}, "lr": 0.0, "lr_schedule": schedule, "epochs": 3}
    no_alarm(KINDS[0], data=data, weight_decay=0.1, compare=["parameters"], **settings)
