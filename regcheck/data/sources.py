"""Sources to arrays: CSV, .npz, made-up and inline rows become X (n, d) and y (n,) in float64."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from regcheck.data.tables import (
    Table,
    is_missing,
    numeric_columns,
    raise_some,
    read_csv,
    refused,
    to_number,
)
from regcheck.errors import Complaint, InputError, Place, suggest
from regcheck.spec import LoadedSpec
from regcheck.spec.schema import CsvData, InlineData, NpzData, Synthetic, SyntheticData

Array = NDArray[np.float64]

MOST_NUMBERS = 500_000_000
"""Features times rows that are made or read: 4 GB in float64."""


class Rows(NamedTuple):
    """X (n, d), y (n,), both float64 and finite, and the d features' names."""

    X: Array
    y: Array
    features: tuple[str, ...]


def load_rows(loaded: LoadedSpec) -> Rows:
    """Load a spec's rows, test rows included.

    Raises:
        InputError: a file or a number in it is not as it must be.
    """
    data = loaded.spec.data
    if isinstance(data, CsvData):
        rows = from_csv(loaded, data)
    elif isinstance(data, NpzData):
        rows = from_npz(loaded.folder / data.npz, data.X, data.y)
    elif isinstance(data, SyntheticData):
        rows = synthetic(loaded, data.synthetic)
    else:
        assert isinstance(data, InlineData)
        rows = named(np.array(data.X, dtype=np.float64), np.array(data.y, dtype=np.float64))
    if loaded.spec.model == "logistic":
        check_labels(loaded, rows.y)
    return rows


def named(X: Array, y: Array) -> Rows:
    """Name features that have no names: x1, x2 and so on."""
    return Rows(X, y, tuple(f"x{index + 1}" for index in range(X.shape[1])))


def from_csv(loaded: LoadedSpec, data: CsvData) -> Rows:
    """Take the target and the features of a CSV file."""
    table = read_csv(loaded.folder / data.csv)
    target = column(loaded, table, ("data", "target"), data.target)
    if data.features is None:
        features = [index for index in numeric_columns(table) if index != target]
        if not features:
            raise refused(
                table.path, 1, "no column but the target is numeric, so there are no features"
            )
    else:
        features = [
            column(loaded, table, ("data", "features", position), name)
            for position, name in enumerate(data.features)
        ]
    bad: list[Complaint] = []
    X = np.array([numbers(table, index, bad) for index in features], dtype=np.float64).T
    y = labels(loaded, table, target, data.positive, bad)
    raise_some(sorted(bad, key=lambda complaint: complaint.place.line or 0))
    return Rows(np.ascontiguousarray(X), y, tuple(table.header[index] for index in features))


def column(loaded: LoadedSpec, table: Table, path: tuple[str | int, ...], name: str) -> int:
    """Find the one column that has a name."""
    found = table.header.count(name)
    if found == 1:
        return table.header.index(name)
    problem = (
        f"{table.path.name} has {found} columns of this name"
        if found
        else (f"no column `{name}` in {table.path.name}; {suggest(name, table.header)}")
    )
    raise InputError([loaded.complaint(path, problem)])


def numbers(table: Table, index: int, bad: list[Complaint]) -> list[float]:
    """Read a column as numbers; cells that are none are added to `bad`."""
    values = []
    for row, cells in enumerate(table.rows):
        value = to_number(cells[index])
        if value is None:
            bad.append(Complaint(table.place(row), bad_cell(table, index, row)))
            value = 0.0
        values.append(value)
    return values


def bad_cell(table: Table, index: int, row: int) -> str:
    """Say what is wrong with a cell that must be a number."""
    cell = table.rows[row][index]
    where = f"row {row + 1}, column `{table.header[index]}`"
    if is_missing(cell):
        return f"{where}: missing value ({cell!r}); remove the row or fill it in"
    hint = "; write a decimal point" if to_number(cell.replace(",", ".")) is not None else ""
    return f"{where}: must be a finite number, got {cell!r}{hint}"


def labels(
    loaded: LoadedSpec, table: Table, index: int, positive: str | None, bad: list[Complaint]
) -> Array:
    """Read the target: numbers as they stand, or 1 where the label is `positive` and else 0."""
    if positive is None:
        cells = {cells[index].strip() for cells in table.rows if not is_missing(cells[index])}
        if loaded.spec.model == "logistic" and all(to_number(cell) is None for cell in cells):
            raise InputError([loaded.complaint(("data", "target"), ask_for_positive(cells))])
        return np.array(numbers(table, index, bad), dtype=np.float64)
    if loaded.spec.model != "logistic":
        text = f"only the model logistic has a positive label, not {loaded.spec.model}"
        raise InputError([loaded.complaint(("data", "positive"), text)])
    bad.extend(
        Complaint(table.place(row), bad_cell(table, index, row))
        for row, cells in enumerate(table.rows)
        if is_missing(cells[index])
    )
    y = np.array([same_label(cells[index], positive) for cells in table.rows], dtype=np.float64)
    if not y.any():
        present = sorted({cells[index].strip() for cells in table.rows})
        hint = suggest(positive, present[:20])
        text = f"no row of {table.path.name} has the label `{positive}`; {hint}"
        raise InputError([loaded.complaint(("data", "positive"), text)])
    return y


def ask_for_positive(labels: set[str]) -> str:
    """Ask which of a target's labels counts as 1."""
    some = ", ".join(sorted(labels)[:5]) + (", .." if len(labels) > 5 else "")
    return (
        f"holds labels ({some}); say which one is 1 with `positive: {min(labels, default='LABEL')}`"
    )


def same_label(cell: str, positive: str) -> bool:
    """Say whether a cell is the positive label, as text or as the same number."""
    text = cell.strip()
    if text == positive:
        return True
    value = to_number(text)
    return value is not None and value == to_number(positive)


def from_npz(path: Path, X_key: str, y_key: str) -> Rows:
    """Read X (n, d) or (n,), and y (n,) or (n, 1), from an .npz file. Pickles are never loaded."""
    if not path.is_file():
        raise refused(path, None, "no such file; paths are relative to the spec")
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise refused(path, None, "a single array; an .npz archive with X and y is needed")
            for key in (X_key, y_key):
                if key not in archive.files:
                    raise refused(path, None, f"no array `{key}`; {suggest(key, archive.files)}")
            X, y = archive[X_key], archive[y_key]
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        if "pickle" in str(error).lower():
            text = "holds Python objects, which are not loaded; save plain numeric arrays"
        else:
            text = "cannot be read as an .npz archive"
        raise refused(path, None, text) from None
    X = plain_numbers(path, X_key, X)
    y = plain_numbers(path, y_key, y)
    X = X[:, None] if X.ndim == 1 else X
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if X.ndim != 2 or y.ndim != 1 or len(X) != len(y):
        text = f"`{X_key}` must be (n, d) and `{y_key}` (n,), got {X.shape} and {y.shape}"
        raise refused(path, None, text)
    if X.size == 0:
        raise refused(path, None, f"`{X_key}` holds no numbers: its shape is {X.shape}")
    return named(X, y)


def plain_numbers(path: Path, key: str, array: NDArray[np.generic]) -> Array:
    """Take an array of finite real numbers as float64; complain with row and column otherwise."""
    if array.dtype.kind not in "fiub":
        raise refused(path, None, f"`{key}` must hold real numbers, got {array.dtype}")
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(array, dtype=np.float64)
    bad = np.argwhere(~np.isfinite(values))
    raise_some(
        [
            Complaint(
                Place(str(path)),
                f"`{key}`: {at(index)}: missing or infinite value ({array[tuple(index)]})",
            )
            for index in bad[:100]
        ]
    )
    return values


def at(index: NDArray[np.intp]) -> str:
    """Write an index as row and column, counted from 1."""
    row, *rest = (int(part) + 1 for part in index)
    return f"row {row}" + "".join(f", column {part}" for part in rest)


def synthetic(loaded: LoadedSpec, data: Synthetic) -> Rows:
    """Make rows from a seed.

    X ~ N(0, 1), w ~ N(0, 1), b ~ N(0, 1); linear: y = Xw + b + N(0, 1)/10; logistic: y is 1 with
    probability σ(Xw + b).
    """
    if data.rows * data.features > MOST_NUMBERS:
        text = f"{data.rows} x {data.features} numbers are more than {MOST_NUMBERS:,}"
        raise InputError([loaded.complaint(("data", "synthetic"), text)])
    random = np.random.default_rng(data.seed)
    X = random.normal(size=(data.rows, data.features))
    w, b = random.normal(size=data.features), random.normal()
    z = X @ w + b
    if loaded.spec.model == "linear":
        return named(X, z + 0.1 * random.normal(size=data.rows))
    return named(X, (random.random(data.rows) < 1 / (1 + np.exp(-z))).astype(np.float64))


def check_labels(loaded: LoadedSpec, y: Array) -> None:
    """Refuse targets that are no probabilities: torch's BCE losses take 0 to 1."""
    outside = np.flatnonzero((y < 0) | (y > 1))
    if len(outside) == 0:
        return
    first = int(outside[0])
    path = ("data", "target") if isinstance(loaded.spec.data, CsvData) else ("data", "y")
    found = f"got {y[first]:g} in row {first + 1}"
    hint = "; turn -1 and 1 into 0 and 1" if set(np.unique(y)) <= {-1.0, 1.0} else ""
    if isinstance(loaded.spec.data, CsvData):
        hint = hint or "; name the label that is 1 with `positive`"
    text = f"the model logistic needs targets of 0 and 1, {found}{hint}"
    raise InputError([loaded.complaint(path, text)])
