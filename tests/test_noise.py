"""Measured noise: by hand, that it leaves no trace, and that bounds and real differences agree."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from regcheck.noise import Noise, NoiseMeter, RandomRounding
from regcheck.numpy_trainer import NumpyTrainer, State
from regcheck.problem import build_problem
from regcheck.rounding import RoundingModel
from regcheck.spec import from_mapping
from regcheck.torch_trainer import TorchTrainer, torch_settings
from tests.random_specs import SpecDict, mismatched_spec

Array = NDArray[np.floating]
Step = Callable[[], object]
U32, TINY32 = 2.0**-24, 2.0**-126

KINDS = [
    ("linear", "mse"),
    ("logistic", "bce"),
    ("logistic", "bce_with_logits"),
    ("logistic", "mse"),
]

BOUNDS = 4.0
"""Bounds that a noise may reach. Random rounding moves a number by a unit in its last place, which
is u to 2u of it, where the bounds take u: so 2. The rest is for terms that round alike, whose share
is found in another way. In 1,000 random problems, of which 16 are below, the largest was 2.9."""

NOISES = 8.0
"""Noises that a real difference may reach: the limit of a run. It would be 1 if the samples held
the worst. In the 1,000 problems the largest was 3.2."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with torch_settings(1):
        yield


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- worked by hand -----------------------------------------------------------------------------


def holding(*numbers: float) -> nn.Linear:
    """Make a model with these numbers for its weight."""
    model = nn.Linear(len(numbers), 1, bias=False)
    model.weight.data = torch.tensor([numbers])
    return model


def noise_of(model: nn.Module, step: Step, seed: int = 0) -> Noise:
    """Measure a step that needs no optimizer."""
    optimizer = torch.optim.SGD(model.parameters())
    return NoiseMeter(model, optimizer, torch.float32, seed=seed).measure(torch.no_grad()(step))


def test_what_no_operation_changes_has_the_noise_of_one_rounding_of_each_side() -> None:
    model = holding(3.0, -0.5, 0.0)
    noise = noise_of(model, lambda: model.weight.view(3)[1:].t())["weight"]

    assert noise.tolist() == [[6 * U32 + TINY32, U32 + TINY32, TINY32]]


@pytest.mark.parametrize(
    "multiply",
    [lambda w: w.mul_(5), lambda w: torch._foreach_mul_([w], 5)],  # which gives nothing back
    ids=["one", "each"],
)
def test_a_result_moves_by_a_unit_in_its_last_place(multiply: Callable[[Tensor], object]) -> None:
    # 3 · 5 − 14: the unit of 15 is 2⁻²⁰, and by so much 1 moves, whose own are 2⁻²³ and 2⁻²⁴.
    model = holding(3.0)

    def step() -> None:
        multiply(model.weight)
        model.weight.sub_(14)

    assert 2**-20 <= noise_of(model, step)["weight"].item() <= 2**-20 + 2**-22


def test_a_result_can_be_written_to_a_tensor_that_is_given() -> None:
    x, y, model = torch.tensor([[-3.0]]), torch.tensor([[5.0]]), holding(0.0)
    noise = noise_of(model, lambda: torch.mm(x, y, out=model.weight))["weight"].item()

    assert 0 < noise <= 4 * 2**-20  # both factors, the sum of one product, and it


def test_a_number_from_elsewhere_moves_where_it_is_read() -> None:
    # As before, but 3 moves by 2⁻²² before it is multiplied, and 15 by as much as a unit for that.
    model, x = holding(0.0), torch.tensor([[3.0]])
    noise = noise_of(model, lambda: model.weight.copy_(x * 5 - 14))["weight"].item()

    assert 2 * 2**-20 <= noise <= 2 * 2**-20 + 2**-21
    assert x.item() == 3.0


@pytest.mark.parametrize("rows", [100, 1000])
def test_a_sum_loses_the_root_of_its_terms_where_nothing_of_it_is_left(rows: int) -> None:
    terms, model = torch.randn(rows, generator=random()), holding(0.0)
    both = torch.cat([terms, -terms])
    noise = noise_of(model, lambda: model.weight.copy_(both.sum()))["weight"].item()
    expected = U32 * math.sqrt(2 * rows) * float(both.abs().sum())

    # Reading the terms moves the sum by u √(Σ t²) ≤ u Σ|t|/√n times some signs' sum of at most 4.5
    # deviations, and doubles u where a unit is 2u.
    assert expected <= noise <= expected * (1 + 9 / math.sqrt(2 * rows))


@pytest.mark.parametrize(("terms", "lost"), [(1000, 1000.0), (200, math.sqrt(200))])
def test_a_sum_of_many_equal_terms_loses_as_many_roundings(terms: int, lost: float) -> None:
    equal, model = torch.full((terms,), 0.1), holding(0.0)
    noise = noise_of(model, lambda: model.weight.copy_(equal.sum()))["weight"].item()

    # The rest are the terms as they are read, the sum and its copy, by 2u each.
    assert lost <= noise / (U32 * 0.1 * terms) <= lost + 8


def test_zeros_are_no_terms_that_round_alike() -> None:
    terms, model = torch.randn(500, generator=random()), holding(0.0)
    sparse = torch.cat([terms, -terms, torch.zeros(1000)])
    noise = noise_of(model, lambda: model.weight.copy_(sparse.sum()))["weight"].item()

    assert noise < 1.1 * U32 * math.sqrt(2000) * float(sparse.abs().sum())


def test_factors_of_a_sum_count_by_their_size() -> None:
    # 100 − 100 · 1, by alpha = −1: the terms' sizes are 200, and n is 101.
    x, one, model = torch.ones(1, 100), torch.ones(100, 1), holding(0.0)
    b = torch.full((1, 1), 100.0)
    noise = noise_of(model, lambda: model.weight.copy_(torch.addmm(b, x, one, alpha=-1)))

    assert U32 * math.sqrt(101) * 200 <= noise["weight"].item() <= U32 * (math.sqrt(101) + 8) * 200


def test_a_mean_loses_as_much_as_the_sum() -> None:
    terms, model = torch.randn(100, generator=random()), holding(0.0)
    both = torch.cat([terms, -terms])
    of_sum = noise_of(model, lambda: model.weight.copy_(both.sum()))["weight"].item()
    of_mean = noise_of(model, lambda: model.weight.copy_(both.mean()))["weight"].item()

    assert of_mean == pytest.approx(of_sum / 200, rel=1e-5)  # torch divides in float32


@pytest.mark.parametrize("positive", [True, False])
def test_a_sum_loses_no_less_than_monte_carlo_arithmetic_at_each_addition(positive: bool) -> None:
    # Parker's own arithmetic: one term after another, each partial sum rounded at random.
    draws = np.random.default_rng(0)
    terms = draws.random(1000) if positive else draws.normal(size=1000)
    partial = np.zeros(200)
    for term in terms:
        partial = (partial + term) * (1 + U32 * draws.choice([-1, 1], size=200))
    deviation = float(np.std(partial))
    model, x = holding(0.0), torch.from_numpy(terms).float()
    noise = noise_of(model, lambda: model.weight.copy_(x.sum()))["weight"].item()

    # Positive: errors u S_k of S_k = k t, u t √(n³/3) in all, of which u √n Σ|t| is √3; reading the
    # terms all alike and units of up to 2u bring less than as much again. Where S_k is a random
    # walk instead, of √k t, it is u t n/√2, of which u √n Σ|t| is 0.8 √(2n) = 36.
    assert 1.5 * deviation < noise < (3 if positive else 60) * deviation


def test_an_operation_rounds_each_entry_on_its_own_or_all_alike() -> None:
    x, rounding = torch.full((1000,), 1.5), RandomRounding(U32, random())
    ups = [int((rounding.round(x) > x).sum()) for _ in range(40)]

    assert {0, 1000} < set(ups)
    # 500 up of 1,000, with a deviation of 16.
    assert all(400 < one < 600 for one in ups if one not in {0, 1000})
    assert 8 < sum(one in {0, 1000} for one in ups) < 32  # 20, with a deviation of 3


def test_rounding_leaves_what_is_no_float_and_never_leaves_the_range_of_a_function() -> None:
    z = torch.linspace(-200, 200, 2001, dtype=torch.float64)
    for seed in range(8):
        with RandomRounding(U32, random(seed)):
            counted = torch.arange(100) * 3 - 1
            p, q = torch.sigmoid(z), torch.tanh(z)
        assert counted.tolist() == [3 * k - 1 for k in range(100)]
        assert 0 <= float(p.min()) < float(p.max()) <= 1.0
        assert -1.0 <= float(q.min()) < float(q.max()) <= 1.0
        assert float(p[-2]) in {1.0, 1.0 - U32}  # it is 1 in float64 too


def test_noise_is_infinite_where_a_step_is_not_finite() -> None:
    model = holding(1.0, 3e38)
    noise = noise_of(model, lambda: model.weight.mul_(2))["weight"]

    assert noise.tolist() == [[4 * U32 + TINY32, math.inf]]


# --- no trace -----------------------------------------------------------------------------------


class Training(NamedTuple):
    model: nn.Module
    optimizer: Optimizer
    step: Step


def every_kind_of_state(seed: int = 0) -> Training:
    """Make a model with buffers and random numbers, whose step changes all that a step can."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, amsgrad=True)
    X, y = torch.randn(20, 3), torch.randn(20, 1)

    def step() -> None:
        optimizer.zero_grad(set_to_none=False)
        nn.functional.mse_loss(model(X), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.param_groups[0]["lr"] *= 0.5

    return Training(model, optimizer, step)


def everything(training: Training) -> list[Any]:
    """Copy all of a training's state, bit for bit."""
    gradients = [w.grad for w in training.model.parameters()]
    return copy.deepcopy(
        [
            [x.numpy().tobytes() for x in training.model.state_dict().values()],
            [None if g is None else g.numpy().tobytes() for g in gradients],
            [
                {name: x.numpy().tobytes() for name, x in own.items()}
                for own in training.optimizer.state_dict()["state"].values()
            ],
            training.optimizer.state_dict()["param_groups"],
            torch.random.get_rng_state().numpy().tobytes(),
        ]
    )


@pytest.mark.parametrize("steps", [0, 2])
def test_measuring_leaves_no_trace(steps: int) -> None:
    training = every_kind_of_state()
    for _ in range(steps):
        training.step()
    before, gradients = everything(training), [w.grad for w in training.model.parameters()]
    meter = NoiseMeter(training.model, training.optimizer, torch.float32, seed=0)
    noises = [meter.measure(training.step) for _ in range(2)]

    assert everything(training) == before
    assert all(w.grad is g for w, g in zip(training.model.parameters(), gradients, strict=True))
    assert all(np.isfinite(size).all() for noise in noises for size in noise.values())
    training.step()
    assert everything(training)[:4] != before[:4]  # or nothing could have been seen


def test_a_step_that_fails_leaves_no_trace() -> None:
    training = every_kind_of_state()
    training.step()
    before = everything(training)

    def failing() -> None:
        training.step()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        NoiseMeter(training.model, training.optimizer, torch.float32, seed=0).measure(failing)
    assert everything(training) == before


def test_the_same_seed_gives_the_same_noise() -> None:
    def noises(seed: int) -> list[bytes]:
        training = every_kind_of_state()
        meter = NoiseMeter(training.model, training.optimizer, torch.float32, seed=seed, samples=2)
        training.step()
        return [size.tobytes() for _ in range(2) for size in meter.measure(training.step).values()]

    assert noises(1) == noises(1)
    # Of 12; where a noise is its floor, signs do not matter.
    assert sum(one != other for one, other in zip(noises(1), noises(2), strict=True)) > 8


# --- against bounds, and real differences -------------------------------------------------------


class Ratios(NamedTuple):
    """The largest and the smallest noise in bounds, and the largest real difference in noises."""

    largest: float
    smallest: float
    real: float


def ratios(spec: SpecDict, steps: int = 3) -> Ratios:
    """Measure the first steps of a spec; NumPy takes each from torch's parameters, as in a run."""
    problem = build_problem(from_mapping(spec))
    scratch, framework = NumpyTrainer(problem), TorchTrainer(problem)
    rounding, velocities = RoundingModel(problem), scratch.start().velocities
    single = "float32" in (problem.scratch_dtype, problem.framework_dtype)
    dtype = torch.float32 if single else torch.float64
    meter = NoiseMeter(framework.module.model, framework.optimizer, dtype, seed=0, samples=8)
    in_bounds, real = [], []
    with np.errstate(all="ignore"):
        for batch, _ in zip(problem.schedule.batches(), range(steps), strict=False):
            noise = meter.measure(partial(framework.step, batch))
            taken = framework.step(batch)
            local = scratch.step(State(taken.before, velocities), batch)
            bounds, velocities = rounding.bounds(batch, taken, local.slopes), local.state.velocities
            for name, size in noise.items():
                off = np.subtract(local.step.after[name], taken.after[name], dtype=np.float64)
                in_bounds += (size / bounds.after[name]).ravel().tolist()
                real += (np.abs(off) / size).ravel().tolist()
    return Ratios(max(in_bounds), min(in_bounds), max(real))


def spec_of(path: Path, kind: tuple[str, str], X: Array, y: Array, **settings: Any) -> SpecDict:
    np.savez(path / "data.npz", X=X, y=y)
    return {
        "data": {"npz": str(path / "data.npz")},
        "model": kind[0],
        "loss": kind[1],
        "weight_decay": 0.01,
        "epochs": 3,
        **settings,
    }


def assert_between(found: Ratios) -> None:
    assert found.largest < BOUNDS
    assert found.real < NOISES


@pytest.mark.parametrize("kind", KINDS, ids=" ".join)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("rows", "features"), [(1, 3), (40, 1), (700, 20)])
def test_noise_lies_between_real_differences_and_bounds(
    kind: tuple[str, str], dtype: str, rows: int, features: int, tmp_path: Path
) -> None:
    draws = np.random.default_rng(rows)
    X = draws.normal(size=(rows, features)) * np.logspace(-3, 3, features)
    y = (draws.random(rows) < 0.5).astype(float)
    momentum = {"name": "sgd", "momentum": 0.9, "nesterov": rows > 1}
    found = ratios(spec_of(tmp_path, kind, X, y, dtype=dtype, lr=1e-5, optimizer=momentum))

    assert_between(found)
    assert found.smallest > 0.05  # from 0.1 on, where it was measured


@pytest.mark.parametrize("seed", range(16))
def test_noise_of_random_specs_lies_between_real_differences_and_bounds(
    seed: int, tmp_path: Path
) -> None:
    spec = mismatched_spec(seed, tmp_path)
    del spec["convention"]

    assert_between(ratios(spec, steps=2))


@pytest.mark.parametrize("kind", KINDS[1:], ids=" ".join)
@pytest.mark.parametrize("z", [-90.0, -28.0, 15.0, 27.0, 37.0, 90.0])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_noise_where_a_sigmoid_is_saturated(
    kind: tuple[str, str], z: float, dtype: str, tmp_path: Path
) -> None:
    start = {"weight": [z * 0.7], "bias": z * 0.3}
    spec = spec_of(
        tmp_path, kind, np.ones((3, 1)), np.array([0, 0.5, 1]), init=start, lr=1e-3, dtype=dtype
    )

    assert_between(ratios(spec, steps=1))


@pytest.mark.parametrize("kind", KINDS, ids=" ".join)
def test_noise_of_equal_rows_in_great_number(kind: tuple[str, str], tmp_path: Path) -> None:
    # Roundings add up: without c, differences were 17 noises.
    X, y = np.tile([1000.1, 0.3], (6000, 1)), np.ones(6000)

    assert_between(ratios(spec_of(tmp_path, kind, X, y, lr=1e-7)))


def test_what_rounding_did_to_the_velocity_is_carried() -> None:
    # The gradient is 3 − 3, give or take δ. Ten of these in a velocity are about √10 δ, and at most
    # 10 δ; only one would be in it if each step began with the velocity of torch, which is 0.
    model = holding(1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.99)
    x = torch.ones(1, 1)

    def step() -> None:
        optimizer.zero_grad()
        (model(x) * 3 - model(x) * 3).sum().backward()
        optimizer.step()

    meter, noises = NoiseMeter(model, optimizer, torch.float32, seed=0, samples=8), []
    for _ in range(10):
        noises.append(meter.measure(step)["weight"].item())
        step()

    assert model.weight.item() == 1.0
    assert 2 * noises[0] < noises[-1] < 10 * noises[0]


# --- where there is no bound --------------------------------------------------------------------

OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "adam": lambda w: torch.optim.Adam(w, lr=0.01, weight_decay=1e-3),
    "adam foreach": lambda w: torch.optim.Adam(w, lr=0.01, weight_decay=1e-3, foreach=True),
    "adam fused": lambda w: torch.optim.Adam(w, lr=0.01, weight_decay=1e-3, fused=True),
    "adamw": lambda w: torch.optim.AdamW(w, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda w: torch.optim.RMSprop(w, lr=0.01, weight_decay=1e-3, momentum=0.9),
    "lbfgs": lambda w: torch.optim.LBFGS(w, lr=0.1, max_iter=2),
}


class Deep:
    """A deep model in training, on fixed rows: any optimizer, any dtype."""

    def __init__(self, optimizer: str, first: nn.Module, offset: float = 0.0) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(first, nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))
        self.name, self.optimizer = optimizer, OPTIMIZERS[optimizer](self.model.parameters())
        self.X, self.y = torch.randn(64, 6) + offset, torch.randn(64, 1)

    def loss(self) -> Tensor:
        self.optimizer.zero_grad()
        loss = nn.functional.mse_loss(self.model(self.X), self.y)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    def step(self) -> None:
        self.optimizer.step(self.loss)  # type: ignore[arg-type]

    def twin(self, dtype: torch.dtype) -> Deep:
        """Copy it, in a dtype."""
        twin = copy.copy(self)
        twin.model = copy.deepcopy(self.model).to(dtype)
        twin.X, twin.y = self.X.to(dtype), self.y.to(dtype)
        twin.optimizer = OPTIMIZERS[self.name](twin.model.parameters())
        twin.optimizer.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))
        return twin

    def parameters(self) -> dict[str, NDArray[np.float64]]:
        named = self.model.named_parameters()
        return {name: w.detach().double().numpy().copy() for name, w in named}

    def meter(self) -> NoiseMeter:
        return NoiseMeter(self.model, self.optimizer, torch.float32, seed=0)


def largest(one: Noise, other: Noise, noise: Noise) -> float:
    """Give the largest difference of parameters, in noises."""
    return max(float((np.abs(one[name] - other[name]) / noise[name]).max()) for name in noise)


@pytest.mark.parametrize(
    ("optimizer", "first", "offset"),
    [
        *((name, nn.Identity(), 0.0) for name in OPTIMIZERS),
        ("adam", nn.LayerNorm(6), 1000.0),
        ("adam", nn.BatchNorm1d(6), 1000.0),
    ],
)
def test_float32_is_within_the_noise_of_float64(
    optimizer: str, first: nn.Module, offset: float
) -> None:
    # The norms subtract the offset within, so that what counts is how the data are rounded.
    training = Deep(optimizer, first, offset)
    for _ in range(2):
        noise, twin = training.meter().measure(training.step), training.twin(torch.float64)
        twin.step()
        training.step()
        real = largest(training.parameters(), twin.parameters(), noise)

        assert 0.05 < real < NOISES  # from 0.33 on, where it was measured


@pytest.mark.parametrize("optimizer", [name for name in OPTIMIZERS if name != "lbfgs"])
def test_a_missing_penalty_stands_far_above_the_noise(optimizer: str) -> None:
    training = Deep(optimizer, nn.Identity())
    training.step()  # Adam's first step is of the size lr, whatever the gradient's
    noise, other = training.meter().measure(training.step), training.twin(torch.float32)
    for group in other.optimizer.param_groups:
        group["weight_decay"] = 0.0
    training.step()
    other.step()

    assert largest(training.parameters(), other.parameters(), noise) > 100 * NOISES
