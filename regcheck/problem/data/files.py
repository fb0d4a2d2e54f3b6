"""Data files, read without NumPy: where they are, CSV row by row, and how many rows there are."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from regcheck.errors import Complaint, InputError, Place, shortened
from regcheck.spec import LoadedSpec
from regcheck.spec.sections.data import CsvData, InlineData, NpzData, SyntheticData
from regcheck.spec.yaml_text import read_text

MOST_COMPLAINTS = 10
"""How many bad cells of one file are reported one by one."""

MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "?", "."})
"""Cells that stand for a missing value, in lower case."""


def data_file(loaded: LoadedSpec, key: str, name: str) -> Path:
    """Find the data file that a key of `data` names; relative names are relative to the spec.

    Raises:
        InputError: it is not there, or is no file.
    """
    path = loaded.folder / name
    try:
        if path.is_file():
            return path
        found = "is a folder or device, not a file" if path.exists() else "no such file"
    except OSError as error:
        found = str(error.strerror)
    where = "relative to the spec" if loaded.document.places else "relative to the current folder"
    text = f"{shortened(str(path), 300)}: {found}; paths are {where}"
    raise loaded.error(("data", key), text)


def refused(path: Path, line: int | None, text: str) -> InputError:
    """Make an error about a file as a whole, or about one line."""
    return InputError([Complaint(Place(str(path), line), text)])


def raise_some(complaints: Sequence[Complaint], left_out: int = 0) -> None:
    """Raise the first complaints, and how many more there are; nothing where there are none.

    Args:
        complaints: what is wrong.
        left_out: how many more like these are not even in `complaints`.
    """
    if not complaints:
        return
    first = list(complaints[:MOST_COMPLAINTS])
    rest = len(complaints) - len(first) + left_out
    if rest:
        first.append(Complaint(Place(complaints[0].place.file), f"and {rest:,} more like these"))
    raise InputError(first)


def read_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Read a CSV file row by row, the header first: the line that a row ends in, and its cells.

    Quoted fields may hold commas and line breaks; empty lines are passed over. One row is held at
    a time.

    Raises:
        InputError: not readable, not UTF-8, or no CSV.
    """
    line = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            for cells in reader:
                line = reader.line_num
                if not is_blank(cells):
                    yield line, cells
            return
    except (OSError, UnicodeDecodeError):
        reason = "cannot be read"
    except csv.Error as error:
        line, reason = reader.line_num, f"not valid CSV: {error}"
    read_text(path)  # raises where the file cannot be read, and says where it is not UTF-8
    raise refused(path, line or None, reason)


def is_blank(cells: list[str]) -> bool:
    """Whether a row is an empty line."""
    return not cells or (len(cells) == 1 and not cells[0].strip())


def read_header(cells: list[str]) -> list[str]:
    """Return the names in a header's cells."""
    return [name.strip() for name in cells]


def survey(path: Path) -> int:
    """Read a CSV file through, and count its rows.

    Raises:
        InputError: not readable, not UTF-8, no header, no rows, or rows of unequal length.
    """
    rows = read_rows(path)
    _, header = next(rows, (0, []))
    if not header:
        raise refused(path, None, "empty; a header and at least one row are needed")
    ragged: list[Complaint] = []
    count = bad = 0
    for count, (line, cells) in enumerate(rows, 1):
        if len(cells) != len(header):
            bad += 1
            if len(ragged) < MOST_COMPLAINTS:
                text = f"row {count} has {len(cells)} cells, and the header {len(header)}"
                ragged.append(Complaint(Place(str(path), line), text))
    if not count:
        raise refused(path, None, "has a header but no rows")
    check_header(path, read_header(header))
    raise_some(ragged, left_out=bad - len(ragged))
    return count


def check_header(path: Path, header: list[str]) -> None:
    """Refuse a header that is separated by other marks, or names a column twice."""
    if len(header) == 1 and any(mark in header[0] for mark in ";\t"):
        raise refused(path, 1, "the header has one column only; separate columns with commas")
    repeated = [name for index, name in enumerate(header) if name and name in header[:index]]
    if repeated:
        text = f"the column name `{shortened(repeated[0])}` occurs twice; make the names unique"
        raise refused(path, 1, text)


def is_missing(cell: str) -> bool:
    """Whether a cell stands for a missing value."""
    return cell.strip().lower() in MISSING


def to_number(cell: str) -> float | None:
    """Read a finite decimal number; None where the cell is none.

    >>> to_number(" 1e-3 "), to_number("1_000"), to_number("inf"), to_number("1,5")
    (0.001, None, None, None)
    """
    try:
        value = math.nan if "_" in cell else float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def resembles_number(cell: str) -> bool:
    """Whether a cell is a number, or was meant to be one: `1,5`, `1_000`, `inf`."""
    try:
        float(cell.replace(",", "."))
    except ValueError:
        return False
    return True


def count_rows(loaded: LoadedSpec) -> int:
    """Count a source's rows, test rows included; NumPy is loaded for its own files alone."""
    data = loaded.spec.data
    if isinstance(data, CsvData):
        return survey(data_file(loaded, "csv", data.csv))
    if isinstance(data, NpzData):
        from regcheck.problem.data.npz import open_npz, read_shape

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
    """Return how many of `rows` a share holds out: rounded up, as scikit-learn's split does.

    >>> held_out(1370, 0.2), held_out(10, 0.25), held_out(100, 0.07)
    (274, 3, 7)
    """
    # Rounding first, since 100 · 0.07 is a little above 7 in binary.
    return max(1, math.ceil(round(rows * share, 9)))
