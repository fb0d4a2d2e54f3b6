"""How far apart two correct sides may have Muon's steps, against torch's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.optim import Muon

from regcheck.numerics.bounds.optimizers.optimizer_rounding import FORMULAS
from regcheck.numerics.bounds.optimizers.orthogonal_rounding import possible
from regcheck.numerics.bounds.step_rounding import OptimizerStep
from regcheck.rules.optimizers.muon import MUON, orthogonal
from tests.own_optimizers import orthogonal_by_hand

Array = NDArray[np.floating]

U64, U32 = 2.0**-53, 2.0**-24


def in_torch(Z: Array) -> Array:
    """Return E by torch: the step from 0 of lr 1, without what a shape makes of it."""
    w = torch.zeros(Z.shape, dtype=torch.float64, requires_grad=True)
    w.grad = torch.tensor(Z)
    optimizer: Any = Muon([w], lr=1.0, momentum=0.0, weight_decay=0.0)
    optimizer.step()
    rows, columns = Z.shape
    found: Array = -w.detach().numpy() / max(1, rows / columns) ** 0.5
    return found


def drawn(shape: tuple[int, int], seed: int) -> Array:
    """Draw a matrix with rows of several sizes; every third one has rows that sum to nothing."""
    draws = np.random.default_rng(seed)
    Z = draws.normal(size=shape) * np.exp(draws.normal(size=(shape[0], 1)))
    return Z - Z.mean(axis=0) if seed % 3 == 0 and shape[0] > 1 else Z


@pytest.mark.search(sample=30, whole=2000)
@pytest.mark.parametrize("shape", [(1, 5), (3, 4), (3, 16), (16, 4), (16, 16), (32, 8)], ids=str)
@pytest.mark.parametrize("u", [U64, U32])
def test_torchs_step_is_possible(shape: tuple[int, int], u: float, seed: int) -> None:
    Z = drawn(shape, seed)
    error = 4 * u * np.abs(Z)
    off = np.random.default_rng(seed + 1).uniform(-1, 1, size=shape) * error
    apart = np.abs(in_torch(Z + off) - orthogonal(Z, MUON.defaults))

    assert (apart <= possible(Z, error, MUON.defaults) * (1 + 1e-12) + 1e-12 * np.abs(Z)).all()


@pytest.mark.search(sample=20, whole=2000)
@pytest.mark.parametrize("shape", [(3, 4), (16, 4), (16, 16)], ids=str)
def test_step_of_operations_that_are_each_rounded_is_possible(
    shape: tuple[int, int], seed: int
) -> None:
    Z = drawn(shape, seed)
    by_hand: Array = orthogonal_by_hand(torch.tensor(Z)).numpy()
    apart = np.abs(by_hand - orthogonal(Z, MUON.defaults))
    no_error = np.zeros(shape)

    assert (apart <= 0.3 * possible(Z, no_error, MUON.defaults, each_rounds=True)).all()
    if shape == (3, 4):  # larger ones are near so many ties that torch's own may be as far
        assert (apart > 2 * possible(Z, no_error, MUON.defaults)).any()


def test_matrices_of_the_usual_sizes_are_certain_in_most_steps() -> None:
    # Measured: 84 % of steps of this shape have an entry that rounding moves by less than 1 %.
    certain = 0
    for seed in range(40):
        Z = drawn((16, 4), 3 * seed + 1)
        E = np.abs(orthogonal(Z, MUON.defaults))
        certain += bool((2 * possible(Z, 4 * U32 * np.abs(Z), MUON.defaults) < 0.01 * E).any())
    assert certain > 30


def test_what_is_near_a_tie_may_be_rounded_either_way() -> None:
    # 1 + 2⁻⁸ is half way between 1 and 1 + 2⁻⁷.
    Z, options = np.array([[1 + 2.0**-8, 3.0]]), MUON.defaults | {"ns_steps": 0}
    one, other = (orthogonal(Z + np.array([[off, 0.0]]), options) for off in (-1e-6, 1e-6))
    assert (one != other).any()

    spread = possible(Z, np.full_like(Z, 1e-6), options)
    assert (spread >= np.abs(one - other)).all()
    assert (possible(Z + 2.0**-10, np.full_like(Z, 1e-6), options) == 0).all()


def test_an_error_that_is_no_number_allows_all() -> None:
    assert np.isinf(possible(np.ones((2, 2)), np.full((2, 2), np.nan), MUON.defaults)).all()


def propagated(noise: float, known: float, **options: Any) -> tuple[Array, Array]:
    """Return the bound of a step of two matrices and a vector, and the velocity's error."""
    w, g, v = (np.random.default_rng(seed).normal(size=13) for seed in range(3))
    given = MUON.defaults | {"lr": 0.5, "weight_decay": 0.0} | options
    shapes = [(1, 4), (3, 2), (3,)]
    step = OptimizerStep(w, w - 0.5, g, given, {"momentum_buffer": v}, 2.0, shapes)
    found = FORMULAS["Muon"].propagate(
        U64, step, np.full(13, noise), {"momentum_buffer": np.full(13, known)}
    )
    return found.after, found.carried["momentum_buffer"]


def test_velocity_carries_its_error_and_takes_its_share_of_the_gradients() -> None:
    _, error = propagated(1e-3, 2e-3, momentum=0.75)

    assert error[:10] == pytest.approx(0.75 * 2e-3 + 0.25 * 1e-3)
    assert (error[10:] == 0).all()  # a vector is not trained


def test_bound_is_the_rounding_of_the_update_where_no_entry_is_uncertain() -> None:
    certain, _ = propagated(0.0, 0.0)
    uncertain, _ = propagated(1e-2, 0.0)
    larger, _ = propagated(1e-2, 0.0, lr=1.0)

    assert (certain < 20 * U64).all()
    assert (uncertain[:10] > 1e-4).any()
    assert larger[:10] == pytest.approx(2 * uncertain[:10], abs=1e-14)
    assert uncertain[10:] == pytest.approx(certain[10:])


def test_each_tensor_may_have_options_of_its_own() -> None:
    own = [MUON.defaults | {"momentum": mu} for mu in (0.5, 0.0, 0.5)]
    _, error = propagated(0.0, 1e-3, of_tensors=own)

    assert error == pytest.approx([5e-4] * 4 + [0.0] * 9, abs=1e-14)
