"""What is hooked into an optimizer's step is done; sparse gradients are refused."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from regcheck.checking import check
from regcheck.errors import UserCodeError
from regcheck.user_code.problem_api import UserProblem
from tests.by_hand import BASE, TORCHS, At, Spec, code
from tests.user_modules import Made, user


def shrinking(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Halve the parameters after a step."""
    with torch.no_grad():
        for group in optimizer.param_groups:
            for w in group["params"]:
                w *= 0.5


def halved(at: At) -> tuple[Any, Any]:
    w, b = TORCHS(at)
    return w / 2, b / 2


class HalvingSGD(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        super().step(closure)
        shrinking(self)


def hook(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    optimizer.register_step_post_hook(shrinking)
    return optimizer


def another_step(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    step = optimizer.step

    def halving() -> None:
        step()
        shrinking(optimizer)

    optimizer.step = halving  # type: ignore[method-assign, assignment]
    return optimizer


def own_kind(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    group = optimizer.param_groups[0]
    return HalvingSGD(group["params"], lr=group["lr"], weight_decay=group["weight_decay"])


@pytest.fixture
def patched(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Wrap the step of the class itself, under its own name."""
    step = torch.optim.SGD.step

    @functools.wraps(step)
    def halving(optimizer: torch.optim.SGD, closure: Any = None) -> None:
        step(optimizer, closure)
        shrinking(optimizer)

    def patch(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        monkeypatch.setattr(torch.optim.SGD, "step", halving)
        return optimizer

    return patch


@pytest.mark.parametrize("kind", ["hook", "another step", "an own class", "a patched class"])
@pytest.mark.parametrize("halves", [True, False])
def test_what_is_hooked_into_a_step_is_done(kind: str, halves: bool, patched: Any) -> None:
    kinds = {"hook": hook, "another step": another_step, "an own class": own_kind}
    changed = kinds.get(kind, patched)

    def made(problem: UserProblem) -> Made:
        model, loss, optimizer = user()(problem)
        return model, loss, changed(optimizer)

    report = check(BASE, scratch=code(halved if halves else TORCHS), framework=made)

    assert report.verdict == ("equivalent" if halves else "diverged")


def test_sparse_gradients_are_refused() -> None:
    class Table(nn.Embedding):
        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return super().forward(rows.long())[:, 0, 0]

    def made(_: UserProblem) -> Made:
        model = Table(4, 1, sparse=True, dtype=torch.float64)
        return model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.1)

    def train(problem: UserProblem) -> Iterator[Spec]:
        for _ in problem.batches:
            yield dict(problem.initial)

    spec = {"data": {"X": [[0], [1], [3]], "y": [1.0, 2.0, 0.5]}, "lr": 0.1, "epochs": 2}
    with pytest.raises(UserCodeError, match="the gradient of weight is sparse") as caught:
        check(spec, scratch=train, framework=made)
    assert "sparse=True" in str(caught.value)
    assert "Your own code raised it" not in str(caught.value)
