"""CSV to columns of numbers, as fast as its text allows.

Blocks of lines are read in one of three ways, each for what the one before it cannot read, and all
with the same result, which is float(cell) for each cell:

1. A block of plain numbers is an array in JSON, but for its line ends.
2. In a block with text or quotes, a column of plain numbers is.
3. What is left is read cell by cell, each different text once.
"""

from __future__ import annotations

import csv
import io
import math
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic_core import from_json

from regcheck.errors import InputError
from regcheck.problem.csv_rows import (
    check_header,
    is_blank,
    is_missing,
    read_header,
    resembles_number,
    survey,
    to_number,
)
from regcheck.problem.files import refused

BLOCK = 2**17
"""Bytes of a block, up to the end of a line: what fits into a processor's cache is read fastest."""

MISSING, POSITIVE, OTHER = math.nan, math.inf, -math.inf
"""What stands for a cell that is no finite number: none at all, the positive label, other text."""


NEGATIVE_ZERO = re.compile(rb"-0(?![.0-9eE])")


class Columns(NamedTuple):
    """The columns of a CSV file.

    Attributes:
        header: their names.
        values: (n, columns), float64; MISSING, POSITIVE or OTHER where a cell is no finite number.
        resembling: the columns in which some other text was meant to be a number: `1,5`, `inf`.
    """

    path: Path
    header: list[str]
    values: NDArray[np.float64]
    resembling: set[int]

    def numeric(self) -> list[int]:
        """Find the columns that hold numbers, as against text.

        A column of numbers with a few bad cells is found too, so that these are told: to leave out
        the column without a word would train on other features than the user thinks. So is one
        that is empty throughout.
        """
        found = []
        for index, name in enumerate(self.header):
            if self.is_text(index):
                continue
            if not name:
                text = f"column {index + 1} has no name; name it, or list the `features`"
                raise refused(self.path, 1, f"{text} to train on")
            found.append(index)
        return found

    def is_text(self, index: int) -> bool:
        """Say whether a column has cells, and none of them is or resembles a number."""
        column = self.values[:, index]
        numbers = index in self.resembling or bool(np.isfinite(column).any())
        return not numbers and not bool(np.isnan(column).all())


class UnusualError(Exception):
    """A file is not as it must be; where, is for `survey` to say."""


def read_columns(path: Path, positive: str | None = None) -> Columns:
    """Read a CSV file with a header; quoted fields may hold commas and line breaks.

    Raises:
        InputError: not readable, not UTF-8, no header, no rows, or rows of unequal length.
    """
    reading = Reading(positive)
    try:
        with path.open("rb") as file:
            for block in blocks(file):
                reading.take(block, file)
        check_header(path, reading.header)
        if not reading.numbers:
            raise UnusualError
    except (InputError, OSError, UnicodeDecodeError, UnusualError, csv.Error):
        survey(path)
        raise refused(path, None, "changed while it was read; run again") from None
    values = np.frombuffer(reading.numbers).reshape(-1, len(reading.header))
    return Columns(path, reading.header, values, reading.resembling)


def blocks(file: BinaryIO) -> Iterator[bytes]:
    """Read a file in blocks of whole lines."""
    while block := file.read(BLOCK) + file.readline():
        yield block


class Reading:
    """A CSV file while it is read."""

    def __init__(self, positive: str | None) -> None:
        self.positive = positive
        self.header: list[str] = []
        self.numbers = array("d")
        self.texts: set[int] = set()  # columns in which something else than numbers came
        self.resembling: set[int] = set()

    def take(self, block: bytes, file: BinaryIO) -> None:
        """Take a block's rows; the first row of the file is its header."""
        if self.header:
            numbers = plain_rows(block, len(self.header))
            if numbers is not None:
                self.numbers.extend(numbers)
                return
            rows = cells_of(block, file)
        else:
            rows = cells_of(block.removeprefix(b"\xef\xbb\xbf"), file)
            self.header, rows = read_header(rows[0]) if rows else [], rows[1:]
        if set(map(len, rows)) - {len(self.header)}:
            raise UnusualError
        if rows:
            self.numbers.frombytes(self.values(rows).tobytes())

    def values(self, rows: list[list[str]]) -> NDArray[np.float64]:
        """Read rows of cells: (rows, columns)."""
        columns = list(zip(*rows, strict=True))
        values = np.empty((len(columns), len(rows)))
        plain = [index for index in range(len(columns)) if index not in self.texts]
        numbers = plain_cells(list(chain.from_iterable(columns[index] for index in plain)))
        if numbers:
            values[plain] = np.frombuffer(numbers).reshape(-1, len(rows))
            plain = []
        for index in [*plain, *self.texts]:
            values[index] = self.column(index, columns[index])
        return values.T

    def column(self, index: int, cells: Sequence[str]) -> NDArray[np.float64]:
        """Read a column's cells."""
        numbers = plain_cells(cells)
        if numbers is not None:
            return np.frombuffer(numbers)
        self.texts.add(index)
        codes = {cell: self.code(index, cell) for cell in set(cells)}
        return np.array([codes[cell] for cell in cells])

    def code(self, index: int, cell: str) -> float:
        """Give a cell's number, or what stands for it."""
        number = to_number(cell)
        if number is not None:
            return number
        if is_missing(cell):
            return MISSING
        if resembles_number(cell):
            self.resembling.add(index)
        return POSITIVE if cell.strip() == self.positive else OTHER


def cells_of(block: bytes, file: BinaryIO) -> list[list[str]]:
    """Read a block's rows of text cells; where it ends within quotes, it is read on.

    Raises:
        UnicodeDecodeError, csv.Error: it is no text, or no CSV.
    """
    while True:
        try:
            return [cells for cells in split(block) if not is_blank(cells)]
        except csv.Error:
            more = file.read(len(block)) + file.readline()
            if not more:
                raise
            block += more


def split(block: bytes) -> Iterable[list[str]]:
    """Split lines into cells, in the plain way where there are neither quotes nor odd line ends."""
    text = block.decode()
    lines = text.split("\n")
    if b'"' in block or b"\r" in block or max(map(len, lines)) > csv.field_size_limit():
        return csv.reader(io.StringIO(text, newline=""), strict=True)
    return [line.split(",") for line in lines]


def plain_rows(block: bytes, width: int) -> array[float] | None:
    """Read lines of `width` plain numbers each, row by row; None where they are anything else.

    A `null` in the place of each line end shows whether all rows have their cells.
    """
    if b"\r" in block:
        block = block.replace(b"\r\n", b"\n")
        if b"\r" in block:
            return None
    cells = in_json(block.rstrip().replace(b"\n", b",null,") + b",null")
    ends = cells[width :: width + 1]
    if not cells or ends.count(None) * (width + 1) != len(cells):
        return None
    del cells[width :: width + 1]
    return exact(cells, block)


def plain_cells(cells: Sequence[str]) -> array[float] | None:
    """Read cells that are all numbers; None where one is anything else."""
    text = ",".join(cells)
    found = in_json(text.encode())
    if found and len(found) == len(cells):
        numbers = exact(found, text.encode())
        if numbers is not None:
            return numbers
    if "_" in text:
        return None
    try:
        numbers = array("d", map(float, cells))
    except ValueError:
        return None
    return numbers if np.isfinite(np.frombuffer(numbers)).all() else None


def in_json(text: bytes) -> list[Any]:
    """Read text as the entries of an array in JSON; none where it is not.

    pydantic's reader (github.com/pydantic/jiter) rounds decimal numbers correctly, as float does,
    in a fifth of the time. The words true and false, which it would read, are no numbers.
    """
    if b"t" in text or b"f" in text:
        return []
    try:
        found = from_json(b"[" + text + b"]", allow_inf_nan=False)
    except ValueError:
        return []
    assert isinstance(found, list)
    return found


def exact(found: list[Any], text: bytes) -> array[float] | None:
    """Give the numbers in `text`, as float reads them; None where one is no finite number.

    JSON's -0 is the integer 0, which has lost its sign: then there are more signs in the text than
    among the numbers, as there are with negative exponents.
    """
    try:
        numbers = array("d", found)
    except (OverflowError, TypeError):
        return None
    values = np.frombuffer(numbers)
    if not np.isfinite(values).all():
        return None
    signs = np.count_nonzero(np.frombuffer(text, np.uint8) == ord("-"))
    if signs != np.count_nonzero(np.signbit(values)) and NEGATIVE_ZERO.search(text):
        return None
    return numbers
