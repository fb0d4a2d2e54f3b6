"""Finite differences of torch's loss: where they tell whose gradient is right, and where not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from regcheck.checking import check
from regcheck.problem.batches import Batch
from regcheck.problem.problem import Parameters
from regcheck.report.result import Report
from regcheck.trainers.framework.torch_trainer import TorchTrainer
from regcheck.user_code.problem_api import UserProblem
from tests import by_hand
from tests.by_hand import LOGISTIC, code, silent
from tests.conftest import Spec, told

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(30, 3))
Y = X @ [0.5, -1.5, 2.0] + 0.3 * RANDOM.normal(size=30)
BASE: Spec = {"data": {"X": X.tolist(), "y": Y.tolist()}, "epochs": 6, "lr": 0.05}


class Line(nn.Module):
    """A line, whose loss may be made of anything."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor([0.5, -0.7, 0.9], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.slope


def has_finite_differences(report: Report) -> bool:
    return any(one.text.startswith("Finite differences") for one in told(report.diagnosis).evidence)


def wrong_gradient(loss: Any) -> Report:
    """Compare a wrong gradient of the squared error with torch's of a loss."""

    def scratch(problem: UserProblem) -> Iterator[Spec]:
        w = problem.initial["slope"]
        for rows in problem.batches:
            s = problem.X[rows] @ w - problem.y[rows]
            w = w - problem.lr * (2 * problem.X[rows].T @ (s * (1 + np.tanh(s) / 3)) / len(rows))
            yield {"slope": w}

    def framework(problem: UserProblem) -> Any:
        model = Line()
        return model, loss, torch.optim.SGD(model.parameters(), lr=problem.lr)

    report = check(BASE, scratch=scratch, framework=framework)
    assert not told(report.diagnosis).explained
    return report


def smooth(z: Tensor, y: Tensor) -> Tensor:
    return ((z - y) ** 2).mean()


def in_steps(z: Tensor, y: Tensor) -> Tensor:
    # Its value goes in steps, which its derivative does not see.
    loss = smooth(z, y)
    return loss + (torch.round(loss * 1e4) / 1e4 - loss).detach()


def constant(z: Tensor, y: Tensor) -> Tensor:
    # Its value stays the same, whatever its derivative says.
    loss = smooth(z, y)
    return loss - loss.detach() + 1


@pytest.mark.parametrize(("loss", "shown"), [(smooth, True), (in_steps, False), (constant, False)])
def test_differences_are_shown_where_they_are_those_of_a_derivative(loss: Any, shown: bool) -> None:
    assert has_finite_differences(wrong_gradient(loss)) == shown


def test_differences_of_a_random_loss_side_with_nobody() -> None:
    random, loss_at = np.random.default_rng(0), TorchTrainer.loss_at

    def shaken(self: TorchTrainer, parameters: Parameters, batch: Batch) -> float:
        return loss_at(self, parameters, batch) + 1e-12 * float(random.normal())

    with patch.object(TorchTrainer, "loss_at", shaken):
        assert not has_finite_differences(wrong_gradient(smooth))


@pytest.mark.parametrize(("loss", "shown"), [("bce", False), ("bce_with_logits", True)])
def test_differences_of_a_floored_loss_side_with_nobody(loss: str, shown: bool) -> None:
    # p rounds to 0 or 1: torch's BCELoss has no slope there, whatever the right one is.
    bent = code(lambda at: at.along(*at.mean(at.slope * (1 + at.slope**2 / 3)), 0), silent)
    spec = by_hand.BASE | LOGISTIC | {"loss": loss, "weight_decay": 0, "epochs": 6}
    spec |= {"init": {"weight": [30, -20, 10], "bias": [0]}}
    assert has_finite_differences(check(spec, scratch=bent)) == shown
