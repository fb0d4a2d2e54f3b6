"""Assertions for test suites."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regcheck.checking import Code, check
from regcheck.report.terminal.short import short_text
from regcheck.report.texts.headline import with_causes


def assert_equivalent(
    spec: str | Path | Mapping[str, Any],
    *,
    scratch: Code | None = None,
    framework: Code | None = None,
) -> None:
    """Raise AssertionError, with the short report, unless a spec's two sides are equivalent.

    The first line is the verdict with the cause, which is what a test runner's summary shows. An
    inconclusive run raises too: it is no pass. The arguments are those of `regcheck.check`.
    """
    __tracebackhide__ = True  # pytest shows the test's own line alone
    report = check(spec, scratch=scratch, framework=framework)
    if report.verdict != "equivalent":
        raise AssertionError(f"{with_causes(report)}\n\n{short_text(report).rstrip()}")
