"""`regcheck explain`: the formulas of conventions, causes, optimizers and specs."""

from __future__ import annotations

import os
import shutil
import sys

import click

from regcheck.cli.explanations import EXPLANATION_FORMATS, as_text, listed
from regcheck.cli.shell import completion
from regcheck.cli.shell.help import WithExamples


@click.command(
    cls=WithExamples,
    examples={
        "regcheck explain": "the rule of every convention",
        "regcheck explain penalty-divided-by-batch": "a cause, optimizer, schedule",
        "regcheck explain training.yaml": "a spec's rules with its numbers",
    },
    short_help="Print update rules: of all conventions, a NAME, or a SPEC.",
)
@click.argument(
    "what", required=False, metavar="[NAME|SPEC]", shell_complete=completion.explainable
)
@click.option("--list", "listing", is_flag=True, help="List every name that can be explained.")
@click.option("--format", "form", type=click.Choice(["text", "json", "markdown"]), default="text")
def explain(what: str | None, listing: bool, form: str) -> None:
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
            from regcheck.explain_spec import explain_spec

            explanation = explain_spec(what)
        else:
            explanation = explaining.explain_name(what)
        if form == "text":
            text = as_text(explanation, shutil.get_terminal_size().columns)
        else:
            text = EXPLANATION_FORMATS[form](explanation)
    if os.environ.get("NO_COLOR") or not sys.stdout.isatty():
        text = click.unstyle(text)
    sys.stdout.write(text.replace("\xa0", " ") + "\n")
