"""Where data files are, and how what is wrong with them is told."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from regcheck.errors import Complaint, InputError, Place, shortened
from regcheck.spec import LoadedSpec

MOST_COMPLAINTS = 10
"""How many bad cells of one file are told one by one."""


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
    where = "relative to the spec" if loaded.document.marks else "relative to the current folder"
    text = f"{shortened(str(path), 300)}: {found}; paths are {where}"
    raise InputError([loaded.complaint(("data", key), text)])


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
    told = list(complaints[:MOST_COMPLAINTS])
    rest = len(complaints) - len(told) + left_out
    if rest:
        told.append(Complaint(Place(complaints[0].place.file), f"and {rest:,} more like these"))
    raise InputError(told)
