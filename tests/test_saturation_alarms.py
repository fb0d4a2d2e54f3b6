"""Saturated outputs raise no alarm, whatever the dtype and however σ is written."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.random import Generator
from torch import nn

from regcheck.checking import check
from tests.conftest import agrees
from tests.saturated import SIGMAS, Spec, code, users_model

Windows = tuple[tuple[float, float], ...]
WINDOWS: Windows = ((-60, 60), (14, 19), (26, 39), (-39, -26), (-1e5, 1e5))
"""Outputs among which some saturate, in both dtypes or one; those in which p rounds to 0 or 1,
alone; and such as unscaled data give."""


def saturated_spec(random: Generator, windows: Windows = WINDOWS) -> Spec:
    """Draw a training whose first outputs are in one of some windows."""
    rows, features = int(random.integers(1, 60)), int(random.integers(1, 5))
    w = random.normal(size=features)
    X = random.normal(size=(rows, features))
    z = random.uniform(*windows[int(random.integers(len(windows)))], size=rows)
    X += ((z - X @ w) / (w @ w))[:, None] * w
    y = random.integers(2, size=rows).astype(float)
    if random.random() < 0.2:
        y = random.random(rows)
    size = float(np.abs(X).max())
    optimizer: Spec = {"name": "sgd", "momentum": float(random.choice([0, 0, 0.9]))}
    spec: Spec = {
        "data": {"X": X.tolist(), "y": y.tolist()},
        "model": "logistic",
        "loss": "bce",
        "init": {"weight": w.tolist(), "bias": [0.0]},
        "optimizer": optimizer,
        "lr": 10 ** random.uniform(-6, -1) / size,
        "weight_decay": 10 ** random.uniform(-6, 0),
        "batch_size": int(random.integers(1, rows + 1)),
        "epochs": 4,
    }
    if random.random() < 0.2:
        spec["clip_norm"] = size * 10 ** random.uniform(-2, 0)
    return spec


MIXED = {"scratch": "float64", "framework": "float32"}


@pytest.mark.sampled(every=12)
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_saturated_rows_raise_no_alarm(seed: int) -> None:
    random = np.random.default_rng([seed, 9])
    spec = saturated_spec(random)
    for dtype in ("float64", "float32", MIXED, {"scratch": "float32", "framework": "float64"}):
        report = check(spec | {"dtype": dtype})
        assert (agrees(report), report.comparison.first_by_stage) == (True, {}), (
            dtype,
            report.reason,
        )


@pytest.mark.sampled(every=8)
@pytest.mark.parametrize("seed", range(40))
def test_users_code_with_torchs_floor_raises_no_alarm(seed: int) -> None:
    random = np.random.default_rng([seed, 10])
    spec = saturated_spec(random) | {"optimizer": "sgd"}
    spec.pop("clip_norm", None)
    for sigma in SIGMAS:
        report = check(spec, scratch=code(sigma=sigma, floor=True, loss="floored"))
        assert agrees(report), sigma


class OneByOne(nn.Module):
    """σ by hand, whose derivative autograd takes as e^−z/(1 + e^−z)²."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return 1 / (1 + torch.exp(-z))


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize("seed", range(40))
def test_users_own_sigmoid_in_torch_raises_no_alarm(seed: int) -> None:
    random = np.random.default_rng([seed, 11])
    # Where e^−z overflows, autograd has NaN of it.
    spec = saturated_spec(random, WINDOWS[:-1]) | {"optimizer": "sgd"}
    spec.pop("clip_norm", None)
    report = check(spec, framework=users_model(OneByOne(), spec["weight_decay"]))

    assert agrees(report)
