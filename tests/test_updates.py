"""What a user's function may yield, and what is refused: where, what was found, what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from regcheck.numerics.packing import layout_of
from regcheck.user_code.updates import Refused, Yielded, read
from tests.conftest import told
from tests.user_files import SHAPES

MATRIX = {"0.weight": (2, 3), "1.weight": (1, 2)}
W = np.arange(6.0).reshape(2, 3)


def read_one(value: object, shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> Yielded:
    return read(value, layout_of(dict(shapes)))


@pytest.mark.parametrize(
    "weight",
    [
        [0.5, -2.0],
        (0.5, -2.0),
        [[0.5], [-2.0]],
        np.array([[0.5, -2.0]]),
        np.array([[0.5], [-2.0]], np.float32),
        np.array([0.5, -2.0], np.float16),
        np.array([0.5, -2.0], np.longdouble),
        np.ma.array([0.5, -2.0]),
        torch.tensor([[0.5, -2.0]]),
        torch.tensor([0.5, -2.0], dtype=torch.float64, requires_grad=True),
        torch.nn.Parameter(torch.tensor([[0.5], [-2.0]])),
    ],
    ids=repr,
)
def test_whatever_numpy_makes_numbers_of_is_taken(weight: Any) -> None:
    step = read_one({"weight": weight, "bias": np.float32(1)})
    assert step.parameters["weight"].tolist() == [[0.5, -2.0]]
    assert step.parameters["bias"].tolist() == [1.0]
    assert {array.dtype for array in step.parameters.values()} == {np.dtype("float64")}
    assert step.fits_float32
    assert (step.loss, step.gradient) == (None, None)


@pytest.mark.parametrize("bias", [3, 3.0, [3], [[3.0]], np.array(3), torch.tensor(3.0)], ids=repr)
def test_bias_may_be_a_number(bias: Any) -> None:
    assert read_one({"weight": [0, 0], "bias": bias}).parameters["bias"].tolist() == [3.0]


@pytest.mark.parametrize(
    ("loss", "number"),
    [
        (None, None),
        (2, 2.0),
        (np.float32(0.5), 0.5),
        (np.array([[0.25]]), 0.25),
        (torch.tensor(1.5), 1.5),
    ],
    ids=repr,
)
def test_loss_is_one_number_however_it_is_held(loss: Any, number: float | None) -> None:
    assert read_one({"weight": [0, 0], "bias": 0, "loss": loss, "grad": None}).loss == number


def test_gradient_is_read_like_the_parameters() -> None:
    grad = {"weight": np.array([[1.0], [2.0]]), "bias": torch.tensor(3.0)}
    step = read_one({"weight": [0, 0], "bias": 0, "grad": grad})
    assert step.gradient is not None
    assert step.gradient["weight"].tolist() == [[1.0, 2.0]]
    assert step.gradient["bias"].tolist() == [3.0]


def test_nan_and_infinity_are_outcomes() -> None:
    step = read_one({"weight": [np.nan, np.inf], "bias": -np.inf, "loss": np.nan})
    assert np.isnan(step.parameters["weight"][0, 0])
    assert step.parameters["weight"][0, 1] == np.inf
    assert step.fits_float32
    assert step.loss != step.loss


@pytest.mark.parametrize(
    ("weight", "bias", "fits"),
    [
        ([0.5, np.float32(0.1)], 0, True),
        ([0.5, 0.1], 0, False),
        ([0.5, 0.7], 0, False),
        ([0.5, 0.5], 0.1, False),
        ([1e300, 0.5], 0, False),
        ([np.nan, 0.1], 0, False),
        (np.array([2**24 + 1, 0]), 0, False),
        (np.array([2**24, 0]), 0, True),
    ],
)
def test_float32_is_recognised_by_its_numbers(weight: Any, bias: Any, fits: bool) -> None:
    assert read_one({"weight": weight, "bias": bias}).fits_float32 is fits


def test_what_was_read_is_a_copy() -> None:
    weight = np.zeros(2)
    value = {"weight": weight, "bias": 0, "grad": {"weight": weight, "bias": 0}}
    step = read_one(value)
    weight += 1
    assert step.parameters["weight"].tolist() == [[0.0, 0.0]]
    assert told(step.gradient)["weight"].tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("first", [W, W[None], W.ravel()], ids=["as it is", "nested", "flat"])
def test_matrices_are_taken_in_their_own_shape_or_row_by_row(first: Any) -> None:
    step = read_one({"0.weight": first, "1.weight": [1, 2]}, MATRIX)
    assert np.array_equal(step.parameters["0.weight"], W)


def test_vector_is_taken_in_any_shape_row_by_row() -> None:
    step = read_one({"w": [[1, 2], [3, 4]]}, {"w": (1, 4)})
    assert step.parameters["w"].tolist() == [[1.0, 2.0, 3.0, 4.0]]


@pytest.mark.parametrize("matrix", [W, W.T])
def test_transposed_matrix_is_refused(matrix: np.ndarray[Any, Any]) -> None:
    with pytest.raises(Refused) as refused:
        read_one({"w": matrix.T}, {"w": matrix.shape})
    assert str(refused.value) == (
        f"`w` has shape {matrix.T.shape}, 6 numbers; expected 6 numbers in shape {matrix.shape}\n"
        "  Transpose it: yield `W.T`."
    )


def test_matrix_of_another_size_is_refused() -> None:
    with pytest.raises(Refused) as refused:
        read_one({"w": np.zeros((2, 2))}, {"w": (2, 3)})
    assert str(refused.value).endswith("4 numbers; expected 6 numbers in shape (2, 3)")


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        ([1, 2, 3], r"`weight` has shape \(3,\), 3 numbers; expected 2 numbers in shape \(1, 2\)"),
        (
            np.zeros((2, 2)),
            r"shape \(2, 2\), 4 numbers; .* are accepted too\n  A \(2,\) and a \(2, 1\) broadcast",
        ),
        (
            np.zeros((9, 2)),
            r"shape \(9, 2\), .*\n  It has one dimension more: sum over the samples",
        ),
        (np.array([1j, 0]), "it holds complex numbers\n  Yield an array of real numbers"),
        (["a", "b"], "`weight` is a list, and it holds text, not numbers"),
        (None, "`weight` is None, and it holds objects, not numbers"),
        ([True, False], "it holds true and false, not numbers"),
        ([None, 1], "it holds objects, not numbers"),
        ({"a": 1}, "`weight` is a dict, and it holds objects"),
        (np.array(["2020-01-01", "2020-01-02"], "M8[D]"), "of dtype datetime64"),
        ([[1, 2], [3]], "is a list, which NumPy cannot convert to numbers"),
        (np.ma.array([1.0, 2.0], mask=[True, False]), "`weight` has masked entries\n  Fill them"),
        (torch.zeros(2, dtype=torch.bfloat16), "which NumPy cannot convert to numbers: .*BFloat16"),
    ],
    ids=str,
)
def test_value_that_is_no_tensor_is_refused(weight: Any, words: str) -> None:
    with pytest.raises(Refused, match=words):
        read_one({"weight": weight, "bias": 0})


PATTERN = r'\n  Write `yield {"weight": \.\., "bias": \.\.}`'
RIGHT = {"weight": [0, 0], "bias": 0}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (([0, 0], 0), "yielded a tuple, not a mapping" + PATTERN),
        (None, "yielded None, not a mapping" + PATTERN),
        ("done", "yielded a str, not a mapping" + PATTERN),
        (1, "yielded an int, not a mapping"),
        (np.zeros(3), "yielded a ndarray, not a mapping"),
        (
            {"weight": [0, 0]},
            r"in what it yielded, `bias` is missing\n  It must have `weight`, `bias`, optional.*",
        ),
        ({"wieght": [0, 0], "bias": 0}, r"'wieght' \(did you mean `weight`\?\)"),
        ({"w": 1, "b": 1}, "`weight` is missing; `bias` is missing; unknown name 'w' "),
        (RIGHT | {"accuracy": 1}, "unknown name 'accuracy' .* and nothing else"),
        (RIGHT | {1: 2}, r"unknown name 1 \(names are strings\)"),
        (
            RIGHT | {"grad": {"weight": [0, 0]}},
            "as `grad`, `bias` is missing\n  It must have `weight`, `bias`, and nothing else",
        ),
        (
            RIGHT | {"grad": [1, 2]},
            '`grad` is a list, not a mapping\n  Write `"grad": {"weight": .., "bias": ..}`',
        ),
        (
            RIGHT | {"grad": {"weight": 0, "bias": 0}},
            r"`grad of weight` has shape \(\), 1 numbers; expected 2 numbers",
        ),
        (
            RIGHT | {"loss": [1, 2]},
            r"`loss` has shape \(2,\), 2 numbers; expected one number\n  Yield the mean",
        ),
        (RIGHT | {"loss": []}, r"`loss` has shape \(0,\), 0 numbers"),
    ],
    ids=str,
)
def test_what_is_no_update_is_refused(value: object, words: str) -> None:
    with pytest.raises(Refused, match=f"(?s){words}"):
        read_one(value)
