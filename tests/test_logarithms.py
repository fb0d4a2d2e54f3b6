"""Reported log losses whose logarithms stop elsewhere than torch's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from regcheck.checking import check
from regcheck.report.result import Report
from regcheck.report.texts.diagnosis.loss_text import loss_lines
from regcheck.report.texts.headline import headline
from regcheck.user_code.problem_api import UserProblem
from tests.by_hand import At, Train, code, descent
from tests.conftest import told
from tests.user_modules import Made

Array = NDArray[np.floating]
Logarithms = Callable[[Array], tuple[Array, Array]]


def rows(seed: int, scale: float) -> dict[str, Any]:
    """Make rows whose z soon reaches some tens, some of them on the wrong side."""
    draw = np.random.default_rng(seed)
    X = draw.normal(size=(40, 2)) * scale
    y = (X @ [1.0, -0.5] + draw.normal(size=40) * scale > 0).astype(float)
    return {"X": X.tolist(), "y": y.tolist()}


def by(logarithms: Logarithms) -> Train:
    """Write logistic regression by hand with a loss of these logarithms."""

    def loss(at: At) -> Any:
        with np.errstate(all="ignore"):
            log_p, log_other = logarithms(1 / (1 + np.exp(-at.z)))
            return -np.mean(at.y * log_p + (1 - at.y) * log_other)

    return code(descent(0, lr=0.5), loss)


def clipped(floor: float) -> Logarithms:
    def logarithms(p: Array) -> tuple[Array, Array]:
        p = np.clip(p, floor, 1 - floor)
        return np.log(p), np.log(1 - p)

    return logarithms


def added(floor: float) -> Logarithms:
    return lambda p: (np.log(p + floor), np.log(1 - p + floor))


def floored(floor: float) -> Logarithms:
    return lambda p: (np.log(np.maximum(floor, p)), np.log(np.maximum(floor, 1 - p)))


def run(logarithms: Logarithms, loss: str, seed: int = 0, scale: float = 20.0) -> Report:
    with np.errstate(all="ignore"):
        spec = {"data": rows(seed, scale), "model": "logistic", "loss": loss}
        return check(spec | {"lr": 0.5, "epochs": 12}, scratch=by(logarithms))


def loss_clue(report: Report) -> str:
    return told(told(report.diagnosis).loss_evidence).text


SAID = {
    "clipped": (clipped, "p kept between {0} and 1 − {0}"),
    "added": (added, "{0} added to p and to 1 − p"),
    "floored": (floored, "p kept between {0} and 1 − {0}"),
}


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize("loss", ["bce", "bce_with_logits"])
@pytest.mark.parametrize("floor", [1e-3, 1e-7, 1e-12, 1e-15, float(np.finfo(float).eps)])
@pytest.mark.parametrize("form", SAID)
def test_the_floor_of_the_logarithms_is_named(form: str, floor: float, loss: str) -> None:
    make, said = SAID[form]
    report = run(make(floor), loss)

    assert report.verdict == "diverged"
    assert report.diagnosis is not None
    assert said.format(f"{floor:.3g}") in loss_clue(report)
    if report.diagnosis.best is None:
        assert said.format(f"{floor:.3g}") in headline(report)
        assert "no known cause" not in headline(report)
    assert loss_clue(report) in report.to_dict()["diagnosis"]["clues"]
    assert [line.text for line in loss_lines(report, report.diagnosis)] == [loss_clue(report)]


@pytest.mark.parametrize("form", SAID)
def test_forms_are_told_apart_where_p_comes_near_the_floor(form: str) -> None:
    clue = loss_clue(run(SAID[form][0](1e-3), "bce_with_logits", scale=8.0))

    found = {text for _, text in SAID.values() if text.format(0.001) in clue}
    assert found == {SAID[form][1]}


@pytest.mark.parametrize("loss", ["bce", "bce_with_logits"])
def test_a_logarithm_of_zero_is_named(loss: str) -> None:
    def logarithms(p: Array) -> tuple[Array, Array]:
        with np.errstate(all="ignore"):
            return np.log(p), np.log(1 - p)

    report = run(logarithms, loss)

    assert report.diagnosis is not None
    assert loss_clue(report).startswith("the scratch side's loss is ")
    assert "its logarithm is infinite" in loss_clue(report)
    assert "from step 2 on" in loss_clue(report)


OTHERS: dict[str, Logarithms] = {
    "another floor": clipped(3.7e-9),
    "one side alone": lambda p: (np.log(np.maximum(p, 1e-15)), np.log(np.maximum(1 - p, 1e-9))),
    "another base": lambda p: tuple(one / np.log(2) for one in clipped(1e-15)(p)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_nothing_is_said_of_other_losses(name: str) -> None:
    report = run(OTHERS[name], "bce_with_logits")

    assert report.diagnosis is not None
    assert report.diagnosis.loss_diverged
    assert report.diagnosis.loss_evidence is None


# --- of classes -----------------------------------------------------------------------------------


def softmax_by(logarithm: Callable[[Array], Array], *, term: bool, bias: bool = True) -> Train:
    """Write softmax regression by hand with a loss of this logarithm of p."""

    def train(problem: Any) -> Iterator[dict[str, Any]]:
        lr, decay = problem.lr, problem.weight_decay
        w, b = problem.initial["weight"], problem.initial["bias"]
        decay_b = decay if bias else 0.0
        for rows in problem.batches:
            X, y = problem.X[rows], problem.y[rows]
            right = np.arange(len(y)), y
            z = X @ w.T + b
            p = np.exp(z - z.max(axis=1, keepdims=True))
            p /= p.sum(axis=1, keepdims=True)
            with np.errstate(all="ignore"):
                loss = -logarithm(p[right]).mean()
            if term:
                loss += (decay * (w**2).sum() + decay_b * (b**2).sum()) / 2
            p[right] -= 1
            w = w - lr * (p.T @ X / len(y) + decay * w)
            b = b - lr * (p.mean(axis=0) + decay_b * b)
            yield {"weight": w, "bias": b, "loss": loss}

    return train


def of_classes(logarithm: Callable[[Array], Array], scale: float = 1.0, **how: Any) -> Report:
    draw = np.random.default_rng(3)
    X = draw.normal(size=(30, 2)) * scale
    data = {"X": X.tolist(), "y": draw.integers(3, size=30).tolist()}
    spec: dict[str, Any] = {"data": data, "model": "softmax"}
    spec["init"] = {"normal": {"std": 0.5, "seed": 1}}
    spec |= {"lr": 0.5, "weight_decay": 0.1, "epochs": 5}
    return check(spec, scratch=softmax_by(logarithm, **how))


@pytest.mark.parametrize("term", [False, True])
@pytest.mark.parametrize("floor", [1e-4, 1e-7, 1e-12])
def test_what_is_added_to_p_of_a_class_is_named_also_beside_the_penalty(
    floor: float, term: bool
) -> None:
    report = of_classes(lambda p: np.log(p + floor), term=term)

    assert report.verdict == "diverged"
    assert report.diagnosis is not None
    assert f"loss has {floor:.3g} added to p; torch's Cross" in loss_clue(report)
    assert report.diagnosis.causes == (("penalty-in-loss",) if term else ())


def test_both_are_named_beside_another_rule() -> None:
    report = of_classes(lambda p: np.log(p + 1e-7), term=True, bias=False)

    assert report.diagnosis is not None
    assert report.diagnosis.causes == ("bias-not-penalized", "penalty-in-loss")
    assert "loss has 1e-07 added to p; " in loss_clue(report)
    assert report.diagnosis.reporting is not None
    assert report.diagnosis.reporting.strengths.keys() == {"weight"}


def test_clipped_p_of_a_class_is_named() -> None:
    report = of_classes(lambda p: np.log(np.clip(p, 1e-3, 1 - 1e-3)), 9.0, term=False)

    assert report.diagnosis is not None
    assert "p kept between 0.001 and 1 − 0.001; " in loss_clue(report)


def test_logarithm_of_a_class_that_is_0_is_named() -> None:
    report = of_classes(np.log, 900.0, term=False)

    assert report.diagnosis is not None
    assert "some p rounds to 0 there" in loss_clue(report)


def test_another_logarithm_of_classes_is_not_named() -> None:
    report = of_classes(lambda p: np.log(p + 3.3e-5), term=False)

    assert report.diagnosis is not None
    assert report.diagnosis.loss_diverged
    assert report.diagnosis.loss_evidence is None


def test_penalty_in_a_users_own_loss_of_torch_is_no_floor() -> None:
    """ℓ_torch = BCE + ½ 0.1 ‖w‖², whose gradient is left out."""

    def build(problem: UserProblem) -> Made:
        model = nn.Linear(3, 1, dtype=torch.float64)
        with torch.no_grad():
            model.weight.copy_(torch.as_tensor(problem.initial["weight"]).reshape(1, -1))
            model.bias.copy_(torch.as_tensor(problem.initial["bias"]))

        def loss(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            term = 0.05 * (model.weight.detach() ** 2).sum()
            return nn.functional.binary_cross_entropy_with_logits(z.squeeze(1), y) + term

        return model, loss, torch.optim.SGD(model.parameters(), lr=problem.lr)

    data = {"synthetic": {"rows": 40, "features": 3, "seed": 0}}
    spec = {"data": data, "model": "logistic", "init": {"normal": {"std": 0.1, "seed": 0}}}
    report = check(spec | {"lr": 0.1, "epochs": 8}, framework=build)

    said = "in the reported loss alone: torch's loss is the scratch side's + ½·0.1 Σweight²"
    assert headline(report) == f"DIVERGED at step 1, {said}"
