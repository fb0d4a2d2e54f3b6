"""What a run that agrees could have shown: faults tried along it, and bounds beside the steps.

"Equivalent" is only worth something where a difference could have shown. A bound on rounding may
be so wide that it swallows the step. (A tolerance that a spec makes wider is its own choice.) So,
along the run,

- torch's own optimizer takes each step once more with a doubled lr, with a doubled or no gradient,
  and with a doubled or no weight decay, until a step shows it beyond the limit K of bounds;
- each tensor's smallest K bound/|Δw| over entries and steps is kept: the smallest relative error
  of a step that would have shown in it.

A step is judged in a tensor where that share is at most `SHARE`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from regcheck.numerics.bounds.rounding import Bounds
from regcheck.numerics.packing import flat
from regcheck.problem.batches import Batch
from regcheck.problem.problem import Parameters
from regcheck.rules.causes.cause import Change
from regcheck.trainers.framework.torch_model import OptimizerClone
from regcheck.trainers.framework.torch_trainer import TorchTrainer
from regcheck.trainers.lockstep import Lockstep, Steps
from regcheck.trainers.numpy_state import ForwardBackward
from regcheck.trainers.numpy_trainer import NumpyTrainer

Array = NDArray[np.floating]

SHARE = 0.01
"""The share of a step that a limit may be at most for the step to be judged in a tensor."""

ROUNDING_ALONE = 0.1
"""The share of a tensor's largest gradient from which on its noise makes it rounding alone."""

MARGIN = 1.25
"""Limits by which a fault must differ, so that rounding the other way would not hide it."""

MOST_STEPS = 512
"""Steps that a fault is tried along."""


class Power(NamedTuple):
    """What the compared steps could have shown.

    Attributes:
        shares: of each tensor that moves, the smallest error of its step that could have shown.
        clear: tensors whose gradient is more than its measured noise in some step. Each of them
            must have been judged; of one-layer models, whose tensors share their gradient's errors,
            one must.
        hidden: faults that no step would have shown.
    """

    shares: Mapping[str, float]
    clear: frozenset[str]
    hidden: tuple[str, ...]

    @property
    def swallowed(self) -> dict[str, float]:
        """Return the tensors that move and were never judged, with their shares."""
        return {name: share for name, share in self.shares.items() if not share <= SHARE}

    def reason(self) -> str:
        """Describe why a run that agrees is no proof; empty where it is one."""
        swallowed = self.swallowed
        missed = {name: share for name, share in swallowed.items() if name in self.clear}
        nothing = bool(self.shares) and len(swallowed) == len(self.shares)
        if missed or nothing:
            name = max(missed or swallowed, key=lambda one: swallowed[one])
            return swallowed_text(name, swallowed[name])
        if self.hidden:
            *some, last = self.hidden
            would = f"{', '.join(some)} and {last}" if some else last
            still = "" if self.shares else "no step moves any parameter: "
            return f"{still}{would} would have passed too"
        return ""


def swallowed_text(name: str, share: float) -> str:
    """Describe how large rounding may be beside a tensor's step."""
    if not share < 1:
        return (
            f"rounding may be as large as the update of {name} itself, so that any lr or "
            "gradient would pass"
        )
    size = f"{share:.2g}" if share < 0.001 else f"{100 * share:.2g} %"
    return (
        f"rounding may be as large as {size} of the update of {name}; "
        f"an lr error of {size} would pass"
    )


class AlteredOptimizers:
    """Faults that an equivalent run must have been able to tell, tried by torch's own optimizer.

    The lr, the gradient and the weight decay are doubled, or missing, in a clone of the optimizer
    that follows the run; a fault is pending until a step differs beyond the limit by it.
    """

    def __init__(self, trainer: TorchTrainer, limits: Mapping[str, float]) -> None:
        """Take torch's side before its first step, and the limits of each tensor, in bounds."""
        self.trainer = trainer
        self.limits = np.repeat(
            [limits[name] for name in trainer.layout.shapes], trainer.layout.sizes
        )
        self.pending: dict[str, OptimizerClone | None] = {
            "a doubled lr": OptimizerClone(trainer.module, lr=2.0),
            "a missing lr": None,
            "a doubled gradient": OptimizerClone(trainer.module, gradient=2.0),
            "a missing gradient": OptimizerClone(trainer.module, gradient=0.0),
        }
        if any(group.get("weight_decay", 0) for group in trainer.optimizer.param_groups):
            self.pending |= {
                "a doubled weight decay": OptimizerClone(trainer.module, weight_decay=2.0),
                "a missing weight decay": OptimizerClone(trainer.module, weight_decay=0.0),
            }

    def advance(self, batch: Batch, steps: Steps, bounds: Bounds) -> None:
        """Try each fault that no step has shown yet."""
        if not self.hidden() or batch.step > MOST_STEPS:
            return
        before = steps.framework.before
        shown = Shown(steps, bounds, self.limits)
        for fault, clone in list(self.pending.items()):
            end = shown.before
            if clone is not None:
                end = clone.step(before, self.trainer.given_gradients())
            if shown.by(end):
                del self.pending[fault]

    def hidden(self) -> tuple[str, ...]:
        """Return the faults that no step has shown."""
        return hidden(self.pending)


class Shown:
    """Whether a step would have shown another end of it than torch's beyond the limit."""

    def __init__(self, steps: Steps, bounds: Bounds, limits: Array) -> None:
        """Take a step, its bounds, and the limits of each entry, in bounds."""
        self.before, self.after = flat(steps.framework.before), flat(steps.framework.after)
        self.limit = MARGIN * limits * flat(bounds.after)

    def by(self, end: Array) -> bool:
        """Whether the parameters after a step are others beyond the limit."""
        return bool((np.abs(end - self.after) > self.limit).any())


ALTERATIONS: dict[str, Change] = {
    "a doubled lr": {"lr_factor": 2.0},
    "a missing lr": {"lr_factor": 0.0},
    "a doubled gradient": {"gradient_factor": 2.0},
    "a missing gradient": {"gradient_factor": 0.0},
}

ALTERED_DECAYS: dict[str, Change] = {
    "a doubled weight decay": {"penalty_factor": 2.0},
    "a missing weight decay": {"penalty_factor": 0.0},
}


class AlteredRules:
    """The same faults, tried by a rule that stands beside the user's optimizer."""

    def __init__(self, rule: NumpyTrainer, limits: Mapping[str, float]) -> None:
        """Take the rule before its first step, and the limits of each tensor, in bounds."""
        shapes = rule.problem.initial
        self.limits = flat({name: np.full(w.shape, limits[name]) for name, w in shapes.items()})
        decays = any(rule.problem.weight_decay.values())
        changes = ALTERATIONS | (ALTERED_DECAYS if decays else {})
        self.pending = {
            fault: Lockstep(rule.by(rule.problem.with_change(change)))
            for fault, change in changes.items()
        }

    def advance(self, batch: Batch, steps: Steps, bounds: Bounds) -> None:
        """Try each fault that no step has shown yet."""
        if not self.hidden() or batch.step > MOST_STEPS:
            return
        framework = steps.framework
        assert framework.gradient is not None
        known = ForwardBackward((), (), math.nan, framework.gradient, framework.skipped)
        shown = Shown(steps, bounds, self.limits)
        for fault, rule in list(self.pending.items()):
            if shown.by(flat(rule.step_from(framework.before, batch, known).step.after)):
                del self.pending[fault]

    def hidden(self) -> tuple[str, ...]:
        """Return the faults that no step has shown, as of an optimizer's clones."""
        return hidden(self.pending)


def hidden(pending: Collection[str]) -> tuple[str, ...]:
    """Return the faults that no step has shown.

    A doubled gradient that does not show where all else does is none: an optimizer that
    divides by the gradient's size, like Adam, takes the same steps with it, to rounding.
    """
    found = tuple(pending)
    return () if found == ("a doubled gradient",) else found


class PowerMeter:
    """Measure what the steps of a run can show; `limits` are those of the tolerance, in bounds."""

    def __init__(
        self,
        limits: Mapping[str, float],
        altered: AlteredOptimizers | AlteredRules | None = None,
    ) -> None:
        self.limits, self.altered = limits, altered
        self.shares: dict[str, float] = {}
        self.clear: set[str] = set()

    def take(self, batch: Batch, steps: Steps, bounds: Bounds, noise: Parameters | None) -> None:
        """Take in a step: torch's, from the reference's parameters."""
        framework = steps.framework
        for name in framework.after:
            if self.shares.get(name, 1.0) <= SHARE:  # no step can tell more of it
                continue
            moved = np.abs(framework.after[name] - framework.before[name])
            shown = moved > 0
            if not shown.any():
                continue
            shares = self.limits[name] * bounds.after[name][shown] / moved[shown]
            share = float(np.fmin.reduce(shares))
            self.shares[name] = min(share, self.shares.get(name, np.inf))
            if noise and framework.gradient is not None:
                size = np.abs(framework.gradient[name]).max()
                if noise[name].max() < ROUNDING_ALONE * size:
                    self.clear.add(name)
        if self.altered is not None:
            self.altered.advance(batch, steps, bounds)

    def result(self) -> Power:
        """Return what the steps so far could have shown."""
        hidden = self.altered.hidden() if self.altered is not None else ()
        return Power(self.shares, frozenset(self.clear), hidden)
