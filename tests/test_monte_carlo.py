"""Random rounding: by hand, and that it moves only what is rounded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from regcheck.trainers.framework.determinism import torch_settings
from regcheck.trainers.measured.monte_carlo import RandomRounding
from tests.random_roundings import U32, Function, noise_of, random, unmoved


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with torch_settings(1):
        yield


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
