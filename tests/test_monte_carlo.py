"""Random rounding: by hand, that it moves only what is rounded, and by as much as rounding does."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from regcheck.trainers.monte_carlo import RandomRounding
from regcheck.trainers.operations import product_rounds, quotient_rounds, sum_rounds
from regcheck.trainers.torch_trainer import torch_settings

Function = Callable[[], Tensor]
U32, U64 = 2.0**-24, 2.0**-53


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with torch_settings(1):
        yield


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise_of(function: Function, u: float = U32, samples: int = 16) -> NDArray[np.float64]:
    """Run a function under random rounding; the largest deviation of each entry it returns."""
    plain, largest = function(), torch.zeros(())
    for seed in range(samples):
        with RandomRounding(u, random(seed)):
            moved = function()
        assert moved.dtype == plain.dtype
        largest = torch.maximum(largest, (moved.double() - plain.double()).abs())
    return largest.detach().double().numpy()


def unmoved(function: Function, samples: int = 6) -> bool:
    """Return whether a function returns the same bits under random rounding."""
    plain = function().detach()
    # Above the result's own ε, what float32 cannot hold would count as rounded.
    u = torch.finfo(plain.dtype).eps if plain.is_floating_point() else 0.5
    for seed in range(samples):
        with RandomRounding(u, random(seed)):
            moved = function()
        if moved.detach().numpy().tobytes() != plain.numpy().tobytes():
            return False
    return True


# --- worked by hand -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "multiply",
    [lambda w: w.mul_(1.1), lambda w: torch._foreach_mul_([w], 1.1)],  # which returns nothing
    ids=["one", "each"],
)
def test_a_result_moves_by_u_of_it(multiply: Callable[[Tensor], object]) -> None:
    # 11 · 1.1 is about 12.1, whose unit is 2⁻²⁰; u of it is 0.76 of that, which rounds to one.
    def step() -> Tensor:
        w = torch.tensor([11.0])
        multiply(w)
        return w

    assert noise_of(step).tolist() == [2**-20]


def test_a_result_can_be_written_to_a_tensor_that_is_passed() -> None:
    x, y, out = torch.tensor([[-3.1]]), torch.tensor([[5.3]]), torch.zeros(1, 1)
    noise = noise_of(lambda: torch.mm(x, y, out=out).clone()).item()

    assert noise == 2**-19  # the unit of 16.4: u of it is half a unit, and rounds to one


def test_what_cancels_keeps_the_noise_of_what_it_was() -> None:
    # 3.3 · 5 − 16.5: the product's noise is 2⁻²⁰, and nothing is left to have noise of its own.
    x = torch.tensor([3.3])

    assert noise_of(lambda: x * 5 - 16.5).item() >= 2**-20
    assert abs(float(x * 5 - 16.5)) < 2**-19


@pytest.mark.parametrize("rows", [100, 1000])
def test_a_sum_loses_the_root_of_its_terms_where_nothing_of_it_is_left(rows: int) -> None:
    terms = torch.randn(rows, generator=random(), dtype=torch.float64)
    both = torch.cat([terms, -terms])
    noise = noise_of(both.sum).item()

    assert noise == pytest.approx(U32 * math.sqrt(2 * rows) * float(both.abs().sum()), rel=1e-9)


@pytest.mark.parametrize(("terms", "lost"), [(1000, 1000.0), (200, math.sqrt(200))])
def test_a_sum_of_many_equal_terms_loses_as_many_roundings(terms: int, lost: float) -> None:
    equal = torch.full((terms,), 0.1, dtype=torch.float64)

    assert 0.999 * lost <= noise_of(equal.sum).item() / (U32 * 0.1 * terms) <= lost + 1


def test_zeros_are_no_terms_that_round_alike() -> None:
    terms = torch.randn(500, generator=random())
    sparse = torch.cat([terms, -terms, torch.zeros(1000)])

    assert noise_of(sparse.sum).item() < 1.1 * U32 * math.sqrt(2000) * float(sparse.abs().sum())


def test_factors_of_a_sum_count_by_their_size() -> None:
    # 0.1 − 100 · 0.001, by alpha = −1: the terms' sizes are 0.2, and n is 101.
    x, y = torch.full((1, 100), 0.1), torch.full((100, 1), 0.01)
    b = torch.full((1, 1), 0.1)
    noise = noise_of(lambda: torch.addmm(b, x, y, alpha=-1)).item()

    assert noise == pytest.approx(U32 * math.sqrt(101) * 0.2, rel=0.1)


def test_a_mean_loses_as_much_as_the_sum() -> None:
    terms = torch.randn(100, generator=random(), dtype=torch.float64)
    both = torch.cat([terms, -terms])

    assert noise_of(both.mean).item() == pytest.approx(noise_of(both.sum).item() / 200, rel=1e-9)


@pytest.mark.parametrize("positive", [True, False])
def test_a_sum_loses_no_less_than_monte_carlo_arithmetic_at_each_addition(positive: bool) -> None:
    # Parker's own arithmetic: one term after another, each partial sum rounded at random.
    draws = np.random.default_rng(0)
    terms = draws.random(1000) if positive else draws.normal(size=1000)
    partial = np.zeros(200)
    for term in terms:
        partial = (partial + term) * (1 + U32 * draws.choice([-1, 1], size=200))
    deviation = float(np.std(partial))
    noise = noise_of(torch.from_numpy(terms).sum).item()

    # Positive: errors u S_k of S_k = k t, u t √(n³/3) in all, of which u √n Σ|t| is √3. Where S_k
    # is a random walk instead, of √k t, it is u t n/√2, of which u √n Σ|t| is 0.8 √(2n) = 36.
    assert 1.5 * deviation < noise < (2 if positive else 60) * deviation


def test_the_sum_of_row_losses_of_a_mean_loss_counts_its_rows() -> None:
    z, y = torch.randn(400, generator=random()), torch.zeros(400)
    loss = functional.mse_loss(z, y).item()
    noise = noise_of(lambda: functional.mse_loss(z, y)).item()

    assert noise == pytest.approx(U32 * loss * 20, rel=0.1)


def test_an_operation_rounds_each_entry_on_its_own_or_all_alike() -> None:
    x, rounding = torch.full((1000,), 1.5), RandomRounding(U32, random())
    ups = [int((rounding.signs(x).expand(1000) > 0).sum()) for _ in range(40)]

    assert {0, 1000} < set(ups)
    # 500 up of 1,000, with a deviation of 16.
    assert all(400 < one < 600 for one in ups if one not in {0, 1000})
    assert 8 < sum(one in {0, 1000} for one in ups) < 32  # 20, with a deviation of 3


def test_rounding_never_leaves_the_range_of_a_function() -> None:
    z = torch.linspace(-200, 200, 2001, dtype=torch.float64)
    for seed in range(8):
        with RandomRounding(U32, random(seed)):
            p, q = torch.sigmoid(z), torch.tanh(z)
        assert 0 <= float(p.min()) < float(p.max()) <= 1.0
        assert -1.0 <= float(q.min()) < float(q.max()) <= 1.0
        assert float(p[-2]) in {1.0, 1.0 - U32}  # it is 1 in float64 too


def test_the_same_generator_rounds_the_same_way() -> None:
    x = torch.randn(50, generator=random())

    def rounded(seed: int) -> bytes:
        with RandomRounding(U32, random(seed)):
            return (x.exp() @ x.tanh()).numpy().tobytes()

    assert rounded(1) == rounded(1)
    assert len({rounded(seed) for seed in range(8)}) > 2


# --- what is not rounded ------------------------------------------------------------------------

X = torch.randn(12, 5, generator=random(1))
Y = torch.tensor([0.0, 2.0, 1.0, 2.0, 0.0, 1.0, 1.0, 2.0, 0.0, 2.0, 1.0, 0.0])
INDEX = torch.tensor([3, 1, 3, 0])

NOT_ROUNDED: dict[str, Function] = {
    "data": lambda: X,
    "rows": lambda: X[INDEX],
    "slice": lambda: X[2:7, 1],
    "view": lambda: X.t().reshape(-1, 2),
    "contiguous": lambda: X.t().contiguous(),
    "clone": lambda: X.clone(),
    "detach": lambda: X.detach(),
    "flatten": lambda: X.t().flatten(),
    "gather": lambda: X.gather(1, INDEX[:, None]),
    "take along": lambda: torch.take_along_dim(X, INDEX[None] % 5, dim=1),
    "index_select": lambda: X.index_select(0, INDEX),
    "embedding": lambda: functional.embedding(INDEX, X),
    "masked": lambda: X[X > 0],
    "masked_fill": lambda: X.masked_fill(X > 0, 0.1),
    "where": lambda: torch.where(Y == 1, torch.full_like(Y, 0.3), torch.full_like(Y, 0.7)),
    "where of scalars": lambda: torch.where(Y == 1, 0.3, 0.7),
    "cat": lambda: torch.cat([X, X]),
    "stack": lambda: torch.stack([X, X]),
    "repeat": lambda: X.repeat(2, 1),
    "expand": lambda: X[:, :1].expand(12, 3).contiguous(),
    "flip": lambda: X.flip(0),
    "roll": lambda: X.roll(2, 0),
    "sort": lambda: X.sort(dim=1).values,
    "topk": lambda: X.topk(2, dim=1).values,
    "max": lambda: X.max(dim=1).values,
    "largest": lambda: X.max(),
    "amax": lambda: X.amax(dim=1),
    "minimum": lambda: torch.minimum(X, X.flip(0)),
    "pooled": lambda: functional.max_pool2d(X[None], 2),
    "relu": lambda: functional.relu(X),
    "relu in place": lambda: functional.relu(X.clone(), inplace=True),
    "hardtanh": lambda: functional.hardtanh(X),
    "clamp": lambda: X.clamp(-0.5, 0.5),
    "clamp in place": lambda: X.clone().clamp_(min=0),
    "neg": lambda: -X,
    "abs": lambda: X.abs(),
    "sign": lambda: X.sign(),
    "round": lambda: X.round(),
    "floor": lambda: X.floor(),
    "tril": lambda: X.tril(),
    "pad": lambda: functional.pad(X, (1, 1)),
    "full": lambda: torch.full((3,), 0.1),
    "arange": lambda: torch.arange(100) * 3 - 1,
    "count": lambda: (X > 0).float().sum(),
    "accuracy": lambda: X.argmax(dim=1) == Y,
    "comparison": lambda: X.flip(0) < X,
    "long": lambda: Y.long(),
    "round and long": lambda: Y.round().long(),
    "int": lambda: Y.int(),
    "int and long": lambda: Y.int().long(),
    "to": lambda: Y.to(torch.int64),
    "type": lambda: Y.type("torch.LongTensor"),
    "bool": lambda: Y.bool(),
    "one_hot": lambda: functional.one_hot(Y.long(), 3),
    "one_hot as floats": lambda: functional.one_hot(Y.long(), 3).float(),
    "labels off by one": lambda: (Y + 1).long(),
    "labels of ±1": lambda: 2 * (Y == 1).float() - 1,
    "whole numbers": lambda: Y * Y - 3 * Y + (Y @ Y),
    "half": lambda: X / 2,
    "double": lambda: X + X,
    "cast to more digits": lambda: X.double(),
    "power of 2 in place": lambda: X.clone().mul_(0.25).div_(0.5),
    "zero added": lambda: (0 + X).add_(0.0),
    "difference to itself": lambda: X - X,
    "sum of halves": lambda: torch.tensor([0.5, 0.25]) + 0.125,
}


@pytest.mark.parametrize("name", NOT_ROUNDED)
def test_what_is_not_rounded_is_not_moved(name: str) -> None:
    assert unmoved(NOT_ROUNDED[name])


ROUNDED: dict[str, Function] = {
    "sum": lambda: X + 0.1,
    "sum in place": lambda: X.clone().add_(0.1),
    "sum with an alpha": lambda: torch.add(X, X.flip(0), alpha=0.3),
    "difference from a scalar": lambda: 1 - X,
    "product": lambda: X * X,
    "product with a scalar": lambda: X * 0.1,
    "quotient": lambda: X / 3,
    "quotient of scalars": lambda: 1 / X,
    "power": lambda: X**2,
    "cast to fewer digits": lambda: (X.double() / 3).float(),
    "exp": lambda: X.exp(),
    "sigmoid": lambda: X.sigmoid(),
    "matrix product": lambda: X @ X.t(),
    "layer": lambda: functional.linear(X, X[:2], X[:2, 0]),
    "share of 12": lambda: (X > 0).float().mean(),
    "std": lambda: X.std(dim=0),
    "norm": lambda: torch.linalg.vector_norm(X),
}


@pytest.mark.parametrize("name", ROUNDED)
def test_what_is_rounded_is_moved(name: str) -> None:
    assert not unmoved(ROUNDED[name])


def test_targets_of_a_loss_are_not_moved() -> None:
    # The outputs of the classes are so far apart that a label 2 that became 1 would show.
    z = torch.zeros(12, 3, dtype=torch.float64) - torch.tensor([1.0, 10.0, 100.0])
    for way in (Tensor.long, Tensor.int, Tensor.round):

        def loss(cast: Callable[[Tensor], Tensor] = way) -> Tensor:
            return functional.cross_entropy(z, cast(Y).long())

        assert 0 < noise_of(loss).item() < 8 * U32 * loss().item()


# --- exact arithmetic ---------------------------------------------------------------------------

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


# --- functions that lose more than their result says --------------------------------------------


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_a_normalization_loses_what_it_subtracts_within(norm: str) -> None:
    far = torch.randn(64, 6, generator=random(), dtype=torch.float64) + 1000

    def of(x: Tensor) -> Tensor:
        if norm == "layer":
            return functional.layer_norm(x, (6,))
        return functional.batch_norm(x, None, None, training=True)

    # How data are rounded is for the sides, so that both have the float32 numbers.
    same = far.float()
    real = (of(same).double() - of(same.double())).abs().max().item()
    noise = noise_of(lambda: of(same)).max()

    assert noise > 20 * U32  # the result is of the size 1, so that without it it would be 3 u
    assert real < noise < 1e-2


@pytest.mark.parametrize("norm", [nn.LayerNorm(6), nn.BatchNorm1d(6)], ids=["layer", "batch"])
def test_so_do_their_gradients(norm: nn.Module) -> None:
    far = torch.randn(64, 6, generator=random(), dtype=torch.float64) + 1000
    weights = torch.randn(64, 6, generator=random(5), dtype=torch.float64)

    def gradient(dtype: torch.dtype) -> Tensor:
        x = far.float().clone().to(dtype).requires_grad_()
        (norm.to(dtype)(x) * weights.float().to(dtype)).sum().backward()
        assert x.grad is not None
        return x.grad

    real = np.abs(gradient(torch.float32).double().numpy() - gradient(torch.float64).numpy())
    noise = noise_of(lambda: gradient(torch.float32))
    norm.to(torch.float32)

    assert real.max() < noise.max() < 1e-1


def test_log_softmax_where_p_is_near_1() -> None:
    # −log p is 2e-9 and is computed as log(Σ e^z) − z, which loses u of 1, and not of 2e-9.
    z = torch.tensor([[20.0, 0.0]], dtype=torch.float64)
    noise = noise_of(lambda: functional.log_softmax(z, dim=1))[0, 0]

    assert noise == pytest.approx(U32, rel=0.01)


def test_a_cross_entropys_gradient_where_p_is_near_1() -> None:
    # p − 1 is −2e-9; by hand it is a difference from 1.
    z = torch.tensor([[20.0, 0.0]], dtype=torch.float64, requires_grad=True)

    def gradient() -> Tensor:
        z.grad = None
        functional.cross_entropy(z, torch.tensor([0])).backward()  # type: ignore[no-untyped-call]
        assert z.grad is not None
        return z.grad.clone()

    noise = noise_of(gradient)
    assert U32 <= noise[0, 0] < 4 * U32


def slope_by_hand(name: str, z: Tensor) -> Tensor:
    """Take a derivative as it is written, with a difference in it."""
    a = ACTIVATIONS[name](z)
    if name == "tanh":
        return 1 - a * a
    if name == "sigmoid":
        return a * (1 - a)
    if name == "elu":
        return torch.where(z > 0, torch.ones_like(z), a + 1)
    if name == "softplus":
        return 1 - torch.exp(-a)
    cdf = (1 + torch.erf(z / math.sqrt(2))) / 2
    if name == "gelu":
        return cdf + z * torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    p = torch.sigmoid(z)
    return p + a * (1 - p)  # silu


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": functional.elu,
    "gelu": functional.gelu,
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    "softplus": functional.softplus,
    "tanh": torch.tanh,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0, 8.0])
def test_derivatives_by_hand_in_float32_are_within_the_noise(name: str, scale: float) -> None:
    single = scale * torch.randn(400, generator=random())

    def gradient(dtype: torch.dtype) -> Tensor:
        z = single.clone().to(dtype).requires_grad_()
        ACTIVATIONS[name](z).sum().backward()  # type: ignore[no-untyped-call]
        assert z.grad is not None
        return z.grad

    noise = noise_of(lambda: gradient(torch.float32))
    exact = gradient(torch.float64).numpy()
    by_torch = np.abs(gradient(torch.float32).double().numpy() - exact)
    by_hand = np.abs(slope_by_hand(name, single).double().numpy() - exact)

    assert (by_torch <= 8 * noise + 1e-30).all()
    assert (by_hand <= 8 * noise + 1e-30).all()
    assert noise.max() < 40 * U32


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_values_by_hand_are_within_the_noise(name: str) -> None:
    single = 3 * torch.randn(400, generator=random())
    by_hand: Callable[[Tensor], Tensor] = {
        "elu": lambda z: torch.where(z > 0, z, torch.exp(z) - 1),
        "gelu": lambda z: z * (1 + torch.erf(z / math.sqrt(2))) / 2,
        "sigmoid": lambda z: torch.exp(z) / (1 + torch.exp(z)),
        "silu": lambda z: z / (1 + torch.exp(-z)),
        "softplus": lambda z: torch.log(1 + torch.exp(z)),
        "tanh": lambda z: 2 / (1 + torch.exp(-2 * z)) - 1,
    }[name]
    noise = noise_of(lambda: ACTIVATIONS[name](single))
    off = np.abs((by_hand(single) - ACTIVATIONS[name](single)).double().numpy())
    near = np.abs(single.numpy()) > 0.3  # tanh by e^z loses 1 where z is near 0

    assert (off <= 8 * noise + 1e-30)[near].all()
