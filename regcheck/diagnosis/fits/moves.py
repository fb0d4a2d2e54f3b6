"""What the scratch side, and any rule, subtract at a run's recorded steps; by which gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import islice

import numpy as np

from regcheck.compare.history import Record
from regcheck.diagnosis.replay import Replay
from regcheck.problem.problem import Array, Problem
from regcheck.trainers.numpy_state import ForwardBackward
from regcheck.trainers.numpy_trainer import NumpyTrainer

MOST = 512
"""Steps that a fit is taken from: the first divergence, and those after it."""


class Moves:
    """What the scratch side, and any rule, subtract at some steps: (steps, entries).

    Attributes:
        at: the places of the steps: of the first divergence and some after it, or of the first.
        scratch: what the scratch side subtracts.
        limits: of that. It is known as w − w′ alone, from a w′ that is rounded: never better than
            2u |w|.
    """

    def __init__(self, replay: Replay, *, early: bool = False, most: int = MOST) -> None:
        history = replay.history
        first = 0 if early else min(max(0, replay.first - 1), len(history) - 1)
        self.replay = replay
        self.at = slice(first, min(first + most, len(history)))
        before, after, bound = (history.all(key)[self.at] for key in ("before", "scratch", "bound"))
        self.limits = np.maximum(bound * replay.limits, 2 * replay.u * np.abs(before))
        self.scratch = before - after

    def by(self, rule: NumpyTrainer, added: Callable[[Record], Array] | None = None) -> Array:
        """Return what a rule subtracts; `added` is a function of the step, beside the gradient."""
        known = None
        if added is not None:
            known = lambda record: self.replay.pass_with(record, record.gradient + added(record))  # noqa: E731
        found = []
        for _, update in islice(self.replay.updates(rule, known=known), self.at.stop):
            assert update is not None
            assert update.step.delta is not None
            found.append(self.replay.history.flat(update.step.delta))
        return np.array(found)[self.at]

    def by_problem(self, problem: Problem) -> Array | None:
        """Return what a rule subtracts; None where it must see rows that cannot be seen.

        None too where an optimizer's own numbers, tried far off, leave the range of floats.
        """
        found = []
        rule = self.replay.torch.by(problem)
        try:
            for _, update in islice(self.replay.updates(rule), self.at.stop):
                if update is None or update.step.delta is None:
                    return None
                found.append(self.replay.history.flat(update.step.delta))
        except ArithmeticError:
            return None
        return np.array(found)[self.at]

    def by_torch(self) -> Array:
        """Return T: the whole of torch's step."""
        return self.by(self.replay.torch)

    def by_gradient(self, added: Callable[[Record], Array] | None = None) -> Array:
        """Return G: torch's step without its penalty."""
        problem = self.replay.torch.problem
        zeros = dict.fromkeys(problem.weight_decay, 0.0)
        return self.by(self.replay.torch.by(replace(problem, weight_decay=zeros)), added)

    def by_penalty(self) -> Array:
        """Return P: torch's step by a penalty of λ = 1 alone, and no data gradient."""
        problem = self.replay.torch.problem
        ones = dict.fromkeys(problem.weight_decay, 1.0)
        faults = problem.faults._replace(gradient_factor=0.0)
        rule = replace(problem, weight_decay=ones, faults=faults)
        return self.by(self.replay.torch.by(rule))


def implied_gradient(
    replay: Replay, record: Record, rule: NumpyTrainer | None = None
) -> Array | None:
    """Return the data gradient that would make the first step off a rule, torch's by default.

    Torch's step is affine in the gradient, w′ = w − lr (a g + ..), so one more step with a changed
    gradient gives a. None where it is not, or where clipping or an lr of 0 hides it.
    """
    rule = rule or replay.torch
    problem, step = rule.problem, record.batch.step
    clipped = problem.clip_norm is not None or problem.clip_value is not None
    if clipped or not problem.settings.rule.linear:
        return None

    def after(gradient: Array) -> Array:
        def known(one: Record) -> ForwardBackward:
            return replay.pass_with(one, gradient if one.batch.step == step else one.gradient)

        *_, (_, update) = islice(replay.updates(rule, known=known), step)
        assert update is not None
        return replay.history.flat(update.step.after)

    torch = after(record.gradient)
    slope = after(record.gradient + 1) - torch
    return record.gradient + (record.scratch - torch) / slope if slope.all() else None
