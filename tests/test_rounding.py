from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from regcheck.checking import check
from regcheck.numerics.norms import chosen, norm
from regcheck.numerics.packing import flat
from regcheck.numerics.rounding import (
    FEW,
    Bounds,
    RoundingModel,
    RoundingState,
)
from regcheck.problem.batches import Batch
from regcheck.problem.problem import Problem, Step, build_problem
from regcheck.spec import from_mapping
from regcheck.trainers import sides
from regcheck.trainers.numpy_trainer import NumpyTrainer
from regcheck.trainers.torch_trainer import TorchTrainer
from tests.conftest import agrees, told

Array = NDArray[np.floating]
KINDS = [
    ("linear", "mse"),
    ("logistic", "bce"),
    ("logistic", "bce_with_logits"),
    ("logistic", "mse"),
]
SHAPES = {"weight": (1, 2), "bias": (1,)}
U64, TINY64 = 2.0**-53, 2.0**-1022
U32, TINY32 = 2.0**-24, 2.0**-126


def close(expected: Any, rel: float = 1e-12, abs: float = 0.0) -> Any:  # noqa: A002
    """Compare by relative size alone: pytest's own absolute 1e-12 is far above these bounds."""
    return pytest.approx(expected, rel=rel, abs=abs)


def problem_of(**settings: Any) -> Problem:
    spec: dict[str, Any] = {"data": {"X": [[3.0, 4.0]], "y": [1.0]}, "model": "linear", "lr": 0.5}
    return build_problem(from_mapping(spec | settings))


def bounds_of(problem: Problem, batch: Batch, step: Step, dloss_dz: Sequence[Array]) -> Bounds:
    """Bound a first step."""
    return RoundingModel(problem).bounds(RoundingState(), batch, step, dloss_dz)[0]


MIXED = {"scratch": "float64", "framework": "float32"}


def no_alarm(kind: tuple[str, str], **spec: Any) -> None:
    """See that a matched run differs nowhere."""
    report = check({"model": kind[0], "loss": kind[1], **spec})
    assert (agrees(report), report.comparison.first_by_stage) == (True, {}), spec


def first_step(problem: Problem) -> tuple[Batch, Step, Bounds]:
    """Take the first step of the NumPy trainer, with its bounds."""
    trainer, batch = NumpyTrainer(problem), next(problem.schedule.batches())
    update = trainer.step(trainer.start(), batch)
    return batch, update.step, bounds_of(problem, batch, update.step, update.dloss_dz)


# --- worked by hand -----------------------------------------------------------------------------


def test_bounds_of_one_row_worked_by_hand() -> None:
    # x = (3, 4), y = 1, w = (1, 0), b = 1: ‖x‖ = 5, ‖w‖ = 1, z = 4, s = 2 (4 − 1) = 6.
    _, step, bounds = first_step(
        problem_of(init={"weight": [1.0, 0.0], "bias": 1.0}, weight_decay=0.25)
    )
    dz = (math.sqrt(2) + 2) * (5 + 1)
    ds = 2 * dz + 2 * (6 + 1)
    dg = ds + (1 + 7) * 6
    loss = (6 + ds * U64) * dz + 2 * 6 * 1 + (1 + 7) * 9
    gradient = np.array([3, 4, 1]) * dg
    pull = np.array([0.25, 0.0, 0.25])
    shift = 0.5 * (gradient + 5 * pull) + 2 * np.array([9.125, 12, 3.125])
    after = shift + 2 * (np.array([1, 0, 1]) + np.array([9.125, 12, 3.125]))

    assert told(step.delta)["weight"].tolist() == [[9.125, 12.0]]
    assert bounds.outputs[0] == close(np.array([dz * U64]))
    assert bounds.loss == close(loss * U64)
    for found, expected in zip(bounds[2:], (gradient, 2 * pull, shift, after), strict=True):
        assert flat(found) == close(expected * U64, abs=4 * TINY64)
        assert {name: bound.shape for name, bound in found.items()} == SHAPES


def test_bounds_of_micro_batches_worked_by_hand() -> None:
    # w = (1.5, −2), b = 3: z = −0.5, 34.5 | −15, r = −3, 36 | −19, s = 2r.
    # ‖x_i‖ = 5, 13 | 17 and ‖w‖ = 2.5; the columns' norms are √98, √385 and √3, their peaks 8, 15
    # and 1. Two rows have no more than √2 times the peak, and one no more than the peak.
    _, step, bounds = first_step(
        problem_of(
            data={"X": [[3.0, 4.0], [5.0, -12.0], [8.0, 15.0]], "y": [2.5, -1.5, 4.0]},
            init={"weight": [1.5, -2.0], "bias": 3.0},
            weight_decay={"weight": 0.25, "bias": 0.75},
            lr=0.125,
            batch_size=2,
            accumulate=2,
        )
    )
    k = math.sqrt(2) + 2
    dz = [k * np.array([5 * 2.5 + 3, 13 * 2.5 + 3]), k * np.array([17 * 2.5 + 3])]
    s, y, loss = [math.hypot(6, 72), 38.0], [math.hypot(2.5, 1.5), 4.0], [(9 + 1296) / 2, 361.0]
    ds = [2 * math.hypot(*part) + 2 * (s[i] + y[i]) for i, part in enumerate(dz)]
    columns = np.array([[math.sqrt(98), math.sqrt(385), math.sqrt(2)], [8.0, 15.0, 1.0]])
    dg = [(ds[0] + (math.sqrt(2) + 7) * s[0]) / 2, ds[1] + (1 + 7) * s[1]]
    gradient = (columns[0] * dg[0] + columns[1] * dg[1]) / 2
    first = ((s[0] + ds[0] * U64) * math.hypot(*dz[0]) + 2 * s[0] * y[0]) / 2
    second = (s[1] + ds[1] * U64) * dz[1].item() + 2 * s[1] * y[1]
    rounded = (math.sqrt(2) + 7 + 1 + 7) * sum(loss) / 2
    pull, moved = np.array([0.375, 0.5, 2.25]), np.array([8.265625, 63.4375, 0.03125])
    shift = 0.125 * (gradient + 5 * pull) + 2 * moved

    assert flat(told(step.delta)) == close(-moved)
    for output, off in zip(bounds.outputs, dz, strict=True):
        assert output == close(off * U64)
    assert bounds.loss == close((first + second + rounded) / 2 * U64)
    after = shift + 2 * (np.array([1.5, 2, 3]) + moved)
    for found, expected in zip(bounds[2:], (gradient, 0.5 * pull, shift, after), strict=True):
        assert flat(found) == close(expected * U64)


@pytest.mark.parametrize("z", [-5.0, -0.5, 0.5, 5.0])
@pytest.mark.parametrize(
    ("loss", "steepest", "tail", "squared"),
    [("bce", 0.25, 1, 0), ("bce_with_logits", 0.25, 1, 0), ("mse", 0.16, 2.5, 4)],
)
def test_gradient_bound_of_a_logistic_row_worked_by_hand(
    loss: str, steepest: float, tail: float, squared: float, z: float
) -> None:
    # ‖x‖ = 5, ‖w‖ = |z|/6 and |b| = |z|/2; z ± 1 has a slope of the slope below e < 3 times z's.
    start = {"weight": [z / 6, 0.0], "bias": z / 2}
    data = {"X": [[3.0, 4.0]], "y": [0.25]}
    _, step, bounds = first_step(problem_of(model="logistic", loss=loss, init=start, data=data))
    s, dz = (
        abs(told(step.gradient)["bias"].item()),
        (math.sqrt(2) + 2) * (5 * abs(z) / 6 + abs(z) / 2),
    )
    ds = min(3 * tail * math.exp(-abs(z)), steepest) * dz + squared * min(1.0, math.exp(z))
    dg = ds + 2 * (s + 0.25) + (1 + 7) * s

    assert bounds.gradient["weight"] == close(np.array([[3 * dg * U64, 4 * dg * U64]]))
    assert bounds.gradient["bias"].item() == close(dg * U64)


def test_bounds_of_nothing_but_zeros_are_what_lies_below_the_normal_numbers() -> None:
    # x = (3, 4), all else 0: z, its slope, their products and the penalty each may be lost.
    _, _, bounds = first_step(problem_of(data={"X": [[3.0, 4.0]], "y": [0.0]}, init="zeros"))
    gradient = np.array([3, 4, 1]) * 2 + 1
    shift = 0.5 * (gradient + 1) + 1

    assert bounds.outputs[0] == close(np.array([TINY64]))
    assert bounds.loss == TINY64
    for found, expected in zip(bounds[2:], (gradient, np.full(3, 1.5), shift, shift), strict=True):
        assert flat(found) == close(expected * TINY64)


def test_loss_bound_of_squared_sigmoids_in_micro_batches_worked_by_hand() -> None:
    # Two equal rows, each its own micro-batch: σ(0) = 1/2, r = 0.3 and s = 2 · 0.3/4. The loss of
    # one of two micro-batches is at most twice the mean, so that |r| ≤ √(2 · 0.09).
    data = {"X": [[3.0, 4.0]] * 2, "y": [0.2, 0.2]}
    start = {"weight": [1.0, 0.5], "bias": -5.0}
    batches = {"batch_size": 1, "accumulate": 2}
    _, _, bounds = first_step(
        problem_of(model="logistic", loss="mse", data=data, init=start, **batches)
    )
    dz = (math.sqrt(2) + 2) * (5 * math.hypot(1.0, 0.5) + 5)
    evaluated = 8 * math.sqrt(2 * 0.09) + (1 + 7) * 0.09

    assert bounds.loss == close((0.15 * dz + 2 * 0.15 * 0.2 + evaluated) * U64)


def test_velocity_of_nothing_but_zeros_may_lose_what_is_below_the_normal_numbers() -> None:
    problem = problem_of(
        data={"X": [[3.0, 4.0]], "y": [0.0]}, optimizer={"name": "sgd", "momentum": 0.25}, epochs=2
    )
    trainer, model, state = NumpyTrainer(problem), RoundingModel(problem), RoundingState()
    for batch in problem.schedule.batches():
        update = trainer.step(trainer.start(), batch)
        step = update.step._replace(velocity=told(update.step.gradient))
        bounds, state = model.bounds(state, batch, step, update.dloss_dz)
    coupled = np.array([3, 4]) * 2 + 1 + 1

    assert bounds.delta["weight"][0] == close((0.5 * (1.25 * coupled + 1) + 1) * TINY64)


def test_loss_at_its_minimum_is_known_to_the_square_of_the_output_s_error() -> None:
    # z = y, so that s = 0, and r² is off by δz² at most: what is told is (2 δz + 2u |y|) δz.
    _, _, bounds = first_step(
        problem_of(init={"weight": [1.0, 0.5], "bias": 0.0}, data={"X": [[3.0, 4.0]], "y": [5.0]})
    )
    dz = (math.sqrt(2) + 2) * 5 * math.hypot(1.0, 0.5)

    assert bounds.loss == close((2 * dz + 2 * 5) * dz * U64**2)


@pytest.mark.parametrize(
    "options", [{}, {"dampening": 0.75}, {"dampening": 1.5}, {"nesterov": True}], ids=str
)
def test_velocity_carries_its_error_from_step_to_step(options: dict[str, Any]) -> None:
    problem = problem_of(optimizer={"name": "sgd", "momentum": 0.5, **options}, epochs=2, lr=0.25)
    trainer, model = NumpyTrainer(problem), RoundingModel(problem)
    state, carried, taken = trainer.start(), RoundingState(), []
    for batch in problem.schedule.batches():
        update = trainer.step(state, batch)
        bounds, carried = model.bounds(carried, batch, update.step, update.dloss_dz)
        taken.append((update.step, bounds))
        state = update.state
    (_, first), (step, second) = taken
    dg = second.gradient["bias"].item()
    dv = 0.5 * first.gradient["bias"].item() + abs(1 - options.get("dampening", 0)) * dg
    dv += 2 * U64 * abs(step.velocity["bias"].item())
    dd = dg + 0.5 * dv if "nesterov" in options else dv

    expected = 0.25 * dd + 2 * U64 * abs(told(step.delta)["bias"].item())
    assert second.delta["bias"].item() == close(expected)


@pytest.mark.parametrize(
    ("dtype", "u"),
    [
        ("float64", U64),
        ("float32", U32),
        (MIXED, U32),
        ({"scratch": "float32", "framework": "float64"}, U32),
    ],
)
def test_the_coarser_dtype_counts(dtype: Any, u: float) -> None:
    model = RoundingModel(problem_of(dtype=dtype))
    start = model.start_bounds({"weight": np.array([[2.0, -4.0]]), "bias": np.array([0.0])})

    assert start["weight"] == close(np.array([[2 * u, 4 * u]]))
    assert start["bias"].item() == (TINY64 if u == U64 else TINY32)


# --- the pieces ---------------------------------------------------------------------------------


def terms(s: Array, *columns: Array) -> Array:
    """Give the terms of each column and the bias, of a batch of all rows."""
    X = np.column_stack(columns).tolist()
    model = RoundingModel(problem_of(data={"X": X, "y": [0.0] * len(s)}))
    return np.broadcast_to(model.terms(slice(0, len(s)), s), len(columns) + 1)


def where_looked(values: Array, size: int = 4 * FEW) -> Array:
    """Make zeros with these 32 values at the places that are looked at."""
    made = np.zeros(size)
    made[chosen(size)] = values
    return made


RANDOM = np.random.default_rng(0).normal(size=4 * FEW)
HALVES = where_looked(np.repeat([1.0, 2.0], 16))
"""Two values; of the 32 · 31 pairs 2 · 16 · 15 agree."""
TURNS = where_looked(np.tile([1.0, 2.0], 16))
"""Two values, of which HALVES has each one at 8 of the other's: 4 · 8 · 7 pairs agree in both."""
HALF, QUARTER = 15 / 31, 7 / 31


def many(size: int, share: float = 1.0) -> float:
    """Give √(B + B² share)."""
    return math.sqrt(size + size**2 * share)


def test_terms_that_are_close_round_alike() -> None:
    ones, rows = np.ones(4 * FEW), 4 * FEW
    expected = np.array([many(rows), math.sqrt(rows), many(rows)])

    assert terms(ones, ones, RANDOM) == close(expected)
    assert terms(1 + 1e-15 * RANDOM, ones, RANDOM) == close(expected)
    assert terms(RANDOM, ones, RANDOM) == close(np.full(3, math.sqrt(rows)))
    assert terms(ones[:FEW], ones[:FEW]) == close(np.full(2, many(FEW)))
    assert terms(ones[: FEW - 1], ones[: FEW - 1]) == close(np.full(2, math.sqrt(FEW - 1)))


def test_terms_that_are_half_alike() -> None:
    ones, rows = np.ones(4 * FEW), 4 * FEW
    for s, shares in [
        (ones, [1, HALF, HALF, 0, 1]),
        (HALVES, [HALF, HALF, QUARTER, 0, HALF]),
        (-HALVES, [HALF, HALF, QUARTER, 0, HALF]),
        (TURNS, [HALF, QUARTER, HALF, 0, HALF]),
    ]:
        expected = [many(rows, share) for share in shares]
        assert terms(s, ones, HALVES, TURNS, RANDOM) == close(np.array(expected))


def test_terms_are_those_of_the_batch() -> None:
    # The first half of the rows is alike, the second is not: in x, with slopes that are all alike.
    rows = 4 * FEW
    column = np.concatenate([np.ones(rows), RANDOM])
    model = RoundingModel(problem_of(data={"X": column[:, None].tolist(), "y": [0.0] * 2 * rows}))
    ones, places = np.ones(rows), np.arange(rows)

    for first, expected in [(0, many(rows)), (rows, math.sqrt(rows))]:
        for index in (slice(first, first + rows), first + places):
            assert model.terms(index, ones) == close(np.array([expected, many(rows)]))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_terms_of_which_some_are_alike(sign: float) -> None:
    # All but one of the 32: 31 · 30 of 32 · 31 pairs. Or 31 numbers, of which neighbours are alike
    # by the measure of the 32nd, which is the largest: 2 · 30 pairs.
    rows, ramp = 4 * FEW, 0.6 * U64 * FEW * np.arange(32.0)
    ramp[31] = 1.0
    for values, pairs in [(np.repeat([0.0, 1.0], [1, 31]), 31 * 30), (ramp, 2 * 30)]:
        found = terms(sign * where_looked(values), np.ones(rows))
        assert found == close(np.full(2, many(rows, pairs / (32 * 31))))


@pytest.mark.parametrize("scale", [1.0, -1.0, 2.0**-20, -(2.0**20)])
@pytest.mark.parametrize(("distance", "share"), [(0.9 / 31, 1.0), (1.1, 0.0)])
def test_terms_are_alike_within_a_quarter_of_the_sum_s_last_digit(
    distance: float, scale: float, share: float
) -> None:
    # u B/4 of the largest, whatever its scale; all 32 that are looked at lie within it, or no two.
    ones, rows = np.ones(4 * FEW), 4 * FEW
    ramp = where_looked(scale * (1 + distance * U64 * rows / 4 * np.arange(32)))

    assert terms(ones, ramp) == close(np.array([many(rows, share), many(rows)]))
    assert terms(ramp, ones) == close(np.full(2, many(rows, share)))


def features_alike(weight: Array, *rows: Array) -> float:
    model = RoundingModel(problem_of(data={"X": np.stack(rows).tolist(), "y": [1.0] * len(rows)}))
    return model.features_alike(weight[None, :])


def test_features_that_are_alike_round_alike() -> None:
    ones, features = np.ones(4 * FEW), 4 * FEW
    # The row whose features are the most alike counts.
    for weight, row, share in [
        (ones, ones, 1.0),
        (HALVES, ones, HALF),
        (ones, HALVES, HALF),
        (TURNS, HALVES, QUARTER),
        (ones, RANDOM, 0.0),
        (RANDOM, ones, 0.0),
    ]:
        assert features_alike(weight, RANDOM, row) == close(many(features, share))
    for size, expected in [(FEW, many(FEW)), (FEW - 1, math.sqrt(FEW - 1))]:
        assert features_alike(ones[:size], ones[:size]) == close(expected)


@pytest.mark.parametrize(("distance", "share"), [(0.9 / 31, 1.0), (1.1, 0.0)])
def test_features_are_alike_within_a_quarter_of_the_sum_s_last_digit(
    distance: float, share: float
) -> None:
    ones, features = np.ones(4 * FEW), 4 * FEW
    ramp = where_looked(1 + distance * U64 * features / 4 * np.arange(32))

    assert features_alike(ones, ramp) == close(many(features, share))
    assert features_alike(ramp, ones) == close(many(features, share))


# --- clipping -----------------------------------------------------------------------------------


def clipped(limit: float, g: Sequence[float], dg: Array, dtype: str = "float64") -> Array:
    """Carry the bound of a gradient of three entries through clipping."""
    problem = problem_of(clip_norm=limit, dtype=dtype)
    _, step, _ = first_step(problem)
    gradient = {"weight": np.array([g[:2]]), "bias": np.array(g[2:])}
    return RoundingModel(problem).clipped(dg, step._replace(gradient=gradient))


@pytest.mark.parametrize(("limit", "factor"), [(20.0, 1.0), (5.0, 5 / math.sqrt(104))])
def test_clipping_scales_the_bound_and_adds_that_of_the_factor(limit: float, factor: float) -> None:
    g, dg, size = np.array([-6.0, -8.0, -2.0]), np.array([3.0, 4.0, 12.0]) * 1e-14, math.sqrt(104)
    relative = (norm(dg) + U64 * (math.sqrt(3) + 2) * size) / size + 3 * U64
    wobble = 0.0 if limit > size else factor * relative * np.abs(g)

    assert clipped(limit, g.tolist(), dg) == close(factor * dg + wobble, rel=1e-5)


def test_clipping_of_a_gradient_as_small_as_what_is_added_to_its_norm() -> None:
    # f = C/(‖g‖ + 1e-6) with ‖g‖ = 2e-6, of C = 1.5e-6, is 1/2 and moves by f (δ‖g‖/3e-6 + 3u).
    g, dg = np.array([0.0, 1.2e-6, -1.6e-6]), np.array([3.0, 4.0, 12.0])
    wobble = 0.5 * ((13 + (math.sqrt(3) + 2) * 2e-6) / 3e-6 + 3)

    expected = (0.5 * dg + wobble * np.abs(g)) * U64
    assert clipped(1.5e-6, g.tolist(), dg * U64) == close(expected)


def test_a_clipping_factor_is_at_most_one() -> None:
    # ‖g‖ = 2 is known to ±13, so that it may be clipped to 8; as it stands, f = 1.
    g, dg = np.array([0.0, 1.2, -1.6]), np.array([3.0, 4.0, 12.0])

    assert clipped(8.0, g.tolist(), dg) == close(dg + 13 / (2 + 1e-6) * np.abs(g), rel=1e-12)


@pytest.mark.parametrize(("off", "moves"), [(-1e-5, True), (0.0, True), (1e-5, False)])
def test_clipping_near_its_threshold(off: float, moves: bool) -> None:
    # f < 1 from ‖g‖ = C − 1e-6 on; within rounding of that, one side may clip and the other not.
    dg = np.full(3, 1e-14)
    found = clipped(math.sqrt(104) + 1e-6 + off, [-6.0, -8.0, -2.0], dg)

    assert np.any(found > dg * 1.5) == moves


def test_a_clipping_factor_below_the_normal_numbers_has_an_absolute_error() -> None:
    # f = 1e-20/1.7e18 is below float32's 1e-38, and may be off by all of its digits.
    assert np.all(clipped(1e-20, [1e18] * 3, np.zeros(3), "float32") >= 1e18 * TINY32)


@pytest.mark.parametrize(("share", "nothing"), [(0.99, False), (1.01, True), (1e12, True)])
def test_a_norm_that_may_overflow_may_clip_to_nothing(share: float, nothing: bool) -> None:
    # From an eighth of the range on, as for all sums.
    each = math.sqrt(share * (2 - 2.0**-23) * 2.0**127 / 8 / 3)
    found = clipped(1.0, [each] * 3, np.zeros(3), "float32")

    # f |g| = 1/√3 in all, or its rounding: δf = f (u (√3 + 2) + 3u) and the error of a denormal f.
    rounding = (math.sqrt(3) + 5) * U32 / math.sqrt(3) + each * TINY32
    assert found == close(np.full(3, 1 / math.sqrt(3) if nothing else rounding))


# --- against actual errors ----------------------------------------------------------------------


def errors_in_bounds(problem: Problem) -> dict[str, float]:
    """Give the largest errors of a float32 step against the same one in float64, in bounds."""
    batch, exact, _ = first_step(problem)
    single = NumpyTrainer(problem)
    single.dtype = np.dtype(np.float32)
    single.X, single.y = problem.X.astype(np.float32), problem.y.astype(np.float32)
    update = single.step(single.start(), batch)
    bounds = bounds_of(problem, batch, update.step, update.dloss_dz)
    pairs = {
        "forward": (told(update.step.outputs)[0], told(exact.outputs)[0], bounds.outputs[0]),
        "loss": (np.array(update.step.loss), np.array(exact.loss), np.array(bounds.loss)),
    }
    for part in ("gradient", "penalty", "delta", "after"):
        for name in ("weight", "bias"):
            pairs[f"{part} {name}"] = tuple(
                getattr(one, part)[name] for one in (update.step, exact, bounds)
            )
    return {
        name: float((np.abs(left - right.astype(np.float64)) / bound).max())
        for name, (left, right, bound) in pairs.items()
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 30, 3000])
@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_errors_of_float32_are_within_the_bounds_and_not_far_below(
    kind: tuple[str, str], rows: int, scale: float
) -> None:
    random = np.random.default_rng(rows)
    X = random.normal(size=(rows, 5)) * scale
    y = (random.random(rows) < 0.5).astype(float)
    largest: dict[str, float] = {}
    for seed in range(5):
        problem = problem_of(
            data={"X": X.tolist(), "y": y.tolist()},
            model=kind[0],
            loss=kind[1],
            init={"normal": {"std": 1.0, "seed": seed}},
            weight_decay=0.1,
            lr=0.01,
            dtype=MIXED,
        )
        for name, ratio in errors_in_bounds(problem).items():
            largest[name] = max(largest.get(name, 0.0), ratio)

    # The limit of 8 is for what the bounds do not foresee; here they must hold as they stand.
    assert max(largest.values()) < 1.0, largest
    assert min(largest["forward"], largest["after weight"], largest["after bias"]) > 0.01, largest


SATURATED = [-200.0, -104.0, -90.0, -40.0, -28.0, -27.0, -15.0, 0.0, 8.0, 14.0, 15.0, 16.6, 17.0]
SATURATED += [20.0, 27.0, 28.0, 35.0, 37.0, 50.0, 90.0, 101.0, 200.0, 710.0, 750.0, -710.0, -750.0]


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("dtype", ["float64", "float32", MIXED], ids=str)
def test_saturated_sigmoid_is_no_divergence(kind: tuple[str, str], dtype: Any) -> None:
    for z, y in product(SATURATED, (0.0, 0.5, 1.0)):
        no_alarm(
            kind,
            data={"X": [[1.0]], "y": [y]},
            init={"weight": [z * 0.7], "bias": z * 0.3},
            lr=1e-3,
            epochs=2,
            dtype=dtype,
        )


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("y", [0.0, 0.5, 1.0])
def test_errors_of_a_saturated_sigmoid_are_within_the_bounds(
    kind: tuple[str, str], y: float
) -> None:
    # As they stand, without the limit of 8.
    ratios = {
        z: max(
            errors_in_bounds(
                problem_of(
                    data={"X": [[1.0]], "y": [y]},
                    model=kind[0],
                    loss=kind[1],
                    init={"weight": [z * 0.7], "bias": z * 0.3},
                    dtype=MIXED,
                )
            ).values()
        )
        for z in (*SATURATED, *map(float, range(-110, 111, 2)))
    }

    assert max(ratios.values()) < 1.0, max(ratios, key=lambda z: ratios[z])


@pytest.mark.parametrize("z", [-40.0, 40.0])
def test_bounds_shrink_where_the_sigmoid_is_saturated_and_right(z: float) -> None:
    # σ′ is e^(−40) there, so that the error of z reaches nothing: a quarter of it would.
    start = {"weight": [z / 6.0, 0.0], "bias": z / 2}
    common = {"data": {"X": [[3.0, 4.0]], "y": [float(z > 0)]}, "init": start}
    _, _, bounds = first_step(problem_of(model="logistic", loss="bce_with_logits", **common))
    of_output = bounds.outputs[0].item() / 4

    assert bounds.gradient["bias"].item() < (of_output / 10 if z < 0 else 3 * U64)


# --- the ends of the range ----------------------------------------------------------------------


def blow_up(**settings: Any) -> dict[str, Any]:
    return {
        "data": {"X": [[100.0], [200.0]], "y": [1.0, 0.0]},
        "model": "linear",
        "init": {"constant": 1.0},
        "lr": 1000.0,
        "epochs": 100,
        **settings,
    }


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_blow_up_is_inconclusive_and_what_came_before_stays_judged(
    dtype: Any, momentum: float
) -> None:
    report = check(blow_up(dtype=dtype, optimizer={"name": "sgd", "momentum": momentum}))

    assert report.verdict == "inconclusive"
    assert report.first_divergence is None
    assert report.first_loss_divergence is None
    assert report.comparison.compared > 2


@pytest.mark.parametrize("coarse", ["scratch", "framework"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_blow_up_of_one_side_alone_is_a_divergence(coarse: str, momentum: float) -> None:
    dtype = {"scratch": "float64", "framework": "float64"} | {coarse: "float32"}
    report = check(blow_up(dtype=dtype, optimizer={"name": "sgd", "momentum": momentum}))

    assert report.verdict == "diverged"
    assert report.first_divergence is not None
    at = report.first_divergence.at
    infinite = {"scratch": at.scratch, "framework": at.framework}
    assert [side for side, value in infinite.items() if not math.isfinite(value)] == [coarse]
    # Up to there, both sides agreed: the other one is past float32's range, or a step from it.
    other = infinite["framework" if coarse == "scratch" else "scratch"]
    assert abs(other) > 3.4e38 / 1e6


def test_blow_up_of_another_rule_stays_diverged() -> None:
    report = check(blow_up(convention={"loss_factor": 0.5}))

    assert report.verdict == "diverged"
    assert report.first_divergence is not None
    assert report.first_divergence.step == 1


@contextmanager
def spoiled(part: str, tensor: str, value: float, step: int) -> Iterator[None]:
    """Let one step of the torch side give a number that is none."""

    class Spoiled(TorchTrainer):
        def step(self, batch: Batch) -> Step:
            taken = super().step(batch)
            if batch.step == step:
                tensors = {name: one.copy() for name, one in getattr(taken, part).items()}
                tensors[tensor].flat[0] = value
                other: dict[str, Any] = {part: tensors}
                taken = taken._replace(**other)
            return taken

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sides, "TorchTrainer", Spoiled)
        yield


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("tensor", ["weight", "bias"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_one_side_alone_not_finite_diverges(value: float, tensor: str, momentum: float) -> None:
    spec = blow_up(lr=1e-6, epochs=5, optimizer={"name": "sgd", "momentum": momentum})
    with spoiled("after", tensor, value, 3):
        report = check(spec)

    assert report.verdict == "diverged"
    assert report.first_divergence is not None
    assert (report.first_divergence.step, report.first_divergence.at.tensor) == (3, tensor)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("part", ["gradient", "delta"])
@pytest.mark.parametrize("tensor", ["weight", "bias"])
def test_a_bound_that_is_no_number_passes_nothing(value: float, part: str, tensor: str) -> None:
    spec = blow_up(lr=1e-6, epochs=5, clip_norm=1.0, weight_decay=0.1)
    with spoiled(part, tensor, value, 3):
        report = check(spec)

    assert (report.verdict, report.comparison.compared) == ("inconclusive", 2)


def test_bounds_end_where_numbers_may_overflow() -> None:
    _, _, bounds = first_step(problem_of(init={"weight": [1e308, 0.0], "bias": 0.0}))

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
    _, _, bounds = first_step(problem_of(data=data, init=start, lr=lr, dtype="float32"))

    assert np.isfinite(bounds.after["weight"]).all() == bounded


@pytest.mark.parametrize(("share", "bounded"), [(0.99, True), (1.01, False)])
def test_the_loss_s_bound_ends_at_an_eighth_of_the_range(share: float, bounded: bool) -> None:
    # B s² with s = 2z = 2w, of two rows.
    w = math.sqrt(share * (2 - 2.0**-23) * 2.0**127 / 8 / 2) / 2
    data, start = {"X": [[1.0], [1.0]], "y": [0.0, 0.0]}, {"weight": [w], "bias": 0.0}
    _, _, bounds = first_step(problem_of(data=data, init=start, lr=1e-30, dtype="float32"))

    assert math.isfinite(bounds.loss) == bounded
    assert np.isfinite(bounds.after["weight"]).all()


def test_the_loss_alone_has_no_bound_where_its_square_overflows() -> None:
    # 1e39 is more than float32 holds.
    start = {"weight": [1e19, 0.0], "bias": 0.0}
    _, _, bounds = first_step(problem_of(init=start, dtype="float32"))

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
    lost = step._replace(delta=told(step.delta) | {"weight": np.array([[-math.inf, 1.0]])})
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
    # z = 1e9, known to ±100 in float32: that it is far from 0 now says nothing of its neighbours.
    start = {"weight": [2e9, -1.25e9], "bias": 0.0}
    settings = {"model": "logistic", "loss": "bce_with_logits", "init": start, "dtype": "float32"}
    _, step, bounds = first_step(problem_of(**settings))

    assert abs(told(step.outputs)[0].item()) > 1e8
    assert bounds.outputs[0].item() > 100
    assert bounds.gradient["bias"].item() > bounds.outputs[0].item() / 5


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
    _, _, bounds = first_step(problem_of(data=data, init=start, lr=1e-50, dtype="float32"))

    assert bounds.delta["weight"].item() == close(1e-50 * 4e18, rel=1e-5)


def test_a_learning_rate_too_small_for_float32_is_no_divergence() -> None:
    # 1e-50 is 0 in float32, and the gradient is large enough for it to be seen in float64.
    data = {"X": [[1e15], [2e15]], "y": [1e15, 0.0]}
    no_alarm(KINDS[0], data=data, lr=1e-50, epochs=3, dtype=MIXED, compare=["parameters"])


@pytest.mark.parametrize("dtype", ["float32", MIXED], ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=" ".join)
def test_denormal_and_huge_data_raise_no_alarm(kind: tuple[str, str], dtype: Any) -> None:
    for scale in (1e-44, 1e-40, 1e-30, 1e-3, 1e3, 1e15):
        no_alarm(
            kind,
            data={
                "X": (np.random.default_rng(0).normal(size=(40, 3)) * scale).tolist(),
                "y": [0.0, 1.0] * 20,
            },
            init={"constant": 1.0},
            lr=0.1 / (1 + scale * scale),
            weight_decay=0.01,
            epochs=5,
            dtype=dtype,
        )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", KINDS, ids=" ".join)
def test_equal_terms_in_great_number_raise_no_alarm(
    kind: tuple[str, str], dtype: str, tmp_path: Path
) -> None:
    # Roundings add up instead of cancelling: over rows, and over features in x·w.
    rows = {"X": [[1000.1, 0.3]] * 6000, "y": [1.0] * 6000}
    no_alarm(kind, data=rows, lr=1e-7, epochs=3, dtype=dtype)
    np.savez(tmp_path / "equal.npz", X=np.full((4, 40_000), 0.1), y=np.array([1.0, 0, 1, 0]))
    features = {"npz": str(tmp_path / "equal.npz")}
    no_alarm(kind, data=features, init={"constant": 0.1}, lr=1e-7, epochs=2, dtype=dtype)


def test_zero_learning_rate_in_a_schedule_is_no_divergence() -> None:
    schedule = {"kind": "list", "values": [0.0, 0.1, 0.0]}
    report = check(
        blow_up(lr=0.0, lr_schedule=schedule, weight_decay=0.1, epochs=3, compare=["parameters"])
    )

    assert report.verdict == "equivalent"
    assert report.comparison.compared == 3
