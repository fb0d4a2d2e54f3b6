from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regcheck.problem.problem import Parameters, Problem, Step, build_problem
from regcheck.rules.convention import Decay
from regcheck.spec import from_mapping
from regcheck.user_code.problem_api import user_problem
from tests.conftest import told
from tests.every_rule import (
    BASE,
    numpy_steps,
    rules,
)
from tests.reference import Training
from tests.rule import Kept, Rule

PENALIZED = BASE | {"weight_decay": {"weight": 0.3, "bias": 0.2}}


def problem_of(spec: dict[str, Any]) -> Problem:
    return build_problem(from_mapping(PENALIZED | spec))


def steps_of(spec: dict[str, Any]) -> Iterator[Step]:
    return numpy_steps(problem_of(spec))


# --- the reference trainer, in extended precision -------------------------------------------------

DECAYS = {
    "gradient": "gradient",
    "after-momentum": "velocity",
    "decoupled": "apart",
    "decoupled-unscaled": "bare",
    "after-update": "late",
    "before-clipping": "clipped",
}


def exact_steps(spec: dict[str, Any]) -> Iterator[tuple[list[float], float]]:
    """Train by the reference; yields the parameters after each step, and the reported loss."""
    loaded = from_mapping(PENALIZED | spec)
    problem = build_problem(loaded)
    c = problem.convention
    choices: dict[str, Any] = {
        "divide": {"nothing": "nothing", "batch": "rows", "dataset": "all rows"},
        "velocity": {"torch": "torch", "dampened": "dampened", "lr-inside": "lr inside"},
        "order": {"simultaneous": "together", "bias-first": "bias first"},
        "correction": {True: "torch", False: "none", "compounded": "kept"},
    }
    rule = Rule(
        divide=choices["divide"][c.divide_penalty_by],
        penalty=c.penalty_factor,
        shape="w" if c.penalty_norm == "squared" else "unit",
        bias="own" if c.penalize_bias else "none",
        decay=DECAYS[c.decay],  # type: ignore[arg-type]
        reduce=c.loss_reduction,
        half=c.loss_factor,
        velocity=choices["velocity"][c.momentum_form],
        order=choices["order"][c.update_order],
        epsilon=c.epsilon,
        start=c.accumulator_start,
        correction=choices["correction"][c.bias_correction],
    )
    training = Training(
        user_problem(problem, loaded.spec, framework=False),
        rule,
        lambda step: problem.schedule.lr_at(step + 1),
        np.longdouble,
    )
    kept, now = Kept(), training.start()
    for step in range(problem.schedule.steps):
        taken = training.step(kept, now, step)
        loss = taken.passed.own_loss
        if c.penalty_in_loss:
            for strength, w in zip(training.strengths(taken.kept.sizes[-1]), now, strict=True):
                square = (w * w).sum()
                loss += strength * (square / 2 if rule.shape == "w" else np.sqrt(square))
        kept, now = taken.kept, taken.after
        yield [*map(float, now[0]), float(now[1])], float(loss)


def flat(parameters: Parameters) -> list[float]:
    return [*parameters["weight"][0].tolist(), *parameters["bias"].tolist()]


@pytest.mark.sampled(every=12)
@pytest.mark.slow
@pytest.mark.parametrize("decay", get_args(Decay))
def test_every_convention_is_the_reference(decay: str) -> None:
    compared = 0
    for spec in rules(decay):
        for step, (theta, loss) in zip(steps_of(spec), exact_steps(spec), strict=True):
            # Up to 8 steps of some 50 roundings, of numbers of order 1 to 10.
            assert flat(step.after) == pytest.approx(theta, rel=1e-12, abs=1e-13), spec
            assert step.loss == pytest.approx(loss, rel=1e-12, abs=1e-13), spec
            compared += 1
    assert compared > 144


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 12),
    features=st.integers(1, 4),
    scale=st.sampled_from([1e-3, 1.0, 30.0]),
    batch_size=st.integers(1, 13),
    accumulate=st.integers(1, 4),
    model=st.sampled_from(["linear", "logistic"]),
)
def test_any_shape_and_scale_is_the_reference(
    seed: int, rows: int, features: int, scale: float, batch_size: int, accumulate: int, model: str
) -> None:
    draw = np.random.default_rng(seed)
    spec = {
        "data": {
            "X": (scale * draw.normal(size=(rows, features))).tolist(),
            "y": draw.integers(0, 2, rows).astype(float).tolist(),
        },
        "init": {"weight": (draw.normal(size=features) / scale).tolist(), "bias": [0.3]},
        "lr": 0.02 / max(1.0, scale) ** 2,
        "model": model,
        "batch_size": batch_size,
        "accumulate": accumulate,
        "epochs": 2,
        "optimizer": {"name": "sgd", "momentum": 0.9, "nesterov": True},
        "convention": {"divide_penalty_by": "batch", "penalty_in_loss": True},
    }
    for step, (theta, loss) in zip(steps_of(spec), exact_steps(spec), strict=True):
        # Up to 24 steps; the smallest scale has weights of size 1,000.
        assert flat(step.after) == pytest.approx(theta, rel=1e-11, abs=1e-12)
        # log(1 - p) of a sure row loses e^|z| units, with |z| below 15 here.
        assert step.loss == pytest.approx(loss, rel=1e-9, abs=1e-12)


# --- by hand --------------------------------------------------------------------------------------


def test_answers_step_by_hand() -> None:
    # The Stack Overflow answer: z = 3 and 5 against 7 and 11, loss (16 + 36)/2,
    # gradient 2/2 (-4·2 - 6·4) and 2/2 (-4 - 6), and half of λ w where the penalty is divided.
    spec = {
        "data": {"X": [[2.0], [4.0]], "y": [7.0, 11.0]},
        "init": {"constant": 1.0},
        "lr": 0.1,
        "weight_decay": {"weight": 1.0, "bias": 1.0},
        "convention": {"divide_penalty_by": "batch", "penalty_in_loss": True},
    }
    (step,) = steps_of(spec)
    assert told(step.outputs)[0].tolist() == [3.0, 5.0]
    assert flat(told(step.gradient)) == [-32.0, -10.0]
    assert step.loss == 26.0 + 0.25 + 0.25
    # Two roundings of numbers of order 1.
    assert flat(told(step.penalty)) == pytest.approx([0.05, 0.05], rel=1e-15)
    assert flat(told(step.delta)) == pytest.approx([-3.15, -0.95], rel=1e-15)
    assert flat(step.after) == pytest.approx([4.15, 1.95], rel=1e-15)


def test_accumulated_micro_batches_are_averaged_by_hand() -> None:
    # Rows {0, 1} and {2}: residuals 1, 3 and 5 on x = 1; mean gradients 2·2 and 2·5, average 7.
    spec = {
        "data": {"X": [[1.0], [1.0], [1.0]], "y": [-1.0, -3.0, -5.0]},
        "init": {"constant": 0.0},
        "batch_size": 2,
        "accumulate": 2,
    }
    (step,) = steps_of(spec)
    assert flat(told(step.gradient)) == [7.0, 7.0]
    assert step.loss == ((1 + 9) / 2 + 25) / 2
    assert [len(z) for z in told(step.outputs)] == [2, 1]


def test_penalty_of_an_unsquared_norm_at_zero_is_zero() -> None:
    spec = {"init": {"constant": 0.0}, "convention": {"penalty_norm": "unsquared"}}
    (step,) = steps_of(spec)
    assert flat(told(step.penalty)) == [0.0, 0.0, 0.0]


# --- invariants -----------------------------------------------------------------------------------


def test_ridge_does_not_move_at_its_closed_form() -> None:
    # mean (Xw + b - y)² + λ/2 ‖w‖²: (2/n X̃ᵀX̃ + diag(λ, .., λ, 0)) (w, b) = 2/n X̃ᵀy.
    random_rows = np.random.default_rng(0)
    X, y = random_rows.normal(size=(30, 3)), random_rows.normal(size=30)
    extended = np.hstack([X, np.ones((30, 1))])
    left = 2 / 30 * extended.T @ extended + np.diag([0.3, 0.3, 0.3, 0.0])
    best = np.linalg.solve(left, 2 / 30 * extended.T @ y)
    spec = {
        "data": {"X": X.tolist(), "y": y.tolist()},
        "init": {"weight": best[:3].tolist(), "bias": best[3:].tolist()},
        "lr": 1.0,
        "convention": {"penalize_bias": False},
    }
    (step,) = steps_of(spec)
    assert max(abs(g) for g in flat(told(step.gradient))) > 1e-3  # the penalty is what it balances
    # The solution's own rounding: condition number 10, times u.
    assert flat(told(step.delta)) == pytest.approx([0.0] * 4, abs=1e-14)


def test_logistic_bias_does_not_move_at_the_share_of_ones() -> None:
    y = [1.0, 1.0, 1.0, 0.0]
    spec = {
        "data": {"X": [[0.0]] * 4, "y": y},
        "model": "logistic",
        "init": {"weight": [0.0], "bias": [math.log(3)]},
        "weight_decay": 0.0,
        "lr": 1.0,
    }
    (step,) = steps_of(spec)
    assert flat(told(step.delta)) == pytest.approx([0.0, 0.0], abs=1e-16)  # half a unit of p


def test_reported_loss_is_an_integral_of_gradient_and_penalty() -> None:
    # Central differences of the reported loss in every parameter, for both norms.
    for norm in ("squared", "unsquared"):
        spec = {"model": "logistic", "convention": {"penalty_norm": norm, "penalty_in_loss": True}}
        (step,) = steps_of(spec | {"lr": 1.0})
        slopes = np.array(flat(told(step.gradient))) + flat(told(step.penalty))
        h = 1e-5
        for at in range(3):
            losses = []
            for sign in (h, -h):
                start = [0.5, -0.3, 0.2]
                start[at] += sign
                moved = {"init": {"weight": start[:2], "bias": start[2:]}}
                losses.append(told(next(steps_of(spec | moved)).loss))
            # Truncation h²/6 |L'''| < 1e-9 (λ/‖w‖² < 10), and rounding u L/h = 1e-11.
            assert (losses[0] - losses[1]) / (2 * h) == pytest.approx(slopes[at], abs=1e-9)
