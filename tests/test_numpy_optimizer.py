"""All tensors updated as one vector: bit for bit as one after the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from regcheck.problem.problem import Problem, build_problem
from regcheck.rules.optimizers.registry import OPTIMIZERS
from regcheck.spec import from_mapping
from regcheck.trainers.numpy_state import PackedMemory
from regcheck.trainers.numpy_trainer import NumpyTrainer
from tests.conftest import Spec

RANDOM = np.random.default_rng(5)
MLP: Spec = {
    "data": {"X": RANDOM.normal(size=(9, 3)).tolist(), "y": [0, 1, 2, 0, 1, 2, 0, 1, 2]},
    "model": {"mlp": {"hidden": [4], "head": "softmax"}},
    "loss": "cross_entropy",
    "init": {"normal": {"std": 0.5, "seed": 1}},
    "lr": 0.05,
    "weight_decay": 0.1,
    "batch_size": 4,
    "epochs": 2,
}
VARIANTS: dict[str, Spec] = {
    "plain": {},
    "float32": {"dtype": "float32"},
    "decays apart": {"weight_decay": {"weight": 0.3, "bias": 0.7}},
    "a weight decay for the weights alone": {"convention": {"penalize_bias": False}},
    "norms that are not squared": {"convention": {"penalty_norm": "unsquared"}},
    "clipped": {"clip_norm": 0.1, "convention": {"decay": "before-clipping"}},
    "after the update": {"convention": {"decay": "after-update"}},
    "bias first": {"convention": {"update_order": "bias-first"}},
}
AS_ONE = sorted(name for name, rule in OPTIMIZERS.items() if rule.elementwise)


def problem_of(name: str, **changes: Any) -> Problem:
    spec = MLP | {"optimizer": name} | changes
    if not OPTIMIZERS[name].weight_decay:
        spec |= {"weight_decay": 0}
    return build_problem(from_mapping(spec))


def same(one: NumpyTrainer, other: NumpyTrainer) -> int:
    """Train both side by side; count the steps, which are the same to the last bit."""
    states, steps = [one.start(), other.start()], 0
    for batch in one.problem.schedule.batches():
        updates = [
            side.step(state, batch) for side, state in zip((one, other), states, strict=True)
        ]
        states = [update.state for update in updates]
        mine, theirs = (update.step for update in updates)
        for name in mine.before:
            for pair in ("penalty", "delta", "after", "gradient"):
                np.testing.assert_array_equal(
                    getattr(mine, pair)[name], getattr(theirs, pair)[name]
                )
            assert mine.memory[name].keys() == theirs.memory[name].keys()
            for key, value in theirs.memory[name].items():
                np.testing.assert_array_equal(mine.memory[name][key], value)
        steps += 1
    return steps


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_vector_is_stepped_as_each_tensor_is(variant: str) -> None:
    for name in AS_ONE:
        problem = problem_of(name, **VARIANTS[variant])
        as_one, each = NumpyTrainer(problem), NumpyTrainer(problem)
        assert as_one.optimizer.as_one
        each.optimizer.as_one = False

        assert same(as_one, each) == 6, name


def test_optimizers_that_look_at_other_entries_are_stepped_tensor_by_tensor() -> None:
    assert set(OPTIMIZERS) - set(AS_ONE) == {"adafactor", "muon"}
    state = NumpyTrainer(problem_of("adafactor")).start()
    assert not isinstance(state.memory, PackedMemory)


def test_memory_of_one_vector_is_each_tensors() -> None:
    trainer = NumpyTrainer(problem_of("nadam"))
    batch = next(trainer.problem.schedule.batches())
    memory = trainer.step(trainer.start(), batch).step.memory

    assert isinstance(memory, PackedMemory)
    assert list(memory) == list(trainer.problem.initial)
    assert len(memory) == 4
    for name, w in trainer.problem.initial.items():
        assert memory[name]["exp_avg"].shape == w.shape
        assert memory[name]["mu_product"].shape == ()  # the same for all
    assert memory["layers.1.bias"]["exp_avg"].any()


def test_a_tensor_that_is_skipped_counts_its_own_steps_from_there_on() -> None:
    trainer = NumpyTrainer(problem_of("adam", weight_decay=0))
    first, second, third, *_ = trainer.problem.schedule.batches()
    update = trainer.step(trainer.start(), first)
    there = trainer.forward_backward(update.state.parameters, second)
    left = "layers.0.weight"
    skipped = trainer.step(update.state, second, there._replace(skipped=frozenset({left})))

    assert not isinstance(skipped.state.memory, PackedMemory)
    assert skipped.state.missed == {left: 1}
    np.testing.assert_array_equal(skipped.step.after[left], update.step.after[left])
    # At its own second step: m̂ and v̂ are corrected by 1 − β².
    after = trainer.step(skipped.state, third).step
    g0, g = update.step.gradient, after.gradient
    assert g0 is not None
    assert g is not None
    assert after.delta is not None
    m = (0.9 * 0.1 * g0[left] + 0.1 * g[left]) / (1 - 0.9**2)
    v = (0.999 * 0.001 * g0[left] ** 2 + 0.001 * g[left] ** 2) / (1 - 0.999**2)
    np.testing.assert_allclose(after.delta[left], 0.05 * m / (np.sqrt(v) + 1e-8), rtol=1e-12)
