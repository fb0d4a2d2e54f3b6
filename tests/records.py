"""Records of runs that several tests of report files take, each made once."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

from regcheck.checking import check
from regcheck.report.record import Record, record_of
from tests.conftest import ROOT, SMALL

HOSTILE = "a|b `c` ``d <script>alert(1)</script> & *e* _f_ [g](h) \\| ~~i~~ # $j$.yaml"
"""The name of a spec with whatever means something in Markdown or HTML."""


@cache
def question() -> Record:
    """Return the run of the question's own case."""
    return record_of(check(ROOT / "configs/stackoverflow.yaml"))


def run(**changes: Any) -> Record:
    """Return the run of the small spec with some keys changed."""
    return record_of(check(copy.deepcopy(SMALL) | changes))


def inconclusive() -> Record:
    """Return a run whose numbers overflow on both sides."""
    return run(lr=1e6, epochs=100)


def named(record: Record, name: str) -> Record:
    """Return a run with another name, wherever that stands."""
    summary = record.head["summary"] | {"subject": f"{name}: linear"}
    return record._replace(head=record.head | {"spec": name, "summary": summary})
