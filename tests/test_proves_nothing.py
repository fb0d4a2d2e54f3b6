"""Runs that agree and prove nothing: faults would not show in them, or rounding hides the step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from regcheck.checking import check
from regcheck.compare.detectability import MARGIN, AlteredOptimizers
from regcheck.numerics.packing import flat
from regcheck.report.result import Report
from regcheck.trainers.framework.determinism import torch_settings
from regcheck.trainers.framework.torch_trainer import TorchTrainer
from regcheck.trainers.measured.measured_bounds import MeasuredBounds
from tests import own_models
from tests.conftest import in_one_line
from tests.own_models import builder, trainer_of
from tests.test_detectability import both, bounds_of

Optimizer = Callable[[Any], torch.optim.Optimizer]

# --- faults along a run -------------------------------------------------------------------------

X, Y = np.array([[1.0, 2.0], [3.0, -1.0], [-2.0, 0.5]]), np.array([1.0, 2.0, -1.0])
START = np.array([0.5, -0.3], np.float32)
DATA = {"X": X.tolist(), "y": Y.tolist()}
SPEC: dict[str, Any] = {"data": DATA, "lr": 0.1, "epochs": 3, "batch_size": "full"}


def line() -> nn.Module:
    model = nn.Linear(2, 1, bias=False)
    model.weight.data = torch.tensor(START[None, :])
    return model


def squared(z: Tensor, y: Tensor) -> Tensor:
    return functional.mse_loss(z.squeeze(1), y)


def sgd(**options: Any) -> Optimizer:
    return lambda w: torch.optim.SGD(w, lr=0.1, **options)


def side_of(optimizer: Optimizer) -> TorchTrainer:
    return trainer_of(builder(line, optimizer, squared), SPEC)


def hidden_after(optimizer: Optimizer, bound: float, limit: float = 1.0) -> tuple[str, ...]:
    """Take three steps whose bounds are this, and return what they hide."""
    trainer = side_of(optimizer)
    with torch_settings(1):
        faults = AlteredOptimizers(trainer, {"weight": limit})
        for batch in trainer.problem.schedule.batches():
            steps = both(trainer.step(batch))
            faults.advance(batch, steps, bounds_of({"weight": [bound, bound]}))
        return faults.hidden()


ALL = ("a doubled lr", "a missing lr", "a doubled gradient", "a missing gradient")
DECAY = ("a doubled weight decay", "a missing weight decay")
# The first step is lr g: with a doubled lr it is off by so much.
LARGEST = float(np.abs(0.1 * 2 * X.T @ (X @ START.astype(np.float64) - Y) / 3).max())


@pytest.mark.parametrize(
    ("optimizer", "bound", "hidden"),
    [
        (sgd(weight_decay=0.1), 0.0, ()),
        (sgd(), 1e3, ALL),
        (sgd(), np.inf, ALL),
        (sgd(weight_decay=0.1), 1e3, ALL + DECAY),
        # λ w is 1e-6 of a gradient of the size 1.
        (sgd(weight_decay=1e-6), 1e-5, DECAY),
        # A doubled gradient alone is no fault where an optimizer divides by it.
        (lambda w: torch.optim.Adam(w, lr=0.1), 1e-6, ()),
        (lambda w: torch.optim.Adam(w, lr=0.1), 1.0, ALL),
    ],
)
def test_faults_are_hidden_by_bounds_that_are_wider_than_they(
    optimizer: Optimizer, bound: float, hidden: tuple[str, ...]
) -> None:
    assert hidden_after(optimizer, bound) == hidden


def test_a_fault_shows_from_the_limit_and_a_margin_on() -> None:
    at = LARGEST / MARGIN / 8

    assert "a doubled lr" not in hidden_after(sgd(), at * 0.999, limit=8.0)
    assert set(hidden_after(sgd(), at * 1.001, limit=8.0)) == set(ALL)


def test_the_noise_that_is_asked_for_is_that_of_the_last_step() -> None:
    trainer = side_of(sgd())
    with torch_settings(1):
        bounder = MeasuredBounds(trainer, "float64")
        batch = next(iter(trainer.problem.schedule.batches()))
        step = trainer.step(batch)
        bounder.bounds(batch, both(step), None)
    noise = flat(bounder.gradient_noise())

    assert step.gradient is not None
    assert ((noise > 0) & (noise < 1e-13 * np.abs(flat(step.gradient)).max())).all()


# --- runs that prove nothing --------------------------------------------------------------------


def run(lr: float, *, times: float = 1.0, dtype: str = "float64", **changes: Any) -> Report:
    """Check SGD on a line by hand with a factor on its lr."""

    def train(problem: Any) -> Iterator[dict[str, Any]]:
        w, X, y = (np.asarray(one, dtype) for one in (START, problem.X, problem.y))
        for rows in problem.batches:
            g = 2 * X[rows].T @ (X[rows] @ w - y[rows]) / len(X[rows])
            w = (w - np.asarray(lr * times, dtype) * g).astype(dtype)
            yield {"weight": w.reshape(1, 2)}

    build = builder(line, lambda w: torch.optim.SGD(w, lr=lr), squared, getattr(torch, dtype))
    return check(SPEC | {"lr": lr, "dtype": dtype} | changes, scratch=train, framework=build)


@pytest.mark.parametrize(
    ("settings", "verdict"),
    [
        ({"lr": 0.1}, "equivalent"),
        ({"lr": 0.1, "times": 1.01}, "diverged"),
        # A wide tolerance is a spec's own choice.
        ({"lr": 0.1, "times": 3.0}, "diverged"),
        ({"lr": 0.1, "times": 3.0, "tolerance": {"rounding": 1e17}}, "equivalent"),
        # The step is 1/10 of what is left at first; 300 steps later it is rounding.
        ({"lr": 0.1, "epochs": 300}, "equivalent"),
        # y = X (0.5, −0.3) up to rounding, so that there is nothing to learn.
        ({"lr": 0.1, "data": {"X": X.tolist(), "y": (X @ START).tolist()}}, "inconclusive"),
        # lr g is about 1e-9, and the unit of 0.5 in float32 is 6e-8: whatever is done with it.
        ({"lr": 1e-9, "dtype": "float32"}, "inconclusive"),
        ({"lr": 1e-9, "dtype": "float32", "times": 1.5}, "inconclusive"),
        ({"lr": 1e-9, "dtype": "float32", "times": 0.0}, "inconclusive"),
        # What rounding swallows, no tolerance brings back.
        ({"lr": 1e-9, "dtype": "float32", "tolerance": {"rounding": 1e9}}, "inconclusive"),
    ],
    ids=str,
)
def test_rounding_that_swallows_the_step_proves_nothing(
    settings: dict[str, Any], verdict: str
) -> None:
    report = run(**settings)

    assert report.verdict == verdict
    assert bool(report.reason) == (verdict == "inconclusive")
    if report.reason:
        assert report.first_divergence is None
        assert "any lr or gradient would pass" in report.reason or "passed too" in report.reason
        assert f"INCONCLUSIVE: {report.reason}" in in_one_line(report)


def test_nor_does_a_step_of_which_rounding_is_some_percent() -> None:
    report = run(2e-6, dtype="float32")

    assert report.verdict == "inconclusive"
    assert "% of the update of weight; an lr error of" in report.reason
    assert "less than float32: return the model as model.double()." in in_one_line(report)
    # And so it is.
    share = report.comparison.power.shares["weight"]
    assert 0.01 < share < 1
    assert run(2e-6, times=1 + 3 * share, dtype="float32").verdict == "diverged"


@pytest.mark.slow
def test_a_bias_before_batch_norm_leaves_the_rest_judged() -> None:
    # BatchNorm subtracts it again: its gradient is 0, and what torch gives is rounding.
    def normed() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))

    build = builder(normed, loss=squared)
    right, wrong = (own_models.run(build, spec=SPEC | {"epochs": 6}, lr=by) for by in (1, 1.01))

    assert "0.bias" in right.comparison.power.swallowed
    assert "0.bias" not in right.comparison.power.clear
    assert (right.verdict, right.reason) == ("equivalent", "")
    assert wrong.verdict == "diverged"
