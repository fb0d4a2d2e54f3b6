"""Tensors of a user's own module that the optimizer leaves alone, or has twice."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import Adam, AdamW, Optimizer

from regcheck.checking import check
from tests.own_rules import Mlp, Rule, Tensors, build, by_hand, mlp, spec
from tests.test_own_rules import COMMON, MISTAKES, causes, plain


class Spare(Mlp):
    """A layer that is never used, and one that only later batches use."""

    def __init__(self) -> None:
        super().__init__()
        self.spare, self.late = nn.Linear(2, 2), nn.Parameter(torch.ones(1))
        self.calls = 0

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        found = super().forward(X)
        return found + self.late * X[:, 0] if len(X) == 4 else found


def spare(P: Tensors, X: Any, y: Any) -> tuple[float, Tensors]:
    zeros = {name: 0 * P[name] for name in ("spare.weight", "spare.bias", "late")}
    if len(y) != 4:
        loss, G = mlp(P, X, y)
        return loss, G | zeros
    loss, G = mlp(P, X, y - P["late"] * X[:, 0])
    h = np.tanh(X @ P["first.weight"].T + P["first.bias"])
    r = (h @ P["last.weight"].T + P["last.bias"])[:, 0] + P["late"] * X[:, 0] - y
    return loss, G | zeros | {"late": (2 * r @ X[:, 0] / len(y)).reshape(1)}


def skipped(name: str, step: int) -> bool:
    """Whether the model has no gradient of a tensor; every third batch has four rows."""
    return name.startswith("spare") or (name == "late" and step % 3 > 0)


@pytest.mark.sampled(every=6)
@pytest.mark.parametrize("mistake", ["", "coupling", "no correction", "compounded"])
@pytest.mark.parametrize("kind", [Adam, AdamW])
def test_tensors_without_a_gradient_are_skipped(kind: Any, mistake: str) -> None:
    rule = Rule(coupled=kind is Adam, mistakes=(mistake,))
    report = check(
        spec("mlp"),
        framework=build(Spare, plain(kind)),
        scratch=by_hand(spare, rule, skips=skipped),
    )

    if mistake:
        assert causes(report) == (MISTAKES[kind.__name__][mistake],)
    else:
        assert report.verdict == "equivalent"


class Frozen(Mlp):
    """Its first bias is not trained, and its last one the optimizer does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.first.bias.requires_grad_(False)


@pytest.mark.sampled(every=4)
@pytest.mark.parametrize("mistake", ["", "coupling", "eps inside", "by batch"])
@pytest.mark.parametrize("left_out", [False, True], ids=["frozen", "not the optimizer's"])
def test_frozen_tensors_are_left_alone(mistake: str, left_out: bool) -> None:
    def made(model: nn.Module) -> Optimizer:
        known = dict(model.named_parameters())
        return AdamW([w for name, w in known.items() if name not in left], **COMMON)

    left = ["last.bias"] if left_out else []
    rule = Rule(mistakes=(mistake,))
    report = check(
        spec("mlp"),
        framework=build(Frozen, made),
        scratch=by_hand(mlp, rule, skips=lambda name, _: name in ("first.bias", *left)),
    )

    if mistake:
        assert causes(report) == (MISTAKES["AdamW"][mistake],)
    else:
        assert report.verdict == "equivalent"


class Tied(nn.Module):
    """One square layer twice, with one bias more."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.again, self.last = self.first, nn.Linear(3, 1)

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.last(self.again(torch.tanh(self.first(X))))[:, 0]
        return found


def tied(P: Tensors, X: Any, y: Any) -> tuple[float, Tensors]:
    W = P["first.weight"]
    h = np.tanh(X @ W.T)
    k = h @ W.T
    r = (k @ P["last.weight"].T + P["last.bias"])[:, 0] - y
    dz = (2 * r / len(y))[:, None]
    dk = dz @ P["last.weight"]
    da = dk @ W * (1 - h**2)
    return float(np.mean(r**2)), {
        "first.weight": dk.T @ h + da.T @ X,
        "last.weight": dz.T @ k,
        "last.bias": dz.sum(0),
    }


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize("mistake", ["", "coupling", "no correction"])
def test_shared_tensors_have_one_step(mistake: str) -> None:
    report = check(
        spec("mlp"),
        framework=build(Tied, plain()),
        scratch=by_hand(tied, Rule(mistakes=(mistake,))),
    )

    if mistake:
        assert causes(report) == (MISTAKES["AdamW"][mistake],)
    else:
        assert report.verdict == "equivalent"
