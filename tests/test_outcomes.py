"""Odd numbers: each has its own honest outcome, in every dtype."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regcheck import cli
from regcheck.checking import check
from regcheck.errors import InputError
from regcheck.report.result import Report
from regcheck.report.terminal import report_text
from tests.conftest import SMALL

Spec = dict[str, Any]
Write = Callable[..., Path]

X = np.array(SMALL["data"]["X"])
Y = np.array(SMALL["data"]["y"])
F32_FIRST = {"scratch": "float32", "framework": "float64"}
F64_FIRST = {"scratch": "float64", "framework": "float32"}
SINGLE: list[Any] = ["float32", "float64"]
DTYPES: list[Any] = [*SINGLE, F32_FIRST, F64_FIRST]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["f32", "f64", "f32-f64", "f64-f32"])
single_dtype = pytest.mark.parametrize("dtype", SINGLE)
mixed_dtypes = pytest.mark.parametrize("dtype", [F32_FIRST, F64_FIRST], ids=["f32-f64", "f64-f32"])


def data(X: Any, y: Any) -> Spec:
    return {"data": {"X": np.asarray(X).tolist(), "y": np.asarray(y).tolist()}}


def told(report: Report) -> str:
    return " ".join(report_text(report).split())


def step_of(found: Any) -> int | None:
    return None if found is None else found.step


def hidden(report: Report) -> dict[str, str]:
    return dict(report.not_distinguished)


# --- few data, and data that say little ---------------------------------------------------------

LITTLE: dict[str, tuple[Spec, int]] = {
    "one-row": (data(X[:1], Y[:1]), 1),
    "one-feature": (data(X[:, :1], Y) | {"init": {"constant": 0.5}}, 2),
    "one-row-one-feature": (data([[2.0]], [1.0]) | {"init": {"constant": 0.5}}, 1),
    "constant-column": (data(np.c_[X, [7.0] * 4], Y) | {"init": {"constant": 0.5}, "lr": 1e-3}, 2),
    "all-zero-column": (data(np.c_[X, [0.0] * 4], Y) | {"init": {"constant": 0.5}}, 2),
    "equal-rows": (data(np.ones((4, 2)), Y), 2),
    "all-zero": (data(np.zeros((4, 2)), np.zeros(4)), 2),
    "equal-targets": (data(X, np.ones(4)), 2),
}


@every_dtype
@pytest.mark.parametrize("name", sorted(LITTLE))
def test_little_data_agree_where_the_rules_do_and_diverge_where_they_do_not(
    name: str, dtype: Any
) -> None:
    spec = SMALL | LITTLE[name][0] | {"dtype": dtype}
    same = check(spec)
    assert (same.verdict, same.comparison.compared) == ("equivalent", 3)
    assert same.comparison.drift.largest < 1e-4
    # The start is not zero, so that the penalty shows at once, whatever the data.
    other = check(spec | {"convention": "doubled"})
    assert (other.verdict, step_of(other.first_divergence)) == ("diverged", 1)
    assert other.first_divergence is not None
    assert other.first_divergence.stage == "penalty"


@pytest.mark.parametrize(
    ("name", "cause", "because"),
    [
        ("one-row", "loss-summed", "each loss is taken over one row"),
        ("one-row", "penalty-divided-by-batch", "each step sees one row"),
        ("one-row", "penalty-divided-by-dataset", "there is one training row"),
        ("one-row", "target-broadcast", "all targets of a batch are equal"),
        ("equal-targets", "target-broadcast", "all targets of a batch are equal"),
        ("all-zero", "target-broadcast", "all targets of a batch are equal"),
    ],
)
def test_little_data_say_what_they_could_not_show(name: str, cause: str, because: str) -> None:
    report = check(SMALL | LITTLE[name][0])
    assert hidden(report)[cause] == because
    assert cause in told(report)
    assert because in told(report)


@every_dtype
def test_all_zero_data_from_zeros_agree_and_show_next_to_nothing(dtype: Any) -> None:
    spec = SMALL | data(np.zeros((4, 2)), np.zeros(4)) | {"init": "zeros", "dtype": dtype}
    report = check(spec)
    assert report.verdict == "equivalent"
    assert report.comparison.drift.needed["weight"].exact
    assert report.comparison.drift.largest == 0
    found = hidden(report)
    assert found["penalty-doubled"] == "what is penalized stays 0"
    assert found["loss-summed"] == "the gradient stays 0"
    # Even a rule that is written otherwise agrees, and the report does not call that a proof.
    doubled = check(spec | {"convention": "doubled"})
    assert doubled.verdict == "equivalent"
    assert "nothing in this run tells the two apart" in told(doubled)
    # A constant is added even to what is 0.
    assert "penalty-constant" not in found


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (data(np.zeros((0, 2)), np.zeros(0)), "data.X"),
        ({"data": {"X": [[]], "y": [1.0]}}, "data.X"),
        (data([[1.0], [math.nan]], [1.0, 2.0]), "nan"),
        (data([[1.0], [math.inf]], [1.0, 2.0]), "inf"),
        (data([[1.0], [2.0]], [1.0, -math.inf]), "inf"),
        (data([[1.0], [2.0]], [math.nan, 1.0]), "nan"),
    ],
    ids=["no-rows", "no-features", "nan-X", "inf-X", "inf-y", "nan-y"],
)
def test_data_that_are_empty_or_no_numbers_are_refused_with_their_place(
    bad: Spec, says: str, write_spec: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=says):
        check(SMALL | bad | {"init": "zeros"})
    assert cli.exit_code(["run", str(write_spec(**bad, init="zeros"))]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert says in captured.err
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("key", ["lr", "weight_decay"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_settings_that_are_no_numbers_or_negative_are_refused(key: str, value: float) -> None:
    with pytest.raises(InputError, match=key):
        check(SMALL | {key: value})


# --- settings that are 0 ------------------------------------------------------------------------


@every_dtype
def test_zero_lr_agrees_moves_nothing_and_says_that_it_shows_nothing(dtype: Any) -> None:
    report = check(SMALL | {"lr": 0, "dtype": dtype})
    assert (report.verdict, report.comparison.compared) == ("equivalent", 3)
    weight = report.comparison.final["framework"].parameters["weight"]
    assert weight == pytest.approx(np.array([[0.5, -0.3]]), rel=1e-7)
    reasons = hidden(report)
    assert reasons["penalty-missing"] == reasons["update-sequential"] == "the lr is 0"
    assert "because the lr is 0" in told(report)
    assert "amplified" not in told(report)
    doubled = check(SMALL | {"lr": 0, "dtype": dtype, "convention": "doubled"})
    assert doubled.verdict == "equivalent"
    assert "nothing in this run tells the two apart" in told(doubled)


@every_dtype
def test_zero_decay_agrees_and_no_cause_of_a_penalty_concerns_it(dtype: Any) -> None:
    report = check(SMALL | {"weight_decay": 0, "dtype": dtype})
    assert report.verdict == "equivalent"
    assert report.not_distinguished == ()
    # Asked about a penalty, it says that there is none.
    asked = check(SMALL | {"weight_decay": 0, "dtype": dtype, "convention": "doubled"})
    assert asked.verdict == "equivalent"
    assert hidden(asked)["penalty-doubled"] == "weight_decay is 0"
    assert "because weight_decay is 0" in told(asked)


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
        assert "rounding here may be as large as" in report.reason
    assert report.comparison.drift.amplification is None
    assert math.isfinite(report.comparison.drift.largest)


@pytest.mark.parametrize("tiny", [1e-310, 1e-40])
def test_denormal_decay_says_that_its_effect_stays_within_the_tolerance(tiny: float) -> None:
    found = hidden(check(SMALL | {"weight_decay": tiny}))
    assert found["penalty-doubled"].startswith("the effect ")
    assert check(SMALL | {"weight_decay": tiny, "convention": "doubled"}).verdict == "equivalent"


@single_dtype
def test_denormal_parameters_of_another_rule_are_told_from_torchs(dtype: str) -> None:
    # The gradient is 0 and each step halves the weights; the other rule makes them 0 at once.
    tiny = float(np.finfo(dtype).tiny) * 4
    spec = SMALL | data(np.zeros((2, 2)), np.zeros(2)) | {"dtype": dtype, "epochs": 2}
    spec |= {"init": {"constant": tiny}, "lr": 1.0, "weight_decay": 0.5}
    same = check(spec)
    assert same.verdict == "inconclusive"  # by bounds as large as the steps
    assert 0 < float(same.comparison.final["framework"].parameters["weight"][0, 0]) <= tiny
    # Bounds are absolute there, and as large as what differs; the bits tell.
    exact = check(spec | {"convention": "doubled", "tolerance": "exact"})
    assert (exact.verdict, step_of(exact.first_divergence)) == ("diverged", 1)


# --- huge numbers -------------------------------------------------------------------------------


@single_dtype
def test_huge_numbers_that_stay_in_range_agree(dtype: str) -> None:
    big = {"float32": 1e15, "float64": 1e150}[dtype]
    spec = SMALL | data(X * big, Y) | {"lr": 0.01 / big**2, "dtype": dtype}
    report = check(spec | {"init": "zeros"})
    assert (report.verdict, report.comparison.compared) == ("equivalent", 3)
    summed = check(spec | {"init": "zeros", "convention": {"loss_reduction": "sum"}})
    assert (summed.verdict, step_of(summed.first_divergence)) == ("diverged", 1)


@pytest.mark.parametrize(("dtype", "big"), [("float32", 1e30), ("float64", 1e300)])
def test_huge_data_whose_gradients_are_out_of_range_are_inconclusive_at_once(
    dtype: str, big: float, write_spec: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = data(X * big, Y * big) | {"dtype": dtype}
    report = check(SMALL | changes)
    assert (report.verdict, report.comparison.compared, report.comparison.first_unjudged) == (
        "inconclusive",
        0,
        1,
    )
    text = told(report)
    assert (
        "INCONCLUSIVE: from step 1 on the numbers are infinite, or too near it to be judged."
        in text
    )
    assert "agree" not in text
    assert "cannot tell" not in text
    # A rule that differs cannot be told either: nothing is claimed.
    other = check(SMALL | changes | {"convention": "doubled"})
    assert other.verdict == "inconclusive"
    assert cli.exit_code(["run", "--quiet", str(write_spec(**changes))]) == 4
    assert capsys.readouterr().err == ""


def test_huge_data_of_float32_are_no_trouble_in_float64() -> None:
    spec = SMALL | data(X * 1e30, Y * 1e30)
    assert check(spec | {"lr": 1e-62}).verdict == "equivalent"
    diverged = check(spec | {"lr": 1e-62, "convention": {"loss_factor": 0.5}})
    assert (diverged.verdict, step_of(diverged.first_divergence)) == ("diverged", 1)


@pytest.mark.parametrize("dtype", ["float32", F32_FIRST, F64_FIRST], ids=str)
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (data(X * 1e300, Y), "float32 cannot hold the data, whose largest number is 3e+300"),
        (data(X, Y * 1e300), "float32 cannot hold the data, whose largest number is 2e+300"),
        ({"init": {"constant": 1e39}}, "float32 holds numbers up to 3.4e38, got 1e"),
        ({"lr": 1e39}, "lr: float32 holds numbers up to 3.4e38, got 1e"),
    ],
)
def test_numbers_that_float32_cannot_hold_are_refused(changes: Spec, says: str, dtype: Any) -> None:
    with pytest.raises(InputError) as raised:
        check(SMALL | changes | {"dtype": dtype})
    assert says in str(raised.value)
    assert "use float64" in str(raised.value)


def test_losses_alone_out_of_range_are_told_as_the_losses(
    write_spec: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    # Residuals of 1e300 square beyond float64, and their gradients do not.
    changes = data(X, Y * 1e300)
    report = check(SMALL | changes)
    assert (
        report.verdict,
        report.comparison.first_loss_unjudged,
        report.comparison.first_unjudged,
    ) == (
        "inconclusive",
        1,
        None,
    )
    assert report.comparison.compared == 3
    assert "from step 1 on the reported losses are out of range" in told(report)
    # The parameters are judged all the same.
    doubled = check(SMALL | changes | {"convention": {"loss_factor": 0.5}})
    assert (doubled.verdict, step_of(doubled.first_divergence)) == ("diverged", 1)
    alone = SMALL | changes | {"compare": ["parameters"]}
    assert check(alone).verdict == "equivalent"
    assert "reported losses are out of range, and not judged" in told(check(alone))
    assert cli.exit_code(["run", "--quiet", str(write_spec(**changes))]) == 4
    assert "INCONCLUSIVE" in capsys.readouterr().out


@every_dtype
def test_saturated_sigmoids_of_huge_data_agree(dtype: Any) -> None:
    spec = SMALL | data(X * 1e30, [1, 0, 0, 1]) | {"model": "logistic", "dtype": dtype}
    report = check(spec | {"lr": 1e-31})
    assert (report.verdict, report.comparison.compared) == ("equivalent", 3)


# --- trainings that blow up ---------------------------------------------------------------------

BLOW_UPS: dict[str, Spec] = {
    "slowly": {"lr": 30, "epochs": 140},
    "fast": {"lr": 1e6, "epochs": 60},
    "momentum": {"lr": 100, "epochs": 120, "optimizer": {"name": "sgd", "momentum": 0.9}},
    "logistic": data(X, [1, 0, 0, 1]) | {"model": "logistic", "lr": 1e6, "epochs": 60},
}


@single_dtype
@pytest.mark.parametrize("name", sorted(BLOW_UPS))
def test_blow_up_of_both_sides_is_inconclusive_from_there_and_what_came_before_is_judged(
    name: str, dtype: str
) -> None:
    report = check(SMALL | BLOW_UPS[name] | {"dtype": dtype, "compare": ["parameters"]})
    assert report.verdict == "inconclusive"
    assert report.first_divergence is None
    last = report.comparison.first_unjudged
    assert last is not None
    assert last > 3
    assert report.comparison.compared == last - 1 == len(report.comparison.trace) - 1
    assert report.verdict_step == last
    assert report.reason == (
        f"from step {last} on the numbers are infinite, or too near it to be judged"
    )
    assert f"; steps 1 to {last - 1} agree." in told(report)
    # Every step before is judged, by a number.
    for row in list(report.comparison.trace)[:-1]:
        assert all(tensor.ratio < 8 for tensor in row.tensors.values())
    data_ = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data_["first_unjudged"] == last


@single_dtype
@pytest.mark.parametrize("name", sorted(BLOW_UPS))
def test_blow_up_of_a_rule_that_differs_before_is_still_a_divergence(name: str, dtype: str) -> None:
    spec = SMALL | BLOW_UPS[name] | {"dtype": dtype, "convention": "doubled"}
    report = check(spec)
    assert (report.verdict, step_of(report.first_divergence)) == ("diverged", 1)
    assert report.comparison.first_unjudged is not None
    assert f"From step {report.comparison.first_unjudged} on the numbers are infinite" in told(
        report
    )


@single_dtype
@pytest.mark.parametrize("name", ["slowly", "momentum"])
def test_blow_up_of_a_rule_that_is_seen_later_is_a_divergence_at_that_step(
    name: str, dtype: str
) -> None:
    # The two rules are the same until the lr changes, in step 3.
    later: Spec = {
        "optimizer": {"name": "sgd", "momentum": 0.9},
        "lr_schedule": {"kind": "step", "every": 2, "factor": 0.5},
        "convention": {"momentum_form": "lr-inside"},
    }
    report = check(SMALL | BLOW_UPS[name] | {"dtype": dtype} | later)
    assert (report.verdict, step_of(report.first_divergence)) == ("diverged", 3)
    same = check(SMALL | BLOW_UPS[name] | {"dtype": dtype} | later | {"convention": "pytorch"})
    assert same.first_divergence is None


@single_dtype
def test_blow_up_has_losses_that_leave_the_range_first(dtype: str) -> None:
    report = check(SMALL | BLOW_UPS["fast"] | {"dtype": dtype})
    assert report.verdict == "inconclusive"
    assert report.comparison.first_loss_unjudged is not None
    assert report.comparison.first_unjudged is not None
    assert report.comparison.first_loss_unjudged < report.comparison.first_unjudged
    text = told(report)
    before = report.comparison.first_loss_unjudged - 1
    assert f"; steps 1 to {before} agree." in text
    losses = f"from step {before + 1} on the reported losses are out of range"
    assert (
        f"{losses}, and from step {report.comparison.first_unjudged} on the numbers are infinite"
        in text
    )
    assert report.verdict_step == before + 1


def test_blow_up_exits_4_or_as_its_divergence(
    write_spec: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    blow_up: Spec = {"lr": 1e6, "epochs": 60}
    assert cli.exit_code(["run", "--quiet", str(write_spec(**blow_up))]) == 4
    assert cli.exit_code(["run", "--quiet", str(write_spec(**blow_up, convention="doubled"))]) == 1
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "nan" not in captured.out


@mixed_dtypes
@pytest.mark.parametrize("name", sorted(BLOW_UPS))
def test_blow_up_of_float32_alone_is_a_divergence_at_that_step(name: str, dtype: Any) -> None:
    report = check(SMALL | BLOW_UPS[name] | {"dtype": dtype})
    assert report.verdict == "diverged"
    first = report.first_divergence
    assert first is not None
    here, there = math.isfinite(first.at.scratch), math.isfinite(first.at.framework)
    assert (here, there) == (dtype is F64_FIRST, dtype is F32_FIRST)
    # float64 is beyond float32's range there, and was not in the step before.
    sides = {"scratch": first.at.scratch, "framework": first.at.framework}
    finite = sides["scratch" if dtype is F64_FIRST else "framework"]
    assert abs(finite) > 1e30
    before = list(report.comparison.trace)[: first.step - 1]
    assert before
    assert all(tensor.ratio < 8 for row in before for tensor in row.tensors.values())
    side = "scratch" if dtype is F32_FIRST else "torch"
    assert f"float32 ends at 3.4e+38: the {side} side overflows" in told(report)


@mixed_dtypes
def test_huge_data_of_mixed_dtypes_diverge_where_float32_overflows(dtype: Any) -> None:
    report = check(SMALL | data(X * 1e30, Y * 1e30) | {"lr": 1e-62, "dtype": dtype})
    assert (report.verdict, step_of(report.first_divergence)) == ("diverged", 1)


def test_blow_up_in_json_is_json(write_spec: Write, capsys: pytest.CaptureFixture[str]) -> None:
    cli.exit_code(["run", "--json", str(write_spec(lr=1e6, epochs=60))])
    text = capsys.readouterr().out

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    report = json.loads(text, parse_constant=refuse)
    assert report["verdict"] == "inconclusive"
    assert "inf" in (report["final"]["scratch"]["loss"], report["final"]["framework"]["loss"])
