"""All compared steps of a run, kept as plain numbers."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import NamedTuple

from regcheck.compare import Row


class TensorTrace(NamedTuple):
    """One tensor in one row: drift, and the entry with the largest ratio of local and bound."""

    drift: float
    local: float
    bound: float
    ratio: float


class TraceRow(NamedTuple):
    """One compared step, as it is kept: `loss_ratio` is the local loss difference in bounds."""

    step: int
    epoch: int
    batch: int
    scratch_loss: float
    framework_loss: float
    loss_ratio: float
    tensors: dict[str, TensorTrace]


class Trace:
    """All compared steps, as plain numbers: a few hundred bytes each at most."""

    def __init__(self, tensors: tuple[str, ...]) -> None:
        self.tensors = tensors
        self.numbers = array("d")
        self.width = 6 + 4 * len(tensors)

    def append(self, row: Row) -> None:
        """Keep a row."""
        self.numbers.extend(
            (row.step, row.epoch, row.batch, row.scratch_loss, row.framework_loss, row.loss.ratio)
        )
        for name in self.tensors:
            local = row.local[name]
            self.numbers.extend((row.drift[name], local.difference, local.bound, local.ratio))

    def __len__(self) -> int:
        return len(self.numbers) // self.width

    def __getitem__(self, index: int) -> TraceRow:
        start = (index + len(self) if index < 0 else index) * self.width
        values = self.numbers[start : start + self.width]
        if start < 0 or len(values) < self.width:
            raise IndexError(index)
        tensors = {
            name: TensorTrace(*values[6 + 4 * position : 10 + 4 * position])
            for position, name in enumerate(self.tensors)
        }
        step, epoch, batch = (int(value) for value in values[:3])
        return TraceRow(step, epoch, batch, values[3], values[4], values[5], tensors)

    def __iter__(self) -> Iterator[TraceRow]:
        return (self[index] for index in range(len(self)))
