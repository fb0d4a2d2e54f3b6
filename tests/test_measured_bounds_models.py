"""Users' own models of every kind, by every optimizer, and those that are random."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regcheck.checking import check
from tests.own_models import (
    SPEC,
    Build,
    Counting,
    Frozen,
    Shared,
    builder,
    cross_entropy,
    mlp,
    run,
    trained_by,
    with_buffers,
)
from tests.random_specs import SpecDict


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
    "muon": lambda w: torch.optim.Muon(w, lr=0.05),
    "muon in two groups": lambda w: torch.optim.Muon(
        [{"params": w[:1], "momentum": 0.5}, {"params": w[1:]}], lr=0.05
    ),
    # and those judged by clones
    "own": lambda w: Plain(w, lr=0.05),
    "adadelta": lambda w: torch.optim.Adadelta(w, lr=0.5),
    "adafactor": lambda w: torch.optim.Adafactor(w, lr=0.05),
    "adamax": lambda w: torch.optim.Adamax(w, lr=0.01),
    "asgd": lambda w: torch.optim.ASGD(w, lr=0.05),
    "nadam": lambda w: torch.optim.NAdam(w, lr=0.01),
    "radam": lambda w: torch.optim.RAdam(w, lr=0.01),
    "rprop": lambda w: torch.optim.Rprop(w, lr=0.01),
    "adam in two groups": lambda w: torch.optim.Adam(
        [{"params": w[:1], "betas": (0.5, 0.9)}, {"params": w[1:]}], lr=0.01
    ),
}


@pytest.mark.sampled(every=48)
@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_optimizers_of_every_kind(name: str, dtype: torch.dtype) -> None:
    # Muon takes matrices alone.
    build = builder(lambda: mlp(bias="muon" not in name), OPTIMIZERS[name], dtype=dtype)
    right, wrong = run(build, dtype=dtype), run(build, dtype=dtype, lr=1.01)

    assert (right.verdict, right.reason) == ("equivalent", "")
    assert wrong.verdict == "diverged"


MODELS: dict[str, Callable[[], nn.Module]] = {
    "frozen": Frozen,
    "shared": Shared,
    "buffers": with_buffers,
    "buffers that are read": Counting,
    "dropout in eval": lambda: nn.Sequential(mlp(), nn.Dropout()).eval(),
    "dropout of nothing": lambda: nn.Sequential(mlp(), nn.Dropout(0.0)),
}


@pytest.mark.sampled(every=12)
@pytest.mark.slow
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


@pytest.mark.sampled(every=2)
@pytest.mark.slow
@pytest.mark.parametrize("clip", [1e-3, 0.5, 100.0])
def test_a_clipped_norm_is_in_the_noise(clip: float) -> None:
    build = builder(optimizer=lambda w: torch.optim.SGD(w, lr=0.1), dtype=torch.float32)
    spec: SpecDict = {"dtype": "float32", "clip_norm": clip}

    assert run(build, spec=spec, clip=clip).verdict == "equivalent"
    if clip < 100:
        assert run(build, spec=spec, clip=1.01 * clip).verdict == "diverged"


@pytest.mark.sampled(every=2)
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
