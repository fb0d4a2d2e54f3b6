"""Reported losses as users write them, whose own rounding is no difference of rules."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from regcheck.checking import check
from tests.by_hand import At, Train, code
from tests.conftest import Spec

Array = NDArray[Any]
Loss = Callable[[Array, Array, Array], Any]
"""From θ with the bias in front, X with a column of ones, and y."""


def gram(theta: Array, X: Array, y: Array) -> Any:
    """θᵀGθ − 2θᵀc + yᵀy over B, with G = XᵀX and c = Xᵀy."""
    return (theta @ (X.T @ X) @ theta - 2 * theta @ (X.T @ y) + y @ y) / len(y)


def squares(theta: Array, X: Array, y: Array) -> Any:
    return np.mean((X @ theta - y) ** 2)


def textbook(theta: Array, X: Array, y: Array) -> Any:
    """−mean(y log p + (1 − y) log(1 − p))."""
    p = 1 / (1 + np.exp(-(X @ theta)))
    return -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p))


def likelihood(theta: Array, X: Array, y: Array) -> Any:
    """−mean log of the probability of what is."""
    p = 1 / (1 + np.exp(-(X @ theta)))
    return -np.mean(np.log(np.where(y == 1, p, 1 - p)))


def reporting(loss: Loss, *, kappa: float = 0.0, factor: float = 1.0) -> Train:
    """Write a user's code that trains by torch's rule, and may report a penalty or a factor."""

    def told(at: At) -> Any:
        theta, X = np.append(at.b, at.w), np.column_stack([np.ones_like(at.y), at.X])
        return factor * loss(theta, X, at.y) + kappa / 2 * theta @ theta

    return code(lambda at: at.along(at.gw, at.gb, 0, float(at.lrs[0])), told)


def classes(z: float, rows: int, dtype: str = "float64", **changes: Any) -> Spec:
    """Make data of which one row, of the other class, has the output z."""
    random = np.random.default_rng(rows)
    X = random.normal(size=(rows, 3))
    w = np.array([1.0, -0.5, 0.3])
    y = (X @ w + random.normal(size=rows) > 0).astype(float)
    X[0], y[0] = z * w / (w @ w), 0.0
    return {
        "data": {"X": X.tolist(), "y": y.tolist()},
        "model": "logistic",
        "loss": "bce_with_logits",
        "init": {"weight": w.tolist(), "bias": [0.0]},
        "lr": 1e-4,
        "weight_decay": 0,
        "epochs": 5,
        "dtype": dtype,
        **changes,
    }


@pytest.mark.parametrize("loss", ["bce", "bce_with_logits"])
@pytest.mark.parametrize("own", [textbook, likelihood])
@pytest.mark.parametrize("rows", [2, 60, 1000])
@pytest.mark.parametrize(
    ("z", "dtype"),
    [(10.0, "float64"), (25.0, "float64"), (33.0, "float64"), (5.0, "float32"), (13.0, "float32")],
)
def test_loss_from_p_beside_torchs_raises_no_alarm(
    z: float, dtype: str, rows: int, own: Loss, loss: str
) -> None:
    spec = classes(z, rows, dtype, loss=loss, lr=1e-9)  # so that it stays below BCELoss's floor
    report = check(spec | {"compare": ["loss"]}, scratch=reporting(own))

    assert report.verdict == "equivalent"
    assert report.comparison.losses.first_unjudged is None


def test_the_outlier_of_which_the_cancellation_showed() -> None:
    spec = classes(25.0, 60)
    report = check(spec, scratch=reporting(textbook))
    rows = list(report.comparison.trace)

    assert report.verdict == "equivalent"
    assert max(abs(row.scratch_loss - row.framework_loss) for row in rows) > 1e-9


@pytest.mark.parametrize("loss", [textbook, likelihood])
@pytest.mark.parametrize("told", [{"kappa": 1e-6}, {"factor": 1 + 1e-6}], ids=str)
def test_loss_from_p_is_judged_all_the_same(told: dict[str, float], loss: Loss) -> None:
    for z in (2.0, 8.0, 14.0):
        report = check(classes(z, 60), scratch=reporting(loss, **told))
        assert report.verdict == "diverged"
        assert report.first_divergence is None
        assert report.first_loss_divergence is not None
        assert report.first_loss_divergence.step == 1


def line(rows: int, size: float, noise: float, dtype: str = "float64") -> Spec:
    """Make data of a line with some noise, of which the weights are known but for a part of it."""
    random = np.random.default_rng(rows)
    X = 3 + random.normal(size=(rows, 4))
    w = random.normal(size=4)
    y = size * (X @ w + 2 + noise * random.normal(size=rows))
    return {
        "data": {"X": X.tolist(), "y": y.tolist()},
        "model": "linear",
        "init": {"weight": (size * w * (1 + noise)).tolist(), "bias": [2 * size]},
        "lr": 1e-3,
        "weight_decay": 0,
        "epochs": 5,
        "dtype": dtype,
    }


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("rows", [1, 7, 100, 3000])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("noise", [1e-6, 1e-2, 1.0])
def test_loss_summed_by_its_gram_matrix_raises_no_alarm(
    noise: float, size: float, rows: int, dtype: str
) -> None:
    spec = line(rows, size, noise, dtype) | {"compare": ["loss"]}

    assert check(spec, scratch=reporting(gram)).verdict == "equivalent"


def test_gram_matrix_s_rounding_is_larger_than_that_of_a_mean_of_squares() -> None:
    # Else the test above could not fail: (Σ ‖x‖ |θ|)² is some 1e14 times the residuals' square.
    row = next(iter(check(line(100, 1.0, 1e-6), scratch=reporting(gram)).comparison.trace))

    assert abs(row.scratch_loss - row.framework_loss) > 1e-5 * row.framework_loss


@pytest.mark.parametrize("loss", [gram, squares])
@pytest.mark.parametrize("told", [{"kappa": 1e-6}, {"factor": 1 + 1e-6}], ids=str)
@pytest.mark.parametrize("rows", [7, 100, 3000])
def test_mean_squared_error_is_judged_all_the_same(
    rows: int, told: dict[str, float], loss: Loss
) -> None:
    report = check(line(rows, 1.0, 0.1), scratch=reporting(loss, **told))

    assert report.verdict == "diverged"
    assert report.first_divergence is None
    assert report.first_loss_divergence is not None
    assert report.first_loss_divergence.step == 1


def test_built_in_losses_keep_their_sharper_bounds() -> None:
    # Its formula is known: a part in 1e10 of the loss shows, which cancellation could make.
    spec = classes(25.0, 60) | {"compare": ["loss"]}
    report = check(spec | {"convention": {"loss_factor": 1 + 1e-10}})

    assert report.verdict == "diverged"
    assert math.isfinite(report.comparison.trace[0].loss_ratio)
