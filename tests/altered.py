"""Trainers of either side whose steps are changed after they are made."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from regcheck.problem.batches import Batch
from regcheck.problem.problem import Parameters, Problem, Step
from regcheck.trainers.framework.torch_trainer import TorchTrainer
from regcheck.trainers.numpy_trainer import NumpyTrainer
from tests.conftest import told
from tests.faults import Planted
from tests.first_steps import STEPS
from tests.rule import Rule

Change = Callable[[Batch, Step], Step]


class Altered:
    """A trainer of the scratch side whose steps are changed as they are told, and goes on so."""

    def __init__(self, problem: Problem, *, change: Change, of: Any = NumpyTrainer) -> None:
        self.trainer, self.change = of(problem), change
        self.problem, self.by, self.start = problem, self.trainer.by, self.trainer.start

    def step(self, state: Any, batch: Batch, *seen: Any) -> Any:
        update = self.trainer.step(state, batch, *seen)
        step = self.change(batch, update.step)
        return update._replace(state=update.state._replace(parameters=step.after), step=step)


def altered(change: Change, of: Any = NumpyTrainer) -> Any:
    return partial(Altered, change=change, of=of)


def altered_torch(change: Change) -> type[TorchTrainer]:
    """Make a torch side that tells its steps changed, and goes on unchanged."""

    class Changed(TorchTrainer):
        def step(self, batch: Batch) -> Step:
            return change(batch, super().step(batch))

    return Changed


def on_side(side: str, change: Change) -> Any:
    return altered(change) if side == "scratch" else altered_torch(change)


def with_entry(tensors: Parameters | None, tensor: str, index: Any, value: Any) -> Parameters:
    """Change one entry of some tensors: to a value, or to a function of it."""
    wrong = {name: one.copy() for name, one in told(tensors).items()}
    wrong[tensor][index] = value(wrong[tensor][index]) if callable(value) else value
    return wrong


class DoubledAt(Planted):
    """Doubles the penalty in some steps."""

    def __init__(self, problem: Problem, *, when: Callable[[Batch], bool]) -> None:
        super().__init__(problem)
        self.when = when

    def step(self, state: Any, batch: Batch, seen: Any = None) -> Any:
        self.training.rule = Rule(penalty=2.0 if self.when(batch) else 1.0)
        return super().step(state, batch, seen)


ENTRIES = [("weight", (0, 0)), ("weight", (0, 1)), ("weight", (0, 2)), ("bias", (0,))]
TIMES = [1, 3, STEPS]
PLACES = [
    pytest.param(
        *(tensor, index, step),
        id=f"{tensor}{index} at {step}",
        marks=[] if number % 3 == time else [pytest.mark.exhaustive],
    )
    for number, (tensor, index) in enumerate(ENTRIES)
    for time, step in enumerate(TIMES)
]
"""Every entry at the first step, in the middle and at the last; by default, each once."""
