"""Samples of a step under random rounding: the step itself, and no trace of it."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from regcheck.numerics.packing import flat
from regcheck.trainers.framework.determinism import torch_settings
from regcheck.trainers.framework.torch_trainer import TorchTrainer
from regcheck.trainers.measured.monte_carlo import RandomRounding, is_random, sample
from tests.own_models import (
    Counting,
    builder,
    cross_entropy,
    trainer_of,
    with_buffers,
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with torch_settings(1):
        yield


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
