from __future__ import annotations

import copy
import itertools
import math
import random
from collections.abc import Iterator
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regcheck.problem.problem import Parameters, Problem, Step, build_problem
from regcheck.rules.convention import Decay, MomentumForm, PenaltyNorm, UpdateOrder
from regcheck.spec import from_mapping
from regcheck.trainers.numpy_trainer import NumpyTrainer, State
from tests.conftest import told

ROWS: dict[str, Any] = {
    "X": [[1.0, 2.0], [3.0, -1.0], [-2.0, 0.5], [0.5, 1.5], [0.2, -0.4], [-1.0, 1.0], [1.5, 0.1]],
    "y": [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0],
}
BASE: dict[str, Any] = {
    "data": ROWS,
    "model": "linear",
    "init": {"weight": [0.5, -0.3], "bias": [0.2]},
    "lr": 0.05,
    "weight_decay": {"weight": 0.3, "bias": 0.2},
}


def problem_of(spec: dict[str, Any]) -> Problem:
    """Build the problem of a spec over the base one."""
    return build_problem(from_mapping(BASE | spec))


def steps_of(problem: Problem) -> Iterator[Step]:
    """Train in NumPy, step by step."""
    trainer = NumpyTrainer(problem)
    state = trainer.start()
    for batch in problem.schedule.batches():
        update = trainer.step(state, batch)
        state = update.state
        yield update.step


# --- an independent loop in plain Python floats ---------------------------------------------------


class PlainLoop:
    """The training of a spec, written in floats and lists straight from the README's table."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = BASE | {"batch_size": 10**6, "accumulate": 1, "epochs": 1} | spec
        defaults = {
            "divide_penalty_by": "nothing",
            "penalty_factor": 1.0,
            "penalize_bias": True,
            "decay": "gradient",
            "penalty_norm": "squared",
            "penalty_in_loss": False,
            "loss_reduction": "mean",
            "loss_factor": 1.0,
            "momentum_form": "torch",
            "update_order": "simultaneous",
        }
        self.c: dict[str, Any] = defaults | self.spec.get("convention", {})
        optimizer = {"momentum": 0.0, "nesterov": False, "dampening": 0.0}
        self.o: dict[str, Any] = optimizer | self.spec.get("optimizer", {})
        self.X, self.y = self.spec["data"]["X"], self.spec["data"]["y"]
        self.theta: list[float] = [*self.spec["init"]["weight"], *self.spec["init"]["bias"]]
        self.velocity: list[float | None] = [None] * len(self.theta)

    def groups(self) -> list[list[list[int]]]:
        """Give an epoch's steps, each a list of micro-batches, each a list of rows."""
        size, together = self.spec["batch_size"], self.spec["accumulate"]
        n = len(self.y)
        micro = [list(range(at, min(at + size, n))) for at in range(0, n, size)]
        if self.spec.get("drop_last"):
            micro = [rows for rows in micro if len(rows) == size]
        return [micro[at : at + together] for at in range(0, len(micro), together)]

    def data(self, theta: list[float], micro: list[list[int]]) -> tuple[float, list[float]]:
        """Take the loss and its gradient, averaged over the micro-batches."""
        total, gradient = 0.0, [0.0] * len(theta)
        for rows in micro:
            weight = self.c["loss_factor"] / len(micro)
            if self.c["loss_reduction"] == "mean":
                weight /= len(rows)
            for row in rows:
                x, y = [*self.X[row], 1.0], self.y[row]
                z = sum(t * v for t, v in zip(theta, x, strict=True))
                if self.spec["model"] == "linear":
                    value, slope = (z - y) ** 2, 2 * (z - y)
                else:
                    p = 1 / (1 + math.exp(-z))
                    value, slope = -y * math.log(p) - (1 - y) * math.log(1 - p), p - y
                total += weight * value
                gradient = [g + weight * slope * v for g, v in zip(gradient, x, strict=True)]
        return total, gradient

    def strengths(self, size: int) -> list[float]:
        """Give κλ of each entry."""
        divisor = {"nothing": 1, "batch": size, "dataset": len(self.y)}
        kappa = self.c["penalty_factor"] / divisor[self.c["divide_penalty_by"]]
        decay = self.spec["weight_decay"]
        bias = decay["bias"] if self.c["penalize_bias"] else 0.0
        features = len(self.theta) - 1
        return [kappa * decay["weight"]] * features + [kappa * bias]

    def norms(self, theta: list[float]) -> list[float]:
        """Give the norm of the tensor that each entry belongs to."""
        weight = math.sqrt(sum(t * t for t in theta[:-1]))
        return [weight] * (len(theta) - 1) + [abs(theta[-1])]

    def pull(self, theta: list[float], strengths: list[float]) -> list[float]:
        """Take the penalty's gradient."""
        if self.c["penalty_norm"] == "squared":
            return [s * t for s, t in zip(strengths, theta, strict=True)]
        return [
            s * t / norm if norm else 0.0
            for s, t, norm in zip(strengths, theta, self.norms(theta), strict=True)
        ]

    def clip(self, gradient: list[float]) -> list[float]:
        """Clip as torch's two functions do."""
        if "clip_value" in self.spec:
            limit = self.spec["clip_value"]
            return [max(-limit, min(limit, g)) for g in gradient]
        if "clip_norm" in self.spec:
            norm = math.sqrt(sum(g * g for g in gradient))
            return [g * min(1.0, self.spec["clip_norm"] / (norm + 1e-6)) for g in gradient]
        return gradient

    def move(self, at: int, lr: float, gradient: list[float], strengths: list[float]) -> float:
        """Move one entry."""
        decay, form = self.c["decay"], self.c["momentum_form"]
        mu: float = self.o["momentum"]
        tau: float = self.o["dampening"]
        pull = self.pull(self.theta, strengths)
        if decay == "before-clipping":
            gradient = [g + p for g, p in zip(gradient, pull, strict=True)]
        g, w, p = self.clip(gradient)[at], self.theta[at], pull[at]
        if decay == "gradient":
            g += p
        step = lr * g
        if mu:
            old = self.velocity[at]
            if form == "torch":
                v = g if old is None else mu * old + (1 - tau) * g
                step = lr * (g + mu * v if self.o["nesterov"] else v)
            elif form == "dampened":
                v = mu * (old or 0.0) + (1 - mu) * g
                step = lr * (g + mu * v if self.o["nesterov"] else v)
            else:
                v = lr * g if old is None else mu * old + (1 - tau) * lr * g
                step = lr * g + mu * v if self.o["nesterov"] else v
            self.velocity[at] = v
        if decay in ("gradient", "before-clipping"):
            return w - step
        if decay == "after-update":
            return w - step  # decayed once all entries have moved
        if decay == "decoupled-unscaled":
            return w - p - step
        return w - lr * p - step

    def decayed(self, moved: list[float], lr: float, strengths: list[float]) -> list[float]:
        """Decay after the update."""
        if self.c["decay"] != "after-update":
            return moved
        return [t - lr * p for t, p in zip(moved, self.pull(moved, strengths), strict=True)]

    def lr(self, step: int) -> float:
        """Give the lr: the `step` schedule alone is known here."""
        schedule = self.spec.get("lr_schedule")
        lr: float = self.spec["lr"]
        return lr * schedule["factor"] ** ((step - 1) // schedule["every"]) if schedule else lr

    def run(self) -> Iterator[tuple[list[float], float]]:
        """Give the parameters after each step, and the loss reported."""
        bias = len(self.theta) - 1
        for step, micro in enumerate(self.groups() * self.spec["epochs"], 1):
            lr, strengths = self.lr(step), self.strengths(sum(len(rows) for rows in micro))
            loss, gradient = self.data(self.theta, micro)
            if self.c["penalty_in_loss"]:
                for at, s in enumerate(strengths):
                    if self.c["penalty_norm"] == "squared":
                        loss += s / 2 * self.theta[at] ** 2
                if self.c["penalty_norm"] == "unsquared":
                    norms = self.norms(self.theta)
                    loss += strengths[0] * norms[0] + strengths[bias] * norms[bias]
            if self.c["update_order"] == "bias-first":
                new = [*self.theta[:bias], self.move(bias, lr, gradient, strengths)]
                new[bias] = self.decayed(new, lr, strengths)[bias]
                late = [*self.data(new, micro)[1][:bias], gradient[bias]]
                weights = [self.move(at, lr, late, strengths) for at in range(bias)]
                weights = self.decayed([*weights, 0.0], lr, strengths)[:bias]
                self.theta = [*weights, new[bias]]
            else:
                moved = [self.move(at, lr, gradient, strengths) for at in range(bias + 1)]
                self.theta = self.decayed(moved, lr, strengths)
            yield self.theta, loss


def flat(parameters: Parameters) -> list[float]:
    """Write the parameters one after the other."""
    return [*parameters["weight"][0].tolist(), *parameters["bias"].tolist()]


OPTIMIZERS: list[dict[str, Any]] = [
    {},
    {"optimizer": {"name": "sgd", "momentum": 0.9}},
    {"optimizer": {"name": "sgd", "momentum": 0.9, "nesterov": True}},
    {"optimizer": {"name": "sgd", "momentum": 0.6, "dampening": 0.3}},
]
CLIPS: list[dict[str, Any]] = [{}, {"clip_norm": 0.5}, {"clip_value": 0.2}]


def specs(decay: str) -> Iterator[dict[str, Any]]:
    """Give every combination of what acts in one update; the rest is drawn for each."""
    draw = random.Random(f"specs of {decay}")
    for optimizer, clip, form, norm, order in itertools.product(
        OPTIMIZERS, CLIPS, get_args(MomentumForm), get_args(PenaltyNorm), get_args(UpdateOrder)
    ):
        convention = {
            "decay": decay,
            "momentum_form": form,
            "penalty_norm": norm,
            "update_order": order,
            "divide_penalty_by": draw.choice(["nothing", "batch", "dataset"]),
            "penalty_factor": draw.choice([1.0, 2.0, -0.5, 0.0]),
            "penalize_bias": draw.random() < 0.5,
            "penalty_in_loss": draw.random() < 0.5,
            "loss_reduction": draw.choice(["mean", "sum"]),
            "loss_factor": draw.choice([1.0, 0.5]),
        }
        schedule = {"kind": "step", "every": 2, "factor": 0.5}
        yield {
            **optimizer,
            **clip,
            "convention": convention,
            "model": draw.choice(["linear", "logistic"]),
            "batch_size": draw.choice([2, 3, 7]),
            "accumulate": draw.choice([1, 2, 3]),
            "drop_last": draw.random() < 0.3,
            "epochs": 2,
            **draw.choice([{}, {"lr_schedule": schedule}]),
        }


@pytest.mark.parametrize("decay", get_args(Decay))
def test_every_convention_is_the_plain_loop(decay: str) -> None:
    compared = 0
    for spec in specs(decay):
        steps = steps_of(problem_of(spec))
        for step, (theta, loss) in zip(steps, PlainLoop(spec).run(), strict=True):
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
def test_any_shape_and_scale_is_the_plain_loop(
    seed: int,
    rows: int,
    features: int,
    scale: float,
    batch_size: int,
    accumulate: int,
    model: str,
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
    for step, (theta, loss) in zip(steps_of(problem_of(spec)), PlainLoop(spec).run(), strict=True):
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
    (step,) = steps_of(problem_of(spec))
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
    (step,) = steps_of(problem_of(spec))
    assert flat(told(step.gradient)) == [7.0, 7.0]
    assert step.loss == ((1 + 9) / 2 + 25) / 2
    assert [len(z) for z in told(step.outputs)] == [2, 1]


def test_penalty_of_an_unsquared_norm_at_zero_is_zero() -> None:
    (step,) = steps_of(
        problem_of({"init": {"constant": 0.0}, "convention": {"penalty_norm": "unsquared"}})
    )
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
    (step,) = steps_of(problem_of(spec))
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
    (step,) = steps_of(problem_of(spec))
    assert flat(told(step.delta)) == pytest.approx([0.0, 0.0], abs=1e-16)  # half a unit of p


def test_reported_loss_is_an_integral_of_gradient_and_penalty() -> None:
    # Central differences of the reported loss in every parameter, for both norms.
    for norm in ("squared", "unsquared"):
        spec = {"model": "logistic", "convention": {"penalty_norm": norm, "penalty_in_loss": True}}
        (step,) = steps_of(problem_of(spec | {"lr": 1.0}))
        slopes = np.array(flat(told(step.gradient))) + flat(told(step.penalty))
        h = 1e-5
        for at in range(3):
            losses = []
            for sign in (h, -h):
                start = [0.5, -0.3, 0.2]
                start[at] += sign
                moved = {"init": {"weight": start[:2], "bias": start[2:]}}
                losses.append(told(next(steps_of(problem_of(spec | moved))).loss))
            # Truncation h²/6 |L'''| < 1e-9 (λ/‖w‖² < 10), and rounding u L/h = 1e-11.
            assert (losses[0] - losses[1]) / (2 * h) == pytest.approx(slopes[at], abs=1e-9)


def test_sum_is_the_mean_times_the_rows() -> None:
    spec = {"weight_decay": 0.0, "epochs": 3}
    summed = list(steps_of(problem_of(spec | {"convention": {"loss_reduction": "sum"}})))
    mean = list(steps_of(problem_of(spec | {"lr": 0.05 * 7})))
    for left, right in zip(summed, mean, strict=True):
        # Three steps, a few roundings each.
        assert flat(left.after) == pytest.approx(flat(right.after), rel=1e-13)
        assert told(left.loss) == pytest.approx(7 * told(right.loss), rel=1e-13)


# --- arrays ---------------------------------------------------------------------------------------

COMBINATIONS = [
    {**optimizer, **clip, "convention": {"decay": decay, "momentum_form": form, **more}}
    for optimizer, clip, decay, form, more in itertools.product(
        OPTIMIZERS[:3],
        CLIPS,
        get_args(Decay),
        get_args(MomentumForm),
        [
            {},
            {"penalty_norm": "unsquared", "update_order": "bias-first"},
            {"loss_reduction": "sum", "divide_penalty_by": "batch", "penalty_in_loss": True},
        ],
    )
]


def arrays(step: Step) -> list[np.ndarray[Any, Any]]:
    """List every array of a step."""
    tensors = (
        step.before,
        told(step.gradient),
        told(step.penalty),
        step.velocity,
        told(step.delta),
        step.after,
    )
    return [*told(step.outputs), *(array for group in tensors for array in group.values())]


def test_float32_stays_float32_in_every_combination() -> None:
    for spec in COMBINATIONS:
        problem = problem_of(
            spec | {"dtype": "float32", "batch_size": 2, "accumulate": 2, "model": "logistic"}
        )
        for step in steps_of(problem):
            assert {array.dtype for array in arrays(step)} == {np.dtype("float32")}, spec


@pytest.mark.parametrize("own", ["float32", "float64"])
def test_the_other_sides_parameters_are_cast_to_the_own_dtype(own: str) -> None:
    other = "float32" if own == "float64" else "float64"
    problem = problem_of({"dtype": {"scratch": own, "framework": other}})
    trainer = NumpyTrainer(problem)
    start = trainer.start()
    theirs = {name: tensor.astype(other) for name, tensor in start.parameters.items()}
    batch = next(problem.schedule.batches())
    step = trainer.step(State(theirs, start.velocities), batch).step
    assert {array.dtype for array in arrays(step)} == {np.dtype(own)}


def test_steps_are_never_overwritten_and_the_problem_is_not_touched() -> None:
    for spec in COMBINATIONS:
        problem = problem_of(spec | {"batch_size": 3, "epochs": 2})
        for array in (problem.X, problem.y, *problem.initial.values()):
            array.flags.writeable = False
        steps, copies = [], []
        for step in steps_of(problem):
            steps.append(step)
            copies.append(copy.deepcopy(step))
        for step, kept in zip(steps, copies, strict=True):
            pairs = zip(arrays(step), arrays(kept), strict=True)
            assert all(np.array_equal(left, right) for left, right in pairs), spec


def test_a_step_from_the_same_state_is_the_same_step() -> None:
    problem = problem_of({"optimizer": {"name": "sgd", "momentum": 0.9}})
    trainer = NumpyTrainer(problem)
    batch = next(problem.schedule.batches())
    state = trainer.step(trainer.start(), batch).state
    once, again = trainer.step(state, batch).step, trainer.step(state, batch).step
    assert all(
        np.array_equal(left, right) for left, right in zip(arrays(once), arrays(again), strict=True)
    )


def test_overflow_is_silent_and_told_by_the_numbers() -> None:
    *_, last = steps_of(problem_of({"lr": 1e200, "epochs": 4}))
    assert not np.isfinite(flat(last.after)).any()
