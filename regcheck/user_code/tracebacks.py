"""Tell what a user's code did, in the user's own lines."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path

from regcheck.errors import one_line, shortened

PACKAGE = str(Path(__file__).parent.parent)
"""Where regcheck's own code is."""

LIBRARIES = tuple(
    sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")
)
"""Where installed code is."""

MOST_FRAMES = 12
"""More frames of a traceback are cut in the middle."""

LONGEST_LINE = 400
"""Longer lines of a traceback are cut."""

MOST_LINES = 60
"""More lines of a traceback are cut in the middle."""

HINTS: tuple[tuple[type[BaseException], str, str], ...] = (
    (
        SystemExit,
        "",
        'regcheck goes on after it: leave it out, or put it under `if __name__ == "__main__":`.',
    ),
    (EOFError, "", "There is nothing to read here: leave out input() and what waits for keys."),
    (
        ImportError,
        "relative import",
        "The file is not part of a package here: write `from helper import f` for `.helper`.",
    ),
    (
        ValueError,
        "must be the same as input size",
        "The targets y are (n,): let the model's output be (n,) too, by `.squeeze(-1)`.",
    ),
    (
        AttributeError,
        "to field '",
        "The problem's fields stay as they are: use names of your own, as in `X = 2 * problem.X`.",
    ),
    (AttributeError, "delete field '", "The problem's fields stay as they are: leave that out."),
    (
        ModuleNotFoundError,
        "",
        "Modules beside your file can be imported, and what is installed where regcheck is.",
    ),
)
"""What to do about an exception whose text holds some words."""

MEND = "Your own code raised it: fix it there."


class Own:
    """Tells the user's own frames from those of libraries and of regcheck."""

    def __init__(self, folder: str | None) -> None:
        self.folder = folder

    def __call__(self, frame: traceback.FrameSummary) -> bool:
        """Say whether a frame is the user's."""
        file = frame.filename
        if within(file, PACKAGE) or file.startswith("<frozen "):
            return False
        if self.folder and str(Path(file).parent) == self.folder:
            return True
        return not is_library(file)

    def frames(self, stack: traceback.StackSummary) -> traceback.StackSummary:
        """Keep the user's frames; where there are none, all but regcheck's."""
        kept = [frame for frame in stack if self(frame)] or [
            frame for frame in stack if not within(frame.filename, PACKAGE)
        ]
        return traceback.StackSummary.from_list(kept)


def is_library(place: str) -> bool:
    """Say whether a file or folder belongs to what is installed."""
    return any(place == library or within(place, library) for library in LIBRARIES)


def within(file: str, folder: str) -> bool:
    """Say whether a file lies below a folder."""
    return file.startswith((folder + "/", folder + "\\"))


def raised(where: str, error: BaseException, own: Own) -> str:
    """Tell what a call raised."""
    told = traceback.TracebackException.from_exception(error)
    keep_own(told, own, set())
    if isinstance(error, SystemExit):
        first = "tried to end the program, with sys.exit(), quit() or the like"
    else:
        first = "raised " + shortened(one_line(summary(told)), 200)
    lines = tidy("".join(told.format()).splitlines())
    return "\n".join([f"{where}: {first}", f"  {hint(error, str(told))}", *lines])


def summary(told: traceback.TracebackException) -> str:
    """Give an exception's name and the first line of its text."""
    lines = "".join(told.format_exception_only()).splitlines()
    return next(line for line in lines if not line.startswith(" "))  # a place stands before it


def hint(error: BaseException, text: str) -> str:
    """Say what to do about an exception."""
    for kind, words, todo in HINTS:
        if isinstance(error, kind) and words in text:
            return todo
    return MEND


def keep_own(told: traceback.TracebackException, own: Own, seen: set[int]) -> None:
    """Leave only the user's frames in a traceback and in those it came from."""
    if id(told) in seen:
        return
    seen.add(id(told))
    told.stack = own.frames(told.stack)
    if len(told.stack) > MOST_FRAMES and not repeats(told.stack):
        half = MOST_FRAMES // 2
        del told.stack[half:-half]
    others = (told.__cause__, told.__context__, *(getattr(told, "exceptions", None) or ()))
    for other in others:
        if other is not None:
            keep_own(other, own, seen)


def repeats(stack: traceback.StackSummary) -> bool:
    """Say whether Python itself tells the frames in a few lines, as it does in a recursion."""
    return len({(frame.filename, frame.lineno) for frame in stack}) <= MOST_FRAMES // 3


def hung(where: str, timeout: float, place: traceback.StackSummary | None, own: Own) -> str:
    """Tell that a call took too long, and where it was."""
    stack = own.frames(place) if place else []
    found = traceback.StackSummary.from_list(stack[-1:])
    return "\n".join(
        [
            f"{where}: took longer than {timeout:g} seconds, and was ended",
            "  Does a loop never end, or wait for something? If it only needs more time, give it",
            "  more with `--timeout SECONDS` on the command line, or `timeout=` in Python.",
            *(["It was at"] if found else []),
            *tidy("".join(found.format()).splitlines()),
        ]
    )


def tidy(lines: Iterable[str]) -> list[str]:
    """Cut what is too long, and write control characters as escapes."""
    kept = [shortened(one_line(line.expandtabs()), LONGEST_LINE) for line in lines]
    if len(kept) > MOST_LINES:
        half = MOST_LINES // 2
        kept[half:-half] = [f"  ... {len(kept) - 2 * half} lines left out ..."]
    return kept
