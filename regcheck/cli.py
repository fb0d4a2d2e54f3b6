"""The command line: arguments in, text out, exceptions to exit codes. Nothing else prints."""

from __future__ import annotations

import codecs
import gc
import io
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

import click

from regcheck import __version__
from regcheck.errors import RegcheckError, RunError, UsageError, is_planned, refusal
from regcheck.report.output import (
    EXPLANATION_FORMATS,
    JsonOutput,
    Output,
    TextOutput,
    listed,
    spell,
)

if TYPE_CHECKING:
    from pathlib import Path

    from regcheck.report.result import Report
    from regcheck.spec import LoadedSpec

EQUIVALENT, DIVERGED, UNUSABLE, INTERNAL, INCONCLUSIVE, INTERRUPTED = 0, 1, 2, 3, 4, 130
VERDICT_CODES = {"equivalent": EQUIVALENT, "diverged": DIVERGED, "inconclusive": INCONCLUSIVE}
GRAVEST_FIRST = (INTERNAL, UNUSABLE, DIVERGED, INCONCLUSIVE, EQUIVALENT)

INTERNAL_ERROR = (
    "internal error, and no verdict; please report it to the maintainers, with the lines above"
)

RENAMED = {"patience": "timeout"}
"""Former names of options, which are still taken."""


class Commands(click.Group):
    """The commands; planned ones are refused by name."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the arguments name."""
        if args and is_planned("command", args[0]):
            raise UsageError(refusal("command", args[0]))
        return super().resolve_command(ctx, args)


def step_count(ctx: click.Context, param: click.Parameter, value: str) -> int | None:  # noqa: ARG001
    """Read a number of steps; None stands for all."""
    if value == "all":
        return None
    if not value.strip().isdecimal() or int(value) < 1:
        raise click.BadParameter(f"must be `all` or a whole number ≥ 1, got {value!r}")
    return int(value)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="regcheck")
def commands() -> None:
    """Check whether two trainings follow the same rule, and if not, where and why they differ.

    Exit codes: 0 equivalent, or as the spec expects; 1 diverged, or not as expected; 2 bad usage,
    spec or data; 3 internal error; 4 inconclusive; 130 interrupted.
    """


@commands.command(context_settings={"token_normalize_func": lambda name: RENAMED.get(name, name)})
@click.argument("specs", nargs=-1, required=True, metavar="SPEC...")
@click.option(
    "--steps",
    callback=step_count,
    default="9",
    metavar="N|all",
    help="How many steps the table shows [9].",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON, with every step.")
@click.option("--quiet", is_flag=True, help="Print one line a spec.")
@click.option(
    "--strict",
    is_flag=True,
    help="Exit with 4 if the sides agree, but the run could not have shown some cause.",
)
@click.option("--write-fixed", metavar="FILE", help="Write the spec with the fix, and run it.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0.1),
    metavar="SECONDS",
    help="How long one step of your own code, or of several processes, may take [20].",
)
@click.option("--report", multiple=True, hidden=True)
def run(
    specs: Sequence[str],
    steps: int | None,
    as_json: bool,
    quiet: bool,
    strict: bool,
    write_fixed: str | None,
    timeout: float | None,
    report: Sequence[str],
) -> int:
    """Train both sides of each SPEC in lockstep and compare every step.

    A SPEC is a YAML file, or a folder: every *.yaml and *.yml below it, except hidden ones.
    """
    if report:
        raise UsageError(f"{refusal('option', '--report')}; `--json` prints the report")
    found = [(name, path) for name in specs for path in spec_files(name)]
    if write_fixed is not None and len(found) != 1:
        raise UsageError(f"--write-fixed: takes one spec, got {len(found)}")
    output: Output = JsonOutput(len(found) > 1) if as_json else TextOutput(steps, quiet)
    codes = []
    try:
        for name, path in found:
            if isinstance(path, UsageError):
                output.error(name, str(path))
                codes.append(UNUSABLE)
            else:
                codes.append(run_spec(path, output, strict, write_fixed, timeout))
    finally:
        output.finish()  # an array that was begun is closed, whatever ended the run
    return next(code for code in GRAVEST_FIRST if code in codes)


def spec_files(name: str) -> list[Path] | list[UsageError]:
    """Return a file as it is, and a folder as the specs below it; or what is wrong with the name.

    Files and folders whose names begin with a dot hold settings and environments, not specs.
    """
    from pathlib import Path  # only here: `explain` starts faster without it

    path = Path(name)
    try:
        path.stat()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no such file or folder"
        return [UsageError(f"{path}: {reason.lower()}")]
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


def run_spec(
    path: Path, output: Output, strictly: bool, fixed: str | None, timeout: float | None
) -> int:
    """Run one spec, print what came of it, and return its exit code."""
    from regcheck.spec import read_spec

    try:
        loaded = read_spec(path)  # a bad spec is reported before torch is loaded
        load_trainers()
        from regcheck.checking import check_loaded, strict
        from regcheck.report.terminal import progress
        from regcheck.user_code.function import TIMEOUT

        timeout = timeout or TIMEOUT
        with progress(path.name) as advance:
            report = check_loaded(loaded, advance, timeout)
        if strictly:
            report = strict(report)
        output.report(report)
        if fixed is not None:
            output.note(write_fix(loaded, report, fixed, timeout))
        if report.expected is not None:
            return EQUIVALENT if report.expected else DIVERGED
        return VERDICT_CODES[report.verdict]
    except OSError:
        raise  # standard output cannot be written to
    except RegcheckError as error:
        where = f"{path}: " if isinstance(error, RunError) else ""
        output.error(str(path), f"{where}{error}")
        return UNUSABLE
    except MemoryError:
        output.error(str(path), f"{path}: not enough memory for this many rows and features")
        return UNUSABLE
    except Exception as error:
        sys.excepthook(type(error), error, error.__traceback__)
        output.error(str(path), f"{path}: {INTERNAL_ERROR}")
        return INTERNAL


def write_fix(loaded: LoadedSpec, report: Report, name: str, timeout: float) -> str:
    """Write the spec with the fix and run it; return what came of it."""
    from pathlib import Path

    from regcheck.checking import check_loaded, no_progress
    from regcheck.diagnosis.records import SpecFix
    from regcheck.report.texts.fixes import not_written
    from regcheck.report.texts.text import sentence
    from regcheck.spec import read_spec
    from regcheck.spec.rewriting import write_fixed

    fix, path = report.diagnosis and report.diagnosis.fix, Path(name)
    if not isinstance(fix, SpecFix):
        return f"{path}: not written: {not_written(report)}"
    text = Path(loaded.document.file).read_text(encoding="utf-8")
    write_fixed(loaded, text, fix.changes, fix.text, path)
    again = check_loaded(read_spec(path), no_progress, timeout)
    return f"{path}: the spec with the fix ({fix.text}), run again: {sentence(again)}."


def load_trainers() -> None:
    """Import what trains and reports.

    Importing torch makes millions of objects that live as long as the process, and the collector
    would walk them over and over: a third of the import's time, and more at exit.
    """
    gc.disable()
    import regcheck.checking
    import regcheck.report.terminal  # noqa: F401

    gc.freeze()
    gc.enable()


@commands.command()
@click.argument("what", required=False, metavar="[NAME|SPEC]")
@click.option("--list", "listing", is_flag=True, help="List every name that can be explained.")
@click.option("--format", "form", type=click.Choice(["text", "json", "markdown"]), default="text")
def explain(what: str | None, listing: bool, form: str) -> int:
    """Print the update formulas: of every convention, of one NAME, or with a SPEC's numbers."""
    from regcheck import explain as explaining

    if listing:
        text = listed(explaining.names_by_kind(), form)
    else:
        if what is None:
            explanation = explaining.explain_all()
        elif what not in explaining.all_names() and (
            what.endswith((".yaml", ".yml")) or os.path.exists(what)  # noqa: PTH110
        ):
            explanation = explaining.explain_spec(what)
        else:
            explanation = explaining.explain_name(what)
        text = EXPLANATION_FORMATS[form](explanation)
    if "NO_COLOR" in os.environ or not sys.stdout.isatty():
        text = click.unstyle(text)
    sys.stdout.write(text + "\n")
    return EQUIVALENT


def main() -> NoReturn:
    """Run the command line."""
    codecs.register_error("spell", spell)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="spell")
    code = exit_code()
    try:
        sys.stdout.flush()  # what an interrupted run had printed
    except OSError:
        code = code or INTERRUPTED
    sys.stderr.flush()
    # All is written. Taking the interpreter down object by object would cost a sixth of the time
    # of `explain`, and with torch loaded a third of a second.
    os._exit(code)


def exit_code(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the one place where exceptions become exit codes."""
    try:
        code = commands.main(args=arguments, prog_name="regcheck", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else EQUIVALENT
    except click.ClickException as error:
        error.show()
        return UNUSABLE
    except RegcheckError as error:
        click.echo(str(error), err=True)
        return UNUSABLE
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return INTERRUPTED
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            click.echo(f"standard output cannot be written to: {error.strerror}", err=True)
        # Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return INTERRUPTED if isinstance(error, BrokenPipeError) else UNUSABLE
    except Exception as error:
        sys.excepthook(type(error), error, error.__traceback__)
        click.echo(f"regcheck: {INTERNAL_ERROR}", err=True)
        return INTERNAL
