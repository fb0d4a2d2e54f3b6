"""`regcheck run`: run each spec, show what comes of it, and write the report files at the end."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from regcheck.cli.exit_codes import GRAVEST_FIRST, UNUSABLE
from regcheck.cli.one_run import Finished, Wanted, failed, run_spec
from regcheck.cli.outputs import Ended, JsonOutput, Output, TextOutput
from regcheck.cli.shell import completion
from regcheck.cli.shell.help import WithExamples
from regcheck.errors import UsageError
from regcheck.writing import check_distinct, checked

if TYPE_CHECKING:
    from regcheck.report.record import Record

RENAMED = {"patience": "timeout"}
"""Former names of options, which are still taken."""

AS_FORM = ""
"""The number of steps where `--steps` is not there: as the form of the report has it."""


def step_count(ctx: click.Context, param: click.Parameter, value: str) -> int | str | None:  # noqa: ARG001
    """Read a number of steps; None stands for all."""
    if value == "all":
        return None
    if value == AS_FORM:
        return AS_FORM
    if not value.strip().isdecimal() or int(value) < 1:
        raise click.BadParameter(f"must be `all` or a whole number ≥ 1, got {value!r}")
    return int(value)


@click.command(
    cls=WithExamples,
    examples={
        "regcheck run training.yaml": "compare both sides at every step",
        "regcheck run specs --quiet": "all specs below a folder, a line each",
        "regcheck run specs --report out.xml": "and write JUnit; .json, .csv, .md",
    },
    codes=True,
    context_settings={"token_normalize_func": lambda name: RENAMED.get(name, name)},
)
@click.argument(
    "specs", nargs=-1, required=True, metavar="SPEC...", shell_complete=completion.specs
)
@click.option("--details", is_flag=True, help="Print everything that is known.")
@click.option(
    "--steps",
    callback=step_count,
    default=AS_FORM,
    metavar="N|all",
    help="How many steps the table shows, with every tensor.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON, with every step.")
@click.option(
    "--report",
    "reports",
    multiple=True,
    metavar="FILE",
    help="Write a report file too; the suffix is the format. Repeatable.",
)
@click.option("--quiet", is_flag=True, help="Print one line a spec.")
@click.option(
    "--strict",
    is_flag=True,
    help="Exit with 4 if the sides agree, but the run could not have shown some cause.",
)
@click.option("--write-fixed", metavar="FILE", help="Write the spec with the fix, and run it.")
@click.option("--record", metavar="FILE", help="Record torch's steps, an .npz for `golden: FILE`.")
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    metavar="N",
    help="How many specs run at once [the number of cores].",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0.1),
    metavar="SECONDS",
    help="How long one step of your own code, or of several processes, may take [20].",
)
def run(
    specs: Sequence[str],
    details: bool,
    steps: int | str | None,
    as_json: bool,
    reports: Sequence[str],
    quiet: bool,
    strict: bool,
    write_fixed: str | None,
    record: str | None,
    jobs: int | None,
    timeout: float | None,
) -> int:
    """Train both sides of each SPEC in lockstep and compare every step.

    A SPEC is a YAML file, or a folder: every *.yaml and *.yml below it, except hidden ones.
    """
    files, on_github = checked_files(reports, write_fixed, record), in_github_actions()
    found = [(name, path) for name in specs for path in spec_files(name)]
    for option, name in (("--write-fixed", write_fixed), ("--record", record)):
        if name is not None and len(found) != 1:
            raise UsageError(f"{option}: takes one spec, got {len(found)}")
    form = "none" if as_json else "line" if quiet else "details" if details else "short"
    width, colour = terminal()
    paths = any(file.suffix.lower() == ".html" for file in files)
    wanted = Wanted(form, steps, width, colour, strict, timeout, write_fixed, record, paths)
    output: Output = JsonOutput() if as_json else TextOutput(len(found) > 1, rule(form, width))
    codes, records, ended = [], [], Ended(len(found))
    try:
        for one in results(found, wanted, jobs or default_jobs(), ended):
            ended.clear()
            output.add(one)
            codes.append(one.code)
            if files or on_github:
                records.append(one.record)
    finally:
        ended.clear()
        output.finish()  # an envelope that was begun is closed, whatever ended the run
    unwritten = written(files, records)
    if on_github:
        from regcheck.report.github import tell_github

        tell_github(records)
    return next(code for code in GRAVEST_FIRST if code in [*codes, *unwritten])


def checked_files(
    reports: Sequence[str], write_fixed: str | None, record: str | None
) -> list[Path]:
    """Return the report files, if every file that is asked for can be written.

    Raises:
        UsageError: one cannot; said before anything is trained.
    """
    from regcheck.report.files.writing import checked_report

    named = [("--write-fixed", write_fixed), ("--record", record)]
    named += [("--report", name) for name in reports]
    if record is not None:
        from regcheck.golden import SUFFIX

        checked("--record", record, [SUFFIX])
    check_distinct((option, name) for option, name in named if name is not None)
    return [checked_report(name) for name in reports]


def written(files: Sequence[Path], records: Sequence[Record]) -> list[int]:
    """Write report files; one that cannot be written stops no other, and is an error's code."""
    from regcheck.report.files.writing import write_report

    codes = []
    for file in files:
        try:
            write_report(file, records)
        except UsageError as error:
            click.echo(str(error), err=True)
            codes.append(UNUSABLE)
    return codes


def results(
    found: Sequence[tuple[str, Path | UsageError]], wanted: Wanted, jobs: int, ended: Ended
) -> Iterator[Finished]:
    """Yield what comes of each spec, and what is wrong with names, in their order."""
    paths = [path for _, path in found if isinstance(path, Path)]
    if jobs == 1 or len(paths) < 2:
        runs: Iterator[Finished] = (run_spec(path, wanted, progress=True) for path in paths)
    else:
        from regcheck.cli.jobs import run_specs

        runs = run_specs(paths, wanted, jobs, ended.add)
    for name, path in found:
        yield next(runs) if isinstance(path, Path) else failed(Path(name), UNUSABLE, str(path))


def default_jobs() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_github_actions() -> bool:
    """Return whether this process is part of a GitHub workflow."""
    return os.environ.get("GITHUB_ACTIONS") == "true"


def terminal() -> tuple[int, str | None]:
    """Return the width and the colours of standard output, as rich finds them."""
    from rich.console import Console

    console = Console(file=sys.stdout)
    return console.width, console.color_system


def rule(form: str, width: int) -> str:
    """Return what stands between reports, and before the summary of several."""
    return "" if form == "line" else f"\n{'─' * width}\n"


def spec_files(name: str) -> list[Path] | list[UsageError]:
    """Return a file as it is, and a folder as the specs below it; or what is wrong with the name.

    Files and folders whose names begin with a dot hold settings and environments, not specs.
    """
    path = Path(name)
    try:
        path.stat()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no such file or folder"
        from regcheck.spec.yaml_text import meant

        return [UsageError(f"{path}: {reason.lower()}{meant(path)}")]
    if not path.is_dir():
        return [path]
    found = sorted(
        one
        for one in path.rglob("*")
        if one.suffix in (".yaml", ".yml")
        and one.is_file()
        and not any(part.startswith(".") for part in one.relative_to(path).parts)
    )
    return found or [UsageError(f"{path}: no *.yaml or *.yml file in this folder or below it")]
