from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regcheck.errors import InputError
from regcheck.problem.data.load import load_rows
from regcheck.problem.data.preprocess import Split, prepare
from regcheck.spec import from_mapping

X = [[1.0, 10.0], [2.0, 10.0], [3.0, 10.0], [6.0, 30.0]]
Y = [1.0, 2.0, 3.0, 4.0]


def prepared(X: list[list[float]] = X, y: list[float] = Y, **keys: Any) -> Split:
    loaded = from_mapping({"data": {"X": X, "y": y, **keys}, "model": "linear", "lr": 0.1})
    return prepare(loaded, load_rows(loaded))


SHUFFLED = np.random.default_rng(3).permutation(4).tolist()


@pytest.mark.parametrize(
    ("keys", "train", "test"),
    [
        ({}, [0, 1, 2, 3], []),
        ({"test": 0.25}, [0, 1, 2], [3]),
        ({"test": {"share": 0.5, "seed": 3}}, SHUFFLED[:2], SHUFFLED[2:]),
    ],
    ids=["nothing", "the last rows", "rows by a seed"],
)
def test_prepare_holds_out_rows(keys: dict[str, Any], train: list[int], test: list[int]) -> None:
    split = prepared(**keys)
    for found, rows, expected in (
        (split.X, train, X),
        (split.y, train, Y),
        (split.X_test, test, X),
        (split.y_test, test, Y),
    ):
        assert found.tolist() == np.array(expected)[rows].tolist()
    assert split.X_test.shape == (len(test), 2)


@pytest.mark.parametrize(("ddof", "spread"), [(0, np.sqrt(2 / 3)), (1, 1.0)])
def test_prepare_standardize_uses_the_training_rows_alone(ddof: int, spread: float) -> None:
    split = prepared(standardize={"ddof": ddof}, test=0.25)
    # The training rows hold 1, 2 and 3: mean 2; the second column is constant there.
    np.testing.assert_allclose(split.X[:, 0], np.array([-1, 0, 1]) / spread, rtol=1e-15)
    np.testing.assert_allclose(split.X_test, [[4 / spread, 20]], rtol=1e-15)
    np.testing.assert_array_equal(split.X[:, 1], [0, 0, 0])


def test_prepare_standardize_true_divides_by_n() -> None:
    np.testing.assert_array_equal(prepared(standardize=True).X, prepared(standardize={"ddof": 0}).X)


def test_prepare_standardize_of_a_constant_that_binary_cannot_hold() -> None:
    split = prepared([[0.1], [0.1], [0.1]], [1.0, 2.0, 3.0], standardize=True)
    # Without care, a spread of one rounding would blow the rounding of the mean up to 1.
    assert np.abs(split.X).max() < 1e-15


def test_prepare_rows_are_contiguous_for_both_trainers() -> None:
    split = prepared(test={"share": 0.5, "seed": 0}, standardize=True)
    assert split.X.flags.c_contiguous


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"test": 0.9}, "data.test: holds out all 4 samples, and none is left to train on"),
        (
            {"test": 0.75, "standardize": {"ddof": 1}},
            "data.standardize: ddof 1 needs at least 2 training samples, got 1",
        ),
    ],
)
def test_prepare_refuses(keys: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        prepared(**keys)


@pytest.mark.parametrize("numbers", [[1e308, 1e308, 1.0], [1e308, -1e308, 0.0], [1e200, 0.0, 1.0]])
def test_prepare_standardize_beyond_float64_is_refused(numbers: list[float]) -> None:
    with pytest.raises(InputError, match=r"data\.standardize: overflows"):
        prepared([[number] for number in numbers], [0.0, 1.0, 2.0], standardize=True)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(
    st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=20, unique=True),
    st.floats(0.01, 100.0),
)
def test_prepare_standardize_gives_mean_0_and_spread_1(column: list[float], scale: float) -> None:
    values = np.array(column) * scale
    constant = values.std() <= 1e-9 * np.abs(values).max()
    scaled = prepared([[value] for value in values.tolist()], column, standardize=True).X[:, 0]
    # The mean's own rounding, in units of the spread; columns that are all but constant aside.
    assert abs(scaled.mean()) < 1e-5 or constant
    assert scaled.std() == pytest.approx(1) or constant
