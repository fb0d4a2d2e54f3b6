"""A user's own models in torch, each trained a second time in torch with other roundings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from regcheck.checking import check
from regcheck.problem.problem import build_problem
from regcheck.report.result import Report
from regcheck.spec import from_mapping
from regcheck.trainers.framework.torch_model import plainly
from regcheck.trainers.framework.torch_trainer import TorchTrainer
from regcheck.trainers.framework.user_module import of_module, wrap_user_module
from tests.random_specs import SpecDict

Made = tuple[Any, Any, Optimizer]
Build = Callable[[Any], Made]

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
            rows = torch.arange(len(y))[batch].flip(0)
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


def trainer_of(build: Build, spec: SpecDict | None = None) -> TorchTrainer:
    """Make torch's side of a user's model."""
    loaded = from_mapping(SPEC | (spec or {}) | {"scratch": build, "framework": build})
    problem = build_problem(loaded)
    module = wrap_user_module(build(None), "build", plainly, problem)
    return TorchTrainer(of_module(problem, module), module)


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
