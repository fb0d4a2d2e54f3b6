"""A report as the terminal prints it."""

from __future__ import annotations

from io import StringIO
from typing import Any

from rich.console import Console

from regcheck.checking import check
from regcheck.report.terminal.details import print_report

Spec = dict[str, Any]


def printed(spec: Spec, *, width: int = 80, rows: int | None = 9, colour: bool = False) -> str:
    stream = StringIO()
    console = Console(
        file=stream, width=width, force_terminal=colour, color_system="standard" if colour else None
    )
    print_report(check(spec), console, rows)
    return stream.getvalue()
