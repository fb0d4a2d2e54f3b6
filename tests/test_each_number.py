"""Each number of each optimizer is named with its value, where the scratch side has another."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from regcheck.diagnosis.fits.other_numbers import Number, Torch
from regcheck.diagnosis.replay import Replay
from regcheck.numerics.least_squares import Fit
from regcheck.problem.problem import build_problem
from regcheck.rules.optimizers.registry import OPTIMIZERS
from regcheck.spec import from_mapping
from regcheck.trainers.numpy_trainer import NumpyTrainer
from regcheck.user_code.problem_api import UserProblem
from tests.by_hand import BASE, LR, Spec, Train
from tests.test_optimizers import OF_ONE, OTHER
from tests.test_other_numbers import OPTION, best_of, found_options, gradients, run


def by_torch(name: str, options: Spec, lr: float = LR) -> Train:
    """Train by torch's own optimizer, with other options than the framework side has."""

    def train(problem: UserProblem) -> Iterator[Spec]:
        P = {name: torch.tensor(w, requires_grad=True) for name, w in problem.initial.items()}
        kind = getattr(torch.optim, OPTIMIZERS[name].torch)
        optimizer = kind(
            [{"params": P.values(), "weight_decay": problem.weight_decay}], lr, **options
        )
        for rows in problem.batches:
            here = {name: w.detach().numpy().copy() for name, w in P.items()}
            for name_of, g in gradients(problem, here, rows).items():
                P[name_of].grad = torch.tensor(g)
            optimizer.step()
            yield {name: w.detach().numpy().copy() for name, w in P.items()}

    return train


def decay_of(name: str) -> Spec:
    """Return no weight decay for an optimizer that has none."""
    return {} if OPTIMIZERS[name].weight_decay else {"weight_decay": 0}


def each_number() -> Iterator[tuple[str, str, float]]:
    """Yield each optimizer's numbers, with another value of each."""
    for name, rule in OPTIMIZERS.items():
        for number, at in {} if rule.matrices else rule.numbers.items():
            if (name, at.key) not in HIDDEN:
                yield name, number, at.of(OTHER | OF_ONE.get(name, {}))


HIDDEN = {
    ("adafactor", "d"): "no step is longer",
    ("adafactor", "eps"): "the weights are larger",
    ("adagrad", "initial_accumulator_value"): "a cause of its own",
    ("asgd", "alpha"): "torch rounds the lr of a step to float32",
    ("asgd", "t0"): "no step uses the average",
    ("rprop", "step_sizes"): "no step is as short or as long",
    ("sgd", "dampening"): "there is no velocity that is dampened",
}
"""Numbers that do not show in these runs, and why."""


@pytest.mark.sampled(every=12)
@pytest.mark.parametrize(("name", "number", "value"), list(each_number()))
def test_other_value_of_each_number_is_named_for_each_optimizer(
    name: str, number: str, value: float
) -> None:
    rule = OPTIMIZERS[name]
    options = rule.numbers[number].put(rule.defaults, value)
    report = run(by_torch(name, options), optimizer=name, **decay_of(name))

    assert best_of(report).causes == OPTION
    assert found_options(report) == {number: pytest.approx(value, rel=1e-9)}


@pytest.mark.sampled(every=12)
@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(x for x, rule in OPTIMIZERS.items() if not rule.matrices))
def test_other_lr_is_named_for_each_optimizer(name: str) -> None:
    report = run(
        by_torch(name, OPTIMIZERS[name].defaults, lr=0.7 * LR), optimizer=name, **decay_of(name)
    )

    assert best_of(report).causes == ("learning-rate-scaled",)
    assert best_of(report).fits["learning-rate-scaled"].factor == pytest.approx(0.7, rel=1e-9)


def test_no_number_is_written_out_of_its_range() -> None:
    # β₁ = 1 − 1e-17 would be written as 1, by which no moment can be corrected.
    trainer = NumpyTrainer(build_problem(from_mapping(BASE | {"optimizer": "adam"})))
    own = Torch(cast("Replay", SimpleNamespace(torch=trainer)))
    beta = Number("option", "betas[0]")

    assert own.takes(beta, 0.999)
    assert not own.takes(beta, 1.0)
    assert own.takes(Number("option", "eps"), 0.0)
    assert not own.takes(Number("option", "eps"), -1e-9)
    assert own.explained({beta: Fit(1.0, 0.0)}) is None
