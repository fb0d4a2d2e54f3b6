"""Where reports go: to people as text, or to programs as JSON; errors to standard error."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Protocol

from regcheck import __version__

# What makes the texts is loaded with the first report: errors are told before torch is.
if TYPE_CHECKING:
    from regcheck.report.result import Report


class Output(Protocol):
    """What a run of several specs is told to, one by one."""

    def report(self, report: Report) -> None:
        """Tell what a run found."""

    def error(self, name: str, text: str) -> None:
        """Tell what is wrong with a spec."""

    def note(self, text: str) -> None:
        """Tell what was done besides."""

    def finish(self) -> None:
        """End what was begun."""


class TextOutput:
    """Reports for people, on standard output."""

    def __init__(self, rows: int | None, quiet: bool) -> None:
        self.rows, self.quiet = rows, quiet
        self.shown = 0

    def report(self, report: Report) -> None:
        """Print a report, or its verdict's line."""
        from regcheck.report.terminal import print_line, print_report, terminal

        console = terminal()
        if self.quiet:
            print_line(report, console)
            return
        if self.shown:
            console.print()
            console.rule(style="dim")
        print_report(report, console, self.rows)
        self.shown += 1

    def error(self, name: str, text: str) -> None:  # noqa: ARG002
        """Print what is wrong with a spec."""
        sys.stderr.write(text + "\n")

    def note(self, text: str) -> None:
        """Print what was done besides."""
        sys.stdout.write(text + "\n")

    def finish(self) -> None:
        """Nothing is held back."""


class JsonOutput:
    """Reports as JSON on standard output: one object, or an array where there are several specs."""

    def __init__(self, specs: int) -> None:
        self.several = specs > 1
        self.separator = "[\n" if self.several else ""

    def report(self, report: Report) -> None:
        """Print a report."""
        from regcheck.report.json import json_chunks

        sys.stdout.write(self.separator)
        for chunk in json_chunks(report):
            sys.stdout.write(chunk)
        self.separator = ",\n"
        if not self.several:
            sys.stdout.write("\n")

    def error(self, name: str, text: str) -> None:
        """Print what is wrong with a spec; in an array its place is kept."""
        sys.stderr.write(text + "\n")
        if self.several:
            entry = {"regcheck": __version__, "spec": name, "error": text}
            sys.stdout.write(self.separator + json.dumps(entry, ensure_ascii=False))
            self.separator = ",\n"

    def note(self, text: str) -> None:
        """Tell it on standard error: standard output holds the report alone."""
        sys.stderr.write(text + "\n")

    def finish(self) -> None:
        """Close the array."""
        if self.several:
            sys.stdout.write("\n]\n" if self.separator == ",\n" else "[]\n")
