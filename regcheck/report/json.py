"""A report as JSON text.

Rows are written one at a time, so that a long run's text is never held whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from regcheck.report.result import Report, head, row_dict


def json_chunks(report: Report) -> Iterator[str]:
    """Give a report's JSON text in pieces: a readable head, then one line a row."""
    text = json.dumps(head(report), indent=1, ensure_ascii=False)
    yield text.removesuffix("\n}") + ',\n "rows": ['
    separator = "\n  "
    for row in report.comparison.trace:
        yield separator + json.dumps(row_dict(row))
        separator = ",\n  "
    yield "\n ]\n}"
