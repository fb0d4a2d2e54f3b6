"""pytest plugin: each `*.regcheck.yaml` is a test, which passes where `regcheck run` exits with 0.

pytest loads this at its start, whatever it tests: nothing of regcheck's is imported here before a
spec is run.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from regcheck.cli.one_run import Finished

SUFFIXES = (".regcheck.yaml", ".regcheck.yml")
"""How the files end that are collected."""


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> SpecFile | None:
    """Collect a file by its name."""
    if not file_path.name.endswith(SUFFIXES):
        return None
    found: SpecFile = SpecFile.from_parent(parent, path=file_path)
    return found


class SpecFile(pytest.File):
    """A spec: one test, by the file's name without its suffixes."""

    def collect(self) -> Iterator[SpecItem]:
        """Yield the test; the spec is read when it is run."""
        yield SpecItem.from_parent(self, name=self.path.name.rpartition(".regcheck.")[0])


class NotPassedError(Exception):
    """A spec's test has not passed: the line for pytest's summary, and all there is to show."""

    def __init__(self, line: str, text: str) -> None:
        super().__init__(text)
        self.line = line


class SpecItem(pytest.Item):
    """The test of a spec.

    The spec is run in the setup. So what comes to no verdict, as a spec with a misspelled key, is
    an error to pytest, and a verdict other than the expected one a failure.
    """

    finished: Finished

    def setup(self) -> None:
        """Run the spec.

        Raises:
            NotPassedError: it cannot be run; with the message that `regcheck run` has.
        """
        from regcheck.cli.one_run import Wanted, run_spec

        here = Path.cwd()
        path = self.path.relative_to(here) if self.path.is_relative_to(here) else self.path
        self.finished = run_spec(path, Wanted(), progress=False)
        error = self.finished.error
        if error:
            raise NotPassedError(error.partition("\n")[0], error)

    def runtest(self) -> None:
        """Judge what was found.

        Raises:
            NotPassedError: it is not what the spec expects, by default that both sides agree.
        """
        if self.finished.code:
            line = self.finished.line
            raise NotPassedError(line, f"{line}\n\n{self.finished.text.rstrip()}")

    def reportinfo(self) -> tuple[Path, int, str]:
        """Return where the test stands."""
        return self.path, 0, self.name


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    call: pytest.CallInfo[None],
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what has not passed without a traceback, which would hold no line of the user's."""
    report = yield
    if call.excinfo is not None and isinstance(call.excinfo.value, NotPassedError):
        shown: Any = call.excinfo.getrepr(style="value")
        shown.reprcrash.message = call.excinfo.value.line
        report.longrepr = shown
    return report
