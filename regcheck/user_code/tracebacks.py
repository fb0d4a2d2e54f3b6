"""Describe what a user's code did, in the user's own lines."""

from __future__ import annotations

import sysconfig
import traceback
from dataclasses import fields
from pathlib import Path

from regcheck.errors import one_line, shortened
from regcheck.rules.words import all_of
from regcheck.user_code.problem_api import UserProblem

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
        'regcheck goes on after it: remove it, or put it under `if __name__ == "__main__":`.',
    ),
    (
        EOFError,
        "reading a line",
        "There is no input to read: remove input() and whatever waits for keys.",
    ),
    (
        ImportError,
        "relative import",
        "The file is not part of a package here: write `from helper import f`, without the dot.",
    ),
    (
        ValueError,
        "must be the same as input size",
        "The targets y are (n,): let the model's output be (n,) too, by `.squeeze(-1)`.",
    ),
    (
        ValueError,
        "operands could not be broadcast together",
        "torch's weight, and its gradient, are (outputs, inputs): transpose one with `.T`, or sum.",
    ),
    (
        ValueError,
        "mismatch in its core dimension",
        "torch's weight is (outputs, inputs): write `X @ W.T`, and its gradient `slopes.T @ X`.",
    ),
    (
        AttributeError,
        "to field '",
        "The problem's fields cannot be changed: use variables of your own: `X = 2 * problem.X`.",
    ),
    (
        AttributeError,
        "'UserProblem' object has no attribute",
        f"The problem has {all_of([one.name for one in fields(UserProblem)])}.",
    ),
    (
        KeyError,
        "the start has ",
        "`problem.initial` holds the start by torch's names: take these.",
    ),
    (AttributeError, "delete field '", "The problem's fields cannot be deleted: remove that line."),
    (
        ModuleNotFoundError,
        "",
        "Modules in your file's folder and packages in regcheck's environment can be imported.",
    ),
    (BaseException, "", "Your own code raised it: fix it there."),
)
"""What to do about an exception whose text holds some words; the first that fits."""


def exception_text(where: str, error: BaseException, folder: str | None) -> str:
    """Describe what a call raised, with the frames of the user's code, which is in `folder`."""
    described = traceback.TracebackException.from_exception(error)
    chain = [described]
    for one in chain:  # which grows meanwhile
        one.stack = own_frames(one.stack, folder)
        # Python itself writes the frames of a recursion in a few lines.
        places = {(frame.filename, frame.lineno) for frame in one.stack}
        if len(one.stack) > MOST_FRAMES and len(places) > MOST_FRAMES // 3:
            del one.stack[MOST_FRAMES // 2 : -MOST_FRAMES // 2]
        chain += filter(None, (one.__cause__, one.__context__, *(one.exceptions or ())))
    if isinstance(error, SystemExit):
        first = "tried to end the program, with sys.exit(), quit() or the like"
    else:
        lines = "".join(described.format_exception_only()).splitlines()
        # Of a SyntaxError the place stands before it.
        summary = next(line for line in lines if not line.startswith(" "))
        first = "raised " + shortened(one_line(summary), 200)
    text = str(described)
    hint = next(todo for kind, words, todo in HINTS if isinstance(error, kind) and words in text)
    return "\n".join([f"{where}: {first}", f"  {hint}", *tidy("".join(described.format()))])


def timeout_text(
    where: str, timeout: float, stack: traceback.StackSummary | None, folder: str | None
) -> str:
    """Describe a call that took too long, and where it was."""
    last = own_frames(stack or traceback.StackSummary(), folder)[-1:]
    return "\n".join(
        [
            f"{where}: took longer than {timeout:g} seconds, and was stopped",
            "  Does a loop never end, or wait for something? If it only needs more time, give it",
            "  more with `--timeout SECONDS` on the command line, or `timeout=` in Python.",
            *(["It was at"] if last else []),
            *tidy("".join(traceback.StackSummary.from_list(last).format())),
        ]
    )


def own_frames(stack: traceback.StackSummary, folder: str | None) -> traceback.StackSummary:
    """Keep the frames of the user's code; where there are none, all but regcheck's."""
    others = [frame for frame in stack if not within(frame.filename, PACKAGE)]
    own = [
        frame
        for frame in others
        if str(Path(frame.filename).parent) == folder
        or not (frame.filename.startswith("<frozen ") or is_library(frame.filename))
    ]
    return traceback.StackSummary.from_list(own or others)


def is_library(place: str) -> bool:
    """Whether a file or folder belongs to what is installed."""
    return any(place == library or within(place, library) for library in LIBRARIES)


def within(file: str, folder: str) -> bool:
    """Whether a file lies below a folder."""
    return file.startswith((folder + "/", folder + "\\"))


def tidy(text: str) -> list[str]:
    """Cut what is too long, and write control characters as escapes."""
    lines = [shortened(one_line(line.expandtabs()), LONGEST_LINE) for line in text.splitlines()]
    if len(lines) > MOST_LINES:
        half = MOST_LINES // 2
        lines[half:-half] = [f"  ... {len(lines) - 2 * half} lines left out ..."]
    return lines
