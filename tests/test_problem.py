from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from regcheck.errors import InputError
from regcheck.problem.problem import Problem, build_problem
from regcheck.rules.convention import NAMED
from regcheck.spec import from_mapping
from regcheck.trainers.framework.torch_trainer import TorchTrainer
from regcheck.trainers.numpy_trainer import NumpyTrainer

BASE: dict[str, Any] = {
    "data": {"X": [[1.0, 2.0], [3.0, -1.0], [-2.0, 0.5]], "y": [1.0, 0.0, 1.0]},
    "model": "logistic",
    "lr": 0.1,
}


def problem_of(**keys: Any) -> Problem:
    return build_problem(from_mapping(BASE | keys))


def test_problem_holds_the_specs_settings() -> None:
    problem = problem_of(
        weight_decay={"weight": 0.3, "bias": 0.0},
        optimizer={"name": "sgd", "momentum": 0.9, "nesterov": True},
        clip_norm=2.0,
        batch_size=2,
        epochs=3,
        dtype={"scratch": "float64", "framework": "float32"},
        convention="keras-l2",
    )
    assert (problem.model, problem.loss) == ("logistic", "bce")
    assert problem.weight_decay == {"weight": 0.3, "bias": 0.0}
    assert (problem.settings.momentum, problem.settings.nesterov) == (0.9, True)
    assert (problem.clip_norm, problem.clip_value) == (2.0, None)
    assert problem.convention == NAMED["keras-l2"].convention
    assert (problem.scratch_dtype, problem.framework_dtype) == ("float64", "float32")
    assert problem.schedule.steps == 6


def test_data_are_float64_whatever_the_dtype() -> None:
    problem = problem_of(dtype="float32", data=BASE["data"] | {"test": 0.3})
    assert problem.X.tolist() == [[1.0, 2.0], [3.0, -1.0]]
    assert problem.y.tolist() == [1.0, 0.0]
    assert problem.X_test.tolist() == [[-2.0, 0.5]]
    assert problem.y_test.tolist() == [1.0]
    arrays = (problem.X, problem.y, problem.X_test, problem.y_test, *problem.initial.values())
    assert {array.dtype for array in arrays} == {np.dtype("float64")}


@pytest.mark.parametrize(
    ("init", "weight", "bias"),
    [
        ("zeros", [0.0, 0.0], [0.0]),
        ({"constant": 1.5}, [1.5, 1.5], [1.5]),
        ({"weight": [0.25, -1.0], "bias": [2.0]}, [0.25, -1.0], [2.0]),
        ({"weight": [[0.25, -1.0]], "bias": 2.0}, [0.25, -1.0], [2.0]),
    ],
)
def test_start_is_as_the_spec_says(init: Any, weight: list[float], bias: list[float]) -> None:
    initial = problem_of(init=init).initial
    assert initial["weight"].shape == (1, 2)
    assert initial["bias"].shape == (1,)
    assert initial["weight"][0].tolist() == weight
    assert initial["bias"].tolist() == bias


def test_normal_start_is_drawn_for_the_weight_and_then_the_bias() -> None:
    numbers = 0.5 * np.random.default_rng(3).normal(size=3)
    initial = problem_of(init={"normal": {"std": 0.5, "seed": 3}}).initial
    assert initial["weight"][0].tolist() == numbers[:2].tolist()
    assert initial["bias"].tolist() == numbers[2:].tolist()


def test_normal_start_is_the_same_each_time() -> None:
    init = {"normal": {"std": 0.5, "seed": 3}}
    once, again = problem_of(init=init).initial, problem_of(init=init).initial
    other = problem_of(init={"normal": {"std": 0.5, "seed": 4}}).initial
    assert np.array_equal(once["weight"], again["weight"])
    assert not np.array_equal(once["weight"], other["weight"])


@pytest.mark.parametrize("weight", [[1.0], [1.0, 2.0, 3.0]])
def test_start_that_does_not_fit_the_data_is_refused(weight: list[float]) -> None:
    with pytest.raises(InputError, match="must have 2 numbers, one for each feature"):
        problem_of(init={"weight": weight, "bias": [0.0]})


@pytest.mark.parametrize("dtype", ["float32", {"scratch": "float64", "framework": "float32"}])
def test_numbers_that_float32_cannot_hold_are_refused(dtype: Any) -> None:
    with pytest.raises(InputError, match=r"cannot hold the data, with a number of size 1e\+39"):
        problem_of(dtype=dtype, model="linear", data={"X": [[-1e39], [1.0]], "y": [0.0, 1.0]})
    with pytest.raises(InputError, match=r"cannot hold the initial parameters, with a number"):
        # Seed 3 starts with 2.04 and -2.56 standard deviations.
        problem_of(dtype=dtype, init={"normal": {"std": 3e38, "seed": 3}})


def test_numbers_that_float64_holds_are_taken() -> None:
    problem = problem_of(model="linear", data={"X": [[-1e39], [1.0]], "y": [0.0, 1.0]})
    assert problem.X[0, 0] == -1e39


@pytest.mark.parametrize("scratch", ["float32", "float64"])
@pytest.mark.parametrize("framework", ["float32", "float64"])
def test_both_sides_start_from_the_problem_each_in_its_dtype(scratch: str, framework: str) -> None:
    problem = problem_of(
        init={"normal": {"std": 0.5, "seed": 3}},
        dtype={"scratch": scratch, "framework": framework},
    )
    sides = {
        scratch: [NumpyTrainer(problem).start().parameters],
        framework: [TorchTrainer(problem).parameters()],
    }
    if scratch == framework:
        sides = {
            scratch: [NumpyTrainer(problem).start().parameters, TorchTrainer(problem).parameters()]
        }
    for dtype, starts in sides.items():
        for start in starts:
            for name, tensor in problem.initial.items():
                assert start[name].dtype == dtype
                assert np.array_equal(start[name], tensor.astype(dtype))
                assert not np.shares_memory(start[name], tensor)
