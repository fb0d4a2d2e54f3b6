"""One run as plain data, which all report files are written from and processes hand over.

A record holds what the JSON report holds: its head, and every compared step. A run that could not
be made, for a wrong spec or wrong code, has a head with an error and no steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from regcheck import __version__
from regcheck.compare.trace import Trace
from regcheck.report.json import plain, report_head, row_dict
from regcheck.report.page.paths import Paths
from regcheck.report.result import Report


class Record(NamedTuple):
    """One run.

    Attributes:
        head: all keys of the JSON report but `rows`; of a run with an error `regcheck`, `spec` and
            `error`.
        trace: every compared step; None where there is an error.
        paths: of the parameters, where a page is to show them.
    """

    head: dict[str, Any]
    trace: Trace | None = None
    paths: Paths | None = None

    @property
    def outcome(self) -> str:
        """The verdict, or `error`."""
        return str(self.head.get("verdict", "error"))

    @property
    def passed(self) -> bool:
        """Whether the run is what its spec expects, by default equivalent."""
        expected = self.head.get("expected")
        return self.outcome == "equivalent" if expected is None else bool(expected)

    @property
    def headline(self) -> str:
        """The verdict in a line, or what is wrong."""
        if "error" in self.head:
            return f"ERROR: {self.head['error'].splitlines()[0]}"
        return str(self.head["summary"]["headline"])

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the steps as the JSON report has them."""
        for row in self.trace or ():
            yield plain(row_dict(row))


def record_of(report: Report, line: int | None = None, paths: Paths | None = None) -> Record:
    """Return a report's record; `line` is the one of the spec that the verdict is about."""
    place = {} if line is None else {"line": line}
    return Record(report_head(report) | place, report.comparison.trace, paths)


def record_of_error(name: str, error: str, line: int | None = None) -> Record:
    """Return the record of a run that could not be made, with all complaints in its error."""
    return Record({"regcheck": __version__, "spec": name, "error": error, "line": line})
