"""What a run keeps of its steps: every step's numbers, and where each thing is first so.

The last steps' numbers are in memory, all others in a file, which has no name and is gone with the
process, however that ends. Of what is first, each step makes the next record.
"""

from __future__ import annotations

import math
import tempfile
import weakref
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, NamedTuple

import numpy as np

from regcheck.compare.differences import Difference
from regcheck.compare.steps import Divergence, Row, diverges, in_limits, locate
from regcheck.errors import StorageError
from regcheck.numerics.bounds.rounding import Bounds
from regcheck.numerics.losses import saturated
from regcheck.problem.problem import Array, Parameters, Step
from regcheck.spec.sections.tolerance import Tolerances
from regcheck.trainers.lockstep import Steps


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
    """Return a difference in its bounds; NaN where there is nothing to compare."""
    return math.nan if difference is None else difference.ratio


HEAD, EACH = 7, 5
"""Numbers kept of a step, and of each tensor in it."""

NUMBER = 8
"""Bytes of a number."""

MOST_NUMBERS = 2**17
"""Numbers that are held in memory: 1 MiB, whatever the number of steps."""


class Trace:
    """All compared steps, as plain numbers: a few hundred bytes each at most.

    Raises:
        StorageError: in `append` and wherever rows are read, where the file cannot be used.
    """

    def __init__(self, tensors: tuple[str, ...]) -> None:
        self.tensors = tensors
        self.numbers = array("d")
        self.width = HEAD + EACH * len(tensors)
        self.file: IO[bytes] | None = None
        self.filed = 0  # rows in the file

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
        if len(self.numbers) >= MOST_NUMBERS:
            self.put_away()

    def put_away(self) -> None:
        """Write the rows in memory to the file."""
        with room():
            if self.file is None:
                self.file = tempfile.TemporaryFile()  # noqa: SIM115  # as long as the trace
                weakref.finalize(self, self.file.close)
            self.file.seek(self.filed * self.width * NUMBER)
            self.file.write(self.numbers.tobytes())
            self.file.flush()
        self.filed = len(self)
        self.numbers = array("d")

    def taken_back(self, start: int, count: int) -> array[float]:
        """Read rows from the file."""
        assert self.file is not None
        numbers = array("d")
        with room():
            self.file.seek(start * self.width * NUMBER)
            numbers.frombytes(self.file.read(count * self.width * NUMBER))
        return numbers

    def __getstate__(self) -> tuple[tuple[str, ...], array[float]]:
        """Return all rows, for another process: a file is of its process alone."""
        numbers = self.taken_back(0, self.filed) if self.filed else array("d")
        return self.tensors, numbers + self.numbers

    def __setstate__(self, state: tuple[tuple[str, ...], array[float]]) -> None:
        """Take all rows in memory, and put them away where they are many."""
        tensors, numbers = state
        self.__init__(tensors)  # type: ignore[misc]
        self.numbers = numbers
        if len(numbers) >= MOST_NUMBERS:
            self.put_away()

    def __len__(self) -> int:
        return self.filed + len(self.numbers) // self.width

    def __getitem__(self, index: int) -> TraceRow:
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(index)
        if place < self.filed:
            return self.row(self.taken_back(place, 1))
        start = (place - self.filed) * self.width
        return self.row(self.numbers[start : start + self.width])

    def __iter__(self) -> Iterator[TraceRow]:
        block = max(1, MOST_NUMBERS // self.width)
        for start in range(0, self.filed, block):
            yield from self.rows(self.taken_back(start, min(block, self.filed - start)))
        yield from self.rows(self.numbers)

    def rows(self, numbers: array[float]) -> Iterator[TraceRow]:
        """Return the rows that numbers hold."""
        for start in range(0, len(numbers), self.width):
            yield self.row(numbers[start : start + self.width])

    def row(self, values: Sequence[float]) -> TraceRow:
        """Return the row that its numbers hold."""
        tensors = {
            name: TensorTrace(*values[HEAD + EACH * position : HEAD + EACH * (position + 1)])
            for position, name in enumerate(self.tensors)
        }
        step, epoch, batch = (int(value) for value in values[:3])
        scratch, framework, ratio, judged = values[3:HEAD]
        return TraceRow(step, epoch, batch, scratch, framework, ratio, judged, tensors)


@contextmanager
def room() -> Iterator[None]:
    """Use the file; where it cannot be used, say what to do."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{tempfile.gettempdir()}: the steps of this run cannot be stored there: "
            f"{error.strerror or error}; free some space, or name another folder in the "
            "environment variable TMPDIR"
        ) from None


class Sample(NamedTuple):
    """One step of both sides from the same parameters, and the bounds of its gradient."""

    step: int
    scratch: Step
    framework: Step
    gradient_bound: Parameters


class FirstDivergence(NamedTuple):
    """The first divergence of the parameters, and the steps that are shown with it.

    Attributes:
        divergence: None where every parameter keeps its tolerance.
        sample: the step of the divergence; step 1 where there is none, or the start diverges.
        previous: the step before the divergence; the last one where there is none.
    """

    divergence: Divergence | None = None
    sample: Sample | None = None
    previous: Sample | None = None

    def with_step(
        self, row: Row, steps: Steps, bounds: Bounds, tolerances: Tolerances
    ) -> FirstDivergence:
        """Take in one more step."""
        sample = Sample(row.step, steps.scratch, steps.framework, bounds.gradient)
        if self.divergence is not None:
            return self if self.sample else self._replace(sample=sample)
        if not diverges(row, tolerances):
            return FirstDivergence(None, self.sample or sample, sample)
        divergence = locate(row, steps.scratch, steps.framework, bounds, tolerances)
        return FirstDivergence(divergence, sample, self.previous)


class LossDivergence(NamedTuple):
    """The first step at which the reported losses differ, at the same parameters."""

    step: int
    at: Difference


class Losses(NamedTuple):
    """The reported losses.

    Attributes:
        reported: whether both sides reported one in any step.
        divergence: the first one; None where every loss keeps its tolerance.
        first_unjudged: the first step at which they could not be judged.
    """

    reported: bool = False
    divergence: LossDivergence | None = None
    first_unjudged: int | None = None

    def diverge_in(self, row: Row, tolerances: Tolerances) -> bool:
        """Whether a step is the first whose loss does not keep its tolerance."""
        if self.divergence is not None or row.loss is None:
            return False
        return in_limits(row.judged["loss"], tolerances) > 1

    def with_step(self, row: Row, tolerances: Tolerances) -> Losses:
        """Take in one more step."""
        if row.loss is None:
            return self
        at, divergence, unjudged = row.judged["loss"], self.divergence, self.first_unjudged
        if self.diverge_in(row, tolerances):
            divergence = LossDivergence(row.step, at)
        if unjudged is None and not at.judged:
            unjudged = row.step
        return Losses(True, divergence, unjudged)


class Saturation(NamedTuple):
    """Where outputs saturate, by `losses.saturated`: shares of the rows of a step.

    Attributes:
        first: the first step with any such row, and `first_share` its share of them.
        last: the last step that was compared, and `last_share` likewise.
    """

    first: int
    first_share: float
    last: int
    last_share: float


def saturation_with(
    earlier: Saturation | None, step: int, outputs: Sequence[Array]
) -> Saturation | None:
    """Take in one more step's outputs; None where no row was saturated yet."""
    share = float(np.mean(np.concatenate([saturated(z) for z in outputs])))
    if earlier is not None:
        return earlier._replace(last=step, last_share=share)
    return Saturation(step, share, step, share) if share else None
