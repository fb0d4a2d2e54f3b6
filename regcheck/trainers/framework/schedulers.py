"""torch's own lr schedulers, run beside the framework side, in torch's order of calls.

A scheduler goes from each lr to the next, so that its last bits are not those of the formula
(`regcheck.problem.lrs`), which the scratch side has. Both are compared at every step. With u the
unit roundoff, they are the same lr where

    |torch − formula| ≤ 4u ((t + 1) lr + base)

A step of torch's rounds a few times, and t of them add up. `base` is the spec's lr, or the floor,
for kinds whose lr is a difference, as the cosine's near its floor: each rounding of the larger
numbers stays in it; it is 0 for the others. Of 480 random schedules of up to 20,000 steps none had
more than a third of it; after a million steps it is 4e-10 of the lr. Such steps are taken with
the formula's lr: what a schedule rounds is no difference of the trainings. Where the two are not
the same lr, the step is taken with torch's, and the comparison shows that.

A scheduler has an optimizer of its own, of nothing but an lr. In a user's it would put another
`step`, which no copy of it survives, and one floor for groups of any lr.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.optim import lr_scheduler

from regcheck.errors import UserCodeError
from regcheck.problem.batches import Batch, Schedule
from regcheck.problem.problem import scaled
from regcheck.trainers.framework.torch_model import torchs_own

UNIT = float(np.finfo(np.float64).eps) / 2


class LrAlone(torch.optim.Optimizer):
    """An optimizer of nothing, for its lr."""

    def __init__(self, lr: float) -> None:
        super().__init__([torch.zeros(1)], {"lr": lr})

    def step(self, closure: Any = None) -> Any:
        """Update nothing."""

    # Else torch puts the hooks of all optimizers around it.
    step.hooked = True  # type: ignore[attr-defined]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as torch does, without the decorator that imports its compiler."""
        torchs_own(torch.optim.Optimizer.add_param_group)(self, param_group)


class LrScheduler:
    """torch's scheduler of one lr, stepped after each update or at each epoch's end."""

    def __init__(self, schedule: Schedule) -> None:
        """Take a schedule with the lr that it is for."""
        assert schedule.lr_schedule is not None
        self.schedule, self.lr_schedule = schedule, schedule.lr_schedule
        kind, keys = self.lr_schedule.rule, self.lr_schedule.all_keys
        self.last = kind.last(keys) if kind.last else sys.maxsize
        # A list's values are multiples of 1, for torch's LambdaLR.
        lr = 1.0 if self.lr_schedule.kind == "list" else schedule.lr
        self.base = max(lr, keys.get("floor", 0.0)) if kind.cancels else 0.0
        self.optimizer = LrAlone(lr)
        arguments = kind.arguments(keys, lr)
        self.torchs: Any = getattr(lr_scheduler, kind.torch)(self.optimizer, **arguments)
        self.t = 0

    def step(self, batch: Batch) -> None:
        """Follow an update, as scheduler.step() follows optimizer.step()."""
        if self.lr_schedule.per == "epoch" and batch.batch < self.schedule.steps_per_epoch:
            return
        if self.t < self.last:
            self.optimizer.step()
            self.torchs.step()
        self.t += 1

    def lr(self, formula: float) -> float:
        """Return the formula's lr where torch has the same one; else torch's."""
        torchs = float(self.optimizer.param_groups[0]["lr"])
        allowed = 4 * UNIT * ((self.t + 1) * formula + self.base) + sys.float_info.min
        same = torchs == formula or abs(torchs - formula) <= allowed < math.inf
        return formula if same else torchs


class GroupSchedulers:
    """The schedulers of an optimizer's parameter groups: one for each lr among them."""

    def __init__(self, schedule: Schedule, lrs: Sequence[Any]) -> None:
        """Take the spec's schedule, and the lr that each group begins with.

        Raises:
            UserCodeError: the spec's lr is 0, and a group's has no proportion to it.
        """
        self.schedule, self.lrs = schedule, lrs
        if schedule.lr == 0 and any(lr != 0 for lr in lrs):
            raise UserCodeError(
                f"framework: the optimizer has lr {max(map(float, lrs)):g} where the spec has lr 0 "
                "and an lr schedule\n  The schedule scales each group's lr as the spec's: set the "
                "spec's lr to that of most parameters."
            )
        self.of_lr = {float(lr): LrScheduler(self.own(lr)) for lr in lrs}

    def own(self, lr: Any) -> Schedule:
        """Return the schedule of a group's lr, which keeps its proportion to the spec's."""
        return self.schedule if lr == self.schedule.lr else scaled(self.schedule, float(lr))

    def now(self, batch: Batch) -> list[Any]:
        """Return the lr of each group at a step."""
        formula, spec_lr = self.schedule.lr_at(batch.step), self.schedule.lr
        return [
            self.of_lr[float(lr)].lr(formula if lr == spec_lr else lr * (formula / spec_lr))
            for lr in self.lrs
        ]

    def step(self, batch: Batch) -> None:
        """Follow an update."""
        for one in self.of_lr.values():
            one.step(batch)
