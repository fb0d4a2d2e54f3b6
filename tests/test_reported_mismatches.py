"""Mismatches that people reported, through specs, to the numbers recomputed for each.

The numbers are those of `test_user_cases`: weight and bias after step 10, from the formulas in
the reports named there. Here the scratch side's rule is a convention of the spec.
"""

from __future__ import annotations

from typing import Any

import pytest

from regcheck.checking import check
from tests.test_user_cases import BASE, CASES, HEAVY_BALL, MOMENTUM, TOLERANCE, ended

CONVENTIONS: dict[str, Any] = {
    "bias-decay": "bias-free",
    "l2-factor2": {"penalty_factor": 2, "penalize_bias": False},
    "l2-over-m": {"divide_penalty_by": "batch", "penalize_bias": False},
    "momentum-1-minus-mu": {"momentum_form": "dampened"},
    "mse-half": {"loss_factor": 0.5},
    "mse-sum-vs-mean": {"loss_reduction": "sum"},
    "wd-after-momentum": {"decay": "after-momentum"},
}


@pytest.mark.parametrize("name", CONVENTIONS)
def test_reported_numbers_and_first_step_by_a_convention(name: str) -> None:
    case = CASES[name]
    spec = BASE | case.spec | {"convention": CONVENTIONS[name]}
    report = check(spec | {"compare": ["parameters"]})
    assert ended(report, "framework") == pytest.approx(case.framework, rel=0, abs=TOLERANCE)
    assert ended(report, "scratch") == pytest.approx(case.scratch, rel=0, abs=TOLERANCE)
    assert report.first_divergence is not None
    assert report.first_divergence.step == case.step


@pytest.mark.parametrize(
    ("changes", "numbers"),
    [
        # keras-team/keras#14115: torch with Nesterov against a loop without it.
        ({"optimizer": MOMENTUM | {"nesterov": True}}, CASES["nesterov-vs-plain"].framework),
        ({"optimizer": MOMENTUM}, HEAVY_BALL),
        # pytorch/pytorch#1099: at a constant lr the two forms are one rule.
        ({"optimizer": MOMENTUM, "convention": {"momentum_form": "lr-inside"}}, HEAVY_BALL),
    ],
    ids=["nesterov", "plain", "lr inside"],
)
def test_momentum_through_its_own_spec_agrees(changes: dict[str, Any], numbers: Any) -> None:
    report = check(BASE | {"lr": 0.01} | changes)
    assert (report.verdict, report.comparison.compared) == ("equivalent", 10)
    for side in ("scratch", "framework"):
        assert ended(report, side) == pytest.approx(numbers, rel=0, abs=TOLERANCE)


def entries(tensors: dict[str, Any]) -> list[float]:
    """Write a weight and a bias as one list."""
    return [*tensors["weight"][0], *tensors["bias"]]


def test_question_parts_at_step_2_in_the_penalty() -> None:
    # The question: zero start, so the penalty is nothing at step 1; λ/n and the penalty in the
    # reported cost. Its data are not public; any 1,096 rows of 4 features do.
    report = check(
        {
            "data": {"synthetic": {"rows": 1096, "features": 4}},
            "model": "logistic",
            "lr": 0.05,
            "weight_decay": 0.1,
            "epochs": 3,
            "convention": "divided-by-batch",
        }
    ).to_dict()
    assert report["verdict"] == "diverged"
    assert report["first_divergence"]["step"] == 2
    assert report["first_divergence"]["stage"] == "penalty"
    assert report["first_loss_divergence"]["step"] == 2


ANSWER: dict[str, Any] = {
    "data": {"X": [[2.0], [4.0]], "y": [7.0, 11.0]},
    "model": "linear",
    "init": {"weight": [1.0], "bias": [1.0]},
    "lr": 0.1,
    "weight_decay": 1.0,
    "epochs": 1,
    "convention": {"divide_penalty_by": "batch"},
}


def test_answers_numbers_are_in_the_report_to_full_precision() -> None:
    # The answer's two points: z = 3 and 5 against 7 and 11.
    report = check(ANSWER).to_dict()
    sample = report["sample"]
    assert (report["verdict"], sample["step"]) == ("diverged", 1)
    assert sample["before"] == {"weight": [[1.0]], "bias": [1.0]}
    for side in ("scratch", "framework"):
        assert sample[side]["loss"] == 26.0
        assert sample[side]["gradient"] == {"weight": [[-32.0]], "bias": [-10.0]}
    # The last digit is float64's own: 1 - 0.1 (-32 + 1) and so on, with a rounding or two.
    after = {side: entries(sample[side]["after"]) for side in ("scratch", "framework")}
    assert after["framework"] == pytest.approx([4.1, 1.9], rel=2e-16)
    assert after["scratch"] == pytest.approx([4.15, 1.95], rel=2e-16)
    for side, numbers in after.items():
        assert entries(report["final"][side]) == numbers


def test_answers_reported_loss_with_the_penalty_in_it() -> None:
    report = check(ANSWER | {"convention": "divided-by-batch"}).to_dict()
    assert report["first_loss_divergence"]["scratch"] == 26.5  # + 1/(2·2) (1² + 1²)
    assert report["first_loss_divergence"]["framework"] == 26.0
