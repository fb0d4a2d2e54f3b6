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
from regcheck.writing import write_whole

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


def checked(name: str) -> Path:
    """Return a report file's path, if its suffix is known and its folder exists.

    Raises:
        UsageError: it is not; said before anything is trained.
    """
    path = Path(name)
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"--report {name}: no format has this suffix; take {', '.join(FORMATS)}")
    module, what, extra = EXTRAS.get(path.suffix.lower(), ("", "", ""))
    if module and find_spec(module) is None:
        install = f"pip install 'regcheck[{extra}]'"
        raise UsageError(f"--report {name}: {path.suffix} needs {what}: {install}")
    if not path.parent.is_dir():
        raise UsageError(f"--report {name}: there is no folder {path.parent}")
    if path.is_dir():
        raise UsageError(f"--report {name}: this is a folder")
    return path


def write_report(path: Path, records: Sequence[Record]) -> None:
    """Write a report file in the format that its suffix says.

    Raises:
        UsageError: it cannot be written; what stood there before is unchanged.
    """
    write_whole(path, FORMATS[path.suffix.lower()](records))
