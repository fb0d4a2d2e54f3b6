"""Torch's rule by hand, as users write it, and what they make of its steps and losses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from regcheck.checking import check
from regcheck.problem.batches import training_of
from regcheck.rules.settings import Training
from regcheck.spec import from_mapping
from regcheck.user_code.problem_api import UserProblem

Spec = dict[str, Any]
Train = Callable[[UserProblem], Iterator[Spec]]
Step = Callable[["At"], tuple[Any, Any]]

LAMBDA, LR, ROWS = 0.1, 0.05, 40


def data(labels: bool = False) -> Spec:
    random = np.random.default_rng(1)
    X = random.normal(size=(ROWS, 3))
    y = X @ [0.5, -1.5, 2.0] + 0.3 * random.normal(size=ROWS)
    return {"X": X.tolist(), "y": ((y > 0).astype(float) if labels else y).tolist()}


BASE: Spec = {
    "data": data(),
    "model": "linear",
    "init": {"weight": [0.5, -0.7, 0.9], "bias": [0.3]},
    "epochs": 12,
    "lr": LR,
    "weight_decay": LAMBDA,
}
BATCHES: Spec = {"batch_size": 16, "epochs": 4}  # 16, 16 and 8 rows
MOMENTUM: Spec = {"optimizer": {"name": "sgd", "momentum": 0.9}}
LOGISTIC: Spec = {"data": data(labels=True), "model": "logistic"}


class At:
    """Where a user's code is within a step: parameters, data gradient, rows, what it remembers.

    `t` counts steps from 0, `slope` holds ∂ℓ/∂z of each row, and `memory` what the code puts there.
    """

    def __init__(self, problem: UserProblem) -> None:
        self.w, self.b = problem.initial["weight"], problem.initial["bias"]
        self.lrs, self.t = problem.lrs, 0
        self.memory: Spec = {}
        self.X = self.y = self.z = self.slope = self.gw = self.gb = np.zeros(0)
        self.loss = 0.0

    def look(self, logistic: bool, X: Any, y: Any) -> None:
        self.X, self.y, z = X, y, X @ self.w + self.b
        if logistic:
            with np.errstate(all="ignore"):  # log 0, where p is 0 or 1
                p = 1 / (1 + np.exp(-z))
                self.loss = -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean()
            self.slope = p - y
        else:
            self.loss, self.slope = ((z - y) ** 2).mean(), 2 * (z - y)
        self.z, (self.gw, self.gb) = z, self.mean(self.slope)

    def mean(self, slope: Any) -> tuple[Any, Any]:
        """Make the gradient of the rows' slopes."""
        return self.X.T @ slope / len(slope), slope.mean(keepdims=True)

    def along(self, gw: Any, gb: Any, penalty: float = LAMBDA, lr: float = LR) -> tuple[Any, Any]:
        """Go from the parameters along a gradient, by torch's rule."""
        return self.w - lr * (gw + penalty * self.w), self.b - lr * (gb + penalty * self.b)


def same(values: Any) -> Any:
    return values


def silent(at: At) -> None:
    """Report no loss."""


def code(
    step: Step,
    loss: Callable[[At], Any] = lambda at: at.loss,
    grad: Step | None = None,
    *,
    start: Callable[[Any], Any] = same,
    data: tuple[Callable[[Any], Any], Callable[[Any], Any]] = (same, same),
    batch: Callable[[int, int], int] = lambda t, _: t,
) -> Train:
    """Write a user's function: what it makes of a step, and what it tells beside it.

    Args:
        step: from where the code is to the next parameters.
        loss: what it reports.
        grad: the gradient that it tells.
        start, data: what it makes of the start, and of X and y.
        batch: which of the batches it takes in step t of all.
    """

    def train(problem: UserProblem) -> Iterator[Spec]:
        at, X, y = At(problem), data[0](problem.X), data[1](problem.y)
        at.w, at.b = start(at.w), start(at.b)
        for at.t in range(problem.steps):
            rows = problem.batches[batch(at.t, problem.steps)]
            at.look(problem.model == "logistic", X[rows], y[rows])
            told: Spec = {"loss": loss(at)}
            if grad is not None:
                told["grad"] = dict(zip(("weight", "bias"), grad(at), strict=True))
            at.w, at.b = step(at)
            yield {"weight": at.w, "bias": at.b, **told}

    return train


def descent(penalty: float, of_bias: float | None = None, by: float = 1.0, lr: float = LR) -> Step:
    """Write w ← w − lr (by·g + penalty·w); of_bias is the bias's own penalty."""
    other = penalty if of_bias is None else of_bias
    return lambda at: (
        at.w - lr * (by * at.gw + penalty * at.w),
        at.b - lr * (by * at.gb + other * at.b),
    )


TORCHS = descent(LAMBDA)
"""What torch does."""


def found_by(train: Train | None, **spec: Any) -> Spec:
    """Give the diagnosis as JSON has it."""
    found: Spec = check(BASE | spec, scratch=train).to_dict()["diagnosis"]
    return found


def causes_of(found: Spec) -> list[str]:
    return [cause["id"] for cause in found["causes"]]


def training(spec: Spec) -> Training:
    """Return the training of the base spec with some keys changed."""
    return training_of(from_mapping(BASE | spec).spec, ROWS)
