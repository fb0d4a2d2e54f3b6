"""Assertions for test suites."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regcheck.checking import Code, check
from regcheck.report.terminal.details import report_text


def assert_equivalent(
    spec: str | Path | Mapping[str, Any],
    *,
    scratch: Code | None = None,
    framework: Code | None = None,
) -> None:
    """Raise AssertionError, with the whole report, unless a spec's two sides are equivalent.

    An inconclusive run raises too: it is no pass. The arguments are those of `regcheck.check`.
    """
    report = check(spec, scratch=scratch, framework=framework)
    if report.verdict != "equivalent":
        raise AssertionError("\n" + report_text(report))
