"""The steps that a page holds, as text that a browser reads into arrays at once."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from regcheck.compare.trace import TraceRow
from regcheck.report.files.words import first_of, limits, shown_rows
from regcheck.report.page.paths import Paths
from regcheck.report.record import Record

MOST_BYTES = 2_300_000
"""Of all numbers in a page: a third more as text, and with the plotting library less than 8 MB."""

LEAST_TENSORS = 4
"""Tensors that a page holds, of fewer steps if need be."""

EACH_STEP, EACH_TENSOR = 3 * 4 + 3 * 8, 4 * 8
"""Bytes of a step, and of each tensor in it."""


class Kept(NamedTuple):
    """What of a run's steps a page holds: every `every`-th step, and these tensors."""

    every: int
    tensors: list[str]


def kept(record: Record, most_bytes: int) -> Kept:
    """Choose the tensors that exceed their limits most, and as many steps as there is room for."""
    assert record.trace is not None
    limit = limits(record)
    tensors = {
        name: max((excess(row, name, limit[name]) for row in shown_rows(record, 100)), default=0.0)
        for name in record.trace.tensors
    }
    first = (record.head["first_divergence"] or {}).get("tensor")
    steps = len(record.trace)
    room = max(LEAST_TENSORS, int(most_bytes / steps - EACH_STEP) // EACH_TENSOR)
    ordered = sorted(tensors, key=lambda name: (name != first, -tensors[name]))[:room]
    size = EACH_STEP + EACH_TENSOR * len(ordered)
    return Kept(max(1, math.ceil(steps * size / most_bytes)), ordered)


def excess(row: TraceRow, name: str, limit: float) -> float:
    """Return how much of what its tolerance allows a tensor's difference is; NaN counts as 0."""
    share = row.tensors[name].judged / limit
    return 0.0 if math.isnan(share) else share


class Mark(NamedTuple):
    """The step that a run comes down to, in words for a plot, and for a button that goes there."""

    step: int
    text: str
    button: str


def mark(record: Record) -> Mark | None:
    """Return the first divergence, or where a run can be judged no longer."""
    first, head = first_of(record), record.head
    if first.parameters is not None:
        return Mark(
            first.parameters, f"first divergence: step {first.parameters:,}", "First divergence"
        )
    if first.losses is not None:
        return Mark(
            first.losses, f"losses differ: step {first.losses:,}", "First difference of losses"
        )
    unjudged = [head[key] for key in ("first_unjudged", "first_loss_unjudged") if head[key]]
    if unjudged:
        step = min(unjudged)
        return Mark(step, f"not judged: step {step:,}", "First step not judged")
    return None


def kept_rows(record: Record, every: int) -> list[TraceRow]:
    """Return every so manieth step, those around the first differences, and the last."""
    assert record.trace is not None
    last = len(record.trace)
    marked = mark(record)
    near = {marked.step + away for away in range(-2, 3)} if marked else set()
    return [
        row
        for place, row in enumerate(record.trace, 1)
        if (place - 1) % every == 0 or place == last or row.step in near
    ]


def steps_text(record: Record, chosen: Kept) -> str:
    """Return a run's steps as JSON that may stand within a page's script."""
    rows, limit, marked = kept_rows(record, chosen.every), limits(record), mark(record)
    judged_by_rounding = {
        name: "rounding" in used for name, used in record.head["tolerance"].items()
    }
    data = {
        "step": whole([row.step for row in rows]),
        "epoch": whole([row.epoch for row in rows]),
        "batch": whole([row.batch for row in rows]),
        "scratch": real([row.scratch_loss for row in rows]),
        "framework": real([row.framework_loss for row in rows]),
        "lossJudged": real([row.loss_judged for row in rows]),
        "lossLimit": limit["loss"],
        "ratio": record.head["summary"]["ratio"],
        "sides": [rule["side"] for rule in record.head["summary"]["rules"]],
        "marked": marked and marked._asdict(),
        "tensors": [
            {
                "name": name,
                "limit": limit[name],
                "byRounding": judged_by_rounding[name],
                "accumulated": real([row.tensors[name].drift for row in rows]),
                "oneStep": real([row.tensors[name].local for row in rows]),
                "bound": real([row.tensors[name].bound for row in rows]),
                "judged": real([row.tensors[name].judged for row in rows]),
            }
            for name in chosen.tensors
        ],
        "paths": record.paths and paths_of(record.paths),
    }
    return within_script(data)


def paths_of(paths: Paths) -> dict[str, Any]:
    """Return the parameters' paths as the page's script reads them."""
    entries = [
        {"name": one.name, "scratch": real(one.scratch), "torch": real(one.torch)}
        for one in paths.entries
    ]
    return {"step": whole(paths.steps), "entries": entries}


def within_script(data: Any) -> str:
    r"""Write data as JSON in which nothing can end a script.

    >>> within_script("</script>")
    '"\\u003c/script>"'
    """
    return json.dumps(data, ensure_ascii=True).replace("<", r"\u003c")


def whole(numbers: Sequence[int]) -> str:
    """Write numbers of steps."""
    return encoded(np.array(numbers, "<u4"))


def real(numbers: Sequence[float]) -> str:
    """Write losses or differences, in full: they may be near either end of float64's range."""
    return encoded(np.array(numbers, "<f8"))


def encoded(values: np.ndarray) -> str:
    """Write an array's bytes in base 64."""
    return base64.b64encode(values.tobytes()).decode()
