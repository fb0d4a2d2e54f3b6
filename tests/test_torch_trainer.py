from __future__ import annotations

import functools
import itertools
import math
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from regcheck.problem.problem import Parameters, Problem, build_problem
from regcheck.spec import from_mapping
from regcheck.trainers.framework.determinism import SMALL, environment, torch_settings
from regcheck.trainers.framework.torch_trainer import TorchTrainer
from tests.conftest import told
from tests.every_rule import OPTIMIZERS, assert_nothing_is_overwritten, numpy_steps, torch_steps

BASE: dict[str, Any] = {
    "data": {"synthetic": {"rows": 23, "features": 3, "seed": 1}},
    "model": "logistic",
    "init": {"normal": {"std": 0.5, "seed": 2}},
    "lr": 0.1,
    "weight_decay": {"weight": 0.3, "bias": 0.1},
    "epochs": 3,
}
CLIPS: list[dict[str, Any]] = [{}, {"clip_norm": 0.2}, {"clip_value": 0.05}]
BATCHES: list[dict[str, Any]] = [
    {},
    {"batch_size": 5},
    {"batch_size": 5, "drop_last": True, "shuffle": {"seed": 3}},
    {"batch_size": 4, "accumulate": 3, "lr_schedule": {"kind": "step", "every": 2, "factor": 0.5}},
]
MODELS: list[dict[str, Any]] = [
    {"model": "linear"},
    {"loss": "bce"},
    {"loss": "bce_with_logits"},
    {"loss": "mse"},
]


def problem_of(spec: dict[str, Any]) -> Problem:
    return build_problem(from_mapping(BASE | spec))


def bare_script(problem: Problem) -> Iterator[tuple[Parameters, float]]:
    """Train as a person would in torch, with nothing of regcheck but the numbers."""
    model = nn.Linear(problem.X.shape[1], 1).double()
    model.load_state_dict({name: torch.tensor(t) for name, t in problem.initial.items()})
    settings = problem.settings
    optimizer = getattr(torch.optim, settings.rule.torch)(
        [
            {"params": [model.weight], "weight_decay": problem.weight_decay["weight"]},
            {"params": [model.bias], "weight_decay": problem.weight_decay["bias"]},
        ],
        lr=problem.schedule.lr,
        **settings.options,
    )
    X, y = torch.tensor(problem.X), torch.tensor(problem.y).reshape(-1, 1)
    for batch in problem.schedule.batches():
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = batch.lr
        total = 0.0
        for rows in batch.micro_batches:
            z = model(X[torch.arange(len(X))[rows]])
            target = y[torch.arange(len(X))[rows]]
            if problem.loss == "bce":
                loss = nn.functional.binary_cross_entropy(torch.sigmoid(z), target)
            elif problem.loss == "bce_with_logits":
                loss = nn.functional.binary_cross_entropy_with_logits(z, target)
            else:
                p = z if problem.model == "linear" else torch.sigmoid(z)
                loss = nn.functional.mse_loss(p, target)
            (loss / len(batch.micro_batches)).backward()  # type: ignore[no-untyped-call]
            total += loss.item() / len(batch.micro_batches)
        if problem.clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), problem.clip_norm)
        if problem.clip_value is not None:
            nn.utils.clip_grad_value_(model.parameters(), problem.clip_value)
        optimizer.step()
        optimizer.zero_grad()
        yield {name: t.detach().numpy().copy() for name, t in model.named_parameters()}, total


# Every fifth of the 192 combinations: 5 shares no factor with any of the counts.
ALL = list(itertools.product(OPTIMIZERS, CLIPS, BATCHES, MODELS))[::5]


def spec_of(
    optimizer: dict[str, Any], clip: dict[str, Any], batches: dict[str, Any], model: dict[str, Any]
) -> dict[str, Any]:
    return {**clip, **batches, **model, "optimizer": optimizer}


@pytest.mark.slow
def test_trainer_is_the_bare_script_in_every_combination() -> None:
    for combination in ALL:
        problem = problem_of(spec_of(*combination))
        for step, (after, loss) in zip(torch_steps(problem), bare_script(problem), strict=True):
            for name, tensor in after.items():
                # The same kernels on the same numbers; indexing may change the order of a sum.
                np.testing.assert_allclose(step.after[name], tensor, rtol=1e-13, atol=1e-14)
            assert step.loss == pytest.approx(loss, rel=1e-13), combination


@pytest.mark.sampled(every=2)
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numpy_by_torchs_convention_agrees_in_every_quantity(dtype: str) -> None:
    for combination in ALL:
        problem = problem_of(spec_of(*combination) | {"dtype": dtype})
        # Up to 15 steps of some 30 roundings, of numbers of order 1 to 10.
        atol = 15 * 30 * 10 * float(np.finfo(dtype).eps) / 2
        for left, right in zip(numpy_steps(problem), torch_steps(problem), strict=True):
            assert left.loss == pytest.approx(right.loss, abs=atol), combination
            for field in ("before", "gradient", "penalty", "velocity", "delta", "after"):
                here, there = getattr(left, field), getattr(right, field)
                assert here.keys() == there.keys()
                for name in here:
                    assert here[name].dtype == there[name].dtype == dtype
                    np.testing.assert_allclose(here[name], there[name], rtol=0, atol=atol)
            for z, other in zip(told(left.outputs), told(right.outputs), strict=True):
                np.testing.assert_allclose(z, other, rtol=0, atol=atol)


@pytest.mark.slow
def test_delta_is_what_torch_subtracted() -> None:
    for combination in ALL:
        for step in torch_steps(problem_of(spec_of(*combination))):
            for name, w in step.before.items():
                # Two or three roundings of numbers of order 1.
                np.testing.assert_allclose(w - told(step.delta)[name], step.after[name], atol=1e-15)


def test_answers_step_by_hand() -> None:
    spec = {
        "data": {"X": [[2.0], [4.0]], "y": [7.0, 11.0]},
        "model": "linear",
        "init": {"constant": 1.0},
        "weight_decay": 1.0,
        "epochs": 1,
    }
    (step,) = torch_steps(problem_of(spec))
    assert step.loss == 26.0
    assert {name: g.item() for name, g in told(step.gradient).items()} == {
        "weight": -32.0,
        "bias": -10.0,
    }
    # Two roundings of numbers of order 1.
    assert told(step.penalty)["weight"].item() == pytest.approx(0.1, rel=1e-15)
    assert step.after["weight"].item() == pytest.approx(4.1, rel=1e-15)
    assert step.after["bias"].item() == pytest.approx(1.9, rel=1e-15)


def test_model_and_optimizer_are_torchs_own() -> None:
    trainer = TorchTrainer(problem_of({"optimizer": {"name": "sgd", "momentum": 0.9}}))
    model = trainer.module.model
    assert type(model) is nn.Linear
    assert isinstance(trainer.optimizer, torch.optim.SGD)
    groups = trainer.optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [0.3, 0.1]
    assert [group["params"] for group in groups] == [[model.weight], [model.bias]]


@pytest.mark.slow
def test_steps_are_never_overwritten_and_the_problem_is_not_touched() -> None:
    assert_nothing_is_overwritten((problem_of(spec_of(*one)) for one in ALL), torch_steps)


# --- torch's global state -------------------------------------------------------------------------


def test_torchs_random_numbers_do_not_move() -> None:
    state = torch.get_rng_state()
    list(torch_steps(problem_of({})))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("work", [1, SMALL - 1, SMALL, 10**9])
def test_settings_are_set_and_put_back(work: int) -> None:
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with torch_settings(work) as threads:
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.get_num_threads() == threads == (1 if work < SMALL else before[0])
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before
    with pytest.raises(KeyError), torch_settings(work):
        raise KeyError
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before


@pytest.mark.parametrize("name", ["step", "add_param_group", "zero_grad"])
def test_a_patch_of_torchs_own_optimizer_acts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method = getattr(torch.optim.SGD, name)
    called = []

    @functools.wraps(method)
    def patched(*args: Any) -> Any:
        called.append(name)
        return method(*args)

    monkeypatch.setattr(torch.optim.SGD, name, patched)
    list(torch_steps(problem_of({})))
    assert called


@pytest.mark.slow
def test_a_built_in_model_does_without_torchs_compiler() -> None:
    spec = BASE | {"optimizer": {"name": "sgd", "momentum": 0.9}}
    code = f"import regcheck, sys; regcheck.check({spec}); print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"


def test_environment_names_torch() -> None:
    assert environment()["torch"] == torch.__version__
    assert environment()["numpy"] == np.__version__


# --- numbers that are none ------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["bce", "bce_with_logits", "mse"])
def test_loss_of_no_number_is_no_number(loss: str) -> None:
    # BCELoss raises where p is NaN; a training that ran away is judged, not broken off.
    problem = problem_of({"loss": loss, "epochs": 2})
    trainer = TorchTrainer(problem)
    with torch.no_grad():
        trainer.tensors["weight"].fill_(math.nan)
    step = trainer.step(next(problem.schedule.batches()))
    assert step.loss is not None
    assert math.isnan(step.loss)
    assert np.isnan(step.after["bias"]).all()


def test_other_errors_of_torch_are_not_swallowed() -> None:
    problem = problem_of({"loss": "bce"})
    trainer = TorchTrainer(problem)
    trainer.y = trainer.y - 3.0  # no label
    with pytest.raises(RuntimeError, match="between 0 and 1"):
        trainer.step(next(problem.schedule.batches()))


def test_lr_beyond_float32_is_infinite_as_in_numpy() -> None:
    schedule = {"kind": "exponential", "factor": 1e40**0.5}
    problem = problem_of({"dtype": "float32", "lr_schedule": schedule, "epochs": 3})
    assert [batch.lr > 3.4e38 for batch in problem.schedule.batches()] == [False, False, True]
    with np.errstate(all="ignore"):
        *_, framework = torch_steps(problem)
        *_, scratch = numpy_steps(problem)
    for name in problem.initial:
        # Infinite, or already NaN where the step before was: the same on both sides.
        assert not np.isfinite(framework.after[name]).any()
        assert not np.isfinite(scratch.after[name]).any()


def test_what_an_optimizer_remembers_is_read_where_it_is_now() -> None:
    problem = problem_of({"optimizer": "adam"})
    trainer = TorchTrainer(problem)
    batches = itertools.cycle(problem.schedule.batches())

    def remembered() -> list[list[float]]:
        state, _ = trainer.optimizer_state(["exp_avg", "max_exp_avg_sq"])
        assert set(state) == {"exp_avg"}  # the other is of amsgrad
        return [x.ravel().tolist() for x in state["exp_avg"]]

    def states() -> list[dict[str, Any]]:
        return [trainer.optimizer.state[w] for w in trainer.tensors.values()]

    for _ in range(3):  # in the same memory, and in another
        trainer.step(next(batches))
        assert remembered() == [state["exp_avg"].ravel().tolist() for state in states()]
        for state in states():
            state["exp_avg"] = 2 * state["exp_avg"]
        assert remembered() == [state["exp_avg"].ravel().tolist() for state in states()]
    states()[0]["exp_avg"] = None
    assert remembered() == [[0.0] * 3, states()[1]["exp_avg"].tolist()]
