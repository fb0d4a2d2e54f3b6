"""The question that regcheck began with, and its answer."""

from __future__ import annotations

import pytest

from regcheck import cli
from regcheck.checking import check
from tests.conftest import ROOT, Spec, run_of
from tests.faults import FAULTS
from tests.test_user_cases import ended
from tests.user_functions import Code

ANSWER: Spec = {
    "data": {"X": [[2.0], [4.0]], "y": [7.0, 11.0]},
    "model": "linear",
    "init": {"weight": [1.0], "bias": [1.0]},
    "lr": 0.1,
    "weight_decay": 1.0,
    "epochs": 1,
}


DIVIDED = Code(ANSWER, FAULTS["penalty-divided-by-batch"].rule()).train


def test_answers_two_points_by_hand() -> None:
    # z = 3 and 5 against 7 and 11: loss 26, gradients −32 and −10; λ/B = 1/2.
    report = check(ANSWER, scratch=DIVIDED)
    assert (report.verdict, report.first_divergence and report.first_divergence.step) == (
        "diverged",
        1,
    )
    # The last digit is float64's own: 1 − 0.1 (−32 + 1) and so on, with a rounding or two.
    assert ended(report, "framework") == pytest.approx([4.1, 1.9], rel=4e-16)
    assert ended(report, "scratch") == pytest.approx([4.15, 1.95], rel=4e-16)
    sample, found = report.to_dict()["sample"], report.to_dict()["diagnosis"]
    assert sample["before"] == {"weight": [[1.0]], "bias": [1.0]}
    assert sample["framework"]["gradient"] == {"weight": [[-32.0]], "bias": [-10.0]}
    for side in ("scratch", "framework"):
        assert report.comparison.final[side].loss == 26.0
        assert [*sample[side]["after"]["weight"][0], *sample[side]["after"]["bias"]] == (
            ended(report, side)
        )
    assert [cause["id"] for cause in found["causes"]] == ["penalty-divided-by-batch"]
    # With two rows in all, B and n are 2, and ½ λ is λ/2.
    assert found["alternatives"] == [
        ["penalty-divided-by-dataset"],
        ["penalty-halved"],
        ["learning-rate-scaled", "loss-summed"],
    ]
    assert (found["matching"]["weight_decay"], found["matching"]["lr"]) == (0.5, 0.1)
    settings = {"weight_decay": 0.5}
    again = check(
        ANSWER | {"framework": settings},
        scratch=DIVIDED,
    )
    assert again.verdict == "equivalent"
    assert ended(again, "framework") == pytest.approx([4.15, 1.95], rel=4e-16)


def test_answers_fix_is_torchs_rule() -> None:
    report = check(ANSWER, scratch=Code(ANSWER).train)
    assert report.verdict == "equivalent"
    assert ended(report, "scratch") == pytest.approx([4.1, 1.9], rel=4e-16)


def test_answers_reported_loss_with_the_penalty_in_it() -> None:
    loss = check(ANSWER | {"convention": "divided-by-batch"}).to_dict()["first_loss_divergence"]
    assert (loss["scratch"], loss["framework"]) == (26.5, 26.0)  # + 1/(2·2) (1² + 1²)


@pytest.mark.slow
def test_questions_own_code_diverges_for_the_reason_that_the_answer_gives(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.exit_code(["run", "--json", str(ROOT / "configs" / "question.yaml")]) == 1
    report = run_of(capsys.readouterr().out)
    first, found = report["first_divergence"], report["diagnosis"]
    assert (report["steps"], report["compared"]) == (1000, 1000)
    assert (first["step"], first["stage"]) == (2, "penalty")  # at zero there is no penalty
    assert report["first_loss_divergence"]["step"] == 2
    assert [(cause["id"], cause["kind"]) for cause in found["causes"]] == [
        ("penalty-divided-by-batch", "update"),
        ("penalty-in-loss", "reporting"),
    ]
    assert found["alternatives"][0] == ["penalty-divided-by-dataset"]
    # λ/B with the 1,096 rows of the full batch; one division.
    assert found["matching"]["weight_decay"] == pytest.approx(0.1 / 1096, rel=1e-15)
    assert found["matching"]["lr"] == 0.05
    for tensor in ("weight", "bias"):
        decay = found["effective_weight_decay"]["scratch"][tensor]
        # Measured from 1,000 steps that each round at 1e-16 of some 0.1.
        assert decay == pytest.approx(0.1 / 1096, rel=1e-6)
        assert found["effective_weight_decay"]["framework"][tensor] == 0.1


@pytest.mark.slow
def test_questions_code_with_the_answers_fix_is_equivalent(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.exit_code(["run", "--json", str(ROOT / "configs" / "question-fixed.yaml")]) == 0
    report = run_of(capsys.readouterr().out)
    assert (report["verdict"], report["compared"]) == ("equivalent", 1000)
    assert report["first_loss_divergence"] is None
