"""The command line: arguments in, text out, exceptions to exit codes. Nothing else prints."""

from __future__ import annotations

import codecs
import io
import os
import signal
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from types import FrameType
from typing import Any, NoReturn

import click

from regcheck import __version__
from regcheck.cli.exit_codes import (
    EQUIVALENT,
    INTERNAL,
    INTERNAL_ERROR,
    INTERRUPTED,
    UNUSABLE,
)
from regcheck.cli.shell.help import GroupWithExamples
from regcheck.cli.shell.spelling import spell
from regcheck.errors import RegcheckError, UsageError, cut_off, is_planned, refusal

HOMES = {
    "demo": "starting",
    "explain": "explain",
    "init": "starting",
    "run": "run",
    "schema": "starting",
}
"""The commands, and the module of each."""


class Commands(GroupWithExamples):
    """The commands, of which only the one that is used is imported."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """List the commands' names."""
        return [*HOMES]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import a command."""
        if cmd_name not in HOMES:
            return None
        found: click.Command = getattr(import_module(f"regcheck.cli.{HOMES[cmd_name]}"), cmd_name)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the arguments name; planned ones are refused."""
        if args and is_planned("command", args[0]) and not ctx.resilient_parsing:
            raise UsageError(refusal("command", args[0]))
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an EOFError is no interruption, for which click would take it."""
        try:
            return super().invoke(ctx)
        except EOFError as error:
            damage = cut_off(error)
            raise UsageError(damage) if damage else RuntimeError(error) from error


@click.group(
    cls=Commands,
    examples={
        "regcheck run training.yaml": "compare both sides at every step",
        "regcheck explain penalty-divided-by-batch": "what a cause is, and its fix",
        "regcheck init": "write a first spec of your own",
    },
    codes=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="regcheck")
def commands() -> None:
    """Check whether two trainings follow the same rule, and if not, where and why they differ."""


class Termination:
    """What SIGTERM does: as an interrupt it ends workers and takes half-written files away."""

    def __init__(self) -> None:
        self.process, self.last = os.getpid(), -float("inf")

    def __call__(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Interrupt the command.

        Raises:
            KeyboardInterrupt: always, but for a second signal within a second: `timeout` sends two.
        """
        if os.getpid() != self.process:  # a fork of the user's code, which its own parent ends
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        last, self.last = self.last, time.monotonic()
        if self.last - last > 1:
            raise KeyboardInterrupt


def main() -> NoReturn:
    """Run the command line."""
    codecs.register_error("spell", spell)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="spell")
    signal.signal(signal.SIGTERM, Termination())
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
