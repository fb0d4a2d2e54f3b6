"""NumPy's .npz archives, looked into without NumPy: which arrays there are, of which shape.

The format is NEP 1's: a zip archive with a file `X.npy` for the array X, which begins with a
header that holds the array's type and shape as a Python literal.
"""

from __future__ import annotations

import ast
import lzma
import math
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from regcheck.errors import shortened, suggest
from regcheck.problem.files import refused

BROKEN = (
    EOFError,
    OSError,
    OverflowError,  # sizes beyond any file's
    RuntimeError,  # encrypted, or packed by a method that zipfile does not have
    ValueError,
    lzma.LZMAError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What zipfile and NumPy raise on a broken archive."""

LONGEST_HEADER = 10_000
"""NumPy's own limit (numpy/lib/_format_impl.py, _MAX_HEADER_SIZE)."""

REAL = re.compile(r"[<>|=]?[biuf]\d+")
"""The types of real numbers, as headers have them: `<f8`, `|b1`."""


@contextmanager
def open_npz(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open an archive; whatever shows it to be broken is told as such.

    Raises:
        InputError: it cannot be read, from here on or within the `with`.
    """
    try:
        with zipfile.ZipFile(path) as archive:
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
        start = member.read(8)
        length = int.from_bytes(member.read(2 if start[6:7] == b"\x01" else 4), "little")
        if start[:6] != b"\x93NUMPY" or length > LONGEST_HEADER:
            raise zipfile.BadZipFile
        text = member.read(length).decode("utf-8" if start[6:7] == b"\x03" else "latin-1")
    kind, shape = literal_header(text)
    if "O" in str(kind):
        text = f"`{key}` holds Python objects, which are never loaded; save plain numeric arrays"
        raise refused(path, None, text)
    if not isinstance(kind, str) or not REAL.fullmatch(kind):
        raise refused(path, None, f"`{key}` must hold real numbers, got NumPy's type {kind}")
    if math.prod(shape) > archive.getinfo(f"{key}.npy").file_size:
        raise zipfile.BadZipFile  # before room is made for numbers that are not there
    return shape


def literal_header(text: str) -> tuple[object, tuple[int, ...]]:
    """Read an array header's type and shape."""
    try:
        header = ast.literal_eval(text)
    except (MemoryError, RecursionError, SyntaxError, TypeError, ValueError):
        raise zipfile.BadZipFile from None
    if not isinstance(header, dict) or set(header) != {"descr", "fortran_order", "shape"}:
        raise zipfile.BadZipFile
    shape = header["shape"]
    if not isinstance(shape, tuple) or not all(type(size) is int and size >= 0 for size in shape):
        raise zipfile.BadZipFile
    return header["descr"], shape
