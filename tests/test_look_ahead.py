"""Nesterov's momentum as textbooks have it, by the gradient at the look-ahead point."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from regcheck.checking import check
from regcheck.report.summary import summary
from regcheck.user_code.problem_api import UserProblem
from tests.by_hand import BASE, BATCHES, LAMBDA, LR, MOMENTUM, At, Spec, code, silent
from tests.conftest import told
from tests.user_modules import NO_MODEL, with_sgd


def looking_ahead(at: At, ahead: float = LAMBDA, within: bool = False) -> tuple[Any, Any]:
    """Take v ← 0.9 v + lr g(w − 0.9 v), or where `within` is not set v ← 0.9 v + g(w − 0.9 lr v).

    `ahead` is the share of weight decay that is of the point ahead.
    """
    lr = at.lrs[at.t]
    c, (v, u) = 1 if within else lr, at.memory.get("v", (0 * at.w, 0 * at.b))
    w, b = at.w - 0.9 * c * v, at.b - 0.9 * c * u
    gw, gb = at.mean(2 * (at.X @ w + b - at.y))
    gw, gb = gw + LAMBDA * at.w + ahead * (w - at.w), gb + LAMBDA * at.b + ahead * (b - at.b)
    v, u = 0.9 * v + (lr if within else 1) * gw, 0.9 * u + (lr if within else 1) * gb
    at.memory["v"] = v, u
    return at.w - c * v, at.b - c * u


NESTEROV: Spec = {"optimizer": {"name": "sgd", "momentum": 0.9, "nesterov": True}}
FALLING: Spec = {"lr_schedule": {"kind": "step", "every": 3, "factor": 0.5}}
SAME = "yield w + 0.9 (w − w₋₁) of the updated w"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ahead", "within", "spec", "same"),
    [
        (LAMBDA, False, NESTEROV, True),
        (0.0, False, MOMENTUM, False),
        (0.0, False, NESTEROV | FALLING, False),
        (LAMBDA, True, NESTEROV | FALLING, False),
    ],
)
def test_gradient_at_the_point_ahead_is_told(
    ahead: float, within: bool, spec: Spec, same: bool
) -> None:
    train = code(lambda at: looking_ahead(at, ahead, within), grad=lambda at: (at.gw, at.gb))
    short = summary(check(BASE | BATCHES | spec, scratch=train))
    first = 1 if "nesterov" in spec["optimizer"] else 2
    assert short.headline == (
        f"DIVERGED at step {first}: the gradient is taken at the look-ahead point "
        "w + 0.9 (w − w₋₁), torch's at w"
    )
    assert ", which makes all 12 steps: take it at w" in short.known[0]
    assert (SAME in short.known[0]) == same
    assert (len(short.known), short.next) == (1, ())


@pytest.mark.slow
def test_gradient_of_own_model_at_the_point_ahead_is_told() -> None:
    def train(problem: UserProblem) -> Iterator[Spec]:
        W, b = problem.initial["0.weight"], problem.initial["0.bias"]
        V, c = 0 * W, 0 * b
        for rows in problem.batches:
            X, ahead, of_bias = problem.X[rows], W + 0.9 * V, b + 0.9 * c
            slope = 2 * (X @ ahead[0] + of_bias - problem.y[rows])
            V = 0.9 * V - LR * (slope @ X / len(rows) + LAMBDA * ahead)
            c = 0.9 * c - LR * (slope.mean() + LAMBDA * of_bias)
            W, b = W + V, b + c
            loss = np.mean((slope / 2) ** 2)
            yield {"0.weight": W, "0.bias": b, "loss": loss}

    torch = with_sgd(momentum=0.9, nesterov=True)
    report = check(NO_MODEL | BATCHES, scratch=train, framework=torch)
    assert SAME in summary(report).known[0]
    evidence = told(report.diagnosis).loss_evidence
    assert told(evidence).clause == "the scratch side's loss is that at the look-ahead point"
    assert summary(report).next == ()


def test_points_ahead_are_torchs_parameters_by_its_nesterov() -> None:
    def train(problem: UserProblem) -> Iterator[Spec]:
        last = dict(problem.initial)
        for one in code(looking_ahead, silent)(problem):
            now = {name: one[name] for name in last}
            yield {name: w + 0.9 * (w - last[name]) for name, w in now.items()}
            last = now

    assert check(BASE | BATCHES | NESTEROV, scratch=train).verdict == "equivalent"
