"""An operation rounds where exact arithmetic says so, and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from regcheck.trainers.framework.determinism import torch_settings
from regcheck.trainers.measured.operations import product_rounds, quotient_rounds, sum_rounds
from tests.random_roundings import U32, U64, noise_of, unmoved


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with torch_settings(1):
        yield


few_bits = st.builds(
    lambda m, e: math.ldexp(m, e), st.integers(-(2**12), 2**12), st.integers(-30, 30)
)
many_bits = st.builds(
    lambda m, e: math.ldexp(m, e), st.integers(-(2**53), 2**53), st.integers(-80, -20)
)
single_bits = st.builds(
    lambda m, e: math.ldexp(m, e), st.integers(-(2**24), 2**24), st.integers(-40, 10)
)
NUMBERS = {torch.float32: few_bits | single_bits, torch.float64: few_bits | many_bits}

BINARY: dict[str, tuple[Any, Any, Any]] = {
    "add": (lambda a, b: a + b, lambda a, b: a + b, sum_rounds),
    "sub": (lambda a, b: a - b, lambda a, b: a - b, sum_rounds),
    "rsub": (torch.rsub, lambda a, b: b - a, sum_rounds),
    "mul": (lambda a, b: a * b, lambda a, b: a * b, product_rounds),
    "div": (lambda a, b: a / b, lambda a, b: a / b, quotient_rounds),
}


@pytest.mark.sampled(every=4)
@pytest.mark.parametrize("dtype", NUMBERS, ids=str)
@pytest.mark.parametrize("name", BINARY)
@given(data=st.data())
def test_an_operation_rounds_where_exact_arithmetic_says_so(
    name: str, dtype: torch.dtype, data: st.DataObject
) -> None:
    of_tensors, of_fractions, rounds = BINARY[name]
    a, b = data.draw(NUMBERS[dtype]), data.draw(NUMBERS[dtype])
    if name == "div" and b == 0:
        return
    x = of_tensors(torch.tensor([a], dtype=dtype), torch.tensor([b], dtype=dtype))
    exact = Fraction(x.item()) == of_fractions(Fraction(a), Fraction(b))
    one, other = torch.tensor([a], dtype=dtype), torch.tensor([b], dtype=dtype)

    assert bool(rounds(x, one, other)) is not exact
    assert bool(rounds(x, one, b)) is not exact  # a scalar
    if exact:
        assert unmoved(lambda: of_tensors(one, other), samples=3)
    elif abs(x.item()) > 1e-30:
        assert not unmoved(lambda: of_tensors(one, other))


@pytest.mark.parametrize("dtype", NUMBERS, ids=str)
def test_only_those_entries_move_that_round(dtype: torch.dtype) -> None:
    one = torch.tensor([0.5, 0.1, 0.0, 3.0, 0.1], dtype=dtype)
    other = torch.tensor([0.25, 0.2, 0.3, 7.0, -0.1], dtype=dtype)
    eps = float(torch.finfo(dtype).eps)
    moved = noise_of(lambda: one + other, eps) > 0
    products = noise_of(lambda: one * other, eps) > 0
    quotients = noise_of(lambda: one / other, eps) > 0

    exact = Fraction(one[1].item()) + Fraction(other[1].item())
    assert moved.tolist() == [False, exact != Fraction((one + other)[1].item()), *[False] * 3]
    assert products.tolist() == [False, True, False, False, True]
    assert quotients[[0, 2, 3, 4]].tolist() == [False, False, True, False]


def test_in_place_the_operand_is_what_it_was_before() -> None:
    # 1.5 ← 1.5 + 1.5 is exact; read after it was written to, 3 + 1.5 would not be 3.
    def doubled() -> Tensor:
        w = torch.tensor([1.5, 0.1])
        w.add_(w)
        return w.mul_(torch.tensor([0.5, 2.0]))

    assert unmoved(doubled)


def test_an_alpha_is_taken_to_round() -> None:
    assert not unmoved(lambda: torch.add(torch.tensor([0.5]), torch.tensor([0.25]), alpha=2))


def test_float64_that_float32_cannot_hold_is_rounded_where_float32_is_the_other_side() -> None:
    x = torch.tensor([1.0 + 2**-40], dtype=torch.float64)

    assert noise_of(lambda: x + 1, U64).item() == 0
    assert noise_of(lambda: x + 1, U32).item() == pytest.approx(2 * U32)
