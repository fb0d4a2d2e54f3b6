"""Which rows and which lr at which step. Both sides train by the same schedule."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from regcheck.rules.settings import Training
from regcheck.spec import Spec
from regcheck.spec.training import LrSchedule

if TYPE_CHECKING:  # `explain` counts steps and rows without loading NumPy
    import numpy as np
    from numpy.typing import NDArray

    RowIndex = slice | NDArray[np.intp]
    """Rows of X: a slice where they are neighbours, which costs no copy."""


class Batch(NamedTuple):
    """What one step trains on. Step, epoch and batch count from 1.

    `parts` are the rows of its micro-batches, of which there is one unless gradients are
    accumulated; `size` is the number of rows in all of them.
    """

    step: int
    epoch: int
    batch: int
    lr: float
    size: int
    parts: tuple[RowIndex, ...]


@dataclass(frozen=True)
class Schedule:
    """The steps of a training on n rows."""

    rows: int
    epochs: int
    batch_size: int
    drop_last: bool
    accumulate: int
    shuffle_seed: int | None
    lr: float
    lr_schedule: LrSchedule | None

    @property
    def micro_batches(self) -> int:
        """Micro-batches in an epoch."""
        whole, rest = divmod(self.rows, self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    @property
    def steps_per_epoch(self) -> int:
        """Steps in an epoch; the last may have fewer micro-batches."""
        return math.ceil(self.micro_batches / self.accumulate)

    @property
    def steps(self) -> int:
        """Steps in all."""
        return self.epochs * self.steps_per_epoch

    def batches(self) -> Iterator[Batch]:
        """Give the steps one at a time; nothing of earlier epochs is kept."""
        step = 0
        for epoch in range(1, self.epochs + 1):
            order = self.order(epoch)
            for batch in range(1, self.steps_per_epoch + 1):
                step += 1
                parts, size = self.parts(batch, order)
                yield Batch(step, epoch, batch, self.lr_at(step, epoch), size, parts)

    def order(self, epoch: int) -> NDArray[np.intp] | None:
        """Give an epoch's order of the rows; None where they keep their own."""
        if self.shuffle_seed is None:
            return None
        import numpy as np

        return np.random.default_rng([self.shuffle_seed, epoch]).permutation(self.rows)

    def parts(self, batch: int, order: NDArray[np.intp] | None) -> tuple[tuple[RowIndex, ...], int]:
        """Give the micro-batches of a step, and the number of their rows."""
        first = (batch - 1) * self.accumulate
        last = min(first + self.accumulate, self.micro_batches)
        stop = min(last * self.batch_size, self.rows)
        parts = []
        for start in range(first * self.batch_size, stop, self.batch_size):
            rows = slice(start, min(start + self.batch_size, stop))
            parts.append(rows if order is None else order[rows])
        return tuple(parts), stop - first * self.batch_size

    def sizes(self) -> tuple[int, ...]:
        """Give the distinct numbers of rows that steps see, the usual one first."""
        return self.first_and_last(self.accumulate)

    def micro_sizes(self) -> tuple[int, ...]:
        """Give the distinct numbers of rows of micro-batches, the usual one first."""
        return self.first_and_last(1)

    def first_and_last(self, together: int) -> tuple[int, ...]:
        """Give the rows in an epoch's first and last group of micro-batches, where they differ.

        The groups between are as large as the first.
        """
        if not self.micro_batches:
            return (0,)
        rows = min(self.rows, self.micro_batches * self.batch_size)
        first = min(rows, together * self.batch_size)
        return tuple(dict.fromkeys((first, (rows - 1) % first + 1)))

    def shifted_lr(self, step: int, early: int) -> float:
        """Give the lr of a step when the schedule runs some steps early; step 1's before it."""
        other = max(1, step + early)
        return self.lr_at(other, (other - 1) // self.steps_per_epoch + 1)

    def lr_at(self, step: int, epoch: int) -> float:
        """Give the lr of a step: that of t = 0 at step 1, as torch's schedulers do.

        (torch calls scheduler.step() after optimizer.step(), so step k uses f(k − 1).)
        """
        schedule = self.lr_schedule
        if schedule is None:
            return self.lr
        return scheduled_lr(self.lr, schedule, (step if schedule.per == "step" else epoch) - 1)


def scheduled_lr(lr: float, schedule: LrSchedule, t: int) -> float:
    """Give the lr after t steps or epochs; `LrSchedule` has the formulas."""
    if schedule.kind in ("step", "exponential"):
        times = t // (schedule.every or 1)
        try:
            return lr * (schedule.factor or 0.0) ** times
        except OverflowError:
            return math.inf
    if schedule.kind == "list":
        values = schedule.values or [lr]
        return values[min(t, len(values) - 1)]
    share = min(t, schedule.steps or 1) / (schedule.steps or 1)
    if schedule.kind == "cosine":
        floor = schedule.floor or 0.0
        return floor + (lr - floor) * (1 + math.cos(math.pi * share)) / 2
    return lr * min(1.0, (t + 1) / (schedule.steps or 1))


def schedule_of(spec: Spec, rows: int) -> Schedule:
    """Make the schedule of a spec that trains on `rows` rows."""
    return Schedule(
        rows=rows,
        epochs=spec.epochs,
        batch_size=rows if spec.batch_size == "full" else spec.batch_size,
        drop_last=spec.drop_last,
        accumulate=spec.accumulate,
        shuffle_seed=spec.shuffle.seed if spec.shuffle else None,
        lr=spec.lr,
        lr_schedule=spec.lr_schedule,
    )


def training_of(spec: Spec, rows: int) -> Training:
    """Take the numbers that enter the update formulas of a spec that trains on `rows` rows."""
    schedule = schedule_of(spec, rows)
    return Training(
        lr=spec.lr,
        lr_varies=spec.lr_schedule is not None,
        weight_decay=spec.decays,
        momentum=spec.optimizer.momentum,
        dampening=spec.optimizer.dampening,
        nesterov=spec.optimizer.nesterov,
        clipped=spec.clip_norm is not None or spec.clip_value is not None,
        batch_rows=schedule.sizes(),
        train_rows=rows,
        micro_rows=schedule.micro_sizes() if schedule.accumulate > 1 else (),
        clipped_by_norm=spec.clip_norm is not None,
        loss=spec.loss or "",
    )
