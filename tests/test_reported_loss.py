"""Reported losses: what explains them, beside the training."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from regcheck.checking import check
from regcheck.report.summary import summary
from regcheck.report.terminal.details import report_text
from regcheck.report.terminal.short import short_text
from regcheck.user_code.problem_api import UserProblem
from tests.by_hand import (
    BASE,
    BATCHES,
    LAMBDA,
    LR,
    ROWS,
    TORCHS,
    At,
    Spec,
    Train,
    causes_of,
    code,
    descent,
)
from tests.conftest import in_one_line, json_text, told


def squares(at: At) -> tuple[float, float]:
    return float((at.w**2).sum()), float((at.b**2).sum())


def after_update(at: At) -> float:
    w, b = TORCHS(at)
    return float(((at.X @ w + b - at.y) ** 2).mean())


ACCUMULATED: Spec = {"batch_size": ROWS // 2, "accumulate": 2}


def last_micro_batch(at: At) -> float:
    return float(((at.z - at.y)[ROWS // 2 :] ** 2).mean())


def epoch_mean(by_rows: bool) -> Callable[[At], float]:
    def mean(at: At) -> float:
        share = len(at.y) if by_rows else 1
        seen = at.memory.get("seen", [])
        if sum(rows for rows, _, _ in seen) == ROWS:
            seen = []
        at.memory["seen"] = seen = [*seen, (len(at.y), share, at.loss)]
        weighted = sum(part * loss for _, part, loss in seen)
        return float(weighted / sum(part for _, part, _ in seen))

    return mean


def at_epochs_end(at: At) -> float | None:
    mean = epoch_mean(False)(at)
    return mean if sum(rows for rows, _, _ in at.memory["seen"]) == ROWS else None


def penalty(of_weight: float, of_bias: float) -> Callable[[At], float]:
    return lambda at: at.loss + of_weight * squares(at)[0] + of_bias * squares(at)[1]


REPORTS: dict[str, tuple[Callable[[At], float | None], Spec, str, int]] = {
    "the penalty": (penalty(LAMBDA / 2, LAMBDA / 2), {}, "penalty-in-loss", 1),
    "the penalty of the weights": (penalty(LAMBDA / 2, 0), {}, "penalty-in-loss", 1),
    "the penalty without its ½": (penalty(LAMBDA, LAMBDA), {}, "penalty-in-loss", 1),
    "a penalty of its own": (penalty(0.0731, 0.02), {}, "penalty-in-loss", 1),
    "the loss after the update": (after_update, {}, "loss-after-update", 1),
    "the loss after the update, of a batch": (after_update, BATCHES, "loss-after-update", 1),
    "the mean of the epoch's batches": (epoch_mean(False), BATCHES, "loss-epoch-mean", 2),
    "the mean of the epoch's batches, at its end": (at_epochs_end, BATCHES, "loss-epoch-mean", 3),
    "the mean of the epoch's rows": (epoch_mean(True), BATCHES, "loss-epoch-mean", 2),
    "the last micro-batch's": (last_micro_batch, ACCUMULATED, "loss-last-micro-batch", 1),
    "the sum": (lambda at: at.loss * len(at.y), {}, "reported-loss-scaled", 1),
    "the sum of a batch": (lambda at: at.loss * len(at.y), BATCHES, "reported-loss-scaled", 1),
    "half of it": (lambda at: at.loss / 2, {}, "reported-loss-scaled", 1),
}


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize("name", REPORTS)
def test_reported_loss_is_told_from_the_training(name: str) -> None:
    loss, spec, cause, first = REPORTS[name]
    report = check(BASE | spec, scratch=code(TORCHS, loss))
    data = report.to_dict()
    found = data["diagnosis"]
    assert (data["verdict"], data["first_divergence"]) == ("diverged", None)
    assert data["first_loss_divergence"]["step"] == first
    assert found["explained"]
    assert [(one["id"], one["kind"]) for one in found["causes"]] == [(cause, "reporting")]
    assert found["matching"] is None  # torch's settings do not change what the code reports
    text = report_text(report)
    assert (
        f"DIVERGED at step {first} of 12, in the reported loss; the training itself agree" in text
    )
    alone = check(BASE | spec | {"compare": ["parameters"]}, scratch=code(TORCHS, loss))
    assert (alone.verdict, alone.comparison.compared) == ("equivalent", 12)


@pytest.mark.parametrize(
    ("strengths", "written"),
    [
        ((LAMBDA, LAMBDA), "torch's loss + ½·0.1 Σw² + ½·0.1 Σb²"),
        ((LAMBDA, 0.0), "torch's loss + ½·0.1 Σw²"),
        ((2 * LAMBDA, 2 * LAMBDA), "torch's loss + ½·0.2 Σw² + ½·0.2 Σb²"),
        ((0.1462, 0.04), "torch's loss + ½·0.1462 Σw² + ½·0.04 Σb²"),
    ],
)
def test_penalty_in_the_loss_has_its_strength(strengths: tuple[float, float], written: str) -> None:
    report = check(BASE, scratch=code(TORCHS, penalty(strengths[0] / 2, strengths[1] / 2)))
    assert report.diagnosis is not None
    fits = told(report.diagnosis.reporting).strengths
    measured = [fits[name].factor if name in fits else 0.0 for name in ("weight", "bias")]
    # Fitted to twelve losses near 5 that are rounded at some 1e-15.
    assert measured == pytest.approx(strengths, abs=1e-10)
    assert written in report_text(report)


def norms(at: At) -> float:
    """Report the term λ/(2n) ‖w‖, whose norm somebody forgot to square."""
    return float(at.loss + LAMBDA / (2 * ROWS) * np.sqrt(squares(at)[0]))


@pytest.mark.parametrize(
    ("scratch", "convention", "written"),
    [
        (code(TORCHS, norms), {}, "torch's loss + 0.00125 ‖w‖"),
        (
            None,
            {"penalty_in_loss": True, "penalty_norm": "unsquared"},
            "torch's loss + 0.1 ‖w‖ + 0.1 ‖b‖",
        ),
    ],
    ids=["by hand", "built in"],
)
def test_penalty_in_the_loss_whose_norm_is_not_squared_is_told_so(
    scratch: Train | None, convention: Spec, written: str
) -> None:
    spec = {"convention": convention} if convention else {}
    report = check(BASE | {"epochs": 4} | spec, scratch=scratch)
    text = " ".join(short_text(report).split())
    *_, cause = report.to_dict()["diagnosis"]["causes"]
    assert f"penalty-in-loss: the scratch side reports {written} " in text
    assert (cause["id"], cause["scratch_formula"]) == (
        "penalty-in-loss",
        "reports  mean ℓ + 0.1 ‖w‖ + 0.1 ‖b‖",
    )
    assert "the weight-decay term, whose norm would have to be squared, ½ λ ‖w‖²; keep" in text


def test_training_and_reporting_that_differ_are_told_apart() -> None:
    report = check(
        BASE,
        scratch=code(
            descent(LAMBDA / ROWS), lambda at: at.loss + LAMBDA / 2 / ROWS * sum(squares(at))
        ),
    ).to_dict()
    found = report["diagnosis"]
    assert [(cause["id"], cause["kind"]) for cause in found["causes"]] == [
        ("penalty-divided-by-batch", "update"),
        ("penalty-in-loss", "reporting"),
    ]
    assert report["first_divergence"]["step"] == report["first_loss_divergence"]["step"] == 1


def test_loss_that_its_own_rule_makes_is_no_further_cause() -> None:
    # The sum is trained by and reported: one cause.
    train = code(descent(LAMBDA, by=ROWS, lr=LR), lambda at: at.loss * ROWS)
    checked = check(BASE | {"epochs": 3}, scratch=train)
    assert summary(checked).fixes["scratch"][-1] == "report torch's loss, not B times torch's loss"
    report = checked.to_dict()
    assert causes_of(report["diagnosis"]) == ["loss-summed"]
    assert report["first_loss_divergence"]["step"] == 1
    assert report["diagnosis"]["explained"]


def test_loss_that_nothing_explains_leaves_the_training_explained_in_part() -> None:
    report = check(BASE, scratch=code(descent(2 * LAMBDA), lambda at: at.loss + np.sin(at.w[0])))
    found = report.to_dict()["diagnosis"]
    assert not found["explained"]
    assert causes_of(found) == ["penalty-doubled"]
    assert "no known cause explains why the reported losses differ" in report_text(report)
    assert "Next compare at step 1 how the loss is computed" in in_one_line(report)


def test_expected_cause_of_the_reported_loss() -> None:
    loss = REPORTS["the penalty"][0]
    expect = {"verdict": "diverged", "cause": "penalty-in-loss"}
    assert check(BASE | {"expect": expect}, scratch=code(TORCHS, loss)).expected is True
    assert check(BASE | {"expect": expect}, scratch=code(TORCHS, after_update)).expected is False


def test_causes_in_json_have_words_and_formulas() -> None:
    train = code(descent(LAMBDA / ROWS), REPORTS["the penalty"][0])
    found = json.loads(json_text(check(BASE, scratch=train)))["diagnosis"]
    for cause in found["causes"]:
        assert all(cause[key] for key in ("id", "title", "fix", "scratch_formula"))


def test_loss_is_measured_too_where_the_parameters_have_diverged_already() -> None:
    # From z = −20 on, torch's float32 loss is z − z = 0, and log(1 + e^z) by hand is 2e-9.
    X = np.linspace(1, 2, 8)[:, None]
    spec: Spec = {
        "data": {"X": X.tolist(), "y": [0.0] * 8},
        "model": "logistic",
        "loss": "bce_with_logits",
        "bias": False,
        "init": {"weight": [-20.0]},
        "lr": 1e-6,
        "epochs": 3,
        "dtype": "float32",
        "optimizer": {"name": "adafactor"},
    }

    def train(problem: UserProblem) -> Iterator[Spec]:
        w = problem.initial["weight"]
        for _ in range(problem.steps):
            loss = np.log1p(np.exp(problem.X @ w.ravel())).mean()
            w = w + np.float32(0.01)
            yield {"weight": w, "loss": loss}

    report = check(spec, scratch=train)
    assert report.first_divergence is not None
    assert report.first_loss_divergence is None


def test_loss_with_the_penalty_alone_is_written_without_a_factor() -> None:
    # 1 is ½ · 1/(1 − μ) for μ = ½.
    momentum = {"optimizer": {"name": "sgd", "momentum": 0.5}}
    report = check(BASE | momentum | {"convention": {"penalty_in_loss": True}})

    assert "the scratch side reports torch's loss + ½·0.1 Σw²" in short_text(report, 200)


def test_gradient_and_loss_of_the_last_micro_batch_are_both_named() -> None:
    def train(problem: UserProblem) -> Iterator[Spec]:
        w, b = problem.initial["weight"], problem.initial["bias"]
        for micro_batches in problem.micro_batches or []:
            for rows in micro_batches:  # zeroed for each: the last one is left
                off = problem.X[rows] @ w + b - problem.y[rows]
                gradient, loss = 2 * problem.X[rows].T @ off / len(off), (off**2).mean()
            w = w - LR * (gradient + LAMBDA * w)
            b = b - LR * (2 * off.mean() + LAMBDA * b)
            yield {"weight": w, "bias": b, "loss": loss}

    found = check(BASE | {"batch_size": 7, "accumulate": 3}, scratch=train)
    diagnosis = found.to_dict()["diagnosis"]
    assert causes_of(diagnosis) == ["accumulation-last-only", "loss-last-micro-batch"]
