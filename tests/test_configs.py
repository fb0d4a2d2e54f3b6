"""Every spec in configs/ is run, and shows what its comment says."""

from __future__ import annotations

import pytest

from regcheck.checking import check
from regcheck.report.record import record_of
from regcheck.report.result import Report
from tests.conftest import ROOT, told
from tests.report_schema import complaints, envelope

pytestmark = pytest.mark.slow  # all runs of all configs come first

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))

VERDICTS = {
    "answer": "diverged",
    "control": "diverged",
    "ddp": "equivalent",
    "mixed-precision": "equivalent",
    "penguins": "equivalent",
    "penguins-mlp": "equivalent",
    "penguins-one-cycle": "equivalent",
    "question": "diverged",
    "question-fixed": "equivalent",
    "stackoverflow": "diverged",
    "stackoverflow-fixed": "equivalent",
}


@pytest.fixture(scope="module")
def reports() -> dict[str, Report]:
    return {path.stem: check(path) for path in CONFIGS}


@pytest.mark.whole
@pytest.mark.slow
def test_configs_come_to_their_verdicts(reports: dict[str, Report]) -> None:
    assert {name: report.verdict for name, report in reports.items()} == VERDICTS


@pytest.mark.whole
@pytest.mark.slow
def test_config_reports_keep_to_their_schema(reports: dict[str, Report]) -> None:
    assert complaints(envelope([record_of(report, 1) for report in reports.values()])) == []


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_begins_with_a_comment_on_what_it_shows(path: object) -> None:
    assert (ROOT / str(path)).read_text(encoding="utf-8").startswith("# ")


@pytest.mark.whole
@pytest.mark.slow
def test_stackoverflow_parts_at_step_2_in_the_penalty(reports: dict[str, Report]) -> None:
    report = reports["stackoverflow"]
    found = told(report.first_divergence)
    assert (report.comparison.steps, report.comparison.compared) == (1000, 1000)
    assert (found.step, found.epoch, found.batch, found.stage) == (2, 2, 1, "penalty")
    # λ w against λ/1096 w, times the lr; both from one w, so the ratio is 1096 to rounding.
    assert found.within.framework / found.within.scratch == pytest.approx(1096, rel=1e-12)
    assert report.comparison.sample is not None
    w = report.comparison.sample.framework.before[found.within.tensor][found.within.index]
    assert found.within.framework == pytest.approx(0.05 * 0.1 * w, rel=1e-12)
    assert told(report.first_loss_divergence).step == 2
    assert report.training.train_rows == 1096


@pytest.mark.whole
def test_stackoverflow_shows_nothing_at_step_1_because_the_weights_are_zero(
    reports: dict[str, Report],
) -> None:
    report = reports["stackoverflow"]
    assert report.comparison.previous is not None
    assert report.comparison.previous.step == 1
    assert not report.comparison.previous.framework.before["weight"].any()
    assert all(tensor.ratio < 1 for tensor in report.comparison.trace[0].tensors.values())


@pytest.mark.whole
def test_stackoverflow_fixed_agrees_over_1000_steps(reports: dict[str, Report]) -> None:
    report = reports["stackoverflow-fixed"]
    assert report.comparison.compared == 1000
    # Rounding of 1,000 steps of a contraction: a few units of the last place of 1.
    assert report.comparison.drift.largest < 1e-14


@pytest.mark.whole
def test_answer_has_the_numbers_worked_by_hand(reports: dict[str, Report]) -> None:
    report = reports["answer"]
    data = report.to_dict()
    assert data["rows"][0]["loss"]["framework"] == 26.0
    assert data["rows"][0]["loss"]["scratch"] == 26.0
    assert data["sample"]["framework"]["gradient"] == {"weight": [[-32.0]], "bias": [-10.0]}
    assert data["sample"]["scratch"]["gradient"] == {"weight": [[-32.0]], "bias": [-10.0]}
    # One step in float64: the last digit of 4.1 is rounding's.
    assert data["final"]["framework"]["weight"][0][0] == pytest.approx(4.1, rel=1e-15)
    assert data["final"]["framework"]["bias"][0] == pytest.approx(1.9, rel=1e-15)
    assert data["final"]["scratch"]["weight"][0][0] == pytest.approx(4.15, rel=1e-15)
    assert data["final"]["scratch"]["bias"][0] == pytest.approx(1.95, rel=1e-15)


@pytest.mark.whole
def test_control_finds_what_it_expects(reports: dict[str, Report]) -> None:
    report = reports["control"]
    assert report.expected is True
    assert told(report.diagnosis).causes == ("penalty-divided-by-batch",)


@pytest.mark.whole
@pytest.mark.parametrize("name", ["stackoverflow", "question"])
def test_question_is_explained_by_the_division_and_the_penalty_in_its_loss(
    reports: dict[str, Report], name: str
) -> None:
    data = reports[name].to_dict()["diagnosis"]
    assert data["explained"] is True
    assert data["steps"] == 1000
    assert [(cause["id"], cause["kind"]) for cause in data["causes"]] == [
        ("penalty-divided-by-batch", "update"),
        ("penalty-in-loss", "reporting"),
    ]
    # One batch holds all rows; and the gradient of the sum with lr/n is the same rule.
    assert data["alternatives"] == [
        ["penalty-divided-by-dataset"],
        ["learning-rate-scaled", "loss-summed"],
    ]
    assert data["told_apart_by"] == ["mini-batches", "mini-batches"]
    assert data["matching"]["lr"] == 0.05
    assert data["matching"]["weight_decay"] == pytest.approx(0.1 / 1096, rel=1e-15)
    measured = data["effective_weight_decay"]["scratch"]
    # Measured from 512 steps of float64: its deviation is below 1e-13.
    assert measured["weight"] == pytest.approx(0.1 / 1096, abs=1e-12)
    assert measured["bias"] == pytest.approx(0.1 / 1096, abs=1e-12)
    assert data["residual_ratio"] < 8


@pytest.mark.whole
def test_question_s_own_code_trains_as_the_built_in_side(reports: dict[str, Report]) -> None:
    own, built_in = (
        reports[name].comparison.final["scratch"] for name in ("question", "stackoverflow")
    )
    # 1,000 steps of a contraction, each rounded otherwise.
    assert own.parameters["weight"] == pytest.approx(built_in.parameters["weight"], abs=1e-13)
    assert own.loss == pytest.approx(built_in.loss, abs=1e-13)


@pytest.mark.whole
def test_penguins_have_a_smaller_last_batch_and_learn(reports: dict[str, Report]) -> None:
    report = reports["penguins"]
    assert report.training.batch_rows == (32, 17)
    assert report.comparison.final["framework"].accuracy["test"] == 1.0
    assert len(report.features) == 4


@pytest.mark.whole
def test_mixed_precision_drifts_but_does_not_diverge(reports: dict[str, Report]) -> None:
    report = reports["mixed-precision"]
    # More than float64 could drift, less than float32's rounding over the run.
    assert 1e-9 < report.comparison.drift.largest < 1e-5
