"""One spec: run, judged, and written out, so that all of it can come from another process."""

from __future__ import annotations

import gc
import sys
from functools import cache
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from regcheck.cli.exit_codes import (
    DIVERGED,
    EQUIVALENT,
    INTERNAL,
    INTERNAL_ERROR,
    UNUSABLE,
    VERDICT_CODES,
)
from regcheck.errors import InputError, RegcheckError, RunError, cut_off

if TYPE_CHECKING:
    from regcheck.report.record import Record
    from regcheck.report.result import Report
    from regcheck.spec import LoadedSpec


class Wanted(NamedTuple):
    """What the command line asks for, of each spec.

    Attributes:
        form: of the text: the short report, all details, one line, or none.
        rows: steps of the table, None for all; empty as the form has it.
        width, colour: of the terminal, as rich names colour systems; None for no colour.
        strict: whether a run that could not have shown some cause is inconclusive.
        timeout: seconds for one step of a user's code.
        fixed: the file for the spec with the fix.
        record: the file for a recording of torch's steps.
        paths: whether a page is to show the parameters' paths.
    """

    form: str = "short"
    rows: int | str | None = ""
    width: int = 80
    colour: str | None = None
    strict: bool = False
    timeout: float | None = None
    fixed: str | None = None
    record: str | None = None
    paths: bool = False


class Finished(NamedTuple):
    """What came of a spec: its exit code, its record, and its text for a terminal.

    Attributes:
        line: the verdict in one line, and whether it is the expected one.
        note: what was done besides.
        error: what is wrong, for standard error.
    """

    name: str
    code: int
    record: Record
    text: str = ""
    line: str = ""
    note: str = ""
    error: str = ""


def run_spec(path: Path, wanted: Wanted, progress: bool) -> Finished:
    """Run one spec; whatever is wrong with it is in what is returned.

    Raises:
        OSError: standard output or error cannot be written to.
    """
    from regcheck.spec import read_spec

    try:
        loaded = read_spec(path)  # a bad spec is reported before torch is loaded
        return finish(path, loaded, wanted, progress)
    except OSError:
        raise
    except RegcheckError as error:
        where = f"{path}: " if isinstance(error, RunError) else ""
        return failed(path, UNUSABLE, f"{where}{error}", line_of(error))
    except MemoryError:
        return failed(path, UNUSABLE, f"{path}: not enough memory for this many rows and features")
    except Exception as error:
        if damage := cut_off(error):
            return failed(path, UNUSABLE, f"{path}: {damage}")
        sys.excepthook(type(error), error, error.__traceback__)
        return failed(path, INTERNAL, f"{path}: {INTERNAL_ERROR}")


def failed(path: Path, code: int, text: str, line: int | None = None) -> Finished:
    """Return what comes of a spec that could not be run."""
    from regcheck.report.record import record_of_error

    return Finished(str(path), code, record_of_error(str(path), text, line), error=text)


def line_of(error: RegcheckError) -> int | None:
    """Return the line of the spec that an error is about."""
    return error.complaints[0].place.line if isinstance(error, InputError) else None


def finish(path: Path, loaded: LoadedSpec, wanted: Wanted, progress: bool) -> Finished:
    """Run a spec that is read, and write out what was found."""
    load_trainers()
    from regcheck.checking import check_loaded, record, strict
    from regcheck.report.page.paths import PathMeter
    from regcheck.report.record import record_of
    from regcheck.report.terminal.console import in_one_line, progress_bar, without_progress
    from regcheck.user_code.function import TIMEOUT

    timeout, meter = wanted.timeout or TIMEOUT, PathMeter()
    with (progress_bar if progress else without_progress)(path.name) as advance:
        if wanted.record is None:
            report = check_loaded(loaded, advance, timeout, *([meter.take] if wanted.paths else []))
        else:
            report = record(loaded, Path(wanted.record), advance, timeout)
    if wanted.strict:
        report = strict(report)
    notes = []
    if wanted.record is not None:
        notes.append(f"{wanted.record}: recorded torch's {report.comparison.steps:,} steps.")
    if wanted.fixed is not None:
        notes.append(write_fix(loaded, report, wanted.fixed, timeout))
    code = VERDICT_CODES[report.verdict]
    if report.expected is not None:
        code = EQUIVALENT if report.expected else DIVERGED
    found = record_of(report, line_that_matters(loaded, report), meter.result())
    text, line = text_of(report, wanted), in_one_line(report)
    return Finished(str(path), code, found, text, line, "\n".join(notes))


def text_of(report: Report, wanted: Wanted) -> str:
    """Return a report's text for the terminal."""
    from rich.console import Console

    from regcheck.report.terminal.console import print_line
    from regcheck.report.terminal.details import ROWS, print_report
    from regcheck.report.terminal.short import print_short

    stream = StringIO()
    console = Console(
        file=stream,
        width=wanted.width,
        color_system=wanted.colour,  # type: ignore[arg-type]  # rich's own names
        force_terminal=wanted.colour is not None,
        legacy_windows=False,
    )
    rows = wanted.rows
    if wanted.form == "line":
        print_line(report, console)
    elif wanted.form == "details":
        print_report(report, console, ROWS if isinstance(rows, str) else rows)
    elif wanted.form == "short":
        print_short(report, console, rows)
    return stream.getvalue()


MATTERING = (("convention",), ("scratch",), ("framework",), ("optimizer",), ("model",))
"""Keys of a spec that a divergence is about, the likeliest first."""


def line_that_matters(loaded: LoadedSpec, report: Report) -> int | None:
    """Return the line of the spec that the verdict is about: of `expect`, or who differs."""
    keys = (("expect",), *MATTERING) if report.expected is False else MATTERING
    given = (key for key in keys if key in loaded.document.places)
    return next((loaded.document.place(key, of_key=True).line for key in given), 1)


def write_fix(loaded: LoadedSpec, report: Report, name: str, timeout: float) -> str:
    """Write the spec with the fix and run it; return what came of it."""
    from regcheck.checking import check_loaded, no_progress
    from regcheck.diagnosis.records import SpecFix
    from regcheck.report.texts.diagnosis.fixes import not_written
    from regcheck.report.texts.headline import headline
    from regcheck.spec import read_spec
    from regcheck.spec.rewriting import write_fixed

    fix, path = report.diagnosis and report.diagnosis.fix, Path(name)
    if not isinstance(fix, SpecFix):
        return f"{path}: not written: {not_written(report)}"
    text = Path(loaded.document.file).read_text(encoding="utf-8")
    write_fixed(loaded, text, fix.changes, fix.text, path)
    again = check_loaded(read_spec(path), no_progress, timeout)
    return f"{path}: the spec with the fix ({fix.text}), run again: {headline(again)}."


@cache
def load_trainers() -> None:
    """Import what trains and reports.

    Importing torch makes millions of objects that live as long as the process, and the collector
    would walk them over and over: a third of the import's time, and more at exit. Once is enough:
    in a process that others share, as pytest, each time would keep more of their garbage.
    """
    enabled = gc.isenabled()
    gc.disable()
    import regcheck.checking
    import regcheck.report.terminal.short  # noqa: F401

    gc.freeze()
    if enabled:
        gc.enable()
