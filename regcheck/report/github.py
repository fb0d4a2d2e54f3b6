"""What a run writes by itself in GitHub Actions: an annotation for each failure, the job's summary.

Sources: GitHub's "Workflow commands for GitHub Actions", and how the runner reads them back,
actions/runner, src/Runner.Common/ActionCommand.cs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from regcheck.report.files.markdown import markdown_chunks, overview
from regcheck.report.files.words import summary_of, worst_first
from regcheck.report.record import Record

MOST_BYTES = 2**20
"""Of a step's summary; of a larger one GitHub shows nothing."""

SHORTENED = """
This summary is shortened, since GitHub shows at most 1 MiB of a step: the table may end early, and
the reports are left out. All of them are in the step's log, and in a file by `--report FILE.md`, or
by the action's `reports`.
"""


def tell_github(records: Sequence[Record], environment: Mapping[str, str] = os.environ) -> None:
    """Write the annotations to standard error, and append to the job's summary.

    A summary that cannot be written is said on standard error, and changes nothing else.
    """
    workspace = environment.get("GITHUB_WORKSPACE", "")
    for record in records:
        if not record.passed:
            sys.stderr.write(annotation(record, workspace) + "\n")
    path = environment.get("GITHUB_STEP_SUMMARY")
    if not path:
        return
    try:
        with Path(path).open("ab") as file:
            file.write(job_summary(records, MOST_BYTES - file.tell()))
    except OSError as error:
        reason = error.strerror or error
        sys.stderr.write(f"regcheck: the job summary {path} cannot be written: {reason}\n")


def annotation(record: Record, workspace: str = "") -> str:
    """Return the command that shows a failure at its line of the spec."""
    spec = str(record.head["spec"])
    place = {"file": path_in(spec, workspace)}
    if record.head.get("line") is not None:
        place["line"] = str(record.head["line"])
    place["title"] = f"regcheck: {record.outcome}"
    properties = ",".join(f"{key}={property_text(value)}" for key, value in place.items())
    return f"::error {properties}::{message_text(message(record))}"


def path_in(spec: str, workspace: str) -> str:
    """Return a path from the repository's top, which annotations go by, if it lies below that."""
    path = Path(spec).absolute()
    if workspace and path.is_relative_to(workspace):
        return path.relative_to(workspace).as_posix()
    return Path(spec).as_posix()


def message(record: Record) -> str:
    """Return the verdict and the fixes; all that is wrong with a spec that could not be run."""
    found = summary_of(record)
    if found is None:
        return str(record.head["error"])
    fixes = [f"fix in {side}: {line}" for side, lines in found.fixes.items() for line in lines]
    lines = (found.headline, found.expectation, *fixes, *(f"next: {line}" for line in found.next))
    return "\n".join(line for line in lines if line)


def message_text(text: str) -> str:
    r"""Escape what would end a command.

    >>> message_text("100 %\n::error::")
    '100 %25%0A::error::'
    """
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def property_text(text: str) -> str:
    """Escape what would end a property of a command.

    >>> property_text("a:b,c")
    'a%3Ab%2Cc'
    """
    return message_text(text).replace(":", "%3A").replace(",", "%2C")


def job_summary(records: Sequence[Record], room: int) -> bytes:
    """Return the Markdown report, or what there is room for of its table of specs, and says so."""
    whole = encoded("".join(markdown_chunks(records)))
    if len(whole) <= room:
        return whole
    table = lines_within(overview(worst_first(records)), room - len(encoded(SHORTENED)))
    return b"".join((*table, encoded(SHORTENED)))[: max(0, room)]


def lines_within(text: str, room: int) -> Iterator[bytes]:
    """Yield the lines that there is room for."""
    for line in text.splitlines(keepends=True):
        room -= len(encoded(line))
        if room < 0:
            return
        yield encoded(line)


def encoded(text: str) -> bytes:
    """Return a text in UTF-8, whatever it holds."""
    return text.encode("utf-8", "backslashreplace")
