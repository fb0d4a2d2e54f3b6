"""How large the numbers of a step may be, and what rounding does at the ends of their range."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from regcheck.checking import check
from regcheck.numerics.bounds.rounding import RoundingModel
from regcheck.numerics.bounds.update_rounding import RoundingState
from regcheck.numerics.packing import flat
from regcheck.trainers.numpy_trainer import NumpyTrainer
from tests.conftest import told
from tests.random_specs import KINDS
from tests.rounded_steps import (
    MIXED,
    TINY32,
    U64,
    bounds_of,
    close,
    first_bounds,
    first_step,
    problem_of,
)


def test_bounds_end_where_numbers_may_overflow() -> None:
    bounds = first_bounds(init={"weight": [1e308, 0.0], "bias": 0.0})

    assert bounds.loss == math.inf
    assert np.isinf(bounds.outputs).all()
    assert all(np.isinf(flat(bound)).all() for bound in bounds[2:])


def test_sizes_worked_by_hand() -> None:
    # The largest row is (8, 15), the largest entry 15, and ‖w‖ = 2.5: |z| ≤ 17 · 2.5 + 3 = 45.5,
    # |s| ≤ 2 (45.5 + 4) and |g| ≤ 15 · 99 + 0.75 (2.5 + 3); then v ≤ μ v + |g|, and d ≤ g + v.
    X = [[3.0, 4.0], [5.0, -12.0], [8.0, 15.0]]
    problem = problem_of(
        data={"X": X, "y": [2.5, -4.0, 1.0]},
        init={"weight": [1.5, -2.0], "bias": -3.0},
        weight_decay={"weight": 0.25, "bias": 0.75},
        optimizer={"name": "sgd", "momentum": 0.5, "dampening": 3.0},
        lr=2.0,
    )
    batch, step, _ = first_step(problem)
    model, g, v = RoundingModel(problem), 15 * 99 + 0.75 * 5.5, 0.0
    for _ in range(3):
        found = model.largest_sizes(RoundingState(None, v), batch, step)
        v = 0.5 * v + 2 * g  # |1 − τ| = 2
        assert found == close((45.5, 3 * 99.0**2, v, g + v, 2.5 + 3 + 2 * (g + v)))


@pytest.mark.parametrize("loss", ["bce", "bce_with_logits", "mse"])
def test_sizes_of_a_logistic_model_worked_by_hand(loss: str) -> None:
    # However large z ≤ 5 · 2.5 + 3 is, |s| ≤ 1; then |g| ≤ 4 · 1, and d ≤ g + v with v ≤ g.
    start = {"weight": [1.5, 2.0], "bias": 3.0}
    problem = problem_of(model="logistic", loss=loss, init=start, lr=8.0)
    batch, step, _ = first_step(problem)

    found = RoundingModel(problem).largest_sizes(RoundingState(), batch, step)
    assert found == close((15.5, 1, 4, 8, 5.5 + 8 * 8))


@pytest.mark.parametrize("dampening", [0.0, 0.5, 1.0])
def test_sizes_grow_with_the_velocity_whatever_its_first_step(dampening: float) -> None:
    # The first step takes g whole. A constant g makes it g/(1 − μ) in the end.
    options = {"name": "sgd", "momentum": 0.75, "dampening": dampening}
    problem = problem_of(init={"constant": 1.0}, optimizer=options)
    batch, step, _ = first_step(problem)
    model = RoundingModel(problem)
    sizes, v = [], 0.0
    for _ in range(200):
        found = model.largest_sizes(RoundingState(None, v), batch, step)
        sizes.append(found.direction)
        v = found.velocity
    g = 4 * 2 * (5 * math.sqrt(2) + 1 + 1)

    assert sizes[0] == close(2 * g)
    assert sizes[-1] == close(g + 4 * g)
    assert np.all(np.diff(sizes) >= 0)


@pytest.mark.parametrize("optimizer", ["sgd", {"name": "sgd", "momentum": 0.9, "nesterov": True}])
@pytest.mark.parametrize("kind", KINDS, ids=" ".join)
def test_sizes_are_above_all_that_a_step_has(kind: tuple[str, str], optimizer: Any) -> None:
    random = np.random.default_rng(0)
    X, y = random.normal(size=(20, 3)) * [1, 100, 0.01], random.random(20)
    problem = problem_of(
        data={"X": X.tolist(), "y": y.tolist()},
        model=kind[0],
        loss=kind[1],
        init={"normal": {"std": 3.0, "seed": 1}},
        weight_decay=0.3,
        optimizer=optimizer,
        lr=1e-4,
        epochs=30,
    )
    trainer, model = NumpyTrainer(problem), RoundingModel(problem)
    state, v = trainer.start(), 0.0
    for batch in problem.schedule.batches():
        update = trainer.step(state, batch)
        state, step = update.state, update.step
        sizes = model.largest_sizes(RoundingState(None, v), batch, step)
        v = sizes.velocity

        assert np.abs(told(step.outputs)[0]).max() <= sizes.output
        assert (update.dloss_dz[0] ** 2).sum() <= sizes.loss
        for name, w in step.after.items():
            assert np.abs(told(step.delta)[name]).max() <= batch.lr * sizes.direction
            assert np.abs(w).max() <= sizes.all


@pytest.mark.parametrize(("share", "bounded"), [(0.99, True), (1.01, False)])
@pytest.mark.parametrize("large", ["d", "lr", "w"])
def test_bounds_end_at_an_eighth_of_the_range(large: str, share: float, bounded: bool) -> None:
    # So that eight terms can be added. x = 1, y = b = 0: z = w, g = 2w and d = 4w.
    top = share * (2 - 2.0**-23) * 2.0**127 / 8
    w, lr = {"d": (top / 4, 1e-30), "lr": (0.0, top), "w": (1e18, (top - 1e18) / 4e18)}[large]
    data, start = {"X": [[1.0]], "y": [0.0]}, {"weight": [w], "bias": 0.0}
    bounds = first_bounds(data=data, init=start, lr=lr, dtype="float32")

    assert np.isfinite(bounds.after["weight"]).all() == bounded


@pytest.mark.parametrize(("share", "bounded"), [(0.99, True), (1.01, False)])
def test_the_loss_s_bound_ends_at_an_eighth_of_the_range(share: float, bounded: bool) -> None:
    # B s² with s = 2z = 2w, of two rows.
    w = math.sqrt(share * (2 - 2.0**-23) * 2.0**127 / 8 / 2) / 2
    data, start = {"X": [[1.0], [1.0]], "y": [0.0, 0.0]}, {"weight": [w], "bias": 0.0}
    bounds = first_bounds(data=data, init=start, lr=1e-30, dtype="float32")

    assert math.isfinite(bounds.loss) == bounded
    assert np.isfinite(bounds.after["weight"]).all()


def test_the_loss_alone_has_no_bound_where_its_square_overflows() -> None:
    # 1e39 is more than float32 holds.
    start = {"weight": [1e19, 0.0], "bias": 0.0}
    bounds = first_bounds(init=start, dtype="float32")

    assert bounds.loss == math.inf
    assert np.isfinite(bounds.after["weight"]).all()


def test_one_side_alone_may_not_overflow_where_the_dtypes_differ() -> None:
    problem = problem_of(init={"weight": [1e19, 0.0], "bias": 0.0}, dtype=MIXED)
    batch, step, known = first_step(problem)
    lost = step._replace(loss=math.inf)
    slopes = NumpyTrainer(problem).forward_backward(step.before, batch).rows[0].dloss_dz
    unknown = bounds_of(problem, batch, lost, [slopes])

    # NumPy's float64 has no trouble with 1e39; where torch's float32 has, nothing allows it.
    assert math.isfinite(known.loss)
    assert math.isnan(unknown.loss)
    assert np.isfinite(unknown.after["weight"]).all()


def test_an_infinite_step_of_the_coarser_dtype_is_allowed_by_nothing() -> None:
    # The loss before it may well be finite; what is known of the other entries stays known.
    problem = problem_of(dtype=MIXED)
    batch, step, known = first_step(problem)
    lost = step._replace(delta={**told(step.delta), "weight": np.array([[-math.inf, 1.0]])})
    slopes = NumpyTrainer(problem).forward_backward(step.before, batch).rows[0].dloss_dz
    found = bounds_of(problem, batch, lost, [slopes])

    assert found.loss == known.loss
    assert found.gradient["weight"].tolist() == known.gradient["weight"].tolist()
    for part in (found.delta, found.after):
        assert np.isnan(part["weight"]).tolist() == [[True, False]]
        assert np.isfinite(part["bias"]).all()


def test_what_a_sigmoid_loses_where_it_underflows_is_multiplied_by_the_data() -> None:
    # σ(−89) = 2e−39 is 0 in float32, where e^89 overflows; of the gradient that is 2e−36.
    settings = {
        "data": {"X": [[1000.0]], "y": [0.0]},
        "model": "logistic",
        "loss": "bce_with_logits",
        "init": {"weight": [-0.089], "bias": 0.0},
        "dtype": {"scratch": "float32", "framework": "float64"},
    }
    report = check({"lr": 0.5, **settings})
    assert report.comparison.sample is not None
    lost = told(report.comparison.sample.framework.gradient)["weight"].item()
    assert told(report.comparison.sample.scratch.gradient)["weight"].item() == 0
    assert lost > 1e-36 > 8 * TINY32
    assert report.comparison.first_by_stage == {}


def test_what_a_denormal_loses_is_multiplied_by_the_learning_rate() -> None:
    _, _, bounds = first_step(
        problem_of(init={"constant": 1e-30}, weight_decay=1e-10, lr=1e10, dtype="float32")
    )

    assert bounds.penalty["bias"].item() > 1e10 * TINY32
    assert bounds.after["bias"].item() > 1e10 * TINY32


def test_errors_of_z_above_one_reach_the_steepest_slope() -> None:
    # z = 0, known to more than ±100 in float32: that its slope is steep says nothing of its
    # neighbours', and of z = 1e9 ± 2400 it is 0 whatever z is.
    settings = {"model": "logistic", "loss": "bce_with_logits", "dtype": "float32"}
    for weight, z in (([4e9, -3e9], 0.0), ([2e9, -1.25e9], 1e9)):
        _, step, bounds = first_step(problem_of(init={"weight": weight, "bias": 0.0}, **settings))
        assert told(step.outputs)[0].item() == z
        assert bounds.outputs[0].item() > 100
        reaches = bounds.gradient["bias"].item() > bounds.outputs[0].item() / 5
        assert reaches == (z == 0)


@pytest.mark.parametrize("z", [-30.0, -35.0])
def test_errors_of_z_reach_a_fading_slope_whole(z: float) -> None:
    # y = 1, p = e^z: BCELoss's slope is −p/1e-12, so that its own slope is as large as itself.
    start = {"weight": [1000.0, -750.0], "bias": z}
    settings = {"model": "logistic", "loss": "bce", "init": start}
    _, step, bounds = first_step(problem_of(**settings))
    fading = math.exp(z) * 1e12
    of_z = fading * bounds.outputs[0].item()

    assert told(step.gradient)["bias"].item() == close(-fading, rel=1e-6)
    assert bounds.gradient["bias"].item() > of_z > 10 * U64


def test_a_learning_rate_too_small_for_float32_may_lose_the_whole_step() -> None:
    # x = 1, y = b = 0: |d| ≤ 4w, of which lr = 1e-50 leaves far more than float32's least number,
    # and its rounding adds less than 1e-5.
    data, start = {"X": [[1.0]], "y": [0.0]}, {"weight": [1e18], "bias": 0.0}
    bounds = first_bounds(data=data, init=start, lr=1e-50, dtype="float32")

    assert bounds.delta["weight"].item() == close(1e-50 * 4e18, rel=1e-5)
