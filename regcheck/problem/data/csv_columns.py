"""CSV to columns of numbers, as fast as its text allows.

A block of lines of plain numbers is an array in JSON, but for its line ends, and is read as that.
Of any other block, so is each column that is plain numbers, and the rest cell by cell. The result
is the same: float(cell) for each cell.
"""

from __future__ import annotations

import csv
import io
import math
import re
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic_core import from_json

from regcheck.errors import InputError
from regcheck.problem.data.files import (
    check_header,
    is_blank,
    is_missing,
    read_header,
    refused,
    resembles_number,
    survey,
    to_number,
)

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
        """Return the columns that hold numbers, as against text.

        A column of numbers with a few bad cells is one, so that these are reported: to leave out
        the column without a word would train on other features than the user thinks. So is one
        that is empty throughout.
        """
        found = [index for index in range(len(self.header)) if not self.is_text(index)]
        for index in found:
            if not self.header[index]:
                text = f"column {index + 1} has no name; name it, or list the `features`"
                raise refused(self.path, 1, f"{text} to train on")
        return found

    def is_text(self, index: int) -> bool:
        """Whether a column has cells, and none of them is or resembles a number."""
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
            while block := file.read(BLOCK) + file.readline():
                reading.take(block, file)
        check_header(path, reading.header)
        if not reading.numbers:
            raise UnusualError
    except (InputError, OSError, UnicodeDecodeError, UnusualError, csv.Error):
        survey(path)
        raise refused(path, None, "changed while it was read; run again") from None
    values = np.frombuffer(reading.numbers).reshape(-1, len(reading.header))
    return Columns(path, reading.header, values, reading.resembling)


class Reading:
    """A CSV file while it is read."""

    def __init__(self, positive: str | None) -> None:
        self.positive = positive
        self.header: list[str] = []
        self.numbers = array("d")
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
            columns = enumerate(zip(*rows, strict=True))
            values = np.array([self.column(index, cells) for index, cells in columns])
            self.numbers.frombytes(values.T.tobytes())

    def column(self, index: int, cells: Sequence[str]) -> Sequence[float]:
        """Read a column's cells."""
        numbers = plain_rows(",".join(cells).encode(), len(cells))
        if numbers is not None and len(numbers) == len(cells):
            return numbers
        codes = {cell: self.code(index, cell) for cell in set(cells)}
        return [codes[cell] for cell in cells]

    def code(self, index: int, cell: str) -> float:
        """Return a cell's number, or what stands for it."""
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

    pydantic's reader of JSON (github.com/pydantic/jiter) rounds decimal numbers correctly, as
    float does, in a fifth of the time. A `null` in the place of each line end shows whether all
    rows have their cells. The words true and false, which it would read, are no numbers, and JSON's
    -0 is the integer 0, which has lost its sign: then there are more signs in the text than among
    the numbers, as there are with negative exponents.
    """
    if b"\r" in block:
        block = block.replace(b"\r\n", b"\n")
    if b"\r" in block or b"t" in block or b"f" in block:
        return None
    try:
        text = b"[" + block.rstrip().replace(b"\n", b",null,") + b",null]"
        cells = from_json(text, allow_inf_nan=False)
        ends = cells[width :: width + 1]
        if ends.count(None) * (width + 1) != len(cells):
            return None
        del cells[width :: width + 1]
        numbers = array("d", cells)
    except (OverflowError, TypeError, ValueError):  # no JSON, or what is no number
        return None
    values = np.frombuffer(numbers)
    signs = np.count_nonzero(np.frombuffer(block, np.uint8) == ord("-"))
    lost = signs != np.count_nonzero(np.signbit(values)) and NEGATIVE_ZERO.search(block)
    return None if lost or not np.isfinite(values).all() else numbers
