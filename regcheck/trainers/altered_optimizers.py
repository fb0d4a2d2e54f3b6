"""Faults that an equivalent run must have been able to tell, tried by torch's own optimizer.

The lr, the gradient and the weight decay are doubled, or missing, in a shadow of the optimizer
that follows the run; a fault is told once a step differs beyond the limit by it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from regcheck.numerics.packing import flat
from regcheck.numerics.rounding import Bounds
from regcheck.trainers.lockstep import Steps
from regcheck.trainers.optimizer_clone import Shadow
from regcheck.trainers.torch_trainer import TorchTrainer

MARGIN = 1.25
"""Limits by which a fault must differ, so that rounding the other way would not hide it."""

MOST_STEPS = 512
"""Steps that a fault is tried along."""


class AlteredOptimizers:
    """Each fault, until a step has shown it."""

    def __init__(self, trainer: TorchTrainer, limits: Mapping[str, float]) -> None:
        """Take torch's side before its first step, and the limits of each tensor, in bounds."""
        self.trainer = trainer
        self.limits = np.repeat(
            [limits[name] for name in trainer.views], [v.size for v in trainer.views.values()]
        )
        self.pending: dict[str, Shadow | None] = {
            "a doubled lr": Shadow(trainer, lr=2.0),
            "a missing lr": None,
            "a doubled gradient": Shadow(trainer, gradient=2.0),
            "a missing gradient": Shadow(trainer, gradient=0.0),
        }
        if any(group.get("weight_decay", 0) for group in trainer.optimizer.param_groups):
            self.pending |= {
                "a doubled weight decay": Shadow(trainer, weight_decay=2.0),
                "a missing weight decay": Shadow(trainer, weight_decay=0.0),
            }

    def advance(self, step: int, steps: Steps, bounds: Bounds) -> None:
        """Try each fault that no step has shown yet."""
        if not self.pending or step > MOST_STEPS:
            return
        framework = steps.framework
        with np.errstate(all="ignore"):
            before, after = flat(framework.before), flat(framework.after)
            limit = MARGIN * self.limits * flat(bounds.after)
            for fault, shadow in list(self.pending.items()):
                end = before
                if shadow is not None:
                    end = shadow.step(framework.before, self.trainer.used)
                if (np.abs(end - after) > limit).any():
                    del self.pending[fault]

    def hidden(self) -> tuple[str, ...]:
        """Return the faults that no step has shown.

        A doubled gradient that does not show where all else does is none: an optimizer that
        divides by the gradient's size, like Adam, takes the same steps with it, to rounding.
        """
        found = tuple(self.pending)
        return () if found == ("a doubled gradient",) else found
