"""The formats of report files by suffix, and how a file is checked and written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

from regcheck.errors import UsageError
from regcheck.report.files.envelope import json_chunks
from regcheck.report.files.junit import junit_chunks
from regcheck.report.files.markdown import markdown_chunks
from regcheck.report.files.step_list import csv_chunks
from regcheck.report.page.page import html_chunks
from regcheck.report.record import Record
from regcheck.writing import checked, write_whole

Format = Callable[[Sequence[Record]], Iterable[str]]
"""What makes a file's text of all runs, in pieces."""

FORMATS: dict[str, Format] = {
    ".json": json_chunks,
    ".csv": csv_chunks,
    ".md": markdown_chunks,
    ".xml": junit_chunks,
    ".html": html_chunks,
}
"""The formats by their suffix."""

EXTRAS = {".html": ("plotly", "the plotting library", "html")}
"""What a format needs beyond regcheck itself: a module, what that is, and the extra that has it."""


def checked_report(name: str) -> Path:
    """Return a report file's path, if it can be written in a known format.

    Raises:
        UsageError: it cannot; said before anything is trained.
    """
    path = checked("--report", name, FORMATS)
    module, what, extra = EXTRAS.get(path.suffix.lower(), ("", "", ""))
    if module and find_spec(module) is None:
        install = f"pip install 'regcheck[{extra}]', or in a checkout pip install -e '.[{extra}]'"
        raise UsageError(f"--report {name}: {path.suffix} needs {what}: {install}")
    return path


def write_report(path: Path, records: Sequence[Record]) -> None:
    """Write a report file in the format that its suffix says.

    Raises:
        UsageError: it cannot be written; what stood there before is unchanged.
    """
    write_whole(path, FORMATS[path.suffix.lower()](records))
