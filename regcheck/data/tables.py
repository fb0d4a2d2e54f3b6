"""Files of rows, read without NumPy: CSV as text cells, and how many rows a source has."""

from __future__ import annotations

import ast
import csv
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from regcheck.errors import Complaint, InputError, Place
from regcheck.spec import LoadedSpec
from regcheck.spec.schema import CsvData, InlineData, NpzData, SyntheticData

MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "?", "."})
"""Cells that stand for a missing value, in lower case."""

MOST_COMPLAINTS = 10
"""How many bad cells of one file are told one by one."""


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
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "no such file"
        raise InputError([Complaint(Place(str(path)), f"{found}; paths are relative to the spec")])
    header, rows, lines = csv_cells(path)
    if not header:
        raise refused(path, None, "empty; a header and at least one row are needed")
    if not rows:
        raise refused(path, None, "has a header but no rows")
    if len(header) == 1 and any(mark in header[0] for mark in ";\t"):
        raise refused(path, 1, "the header has one column only; separate columns with commas")
    table = Table(path, header, rows, lines)
    ragged = [index for index, cells in enumerate(rows) if len(cells) != len(header)]
    raise_some(
        [
            Complaint(
                table.place(index),
                f"{len(rows[index])} cells, but the header has {len(header)} columns",
            )
            for index in ragged
        ]
    )
    return table


def csv_cells(path: Path) -> tuple[list[str], list[list[str]], list[int]]:
    """Read a CSV file's header, rows and line numbers; empty lines are passed over."""
    header: list[str] = []
    rows: list[list[str]] = []
    lines: list[int] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            for cells in reader:
                if not cells or (len(cells) == 1 and not cells[0].strip()):
                    continue
                if not header:
                    header = [name.strip() for name in cells]
                    continue
                rows.append(cells)
                lines.append(reader.line_num)
    except UnicodeDecodeError as error:
        raise refused(
            path, None, f"not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from None
    except csv.Error as error:
        raise refused(path, reader.line_num, f"not valid CSV: {error}") from None
    except OSError as error:
        raise refused(path, None, f"cannot be read: {error.strerror}") from None
    return header, rows, lines


def refused(path: Path, line: int | None, text: str) -> InputError:
    """Make an error about a file as a whole, or about one line."""
    return InputError([Complaint(Place(str(path), line), text)])


def raise_some(complaints: Sequence[Complaint]) -> None:
    """Raise the first complaints, and how many more there are; nothing where there are none."""
    if not complaints:
        return
    told = list(complaints[:MOST_COMPLAINTS])
    if len(complaints) > len(told):
        rest = len(complaints) - len(told)
        told.append(Complaint(Place(complaints[0].place.file), f"and {rest} more like these"))
    raise InputError(told)


def is_missing(cell: str) -> bool:
    """Say whether a cell stands for a missing value."""
    return cell.strip().lower() in MISSING


def to_number(cell: str) -> float | None:
    """Read a finite decimal number; None where the cell is none."""
    if "_" in cell:
        return None
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def numeric_columns(table: Table) -> list[int]:
    """Find the columns whose cells, missing ones aside, are all numbers."""
    found = []
    for index in range(len(table.header)):
        cells = [row[index] for row in table.rows if not is_missing(row[index])]
        if cells and all(to_number(cell) is not None for cell in cells):
            found.append(index)
    return found


def count_rows(loaded: LoadedSpec) -> int:
    """Count a source's rows, test rows included, without loading NumPy."""
    data = loaded.spec.data
    if isinstance(data, CsvData):
        return len(read_csv(loaded.folder / data.csv).rows)
    if isinstance(data, NpzData):
        return npz_rows(loaded.folder / data.npz, data.X)
    if isinstance(data, SyntheticData):
        return data.synthetic.rows
    assert isinstance(data, InlineData)
    return len(data.X)


def npz_rows(path: Path, key: str) -> int:
    """Read the first dimension of an array's header (NumPy's format: NEP 1)."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as member:
            start = member.read(8)
            if start[:6] != b"\x93NUMPY":
                raise ValueError
            length = int.from_bytes(member.read(2 if start[6] == 1 else 4), "little")
            return int(ast.literal_eval(member.read(length).decode("latin1"))["shape"][0])
    except FileNotFoundError:
        raise refused(path, None, "no such file; paths are relative to the spec") from None
    except (
        OSError,
        zipfile.BadZipFile,
        KeyError,
        ValueError,
        IndexError,
        SyntaxError,
        RuntimeError,
    ):
        raise refused(path, None, f"no array `{key}` can be read from it") from None


def train_rows(loaded: LoadedSpec) -> int:
    """Count the training rows of a spec."""
    rows = count_rows(loaded)
    test = loaded.spec.data.test
    return rows if test is None else rows - held_out(rows, test.share)


def held_out(rows: int, share: float) -> int:
    """Give how many of `rows` a share holds out, rounded up as scikit-learn's split does.

    >>> held_out(1370, 0.2), held_out(10, 0.25)
    (274, 3)
    """
    return math.ceil(round(rows * share, 9))
