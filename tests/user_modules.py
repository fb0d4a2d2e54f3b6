"""The framework side as a user's own function: model, loss function and optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from regcheck.user_code.problem_api import UserProblem
from tests.by_hand import BASE, LAMBDA, Spec, Train

Made = tuple[Any, Any, Any]
Build = Callable[[UserProblem], Made]

SHUFFLED: Spec = {"batch_size": 16, "shuffle": {"seed": 3}}  # 16, 16 and 8 rows
NO_MODEL: Spec = {key: BASE[key] for key in ("data", "epochs", "lr", "weight_decay")}


def line(problem: UserProblem, dtype: torch.dtype = torch.float64) -> nn.Linear:
    model = nn.Linear(problem.X.shape[1], 1, dtype=dtype)
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(problem.initial["weight"]))
        model.bias.copy_(torch.from_numpy(problem.initial["bias"]))
    return model


def flat_line(problem: UserProblem, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Let the model give (n,), as the targets are."""
    return nn.Sequential(line(problem, dtype), nn.Flatten(0))


def sgd(problem: UserProblem, model: nn.Module, **settings: Any) -> torch.optim.SGD:
    given = {"lr": problem.lr, "weight_decay": problem.weight_decay} | settings
    return torch.optim.SGD(model.parameters(), **given)


def user(
    model: Callable[[UserProblem], nn.Module] = flat_line,
    loss: Any = None,
    optimizer: Callable[[UserProblem, Any], torch.optim.Optimizer] = sgd,
) -> Build:
    def build(problem: UserProblem) -> Made:
        made = model(problem)
        return made, loss or nn.MSELoss(), optimizer(problem, made)

    return build


def with_sgd(**settings: Any) -> Build:
    """Write a user's function whose optimizer has other settings."""
    return user(optimizer=lambda problem, model: sgd(problem, model, **settings))


# --- a model of two layers ------------------------------------------------------------------------


def mlp(_: UserProblem) -> nn.Module:
    random = np.random.default_rng(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1), nn.Flatten(0)).double()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.copy_(torch.from_numpy(random.normal(size=tuple(tensor.shape))))
    return model


def mlp_by_hand(
    strength: Callable[[int], float] = lambda rows: LAMBDA,
    slope: Callable[[Any, Any], Any] = lambda a, h: 1 - h**2,
    momentum: float = 0.0,
) -> Train:
    """Write the same by hand: λ of a batch's rows, and the slope of h = tanh a."""

    def train(problem: UserProblem) -> Iterator[Spec]:
        P = problem.initial
        V = {name: 0 * w for name, w in P.items()}
        for rows in problem.batches:
            X, y = problem.X[rows], problem.y[rows]
            a = X @ P["0.weight"].T + P["0.bias"]
            h = np.tanh(a)
            z = h @ P["2.weight"][0] + P["2.bias"]
            dz = 2 * (z - y) / len(y)
            da = dz[:, None] * P["2.weight"] * slope(a, h)
            G = {"0.weight": da.T @ X, "0.bias": da.sum(0), "2.weight": dz @ h, "2.bias": dz.sum()}
            for name, w in P.items():
                V[name] = momentum * V[name] + G[name] + strength(len(y)) * w
            P = {name: w - problem.lr * V[name] for name, w in P.items()}
            yield {**P, "loss": ((z - y) ** 2).mean()}

    return train
