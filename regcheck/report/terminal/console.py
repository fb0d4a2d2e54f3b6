"""The console that reports go to, and the progress of a run on standard error."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from regcheck.report.result import Report
from regcheck.report.texts.headline import expectation, with_causes

STYLES = {"diverged": "bold red", "equivalent": "bold green", "inconclusive": "bold yellow"}

TRAILING_BLANKS = re.compile(r"[ ]+((?:\x1b\[0m)?)$", re.MULTILINE)


@contextmanager
def captured(console: Console) -> Iterator[None]:
    """Print at once what is printed within, without the blanks that rich fills its lines with."""
    with console.capture() as capture:
        yield
    console.file.write(TRAILING_BLANKS.sub(r"\1", capture.get()))


def print_line(report: Report, console: Console) -> None:
    """Print a report's verdict alone, in one line."""
    line = Text(f"{report.name}: ")
    line.append(with_causes(report), STYLES[report.verdict])
    if report.spec.expect:
        line.append(f". {expectation(report)}")
    console.print(line, soft_wrap=True)


def in_one_line(report: Report) -> str:
    """Return the verdict in one line, and whether it is the expected one."""
    expected = expectation(report)
    return with_causes(report) + (f". {expected}" if expected else "")


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on standard error while steps are compared, if it is a terminal.

    It comes up after half a second, so that a short run shows none.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _step, _total: None
        return
    bar = Progress(
        TextColumn(label),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    task = bar.add_task(label)
    due = time.monotonic() + 0.5

    def update(step: int, total: int) -> None:
        nonlocal due
        now = time.monotonic()
        if now >= due:
            bar.start()
            bar.update(task, completed=step, total=total)
            due = now + 0.1

    try:
        yield update
    finally:
        if bar.live.is_started:
            bar.stop()


@contextmanager
def without_progress(label: str) -> Iterator[Callable[[int, int], None]]:  # noqa: ARG001
    """Show nothing: another process counts the specs."""
    yield lambda _step, _total: None
