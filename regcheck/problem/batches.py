"""Which rows and which lr at which step. Both trainers take them from here.

The lr is that of a formula, to the last bit: torch's own schedulers go from step to step, and
every step would show what they round. The framework side runs them all the same, and takes their
lr where it is another one (`regcheck.trainers.framework.schedulers`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate as running_sums
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from regcheck.problem.lrs import scheduled_lr
from regcheck.rules.settings import Settings, Training
from regcheck.spec import LoadedSpec, Spec
from regcheck.spec.sections.lr_schedule import LrSchedule
from regcheck.spec.sections.training import TorchSettings

if TYPE_CHECKING:  # `explain` counts steps and rows without loading NumPy
    import numpy as np
    from numpy.typing import NDArray

    RowIndex = slice | NDArray[np.intp]
    """Rows of X: a slice where they are neighbours, which costs no copy."""


class Batch(NamedTuple):
    """What one step trains on. Step, epoch and batch count from 1.

    `micro_batches` are the rows over which one mean loss is taken each; the step's gradient is the
    average of theirs. There is one, unless gradients are accumulated or several processes share a
    batch: then rank r of R has those at r, r + R, .. `size` is the number of rows in all of them.
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
    processes: int = 1

    @property
    def averages(self) -> bool:
        """Whether a step's gradient is an average: over micro-batches, ranks' shares, or both."""
        return self.accumulate > 1 or self.processes > 1

    @property
    def nominal_rows(self) -> int:
        """The most rows over which one mean loss is taken, where no batch is a smaller one."""
        return shares(self.batch_size, self.processes)[0]

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
        """Return the micro-batches of a step, each in its shares, and the number of their rows.

        A share is contiguous, and torch.tensor_split's: of n rows and R ranks the first n mod R
        have one row more.
        """
        first = (batch - 1) * self.accumulate
        last = min(first + self.accumulate, self.micro_batches_per_epoch)
        stop = min(last * self.batch_size, self.rows)
        found: list[RowIndex] = []
        for start in range(first * self.batch_size, stop, self.batch_size):
            size = min(self.batch_size, stop - start)
            ends = running_sums((start, *shares(size, self.processes)))
            own = [slice(*pair) for pair in pairwise(ends)]
            found += own if order is None else [order[rows] for rows in own]
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

    def with_keys(self, keys: Sequence[tuple[str, Any]]) -> Schedule:
        """Return the schedule with other values of some keys of its lr's."""
        if not keys or self.lr_schedule is None:
            return self
        return replace(self, lr_schedule=self.lr_schedule.with_keys(keys))

    def sizes(self) -> tuple[int, ...]:
        """Return the distinct numbers of rows of steps, the usual one first."""
        return self.first_and_last(self.accumulate)

    def micro_sizes(self) -> tuple[int, ...]:
        """Return the distinct numbers of rows over which one mean is taken, the usual one first."""
        batches = self.first_and_last(1)
        return tuple(dict.fromkeys(n for rows in batches for n in shares(rows, self.processes)))

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


def shares(rows: int, count: int) -> tuple[int, ...]:
    """Return how many rows each rank has of a batch.

    >>> shares(7, 3)
    (3, 2, 2)
    """
    least, more = divmod(rows, count)
    return (least + 1,) * more + (least,) * (count - more)


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
        processes=spec.processes,
    )


def check_shares(loaded: LoadedSpec, train_rows: int) -> None:
    """Refuse batches of which some process would have no row: its mean loss would be 0/0.

    Raises:
        InputError: there is one.
    """
    schedule = schedule_of(loaded.spec, train_rows)
    rows = min(schedule.first_and_last(1))
    if rows == 0 or rows >= schedule.processes:
        return
    what = "micro-batch" if schedule.accumulate > 1 else "batch"
    count, last = schedule.micro_batches_per_epoch, rows < schedule.batch_size
    which = f"the last {what} of each epoch, number {count:,}," if last else f"each {what}"
    drop = "; `drop_last: true` leaves it out" if last and count > 1 else ""
    raise loaded.error(
        ("framework", "processes"),
        f"{which} has {rows} sample{'s' if rows > 1 else ''} for {schedule.processes} processes, "
        f"each of which needs one; use fewer processes or another batch_size{drop}",
    )


def training_of(spec: Spec, rows: int) -> Training:
    """Return the numbers that enter the formulas of a spec that trains on `rows` rows."""
    schedule = schedule_of(spec, rows)
    return Training(
        settings=spec.optimizer.settings(spec.lr, spec.decays),
        batch_rows=schedule.sizes(),
        train_rows=rows,
        micro_rows=schedule.micro_sizes() if schedule.averages else (),
        averaged=min(schedule.accumulate, schedule.micro_batches_per_epoch) * schedule.processes,
        processes=schedule.processes,
        lr_varies=spec.lr_schedule is not None,
        clipped=spec.clip_norm is not None or spec.clip_value is not None,
        clipped_by_norm=spec.clip_norm is not None,
        loss=spec.loss_name,
        weighted=spec.loss_options.weight is not None,
        smoothed=spec.loss_options.label_smoothing > 0,
    )


def torch_settings_of(spec: Spec) -> Settings:
    """Return the settings of torch's optimizer, where it is given others than the scratch side."""
    alone = spec.torch_settings or TorchSettings(lr=spec.lr)
    decays = spec.decays if alone.weight_decay is None else alone.weight_decay.of(spec.decays)
    optimizer = alone.optimizer or spec.optimizer
    return optimizer.settings(spec.lr if alone.lr is None else alone.lr, decays)
