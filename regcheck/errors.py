"""What can go wrong for reasons that lie outside regcheck, told so that it can be mended.

A message says where, what was found, what was expected and what to do. The command line turns
every `RegcheckError` into exit code 2; anything else that is raised is a fault of regcheck's own.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import NamedTuple


class Place(NamedTuple):
    """A place in a file. Lines and columns count from 1; None where there is none to give."""

    file: str
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        return ":".join(str(part) for part in self if part is not None)


class Complaint(NamedTuple):
    """One thing that is wrong, at one place."""

    place: Place
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.text}"


class RegcheckError(Exception):
    """Something that the user can mend: the base of every error that regcheck raises on purpose."""


class UsageError(RegcheckError):
    """The command or the call itself is off: an unknown name, a path that is not there."""


class InputError(RegcheckError):
    """A spec or a data file is off.

    It carries every complaint that could be found, in the order of the file; its text has one
    complaint a line.
    """

    def __init__(self, complaints: Iterable[Complaint]) -> None:
        self.complaints = tuple(complaints)
        super().__init__("\n".join(str(complaint) for complaint in self.complaints))


def suggest(word: str, known: Iterable[str]) -> str:
    """Say which known word `word` may have been meant to be, or which there are.

    >>> suggest("weight_decy", ["lr", "weight_decay"])
    'did you mean `weight_decay`?'
    """
    choices = list(known)
    lowered = {choice.lower(): choice for choice in choices}
    nearest = difflib.get_close_matches(word.lower(), lowered, n=1, cutoff=0.6)
    if nearest:
        return f"did you mean `{lowered[nearest[0]]}`?"
    return "known here: " + ", ".join(choices)
