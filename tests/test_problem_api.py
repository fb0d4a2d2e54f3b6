from __future__ import annotations

import dataclasses
from itertools import chain
from typing import Any

import numpy as np
import pytest

from regcheck.problem.problem import Parameters, Problem, build_problem
from regcheck.spec import LoadedSpec, from_mapping
from regcheck.user_code.problem_api import UserProblem, plain_decay, user_problem

ROWS = 7
DECAYS = {"0.weight": 0.1, "0.bias": 0.0, "1.weight": 0.2}


def loaded_spec(**keys: Any) -> LoadedSpec:
    """Check a spec of seven rows of two features."""
    X = [[float(row), row / 3] for row in range(ROWS)]
    base = {"data": {"X": X, "y": [0.1] * ROWS}, "model": "linear", "lr": 0.1, "batch_size": 3}
    return from_mapping(base | keys)


def both(*, framework: bool = False, **keys: Any) -> tuple[UserProblem, Problem]:
    """Make a user's problem, and the problem that it is made of."""
    loaded = loaded_spec(**keys)
    problem = build_problem(loaded)
    return user_problem(problem, loaded.spec, framework=framework), problem


def test_user_problem_holds_the_specs_settings() -> None:
    user, _ = both(
        epochs=2,
        weight_decay=0.25,
        optimizer={"name": "sgd", "momentum": 0.9},
        clip_norm=2.0,
    )
    assert (user.model, user.loss, user.lr, user.weight_decay) == ("linear", "mse", 0.1, 0.25)
    assert (user.epochs, user.batch_size, user.steps) == (2, 3, 6)
    assert (user.clip_norm, user.clip_value, user.micro_batches) == (2.0, None, None)
    expected = {"name": "sgd", "momentum": 0.9, "nesterov": False, "dampening": 0.0}
    assert user.optimizer == expected


def test_full_batch_is_a_number() -> None:
    assert both(batch_size="full")[0].batch_size == ROWS


@pytest.mark.parametrize(
    ("weight_decay", "expected"),
    [
        ({"weight": 0.1, "bias": 0.0}, {"weight": 0.1, "bias": 0.0}),
        ({"weight": 0.1, "bias": 0.1}, 0.1),
        ({"0.weight": 0.1, "0.bias": 0.0, "1.weight": 0.1}, {"weight": 0.1, "bias": 0.0}),
        (DECAYS, DECAYS),
    ],
)
def test_weight_decay_is_as_coarse_a_mapping_as_will_do(weight_decay: Any, expected: Any) -> None:
    assert plain_decay(weight_decay) == expected


def test_scratch_start_fits_the_formula_and_framework_start_fits_torch() -> None:
    init = {"weight": [0.5, -0.3], "bias": [0.25]}
    scratch, _ = both(init=init)
    assert scratch.initial["weight"].tolist() == [0.5, -0.3]
    assert scratch.initial["bias"].tolist() == [0.25]
    assert (scratch.X @ scratch.initial["weight"] + scratch.initial["bias"]).shape == (ROWS,)
    framework, _ = both(init=init, framework=True)
    assert framework.initial["weight"].tolist() == [[0.5, -0.3]]
    assert framework.initial["bias"].tolist() == [0.25]


def test_weight_of_several_outputs_keeps_torchs_shape() -> None:
    loaded = loaded_spec()
    tensors: Parameters = {"weight": np.ones((3, 2)), "bias": np.ones(3)}
    problem = dataclasses.replace(build_problem(loaded), architecture=None, initial=tensors)
    start = user_problem(problem, loaded.spec, framework=False).initial
    assert start["weight"].shape == (3, 2)


def test_tensors_of_other_names_keep_their_shapes() -> None:
    loaded = loaded_spec()
    tensors: Parameters = {"0.weight": np.ones((1, 2)), "1.weight": np.ones((3, 4))}
    problem = dataclasses.replace(build_problem(loaded), initial=tensors)
    for framework in (True, False):
        start = user_problem(problem, loaded.spec, framework=framework).initial
        assert {name: tensor.shape for name, tensor in start.items()} == {
            "0.weight": (1, 2),
            "1.weight": (3, 4),
        }


@pytest.mark.parametrize(("framework", "dtype"), [(False, "float64"), (True, "float32")])
def test_arrays_have_the_sides_own_dtype(framework: bool, dtype: str) -> None:
    user, _ = both(dtype={"scratch": "float64", "framework": "float32"}, framework=framework)
    arrays = (user.X, user.y, *user.initial.values())
    assert {array.dtype for array in arrays} == {np.dtype(dtype)}


def test_spoiling_the_arrays_spoils_nothing_else() -> None:
    loaded = loaded_spec(shuffle={"seed": 0}, init={"constant": 1.0})
    problem = build_problem(loaded)
    first, second = (user_problem(problem, loaded.spec, framework=False) for _ in range(2))
    for array in (first.X, first.y, first.lrs, *first.initial.values()):
        array[...] = -99.0
    for rows in first.batches:
        rows[...] = 0
    untouched = user_problem(problem, loaded.spec, framework=False)
    assert np.array_equal(second.X, problem.X)
    assert np.array_equal(untouched.X, problem.X)
    assert -99.0 not in problem.y
    assert problem.initial["weight"].tolist() == [[1.0, 1.0]]
    assert second.lrs.tolist() == [0.1] * 3
    assert sorted(np.concatenate(list(first.batches)).tolist()) == list(range(ROWS))


@pytest.mark.parametrize("shuffle", [False, {"seed": 3}])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("drop_last", [False, True])
def test_batches_are_the_schedules_rows(shuffle: Any, accumulate: int, drop_last: bool) -> None:
    user, problem = both(
        epochs=3, batch_size=2, shuffle=shuffle, accumulate=accumulate, drop_last=drop_last
    )
    expected = [
        [np.arange(ROWS)[part].tolist() for part in batch.micro_batches]
        for batch in problem.schedule.batches()
    ]
    assert [rows.tolist() for rows in user.batches] == [list(chain(*parts)) for parts in expected]
    assert len(user.batches) == problem.schedule.steps == len(expected)
    if accumulate == 1:
        assert user.micro_batches is None
    else:
        assert user.micro_batches is not None
        found = [[rows.tolist() for rows in parts] for parts in user.micro_batches]
        assert found == expected


def test_batches_can_be_indexed_and_sliced_like_a_list() -> None:
    batches = both(epochs=3, shuffle={"seed": 1})[0].batches
    listed = [rows.tolist() for rows in batches]
    assert [batches[index].tolist() for index in range(-9, 9)] == listed + listed
    assert [rows.tolist() for rows in batches[2:8:3]] == listed[2:8:3]
    assert [rows.tolist() for rows in batches[::-1][:2]] == listed[::-1][:2]
    assert batches[np.int64(4)].tolist() == listed[4]  # type: ignore[call-overload]
    assert [rows.tolist() for rows in reversed(batches)] == listed[::-1]
    with pytest.raises(IndexError, match="there is no batch 9: there are 9, one for each step"):
        batches[9]


def test_index_arrays_are_writable_and_new_each_time() -> None:
    for shuffle in (False, {"seed": 1}):
        batches = both(shuffle=shuffle)[0].batches
        first = batches[0]
        before = first.tolist()
        assert first.dtype == np.intp
        first[:] = 0
        assert batches[0].tolist() == before


def test_batches_of_a_long_training_take_no_memory() -> None:
    user, _ = both(epochs=300_000, shuffle={"seed": 1})
    held = [value for value in vars(user.batches).values() if isinstance(value, np.ndarray)]
    assert held == []
    assert len(user.batches) == 900_000
    last_epoch = [user.batches[step].tolist() for step in (-3, -2, 899_999)]
    assert sorted(chain(*last_epoch)) == list(range(ROWS))
    held = [value for value in vars(user.batches).values() if isinstance(value, np.ndarray)]
    assert [len(array) for array in held] == [ROWS]


def test_learning_rates_are_the_schedules() -> None:
    user, problem = both(
        epochs=3, lr_schedule={"kind": "step", "every": 2, "factor": 0.5, "per": "epoch"}
    )
    assert user.lrs.tolist() == [batch.lr for batch in problem.schedule.batches()]
    assert user.lrs.tolist() == [0.1] * 6 + [0.05] * 3
    assert user.lr == 0.1
    assert both(epochs=2)[0].lrs.tolist() == [0.1] * 6
