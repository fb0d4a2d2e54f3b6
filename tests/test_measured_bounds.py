"""Measured bounds: against worked-out bounds and real differences, and that they leave no trace."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from regcheck.checking import check
from regcheck.numerics.optimizer_rounding import FORMULAS
from regcheck.numerics.packing import flat
from regcheck.numerics.rounding import RoundingModel, RoundingState
from regcheck.problem.problem import build_problem
from regcheck.report.result import Report
from regcheck.spec import from_mapping
from regcheck.trainers.measured_bounds import APART, MeasuredBounds
from regcheck.trainers.monte_carlo import RandomRounding, is_random, sample
from regcheck.trainers.numpy_trainer import NumpyTrainer
from regcheck.trainers.sides import NumpyFollowsTorch, Steps
from regcheck.trainers.torch_model import plainly
from regcheck.trainers.torch_trainer import TorchTrainer, torch_settings
from regcheck.trainers.user_module import of_module, wrap_user_module
from tests.random_specs import KINDS, SpecDict, mismatched_spec

Array = NDArray[np.floating]
Made = tuple[Any, Any, Optimizer]
Build = Callable[[Any], Made]

BOUNDS = 8.0
"""Worked-out bounds that a measured one may reach."""

DERIVED = 256.0
"""Those that one derived between measured steps may reach: some entries' gradients shrink by more
than their tensor's, and noise as of the typical entry of a tensor is ascribed to all."""

NOISES = 8.0
"""Measured bounds that a real difference may reach: the limit of a run."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with torch_settings(1):
        yield


# --- against bounds, and real differences -------------------------------------------------------


class Ratios(NamedTuple):
    """Of measured and derived bounds, in worked-out ones: the largest, and the smallest of all.

    `real` is the largest real difference in them.
    """

    measured: float
    derived: float
    smallest: float
    real: float


def ratios(spec: SpecDict, steps: int = 3) -> Ratios:
    """Measure and derive the first steps of a spec; NumPy takes each from torch's parameters."""
    problem = build_problem(from_mapping(spec))
    framework = TorchTrainer(problem)
    pair = NumpyFollowsTorch(NumpyTrainer(problem), framework)
    closed, carried = RoundingModel(problem), RoundingState()
    measured = MeasuredBounds(framework, problem.scratch_dtype, problem.framework_dtype)
    assert measured.formula == FORMULAS["torch.optim.sgd.SGD"]
    in_bounds: dict[bool, list[float]] = {True: [], False: [0.0]}
    real: list[float] = []
    with np.errstate(all="ignore"):
        for batch, _ in zip(problem.schedule.batches(), range(steps), strict=False):
            taken = pair.advance(batch)
            assert taken.forward_backward is not None
            slopes = [row.dloss_dz for row in taken.forward_backward.rows]
            bounds, carried = closed.bounds(carried, batch, taken.framework, slopes)
            found = measured.bounds(batch, taken, None)
            for name, size in found.after.items():
                one, other = taken.scratch.after[name], taken.framework.after[name]
                off = np.abs(np.subtract(one, other, dtype=np.float64))
                shares = size / bounds.after[name]
                in_bounds[measured.noise is not None] += shares.ravel().tolist()
                real += (off / size).ravel().tolist()
    smallest = min(in_bounds[True] + in_bounds[False][1:])
    return Ratios(max(in_bounds[True]), max(in_bounds[False]), smallest, max(real))


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
    assert found.measured < BOUNDS
    assert found.derived < DERIVED
    assert found.real < NOISES


@pytest.mark.parametrize("kind", KINDS, ids=" ".join)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("rows", "features"), [(1, 3), (40, 1), (700, 20)])
def test_measured_bounds_lie_between_real_differences_and_bounds(
    kind: tuple[str, str], dtype: str, rows: int, features: int, tmp_path: Path
) -> None:
    draws = np.random.default_rng(rows)
    X = draws.normal(size=(rows, features)) * np.logspace(-3, 3, features)
    y = (draws.random(rows) < 0.5).astype(float)
    momentum = {"name": "sgd", "momentum": 0.9, "nesterov": rows > 1}
    found = ratios(spec_of(tmp_path, kind, X, y, dtype=dtype, lr=1e-5, optimizer=momentum))

    assert_between(found)
    assert found.smallest > 0.02


@pytest.mark.parametrize("seed", range(16))
def test_those_of_random_specs_lie_between_real_differences_and_bounds(
    seed: int, tmp_path: Path
) -> None:
    spec = mismatched_spec(seed, tmp_path)
    del spec["convention"]

    assert_between(ratios(spec, steps=6))


@pytest.mark.parametrize("kind", KINDS[1:], ids=" ".join)
@pytest.mark.parametrize("z", [-90.0, -28.0, 15.0, 20.0, 27.0, 37.0, 45.0, 90.0])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_measured_bounds_where_a_sigmoid_is_saturated(
    kind: tuple[str, str], z: float, dtype: str, tmp_path: Path
) -> None:
    start = {"weight": [z * 0.7], "bias": z * 0.3}
    spec = spec_of(
        tmp_path, kind, np.ones((3, 1)), np.array([0, 0.5, 1]), init=start, lr=1e-3, dtype=dtype
    )

    found = ratios(spec, steps=1)
    assert found.real < NOISES
    assert found.measured < BOUNDS


@pytest.mark.parametrize("kind", KINDS, ids=" ".join)
def test_measured_bounds_of_equal_rows_in_great_number(
    kind: tuple[str, str], tmp_path: Path
) -> None:
    # Roundings add up: without c, differences were 17 noises.
    X, y = np.tile([1000.1, 0.3], (6000, 1)), np.ones(6000)

    assert_between(ratios(spec_of(tmp_path, kind, X, y, lr=1e-7)))


# --- a user's own model -------------------------------------------------------------------------

ROWS = 24


def data() -> dict[str, Any]:
    draws = np.random.default_rng(1)
    X = draws.normal(size=(ROWS, 4))
    return {"X": X.tolist(), "y": draws.integers(3, size=ROWS).astype(float).tolist()}


SPEC: SpecDict = {"data": data(), "lr": 0.05, "epochs": 4, "batch_size": 8}


def mlp(bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6, bias=bias), nn.Tanh(), nn.Linear(6, 3, bias=bias))


def cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(z, y.long())


def builder(
    model: Callable[[], nn.Module] = mlp,
    optimizer: Callable[[Any], Optimizer] = lambda w: torch.optim.Adam(w, lr=0.01),
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
    dtype: torch.dtype = torch.float64,
) -> Build:
    """Write a user's function."""

    def build(problem: Any) -> Made:
        made = model().to(dtype)
        return made, loss, optimizer([w for w in made.parameters() if w.requires_grad])

    return build


def trained_by(
    build: Build, *, lr: float = 1.0, clip: float | None = None, lost: str = ""
) -> Callable[[Any], Iterator[dict[str, Any]]]:
    """Train a second model in torch, its rows in another order so that it rounds otherwise.

    Args:
        build: makes the model.
        lr: a factor on it.
        clip: of the norm of all gradients.
        lost: a parameter whose gradient is left out.
    """

    def train(problem: Any) -> Iterator[dict[str, Any]]:
        model, loss, optimizer = build(problem)
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * lr
        dtype = next(model.parameters()).dtype
        X, y = (torch.from_numpy(np.asarray(one)).to(dtype) for one in (problem.X, problem.y))
        for batch in problem.batches:
            rows = torch.as_tensor(np.arange(ROWS)[batch]).flip(0)
            optimizer.zero_grad()
            value = loss(model(X[rows]), y[rows])
            value.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            for name, w in model.named_parameters():
                if name == lost:
                    w.grad = None
            optimizer.step()
            found = {name: w.detach().numpy().copy() for name, w in model.named_parameters()}
            yield {**found, "loss": float(value.detach())}

    return train


def run(
    build: Build,
    *,
    dtype: torch.dtype = torch.float64,
    spec: SpecDict | None = None,
    other: Build | None = None,
    **by: Any,
) -> Report:
    """Check a user's model against its second training."""
    known = SPEC | {"dtype": str(dtype).removeprefix("torch.")} | (spec or {})
    return check(known, scratch=trained_by(other or build, **by), framework=build)


class Plain(Optimizer):
    """A user's own: w ← w − lr g/(|g| + 0.1)."""

    def __init__(self, w: Any, lr: float) -> None:
        super().__init__(w, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for w in group["params"]:
                if w.grad is not None:
                    w.sub_(group["lr"] * w.grad / (w.grad.abs() + 0.1))


OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    # those with a formula
    "adam": lambda w: torch.optim.Adam(w, lr=0.01, weight_decay=0.01, amsgrad=True),
    "adamw": lambda w: torch.optim.AdamW(w, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda w: torch.optim.RMSprop(w, lr=0.01, momentum=0.9, centered=True),
    "adagrad": lambda w: torch.optim.Adagrad(w, lr=0.05),
    "sgd": lambda w: torch.optim.SGD(w, lr=0.05, momentum=0.9, nesterov=True),
    # and those judged by clones
    "own": lambda w: Plain(w, lr=0.05),
    "adadelta": lambda w: torch.optim.Adadelta(w, lr=0.5),
    "adafactor": lambda w: torch.optim.Adafactor(w, lr=0.05),
    "adamax": lambda w: torch.optim.Adamax(w, lr=0.01),
    "asgd": lambda w: torch.optim.ASGD(w, lr=0.05),
    "muon": lambda w: torch.optim.Muon(w, lr=0.05),
    "nadam": lambda w: torch.optim.NAdam(w, lr=0.01),
    "radam": lambda w: torch.optim.RAdam(w, lr=0.01),
    "rprop": lambda w: torch.optim.Rprop(w, lr=0.01),
    "adam in two groups": lambda w: torch.optim.Adam(
        [{"params": w[:1], "betas": (0.5, 0.9)}, {"params": w[1:]}], lr=0.01
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_optimizers_of_every_kind(name: str, dtype: torch.dtype) -> None:
    # Muon takes matrices alone.
    build = builder(lambda: mlp(bias=name != "muon"), OPTIMIZERS[name], dtype=dtype)
    right, wrong = run(build, dtype=dtype), run(build, dtype=dtype, lr=1.01)

    assert (right.verdict, right.reason) == ("equivalent", "")
    assert wrong.verdict == "diverged"


class Frozen(nn.Module):
    """Its first layer is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = mlp()
        self.layers[0].requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layers(x)
        return found


class Shared(nn.Module):
    """One square layer twice, and one that is never used."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 3)
        self.again, self.unused = self.first, nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(torch.tanh(self.again(torch.tanh(self.first(x)))))
        return found


def with_buffers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


class Counting(nn.Module):
    """What it gives depends on a buffer that it changes."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layers = mlp()
        self.register_buffer("calls", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.layers(x) / self.calls.clone()
        self.calls += 1
        return z


MODELS: dict[str, Callable[[], nn.Module]] = {
    "frozen": Frozen,
    "shared": Shared,
    "buffers": with_buffers,
    "buffers that are read": Counting,
    "dropout in eval": lambda: nn.Sequential(mlp(), nn.Dropout()).eval(),
    "dropout of nothing": lambda: nn.Sequential(mlp(), nn.Dropout(0.0)),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_models_of_every_kind(name: str, dtype: torch.dtype) -> None:
    build = builder(MODELS[name], dtype=dtype)
    last = [key for key, w in build(None)[0].named_parameters() if "unused" not in key][-2]
    right, wrong = run(build, dtype=dtype), run(build, dtype=dtype, lost=last)

    assert (right.verdict, right.reason) == ("equivalent", "")
    assert not right.comparison.random
    assert wrong.verdict == "diverged"
    assert wrong.first_divergence is not None
    assert (wrong.first_divergence.step, wrong.first_divergence.at.tensor) == (1, last)


@pytest.mark.slow
@pytest.mark.parametrize("clip", [1e-3, 0.5, 100.0])
def test_a_clipped_norm_is_in_the_noise(clip: float) -> None:
    build = builder(optimizer=lambda w: torch.optim.SGD(w, lr=0.1), dtype=torch.float32)
    spec: SpecDict = {"dtype": "float32", "clip_norm": clip}

    assert run(build, spec=spec, clip=clip).verdict == "equivalent"
    if clip < 100:
        assert run(build, spec=spec, clip=1.01 * clip).verdict == "diverged"


@pytest.mark.slow
@pytest.mark.parametrize("single", ["scratch", "framework"])
def test_two_dtypes(single: str) -> None:
    one, other = builder(dtype=torch.float32), builder(dtype=torch.float64)
    framework, scratch = (one, other) if single == "framework" else (other, one)
    spec: SpecDict = {"dtype": {"scratch": "float64", "framework": "float64"} | {single: "float32"}}

    assert run(framework, spec=spec, other=scratch).verdict == "equivalent"
    assert run(framework, spec=spec, other=scratch, lr=1.01).verdict == "diverged"


# --- models that are random ---------------------------------------------------------------------


class Noisy(nn.Module):
    """Random numbers in forward, from torch or from NumPy."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.layers, self.source = mlp(), source

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.layers(x)
        return z + (torch.rand(1) if self.source == "torch" else float(np.random.random()))


def noisy_loss(z: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(z + 0.1 * torch.randn(z.shape), y)


RANDOM: dict[str, Build] = {
    "dropout": builder(lambda: nn.Sequential(nn.Dropout(0.2), mlp())),
    "torch": builder(lambda: Noisy("torch")),
    "numpy": builder(lambda: Noisy("numpy")),
    "loss": builder(loss=noisy_loss),
}


@pytest.mark.parametrize("name", RANDOM)
def test_a_random_model_is_inconclusive_before_anything_is_judged(name: str) -> None:
    report = run(RANDOM[name])

    assert report.verdict == "inconclusive"
    assert "is random" in report.reason
    assert "model.eval()" in report.reason
    assert report.comparison.compared == 0
    assert report.first_divergence is None


@pytest.mark.slow
def test_randomness_of_later_batches_is_found_too() -> None:
    def later(z: Tensor, y: Tensor) -> Tensor:
        return noisy_loss(z, y) if len(y) < 8 else cross_entropy(z, y)

    rows = {"data": {"X": SPEC["data"]["X"][:23], "y": SPEC["data"]["y"][:23]}, "batch_size": 8}
    report = check(
        SPEC | rows,
        scratch=trained_by(builder()),
        framework=builder(loss=later),
    )

    assert (report.verdict, report.comparison.random) == ("inconclusive", True)


def test_a_model_that_seeds_itself_is_not_random() -> None:
    class Seeded(Noisy):
        def forward(self, x: Tensor) -> Tensor:
            torch.manual_seed(3)
            return super().forward(x)

    report = run(builder(lambda: Seeded("torch")))
    assert (report.verdict, report.reason) == ("equivalent", "")


# --- measuring ----------------------------------------------------------------------------------


def trainer_of(build: Build, spec: SpecDict | None = None) -> TorchTrainer:
    """Make torch's side of a user's model."""
    loaded = from_mapping(SPEC | (spec or {}) | {"scratch": build, "framework": build})
    problem = build_problem(loaded)
    module = wrap_user_module(build(None), "build", plainly, problem)
    return TorchTrainer(of_module(problem, module), module)


def every_kind_of_state() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Tanh(), nn.Linear(8, 3)
    )


def everything(trainer: TorchTrainer) -> list[Any]:
    """Copy all of a training's state, bit for bit."""
    model, optimizer = trainer.module.model, trainer.optimizer
    states = optimizer.state_dict()["state"].values()
    python, numpy = random.getstate(), np.random.get_state()
    return copy.deepcopy(
        [
            [x.numpy().tobytes() for x in model.state_dict().values()],
            [None if w.grad is None else w.grad.numpy().tobytes() for w in model.parameters()],
            [{key: torch.as_tensor(x).numpy().tobytes() for key, x in s.items()} for s in states],
            optimizer.state_dict()["param_groups"],
            torch.random.get_rng_state().numpy().tobytes(),
            (python, [str(part) for part in numpy]),
            (trainer.X.numpy().tobytes(), trainer.y.numpy().tobytes()),
        ]
    )


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("steps", [0, 2])
def test_sampling_leaves_no_trace(steps: int, mixed: bool) -> None:
    trainer = trainer_of(builder(every_kind_of_state, dtype=torch.float32))
    batches = list(trainer.problem.schedule.batches())
    for batch in batches[:steps]:
        trainer.step(batch)
    if steps:
        trainer.backward(batches[steps])  # gradients that are there already
    before, grads = everything(trainer), [w.grad for w in trainer.tensors.values()]
    elsewhere = {name: w + 0.25 for name, w in trainer.parameters().items()}
    rounding = RandomRounding(2.0**-10, torch.Generator().manual_seed(0))
    samples = [sample(trainer, elsewhere, batches[0], one, mixed=mixed) for one in (None, rounding)]

    assert everything(trainer) == before
    assert all(w.grad is g for w, g in zip(trainer.tensors.values(), grads, strict=True))
    assert 0 < np.abs(samples[0].gradient - samples[1].gradient).max() < 1
    is_random(trainer)
    assert everything(trainer) == before
    trainer.step(batches[steps])
    after = everything(trainer)
    # Or nothing could have been seen.
    assert [one != other for one, other in zip(before, after, strict=True)][:3].count(True) >= 2


def test_a_sample_that_fails_leaves_no_trace() -> None:
    failing = False

    def loss(z: Tensor, y: Tensor) -> Tensor:
        if failing:
            raise ZeroDivisionError
        return cross_entropy(z, y)

    trainer = trainer_of(builder(every_kind_of_state, loss=loss))
    batch = next(iter(trainer.problem.schedule.batches()))
    trainer.step(batch)
    before, failing = everything(trainer), True
    with pytest.raises(ZeroDivisionError):
        sample(trainer, trainer.parameters(), batch, None, mixed=False)
    assert everything(trainer) == before


@pytest.mark.parametrize("model", [with_buffers, Counting])
def test_a_plain_sample_is_the_step_itself(model: Callable[[], nn.Module]) -> None:
    trainer = trainer_of(builder(model), {"clip_norm": 0.01})
    for batch in trainer.problem.schedule.batches():
        step = trainer.step(batch)
        assert step.gradient is not None
        plain = sample(trainer, step.before, batch, None, mixed=True)

        assert plain.loss == step.loss
        assert plain.gradient.tolist() == flat(step.gradient).tolist()
        assert plain.used.tolist() == flat(trainer.used).tolist()
        assert math.sqrt(float(np.sum(plain.used**2))) == pytest.approx(0.01, rel=1e-3)


def bounds_along(trainer: TorchTrainer) -> tuple[list[int], list[Array]]:
    """Bound each step of a training that torch takes alone; with the steps that were measured."""
    measured, steps, found = MeasuredBounds(trainer, "float64"), [], []
    for batch in trainer.problem.schedule.batches():
        step = trainer.step(batch)
        bounds = measured.bounds(batch, Steps(step, step, step, step, None), None)
        found.append(flat(bounds.after))
        if measured.noise is not None:
            steps.append(batch.step)
    return steps, found


@pytest.mark.parametrize("model", [mlp, Frozen, Shared])
def test_steps_1_4_16_and_64_are_measured(model: Callable[[], nn.Module]) -> None:
    # A tensor without a gradient makes no more of them.
    steps, _ = bounds_along(trainer_of(builder(model), {"epochs": 30}))

    assert steps == [APART**k for k in range(4)]


def test_so_is_a_step_whose_gradient_has_become_much_smaller() -> None:
    # w ← w/10 at each step, so that the gradient is less than a sixteenth at steps 3, 6, ..
    def build(problem: Any) -> Made:
        model = nn.Linear(4, 1, bias=False).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return model, lambda z, y: 4.5 * (model.weight**2).sum() + 0 * z.sum(), optimizer

    assert bounds_along(trainer_of(build))[0][:4] == [1, 3, 4, 6]


def test_what_rounding_did_to_the_velocity_is_carried() -> None:
    # The gradient is σ′ − σ′, 0 give or take N; ten of these add up in a velocity of μ = 0.99.
    build = builder(
        lambda: nn.Linear(4, 1),
        lambda w: torch.optim.SGD(w, lr=1.0, momentum=0.99),
        lambda z, y: (torch.sigmoid(z) - torch.sigmoid(z)).sum(),
    )
    _, found = bounds_along(trainer_of(build))
    growth = [float(np.median(one / found[0])) for one in found]

    assert 4 < growth[9] < 12
    assert all(one < other for one, other in pairwise(growth))


def test_a_step_near_the_limit_is_measured_with_more_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts: list[tuple[int, int]] = []
    measure = MeasuredBounds.measure

    def counted(self: MeasuredBounds, batch: Any, steps: Steps, samples: int) -> Any:
        counts.append((batch.step, samples))
        return measure(self, batch, steps, samples)

    monkeypatch.setattr(MeasuredBounds, "measure", counted)
    report = run(builder(), lr=1.0001)

    assert report.verdict == "diverged"
    assert report.first_divergence is not None
    at = report.first_divergence.step
    assert at == 1
    assert [one for one in counts if one[0] == at] == [(1, 4), (1, 20), (1, 72)]


@pytest.mark.parametrize("side", ["both", "torch alone"])
def test_where_both_overflow_what_is_left_is_not_judged(side: str) -> None:
    # e^(x·w) of the third row overflows at step 1; the other weight's step is another one.
    class Exponential(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(2, dtype=torch.float64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.exp(x * self.w)

    def build(_: Any) -> tuple[Any, ...]:
        model = Exponential()
        return model, lambda z, y: (z.sum(1) - y).mean(), torch.optim.SGD(model.parameters(), lr=1)

    def train(problem: Any) -> Iterator[dict[str, Any]]:
        w = problem.initial["w"].copy()
        for rows in problem.batches:
            with np.errstate(all="ignore"):
                x = problem.X[rows]
                step = (x * np.exp(x * w)).mean(axis=0)
            w = w - step * [1.0, 2.0]
            yield {"w": w if side == "both" else np.where(np.isfinite(w), w, 0.0)}

    X = [[1.0, 0.1], [2.0, 0.2], [1000.0, 0.3]]
    spec = {"data": {"X": X, "y": [0.0, 1.0, 2.0]}, "lr": 1.0, "epochs": 2}
    report = check(spec, scratch=train, framework=build)

    assert report.verdict == "inconclusive"
    assert report.comparison.first_unjudged == 1
