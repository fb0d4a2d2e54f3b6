"""BCELoss with saturated outputs: data that saturate it, and users' code for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from regcheck.report.result import Report
from tests.conftest import ROOT

Array = NDArray[Any]
Spec = dict[str, Any]
Sigma = Callable[[Array], Array]

RAW: Spec = {
    "data": {
        "csv": str(ROOT / "data" / "penguins.csv"),
        "target": "species",
        "positive": "Gentoo",
        "features": ["bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g"],
        "standardize": False,
    },
    "model": "logistic",
    "loss": "bce",
    "lr": 0.05,
    "weight_decay": 0.01,
    "epochs": 20,
}
"""Penguins as they were weighed, in grams and millimetres: from step 2 on all are saturated."""

ONE_BY_ONE = "1/(1 + e^−z)"
SIGMAS: dict[str, Sigma] = {
    ONE_BY_ONE: lambda z: 1 / (1 + np.exp(-z)),
    "e^z/(1 + e^z)": lambda z: np.where(z < 700, np.exp(z) / (1 + np.exp(z)), 1),
    "½ (1 + tanh z/2)": lambda z: np.where(
        z > 0, (1 + np.tanh(z / 2)) / 2, np.exp(z) / (1 + np.exp(z))
    ),
    "by sign": lambda z: np.where(
        z >= 0, 1 / (1 + np.exp(-np.abs(z))), np.exp(-np.abs(z)) / (1 + np.exp(-np.abs(z)))
    ),
}
"""σ as people write it, with all digits of small ones."""


def code(
    *, sigma: str = ONE_BY_ONE, floor: bool = False, penalty: float = 1.0, loss: str = ""
) -> Callable[[Any], Iterator[Spec]]:
    """Write a user's code: p − y, or with torch's floor; and which loss it reports."""

    def train(problem: Any) -> Iterator[Spec]:
        w, b = problem.initial["weight"].ravel(), problem.initial["bias"]
        for rows in problem.batches:
            X, y = problem.X[rows], problem.y[rows]
            with np.errstate(all="ignore"):
                z = X @ w + b
                p = SIGMAS[sigma](z)
                logs = np.log(p), np.log(1 - p)
                if loss == "floored":
                    logs = np.maximum(logs[0], -100), np.maximum(logs[1], -100)
                told = -np.mean(y * logs[0] + (1 - y) * logs[1])
                if loss == "of z":
                    told = np.mean(np.maximum(z, 0) - z * y + np.log1p(np.exp(-np.abs(z))))
            s = p - y
            if floor:
                s = s * (p * (1 - p)) / np.maximum(p * (1 - p), float(np.float32(1e-12)))
            decay = penalty * problem.weight_decay
            w = w - problem.lr * (X.T @ s / len(y) + decay * w)
            b = b - problem.lr * (s.mean() + decay * b)
            yield {"weight": w, "bias": b} | ({"loss": told} if loss else {})

    return train


def causes(report: Report) -> list[tuple[str, ...]]:
    """Name the sets of causes that explain a run."""
    assert report.verdict == "diverged"
    assert report.diagnosis is not None
    assert report.diagnosis.evidence == ()
    return [one.causes for one in report.diagnosis.explanations]


def users_model(sigma: nn.Module, decay: float) -> Callable[[Any], Any]:
    """Write what builds a user's own model: a linear layer, a sigmoid, and BCELoss."""

    def build(problem: Any) -> Any:
        linear = nn.Linear(problem.X.shape[1], 1, dtype=torch.float64)
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(problem.initial["weight"]).reshape(1, -1))
            linear.bias.copy_(torch.from_numpy(problem.initial["bias"]).reshape(1))
        model, loss = nn.Sequential(linear, sigma), nn.BCELoss()
        optimizer = torch.optim.SGD(model.parameters(), lr=problem.lr, weight_decay=decay)
        return model, lambda p, y: loss(p[:, 0], y.reshape(-1)), optimizer

    return build
