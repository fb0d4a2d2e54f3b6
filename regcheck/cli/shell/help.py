"""Help that begins with examples, and ends with the exit codes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from regcheck.cli.exit_codes import MEANINGS


class WithExamples(click.Command):
    """A command whose help begins with examples: what is typed, and what it does."""

    def __init__(
        self, *args: Any, examples: Mapping[str, str], codes: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.examples, self.codes = examples, codes

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, and then what click writes."""
        with formatter.section("Examples"):
            formatter.write_dl(list(self.examples.items()), col_max=formatter.width)
        formatter.write_paragraph()
        super().format_help(ctx, formatter)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the exit codes last."""
        super().format_epilog(ctx, formatter)
        if self.codes:
            with formatter.section("Exit codes"):
                formatter.write_dl([(str(code), meaning) for code, meaning in MEANINGS.items()])


class GroupWithExamples(WithExamples, click.Group):
    """Commands, whose help lists them before the options."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands, then the options."""
        self.format_commands(ctx, formatter)
        click.Command.format_options(self, ctx, formatter)
