"""`regcheck init`, `demo` and `schema`: what helps to begin."""

from __future__ import annotations

import json
import os
import re
from contextlib import ExitStack, suppress
from pathlib import Path

import click

import regcheck
from regcheck.cli.exit_codes import DIVERGED, EQUIVALENT
from regcheck.cli.shell.help import WithExamples
from regcheck.errors import UsageError
from regcheck.writing import write_whole

STARTERS = Path(regcheck.__file__).parent / "starters"
"""A folder of files for each start, beside what all of them have."""

SPEC, TEST, SCHEMA = "training.yaml", "test_training.py", "regcheck.schema.json"

NEXT = {
    "question": "the sides diverge at step 2; with `convention: pytorch` they agree",
    "own-code": "both sides agree; then put your own loop into train.py",
    "own-model": "both sides agree; then put your own model into model.py",
}
"""The starts, and what each comes to as it is written."""


@click.command(
    cls=WithExamples,
    examples={
        "regcheck init": "a case that diverges, in this folder",
        "regcheck init check --from own-code": "your NumPy loop, in a folder check",
        "regcheck init my.yaml --from own-model": "your torch model, in my.yaml",
    },
)
@click.argument("path", default=".", type=click.Path())
@click.option(
    "--from",
    "start",
    type=click.Choice([*NEXT]),
    default="question",
    show_default=True,
    help="A case that diverges, your own NumPy loop, or your own torch model.",
)
@click.option("--force", is_flag=True, help="Overwrite files that are there already.")
def init(path: str, start: str, force: bool) -> None:
    """Write a commented spec, the code it names, and a test.

    PATH is a folder, or the spec's file name in one. The spec's JSON Schema is written beside it,
    for editors. Nothing is overwritten without --force.
    """
    given = Path(path)
    of_file = given.suffix in (".yaml", ".yml") and not given.is_dir()
    folder, spec = (given.parent, given.name) if of_file else (given, SPEC)
    if not re.fullmatch(r"[\w. -]+", spec):  # it is named in Python and in YAML
        raise UsageError(f"{path}: name the spec by letters, digits, spaces, and . - _ alone")
    files = {folder / name: text for name, text in starter(start, spec).items()}
    there = [str(file) for file in files if os.path.lexists(file)]
    if there and not force:
        raise UsageError(
            f"{', '.join(there)}: there already, and nothing is written; overwrite with --force, "
            "or name another folder"
        )
    write_all(files)
    click.echo(f"Written: {', '.join(map(str, files))}\n\nTry next:")
    click.echo(f"  regcheck run {folder / spec}    {NEXT[start]}")
    fails = ", which fails until they agree" if start == "question" else ""
    click.echo(f"  pytest {folder / TEST}    the same, as a test{fails}")
    click.echo("Specs called *.regcheck.yaml are tests by themselves: pytest collects them.")


def starter(start: str, spec: str) -> dict[str, str]:
    """Return a start's files by name, with the spec's own name in them; the spec comes first."""
    files = [file for file in (STARTERS / start).iterdir() if file.is_file()]  # pip adds folders
    files = [*sorted(files, key=lambda file: (file.name != SPEC, file.name)), STARTERS / TEST]
    texts = {file.name: file.read_text(encoding="utf-8") for file in files}
    named = {
        spec if name == SPEC else name: text.replace(SPEC, spec) for name, text in texts.items()
    }
    return {**named, SCHEMA: schema_text()}


def write_all(files: dict[Path, str]) -> None:
    """Write files, each whole; if one cannot be written, what is new is taken away again.

    Raises:
        UsageError: a folder cannot be made, or a file cannot be written.
    """
    try:
        with ExitStack() as made:
            for file, text in files.items():
                make_folder(file.parent, made)
                is_new = not os.path.lexists(file)
                write_whole(file, [text])
                if is_new:
                    made.callback(file.unlink, missing_ok=True)
            made.pop_all()  # all are there, and stay
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UsageError(f"{error.filename}: cannot be a folder: {reason}") from error


def make_folder(folder: Path, made: ExitStack) -> None:
    """Make a folder and those above it; `made` takes those away again that are new."""
    missing = [one for one in (folder, *folder.parents) if not os.path.lexists(one)]
    for one in reversed(missing):
        one.mkdir()
        made.callback(remove_empty, one)
    folder.mkdir(exist_ok=True)  # raises where it is a file


def remove_empty(folder: Path) -> None:
    """Remove a folder, unless something is in it that came from elsewhere."""
    with suppress(OSError):
        folder.rmdir()


@click.command(cls=WithExamples, examples={"regcheck demo": "it needs no file"})
@click.option("--details", is_flag=True, help="Print everything that is known.")
def demo(details: bool) -> int:
    """Show a divergence and its cause; needs no file.

    A logistic regression by hand, whose weight decay is divided by the batch size, beside
    torch.optim.SGD. Exits with 0, although the sides diverge: that is what it shows.
    """
    from regcheck.cli.one_run import Wanted, load_trainers, text_of
    from regcheck.cli.run import terminal
    from regcheck.spec import read_spec

    load_trainers()
    from regcheck.checking import check_loaded
    from regcheck.report.terminal.console import progress_bar

    loaded = read_spec(STARTERS / "question" / SPEC)._replace(name="regcheck demo")
    with progress_bar("demo") as advance:
        report = check_loaded(loaded, advance)
    width, colour = terminal()
    wanted = Wanted("details" if details else "short", width=width, colour=colour)
    click.echo(text_of(report, wanted), nl=False, color=True)
    click.echo("Try next: regcheck init --from own-code, and put your own loop into its train.py")
    return EQUIVALENT if report.names("penalty-divided-by-batch") else DIVERGED


def schema_text() -> str:
    """Return the spec's JSON Schema as a file has it."""
    from regcheck.spec.json_schema import spec_schema

    return json.dumps(spec_schema(), indent=1, ensure_ascii=False) + "\n"


@click.command(
    cls=WithExamples,
    examples={"regcheck schema > regcheck.schema.json": "into a file beside your specs"},
)
def schema() -> None:
    """Print the JSON Schema of specs, for editors.

    It has all keys, their values, and a description of each (draft 2020-12). An editor finds it by
    a spec's first line: # yaml-language-server: $schema=regcheck.schema.json
    """
    click.echo(schema_text(), nl=False)
