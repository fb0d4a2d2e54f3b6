from __future__ import annotations

import itertools
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regcheck.rules.convention import Convention, Decay, MomentumForm
from regcheck.rules.faults import NO_FAULTS
from regcheck.rules.optimizers.sgd import BUFFER
from regcheck.rules.optimizers.update import TensorUpdate, update
from regcheck.rules.optimizers.update_rule import Memory, StepInput
from regcheck.rules.settings import Settings

PLAIN = Settings(0.1, {})
TORCH_OPTIONS: list[dict[str, Any]] = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.5, "dampening": 0.3},
    {"momentum": 1.5, "dampening": -1.0},
    {"dampening": 0.3},
]


def moved(
    convention: Convention,
    w: float,
    g: float,
    strength: float = 0.5,
    options: Settings = PLAIN,
    velocity: float | None = None,
    lr: float = 0.1,
) -> TensorUpdate:
    """Move one number, with the penalty λ w."""
    memory = {} if velocity is None else {BUFFER: np.array([velocity])}
    at = StepInput(
        options.options, convention, NO_FAULTS, lr, 1, np.array([w]), np.array([g]), memory
    )
    return update(options.rule, at, lambda x: strength * x)


@pytest.mark.parametrize(
    ("decay", "after", "penalty"),
    [
        # w = 2, g = 3, lr = 0.1, λ = 0.5
        ("gradient", 2 - 0.1 * (3 + 1), 0.1),
        ("after-momentum", 2 - 0.1 * (3 + 1), 0.1),
        ("decoupled", 2 * (1 - 0.05) - 0.3, 0.1),
        ("decoupled-unscaled", 2 * (1 - 0.5) - 0.3, 1.0),
        ("after-update", (2 - 0.3) * (1 - 0.05), 0.085),
        ("before-clipping", 2 - 0.1 * 3, 0.1),  # the trainer puts the penalty into g
    ],
)
def test_decay_by_hand(decay: Decay, after: float, penalty: float) -> None:
    found = moved(Convention(decay=decay), 2.0, 3.0)
    # A few roundings of numbers of order 1.
    assert found.parameter[0] == pytest.approx(after, abs=1e-15)
    assert found.penalty[0] == pytest.approx(penalty, abs=1e-15)
    assert found.delta[0] == pytest.approx(2 - after, abs=1e-15)
    assert found.memory == {}


@pytest.mark.parametrize(
    ("form", "first", "second", "steps"),
    [
        # μ = 0.5, g = 4 then 8, lr = 0.1: v after each step, and what each subtracts
        ("torch", 4.0, 10.0, (0.4, 1.0)),
        ("dampened", 2.0, 5.0, (0.2, 0.5)),
        ("lr-inside", 0.4, 1.0, (0.4, 1.0)),
    ],
)
def test_momentum_form_by_hand(
    form: MomentumForm, first: float, second: float, steps: tuple[float, float]
) -> None:
    convention, options = Convention(momentum_form=form), PLAIN.with_options(momentum=0.5)
    one = moved(convention, 0.0, 4.0, options=options, strength=0.0)
    two = moved(
        convention, 0.0, 8.0, options=options, strength=0.0, velocity=float(one.memory[BUFFER][0])
    )
    # Two roundings of numbers up to 10.
    assert one.memory[BUFFER][0] == pytest.approx(first, rel=1e-15)
    assert two.memory[BUFFER][0] == pytest.approx(second, rel=1e-15)
    assert (one.delta[0], two.delta[0]) == pytest.approx(steps, rel=1e-15)


@pytest.mark.parametrize("options", TORCH_OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    shape=st.sampled_from([(1,), (1, 1), (1, 7), (3, 2)]),
    seed=st.integers(0, 1000),
    scale=st.sampled_from([1e-8, 1.0, 1e6]),
    strength=st.sampled_from([0.0, 1e-3, 0.7]),
)
def test_torchs_convention_is_torch_optim_sgd(
    options: dict[str, Any],
    dtype: str,
    shape: tuple[int, ...],
    seed: int,
    scale: float,
    strength: float,
) -> None:
    random, lrs = np.random.default_rng(seed), (0.1, 0.1, 0.05, 0.2, 0.01)
    w = random.normal(size=shape).astype(dtype)
    gradients = [(scale * random.normal(size=shape)).astype(dtype) for _ in lrs]
    tensor = torch.tensor(w, requires_grad=True)
    optimizer = torch.optim.SGD([tensor], lr=1.0, weight_decay=strength, **options)
    own = PLAIN.with_options(**options)
    memory: Memory = {}
    for t, (lr, g) in enumerate(zip(lrs, gradients, strict=True), 1):
        tensor.grad = torch.tensor(g)
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        at = StepInput(own.options, Convention(), NO_FAULTS, lr, t, w, g, memory)
        found = update(own.rule, at, lambda x: strength * x)
        w, memory = found.parameter, found.memory
        assert w.dtype == found.penalty.dtype == found.delta.dtype == dtype
        # Some ten roundings a step, each of at most the largest number in play. μ = 1.5 makes
        # v and its errors grow to 20 times the gradient's.
        size = 20 * (1 + scale) * 4
        atol = 10 * len(lrs) * float(np.finfo(dtype).eps) * size
        np.testing.assert_allclose(w, tensor.detach().numpy(), rtol=0, atol=atol)
        if memory:
            velocity = memory[BUFFER]
            buffer = optimizer.state[tensor]["momentum_buffer"].numpy()
            np.testing.assert_allclose(velocity, buffer, rtol=0, atol=atol)
            assert velocity.dtype == dtype


ALL = list(itertools.product(get_args(Decay), get_args(MomentumForm), TORCH_OPTIONS))


def test_delta_is_the_whole_step_and_penalty_its_part() -> None:
    for decay, form, given_options in ALL:
        convention, options = (
            Convention(decay=decay, momentum_form=form),
            PLAIN.with_options(**given_options),
        )
        found, without = (
            moved(convention, 2.0, 3.0, options=options, velocity=0.25, strength=strength)
            for strength in (0.5, 0.0)
        )
        # A few roundings of numbers of order 1 to 10.
        assert 2.0 - found.delta[0] == pytest.approx(found.parameter[0], abs=1e-14)
        if decay not in ("gradient", "before-clipping"):  # those go through the momentum
            part = found.delta[0] - without.delta[0]
            assert found.penalty[0] == pytest.approx(part, abs=1e-14)
        assert without.penalty[0] == 0


@pytest.mark.parametrize("decay", get_args(Decay))
def test_lr_of_zero_moves_nothing_but_by_the_unscaled_decay(decay: Decay) -> None:
    found = moved(Convention(decay=decay), 2.0, 3.0, lr=0.0)
    assert found.parameter[0] == (1.0 if decay == "decoupled-unscaled" else 2.0)
