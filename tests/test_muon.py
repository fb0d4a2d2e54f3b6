"""Muon's steps are torch's, with its rounding to bfloat16."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from regcheck.rules.faults import NO_FAULTS
from regcheck.rules.formulas.formula import rule_lines
from regcheck.rules.optimizers.muon import MUON, bfloat16, orthogonal
from regcheck.rules.optimizers.update import update
from regcheck.rules.optimizers.update_rule import StepInput
from regcheck.rules.settings import Settings, Training, letters
from tests.conftest import Spec

Array = NDArray[np.floating]

SHAPES = [(1, 1), (1, 5), (5, 1), (3, 4), (16, 3)]

CHOICES: list[Spec] = [
    {},
    {"nesterov": False},
    {"momentum": 0.3, "adjust_lr_fn": "match_rms_adamw"},
    {"momentum": 0.0, "adjust_lr_fn": "original", "ns_steps": 0},
    {"ns_coefficients": (2.0, -1.5, 0.5), "ns_steps": 12, "eps": 0.3},
]


def in_torch(x: Array) -> Array:
    found: Array = torch.tensor(x).bfloat16().double().numpy()
    return found


@given(st.lists(st.floats(width=64), min_size=1, max_size=20))
def test_bfloat16_is_torchs(numbers: list[float]) -> None:
    x = np.array(numbers)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(bfloat16(x), in_torch(x))


def test_bfloat16_of_ties_and_of_the_ends_of_the_range() -> None:
    ties = (np.arange(256, 1024) + 0.5) / 256
    ends = np.array([0.0, 2.0**-134, 2.0**-133 * 1.5, 2.0**-126, 2.0**128 * (1 - 2.0**-9), 3.4e38])
    near = np.concatenate([ties, ties * (1 + 2.0**-40), ties * (1 - 2.0**-22), ends])
    x = np.concatenate([near, -near, near * 2.0**-130, [math.inf, -math.inf, math.nan]])

    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(bfloat16(x), in_torch(x))
    assert bfloat16(np.array([1 + 2.0**-8, 1 + 3 * 2.0**-8])).tolist() == [1.0, 1 + 2.0**-6]


@pytest.mark.sampled(every=3)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("options", CHOICES, ids=str)
def test_step_is_torchs(options: Spec, shape: tuple[int, int], dtype: str) -> None:
    settings, draws = Settings(0.1, {}, MUON.defaults | options, "muon"), np.random.default_rng(3)
    w = draws.normal(size=shape).astype(dtype)
    tensor = torch.tensor(w, requires_grad=True)
    optimizer: Any = torch.optim.Muon([tensor], lr=1.0, weight_decay=0.3, **options)
    memory = MUON.init(settings.options, settings.torchs, NO_FAULTS, w)
    same, eps = 0, float(np.finfo(dtype).eps)
    for t in range(1, 31):
        lr, g = (0.1, 1.5, 0.02)[t % 3], draws.normal(size=shape) * 10 ** draws.uniform(-3, 1)
        optimizer.param_groups[0]["lr"], tensor.grad = lr, torch.tensor(g.astype(dtype))
        w = tensor.detach().numpy().copy()
        optimizer.step()
        at = (settings.options, settings.torchs, NO_FAULTS, lr, t, w, g.astype(dtype), memory)
        taken = update(MUON, StepInput(*at), lambda x: 0.3 * x)
        memory, after = taken.memory, tensor.detach().numpy()
        off, step = np.abs(taken.parameter - after).max(), np.abs(w - after).max()
        same += bool(off <= 16 * eps * (np.abs(w).max() + step))
        # Where a sum in float32 is near a tie, it may be rounded to the next number.
        assert off < 0.1 * step
        assert taken.parameter.dtype == dtype
        theirs = optimizer.state[tensor]["momentum_buffer"].numpy()
        np.testing.assert_allclose(memory["momentum_buffer"], theirs, rtol=1e3 * eps, atol=eps)
    assert same >= 28


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-9, 1e-6, 1e18, 1e25, 1e38])
def test_norms_that_are_too_small_or_too_large_are_taken_as_torch_does(size: float) -> None:
    Z = np.random.default_rng(0).normal(size=(3, 4)) * size
    w = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)
    w.grad = torch.tensor(Z)
    optimizer: Any = torch.optim.Muon([w], lr=1.0, momentum=0.0, weight_decay=0.0)
    optimizer.step()

    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(orthogonal(Z, MUON.defaults), -w.detach().numpy())


def test_singular_values_come_near_1_and_the_directions_stay() -> None:
    Z = np.random.default_rng(1).normal(size=(4, 9))
    left, _, right = np.linalg.svd(Z, full_matrices=False)
    in_place = left.T @ orthogonal(Z, MUON.defaults) @ right.T

    assert np.abs(np.diag(in_place) - 0.95).max() < 0.3
    assert np.abs(in_place - np.diag(np.diag(in_place))).max() < 0.1
    np.testing.assert_array_equal(orthogonal(Z.T, MUON.defaults), orthogonal(Z, MUON.defaults).T)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {},
            [
                "v ← 0.95 v + (1 − 0.95) g",
                "Z ← 0.95 v + (1 − 0.95) g",
                "E ← Z/max(‖Z‖, 1e-07), in bfloat16 from here on",
                "5 times: K ← E Eᵀ, then E ← 3.4445 E + (−4.775 K + 2.0315 K²) E",
                "w ← w − 0.1·0.3 w − 0.1 √max(1, rows/columns) E",
            ],
        ),
        (
            {"momentum": 0.0, "eps": 0.0, "ns_steps": 0, "adjust_lr_fn": "match_rms_adamw"},
            [
                "v ← g",
                "Z ← v",
                "E ← Z/max(‖Z‖, 0), in bfloat16 from here on",
                "w ← w − 0.1·0.3 w − 0.1·0.2 √max(rows, columns) E",
            ],
        ),
    ],
)
def test_formula_is_written(options: Spec, expected: list[str]) -> None:
    settings = Settings(0.1, {"weight": 0.3}, MUON.defaults | options, "muon")
    given_letters = letters(Training(settings, (8,), 8))

    assert rule_lines(settings.torchs, given_letters) == expected
