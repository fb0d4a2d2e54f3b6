"""Sources to arrays: CSV, .npz, made-up and inline rows become X and y.

X is (n, d) and y (n,), in float64. For a model of the user's own, the arrays of an .npz file stay
as they are there.
"""

from __future__ import annotations

import zipfile
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from regcheck.errors import Complaint, InputError, Place, shortened, suggest
from regcheck.problem.csv_columns import MISSING, POSITIVE, Columns, read_columns
from regcheck.problem.csv_rows import find_column, is_missing, read_header, read_rows, to_number
from regcheck.problem.files import MOST_COMPLAINTS, data_file, raise_some, refused
from regcheck.problem.npz import open_npz, read_shape
from regcheck.spec import LoadedSpec
from regcheck.spec.data import CsvData, InlineData, NpzData, Synthetic, SyntheticData
from regcheck.spec.fields import shown

Array = NDArray[np.float64]
Numbers = NDArray[Any]
"""Float64 or int64."""

MOST_NUMBERS = 500_000_000
"""Features times rows that can be made: 4 GB in float64."""


class Rows(NamedTuple):
    """X (n, d), y (n,), both float64 and finite, and the d features' names.

    For a model of the user's own, X and y may be (n, ..) of any shape, float64 or int64; where X is
    not (n, d), there are no names.
    """

    X: Numbers
    y: Numbers
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
        path = data_file(loaded, "npz", data.npz)
        rows = (as_it_is if loaded.spec.model is None else from_npz)(path, data.X, data.y)
    elif isinstance(data, SyntheticData):
        rows = synthetic(loaded, data.synthetic)
    else:
        assert isinstance(data, InlineData)
        rows = named(np.array(data.X, dtype=np.float64), np.array(data.y, dtype=np.float64))
    if loaded.spec.model == "logistic":
        check_labels(loaded, rows.y)
    return rows


def named(X: Numbers, y: Numbers) -> Rows:
    """Name features that have no names: x1, x2 and so on."""
    features = X.shape[1] if X.ndim == 2 else 0
    return Rows(X, y, tuple(f"x{index + 1}" for index in range(features)))


def from_csv(loaded: LoadedSpec, data: CsvData) -> Rows:
    """Take the target and the features of a CSV file."""
    path = data_file(loaded, "csv", data.csv)
    columns = read_columns(path, data.positive)
    header = columns.header
    target = find_column(loaded, path, header, ("data", "target"), data.target)
    if data.features is None:
        features = [index for index in columns.numeric() if index != target]
        if not features:
            text = "no column but the target is numeric, so there are no features"
            raise refused(path, 1, text)
    else:
        features = [
            find_column(loaded, path, header, ("data", "features", position), name)
            for position, name in enumerate(data.features)
        ]
    X = np.take(columns.values, features, axis=1)
    y = labels(loaded, columns, target, data.positive)
    bad = ~np.column_stack([np.isfinite(X), np.isfinite(y)])
    if bad.any():
        raise_bad_cells(path, [*features, target], bad)
    return Rows(X, y, tuple(header[index] for index in features))


def labels(loaded: LoadedSpec, columns: Columns, index: int, positive: str | None) -> Array:
    """Read the target: numbers as they stand, or 1 where the label is `positive` and else 0.

    Not finite where a cell is neither.
    """
    path = columns.path
    column: Array = columns.values[:, index].copy()
    if positive is None:
        if loaded.spec.model == "logistic" and columns.is_text(index):
            present = {label for label in labels_in(path, index) if not is_missing(label)}
            raise InputError([loaded.complaint(("data", "target"), ask_for_positive(present))])
        return column
    if loaded.spec.model != "logistic":
        text = f"only the model logistic has a positive label, not {loaded.spec.model}"
        raise InputError([loaded.complaint(("data", "positive"), text)])
    missing, number = np.isnan(column), to_number(positive)
    marks = [POSITIVE] if number is None else [POSITIVE, number]
    y: Array = np.isin(column, marks).astype(np.float64)
    if not y.any() and not (is_missing(positive) and missing.any()):
        name, hint = shortened(positive), suggest(positive, sorted(labels_in(path, index)))
        text = f"no row of {path.name} has the label `{name}`; {hint}"
        raise InputError([loaded.complaint(("data", "positive"), text)])
    y[missing] = MISSING
    return y


def labels_in(path: Path, index: int) -> set[str]:
    """Read the different texts of a column."""
    rows = read_rows(path)
    next(rows)
    return {row.cells[index].strip() for row in rows}


def raise_bad_cells(path: Path, columns: list[int], bad: NDArray[np.bool_]) -> None:
    """Read a file once more, and complain of its first bad cells, in its order.

    Args:
        path: the file.
        columns: the columns that are used.
        bad: (n, columns), which of their cells are of no use.
    """
    rows = read_rows(path)
    header = read_header(next(rows).cells)
    complaints, came = [], 0
    for row, position in np.argwhere(bad)[:MOST_COMPLAINTS].tolist():
        if row + 1 > came:
            line, cells = next(islice(rows, row - came, None))
            came = row + 1
        index = columns[position]
        where = f"row {row + 1}, column `{shortened(header[index])}`"
        complaints.append(Complaint(Place(str(path), line), f"{where}: {bad_cell(cells[index])}"))
    raise_some(complaints, left_out=int(bad.sum()) - len(complaints))


def bad_cell(cell: str) -> str:
    """Say what is wrong with a cell that must be a number."""
    if is_missing(cell):
        return f"missing value ({shown(cell)}); fill it in or remove the row"
    comma = to_number(cell.replace(",", ".")) is not None
    remedy = "write a decimal point" if comma else "fix it, or leave the column out"
    return f"must be a finite number, got {shown(cell)}; {remedy}"


def ask_for_positive(labels: set[str]) -> str:
    """Ask which of a target's labels counts as 1."""
    some = [in_yaml(shortened(label)) for label in sorted(labels)[:5]]
    more = ", .." if len(labels) > 5 else ""
    return f"holds labels ({', '.join(some)}{more}); say which one is 1 with `positive: LABEL`"


def in_yaml(label: str) -> str:
    """Write a label as a spec must: in quotes where YAML has another meaning for the word."""
    return f"'{label}'" if label.lower() in ("true", "false", "null", "~") else label


def from_npz(path: Path, X_key: str, y_key: str) -> Rows:
    """Read X (n, d) or (n,), and y (n,) or (n, 1), from an .npz file, in float64."""
    X, y = (array.astype(np.float64, copy=False) for array in read_both(path, X_key, y_key))
    X = X[:, None] if X.ndim == 1 else X
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if X.ndim != 2 or y.ndim != 1 or len(X) != len(y):
        text = f"`{X_key}` must be (n, d) and `{y_key}` (n,), got {X.shape} and {y.shape}"
        raise refused(path, None, text)
    check_size(path, X_key, X)
    return named(X, y)


def as_it_is(path: Path, X_key: str, y_key: str) -> Rows:
    """Read X (n, ..) and y (n, ..) of any shapes from an .npz file."""
    X, y = read_both(path, X_key, y_key)
    if X.ndim < 1 or y.ndim < 1 or len(X) != len(y):
        text = f"`{X_key}` and `{y_key}` must have a row for each sample, (n, ..) both"
        raise refused(path, None, f"{text}, got {X.shape} and {y.shape}")
    check_size(path, X_key, X)
    return named(X, y)


def check_size(path: Path, key: str, X: Numbers) -> None:
    """Refuse an array without numbers."""
    if X.size == 0:
        raise refused(path, None, f"`{key}` holds no numbers: its shape is {X.shape}")


def read_both(path: Path, X_key: str, y_key: str) -> tuple[Numbers, Numbers]:
    """Read two arrays of an .npz file. Pickles are never loaded."""
    with open_npz(path) as archive:
        return read_array(path, archive, X_key), read_array(path, archive, y_key)


def read_array(path: Path, archive: zipfile.ZipFile, key: str) -> Numbers:
    """Read an array of finite real numbers: integers and booleans as int64, others as float64.

    Raises:
        InputError: a number is missing, infinite, or too large for its dtype; it says which.
    """
    shape = read_shape(path, archive, key)
    with archive.open(f"{key}.npy") as member:
        array = np.lib.format.read_array(member, allow_pickle=False)
    if array.dtype.kind in "bi":
        return array.astype(np.int64).reshape(shape)
    if array.dtype.kind == "u" and array.max(initial=0) <= np.iinfo(np.int64).max:
        return array.astype(np.int64).reshape(shape)
    with np.errstate(over="ignore"):
        values: Array = array.astype(np.float64).reshape(shape)
    bad = np.argwhere(~np.isfinite(values))
    told = bad[:MOST_COMPLAINTS]
    raise_some(
        [
            Complaint(
                Place(str(path)),
                f"`{key}`{at(index)}: missing or infinite value ({values[tuple(index)]})",
            )
            for index in told
        ],
        left_out=len(bad) - len(told),
    )
    return values


def at(index: NDArray[np.intp]) -> str:
    """Write an index as row and column, counted from 1, or as NumPy does where it has more parts.

    Nothing for a lone number.
    """
    if len(index) > 2:
        return str(index.tolist())
    names = ("row", "column")
    return "".join(
        f", {name} {part + 1}" for name, part in zip(names, index.tolist(), strict=False)
    )


def synthetic(loaded: LoadedSpec, data: Synthetic) -> Rows:
    """Make rows from a seed.

    X ~ N(0, 1), w ~ N(0, 1), b ~ N(0, 1); linear: y = Xw + b + N(0, 1)/10; logistic: y is 1 with
    probability σ(Xw + b).
    """
    if data.rows * data.features > MOST_NUMBERS:
        text = f"{data.rows:,} × {data.features:,} numbers; at most {MOST_NUMBERS:,} can be made"
        raise InputError([loaded.complaint(("data", "synthetic"), text)])
    random = np.random.default_rng(data.seed)
    X = random.normal(size=(data.rows, data.features))
    w, b = random.normal(size=data.features), random.normal()
    z = X @ w + b
    if loaded.spec.model == "linear":
        return named(X, z + 0.1 * random.normal(size=data.rows))
    return named(X, (random.random(data.rows) < 1 / (1 + np.exp(-z))).astype(np.float64))


def check_labels(loaded: LoadedSpec, y: Numbers) -> None:
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
    text = f"the model logistic needs targets from 0 to 1, {found}{hint}"
    raise InputError([loaded.complaint(path, text)])
