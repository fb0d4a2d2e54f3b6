"""Files of rows, read without NumPy: CSV as text cells, and how many rows a source has."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import NamedTuple

from regcheck.data.files import data_file, raise_some, refused
from regcheck.data.npz import open_npz, read_shape
from regcheck.errors import Complaint, InputError, Place, shortened, suggest
from regcheck.spec import LoadedSpec
from regcheck.spec.loading import read_text
from regcheck.spec.source import CsvData, InlineData, NpzData, SyntheticData

MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "?", "."})
"""Cells that stand for a missing value, in lower case."""


class Table(NamedTuple):
    """A CSV file: its header, its rows of text cells, and the line that each row ends in."""

    path: Path
    header: list[str]
    rows: list[list[str]]
    lines: list[int]

    def place(self, row: int) -> Place:
        """Give the place of a row, counted from 0."""
        return Place(str(self.path), self.lines[row])


def read_csv(path: Path) -> Table:
    """Read a CSV file with a header; quoted fields may hold commas and line breaks.

    Raises:
        InputError: not readable, not UTF-8, no header, no rows, or rows of unequal length.
    """
    header, rows, lines = csv_cells(path)
    if not header:
        raise refused(path, None, "empty; a header and at least one row are needed")
    if not rows:
        raise refused(path, None, "has a header but no rows")
    if len(header) == 1 and any(mark in header[0] for mark in ";\t"):
        raise refused(path, 1, "the header has one column only; separate columns with commas")
    repeated = [name for index, name in enumerate(header) if name and name in header[:index]]
    if repeated:
        text = f"the column `{shortened(repeated[0])}` is there twice; give each its own name"
        raise refused(path, 1, text)
    table = Table(path, header, rows, lines)
    raise_some(
        [
            Complaint(
                table.place(index),
                f"row {index + 1} has {len(cells)} cells, the header {len(header)}",
            )
            for index, cells in enumerate(rows)
            if len(cells) != len(header)
        ]
    )
    return table


def csv_cells(path: Path) -> tuple[list[str], list[list[str]], list[int]]:
    """Read a CSV file's header, rows and line numbers; empty lines are passed over."""
    header: list[str] = []
    rows: list[list[str]] = []
    lines: list[int] = []
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        for cells in reader:
            if not cells or (len(cells) == 1 and not cells[0].strip()):
                continue
            if not header:
                header = [name.strip() for name in cells]
                continue
            rows.append(cells)
            lines.append(reader.line_num)
    except csv.Error as error:
        raise refused(path, reader.line_num, f"not valid CSV: {error}") from None
    return header, rows, lines


def find_column(loaded: LoadedSpec, table: Table, path: tuple[str | int, ...], name: str) -> int:
    """Find the column that a path of the spec names."""
    if name in table.header:
        return table.header.index(name)
    text = f"no column `{shortened(name)}` in {table.path.name}; {suggest(name, table.header)}"
    raise InputError([loaded.complaint(path, text)])


def is_missing(cell: str) -> bool:
    """Say whether a cell stands for a missing value."""
    return cell.strip().lower() in MISSING


def to_number(cell: str) -> float | None:
    """Read a finite decimal number; None where the cell is none.

    >>> to_number(" 1e-3 "), to_number("1_000"), to_number("inf"), to_number("1,5")
    (0.001, None, None, None)
    """
    if "_" in cell:
        return None
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def resembles_number(cell: str) -> bool:
    """Say whether a cell is a number, or was meant to be one: `1,5`, `1_000`, `inf`."""
    try:
        float(cell.replace(",", "."))
    except ValueError:
        return False
    return True


def numeric_columns(table: Table) -> list[int]:
    """Find the columns that hold numbers, as against text.

    A column of numbers with a few bad cells is found too, so that these are told: to leave out
    the column without a word would train on other features than the user thinks. So is one that
    is empty throughout.
    """
    found = []
    for index, name in enumerate(table.header):
        cells = [row[index] for row in table.rows if not is_missing(row[index])]
        if cells and not any(resembles_number(cell) for cell in cells):
            continue
        if not name:
            text = f"column {index + 1} has no name; name it, or list the `features` to train on"
            raise refused(table.path, 1, text)
        found.append(index)
    return found


def count_rows(loaded: LoadedSpec) -> int:
    """Count a source's rows, test rows included, without loading NumPy."""
    data = loaded.spec.data
    if isinstance(data, CsvData):
        return len(read_csv(data_file(loaded, "csv", data.csv)).rows)
    if isinstance(data, NpzData):
        path = data_file(loaded, "npz", data.npz)
        with open_npz(path) as archive:
            shape = read_shape(path, archive, data.X)
        return shape[0] if shape else 1
    if isinstance(data, SyntheticData):
        return data.synthetic.rows
    assert isinstance(data, InlineData)
    return len(data.X)


def train_rows(loaded: LoadedSpec) -> int:
    """Count the training rows of a spec."""
    rows = count_rows(loaded)
    test = loaded.spec.data.test
    return rows if test is None else rows - held_out(rows, test.share)


def held_out(rows: int, share: float) -> int:
    """Give how many of `rows` a share holds out: rounded up, as scikit-learn's split does.

    >>> held_out(1370, 0.2), held_out(10, 0.25), held_out(100, 0.07)
    (274, 3, 7)
    """
    # Rounding first, since 100 · 0.07 is a little above 7 in binary.
    return max(1, math.ceil(round(rows * share, 9)))
