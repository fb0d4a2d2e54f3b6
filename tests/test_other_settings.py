"""Fitted factors, and the lr and weight decay that each tensor effectively has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.by_hand import (
    BATCHES,
    LAMBDA,
    LOGISTIC,
    LR,
    ROWS,
    At,
    Spec,
    Step,
    causes_of,
    code,
    descent,
    found_by,
)

FITTED: dict[str, Callable[[float], Step]] = {
    "penalty-scaled": lambda c: descent(c * LAMBDA),
    "gradient-scaled": lambda c: descent(LAMBDA, by=c),
    "learning-rate-scaled": lambda c: descent(LAMBDA, lr=c * LR),
}


@pytest.mark.sampled(every=6)
@pytest.mark.slow
@pytest.mark.parametrize("cause", FITTED)
@pytest.mark.parametrize("c", [0.137, 7.77])
@pytest.mark.parametrize("spec", [{}, BATCHES, LOGISTIC], ids=["full", "batches", "logistic"])
def test_factor_is_fitted(cause: str, c: float, spec: Spec) -> None:
    found = found_by(code(FITTED[cause](c)), **spec)
    assert causes_of(found) == [cause]
    assert found["causes"][0]["factor"] == pytest.approx(c, rel=1e-6)
    alpha = 1.0 if cause == "penalty-scaled" else c
    kappa = 1.0 if cause == "gradient-scaled" else c
    for tensor in ("weight", "bias"):
        measured = found["effective_lr"]["scratch"][tensor], LR * alpha
        assert measured[0] == pytest.approx(measured[1], rel=1e-6)
        decay = found["effective_weight_decay"]["scratch"][tensor]
        assert decay == pytest.approx(LAMBDA * kappa / alpha, rel=1e-6)
        deviation = found["deviation"][tensor]
        # What one rounding bound, some 1e-16 of numbers near 1, makes of λ = 0.1 in a lr of 0.05:
        # more than nothing, and far from what the digits above need.
        assert 1e-18 < deviation["lr"] < 1e-10
        assert 1e-17 < deviation["weight_decay"] < 1e-8
        assert abs(measured[0] - measured[1]) <= 20 * deviation["lr"]
    # lr′ = c lr, λ′ = κ λ/c; one division of fitted numbers.
    assert found["matching"]["lr"] == pytest.approx(LR * alpha, rel=1e-6)
    assert found["matching"]["weight_decay"] == pytest.approx(LAMBDA * kappa / alpha, rel=1e-6)


@pytest.mark.slow
def test_factor_fitted_in_float32_says_how_sure_it_is() -> None:
    c = 0.137

    def single(at: At) -> tuple[Any, Any]:
        w, b = descent(c * LAMBDA)(at)
        return np.float32(w), np.float32(b)

    found = found_by(code(single))
    assert causes_of(found) == ["penalty-scaled", "precision"]
    error = abs(found["causes"][0]["factor"] - c)
    deviation = found["deviation"]["weight"]["weight_decay"] / LAMBDA
    assert error <= 20 * deviation
    assert deviation < 0.01  # float32 has seven digits, and the penalty is some 1e-3 of w a step


KNOWN_RULES: dict[str, tuple[Step, dict[str, float], dict[str, float]]] = {
    "λ/n and a free bias": (
        descent(LAMBDA / ROWS, of_bias=0.0),
        {"weight": LR, "bias": LR},
        {"weight": LAMBDA / ROWS, "bias": 0.0},
    ),
    "flipped": (
        descent(-LAMBDA),
        {"weight": LR, "bias": LR},
        {"weight": -LAMBDA, "bias": -LAMBDA},
    ),
    "no cause, each tensor in its own way": (
        lambda at: (at.w - LR * 3 * at.gw, at.b - LR * (at.gb / 7 + 0.2 * at.b)),
        {"weight": 3 * LR, "bias": LR / 7},
        {"weight": 0.0, "bias": 1.4},
    ),
}


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize("name", KNOWN_RULES)
def test_effective_lr_and_weight_decay_are_those_of_the_rule(name: str) -> None:
    step, rates, decays = KNOWN_RULES[name]
    found = found_by(code(step))
    assert found["effective_lr"]["framework"] == LR
    assert found["effective_weight_decay"]["framework"] == {"weight": LAMBDA, "bias": LAMBDA}
    # Twelve steps that round at 1e-16 tell a decay of 0.005 w a step to some ten digits.
    assert found["effective_lr"]["scratch"] == pytest.approx(rates, rel=1e-9)
    assert found["effective_weight_decay"]["scratch"] == pytest.approx(decays, rel=1e-9, abs=1e-11)
