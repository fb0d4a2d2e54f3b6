"""Odd numbers: each has its own honest outcome, in every dtype."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regcheck.checking import check
from regcheck.errors import InputError
from regcheck.report.result import Report
from tests.conftest import SMALL, Spec, in_one_line, step_of, told

Write = Callable[..., Path]

X = np.array(SMALL["data"]["X"])
Y = np.array(SMALL["data"]["y"])
F32_FIRST = {"scratch": "float32", "framework": "float64"}
F64_FIRST = {"scratch": "float64", "framework": "float32"}
MIXED: list[Any] = [F32_FIRST, F64_FIRST]
every_dtype = pytest.mark.parametrize(
    "dtype", ["float32", "float64", *MIXED], ids=["f32", "f64", "f32-f64", "f64-f32"]
)
single_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])
mixed_dtypes = pytest.mark.parametrize("dtype", MIXED, ids=["f32-f64", "f64-f32"])


def data(X: Any, y: Any) -> Spec:
    return {"data": {"X": np.asarray(X).tolist(), "y": np.asarray(y).tolist()}}


def hidden(report: Report) -> dict[str, str]:
    return dict(report.not_distinguished)


def diverges_at(spec: Spec) -> int | None:
    report = check(spec)
    return step_of(report.first_divergence) if report.verdict == "diverged" else None


# --- few data, and data that say little ---------------------------------------------------------

LITTLE: dict[str, Spec] = {
    "one-row": data(X[:1], Y[:1]),
    "one-feature": data(X[:, :1], Y) | {"init": {"constant": 0.5}},
    "one-row-one-feature": data([[2.0]], [1.0]) | {"init": {"constant": 0.5}},
    "constant-column": data(np.c_[X, [7.0] * 4], Y) | {"init": {"constant": 0.5}, "lr": 1e-3},
    "all-zero-column": data(np.c_[X, [0.0] * 4], Y) | {"init": {"constant": 0.5}},
    "equal-rows": data(np.ones((4, 2)), Y),
    "all-zero": data(np.zeros((4, 2)), np.zeros(4)),
    "equal-targets": data(X, np.ones(4)),
}


@pytest.mark.sampled(every=4)
@every_dtype
@pytest.mark.parametrize("name", LITTLE)
def test_little_data_agree_where_the_rules_do_and_diverge_where_they_do_not(
    name: str, dtype: Any
) -> None:
    spec = SMALL | LITTLE[name] | {"dtype": dtype}
    same = check(spec)
    assert (same.verdict, same.comparison.compared) == ("equivalent", 3)
    assert same.comparison.drift.largest < 1e-4
    # The start is not zero, so that the penalty shows at once, whatever the data.
    other = told(check(spec | {"convention": "doubled"}).first_divergence)
    assert (other.step, other.stage) == (1, "penalty")


@every_dtype
@pytest.mark.parametrize(
    ("changes", "shown", "reasons"),
    [
        ({"lr": 0}, set(), {"penalty-missing": "the lr is 0", "update-sequential": "the lr is 0"}),
        (
            data(np.zeros((4, 2)), np.zeros(4)) | {"init": "zeros"},
            {"penalty-constant"},  # it is added even to what is 0
            {
                "penalty-doubled": "all parameters with weight_decay stay 0",
                "loss-summed": "the gradient stays 0",
            },
        ),
        ({"weight_decay": 0}, None, {}),
    ],
    ids=["lr", "all", "decay"],
)
def test_where_something_is_0_all_agree_and_the_report_says_what_it_could_not_show(
    changes: Spec, shown: set[str] | None, reasons: dict[str, str], dtype: Any
) -> None:
    spec = SMALL | changes | {"dtype": dtype}
    report = check(spec)
    assert (report.verdict, report.comparison.compared) == ("equivalent", 3)
    assert hidden(report).items() >= reasons.items()
    assert all(f"because {why}" in in_one_line(report) for why in reasons.values())
    assert "amplified" not in in_one_line(report)
    # Even a rule that is written otherwise agrees, and the report does not call that a proof.
    doubled = check(spec | {"convention": "doubled"})
    assert doubled.verdict == "equivalent"
    if shown is None:  # no cause of a penalty concerns it, but where it is asked about one
        assert report.not_distinguished == ()
        assert "because weight_decay is 0" in in_one_line(doubled)
        return
    assert not shown & hidden(report).keys()
    assert "nothing in this run distinguishes the two" in in_one_line(doubled)
    start = [[0, 0]] if spec["init"] == "zeros" else [[0.5, -0.3]]
    for side in report.comparison.final.values():  # nothing moves
        assert side.parameters["weight"] == pytest.approx(np.array(start), rel=1e-7, abs=0)


# --- denormal numbers ---------------------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize(
    "changes",
    [
        data(X * 1e-310, Y),
        data(X, Y * 1e-310) | {"init": "zeros"},
        data(X * 1e-310, Y * 1e-310) | {"init": {"constant": 1e-310}},
        data(X * 1e-40, Y * 1e-40) | {"init": {"constant": 1e-40}},
        {"lr": 1e-310},
        {"lr": 1e-40},
        {"weight_decay": 1e-310},
        {"weight_decay": 1e-40},
        data(X * 5e-324, Y * 5e-324) | {"init": "zeros"},
    ],
    ids=["X", "y", "all", "all-1e-40", "lr", "lr-1e-40", "decay", "decay-1e-40", "smallest"],
)
def test_denormal_numbers_raise_no_alarm(changes: Spec, dtype: Any) -> None:
    report = check(SMALL | changes | {"dtype": dtype})
    assert (report.verdict == "diverged", report.comparison.compared) == (False, 3)
    if report.verdict == "inconclusive":  # nothing but rounding is left of these
        assert "rounding may be as large as" in report.reason
    assert report.comparison.drift.amplification is None
    assert math.isfinite(report.comparison.drift.largest)
    if "weight_decay" in changes:
        assert hidden(report)["penalty-doubled"].startswith("its effect ")


@single_dtype
def test_denormal_parameters_of_another_rule_differ_from_torchs(dtype: str) -> None:
    # The gradient is 0 and each step halves the weights; the other rule makes them 0 at once.
    tiny = float(np.finfo(dtype).tiny) * 4
    spec = SMALL | data(np.zeros((2, 2)), np.zeros(2)) | {"dtype": dtype, "epochs": 2}
    spec |= {"init": {"constant": tiny}, "lr": 1.0, "weight_decay": 0.5}
    same = check(spec)
    assert same.verdict == "inconclusive"  # by bounds as large as the steps
    assert 0 < float(same.comparison.final["framework"].parameters["weight"][0, 0]) <= tiny
    # Bounds are absolute there, and as large as what differs; the bits tell.
    assert diverges_at(spec | {"convention": "doubled", "tolerance": "exact"}) == 1


# --- huge numbers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        (
            data(X * 1e15, Y) | {"lr": 1e-32, "dtype": "float32", "init": "zeros"},
            {"loss_reduction": "sum"},
        ),
        (data(X * 1e150, Y) | {"lr": 1e-302, "init": "zeros"}, {"loss_reduction": "sum"}),
        (data(X * 1e30, Y * 1e30) | {"lr": 1e-62}, {"loss_factor": 0.5}),
        # The sigmoids saturate.
        *[
            (data(X * 1e30, [1, 0, 0, 1]) | {"model": "logistic", "lr": 1e-31, "dtype": d}, None)
            for d in ("float32", "float64", *MIXED)
        ],
    ],
    ids=["f32", "f64", "f64-of-f32", *(f"saturated-{n}" for n in ("f32", "f64", "mixed", "xed"))],
)
def test_huge_numbers_that_stay_in_range_are_judged(changes: Spec, wrong: Spec | None) -> None:
    report = check(SMALL | changes)
    assert (report.verdict, report.comparison.compared) == ("equivalent", 3)
    if wrong:
        assert diverges_at(SMALL | changes | {"convention": wrong}) == 1


@mixed_dtypes
def test_huge_data_of_mixed_dtypes_diverge_where_float32_overflows(dtype: Any) -> None:
    assert diverges_at(SMALL | data(X * 1e30, Y * 1e30) | {"lr": 1e-62, "dtype": dtype}) == 1


@pytest.mark.parametrize(("dtype", "big"), [("float32", 1e30), ("float64", 1e300)])
@pytest.mark.parametrize("convention", ["pytorch", "doubled"])
def test_huge_data_whose_gradients_are_out_of_range_are_inconclusive_at_once(
    convention: str, dtype: str, big: float
) -> None:
    spec = SMALL | data(X * big, Y * big) | {"dtype": dtype, "convention": convention}
    report = check(spec)
    found = report.comparison
    assert (report.verdict, found.compared, found.first_unjudged) == ("inconclusive", 0, 1)
    text = in_one_line(report)
    out_of_range = "from step 1 on the numbers are not finite, or too large to be judged."
    assert f"INCONCLUSIVE: {out_of_range}" in text
    # Nothing is claimed.
    assert "agree" not in text
    assert "cannot distinguish" not in text


@pytest.mark.parametrize("dtype", ["float32", *MIXED], ids=str)
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (data(X * 1e300, Y), "float32 cannot hold the data, with a number of size 3e+300"),
        (data(X, Y * 1e300), "float32 cannot hold the data, with a number of size 2e+300"),
        ({"init": {"constant": 1e39}}, "float32 holds numbers up to 3.4e38, got 1e"),
        ({"lr": 1e39}, "lr: float32 holds numbers up to 3.4e38, got 1e"),
    ],
)
def test_numbers_that_float32_cannot_hold_are_refused(changes: Spec, says: str, dtype: Any) -> None:
    with pytest.raises(InputError) as raised:
        check(SMALL | changes | {"dtype": dtype})
    assert says in str(raised.value)
    assert "use float64" in str(raised.value)


def test_losses_alone_out_of_range_are_reported_as_the_losses() -> None:
    # Residuals of 1e300 square beyond float64, and their gradients do not.
    spec = SMALL | data(X, Y * 1e300)
    report = check(spec)
    found = report.comparison
    assert (report.verdict, found.compared) == ("inconclusive", 3)
    assert (found.losses.first_unjudged, found.first_unjudged) == (1, None)
    assert "from step 1 on the reported losses are out of range" in in_one_line(report)
    # The parameters are judged all the same.
    assert diverges_at(spec | {"convention": {"loss_factor": 0.5}}) == 1
    alone = check(spec | {"compare": ["parameters"]})
    assert alone.verdict == "equivalent"
    assert "reported losses are out of range, and not judged" in in_one_line(alone)
