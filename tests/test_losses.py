from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regcheck.numerics.losses import (
    DENOMINATOR_FLOOR,
    KEPT_FROM_ZERO,
    LOSSES,
    Array,
    bce,
    bce_plain,
    bce_with_logits,
    brier,
    mean_by_logarithms,
    mse,
    saturated,
    sigmoid,
)
from regcheck.numerics.models import accuracy, gradient, predict
from regcheck.rules.losses import LOSSES as TORCHS
from regcheck.rules.losses import LOSSES_OF_HEAD
from regcheck.rules.models import Architecture
from tests.conftest import told

BY_NAME = {"mse": mse, "bce": bce, "bce_with_logits": bce_with_logits, "brier": brier}
OF_LABELS = ("bce", "bce_with_logits", "brier")

labels = st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=20)


def logits_like(y: list[float], size: float, seed: int) -> tuple[Array, Array]:
    """Draw a logit of at most `size` for each label."""
    return np.random.default_rng(seed).uniform(-size, size, len(y)), np.array(y)


@pytest.mark.parametrize(
    ("name", "z", "y", "value", "slope"),
    [
        ("mse", 3.0, 1.0, 4.0, 4.0),
        ("mse", -1.0, 1.0, 4.0, -4.0),
        ("bce", 0.0, 1.0, math.log(2), -0.5),
        ("bce", math.log(3), 0.0, math.log(4), 0.75),  # p = 3/4
        ("bce_with_logits", 0.0, 0.0, math.log(2), 0.5),
        ("bce_with_logits", math.log(3), 1.0, math.log(4 / 3), -0.25),
        ("brier", 0.0, 1.0, 0.25, -0.25),  # 2 (1/2 - 1) 1/2 1/2
        ("brier", math.log(3), 0.0, 9 / 16, 2 * 3 / 4 * 3 / 16),
    ],
)
def test_loss_of_one_row_by_hand(name: str, z: float, y: float, value: float, slope: float) -> None:
    found = BY_NAME[name](np.array([z]), np.array([y]))
    # A few roundings of numbers of order 1.
    assert found.values[0] == pytest.approx(value, rel=1e-15, abs=1e-15)
    assert found.dloss_dz[0] == pytest.approx(slope, rel=1e-15, abs=1e-15)


@pytest.mark.parametrize("name", BY_NAME)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(y=labels, seed=st.integers(0, 1000))
def test_slope_is_the_central_difference(name: str, y: list[float], seed: int) -> None:
    z, target = logits_like(y, 5.0, seed)
    h = 1e-5
    loss = BY_NAME[name]
    ahead, behind = loss(z + h, target).values, loss(z - h, target).values
    # Truncation h²/6 |ℓ'''| < 2e-11, and rounding u |ℓ|/h < 1e-16 · 36/1e-5 = 4e-10.
    np.testing.assert_allclose(
        (ahead - behind) / (2 * h), loss(z, target).dloss_dz, rtol=0, atol=1e-9
    )


TORCH_OF = {"mse": ("linear", "mse"), "brier": ("logistic", "mse")} | {
    name: ("logistic", name) for name in ("bce", "bce_with_logits")
}


def by_torch(name: str, z: Array, y: Array) -> tuple[Array, Array]:
    """Take values and slopes from torch's own modules and autograd."""
    model, loss_name = TORCH_OF[name]
    link = getattr(torch.nn, TORCHS[loss_name].of[model])
    loss = getattr(torch.nn, TORCHS[loss_name].torch)
    logits = torch.tensor(z, requires_grad=True)
    values: torch.Tensor = loss(reduction="none")(link()(logits), torch.tensor(y))
    values.sum().backward()  # type: ignore[no-untyped-call]
    return values.detach().numpy(), told(logits.grad).numpy()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", BY_NAME)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(y=labels, seed=st.integers(0, 1000), size=st.sampled_from([1e-6, 1.0, 8.0]))
def test_loss_is_torchs_value_and_autograd(
    name: str, dtype: str, y: list[float], seed: int, size: float
) -> None:
    z, target = (part.astype(dtype) for part in logits_like(y, size, seed))
    found = BY_NAME[name](z, target)
    values, slopes = by_torch(name, z, target)
    # log(1 - p) loses e^z units of 1 - p: at z = 8 up to 3,000 u, so 1e4 u absolute.
    atol = 1e4 * float(np.finfo(dtype).eps) / 2
    np.testing.assert_allclose(found.values, values, rtol=1e-5, atol=atol)
    np.testing.assert_allclose(found.dloss_dz, slopes, rtol=1e-5, atol=atol)
    assert found.values.dtype == found.dloss_dz.dtype == dtype


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", OF_LABELS)
def test_loss_far_out_stays_torchs(name: str, dtype: str) -> None:
    # Beyond |z| = 90 p is 0, 1, or below every rounding of 1: nothing is left to rounding, and
    # what BCELoss does is its floors: -100 for the logarithm, 1e-12 for p (1 - p).
    z = np.array([-1e30, -800.0, -90.0, 90.0, 800.0, 1e30] * 2, dtype)
    y = np.array([0.0] * 6 + [1.0] * 6, dtype)
    with np.errstate(over="ignore", divide="ignore"):
        found = BY_NAME[name](z, y)
    values, slopes = by_torch(name, z, y)
    # e^-90 is no normal float32: NumPy has 0 where torch keeps a denormal, so leave it out.
    kept = np.abs(z) != 90.0 if dtype == "float32" else np.full(12, True)
    # One side may lose what is below u of the largest part of the sum, e^-90 < 1e-39 here.
    np.testing.assert_allclose(found.values[kept], values[kept], rtol=1e-6, atol=1e-30)
    np.testing.assert_allclose(found.dloss_dz[kept], slopes[kept], rtol=1e-6, atol=1e-30)


def test_bce_slope_fades_by_torchs_own_floor() -> None:
    # Where p (1 - p) is below the floor and has no rounding to speak of: 1e-12 would be 4e-9 off.
    z, y = np.array([-30.0, -40.0, -60.0]), np.array([1.0, 1.0, 1.0])
    # e^-z in torch and in NumPy: a few units in the last place.
    np.testing.assert_allclose(bce(z, y).dloss_dz, by_torch("bce", z, y)[1], rtol=1e-14)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_plain_bce_has_the_slope_of_its_logits_and_the_losses_of_torch(dtype: str) -> None:
    z = np.linspace(-60, 60, 97).astype(dtype)
    y = (np.arange(97) % 2).astype(dtype)
    with np.errstate(divide="ignore"):
        found, floored = bce_plain(z, y), bce(z, y)

    np.testing.assert_array_equal(found.dloss_dz, bce_with_logits(z, y).dloss_dz)
    np.testing.assert_array_equal(found.values, floored.values)
    # It is another rule just where outputs are saturated, but for labels that are certain too.
    apart = np.abs(found.dloss_dz - floored.dloss_dz) > 1e-6 * np.abs(found.dloss_dz)
    assert (apart <= saturated(z)).all()
    assert (apart == saturated(z))[np.abs(found.dloss_dz) > 0.5].all()


@pytest.mark.parametrize(
    ("dtype", "z", "expected"),
    [
        ("float64", 27.63, False),
        ("float64", 27.64, True),
        ("float64", -27.64, True),
        ("float64", 1e300, True),
        ("float32", 16.5, False),
        ("float32", 17.4, True),
        ("float32", -27.5, False),
        ("float32", -27.7, True),
    ],
)
def test_outputs_are_saturated_where_the_floor_is_met(dtype: str, z: float, expected: bool) -> None:
    assert saturated(np.array([0.0, z], dtype)).tolist() == [False, expected]
    if dtype == "float64" and abs(z) < 100:
        assert (math.exp(-abs(z)) < DENOMINATOR_FLOOR) == expected


def test_slopes_add_up_to_zero_at_the_best_constant() -> None:
    y = np.array([0.0, 1.0, 1.0, 1.0])
    best = np.full(4, math.log(3.0))  # p = 3/4, the share of ones
    # Sums of four numbers below 1, a few roundings each.
    assert mse(np.full(4, 0.75), y).dloss_dz.sum() == pytest.approx(0, abs=1e-15)
    for name in OF_LABELS:
        assert BY_NAME[name](best, y).dloss_dz.sum() == pytest.approx(0, abs=1e-15)


def test_sigmoid_is_torchs_and_never_nan() -> None:
    z = np.array([-np.inf, -745.0, -1.0, 0.0, 1.0, 745.0, np.inf])
    with np.errstate(over="ignore"):
        p = sigmoid(z)
    # Two units in the last place; torch vectorises e^z.
    np.testing.assert_allclose(p, torch.sigmoid(torch.tensor(z)).numpy(), rtol=5e-16)
    assert p[0] == 0
    assert p[-1] == 1


def test_every_model_and_loss_of_the_spec_has_a_loss_on_both_sides() -> None:
    pairs = {(model, loss) for model, losses in LOSSES_OF_HEAD.items() for loss in losses}
    assert set(LOSSES) == pairs


# --- the models -----------------------------------------------------------------------------------


def test_predict_and_gradient_by_hand() -> None:
    X = np.array([[1.0, 2.0], [3.0, -1.0]])
    parameters = {"weight": np.array([[0.5, -0.25]]), "bias": np.array([1.0])}
    assert predict(X, parameters).tolist() == [1.0, 2.75]
    found = gradient(X, np.array([1.0, -2.0]))
    assert found["weight"].tolist() == [[-5.0, 4.0]]
    assert found["bias"].tolist() == [-1.0]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 20),
    features=st.integers(1, 6),
    seed=st.integers(0, 1000),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_predict_and_gradient_are_torchs_linear(
    rows: int, features: int, seed: int, dtype: str
) -> None:
    random = np.random.default_rng(seed)
    X = random.normal(size=(rows, features)).astype(dtype)
    slopes = random.normal(size=rows).astype(dtype)
    parameters = {"weight": random.normal(size=(1, features)).astype(dtype)}
    parameters["bias"] = random.normal(size=1).astype(dtype)
    weight = torch.tensor(parameters["weight"], requires_grad=True)
    bias = torch.tensor(parameters["bias"], requires_grad=True)
    z = torch.nn.functional.linear(torch.tensor(X), weight, bias)[:, 0]
    (torch.tensor(slopes) * z).sum().backward()  # type: ignore[no-untyped-call]
    found = gradient(X, slopes)
    # Sums of at most 20 terms of size about 10: 20 · 10 u.
    atol = 200 * float(np.finfo(dtype).eps)
    np.testing.assert_allclose(predict(X, parameters), z.detach().numpy(), rtol=0, atol=atol)
    np.testing.assert_allclose(found["weight"], told(weight.grad).numpy(), rtol=0, atol=atol)
    np.testing.assert_allclose(found["bias"], told(bias.grad).numpy(), rtol=0, atol=atol)
    for name, tensor in found.items():
        assert tensor.shape == parameters[name].shape
        assert tensor.dtype == dtype


def test_accuracy_counts_rows_on_the_right_side() -> None:
    X = np.array([[-1.0], [2.0], [3.0], [0.0]])
    parameters = {"weight": np.array([[1.0]]), "bias": np.array([0.0])}
    # The last row is on the line: not above ½, so it counts as 0.
    model = Architecture("logistic", "logistic")
    assert accuracy(model, X, np.array([0.0, 1.0, 0.0, 0.0]), parameters) == 0.75
    assert accuracy(model, X[:0], np.empty(0), parameters) is None
    assert math.isnan(accuracy(model, X * math.nan, np.zeros(4), parameters) or 0.0)


@pytest.mark.parametrize("form", KEPT_FROM_ZERO)
def test_logarithms_by_hand_are_kept_from_zero_and_else_those_of_p(form: str) -> None:
    z, y = np.array([-800.0, math.log(3), 800.0]), np.array([1.0, 0.0, 0.0])
    for logarithms in KEPT_FROM_ZERO[form]:
        # p is 0, 3/4 and 1; the first and the last row are wrong by all that there is.
        with np.errstate(over="ignore"):
            wrong = mean_by_logarithms(logarithms, 2.0**-40, z, y)
        assert wrong == pytest.approx((40 * math.log(2) + math.log(4) + 40 * math.log(2)) / 3)
        assert mean_by_logarithms(logarithms, 1e-20, z[1:2], y[1:2]) == pytest.approx(math.log(4))
        assert mean_by_logarithms(logarithms, 0.25, np.zeros(1), np.ones(1)) == pytest.approx(
            -math.log(0.75 if "added" in form else 0.5)
        )
