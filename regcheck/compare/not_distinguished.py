"""What a run could not have shown: each cause put into torch's rule, and tried along the run.

A rule with a cause in it takes the place of the scratch side at every step. Where it would have
kept the spec's tolerance throughout, this run cannot tell it from torch's own rule, and that the
two sides agree says nothing about it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

import numpy as np

from regcheck.compare.steps import in_limits, judge, local_differences
from regcheck.numerics.bounds.rounding import Bounds
from regcheck.numerics.losses import saturated, total_weight
from regcheck.numerics.models import outputs_of
from regcheck.problem.batches import Batch
from regcheck.problem.problem import Array, Problem, Step
from regcheck.rules.causes.catalogue import CAUSES
from regcheck.rules.causes.cause import HIDING, Change
from regcheck.rules.convention import is_bias
from regcheck.rules.optimizers.radam import FEWEST, lengths
from regcheck.rules.settings import Training
from regcheck.spec import Spec
from regcheck.trainers.lockstep import Lockstep, Steps
from regcheck.trainers.numpy_state import ForwardBackward
from regcheck.trainers.numpy_trainer import NumpyTrainer

T = TypeVar("T")


def zero(*tensors: Array) -> bool:
    """Whether all entries of all tensors are 0."""
    return not any(tensor.any() for tensor in tensors)


def clips(problem: Problem, step: Step) -> bool:
    """Whether clipping changes a step's gradient."""
    assert step.gradient is not None
    if problem.clip_value is not None:
        return any(float(np.abs(g).max()) > problem.clip_value for g in step.gradient.values())
    squares = sum(float(np.vdot(g, g)) for g in step.gradient.values())
    return problem.clip_norm is not None and math.sqrt(squares) + 1e-6 > problem.clip_norm


def saturates(z: Array) -> bool:
    """Whether any output is saturated."""
    return bool(saturated(z).any())


def acts_at_zero_lr(problem: Problem) -> bool:
    """Whether anything in a rule acts where the lr is 0."""
    convention = problem.convention
    return convention.decay == "decoupled-unscaled" or convention.penalty_in_loss


def biases(tensors: Mapping[str, T]) -> list[T]:
    """Return what belongs to the biases."""
    return [one for name, one in tensors.items() if is_bias(name)]


HIDES: dict[str, Callable[[Problem, Batch, Step], bool]] = {
    "bias-zero": lambda _, __, step: zero(*biases(step.before)),
    "equal-targets": lambda problem, batch, _: all(
        float(np.ptp(problem.y[rows])) == 0 for rows in batch.micro_batches
    ),
    "even-micro-batches": lambda problem, batch, _: (
        len({total_weight(problem.y[rows], problem.loss_options) for rows in batch.micro_batches})
        == 1
    ),
    "lr-below-cap": lambda _, batch, __: batch.lr * math.sqrt(batch.step) <= 1,
    "lr-unchanged": lambda problem, batch, _: batch.lr == problem.schedule.lr_at(1),
    "lr-zero": lambda problem, batch, _: batch.lr == 0 and not acts_at_zero_lr(problem),
    "never-clipped": lambda problem, _, step: not clips(problem, step),
    "never-saturated": lambda problem, batch, step: (
        problem.architecture is None
        or not any(
            saturates(outputs_of(problem.architecture, problem.X[index], step.before))
            for index in batch.micro_batches
        )
    ),
    "no-bias-decay": lambda problem, _, __: not any(biases(problem.weight_decay)),
    "no-decay": lambda problem, _, __: not any(problem.weight_decay.values()),
    "no-step-between": lambda problem, batch, _: (
        not 4 < lengths(problem.settings.options["betas"][1], batch.step)[0] <= FEWEST
    ),
    "one-micro-batch": lambda _, batch, __: len(batch.micro_batches) == 1,
    "one-epoch": lambda _, batch, __: batch.epoch == 1,
    "one-plain-step": lambda problem, batch, _: batch.step == 1 and not problem.settings.nesterov,
    "one-row-batches": lambda _, batch, __: batch.size == 1,
    "one-row-losses": lambda _, batch, __: batch.size == len(batch.micro_batches),
    "one-step": lambda _, batch, __: batch.step == 1,
    "one-step-epochs": lambda _, batch, __: batch.step == batch.epoch,
    "one-training-row": lambda problem, _, __: len(problem.y) == 1,
    "penalized-zero": lambda problem, _, step: zero(
        *(step.before[name] for name, decay in problem.weight_decay.items() if decay)
    ),
    "zero-gradient": lambda _, __, step: zero(*(step.gradient or {}).values()),
}
"""Whether a step leaves what hides a cause (`HIDING`) in force; only all steps make it a reason."""


WITHOUT_OBJECT = frozenset({HIDING["never-saturated"]})
"""Reasons that leave a cause no sample to act on, where others are of the parameters' values."""


class Hidden(NamedTuple):
    """A cause that a run could not have shown, and why."""

    cause: str
    reason: str

    @property
    def has_no_object(self) -> bool:
        """Whether the cause has no sample to act on: here the two rules are one."""
        return self.reason in WITHOUT_OBJECT


class Trial:
    """One cause, put into torch's rule by one of its changes, along a run."""

    def __init__(self, cause: str, change: Change, torch: NumpyTrainer) -> None:
        self.cause = cause
        self.rule = Lockstep(torch.by(torch.problem.with_change(change)))
        problem = self.rule.trainer.problem
        self.passes_as_torch = sees_alike(problem, torch.problem)
        ordered = problem.convention.update_order == "simultaneous"
        self.needs_rows = not (self.passes_as_torch and ordered)
        self.of_floor = dict(change) == {"bce_slope": "plain"}
        self.largest = 0.0
        self.holding = {*CAUSES[cause].hidden_by, "lr-zero"}

    def shows(
        self, spec: Spec, batch: Batch, steps: Steps, bounds: Bounds, rows_pass: ForwardBackward
    ) -> bool:
        """Take a step; say whether the run would have diverged in it with this cause."""
        framework = steps.framework
        if (
            self.of_floor
            and not spec.tolerance.on_drift
            and not any(map(saturates, rows_pass.outputs))
        ):
            self.rule.follow(framework)  # no floor is met: it is torch's own step
            return False
        shared = rows_pass if self.passes_as_torch else None
        local = self.rule.step_from(framework.before, batch, shared).step
        found = local_differences(local, framework, bounds)
        if spec.tolerance.on_drift:
            own = self.rule.step_own(batch).step
            found = judge(spec.tolerance, own, steps.framework_own, found)
        largest = max(in_limits(found[name], spec.tolerance) for name in spec.judged(found))
        if largest > 1:
            return True
        self.largest = max(self.largest, largest)
        problem = self.rule.trainer.problem
        self.holding = {name for name in self.holding if HIDES[name](problem, batch, framework)}
        return False

    def reason(self, spec: Spec, steps: int) -> str:
        """Describe why no step showed the cause."""
        cause = CAUSES[self.cause]
        if steps == 0:
            return "no step was compared"
        if "parameters" not in spec.compare and cause.kind == "update":
            return "`compare` does not include the parameters"
        for name in (*cause.hidden_by, "lr-zero"):
            if name in self.holding:
                return HIDING[name]
        if self.largest <= 0:
            return "its effect is 0 in this run"
        share = f"at most {self.largest:.0%}" if self.largest >= 0.01 else "less than 1%"
        return f"its effect stays within the tolerance ({share} of it)"


class Trials:
    """All causes that concern a spec, each tried at every step until one shows it."""

    def __init__(
        self, spec: Spec, training: Training, torch: NumpyTrainer, sees_rows: bool
    ) -> None:
        """Take the spec; its training, and torch's rule in NumPy, by the framework side's settings.

        `sees_rows` is whether that rule can pass over the rows itself, as with one-layer models.
        """
        self.spec, self.steps = spec, 0
        convention = spec.named_convention()
        compares_loss = "loss" in spec.compare and spec.textbook is None  # which reports no loss
        trials = [
            Trial(name, change, torch)
            for name, cause in CAUSES.items()
            if cause.concerns(training, convention) and (cause.kind == "update" or compares_loss)
            for change in cause.changing(training.settings.torchs)
        ]
        self.pending = [trial for trial in trials if sees_rows or not trial.needs_rows]

    def advance(
        self, batch: Batch, steps: Steps, bounds: Bounds, rows_pass: ForwardBackward | None
    ) -> None:
        """Try each cause that no step has shown yet.

        `rows_pass` is over the rows by torch's rule, at the reference's parameters; None where
        nothing but torch's gradient is known.
        """
        self.steps += 1
        if rows_pass is None:
            gradient, loss = steps.framework.gradient, steps.framework.loss
            assert gradient is not None
            rows_pass = ForwardBackward(
                (), (), math.nan if loss is None else loss, gradient, steps.framework.skipped
            )
        self.pending = [
            trial
            for trial in self.pending
            if not trial.shows(self.spec, batch, steps, bounds, rows_pass)
        ]

    def hidden(self) -> list[Hidden]:
        """Return the causes that no step has shown, in the catalogue's order."""
        reasons: dict[str, str] = {}
        for trial in self.pending:
            reasons.setdefault(trial.cause, trial.reason(self.spec, self.steps))
        return [Hidden(cause, reason) for cause, reason in reasons.items()]


def sees_alike(problem: Problem, other: Problem) -> bool:
    """Whether two rules make the same of a pass over the rows."""
    rules = [
        (
            one.convention.loss_reduction,
            one.convention.loss_factor,
            one.faults.target,
            one.faults.bce_slope,
            one.faults.batch_divisor,
            one.faults.accumulation,
        )
        for one in (problem, other)
    ]
    return rules[0] == rules[1]
