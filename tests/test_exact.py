"""Exact tolerances by the bit, and what is no number: it passes under no tolerance."""

from __future__ import annotations

import math
from typing import Any

import pytest

from regcheck import checking
from regcheck.checking import check
from regcheck.problem.batches import Batch
from regcheck.problem.problem import Step
from regcheck.trainers import sides
from tests.altered import altered, altered_torch, with_entry
from tests.conftest import SMALL, Spec, in_one_line, step_of, told
from tests.test_tolerance import CASES, MIXED, Both, verdict

ONE_ROW: Spec = {
    # One row of one feature: both sides do the same few operations, in the same order.
    "data": {"X": [[1.3]], "y": [0.7]},
    "model": "linear",
    "init": {"weight": [0.4], "bias": [0.1]},
    "lr": 0.1,
    "weight_decay": 0.01,
    "epochs": 20,
    "compare": ["parameters"],
}


def bits_differ(scratch: Any, framework: Any) -> bool:
    return any(
        scratch[name].astype(float).tobytes() != framework[name].astype(float).tobytes()
        for name in framework
    )


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize(
    "spec",
    [*(SMALL | case for case in CASES.values()), ONE_ROW, ONE_ROW | {"dtype": "float32"}],
    ids=[*CASES, "one-row", "one-row-float32"],
)
def test_exact_diverges_at_the_first_bit_that_differs(spec: Spec) -> None:
    pairs = Both(spec).parameters
    unlike = [number for number, pair in enumerate(pairs) if bits_differ(*pair)]
    report = check(spec | {"tolerance": "exact", "compare": ["parameters"]})
    assert step_of(report.first_divergence) == (max(unlike[0], 1) if unlike else None)
    needed = report.comparison.drift.needed
    assert all(needed[name].exact for name in ("weight", "bias")) == (not unlike)
    # −0.3 and 0.1 are not the same number in float32; on one row every bit is the same.
    at_start = report.first_divergence is not None and report.first_divergence.stage == "initial"
    assert at_start == (spec.get("dtype") == MIXED)
    assert bool(unlike) == (spec["data"] != ONE_ROW["data"])


def put(
    monkeypatch: pytest.MonkeyPatch, tensor: str, value: Any, on: str, *quantities: str
) -> None:
    """Put a value into the first entry of what a side tells of step 2."""

    def change(batch: Batch, given: Step) -> Step:
        if batch.step != 2:
            return given
        index = (0,) * given.after[tensor].ndim
        changed: dict[str, Any] = {
            name: with_entry(getattr(given, name), tensor, index, value)
            for name in quantities or ("after",)
        }
        return given._replace(**changed)

    if on in ("framework", "both"):
        monkeypatch.setattr(sides, "TorchTrainer", altered_torch(change))
    if on in ("scratch", "both"):
        monkeypatch.setattr(checking, "NumpyTrainer", altered(change))


def next_up(value: float) -> float:
    return math.nextafter(value, 9)


# Neither moves: the data are 0, and so is the start.
ZERO = ONE_ROW | {"data": {"X": [[0.0]], "y": [0.0]}, "init": "zeros"}


@pytest.mark.parametrize(
    ("spec", "tensor", "value"),
    [(ONE_ROW, "weight", next_up), (ONE_ROW, "bias", next_up), (ZERO, "weight", -0.0)],
    ids=["last-bit-weight", "last-bit-bias", "sign-of-zero"],
)
def test_exact_sees_the_last_bit_of_each_tensor(
    monkeypatch: pytest.MonkeyPatch, spec: Spec, tensor: str, value: Any
) -> None:
    assert verdict(spec, "exact") == "equivalent"
    put(monkeypatch, tensor, value, "framework")
    report = check(spec | {"tolerance": "exact"})
    first = told(report.first_divergence)
    assert (first.step, first.at.tensor, first.at.ratio) == (2, tensor, math.inf)
    assert {name for name, one in report.comparison.drift.needed.items() if not one.exact} == {
        tensor
    }
    # The last bit is one bound or less: no other kind minds it.
    assert check(spec).verdict != "diverged"


def test_exact_names_the_first_stage_whose_bits_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, "weight", next_up, "framework", "gradient", "after")
    # The last bit is within rounding: at any other limit, only the update itself differs.
    first = check(ONE_ROW | {"tolerance": "exact"}).to_dict()["first_divergence"]
    assert (first["step"], first["stage"], first["on"]) == (2, "gradient", "drift")
    assert 0 < first["within"]["ratio"] < 8
    by_drift = check(ONE_ROW | {"tolerance": {"rtol": 0}}).to_dict()["first_divergence"]
    assert (by_drift["step"], by_drift["stage"]) == (2, "update")


# --- what is no number never passes -------------------------------------------------------------

LARGEST: list[Any] = [
    {"rounding": 1e308},
    {"atol": 1.7e308},
    {"atol": 1e300, "rtol": 0.0},
    {"rounding": 1e308, "weight": {"atol": 1.7e308}, "bias": {"atol": 1.7e308}},
    # rtol |inf| is inf, and so is the difference; torch.testing.assert_close refuses it.
    {"rtol": 1e-5, "atol": 1e-8},
    {"rtol": 1e308},
]


@pytest.mark.sampled(every=12)
@pytest.mark.parametrize(
    ("tensor", "value"), [("weight", math.nan), ("bias", math.inf), ("weight", -math.inf)]
)
@pytest.mark.parametrize("tolerance", [*LARGEST, "exact"], ids=str)
@pytest.mark.parametrize("on", ["scratch", "framework"])
def test_one_side_alone_not_finite_passes_under_no_tolerance(
    monkeypatch: pytest.MonkeyPatch, on: str, tolerance: Any, tensor: str, value: float
) -> None:
    put(monkeypatch, tensor, value, on)
    report = check(SMALL | {"tolerance": tolerance})
    assert report.verdict == "diverged"
    assert report.first_divergence is not None
    assert (report.first_divergence.step, report.first_divergence.at.tensor) == (2, tensor)
    assert report.comparison.drift.needed[tensor][:3] == (math.inf, math.inf, math.inf)
    assert report.smallest_tolerance()[:3] == (math.inf, math.inf, math.inf)
    assert "none" in in_one_line(report).split("Smallest tolerance")[1]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("tolerance", LARGEST, ids=str)
def test_both_sides_not_finite_is_no_pass_either(
    monkeypatch: pytest.MonkeyPatch, tolerance: Any, value: float
) -> None:
    put(monkeypatch, "weight", value, "both")
    report = check(SMALL | {"tolerance": tolerance})
    assert report.verdict == "inconclusive"
    assert (report.comparison.first_unjudged, report.comparison.compared) == (2, 1)
