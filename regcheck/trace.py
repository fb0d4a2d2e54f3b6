"""All compared steps of a run, kept as plain numbers."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from typing import NamedTuple

from regcheck.compare import Difference, Row


class TensorTrace(NamedTuple):
    """One tensor in one row: drift, and the entry with the largest ratio of local and bound.

    `judged` is the ratio that its tolerance limits: the same one, or drift over what is allowed.
    """

    drift: float
    local: float
    bound: float
    ratio: float
    judged: float


class TraceRow(NamedTuple):
    """One compared step, as it is kept: `loss_ratio` is the local loss difference in bounds.

    `loss_judged` is the ratio that the loss's tolerance limits.
    """

    step: int
    epoch: int
    batch: int
    scratch_loss: float
    framework_loss: float
    loss_ratio: float
    loss_judged: float
    tensors: dict[str, TensorTrace]


def ratio(difference: Difference | None) -> float:
    """Give a difference in its bounds; NaN where there is nothing to compare."""
    return math.nan if difference is None else difference.ratio


HEAD, EACH = 7, 5
"""Numbers kept of a step, and of each tensor in it."""


class Trace:
    """All compared steps, as plain numbers: a few hundred bytes each at most."""

    def __init__(self, tensors: tuple[str, ...]) -> None:
        self.tensors = tensors
        self.numbers = array("d")
        self.width = HEAD + EACH * len(tensors)

    def append(self, row: Row) -> None:
        """Keep a row."""
        self.numbers.extend(
            (
                *(row.step, row.epoch, row.batch, row.scratch_loss, row.framework_loss),
                *(ratio(row.loss), ratio(row.judged.get("loss"))),
            )
        )
        for name in self.tensors:
            local, judged = row.local[name], row.judged[name]
            self.numbers.extend(
                (row.drift[name], local.difference, local.bound, local.ratio, judged.ratio)
            )

    def __len__(self) -> int:
        return len(self.numbers) // self.width

    def __getitem__(self, index: int) -> TraceRow:
        start = (index + len(self) if index < 0 else index) * self.width
        values = self.numbers[start : start + self.width]
        if start < 0 or len(values) < self.width:
            raise IndexError(index)
        tensors = {
            name: TensorTrace(*values[HEAD + EACH * position : HEAD + EACH * (position + 1)])
            for position, name in enumerate(self.tensors)
        }
        step, epoch, batch = (int(value) for value in values[:3])
        scratch, framework, ratio, judged = values[3:HEAD]
        return TraceRow(step, epoch, batch, scratch, framework, ratio, judged, tensors)

    def __iter__(self) -> Iterator[TraceRow]:
        return (self[index] for index in range(len(self)))
