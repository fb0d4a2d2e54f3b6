"""Sources to arrays: CSV, .npz, made-up and inline rows become X and y.

X is (n, d) and y (n,), in float64. For a model of the user's own, the arrays of an .npz file stay
as they are there.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from regcheck.errors import Complaint, Place, shortened, suggest
from regcheck.problem.data.csv_columns import Columns, read_columns
from regcheck.problem.data.files import (
    MOST_COMPLAINTS,
    data_file,
    is_missing,
    raise_some,
    read_header,
    read_rows,
    refused,
    to_number,
)
from regcheck.problem.data.labels import (
    check_labels,
    head_of,
    labels,
    numbered_classes,
    text_labels,
)
from regcheck.problem.data.npz import Numbers, open_npz, read_array
from regcheck.spec import LoadedSpec
from regcheck.spec.sections.data import CsvData, InlineData, NpzData, Synthetic, SyntheticData
from regcheck.spec.sections.fields import shown

MOST_NUMBERS = 500_000_000
"""Features times rows that can be made: 4 GB in float64."""


SYNTHETIC_CLASSES = 3
"""Classes of made-up labels."""


class Rows(NamedTuple):
    """X (n, d), y (n,), both float64 and finite, and the d features' names.

    Where the targets are labels of K classes, y is int64 from 0 to K − 1, and `classes` holds their
    K names, which are the numbers themselves where the data have no others.

    For a model of the user's own, X and y may be (n, ..) of any shape, float64 or int64; where X is
    not (n, d), there are no names.
    """

    X: Numbers
    y: Numbers
    features: tuple[str, ...]
    classes: tuple[str, ...] = ()


def load_rows(loaded: LoadedSpec) -> Rows:
    """Load a spec's rows, test rows included.

    Raises:
        InputError: a file or a number in it is not as it must be.
    """
    data = loaded.spec.data
    if isinstance(data, CsvData):
        rows = from_csv(loaded, data)
    elif isinstance(data, NpzData):
        rows = from_npz(loaded, data)
    elif isinstance(data, SyntheticData):
        rows = synthetic(loaded, data.synthetic)
    else:
        assert isinstance(data, InlineData)
        rows = named(np.array(data.X, dtype=np.float64), np.array(data.y, dtype=np.float64))
    head = head_of(loaded)
    if head == "logistic":
        check_labels(loaded, rows.y)
    if head == "softmax":
        y, classes = numbered_classes(loaded, rows.y, rows.classes)
        rows = rows._replace(y=y, classes=classes)
    return rows


def named(X: Numbers, y: Numbers) -> Rows:
    """Name features that have no names: x1, x2 and so on."""
    features = X.shape[1] if X.ndim == 2 else 0
    return Rows(X, y, tuple(f"x{index + 1}" for index in range(features)))


def from_csv(loaded: LoadedSpec, data: CsvData) -> Rows:
    """Take the target and the features of a CSV file."""
    path = data_file(loaded, "csv", data.csv)
    columns = read_columns(path, data.positive)
    target = find_column(loaded, columns, ("data", "target"), data.target)
    if data.features is None:
        features = [index for index in columns.numeric() if index != target]
        if not features:
            text = "no column but the target is numeric, so there are no features"
            raise refused(path, 1, text)
    else:
        features = [
            find_column(loaded, columns, ("data", "features", position), name)
            for position, name in enumerate(data.features)
        ]
    X = np.take(columns.values, features, axis=1)
    classes: tuple[str, ...] = ()
    if head_of(loaded) == "softmax" and columns.is_text(target):
        y, classes = text_labels(columns, target)
    else:
        y = labels(loaded, columns, target, data.positive)
    bad = ~np.column_stack([np.isfinite(X), np.isfinite(y)])
    if bad.any():
        raise_bad_cells(path, [*features, target], bad)
    return Rows(X, y, tuple(columns.header[index] for index in features), classes)


def find_column(
    loaded: LoadedSpec, columns: Columns, path: tuple[str | int, ...], name: str
) -> int:
    """Find the column that a path of the spec names."""
    if name in columns.header:
        return columns.header.index(name)
    hint = suggest(name, columns.header)
    raise loaded.error(path, f"no column `{shortened(name)}` in {columns.path.name}; {hint}")


def raise_bad_cells(path: Path, columns: list[int], bad: NDArray[np.bool_]) -> None:
    """Read a file once more, and complain of its first bad cells, in its order.

    Args:
        path: the file.
        columns: the columns that are used.
        bad: (n, columns), which of their cells are of no use.
    """
    rows = read_rows(path)
    header = read_header(next(rows)[1])
    complaints, read = [], 0
    for row, position in np.argwhere(bad)[:MOST_COMPLAINTS].tolist():
        if row + 1 > read:
            line, cells = next(islice(rows, row - read, None))
            read = row + 1
        index = columns[position]
        where = f"row {row + 1}, column `{shortened(header[index])}`"
        complaints.append(Complaint(Place(str(path), line), f"{where}: {bad_cell(cells[index])}"))
    raise_some(complaints, left_out=int(bad.sum()) - len(complaints))


def bad_cell(cell: str) -> str:
    """Describe what is wrong with a cell that must be a number."""
    if is_missing(cell):
        return f"missing value ({shown(cell)}); fill it in or remove the row"
    comma = to_number(cell.replace(",", ".")) is not None
    remedy = "write a decimal point" if comma else "fix it, or leave the column out"
    return f"must be a finite number, got {shown(cell)}; {remedy}"


def from_npz(loaded: LoadedSpec, data: NpzData) -> Rows:
    """Read X (n, d) or (n,), and y (n,) or (n, 1), of an .npz file, in float64.

    For a model of the user's own: X (n, ..) and y (n, ..) as they are.
    """
    path = data_file(loaded, "npz", data.npz)
    with open_npz(path) as archive:
        X, y = read_array(path, archive, data.X), read_array(path, archive, data.y)
    if loaded.spec.model is None:
        fit = X.ndim >= 1 and y.ndim >= 1
        expected = f"`{data.X}` and `{data.y}` must have one entry for each sample, (n, ..) both"
    else:
        X, y = X.astype(np.float64, copy=False), y.astype(np.float64, copy=False)
        X = X[:, None] if X.ndim == 1 else X
        y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
        fit = X.ndim == 2 and y.ndim == 1
        expected = f"`{data.X}` must be (n, d) and `{data.y}` (n,)"
    if not fit or len(X) != len(y):
        raise refused(path, None, f"{expected}, got {X.shape} and {y.shape}")
    if X.size == 0:
        raise refused(path, None, f"`{data.X}` holds no numbers: its shape is {X.shape}")
    return named(X, y)


def synthetic(loaded: LoadedSpec, data: Synthetic) -> Rows:
    """Make rows from a seed.

    X ~ N(0, 1), w ~ N(0, 1), b ~ N(0, 1); by the model's head, linear: y = Xw + b + N(0, 1)/10;
    logistic: y is 1 with probability σ(Xw + b); softmax: `softmax_labels`.
    """
    if data.rows * data.features > MOST_NUMBERS:
        text = f"{data.rows:,} × {data.features:,} numbers are too many; at most {MOST_NUMBERS:,}"
        raise loaded.error(("data", "synthetic"), text)
    random = np.random.default_rng(data.seed)
    X = random.normal(size=(data.rows, data.features))
    w, b = random.normal(size=data.features), random.normal()
    z = X @ w + b
    head = head_of(loaded)
    if head == "softmax":
        return named(X, softmax_labels(random, X).astype(np.float64))
    if head in ("linear", ""):
        return named(X, z + 0.1 * random.normal(size=data.rows))
    return named(X, (random.random(data.rows) < 1 / (1 + np.exp(-z))).astype(np.float64))


def softmax_labels(random: np.random.Generator, X: Numbers) -> Numbers:
    """Draw labels y of 3 classes, P(y = j) = softmax(X Wᵀ)ⱼ with W ~ N(0, 1); all 3 occur.

    Of logits with independent noise −log(−log U), the largest is j with that probability.
    """
    z = X @ random.normal(size=(X.shape[1], SYNTHETIC_CLASSES))
    y: Numbers = (z - np.log(-np.log(random.random(z.shape)))).argmax(axis=1)
    y[:SYNTHETIC_CLASSES] = np.arange(len(y[:SYNTHETIC_CLASSES]))
    return y
