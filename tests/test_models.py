from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regcheck.numerics.losses import Array, Parameters, accuracy, gradient, predict


def drawn(rows: int, features: int, seed: int, dtype: str) -> tuple[Array, Array, Parameters]:
    """Draw X, slopes on z, and parameters."""
    random = np.random.default_rng(seed)
    parameters = {
        "weight": random.normal(size=(1, features)).astype(dtype),
        "bias": random.normal(size=1).astype(dtype),
    }
    X = random.normal(size=(rows, features)).astype(dtype)
    return X, random.normal(size=rows).astype(dtype), parameters


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
    X, slopes, parameters = drawn(rows, features, seed, dtype)
    weight = torch.tensor(parameters["weight"], requires_grad=True)
    bias = torch.tensor(parameters["bias"], requires_grad=True)
    z = torch.nn.functional.linear(torch.tensor(X), weight, bias)[:, 0]
    (torch.tensor(slopes) * z).sum().backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    assert bias.grad is not None
    found = gradient(X, slopes)
    # Sums of at most 20 terms of size about 10: 20 · 10 u.
    atol = 200 * float(np.finfo(dtype).eps)
    np.testing.assert_allclose(predict(X, parameters), z.detach().numpy(), rtol=0, atol=atol)
    np.testing.assert_allclose(found["weight"], weight.grad.numpy(), rtol=0, atol=atol)
    np.testing.assert_allclose(found["bias"], bias.grad.numpy(), rtol=0, atol=atol)
    for name, tensor in found.items():
        assert tensor.shape == parameters[name].shape
        assert tensor.dtype == dtype


@settings(max_examples=20, deadline=None, derandomize=True)
@given(rows=st.integers(1, 10), features=st.integers(1, 4), seed=st.integers(0, 1000))
def test_gradient_is_the_central_difference(rows: int, features: int, seed: int) -> None:
    X, slopes, parameters = drawn(rows, features, seed, "float64")
    found = gradient(X, slopes)
    for name, tensor in parameters.items():
        for place in range(tensor.size):
            ends = []
            for h in (0.5, -0.5):  # z is linear in the parameters, so any h is exact
                moved = tensor.copy()
                moved.flat[place] += h
                ends.append(float(slopes @ predict(X, parameters | {name: moved})))
            # Rounding of sums of at most 10 terms of size about 10.
            assert ends[0] - ends[1] == pytest.approx(found[name].flat[place], abs=1e-12)


def test_gradient_grows_with_the_columns_scale() -> None:
    X, slopes, _ = drawn(7, 3, 0, "float64")
    scale = np.array([2.0**-10, 1.0, 2.0**10])  # powers of two: no rounding at all
    found = gradient(X * scale, slopes)
    assert np.array_equal(found["weight"], gradient(X, slopes)["weight"] * scale)


def test_accuracy_counts_rows_on_the_right_side() -> None:
    X = np.array([[-1.0], [2.0], [3.0], [0.0]])
    parameters = {"weight": np.array([[1.0]]), "bias": np.array([0.0])}
    # The last row is on the line: not above ½, so it counts as 0.
    assert accuracy(X, np.array([0.0, 1.0, 0.0, 0.0]), parameters) == 0.75


def test_accuracy_without_rows_is_none() -> None:
    parameters = {"weight": np.array([[1.0]]), "bias": np.array([0.0])}
    assert accuracy(np.empty((0, 1)), np.empty(0), parameters) is None
