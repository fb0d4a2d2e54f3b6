"""The diagnosis of a run: causes, alone and together, and fitted factors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from regcheck.checking import check
from regcheck.report.summary import summary
from regcheck.report.terminal.details import report_text
from regcheck.rules.convention import NAMED
from tests.by_hand import (
    BASE,
    BATCHES,
    LAMBDA,
    LOGISTIC,
    LR,
    MOMENTUM,
    ROWS,
    TORCHS,
    At,
    Spec,
    Step,
    Train,
    causes_of,
    code,
    descent,
    found_by,
)
from tests.conftest import told

# --- several causes at once -----------------------------------------------------------------------

OVER_N = descent(LAMBDA / ROWS, of_bias=0.0)


def damped_and_late(at: At) -> tuple[Any, Any]:
    v = at.memory["v"] = 0.9 * at.memory.get("v", 0) + 0.1 * at.gw
    c = at.memory["c"] = 0.9 * at.memory.get("c", 0) + 0.1 * at.gb
    return at.along(v, c)


PAIRS: dict[str, tuple[Step, Spec, list[str], list[list[str]]]] = {
    "λ/n and a free bias, full batch": (
        OVER_N,
        {},
        ["bias-not-penalized", "penalty-divided-by-batch"],
        [["bias-not-penalized", "penalty-divided-by-dataset"]],
    ),
    "λ/n and a free bias, mini-batches": (
        OVER_N,
        BATCHES,
        ["bias-not-penalized", "penalty-divided-by-dataset"],
        [],
    ),
    "half the loss and a doubled penalty": (
        descent(2 * LAMBDA, by=0.5),
        {},
        ["loss-halved", "penalty-doubled"],
        [],
    ),
    "a doubled lr that makes up for half the loss": (
        descent(LAMBDA, by=0.5, lr=2 * LR),
        {},
        ["penalty-doubled"],
        [["learning-rate-scaled", "loss-halved"]],
    ),
    "dampened momentum and decay after it": (
        damped_and_late,
        MOMENTUM,
        ["decay-after-momentum", "momentum-dampened"],
        [
            ["momentum-dampened", "penalty-decoupled"],
            ["decay-after-momentum", "gradient-scaled"],
            ["gradient-scaled", "penalty-decoupled"],
        ],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
def test_causes_that_act_together_are_told_together(name: str) -> None:
    step, spec, causes, others = PAIRS[name]
    found = found_by(code(step), **spec)
    assert found["explained"]
    assert causes_of(found) == causes
    assert found["alternatives"] == others
    assert all(cause["kind"] == "update" for cause in found["causes"])
    assert found["residual_ratio"] <= 8  # the default tolerance, in rounding bounds
    assert found["clues"] == []


@pytest.mark.slow
def test_half_loss_and_doubled_penalty_with_a_doubled_lr_are_a_fourfold_penalty() -> None:
    # 2 lr (g/2 + 2 λ w) = lr (g + 4 λ w)
    found = found_by(code(descent(2 * LAMBDA, by=0.5, lr=2 * LR)))
    assert causes_of(found) == ["penalty-scaled"]
    assert found["causes"][0]["factor"] == pytest.approx(4, rel=1e-9)
    assert ["learning-rate-scaled", "loss-halved", "penalty-doubled"] in found["alternatives"]


def test_sum_over_the_number_of_all_samples_is_told_as_one_slip() -> None:
    def over_all(at: At) -> tuple[Any, Any]:
        return descent(LAMBDA, by=len(at.y) / ROWS)(at)

    report = check(BASE | BATCHES, scratch=code(over_all))
    short = summary(report)
    assert told(report.diagnosis).causes == ("gradient-scaled", "loss-summed")
    assert report.names("last-batch-divisor")  # with an odd factor, 16/40
    assert short.headline.endswith(
        "scratch divides each batch's sum by the number of all samples, n, not by the batch's own"
    )
    fixes = short.fixes["scratch"]
    assert fixes == ("divide each batch's sum by the batch's own number of samples, not by n",)


# --- other starts, rows and dtypes ----------------------------------------------------------------


@pytest.mark.slow
def test_another_start_is_found_by_running_the_rule_backwards() -> None:
    found = found_by(code(TORCHS, start=lambda one: one + 0.25))
    assert (found["explained"], causes_of(found)) == (True, ["initial-parameters"])
    # To rounding.
    assert found["start"]["weight"][0] == pytest.approx([0.75, -0.45, 1.15], abs=1e-13)
    assert found["start"]["bias"] == pytest.approx([0.55], abs=1e-13)


@pytest.mark.slow
def test_precision_is_told_beside_another_cause() -> None:
    def both(at: At) -> tuple[Any, Any]:
        w, b = descent(2 * LAMBDA)(at)
        return np.float32(w), np.float32(b)

    assert causes_of(found_by(code(both))) == ["penalty-doubled", "precision"]


# --- the built-in conventions ---------------------------------------------------------------------

NAMED_CAUSES = {
    "divided-by-batch": ["penalty-divided-by-batch", "penalty-in-loss"],
    "divided-by-dataset": ["penalty-divided-by-dataset"],
    "doubled": ["penalty-doubled"],
    "bias-free": ["bias-not-penalized"],
    "coursera": ["bias-not-penalized", "penalty-divided-by-dataset", "penalty-in-loss"],
    "keras-l2": ["bias-not-penalized", "penalty-doubled", "penalty-in-loss"],
    "sklearn-mlp": ["bias-not-penalized", "penalty-divided-by-batch", "penalty-in-loss"],
}


def test_each_named_convention_has_its_causes() -> None:
    # Without momentum, decay apart from the gradient is the same rule as torch's.
    assert NAMED.keys() - NAMED_CAUSES.keys() == {"pytorch", "decoupled"}


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize("name", NAMED_CAUSES)
@pytest.mark.parametrize("spec", [BATCHES, BATCHES | LOGISTIC], ids=["linear", "logistic"])
def test_named_convention_is_told_by_its_causes(name: str, spec: Spec) -> None:
    found = found_by(None, **spec, convention=name)
    assert found["explained"]
    assert causes_of(found) == NAMED_CAUSES[name]


@pytest.mark.parametrize("name", ["pytorch", "decoupled"])
def test_named_convention_that_comes_to_torchs_rule_is_equivalent(name: str) -> None:
    assert check(BASE | BATCHES | {"convention": name}).verdict == "equivalent"


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize(
    ("convention", "causes", "factor"),
    [
        ({"penalty_factor": 1.37}, ["penalty-scaled"], 1.37),
        ({"penalty_factor": 0}, ["penalty-missing"], None),
        ({"loss_factor": 0.81}, ["gradient-scaled", "reported-loss-scaled"], 0.81),
        ({"update_order": "bias-first"}, ["update-sequential"], None),
        ({"decay": "after-update"}, ["decay-after-update"], None),
    ],
)
def test_convention_of_any_numbers_is_named(
    convention: Spec, causes: list[str], factor: float | None
) -> None:
    found = found_by(None, convention=convention)
    assert found["explained"]
    assert causes_of(found) == causes
    assert found["causes"][0]["factor"] == (factor and pytest.approx(factor, rel=1e-6))


def test_decoupled_with_momentum_is_told() -> None:
    found = found_by(None, **MOMENTUM, convention="decoupled")
    assert causes_of(found) == ["decay-after-momentum"]
    assert found["alternatives"] == [["penalty-decoupled"]]


# --- tolerances of the drift ----------------------------------------------------------------------

TIGHT: list[Any] = ["exact", {"rtol": 1e-16}, {"atol": 1e-17}, {"weight": "exact"}]


@pytest.mark.slow
@pytest.mark.parametrize("tolerance", TIGHT, ids=repr)
@pytest.mark.parametrize("train", [code(TORCHS), None], ids=["own code", "built in"])
def test_divergence_by_rounding_alone_has_no_cause(tolerance: Any, train: Train | None) -> None:
    report = check(BASE | {"tolerance": tolerance}, scratch=train)
    found = report.to_dict()["diagnosis"]
    assert (report.verdict, found["explained"]) == ("diverged", True)
    assert (found["causes"], found["alternatives"]) == ([], [])
    assert found["residual_ratio"] <= 8  # rounding bounds: the default tolerance
    assert "the sides differ by rounding alone" in report_text(report)
    assert found["fixed_spec"] == {"tolerance": {"rounding": 8}}


@pytest.mark.slow
@pytest.mark.parametrize("tolerance", [*TIGHT, {"rtol": 1e-9, "atol": 1e-12}], ids=repr)
def test_cause_is_found_whatever_the_tolerance(tolerance: Any) -> None:
    found = found_by(code(descent(2 * LAMBDA)), tolerance=tolerance)
    assert causes_of(found) == ["penalty-doubled"]


@pytest.mark.slow
def test_divergence_by_the_dtypes_alone_is_precision() -> None:
    spec = {"tolerance": "exact", "dtype": {"scratch": "float64", "framework": "float32"}}
    found = found_by(code(TORCHS), **spec)
    assert causes_of(found) == ["precision"]
    assert found["fixed_spec"] == {"tolerance": {"rounding": 8}}


# --- what a spec expects ------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.sampled(every=2)
@pytest.mark.parametrize(
    ("step", "expect", "as_expected"),
    [
        (descent(2 * LAMBDA), {"cause": "penalty-doubled"}, True),
        (descent(2 * LAMBDA), {"verdict": "diverged", "step": 1, "cause": "penalty-doubled"}, True),
        (descent(2 * LAMBDA), {"cause": "penalty-halved"}, False),
        (descent(2 * LAMBDA), {"step": 2, "cause": "penalty-doubled"}, False),
        (descent(LAMBDA / ROWS), {"cause": "penalty-divided-by-dataset"}, True),  # an alternative
        (OVER_N, {"cause": "bias-not-penalized"}, True),  # one of two
        (TORCHS, {"cause": "penalty-doubled"}, False),
        (descent(-LAMBDA, by=-1), {"cause": "penalty-sign-flipped"}, False),
    ],
)
def test_expected_cause_is_looked_for_in_what_explains_the_users_code(
    step: Step, expect: Spec, as_expected: bool
) -> None:
    report = check(BASE | {"expect": expect}, scratch=code(step))
    assert report.expected is as_expected
