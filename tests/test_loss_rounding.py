from __future__ import annotations

import math
from collections.abc import Callable, Collection

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from regcheck.numerics.bounds.loss_rounding import LossRounding, gram_error, precision_of
from regcheck.numerics.losses import DENOMINATOR_FLOOR as FLOOR
from regcheck.numerics.losses import LOSSES
from regcheck.rules.losses import LOSSES as TORCHS
from tests.random_specs import KINDS
from tests.rounded_steps import TINY32, TINY64, U32, U64, close

Array = NDArray[np.floating]


def logistic(loss: str, dtype: str = "float64", own: Collection[str] = ()) -> LossRounding:
    dtypes = ("float64", "float32") if dtype == "mixed" else (dtype, dtype)
    return LossRounding("logistic", loss, precision_of(*dtypes), own)


@pytest.mark.parametrize("kind", KINDS)
def test_steepest_is_the_largest_slope_of_the_slope(kind: tuple[str, str]) -> None:
    z = np.linspace(-12, 12, 24_001)
    steepness = np.array(
        [np.gradient(LOSSES[kind](z, np.full_like(z, y)).dloss_dz, z) for y in (0.0, 0.3, 1.0)]
    )
    largest = np.abs(steepness).max(axis=0)

    model, name = kind
    steepest = TORCHS[name].steepest[model]
    assert 0.95 * steepest < largest.max() < steepest * (1 + 1e-6)
    if model == "logistic":
        assert np.all(largest <= TORCHS[name].tail * np.exp(-np.abs(z)) * 1.001)


def test_a_slope_s_error_adds_what_a_sigmoid_loses_to_that_of_the_output() -> None:
    # At z = 0 a quarter of δz = 8 least normal numbers, and one more.
    zero, dz = np.zeros(1), np.array([8 * TINY64])

    assert logistic("bce_with_logits").derivative_error(zero, zero, dz, 0.0) == close(3 * TINY64)


def test_a_slope_s_error_is_told_row_by_row() -> None:
    # At z = 5 an error of 0.5 leaves z near 5, and the slope of the slope below 3 e^−5; one of 2
    # leaves it above 3, and one of 6 anywhere.
    z, zero = np.array([5.0, 5.0]), np.zeros(2)
    for dz, known in [(6.0, 0.25), (2.0, math.exp(-3)), (1.0, 3 * math.exp(-5))]:
        expected = math.hypot(dz * known, 0.5 * 3 * math.exp(-5))
        model = logistic("bce_with_logits")
        assert model.derivative_error(z, zero, np.array([dz, 0.5]), 6.0) == close(expected)


@pytest.mark.parametrize(
    ("dtype", "z", "least", "most"),
    [
        # Above the floor the whole slope is passed, and nothing can change that.
        ("float64", 27.0, 1, 1),
        ("float64", -27.0, 1, 1),
        # Below it, (1 − p)/ε of it, where 1 − p is known to 1.5u.
        ("float64", 30.0, (math.exp(-30) - 1.5 * U64) / FLOOR, (math.exp(-30) + 1.5 * U64) / FLOOR),
        ("float64", 36.5, 0, (math.exp(-36.5) + 1.5 * U64) / FLOOR),
        # p is 1 by any formula: torch passes nothing, and so does whoever has its floor.
        ("float64", 37.5, 0, 0),
        ("float64", 500.0, 0, 0),
        # Small p are known to their last digits.
        ("float64", -30.0, math.exp(-30) / FLOOR, math.exp(-30) / FLOOR),
        ("float64", -500.0, 0, 0),
        # In float32 a unit of 1's last place is far above the floor: all of the slope, or nothing.
        ("float32", 16.2, 1, 1),
        ("float32", 16.3, 0, 1),
        ("float32", 17.3, 0, 1),
        ("float32", 17.4, 0, 0),
        ("float32", -17.0, 1, 1),
        ("float32", -30.0, math.exp(-30) / FLOOR, math.exp(-30) / FLOOR),
        # Where float32 has 1, float64 has digits left.
        ("mixed", 17.4, 0, 1),
        ("mixed", 30.0, 0, (math.exp(-30) + 1.5 * U64) / FLOOR),
        ("mixed", 37.5, 0, 0),
    ],
)
@pytest.mark.parametrize("y", [0.0, 0.25, 1.0])
def test_what_a_fading_slope_loses(
    dtype: str, z: float, least: float, most: float, y: float
) -> None:
    model = logistic("bce", dtype)
    row, target, dz = (np.array([number]) for number in (z, y, 0.0))
    slope = 1 - y if z > 0 else y

    assert model.fading(row, target, dz).item() == pytest.approx(slope * (most - least), rel=1e-9)
    found = model.derivative_error(row, target, dz, abs(z))
    assert found == pytest.approx(slope * (most - least), rel=1e-9, abs=2 * TINY32)


@pytest.mark.parametrize(("z", "dz"), [(30.0, 1e-3), (-30.0, 1e-3), (29.0, 3.0), (-29.0, 3.0)])
def test_errors_of_z_move_a_fading_slope(z: float, dz: float) -> None:
    # The slope goes with e^(−|z|), up to the floor.
    rows = [np.array([number]) for number in (z, float(z < 0), dz)]
    ends = [min(1.0, math.exp(-abs(z + side * dz)) / FLOOR) for side in (1, -1)]
    rounding = 3 * U64 / FLOOR if z > 0 else 0.0

    found = logistic("bce").fading(*rows).item()
    assert abs(ends[0] - ends[1]) <= found <= abs(ends[0] - ends[1]) + rounding


@pytest.mark.parametrize("z", [38.0, 45.0, 100.0])
def test_a_users_own_sigmoid_may_keep_a_tail_of_a_fading_slope(z: float) -> None:
    # e/(1 + e)² in the place of p (1 − p) does not round to 0 where p rounds to 1.
    rows = [np.array([number]) for number in (z, 0.0, 0.0)]
    models = [logistic("bce", dtype, own=["framework"]) for dtype in ("float64", "float32")]
    tails = [model.fading(*rows).item() for model in models]

    assert tails == [close(math.exp(-z) / FLOOR), 0.0]
    assert logistic("bce").fading(*rows).item() == 0


FORMULAS: dict[str, Callable[[Array], Array]] = {
    "1/(1 + e^−z)": lambda z: 1 / (1 + np.exp(-z)),
    "e^z/(1 + e^z)": lambda z: np.exp(z) / (1 + np.exp(z)),
    "1 − 1/(1 + e^z)": lambda z: 1 - 1 / (1 + np.exp(z)),
    "½ (1 + tanh z/2)": lambda z: (1 + np.tanh(z / 2)) / 2,
    "by sign": lambda z: np.where(
        z >= 0, 1 / (1 + np.exp(-np.abs(z))), np.exp(-np.abs(z)) / (1 + np.exp(-np.abs(z)))
    ),
    "torch": lambda z: torch.sigmoid(torch.from_numpy(z)).numpy(),
}
"""σ as people write it."""


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("formula", FORMULAS)
def test_tails_hold_for_sigma_as_people_write_it(formula: str, dtype: str) -> None:
    z = np.linspace(14, 40, 400_001).astype(dtype)
    found = 1 - FORMULAS[formula](z).astype(np.float64)
    exact = np.exp(-z.astype(np.float64))
    u = U32 if dtype == "float32" else U64
    tails = logistic("bce", dtype).tails(z.astype(np.float64), np.zeros(len(z)))

    # 1 − 1/(1 + e) is e − e² + …, and the formula's own exp adds a few u of e.
    slack = exact**2 + 8 * u * exact
    assert (found <= tails.most + slack).all()
    assert (found >= tails.least - slack).all()
    assert (found[tails.most == 0] == 0).all()


@pytest.mark.parametrize(("dtype", "u"), [("float64", U64), ("float32", U32)])
def test_the_edge_is_where_rounding_reaches_the_floor(dtype: str, u: float) -> None:
    # There 1 − p is 8u above the floor, or with it: e^−z = ε + 8u.
    assert math.exp(-logistic("bce", dtype).edge) == close(FLOOR + 8 * u)


def upper(z: float, u: float = U64) -> float:
    """Give the largest log(1 − p)."""
    return math.log(math.exp(-z) + 1.5 * u)


def spread(z: float, u: float = U64) -> float:
    """Give by how much log(1 − p) may be off where p is not 1."""
    return upper(z, u) - math.log(math.exp(-z) - 1.5 * u)


@pytest.mark.parametrize(
    ("kind", "z", "y", "loss", "expected"),
    [
        (("linear", "mse"), [3.0, -4.0], [0.5, 0.5], 9.0, 0.0),
        (("logistic", "mse"), [3.0, -4.0], [0.5, 0.5], 0.09, 8 * (0.3 + U64)),
        (("logistic", "mse"), [3.0, -4.0], [0.5, 0.5], 0.0, 8 * U64),
        (("logistic", "bce_with_logits"), [3.0, -4.0], [0.5, 0.5], 9.0, 4 * 5 / math.sqrt(2)),
        # 2 · 2u (1 + e^z) for log(1 − p), where y lets it count, and 4u for log p.
        (("logistic", "bce"), [-1.0], [0.25], 9.0, 4 * (1 + math.exp(-1)) + 4),
        (("logistic", "bce"), [2.0], [0.25], 9.0, 4 * (1 + math.exp(2)) + 4),
        (("logistic", "bce"), [-1.0, 2.0], [0.25, 1.0], 9.0, 4 * (1 + math.exp(-1)) / 2 + 4),
        (("logistic", "bce"), [30.0], [0.25], 9.0, 4 * (1 + math.exp(30)) + 4),
        # Beyond z = −log 4u, 1 − p is within 1.5u of e^−z, or else 0, whose logarithm BCELoss
        # takes for −100; but where p is 1 on both sides, both take that.
        (("logistic", "bce"), [35.5], [0.25], 9.0, spread(35.5) / U64 + 4),
        (("logistic", "bce"), [37.0], [0.25], 9.0, (100 + upper(37.0)) / U64 + 4),
        (("logistic", "bce"), [40.0], [0.25], 9.0, 4.0),
        (("logistic", "bce"), [40.0], [1.0], 9.0, 4.0),
        (("logistic", "bce"), [-86.0], [0.25], 9.0, 8.0),
    ],
)
def test_rounding_of_the_loss_worked_by_hand(
    kind: tuple[str, str], z: list[float], y: list[float], loss: float, expected: float
) -> None:
    model = LossRounding(*kind, precision_of("float64", "float64"))
    found = model.loss_error(np.array(z), np.array(y), np.zeros(len(z)), loss)

    assert found == close(expected * U64, rel=1e-9)


@pytest.mark.parametrize(
    ("z", "y", "expected"),
    [
        (40.0, 0.25, 4 * U32),
        (17.0, 0.25, 100 + upper(17.0, U32) + 4 * U32),
        (16.0, 0.25, spread(16.0, U32) + 4 * U32),  # 4u e^z = 2.1
        (15.5, 0.25, spread(15.5, U32) + 4 * U32),  # 4u e^z = 1.3
        (14.0, 0.25, 4 * U32 * (2 + math.exp(14))),  # 4u e^z = 0.29
        # Below −85, p is denormal, and log p counts unless y = 0.
        (-84.5, 0.25, 8 * U32),
        (-86.0, 0.25, 15 + 8 * U32),
        (-86.0, 1.0, 15 + 4 * U32),
        (-86.0, 0.0, 8 * U32),
    ],
)
def test_rounding_of_float32_s_loss_worked_by_hand(z: float, y: float, expected: float) -> None:
    model = logistic("bce", "float32")

    found = model.loss_error(np.array([z]), np.array([y]), np.zeros(1), 9.0)
    assert found == close(expected, rel=1e-9)


def test_a_users_own_loss_of_z_may_be_taken_from_p() -> None:
    # Beside 4u |z|: 4u (1 + e^z) for log(1 − p), where y lets it count, and 4u for log p.
    model = logistic("bce_with_logits", own=["scratch"])
    found = model.loss_error(np.array([3.0, -4.0]), np.array([0.25, 1.0]), np.zeros(2), 9.0)
    logs = 0.75 * 4 * (1 + math.exp(3)) / 2 + 4

    assert found == close((4 * 5 / math.sqrt(2) + logs) * U64)


@pytest.mark.parametrize("z", [37.0, 40.0])
def test_a_users_own_loss_may_have_a_floor_of_its_own(z: float) -> None:
    # Where p is 1 on both sides, log(1 − p) is torch's −100 or anything above.
    row, zero = np.array([z]), np.zeros(1)
    own = logistic("bce", own=["scratch"]).log_error(row, zero, -100.0).item()
    theirs = logistic("bce").log_error(row, zero, -100.0).item()

    assert own == (theirs if z == 37.0 else 100.0)


def test_a_users_own_sigmoid_loses_what_rounding_leaves_of_1_minus_p() -> None:
    # m = t/max(q, ε) with t = e^−30, where q is t ± 1.5u, and torch's from (t − 1.5u)/ε on.
    t, off = math.exp(-30.0), 1.5 * U64
    most = max(t / max(t - off, FLOOR), t / FLOOR, (t + off) / FLOOR)
    least = min(t / max(t + off, FLOOR), (t - off) / FLOOR)
    model = logistic("bce", own=["framework"])
    found = model.fading(np.array([30.0]), np.array([0.25]), np.zeros(1))

    assert found.item() == close(0.75 * (most - least), rel=1e-6)


def test_a_users_own_sigmoid_has_its_own_ratio_at_the_farthest_z() -> None:
    # With e^(−|z|) above ε throughout, m = t/(t ± 1.5u) is farthest from 1 at the smallest t.
    dz = 0.5
    t, off = math.exp(-27.0 - dz), 1.5 * U64
    model = logistic("bce", own=["framework"])
    found = model.fading(np.array([27.0]), np.array([0.25]), np.array([dz]))

    assert found.item() == close(0.75 * (t / (t - off) - t / (t + off)), rel=1e-6)


def test_a_mean_squared_error_by_its_gram_matrix_worked_by_hand() -> None:
    # (2 · 3 + 4 · 0.5 + 7)² = 225, over 9 rows: u (√9 + 2 √2 + 6) 225/9.
    found = gram_error(U64, np.array([2.0, 4.0]), np.array([3.0, 0.5]), 7.0, 9)

    assert found == close((3 + 2 * math.sqrt(2) + 6) * 25 * U64)
    assert gram_error(U64, np.ones(1), np.array([1e200]), 0.0, 9) == math.inf
