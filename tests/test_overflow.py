"""A training that overflows is judged, and NumPy warns of nothing on the way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from regcheck.checking import check
from regcheck.user_code.problem_api import UserProblem
from tests.conftest import Spec

BASE: Spec = {
    "data": {"synthetic": {"rows": 20, "features": 3, "seed": 1}},
    "lr": 1e8,
    "weight_decay": 0.1,
    "epochs": 60,
}


def by_hand(problem: UserProblem) -> Iterator[Spec]:
    """Train linear regression by torch's rule; what the code itself overflows is its own."""
    w, b = problem.initial["weight"], problem.initial["bias"]
    with np.errstate(all="ignore"):
        for rows in problem.batches:
            X, y = problem.X[rows], problem.y[rows]
            off = X @ w + b - y
            gw, gb = 2 * X.T @ off / len(y), 2 * off.mean()
            w, b = w - problem.lr * (gw + 0.1 * w), b - problem.lr * (gb + 0.1 * b)
            yield {"weight": w, "bias": b, "loss": (off**2).mean()}


def own(problem: Any) -> Any:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1), nn.Flatten(0)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=problem.lr, weight_decay=0.1)
    return model, nn.MSELoss(), optimizer


RUNS: dict[str, tuple[Spec, Spec]] = {
    "built-in": ({"model": "linear"}, {}),
    "with a cause": ({"model": "linear", "convention": {"loss_factor": 0.5}}, {}),
    "in two dtypes": (
        {"model": "linear", "dtype": {"scratch": "float64", "framework": "float32"}},
        {},
    ),
    "an mlp by Adam": (
        {
            "model": {"mlp": {"hidden": [4], "head": "linear", "activation": "relu"}},
            "init": {"normal": {"std": 1e150}},
            "optimizer": "adam",
        },
        {},
    ),
    "own code": ({"model": "linear"}, {"scratch": by_hand}),
    "own model beside the textbook": (
        {"scratch": "sgd", "init": None, "weight_decay": 0.1},
        {"framework": own},
    ),
}


@pytest.mark.parametrize("run", RUNS)
def test_overflow_is_judged_and_warns_of_nothing(run: str) -> None:
    spec, code = RUNS[run]
    kept = {key: value for key, value in (BASE | spec).items() if value is not None}
    with np.errstate(all="warn", under="ignore"):  # as outside of tests; a warning is an error here
        report = check(kept, **code)

    assert report.verdict in ("diverged", "inconclusive")
    assert report.comparison.first_unjudged is not None
