"""Bounds worked by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from regcheck.numerics.bounds.rounding import RoundingModel
from regcheck.numerics.bounds.update_rounding import RoundingState
from regcheck.numerics.packing import flat
from regcheck.trainers.numpy_trainer import NumpyTrainer
from tests.conftest import told
from tests.rounded_steps import (
    MIXED,
    TINY32,
    TINY64,
    U32,
    U64,
    close,
    first_bounds,
    first_step,
    problem_of,
)

SHAPES = {"weight": (1, 2), "bias": (1,)}


def test_bounds_of_one_row_worked_by_hand() -> None:
    # x = (3, 4), y = 1, w = (1, 0), b = 1: ‖x‖ = 5, ‖w‖ = 1, z = 4, s = 2 (4 − 1) = 6.
    _, step, bounds = first_step(
        problem_of(init={"weight": [1.0, 0.0], "bias": 1.0}, weight_decay=0.25)
    )
    dz = (math.sqrt(2) + 2) * (5 + 1)
    ds = 2 * dz + 2 * (6 + 1)
    dg = ds + (1 + 7) * 6
    loss = (6 + ds * U64) * dz + 2 * 6 * 1 + (1 + 7) * 9
    gradient = np.array([3, 4, 1]) * dg
    pull = np.array([0.25, 0.0, 0.25])
    shift = 0.5 * (gradient + 5 * pull) + 2 * np.array([9.125, 12, 3.125])
    after = shift + 2 * (np.array([1, 0, 1]) + np.array([9.125, 12, 3.125]))

    assert told(step.delta)["weight"].tolist() == [[9.125, 12.0]]
    assert bounds.outputs[0] == close(np.array([dz * U64]))
    assert bounds.loss == close(loss * U64)
    for found, expected in zip(bounds[2:], (gradient, 2 * pull, shift, after), strict=True):
        assert flat(found) == close(expected * U64, abs=4 * TINY64)
        assert {name: bound.shape for name, bound in found.items()} == SHAPES


def test_bounds_of_micro_batches_worked_by_hand() -> None:
    # w = (1.5, −2), b = 3: z = −0.5, 34.5 | −15, r = −3, 36 | −19, s = 2r.
    # ‖x_i‖ = 5, 13 | 17 and ‖w‖ = 2.5; the columns' norms are √98, √385 and √3, their peaks 8, 15
    # and 1. Two rows have no more than √2 times the peak, and one no more than the peak.
    _, step, bounds = first_step(
        problem_of(
            data={"X": [[3.0, 4.0], [5.0, -12.0], [8.0, 15.0]], "y": [2.5, -1.5, 4.0]},
            init={"weight": [1.5, -2.0], "bias": 3.0},
            weight_decay={"weight": 0.25, "bias": 0.75},
            lr=0.125,
            batch_size=2,
            accumulate=2,
        )
    )
    k = math.sqrt(2) + 2
    dz = [k * np.array([5 * 2.5 + 3, 13 * 2.5 + 3]), k * np.array([17 * 2.5 + 3])]
    s, y, loss = [math.hypot(6, 72), 38.0], [math.hypot(2.5, 1.5), 4.0], [(9 + 1296) / 2, 361.0]
    ds = [2 * math.hypot(*part) + 2 * (s[i] + y[i]) for i, part in enumerate(dz)]
    columns = np.array([[math.sqrt(98), math.sqrt(385), math.sqrt(2)], [8.0, 15.0, 1.0]])
    dg = [(ds[0] + (math.sqrt(2) + 7) * s[0]) / 2, ds[1] + (1 + 7) * s[1]]
    gradient = (columns[0] * dg[0] + columns[1] * dg[1]) / 2
    first = ((s[0] + ds[0] * U64) * math.hypot(*dz[0]) + 2 * s[0] * y[0]) / 2
    second = (s[1] + ds[1] * U64) * dz[1].item() + 2 * s[1] * y[1]
    rounded = (math.sqrt(2) + 7 + 1 + 7) * sum(loss) / 2
    pull, moved = np.array([0.375, 0.5, 2.25]), np.array([8.265625, 63.4375, 0.03125])
    shift = 0.125 * (gradient + 5 * pull) + 2 * moved

    assert flat(told(step.delta)) == close(-moved)
    for output, off in zip(bounds.outputs, dz, strict=True):
        assert output == close(off * U64)
    assert bounds.loss == close((first + second + rounded) / 2 * U64)
    after = shift + 2 * (np.array([1.5, 2, 3]) + moved)
    for found, expected in zip(bounds[2:], (gradient, 0.5 * pull, shift, after), strict=True):
        assert flat(found) == close(expected * U64)


@pytest.mark.parametrize("z", [-5.0, -0.5, 0.5, 5.0])
@pytest.mark.parametrize(
    ("loss", "steepest", "tail", "squared"),
    [("bce", 0.25, 1, 0), ("bce_with_logits", 0.25, 1, 0), ("mse", 0.16, 2.5, 4)],
)
def test_gradient_bound_of_a_logistic_row_worked_by_hand(
    loss: str, steepest: float, tail: float, squared: float, z: float
) -> None:
    # ‖x‖ = 5, ‖w‖ = |z|/6 and |b| = |z|/2; z ± 1 has a slope of the slope below e < 3 times z's.
    start = {"weight": [z / 6, 0.0], "bias": z / 2}
    data = {"X": [[3.0, 4.0]], "y": [0.25]}
    _, step, bounds = first_step(problem_of(model="logistic", loss=loss, init=start, data=data))
    s, dz = (
        abs(told(step.gradient)["bias"].item()),
        (math.sqrt(2) + 2) * (5 * abs(z) / 6 + abs(z) / 2),
    )
    ds = min(3 * tail * math.exp(-abs(z)), steepest) * dz + squared * min(1.0, math.exp(z))
    dg = ds + 2 * (s + 0.25) + (1 + 7) * s

    assert bounds.gradient["weight"] == close(np.array([[3 * dg * U64, 4 * dg * U64]]))
    assert bounds.gradient["bias"].item() == close(dg * U64)


def test_bounds_of_nothing_but_zeros_are_what_lies_below_the_normal_numbers() -> None:
    # x = (3, 4), all else 0: z, its slope, their products and the penalty each may be lost.
    bounds = first_bounds(data={"X": [[3.0, 4.0]], "y": [0.0]}, init="zeros")
    gradient = np.array([3, 4, 1]) * 2 + 1
    shift = 0.5 * (gradient + 1) + 1

    assert bounds.outputs[0] == close(np.array([TINY64]))
    assert bounds.loss == TINY64
    for found, expected in zip(bounds[2:], (gradient, np.full(3, 1.5), shift, shift), strict=True):
        assert flat(found) == close(expected * TINY64)


def test_loss_bound_of_squared_sigmoids_in_micro_batches_worked_by_hand() -> None:
    # Two equal rows, each its own micro-batch: σ(0) = 1/2, r = 0.3 and s = 2 · 0.3/4. The loss of
    # one of two micro-batches is at most twice the mean, so that |r| ≤ √(2 · 0.09).
    data = {"X": [[3.0, 4.0]] * 2, "y": [0.2, 0.2]}
    start = {"weight": [1.0, 0.5], "bias": -5.0}
    batches = {"batch_size": 1, "accumulate": 2}
    _, _, bounds = first_step(
        problem_of(model="logistic", loss="mse", data=data, init=start, **batches)
    )
    dz = (math.sqrt(2) + 2) * (5 * math.hypot(1.0, 0.5) + 5)
    evaluated = 8 * math.sqrt(2 * 0.09) + (1 + 7) * 0.09

    assert bounds.loss == close((0.15 * dz + 2 * 0.15 * 0.2 + evaluated) * U64)


def test_velocity_of_nothing_but_zeros_may_lose_what_is_below_the_normal_numbers() -> None:
    problem = problem_of(
        data={"X": [[3.0, 4.0]], "y": [0.0]}, optimizer={"name": "sgd", "momentum": 0.25}, epochs=2
    )
    trainer, model, state = NumpyTrainer(problem), RoundingModel(problem), RoundingState()
    for batch in problem.schedule.batches():
        update = trainer.step(trainer.start(), batch)
        step = update.step._replace(
            memory={name: {"momentum_buffer": g} for name, g in told(update.step.gradient).items()}
        )
        bounds, state = model.bounds(state, batch, step, update.dloss_dz)
    coupled = np.array([3, 4]) * 2 + 1 + 1

    assert bounds.delta["weight"][0] == close((0.5 * (1.25 * coupled + 1) + 1) * TINY64)


def test_loss_at_its_minimum_is_known_to_the_square_of_the_output_s_error() -> None:
    # z = y, so that s = 0, and r² is off by δz² at most: what is told is (2 δz + 2u |y|) δz.
    _, _, bounds = first_step(
        problem_of(init={"weight": [1.0, 0.5], "bias": 0.0}, data={"X": [[3.0, 4.0]], "y": [5.0]})
    )
    dz = (math.sqrt(2) + 2) * 5 * math.hypot(1.0, 0.5)

    assert bounds.loss == close((2 * dz + 2 * 5) * dz * U64**2)


@pytest.mark.parametrize(
    "options", [{}, {"dampening": 0.75}, {"dampening": 1.5}, {"nesterov": True}], ids=str
)
def test_velocity_carries_its_error_from_step_to_step(options: dict[str, Any]) -> None:
    problem = problem_of(optimizer={"name": "sgd", "momentum": 0.5, **options}, epochs=2, lr=0.25)
    trainer, model = NumpyTrainer(problem), RoundingModel(problem)
    state, carried, taken = trainer.start(), RoundingState(), []
    for batch in problem.schedule.batches():
        update = trainer.step(state, batch)
        bounds, carried = model.bounds(carried, batch, update.step, update.dloss_dz)
        taken.append((update.step, bounds))
        state = update.state
    (_, first), (step, second) = taken
    dg = second.gradient["bias"].item()
    dv = 0.5 * first.gradient["bias"].item() + abs(1 - options.get("dampening", 0)) * dg
    dv += 2 * U64 * abs(step.velocity["bias"].item())
    dd = dg + 0.5 * dv if "nesterov" in options else dv

    expected = 0.25 * dd + 2 * U64 * abs(told(step.delta)["bias"].item())
    assert second.delta["bias"].item() == close(expected)


@pytest.mark.parametrize(
    ("dtype", "u"),
    [
        ("float64", U64),
        ("float32", U32),
        (MIXED, U32),
        ({"scratch": "float32", "framework": "float64"}, U32),
    ],
)
def test_the_coarser_dtype_counts(dtype: Any, u: float) -> None:
    model = RoundingModel(problem_of(dtype=dtype))
    start = model.start_bounds({"weight": np.array([[2.0, -4.0]]), "bias": np.array([0.0])})

    assert start["weight"] == close(np.array([[2 * u, 4 * u]]))
    assert start["bias"].item() == (TINY64 if u == U64 else TINY32)
