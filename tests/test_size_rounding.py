"""The largest step of Adamax, and roots that rounding makes no number."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from regcheck.checking import check
from regcheck.numerics.bounds.size_rounding import powers, root_of
from tests.optimizer_steps import OPTIMIZERS, along


@pytest.mark.parametrize(("beta1", "beta2"), [(0.9, 0.999), (0.9, 0.5), (0.5, 0.5), (0.0, 0.9)])
def test_no_step_of_adamax_is_larger_than_the_largest(beta1: float, beta2: float) -> None:
    # |g| = β₂ᵗ makes all that U has seen one number, and m as large as it can be beside that.
    w = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adamax([w], lr=1.0, betas=(beta1, beta2), eps=0.0)
    for t in range(1, 9):
        before = float(w.detach())
        w.grad = torch.full_like(w, beta2**t)
        optimizer.step()
        most = (1 - beta1) * powers(beta1, beta2, t) / (1 - beta1**t)

        assert before - float(w.detach()) == pytest.approx(most)


def test_largest_step_of_adamax_without_memory() -> None:
    assert (powers(0.0, 0.0, 5), powers(0.9, 0.0, 1), powers(0.9, 0.0, 2)) == (1, 1, math.inf)
    assert powers(0.9, 0.5, 1e6) == math.inf


def test_error_of_a_root_is_that_at_the_farther_end() -> None:
    x = np.array([0.0, 1e-30, 1e-3, 2.0])
    for eps, dx in itertools.product((1e-6, 0.1), (0.0, 1e-31, 1e-8, 0.5, 3.0, 1e200)):
        ends = [np.sqrt(end + eps) for end in (np.maximum(x - dx, 0), x + dx)]
        root, error = root_of(x, np.full_like(x, dx), eps)

        assert root == pytest.approx(np.sqrt(x + eps), rel=1e-15)
        # The ends are rounded where they are near the root.
        farther = np.maximum(np.abs(root - ends[0]), np.abs(ends[1] - root))
        assert error == pytest.approx(farther, rel=1e-12, abs=1e-15)
        assert (error <= math.sqrt(dx)).all()


def test_adadeltas_bound_is_finite_where_its_gradients_are_rounding_alone() -> None:
    # Each step may be any, and joins the root above the next one.
    noise = np.full((300, 2), 1e9)
    found = along(OPTIMIZERS["adadelta"], 0 * noise, noise, noise)

    assert (found.real <= found.bound).all()
    assert np.isfinite(found.bound).all()


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("rows", [3, 7])
@pytest.mark.parametrize(
    "dtype",
    [
        "float32",
        {"scratch": "float64", "framework": "float32"},
        {"scratch": "float32", "framework": "float64"},
    ],
)
def test_root_of_a_variance_below_zero_is_rounding(dtype: Any, rows: int, momentum: float) -> None:
    # The gradient hardly changes: after some 24 steps, S and M² are alike to the last digit.
    random = np.random.default_rng(rows)
    options = {"name": "rmsprop", "alpha": 0.5, "centered": True, "momentum": momentum}
    report = check(
        {
            "data": {
                "X": random.normal(size=(rows, 3)).tolist(),
                "y": (1e6 * random.normal(size=rows)).tolist(),
            },
            "model": "linear",
            "lr": 1e-6,
            "epochs": 60,
            "dtype": dtype,
            "optimizer": options,
        }
    )

    assert report.first_divergence is None
    assert report.verdict == "inconclusive"
    assert report.comparison.first_unjudged is not None
    assert report.comparison.first_unjudged > 20
