"""The JSON report: one envelope around all runs, whatever their number.

Rows are written one at a time, so that a long run's text is never held whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from regcheck.report.json import row_text
from regcheck.report.record import Record

SCHEMA_VERSION = 1
"""Of the envelope and all in it; keys may be added without another one."""


CLOSING = "\n]}\n"


def opening() -> str:
    """Return how the envelope begins, up to its first run."""
    return f'{{"schema_version": {SCHEMA_VERSION}, "runs": [\n'


def json_chunks(records: Iterable[Record]) -> Iterator[str]:
    """Yield the JSON text of some runs in pieces."""
    separator = opening()
    for record in records:
        yield separator
        yield from run_chunks(record)
        separator = ",\n"
    yield CLOSING


def run_chunks(record: Record) -> Iterator[str]:
    """Yield one run: a readable head, then one line a row."""
    text = json.dumps(record.head, indent=1, ensure_ascii=False)
    if record.trace is None:
        yield text
        return
    yield text.removesuffix("\n}") + ',\n "rows": ['
    separator = "\n  "
    for row in record.trace:
        yield separator + row_text(row)
        separator = ",\n  "
    yield "\n ]\n}"
