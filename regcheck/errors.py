"""Errors whose cause lies outside regcheck, and the messages by which the user can fix them.

A message says where, what was found, what was expected and what to do. The command line turns
every `RegcheckError` into exit code 2; any other exception is a bug in regcheck.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Place(NamedTuple):
    """A place in a file. Lines and columns count from 1, and are None where unknown."""

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
        return one_line(f"{self.place}: {self.text}")


class RegcheckError(Exception):
    """Something that the user can fix: the base of every error that regcheck raises on purpose."""


class UsageError(RegcheckError):
    """The command or the call is wrong: an unknown name, a path that does not exist."""


class InputError(RegcheckError):
    """A spec or a data file is wrong: all complaints, in the order of the file, one a line."""

    def __init__(self, complaints: Iterable[Complaint]) -> None:
        self.complaints = tuple(complaints)
        super().__init__("\n".join(str(complaint) for complaint in self.complaints))


class RunError(RegcheckError):
    """A run went wrong in what is no part of regcheck; its text names no spec."""


class UserCodeError(RunError):
    """The user's own function is wrong.

    Its text has several lines: where and what, then what was expected or is to be done, then the
    user's own lines of the traceback of an exception.
    """


class ProcessError(RunError):
    """A process that takes part in the training cannot be started, or has ended."""


class StorageError(RegcheckError):
    """The steps of a run cannot be stored."""


def cut_off(error: BaseException) -> str:
    """Say which compiled file ends too early, if importing a module has found that; else nothing.

    Python compiles a module anew where the file is missing or old, and not where it is damaged.
    """
    file, trace = None, error.__traceback__ if isinstance(error, EOFError) else None
    while trace is not None:
        file = trace.tb_frame.f_locals.get("bytecode_path", file)  # of importlib's own functions
        trace = trace.tb_next
    return (
        f"{file}: this compiled file is cut off: {error}; delete it, and run again" if file else ""
    )


MOST_CHOICES = 20
"""How many known words are listed where none is near."""

LONGEST_WORD = 60
"""Longer names are cut where a message repeats them."""


def suggest(word: str, known: Iterable[str]) -> str:
    """Describe which known word `word` may have been meant to be, or which there are.

    >>> suggest("weight_decy", ["lr", "weight_decay"]), suggest("mu", ["lr", "weight_decay"])
    ('did you mean `weight_decay`?', 'known here: lr, weight_decay')
    """
    choices = list(known)
    meant = did_you_mean(word, choices)
    if meant:
        return meant
    listed = ", ".join(shortened(choice) for choice in choices[:MOST_CHOICES])
    rest = len(choices) - MOST_CHOICES
    return f"known here: {listed}" + (f" and {rest} more" if rest > 0 else "")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Ask for the known word that a word may have been meant to be; empty where none is near."""
    import difflib  # only here: `explain` starts faster without it

    lowered = {choice.lower(): choice for choice in known}
    # difflib takes seconds for words of megabytes, and no such word is a fault of the hand.
    near = difflib.get_close_matches(word.lower(), lowered, n=1) if len(word) <= 200 else []
    return f"did you mean `{shortened(lowered[near[0]])}`?" if near else ""


MOST_NEAR = 3
"""How many near names are listed."""


def nearest(word: str, names: Sequence[str]) -> list[str]:
    """List the names that are spelled nearly like a word, then those that share a part with it.

    >>> nearest("batch-doubled", ["penalty-doubled", "nesterov-added"])
    ['penalty-doubled']
    """
    import difflib

    parts, word = parts_of(word[:LONGEST_WORD]), word[:LONGEST_WORD].lower()
    spelled = difflib.get_close_matches(word, names, n=MOST_NEAR)
    shared = sorted(
        (name for name in names if parts & parts_of(name)),
        key=lambda name: -len(parts & parts_of(name)),
    )
    return [*dict.fromkeys([*spelled, *shared])][:MOST_NEAR]


def parts_of(name: str) -> set[str]:
    """Return the words that a name is made of, but for short ones, as by, in or not."""
    return set(re.findall("[a-z0-9]{4,}", name.lower()))


def shortened(word: str, longest: int = LONGEST_WORD) -> str:
    """Cut a word that is too long to be repeated in full."""
    return word if len(word) <= longest else word[: longest - 2] + ".."


def one_line(text: str) -> str:
    """Write line breaks and control characters as escapes: files may hold any, messages none."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


class Planned(NamedTuple):
    """Names of one kind in lower case, and how a message calls one."""

    called: str
    names: tuple[str, ...]


PLANNED: dict[str, Planned] = {
    "cause": Planned(
        "recognising the cause {}",
        (),
    ),
    "command": Planned("`regcheck {}`", ("convert",)),
}


def is_planned(kind: str, name: object) -> bool:
    """Whether a later version will have what a name stands for."""
    return isinstance(name, str) and name.lower() in PLANNED[kind].names


def refusal(kind: str, name: object) -> str:
    """Return the message that refuses a planned name.

    >>> refusal("command", "convert")
    '`regcheck convert` is planned, and not in this version of regcheck'
    """
    return f"{PLANNED[kind].called.format(name)} is planned, and not in this version of regcheck"
