"""Targets that are labels: of one class against the rest, or of K classes from 0 on."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np

from regcheck.errors import shortened, suggest
from regcheck.problem.data.csv_columns import MISSING, POSITIVE, Columns
from regcheck.problem.data.files import is_missing, read_rows, to_number
from regcheck.problem.data.npz import Numbers
from regcheck.spec import LoadedSpec
from regcheck.spec.sections.data import CsvData


def head_of(loaded: LoadedSpec) -> str:
    """Return what the outputs of a spec's model are taken for; empty for the user's own."""
    architecture = loaded.spec.architecture
    return architecture.head if architecture is not None else ""


def labels(loaded: LoadedSpec, columns: Columns, index: int, positive: str | None) -> Numbers:
    """Read the target: numbers as they stand, or 1 where the label is `positive` and else 0.

    Not finite where a cell is neither.
    """
    path, head = columns.path, head_of(loaded)
    column: Numbers = columns.values[:, index].copy()
    if positive is None:
        if columns.is_text(index):
            present = sorted(one for one in labels_in(path, index) if not is_missing(one))
            some = ", ".join(map(in_yaml, present[:5])) + (", .." if len(present) > 5 else "")
            remedy = "number them in the file, from 0 on, or set `model: softmax`"
            if head == "logistic":
                remedy = "name the one that is 1 with `positive: LABEL`"
            raise loaded.error(("data", "target"), f"holds labels ({some}); {remedy}")
        return column
    if head != "logistic":
        model = loaded.spec.model
        text = "only the model logistic has a positive label, not "
        text += model if isinstance(model, str) else f"a {head} head"
        raise loaded.error(("data", "positive"), text)
    missing, number = np.isnan(column), to_number(positive)
    marks = [POSITIVE] if number is None else [POSITIVE, number]
    y: Numbers = np.isin(column, marks).astype(np.float64)
    if not y.any() and not (is_missing(positive) and missing.any()):
        name, hint = shortened(positive), suggest(positive, sorted(labels_in(path, index)))
        text = f"no row of {path.name} has the label `{name}`; {hint}"
        raise loaded.error(("data", "positive"), text)
    y[missing] = MISSING
    return y


def text_labels(columns: Columns, index: int) -> tuple[Numbers, tuple[str, ...]]:
    """Number a column of labels: 0 for the first of them in sorted order; with the labels.

    Not finite where a cell is missing.
    """
    rows = islice(read_rows(columns.path), 1, None)
    cells = [cells[index].strip() for _, cells in rows]
    classes = sorted({cell for cell in cells if not is_missing(cell)})
    numbers = {name: float(place) for place, name in enumerate(classes)}
    return np.array([numbers.get(cell, MISSING) for cell in cells]), tuple(classes)


def labels_in(path: Path, index: int) -> set[str]:
    """Read the different texts of a column."""
    return {cells[index].strip() for _, cells in islice(read_rows(path), 1, None)}


def in_yaml(label: str) -> str:
    """Write a label as a spec must: in quotes where YAML has another meaning for the word."""
    label = shortened(label)
    return f"'{label}'" if label.lower() in ("true", "false", "null", "~") else label


def numbered_classes(
    loaded: LoadedSpec, y: Numbers, names: tuple[str, ...]
) -> tuple[Numbers, tuple[str, ...]]:
    """Return labels of classes as whole numbers, and the classes' names.

    `names` are those of a text column; numbers name themselves.

    Raises:
        InputError: they are no labels from 0 to K − 1, or there is not one weight for each class.
    """
    of_csv, weight = isinstance(loaded.spec.data, CsvData), loaded.spec.loss_options.weight
    target = ("data", "target" if of_csv else "y")
    odd = np.flatnonzero((y < 0) | (y != np.round(y)))
    if len(odd):
        text = f"class labels must be 0, 1, 2, .., got {y[odd[0]]:g} in row {odd[0] + 1}"
        raise loaded.error(target, text)
    present = np.unique(y)
    classes = names or tuple(map(str, range(len(present))))
    if weight is not None and not names and present[-1] < len(weight):
        classes = tuple(map(str, range(len(weight))))
    elif present[-1] >= len(present):
        absent = next(label for label in range(len(present)) if present[label] != label)
        text = f"the labels of {len(present)} classes must be 0 to {len(present) - 1}"
        text += f", got {present[-1]:g}, and none is {absent}"
        raise loaded.error(target, text)
    if weight is not None and len(weight) != len(classes):
        text = f"must have {len(classes)} numbers, one for each class, got {len(weight)}"
        raise loaded.error(("loss", "cross_entropy", "weight"), text)
    return y.astype(np.int64), classes


def check_labels(loaded: LoadedSpec, y: Numbers) -> None:
    """Refuse targets that are no probabilities: torch's BCE losses take 0 to 1."""
    outside = np.flatnonzero((y < 0) | (y > 1))
    if len(outside) == 0:
        return
    first, of_csv = int(outside[0]), isinstance(loaded.spec.data, CsvData)
    found = f"got {y[first]:g} in row {first + 1}"
    hint = "; name the label that is 1 with `positive`" if of_csv else ""
    if set(np.unique(y)) <= {-1.0, 1.0}:
        hint = "; replace -1 and 1 by 0 and 1"
    model = loaded.spec.model
    who = f"the model {model}" if isinstance(model, str) else "a logistic head"
    text = f"{who} needs targets from 0 to 1, {found}{hint}"
    raise loaded.error(("data", "target" if of_csv else "y"), text)
