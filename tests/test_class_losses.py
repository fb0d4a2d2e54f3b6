"""Cross entropy with class weights or label smoothing: how torch takes them, and code may not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from regcheck.checking import check
from regcheck.diagnosis.pass_scale import gain, pass_scale
from regcheck.problem.batches import training_of
from regcheck.problem.problem import build_problem
from regcheck.report.terminal.short import short_text
from regcheck.rules.convention import Convention
from regcheck.rules.faults import Faults
from regcheck.rules.formulas.formula import gradient_text, loss_text
from regcheck.rules.settings import letters, symbols
from regcheck.spec import from_mapping
from regcheck.trainers.numpy_trainer import NumpyTrainer
from regcheck.user_code.problem_api import UserProblem
from tests.conftest import Spec, in_one_line, told

CLASS_WEIGHTS = [1.0, 2.0, 5.0]
DRAWS = np.random.default_rng(0)
X = DRAWS.normal(size=(20, 3))
Y = (X @ DRAWS.normal(size=(3, 3)) + DRAWS.gumbel(size=(20, 3))).argmax(axis=1)
DECAY = 0.01
BASE: Spec = {
    "data": {"X": X.tolist(), "y": Y.tolist()},
    "model": "softmax",
    "loss": {"cross_entropy": {"weight": CLASS_WEIGHTS, "label_smoothing": 0.1}},
    "init": {"normal": {"std": 0.3, "seed": 1}},
    "weight_decay": DECAY,
    "lr": 0.1,
    "epochs": 3,
}
BATCHES: dict[str, Spec] = {
    "full": {},
    "mini": {"batch_size": 6},  # 6, 6, 6 and 2
    "micro": {"batch_size": 4, "accumulate": 2},
}
UNWEIGHTED = Faults(batch_divisor="unweighted")

Train = Callable[[UserProblem], Iterator[Spec]]


def torchs_smoothing(t: Any) -> Any:
    return 0.9 * t + 0.1 / 3


def by_hand(
    divisor: Callable[[Any], float], targets: Callable[[Any], Any] = torchs_smoothing
) -> Train:
    """Train softmax by hand, by what divides the weighted losses and is made of one-hot labels."""

    def train(problem: UserProblem) -> Iterator[Spec]:
        W, b = problem.initial["weight"], problem.initial["bias"]
        micro = problem.micro_batches or [[rows] for rows in problem.batches]
        for parts in micro:
            gradient, loss = [0 * W, 0 * b], 0.0
            for rows in parts:
                y = problem.y[rows].astype(int)
                z = problem.X[rows] @ W.T + b
                p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
                w = np.array(CLASS_WEIGHTS)[y]
                t = targets(np.eye(3)[y]) * np.array(CLASS_WEIGHTS)
                share = divisor(w) * len(parts)
                slope = (p * t.sum(axis=1, keepdims=True) - t) / share
                gradient[0] = gradient[0] + slope.T @ problem.X[rows]
                gradient[1] = gradient[1] + slope.sum(axis=0)
                loss -= float((t * np.log(p)).sum() / share)
            W = W - problem.lr * (gradient[0] + DECAY * W)
            b = b - problem.lr * (gradient[1] + DECAY * b)
            yield {"weight": W, "bias": b, "loss": loss}

    return train


@pytest.mark.parametrize("batches", BATCHES)
def test_mean_over_the_samples_is_named(batches: str) -> None:
    assert check(BASE | BATCHES[batches], scratch=by_hand(np.sum)).verdict == "equivalent"
    report = check(BASE | BATCHES[batches], scratch=by_hand(len))

    assert told(report.diagnosis).explanations[0].causes == ("class-weights-not-averaged",)
    assert "the scratch side reports" in in_one_line(report)
    assert "CrossEntropyLoss(weight=.., reduction='none')" in short_text(report, 200)


SMOOTHED: dict[str, tuple[Callable[[Any], Any], float]] = {
    "label-smoothing-missing": (lambda t: t, 0.0),
    "label-smoothing-over-others": (lambda t: 0.9 * t + 0.1 / 2 * (1 - t), 0.15),
}
"""What code makes of one-hot labels of three classes, and torch's number for the same."""


@pytest.mark.parametrize("batches", BATCHES)
@pytest.mark.parametrize("cause", SMOOTHED)
def test_other_smoothing_is_named(cause: str, batches: str) -> None:
    code = by_hand(np.sum, SMOOTHED[cause][0])
    report = check(BASE | BATCHES[batches], scratch=code)
    other = {"cross_entropy": {"weight": CLASS_WEIGHTS, "label_smoothing": SMOOTHED[cause][1]}}

    assert told(report.diagnosis).explanations[0].causes == (cause,)
    assert told(report.diagnosis).reporting is not None
    text = in_one_line(report)
    assert "the scratch side reports" in text
    assert "ε K/(K − 1)" in text if SMOOTHED[cause][1] else "label_smoothing=0" in text
    # What is offered for torch is the same rule.
    assert check(BASE | BATCHES[batches] | {"loss": other}, scratch=code).verdict == "equivalent"


def test_fix_that_is_offered_for_torch_is_the_mean_over_the_samples() -> None:
    z, y = torch.randn(20, 3, dtype=torch.float64), torch.tensor(Y)
    weight = torch.tensor(CLASS_WEIGHTS, dtype=torch.float64)
    each = torch.nn.CrossEntropyLoss(weight=weight, reduction="none")(z, y)
    summed = torch.nn.CrossEntropyLoss(weight=weight, reduction="sum")(z, y)

    assert float(each.mean()) == pytest.approx(float(summed) / 20, rel=1e-14)


@pytest.mark.parametrize("batches", BATCHES)
def test_factor_on_torchs_pass_is_the_mean_class_weight(batches: str) -> None:
    problem = build_problem(from_mapping(BASE | BATCHES[batches]))
    rule = problem.with_change({"batch_divisor": "unweighted"})
    batch = next(problem.schedule.batches())
    torchs, own = (
        NumpyTrainer(one).forward_backward(one.initial, batch).gradient for one in (problem, rule)
    )
    means = [float(np.array(CLASS_WEIGHTS)[Y[rows]].mean()) for rows in batch.micro_batches]

    scale = pass_scale(rule, batch)
    assert gain(rule, batch) == pytest.approx(max(means))
    if len(means) > 1:
        assert len(set(means)) > 1
        assert scale is None
        return
    assert scale == pytest.approx(means[0])
    for name, g in torchs.items():
        np.testing.assert_allclose(own[name], means[0] * g, rtol=1e-13)
    # A sum has no divisor.
    summed = rule.with_change({"loss_reduction": "sum"})
    assert pass_scale(summed, batch) == sum(np.array(CLASS_WEIGHTS)[Y[batch.micro_batches[0]]])


@pytest.mark.parametrize(
    ("spec", "convention", "faults", "gradient", "loss"),
    [
        ({}, Convention(), UNWEIGHTED, "W/20 g", "Σℓ/20"),
        (BATCHES["mini"], Convention(), UNWEIGHTED, "W/B g", "Σℓ/B"),
        (BATCHES["micro"], Convention(), UNWEIGHTED, "average(Wᵢ gᵢ)/4", "average(Σℓ/4)"),
        ({}, Convention(loss_reduction="sum"), Faults(), "W g", "Σℓ"),
        ({}, Convention(), Faults(target="unsmoothed"), "g(y₀)", "mean ℓ(y₀)"),
        (
            BATCHES["mini"],
            Convention(loss_reduction="sum"),
            Faults(target="other-classes"),
            "W g(ỹ)",
            "Σℓ(ỹ)",
        ),
    ],
)
def test_formula_has_the_sum_of_the_class_weights(
    spec: Spec, convention: Convention, faults: Faults, gradient: str, loss: str
) -> None:
    training = training_of(from_mapping(BASE | spec).spec, 20)

    assert gradient_text(convention, letters(training), faults) == gradient
    assert loss_text(convention, letters(training), faults) == loss
    assert symbols(training).class_weights == ("Wᵢ" if training.micro_rows else "W")
