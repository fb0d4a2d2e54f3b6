"""Every combination of what acts in one update, and the steps that each side takes by it."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from typing import Any, get_args

import numpy as np

from regcheck.problem.problem import Problem, Step
from regcheck.rules.convention import Epsilon, MomentumForm, PenaltyNorm, UpdateOrder
from regcheck.trainers.framework.torch_trainer import TorchTrainer
from regcheck.trainers.numpy_trainer import NumpyTrainer
from tests.conftest import told

Spec = dict[str, Any]

DATA: Spec = {
    "X": [[1.0, 2.0], [3.0, -1.0], [-2.0, 0.5], [0.5, 1.5], [0.2, -0.4], [-1.0, 1.0], [1.5, 0.1]],
    "y": [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0],
}
BASE: Spec = {
    "data": DATA,
    "model": "linear",
    "init": {"weight": [0.5, -0.3], "bias": [0.2]},
    "lr": 0.05,
}
OPTIMIZERS: list[Spec] = [
    {"name": "sgd"},
    {"name": "sgd", "momentum": 0.9},
    {"name": "sgd", "momentum": 0.9, "nesterov": True},
    {"name": "sgd", "momentum": 0.6, "dampening": 0.3},
    {"name": "adam", "betas": [0.8, 0.3], "eps": 0.01, "amsgrad": True},
    {"name": "adam", "betas": [0.0, 0.3], "eps": 0, "maximize": True},
    {"name": "adamw", "betas": [0.8, 0.3], "eps": 0.1},
    {"name": "rmsprop", "alpha": 0.7, "eps": 0.01, "momentum": 0.6},
    {"name": "rmsprop", "alpha": 0.7, "eps": 0.01, "centered": True},
    {"name": "adagrad", "lr_decay": 0.3, "initial_accumulator_value": 0.2},
    {"name": "adadelta", "rho": 0.7, "eps": 0.01},
    {"name": "adamax", "betas": [0.8, 0.3], "eps": 0.1},
]
CLIPS: list[Spec] = [{}, {"clip_norm": 0.5}, {"clip_value": 0.2}]
DECAYS = [0.3, 0.0, *({"weight": w, "bias": b} for w, b in ((0.3, 0.2), (0.3, 0.0), (0.0, 0.2)))]
SCHEDULES: list[Any] = [
    "none",
    {"kind": "exponential", "factor": 0.8},
    {"kind": "step", "every": 2, "factor": 0.5},
]


def rules(decay: str) -> Iterator[Spec]:
    """Give every combination of what acts in one update; the rest is drawn for each."""
    draw = random.Random(f"rules of {decay}")
    for optimizer, clip, form, norm, order in product(
        OPTIMIZERS, CLIPS, get_args(MomentumForm), get_args(PenaltyNorm), get_args(UpdateOrder)
    ):
        yield {
            "optimizer": optimizer,
            **clip,
            "convention": {
                "decay": decay,
                "momentum_form": form,
                "penalty_norm": norm,
                "update_order": order,
                "divide_penalty_by": draw.choice(["nothing", "batch", "dataset"]),
                "penalty_factor": draw.choice([1.0, 2.0, -0.5, 0.0]),
                "penalize_bias": draw.random() < 0.5,
                "penalty_in_loss": draw.random() < 0.6,
                "loss_reduction": draw.choice(["mean", "sum"]),
                "loss_factor": draw.choice([1.0, 0.5, -0.25]),
                "epsilon": draw.choice(get_args(Epsilon)),
                "bias_correction": draw.choice([True, False, "compounded"]),
                "accumulator_start": draw.choice([0.0, 0.3]),
            },
            "model": draw.choice(["linear", "logistic"]),
            "weight_decay": draw.choice(DECAYS),
            "batch_size": draw.choice([2, 3, 7]),
            "accumulate": draw.choice([1, 2, 3]),
            "drop_last": draw.random() < 0.3,
            "lr_schedule": draw.choice(SCHEDULES),
            "epochs": 2,
        }


# --- steps ----------------------------------------------------------------------------------------


def numpy_steps(problem: Problem) -> Iterator[Step]:
    trainer = NumpyTrainer(problem)
    state = trainer.start()
    for batch in problem.schedule.batches():
        update = trainer.step(state, batch)
        state = update.state
        yield update.step


def torch_steps(problem: Problem) -> Iterator[Step]:
    trainer = TorchTrainer(problem)
    return (trainer.step(batch) for batch in problem.schedule.batches())


def arrays(step: Step) -> list[np.ndarray[Any, Any]]:
    quantities = map(told, (step.gradient, step.penalty, step.delta))
    groups = (step.before, *quantities, step.velocity, step.after)
    return [*told(step.outputs), *(array for group in groups for array in group.values())]


def assert_nothing_is_overwritten(
    problems: Iterable[Problem], steps_of: Callable[[Problem], Iterator[Step]]
) -> None:
    """See that no step changes one before it, nor the problem."""
    for problem in problems:
        given = [problem.X, problem.y, *problem.initial.values()]
        kept, steps, copies = copy.deepcopy(given), [], []
        for step in steps_of(problem):
            steps.append(step)
            copies.append(copy.deepcopy(step))
        now = [*given, *(array for step in steps for array in arrays(step))]
        then = [*kept, *(array for step in copies for array in arrays(step))]
        assert all(map(np.array_equal, now, then)), problem
