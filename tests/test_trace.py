"""The rows that a run keeps."""

from __future__ import annotations

from typing import Any

import pytest

from regcheck.checking import check
from regcheck.trace import Trace


def test_trace_gives_back_what_was_compared(small: dict[str, Any]) -> None:
    trace = check(small | {"batch_size": 3, "convention": "doubled"}).trace
    assert len(trace) == 6
    assert [(row.step, row.epoch, row.batch) for row in trace] == [
        (1, 1, 1),
        (2, 1, 2),
        (3, 2, 1),
        (4, 2, 2),
        (5, 3, 1),
        (6, 3, 2),
    ]
    assert trace[-1] == trace[5]
    for row in trace:
        assert list(row.tensors) == ["weight", "bias"]
        for tensor in row.tensors.values():
            assert tensor.ratio == tensor.local / tensor.bound


def test_trace_without_rows_is_empty() -> None:
    trace = Trace(("weight", "bias"))
    assert len(trace) == 0
    assert list(trace) == []
    with pytest.raises(IndexError):
        trace[0]
