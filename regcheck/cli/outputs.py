"""What `run` writes while it goes: texts or JSON on standard output, all else on standard error."""

from __future__ import annotations

import sys

from regcheck.cli.one_run import GRAVEST_FIRST, Finished


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
        for code, name, headline in ordered:
            sys.stdout.write(f"{'ok  ' if code == 0 else 'FAIL'} {name}: {headline}\n")


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
