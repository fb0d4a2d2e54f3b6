"""The CSV report: a line for each step and tensor, in full precision."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator

from regcheck.compare.trace import TraceRow
from regcheck.report.record import Record

COLUMNS = (
    *("spec", "step", "epoch", "batch"),
    *("loss_scratch", "loss_framework", "loss_ratio", "loss_tolerance_ratio"),
    *("tensor", "accumulated", "one_step", "bound", "ratio", "tolerance_ratio"),
)


class Echo:
    """A file that hands back what is written to it."""

    def write(self, text: str) -> str:
        """Return the text."""
        return text


def csv_chunks(records: Iterable[Record]) -> Iterator[str]:
    """Yield the lines of all steps; a run that could not be made has none."""
    write = csv.writer(Echo(), lineterminator="\n").writerow
    yield str(write(COLUMNS))
    for record in records:
        for row in record.trace or ():
            for line in lines(row):
                yield str(write((record.head["spec"], *line)))


def lines(row: TraceRow) -> Iterator[tuple[object, ...]]:
    """Yield a step's lines, one for each tensor; all but `tensors` stand in each of them."""
    *common, tensors = row
    for name, numbers in tensors.items():
        yield (*common, name, *numbers)
