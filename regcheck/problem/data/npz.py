"""NumPy's .npz archives: zip files with a file `X.npy` for the array X. No pickle is loaded."""

from __future__ import annotations

import lzma
import math
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from regcheck.errors import Complaint, Place, shortened, suggest
from regcheck.problem.data.files import MOST_COMPLAINTS, raise_some, refused

Numbers = NDArray[Any]
"""Float64 or int64."""

BROKEN = (
    EOFError,
    MemoryError,  # a header nested beyond what Python's parser takes
    OSError,
    OverflowError,  # sizes beyond any file's
    RecursionError,
    RuntimeError,  # encrypted, or packed by a method that zipfile does not have
    SyntaxError,
    TypeError,
    ValueError,
    lzma.LZMAError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What zipfile and NumPy raise on a broken archive."""


@contextmanager
def open_npz(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open an archive; whatever shows it to be broken is reported as such.

    Raises:
        InputError: it cannot be read, from here on or within the `with`.
    """
    try:
        with zipfile.ZipFile(path) as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy's about files from Python 2
            yield archive
    except BROKEN:
        text = "cannot be read as an .npz archive; write it with numpy.savez(path, X=X, y=y)"
        raise refused(path, None, text) from None


def read_shape(path: Path, archive: zipfile.ZipFile, key: str) -> tuple[int, ...]:
    """Read the shape of an array of real numbers.

    Raises:
        InputError: there is no such array, or it holds anything else.
    """
    names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    if key not in names:
        raise refused(path, None, f"no array `{shortened(key)}`; {suggest(key, names)}")
    with archive.open(f"{key}.npy") as member:
        old = npy.read_magic(member) == (1, 0)
        read_header = npy.read_array_header_1_0 if old else npy.read_array_header_2_0
        shape, _, dtype = read_header(member)
    if dtype.hasobject:
        text = f"`{key}` holds Python objects, which are never loaded; save numeric arrays"
        raise refused(path, None, text)
    if dtype.kind not in "biuf":
        found = npy.dtype_to_descr(dtype)
        raise refused(path, None, f"`{key}` must hold real numbers, got NumPy's type {found}")
    if min(shape, default=0) < 0 or math.prod(shape) > archive.getinfo(f"{key}.npy").file_size:
        raise zipfile.BadZipFile  # before room is made for numbers that are not there
    return shape


def read_array(path: Path, archive: zipfile.ZipFile, key: str) -> Numbers:
    """Read an array of finite real numbers: integers and booleans as int64, others as float64.

    Raises:
        InputError: a number is missing, infinite, or too large for its dtype; it says which.
    """
    read_shape(path, archive, key)
    with archive.open(f"{key}.npy") as member:
        array: Numbers = npy.read_array(member, allow_pickle=False)
    kind = array.dtype.kind
    if kind in "bi" or (kind == "u" and array.max(initial=0) <= np.iinfo(np.int64).max):
        return array.astype(np.int64)
    with np.errstate(over="ignore"):
        values = array.astype(np.float64)
    bad = np.argwhere(~np.isfinite(values))
    complaints = []
    for index in bad[:MOST_COMPLAINTS]:
        text = f"`{key}`{at(index.tolist())}: missing or infinite value ({values[tuple(index)]})"
        complaints.append(Complaint(Place(str(path)), text))
    raise_some(complaints, left_out=len(bad) - len(complaints))
    return values


def at(index: list[int]) -> str:
    """Write an index as row and column, counted from 1, or as NumPy does where it is longer.

    Nothing for a lone number.
    """
    if len(index) > 2:
        return str(index)
    return "".join(
        f", {name} {part + 1}" for name, part in zip(("row", "column"), index, strict=False)
    )
