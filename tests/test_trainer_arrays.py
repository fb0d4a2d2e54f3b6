"""The arrays of the NumPy trainer: their dtypes, and that none is written to."""

from __future__ import annotations

from itertools import product
from typing import Any, get_args

import numpy as np
import pytest

from regcheck.rules.convention import Decay, MomentumForm
from regcheck.trainers.numpy_state import State
from regcheck.trainers.numpy_trainer import NumpyTrainer
from tests.every_rule import (
    CLIPS,
    OPTIMIZERS,
    arrays,
    assert_nothing_is_overwritten,
    numpy_steps,
)
from tests.test_numpy_trainer import flat, problem_of, steps_of

MORE: list[dict[str, Any]] = [
    {},
    {"penalty_norm": "unsquared", "update_order": "bias-first"},
    {"loss_reduction": "sum", "divide_penalty_by": "batch", "penalty_in_loss": True},
]
COMBINATIONS = [
    {"optimizer": optimizer, **clip, "convention": {"decay": decay, "momentum_form": form, **more}}
    for optimizer, clip, decay, form, more in product(
        OPTIMIZERS[:3], CLIPS, get_args(Decay), get_args(MomentumForm), MORE
    )
]


@pytest.mark.slow
def test_float32_stays_float32_in_every_combination() -> None:
    for spec in COMBINATIONS:
        settings = {"dtype": "float32", "batch_size": 2, "accumulate": 2, "model": "logistic"}
        for step in steps_of(spec | settings):
            assert {array.dtype for array in arrays(step)} == {np.dtype("float32")}, spec


@pytest.mark.parametrize("own", ["float32", "float64"])
def test_the_other_sides_parameters_are_cast_to_the_own_dtype(own: str) -> None:
    other = "float32" if own == "float64" else "float64"
    problem = problem_of({"dtype": {"scratch": own, "framework": other}})
    trainer = NumpyTrainer(problem)
    start = trainer.start()
    theirs = {name: tensor.astype(other) for name, tensor in start.parameters.items()}
    batch = next(problem.schedule.batches())
    step = trainer.step(State(theirs, start.memory), batch).step
    assert {array.dtype for array in arrays(step)} == {np.dtype(own)}


@pytest.mark.slow
def test_steps_are_never_overwritten_and_the_problem_is_not_touched() -> None:
    problems = (problem_of(spec | {"batch_size": 3, "epochs": 2}) for spec in COMBINATIONS)
    assert_nothing_is_overwritten(problems, numpy_steps)


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
    *_, last = steps_of({"lr": 1e200, "epochs": 4})
    assert not np.isfinite(flat(last.after)).any()
