"""Records of runs that several tests of report files take, each made once."""

from __future__ import annotations

import copy
import json
from array import array
from functools import cache
from typing import Any

from regcheck.checking import check
from regcheck.compare.trace import Trace
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


def longer(record: Record, steps: int) -> Record:
    """Return a run with as many steps, each a copy of the last one but for its number."""
    assert record.trace is not None
    numbers = record.trace.numbers[:]  # of a few steps, which are all in memory
    last = numbers[-record.trace.width :]
    for step in range(len(record.trace) + 1, steps + 1):
        last[:2] = array("d", (step, step))
        numbers.extend(last)
    trace = Trace(record.trace.tensors)
    trace.__setstate__((record.trace.tensors, numbers))
    return record._replace(head=record.head | {"steps": steps, "compared": steps}, trace=trace)


def renamed(record: Record, old: str, new: str) -> Record:
    """Return a run in which a tensor has another name."""
    assert record.trace is not None
    head = json.loads(json.dumps(record.head).replace(json.dumps(old), json.dumps(new)))
    trace = Trace(tuple(new if name == old else name for name in record.trace.tensors))
    trace.numbers = record.trace.numbers
    return Record(head, trace)
