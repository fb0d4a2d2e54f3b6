"""What `run` writes while it goes: texts or JSON on standard output, all else on standard error."""

from __future__ import annotations

import shutil
import sys

from regcheck.cli.exit_codes import GRAVEST_FIRST
from regcheck.cli.one_run import Finished

CLEARED = "\r\x1b[K"
"""What takes a terminal's line away."""


MOST_PASSED = 10
"""Specs that pass which a summary names."""


class TextOutput:
    """Reports for people, on standard output; a summary where there are several specs."""

    def __init__(self, several: bool, separator: str) -> None:
        self.several, self.separator = several, separator
        self.shown = 0
        self.heads: list[tuple[int, str, str]] = []

    def add(self, one: Finished) -> None:
        """Print what came of a spec."""
        if one.error:
            sys.stderr.write(one.error + "\n")
        if one.text and self.shown:
            sys.stdout.write(self.separator)
        sys.stdout.write(one.text)
        if one.note:
            sys.stdout.write(one.note + "\n")
        sys.stdout.flush()
        self.shown += bool(one.text)
        self.heads.append((one.code, one.name, one.record.headline))

    def finish(self) -> None:
        """Print the summary, the worst first."""
        if not self.several or not self.separator:
            return
        ordered = sorted(self.heads, key=lambda one: GRAVEST_FIRST.index(one[0]))
        sys.stdout.write(self.separator)
        failed, passed = ([one for one in ordered if bool(one[0]) is bad] for bad in (True, False))
        for _, name, headline in failed:
            sys.stdout.write(f"FAIL {name}: {headline}\n")
        for _, name, headline in passed[:MOST_PASSED]:
            sys.stdout.write(f"ok   {name}: {headline}\n")
        if len(passed) > MOST_PASSED:
            sys.stdout.write(f"ok   and {len(passed) - MOST_PASSED:,} more\n")
        sys.stdout.write(f"{len(passed):,} of {len(ordered):,} specs pass\n")


class Ended:
    """A line on standard error that counts the specs of several workers, if it is a terminal."""

    def __init__(self, total: int) -> None:
        self.total, self.count = total, 0
        self.shows = sys.stderr.isatty()

    def add(self, one: Finished) -> None:
        """Count a spec, and show what came of it."""
        self.count += 1
        if self.shows:
            line = f"{self.count:,} of {self.total:,} specs: {one.name} {one.record.outcome}"
            sys.stderr.write(f"{CLEARED}{line[: shutil.get_terminal_size().columns - 1]}")
            sys.stderr.flush()

    def clear(self) -> None:
        """Take the line away, before anything else is written."""
        if self.shows and self.count:
            sys.stderr.write(CLEARED)
            sys.stderr.flush()


class JsonOutput:
    """Reports as JSON on standard output, in one envelope."""

    def __init__(self) -> None:
        from regcheck.report.files.envelope import opening

        self.separator = opening()

    def add(self, one: Finished) -> None:
        """Print what came of a spec."""
        from regcheck.report.files.envelope import run_chunks

        for text in (one.error, one.note):
            if text:
                sys.stderr.write(text + "\n")
        sys.stdout.write(self.separator)
        sys.stdout.writelines(run_chunks(one.record))
        self.separator = ",\n"

    def finish(self) -> None:
        """Close the envelope."""
        from regcheck.report.files.envelope import CLOSING

        sys.stdout.write((self.separator if self.separator != ",\n" else "") + CLOSING)


Output = TextOutput | JsonOutput
