"""Bugs planted in the torch side: each caught at its own first step, and not called rounding."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import pytest
import torch

from regcheck.checking import check
from regcheck.problem.batches import Batch
from regcheck.problem.problem import Problem, Step
from regcheck.trainers import sides
from regcheck.trainers.framework.built_in import OfLink
from regcheck.trainers.framework.torch_model import Module
from regcheck.trainers.framework.torch_trainer import TorchTrainer
from tests.conftest import told
from tests.first_steps import (
    ALWAYS_CLIPPED,
    MOMENTUM,
    NEW_LR_AT_5,
    Spec,
    agrees,
    found,
    spec_of,
)
from tests.rule import Array


class ForgetsZeroGrad(TorchTrainer):
    def __init__(self, problem: Problem, module: Module | None = None) -> None:
        super().__init__(problem, module)
        self.optimizer.zero_grad = lambda set_to_none=True: None  # type: ignore[method-assign]


class DecaysBeforeClipping(TorchTrainer):
    def __init__(self, problem: Problem, module: Module | None = None) -> None:
        super().__init__(problem, module)
        for group in self.optimizer.param_groups:
            group["weight_decay"] = 0

    def clip(self) -> bool:
        for name, tensor in self.tensors.items():
            assert tensor.grad is not None
            tensor.grad += self.problem.weight_decay[name] * tensor.detach()
        return super().clip()


class OneLrLate(TorchTrainer):
    """Leaves out the scheduler's first step."""

    def update(self, batch: Batch) -> None:
        schedulers = self.schedulers
        assert schedulers is not None
        if batch.step > 1:
            super().update(batch)
            return
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(schedulers, "step", lambda batch: None)
            super().update(batch)


class ForgetsTheBiasGroup(TorchTrainer):
    def __init__(self, problem: Problem, module: Module | None = None) -> None:
        super().__init__(problem, module)
        group, (weight, bias) = self.optimizer.param_groups[0], self.tensors.values()
        apart = [group | {"params": [weight]}, group | {"params": [bias], "weight_decay": 0}]
        self.optimizer.param_groups = apart
        self.groups = self.sgd_groups = self.module.groups()


class SumsTheLoss(TorchTrainer):
    def __init__(self, problem: Problem, module: Module | None = None) -> None:
        super().__init__(problem, module)
        assert isinstance(self.module.loss, OfLink)
        self.module.loss.loss.reduction = "sum"  # type: ignore[assignment]


class ForgetsUnsqueeze(TorchTrainer):
    """Leaves the targets (B,) where the model gives (B, 1)."""

    def forward(self, X: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch's, on just this
            return super().forward(X, y[:, 0])


class SumsMicroBatches(TorchTrainer):
    def backward(self, batch: Batch) -> tuple[tuple[Array, ...] | None, float]:
        outputs, loss = super().backward(batch)
        for tensor in self.tensors.values():
            assert tensor.grad is not None
            tensor.grad *= len(batch.micro_batches)
        return outputs, loss


class NewOptimizerEachEpoch(TorchTrainer):
    """Makes the optimizer anew in each epoch, and loses its momentum."""

    def step(self, batch: Batch) -> Step:
        if batch.batch == 1:
            self.optimizer.state.clear()
        return super().step(batch)


class LoadsFloat32(TorchTrainer):
    """Had the rows in float32 before it made them float64."""

    def __init__(self, problem: Problem, module: Module | None = None) -> None:
        super().__init__(problem, module)
        self.X = self.X.float().double()


class Caught(NamedTuple):
    """Where a bug is caught: in which training, at which step and stage, in which tensor alone.

    One that `breaks_its_rule` does what no settings of torch's say, and so no cause explains it.
    """

    spec: Spec
    step: int
    stage: str
    tensor: str | None = None
    breaks_its_rule: bool = False


MINI = spec_of(batches="mini")

BUGS: dict[type[TorchTrainer], Caught] = {
    ForgetsZeroGrad: Caught(spec_of(), 2, "gradient"),
    # The penalty of torch's optimizer is by its own groups, which have none here.
    DecaysBeforeClipping: Caught(spec_of() | ALWAYS_CLIPPED, 1, "penalty", breaks_its_rule=True),
    OneLrLate: Caught(spec_of() | NEW_LR_AT_5, 5, "penalty", breaks_its_rule=True),
    ForgetsTheBiasGroup: Caught(spec_of(start="zeros"), 2, "penalty", "bias", breaks_its_rule=True),
    SumsTheLoss: Caught(MINI, 1, "gradient"),
    ForgetsUnsqueeze: Caught(spec_of(), 1, "gradient", "weight"),
    SumsMicroBatches: Caught(MINI | {"accumulate": 2}, 1, "gradient"),
    # Three steps an epoch: the second epoch is the first that had momentum to lose.
    NewOptimizerEachEpoch: Caught(MINI | MOMENTUM, 4, "optimizer", breaks_its_rule=True),
    LoadsFloat32: Caught(spec_of(), 1, "forward"),
}


@pytest.mark.sampled(every=4)
@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_bug_on_torchs_side_is_caught_at_its_own_first_step(
    bug: type[TorchTrainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    caught = BUGS[bug]
    monkeypatch.setattr(sides, "TorchTrainer", bug)
    report = check(caught.spec)

    step, stage, tensor = found(report)
    assert (step, stage) == (caught.step, caught.stage)
    assert tensor == (caught.tensor or tensor)
    assert agrees(report, until=step)
    if caught.breaks_its_rule:
        assert told(report.first_divergence).at.ratio > 1e6
        assert not told(report.diagnosis).explained
