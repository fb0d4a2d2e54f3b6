"""Which rows and which lr at which step. Both trainers take them from here.

The lr is that of a formula, to the last bit: torch's own schedulers go from step to step, and
every step would show what they round. The framework side runs them all the same, and takes their
lr where it is another one (`regcheck.trainers.framework.schedulers`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from regcheck.problem.lrs import scheduled_lr
from regcheck.rules.settings import Training
from regcheck.spec import Spec
from regcheck.spec.sections.lr_schedule import LrSchedule

if TYPE_CHECKING:  # `explain` counts steps and rows without loading NumPy
    import numpy as np
    from numpy.typing import NDArray

    RowIndex = slice | NDArray[np.intp]
    """Rows of X: a slice where they are neighbours, which costs no copy."""


class Batch(NamedTuple):
    """What one step trains on. Step, epoch and batch count from 1.

    `micro_batches` are the rows of each, of which there is one unless gradients are accumulated;
    `size` is the number of rows in all of them.
    """

    step: int
    epoch: int
    batch: int
    lr: float
    size: int
    micro_batches: tuple[RowIndex, ...]


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

    @cached_property
    def micro_batches_per_epoch(self) -> int:
        """Micro-batches in an epoch."""
        whole, rest = divmod(self.rows, self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    @cached_property
    def steps_per_epoch(self) -> int:
        """Steps in an epoch; the last may have fewer micro-batches."""
        return math.ceil(self.micro_batches_per_epoch / self.accumulate)

    @property
    def steps(self) -> int:
        """Steps in all."""
        return self.epochs * self.steps_per_epoch

    def batches(self) -> Iterator[Batch]:
        """Yield the steps one at a time; nothing of earlier epochs is kept."""
        step = 0
        for epoch in range(1, self.epochs + 1):
            order = self.order(epoch)
            for batch in range(1, self.steps_per_epoch + 1):
                step += 1
                micro_batches, size = self.micro_batches(batch, order)
                yield Batch(step, epoch, batch, self.lr_at(step), size, micro_batches)

    def order(self, epoch: int) -> NDArray[np.intp] | None:
        """Return an epoch's order of the rows; None where they keep their own."""
        if self.shuffle_seed is None:
            return None
        import numpy as np

        return np.random.default_rng([self.shuffle_seed, epoch]).permutation(self.rows)

    def micro_batches(
        self, batch: int, order: NDArray[np.intp] | None
    ) -> tuple[tuple[RowIndex, ...], int]:
        """Return the micro-batches of a step, and the number of their rows."""
        first = (batch - 1) * self.accumulate
        last = min(first + self.accumulate, self.micro_batches_per_epoch)
        stop = min(last * self.batch_size, self.rows)
        found = []
        for start in range(first * self.batch_size, stop, self.batch_size):
            rows = slice(start, min(start + self.batch_size, stop))
            found.append(rows if order is None else order[rows])
        return tuple(found), stop - first * self.batch_size

    def likely_shifts(self) -> tuple[int, ...]:
        """Return the steps by which the lrs are likely early, or late: one, or an epoch of them."""
        by_epoch = self.lr_schedule is not None and self.lr_schedule.per == "epoch"
        found = dict.fromkeys((1, self.steps_per_epoch if by_epoch else 1))
        return tuple(sign * steps for steps in found for sign in (1, -1))

    def shift_text(self, early: int) -> str:
        """Write by how many steps, or whole epochs of its lrs, the schedule is early or late."""
        epochs, steps = divmod(abs(early), self.steps_per_epoch)
        by_epoch = self.lr_schedule is not None and self.lr_schedule.per == "epoch"
        count, unit = (epochs, "epoch") if by_epoch and not steps else (abs(early), "step")
        return f"{count} {unit}{'s' if count > 1 else ''} {'early' if early > 0 else 'late'}"

    def sizes(self) -> tuple[int, ...]:
        """Return the distinct numbers of rows of steps, the usual one first."""
        return self.first_and_last(self.accumulate)

    def micro_sizes(self) -> tuple[int, ...]:
        """Return the distinct numbers of rows of micro-batches, the usual one first."""
        return self.first_and_last(1)

    def first_and_last(self, together: int) -> tuple[int, ...]:
        """Return the rows in an epoch's first and last group of micro-batches, if they differ.

        The groups between are as large as the first.
        """
        if not self.micro_batches_per_epoch:
            return (0,)
        rows = min(self.rows, self.micro_batches_per_epoch * self.batch_size)
        first = min(rows, together * self.batch_size)
        return tuple(dict.fromkeys((first, (rows - 1) % first + 1)))

    def lr_at(self, step: int) -> float:
        """Return the lr of a step: that of t = 0 at step 1 and before, as torch's schedulers do.

        (torch calls scheduler.step() after optimizer.step(), so step k uses f(k − 1).)
        """
        if self.lr_schedule is None:
            return self.lr
        unit = self.steps_per_epoch if self.lr_schedule.per == "epoch" else 1
        return scheduled_lr(self.lr, self.lr_schedule, max(0, step - 1) // unit)


def schedule_of(spec: Spec, rows: int) -> Schedule:
    """Return the schedule of a spec that trains on `rows` rows."""
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
    """Return the numbers that enter the formulas of a spec that trains on `rows` rows."""
    schedule = schedule_of(spec, rows)
    return Training(
        settings=spec.optimizer.settings(spec.lr, spec.decays),
        batch_rows=schedule.sizes(),
        train_rows=rows,
        micro_rows=schedule.micro_sizes() if schedule.accumulate > 1 else (),
        lr_varies=spec.lr_schedule is not None,
        clipped=spec.clip_norm is not None or spec.clip_value is not None,
        clipped_by_norm=spec.clip_norm is not None,
        loss=spec.loss_name,
        weighted=spec.loss_options.weight is not None,
    )
