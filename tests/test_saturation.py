"""Runs of BCELoss whose outputs are saturated: where its floor acts, and what hides behind it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from torch import nn

from regcheck.checking import check
from regcheck.compare.trace import Saturation
from regcheck.report.texts.diagnosis.fixes import fixes
from regcheck.report.texts.remarks import remarks
from tests.conftest import ROOT, told
from tests.saturated import RAW, SIGMAS, Spec, causes, code, users_model

# --- what hid behind saturated rows -------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_one_percent_of_the_penalty_does_not_hide_behind_saturated_rows(momentum: float) -> None:
    optimizer = {"name": "sgd", "momentum": momentum}
    report = check(RAW | {"convention": {"penalty_factor": 1.01}, "optimizer": optimizer})

    assert causes(report)[0] == ("penalty-scaled",)
    assert told(report.first_divergence).step == 2
    assert told(report.comparison.saturation).last_share > 0.99


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_raw_data_agree_where_both_sides_have_the_floor(dtype: str) -> None:
    report = check(RAW | {"dtype": dtype})

    assert report.verdict == "equivalent"
    assert "penalty-doubled" not in [one.cause for one in report.not_distinguished]
    assert "bce-saturated" not in [one.cause for one in report.not_distinguished]


# --- the cause ----------------------------------------------------------------------------------


@pytest.mark.sampled(every=4)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("sigma", SIGMAS)
def test_p_minus_y_on_raw_data_names_the_floor_and_nothing_else(sigma: str, dtype: str) -> None:
    spec = RAW | {"dtype": dtype}
    report = check(spec, scratch=code(sigma=sigma))

    assert causes(report) == [("bce-saturated",)]
    assert report.comparison.saturation == Saturation(2, 1.0, 20, 1.0)
    assert report.to_dict()["saturation"] == report.comparison.saturation._asdict()
    assert check(spec | {"loss": "bce_with_logits"}, scratch=code()).verdict == "equivalent"


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # it takes e^z of any z, and log 0
def test_the_question_with_its_fix_on_raw_data(tmp_path: Any) -> None:
    spec = RAW | {"scratch": f"{ROOT / 'configs' / 'question_fixed.py'}:train"}
    report = check(spec)

    assert causes(report) == [("bce-saturated",)]
    fixed = spec | {"loss": "bce_with_logits", "compare": ["parameters"]}
    assert check(fixed).verdict == "equivalent"


@pytest.mark.sampled(every=12)
@pytest.mark.parametrize(
    ("factor", "cause"),
    [
        (0.0, "penalty-missing"),
        (2.0, "penalty-doubled"),
        (1.01, "penalty-scaled"),
    ],
)
@pytest.mark.parametrize("batches", [{}, {"batch_size": 50, "shuffle": {"seed": 0}, "epochs": 3}])
def test_floor_is_named_beside_another_penalty(factor: float, cause: str, batches: Spec) -> None:
    report = check(RAW | batches, scratch=code(penalty=factor))

    assert causes(report) == [("bce-saturated", cause)]
    changes = told(report.diagnosis).fix.changes  # type: ignore[union-attr]
    assert changes["loss"] == "bce_with_logits"
    assert changes["framework"] == {"weight_decay": pytest.approx(factor * 0.01)}
    assert check(RAW | batches | changes, scratch=code(penalty=factor)).verdict == "equivalent"


def some_rows(low: float, high: float, y: float) -> Spec:
    """Make a training of 60 rows of which four have outputs between two numbers, at first."""
    random = np.random.default_rng(0)
    X = random.normal(size=(60, 2))
    X[:4] = np.column_stack([np.linspace(low, high, 4), np.zeros(4)])
    targets = (X[:, 0] > 0).astype(float)
    targets[:4] = y
    return RAW | {
        "data": {"X": X.tolist(), "y": targets.tolist()},
        "init": {"weight": [1.0, 0.5], "bias": [0.0]},
        "lr": 0.001,
        "weight_decay": 0.1,
        "epochs": 10,
    }


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [
        (27.7, 28.0, "float64"),
        (28.0, 37.0, "float64"),
        (40.0, 41.0, "float64"),
        (-37.0, -28.0, "float64"),
        (17.6, 19.0, "float32"),
        (28.0, 37.0, "float32"),
        (-37.0, -28.0, "float32"),
    ],
)
def test_floor_is_named_where_some_rows_alone_are_saturated(
    low: float, high: float, dtype: str
) -> None:
    spec = some_rows(low, high, float(low < 0)) | {"dtype": dtype}
    report = check(spec, scratch=code())

    assert causes(report) == [("bce-saturated",)]
    assert told(report.first_divergence).step == 1
    assert told(report.comparison.saturation).first_share == 4 / 60
    assert check(spec | {"loss": "bce_with_logits"}, scratch=code()).verdict == "equivalent"


def test_floor_of_a_users_own_torch_side_is_named_too() -> None:
    build = users_model(nn.Sigmoid(), 0.01)

    assert causes(check(RAW, scratch=code(), framework=build)) == [("bce-saturated",)]
    assert check(RAW, framework=build).verdict == "equivalent"


# --- what is told of it -------------------------------------------------------------------------


@pytest.mark.slow
def test_report_says_where_the_floor_is_met_and_what_to_do() -> None:
    report = check(RAW, scratch=code())
    told, ways = " ".join(remarks(report)), fixes(report)

    assert "BCELoss's floor applies from step 2 on, to 100 % of that step's samples." in told
    assert "In step 20, 100 % of the samples are saturated" in told
    assert "torch does not learn from them" in told
    assert "p − y, which is right" in ways["in the scratch code"][0]
    assert "bce_with_logits" in ways["in torch"][0]
    assert ways["in the spec"] == ["loss: bce_with_logits"]
    # Its own line keeps p − y where something else is to change.
    other = fixes(check(RAW, scratch=code(penalty=2.0)))["in the scratch code"]
    assert other[-1] == "w ← w − 0.05 (g(p−y) + 0.01 w), b likewise"


def test_saturation_of_most_samples_is_remarked_where_the_sides_agree_too() -> None:
    told = " ".join(remarks(check(RAW)))

    assert "In step 20, 100 % of the samples are saturated (p rounds to 0 or 1" in told
    assert "neither side learns from them" in told
    assert "BCELoss's floor" not in told


@pytest.mark.parametrize(
    "spec", [RAW | {"loss": "bce_with_logits"}, some_rows(28, 37, 1.0)], ids=["logits", "few rows"]
)
def test_samples_that_are_few_or_still_learn_are_no_remark(spec: Spec) -> None:
    report = check(spec)

    assert report.verdict == "equivalent"
    assert "samples are saturated" not in " ".join(remarks(report))


@pytest.mark.parametrize(
    ("loss", "compares"), [("", None), ("of z", None), ("textbook", ["parameters"])]
)
def test_fixed_spec_compares_the_losses_that_can_be_compared(loss: str, compares: Any) -> None:
    report = check(some_rows(28, 30, 0.0), scratch=code(loss=loss))

    assert causes(report) == [("bce-saturated",)]
    assert told(report.diagnosis).fix.changes.get("compare") == compares  # type: ignore[union-attr]
