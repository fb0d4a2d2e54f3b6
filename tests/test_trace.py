"""The rows that a run keeps."""

from __future__ import annotations

import errno
import gc
import math
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml

from regcheck import cli
from regcheck.checking import check
from regcheck.cli.exit_codes import UNUSABLE
from regcheck.compare import trace as trace_module
from regcheck.compare.differences import Difference
from regcheck.compare.trace import Trace
from regcheck.errors import StorageError
from tests.conftest import json_text, told


def test_trace_gives_back_what_was_compared(small: dict[str, Any]) -> None:
    trace = check(small | {"batch_size": 3, "convention": "doubled"}).comparison.trace
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


def trace_of(rows: int) -> Trace:
    """Make a trace whose row k holds numbers that tell it from all others."""
    trace = Trace(("weight",))
    at = Difference("weight", (0,), 0.0, 0.0, 0.0, 0.5, 0.0, True)
    for step in range(1, rows + 1):
        local = at._replace(difference=step / 3)
        row = SimpleNamespace(step=step, epoch=step, batch=1, scratch_loss=step / 7)
        row.framework_loss, row.loss, row.judged = math.nan, None, {"weight": local}
        row.local, row.drift = {"weight": local}, {"weight": float(step)}
        trace.append(cast(Any, row))
    return trace


@pytest.mark.parametrize("rows", [1, 3, 4, 7, 8, 9, 25])
def test_trace_gives_back_the_same_rows_from_memory_and_from_its_file(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = trace_of(rows)
    assert held.file is None
    monkeypatch.setattr(trace_module, "MOST_NUMBERS", 4 * held.width)  # four rows
    filed = trace_of(rows)
    assert filed.filed == rows // 4 * 4
    assert len(filed) == rows
    assert str(list(filed)) == str(list(held))  # NaN is not NaN
    for index in (0, rows // 2, rows - 1, -1, -rows):
        assert str(filed[index]) == str(held[index])
    for index in (rows, -rows - 1):
        with pytest.raises(IndexError):
            filed[index]


def test_trace_leaves_no_file_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(trace_module, "MOST_NUMBERS", 1)
    trace = trace_of(2)
    file = trace.file
    assert list(tmp_path.iterdir()) == []
    del trace
    gc.collect()
    assert told(file).closed


def test_trace_without_room_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: dict[str, Any]
) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    monkeypatch.setattr(trace_module, "MOST_NUMBERS", 1)
    with pytest.raises(StorageError, match=r"cannot be stored there: No space left .* TMPDIR"):
        check(small)
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(small))
    assert cli.exit_code(["run", str(path)]) == UNUSABLE


def test_json_of_a_trace_in_a_file_is_that_of_one_in_memory(
    monkeypatch: pytest.MonkeyPatch, small: dict[str, Any]
) -> None:
    held = json_text(check(small | {"batch_size": 1}))
    monkeypatch.setattr(trace_module, "MOST_NUMBERS", 40)
    filed = check(small | {"batch_size": 1})
    assert filed.comparison.trace.filed
    assert json_text(filed) == held
