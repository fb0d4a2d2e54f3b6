"""Rules replayed along a few steps whose numbers are worked by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from regcheck.compare.history import History, Record
from regcheck.diagnosis.pass_scale import gain, pass_scale, weights_of
from regcheck.diagnosis.replay import Replay
from regcheck.problem.batches import Batch
from regcheck.problem.problem import Array, Problem, build_problem
from regcheck.rules.causes.cause import Change
from regcheck.spec import from_mapping
from regcheck.trainers.numpy_trainer import NumpyTrainer
from tests.conftest import Spec, told

U = 2.0**-53

FIVE: Spec = {
    "data": {"X": [[1.0], [2.0], [-1.0], [0.5], [3.0]], "y": [1.0, 0.0, 2.0, -1.0, 0.5]},
    "model": "linear",
    "bias": False,
    "init": {"weight": [2.0]},
    "lr": 0.5,
    "epochs": 3,
    "batch_size": 2,
}
TOGETHER: Spec = {"accumulate": 3}  # one step an epoch, of 2, 2 and 1 rows
APART: Spec = {"accumulate": 2}  # two: of 2 and 2 rows, and of 1
MOMENTUM: Spec = {"name": "sgd", "momentum": 0.375}
DAMPENED = MOMENTUM | {"dampening": 0.25}

FALLING: Spec = {"lr_schedule": {"kind": "list", "values": [1, 1.25, 0.5, 0.25]}}


def problem_of(spec: Spec) -> Problem:
    return build_problem(from_mapping(FIVE | spec))


def step_of(problem: Problem, step: int) -> Batch:
    return list(problem.schedule.batches())[step - 1]


# --- how much larger a rule's gradient is, and what it is times torch's ---------------------------


@pytest.mark.parametrize(
    ("spec", "change", "times"),
    [
        ({}, {}, 1),
        ({}, {"loss_factor": 0.5, "gradient_factor": 3.0, "lr_factor": -5.0}, 7.5),
        ({}, {"loss_factor": 1e200, "gradient_factor": 1e200}, 1),  # nothing is known of it
        (TOGETHER, {"loss_reduction": "sum"}, 2),
        (TOGETHER, {"accumulation": "sum"}, 3),
        (TOGETHER, {"accumulation": "last"}, 3),
        (TOGETHER, {"accumulation": "over-rows"}, 1.2),  # a share of 2/5, not of 1/3
        (TOGETHER, {"zeroing": "never"}, 3),
        (FALLING, {"lr_shift": -1}, 2.5),
        (FALLING, {"lr_shift": 1}, 1),
        ({"lr_schedule": {"kind": "list", "values": [1, 1, 0]}}, {"lr_shift": -1}, 1),
        ({}, {"momentum_form": "dampened"}, 1),
        ({"optimizer": MOMENTUM}, {}, 1),
        ({"optimizer": MOMENTUM}, {"momentum_form": "dampened"}, 0.625),
        ({"optimizer": MOMENTUM}, {"momentum_form": "lr-inside"}, 1),
        ({"optimizer": MOMENTUM}, {"momentum": "ignored"}, 1),
        ({"optimizer": DAMPENED}, {}, 1),
        ({"optimizer": DAMPENED}, {"momentum_form": "dampened"}, 0.625 / 0.75),
        ({"optimizer": DAMPENED}, {"momentum": "ignored"}, 1 / 0.75),
        ({"optimizer": MOMENTUM | {"dampening": 1}}, {"momentum": "ignored"}, 1),
        ({"optimizer": MOMENTUM | {"dampening": 1.5}}, {"momentum": "ignored"}, 1),
        ({"optimizer": MOMENTUM | {"dampening": -0.5}}, {"momentum": "ignored"}, 1),
    ],
)
def test_gain_is_that_of_step_3_by_hand(spec: Spec, change: Change, times: float) -> None:
    problem = problem_of(spec)
    assert gain(problem.with_change(change), step_of(problem, 3)) == times


@pytest.mark.parametrize(
    ("spec", "step", "change", "scale"),
    [
        ({}, 1, {}, 1),
        ({}, 1, {"loss_factor": 0.5}, 0.5),
        ({}, 1, {"gradient_factor": 0.5}, 1),  # that comes later in the step
        (APART, 1, {"loss_reduction": "sum", "loss_factor": 0.5}, 1),
        (APART, 2, {"loss_reduction": "sum"}, 1),
        (APART, 1, {"batch_divisor": "batch-size"}, 1),
        (APART, 2, {"batch_divisor": "batch-size"}, 0.5),
        (APART, 1, {"accumulation": "sum", "loss_factor": 3.0}, 6),
        (APART, 1, {"accumulation": "sum", "loss_reduction": "sum"}, 4),
        (TOGETHER, 1, {"accumulation": "sum"}, 3),
        (APART, 1, {"accumulation": "over-rows"}, 1),
        (APART, 1, {"accumulation": "over-rows", "loss_reduction": "sum"}, 4),
        (TOGETHER, 1, {"accumulation": "over-rows"}, None),
        (TOGETHER, 1, {"accumulation": "last"}, None),
        ({}, 1, {"accumulation": "last"}, 1),
        # Rows of 2, 2 and 1 have no one factor, nor has what depends on the rows themselves.
        (TOGETHER, 1, {"loss_reduction": "sum"}, None),
        (TOGETHER, 1, {"batch_divisor": "batch-size"}, None),
        ({}, 1, {"update_order": "bias-first"}, None),
        ({}, 1, {"target": "batch-mean"}, None),
        ({}, 1, {"bce_slope": "plain"}, None),
    ],
)
def test_scale_of_the_pass_over_the_rows_by_hand(
    spec: Spec, step: int, change: Change, scale: float | None
) -> None:
    problem = problem_of(spec)
    assert pass_scale(problem.with_change(change), step_of(problem, step)) == scale


@pytest.mark.parametrize("spec", [{}, {"shuffle": {"seed": 1}}], ids=["in order", "shuffled"])
def test_weights_of_each_micro_batch_are_its_rows(spec: Spec) -> None:
    problem = problem_of(TOGETHER | spec)
    assert weights_of(problem, step_of(problem, 1)) == [2, 2, 1]


# --- bounds and ratios ----------------------------------------------------------------------------


def history_of(problem: Problem, steps: Sequence[Sequence[Any]]) -> History:
    """Record steps: the parameters before, those after on either side, the gradient, the bound."""
    shapes = {name: tensor.shape for name, tensor in problem.initial.items()}
    history = History(shapes, problem.schedule)
    for place, step in enumerate(steps):
        for what, entries in enumerate(step):
            history.numbers[place, what] = entries
        history.losses.extend([0.0] * 3)
        history.skipped.append(frozenset())
    return history


def replay_of(steps: Sequence[Sequence[Any]], limit: float = 1.0, **spec: Any) -> Replay:
    problem = problem_of(spec)
    history = history_of(problem, steps)
    limits = dict.fromkeys(problem.initial, limit)
    return Replay(history, NumpyTrainer(problem), limits, sees_rows=True)


def ratio(after: float, scratch: float, bound: float, limit: float = 1.0) -> float:
    replay = replay_of([(0, scratch, 0, 0, bound)], limit)
    (record,) = replay.history.records()
    return float(replay.ratios(record, np.array([after]))[0])


def test_ratio_is_in_limits_of_bounds() -> None:
    assert ratio(2.5, 1.0, 0.25, 4.0) == 1.5
    assert ratio(-2.5, 1.0, 0.25, 4.0) == 3.5


def test_only_one_side_out_of_range_is_a_difference() -> None:
    assert ratio(math.nan, 1.0, 0.5) == math.inf
    assert ratio(1.0, math.nan, 0.5) == math.inf
    assert ratio(math.nan, math.nan, 0.5) == 0
    assert ratio(math.inf, math.inf, 0.5) == 0
    assert ratio(1.0, 1.0, 0.0) == 0


@pytest.mark.parametrize(
    ("change", "before", "bound", "wider"),
    [
        # 2u |3 − before|, and of a larger gradient a quarter less 1 of what goes with it.
        ({}, 1, 100, 100 + 4),
        ({"gradient_factor": 4.0}, 1, 100, 100 + 4),
        ({"gradient_factor": 5.0}, 1, 100, 100 + 4 + (100 - 2) / 4),
        ({"gradient_factor": 12.0}, 1, 100, 100 + 4 + 2 * (100 - 2)),
        ({"gradient_factor": 12.0}, -4, 100, 100 + 14 + 2 * (100 - 8)),
        ({"gradient_factor": 12.0}, 50, 60, 60 + 94),  # no less than nothing
        ({}, math.inf, 100, 100),
    ],
)
def test_bounds_of_larger_gradients_and_steps_are_wider(
    change: Change, before: float, bound: float, wider: float
) -> None:
    replay = replay_of([(before, 0, 0, 0, bound * U)])
    (record,) = replay.history.records()
    rule = replay.by(change).problem
    assert replay.widened(rule, record, np.array([3.0])).bound == [wider * U]


def test_rounding_of_a_difference_is_a_larger_share_of_it() -> None:
    # S = ¾ g² and M² = 9/16 g², of which the difference is S/4, so that a step is twice torch's.
    framework = 2 - 0.5 / math.sqrt(0.75)
    optimizer = {"name": "rmsprop", "alpha": 0.25, "eps": 0.0}
    replay = replay_of([(2, 0, framework, 1, 100 * U)], optimizer=optimizer)
    ((record, after),) = replay.steps(replay.by({"centered": "added"}))
    assert 2 - after == pytest.approx(2 * (2 - framework))
    assert record.bound / U == pytest.approx(100 + 2 * (2 - after) + (2**3 / 4 - 1) * (100 - 4))


def test_coarser_dtype_rounds() -> None:
    assert replay_of([]).u == U
    assert replay_of([], dtype={"scratch": "float32", "framework": "float64"}).u == 2.0**-24
    assert replay_of([], dtype={"scratch": "float64", "framework": "float32"}).u == 2.0**-24


# --- rules along the steps ------------------------------------------------------------------------

# lr is ½: torch goes from 2 along 1 to 1.5, and from there along 3 to 0.
TORCHS = [(2.0, 1.5, 1.5, 1.0, 0.25), (1.5, 0.0, 0.0, 3.0, 0.25)]
# Where torch stays in the second step, the scratch side goes on by ½, which is two bounds.
OFF = [TORCHS[0], (1.5, 1.0, 1.5, 0.0, 0.25)]


def test_change_explains_the_steps_to_one_limit_and_no_more() -> None:
    exact = told(replay_of(TORCHS).explanation((), {}))
    assert (exact.residual, exact.causes, exact.fits, exact.note) == (0, (), {}, "")
    at_limit = told(replay_of(OFF, 2.0).explanation(("one",), {}, note="so"))
    assert (at_limit.residual, at_limit.note) == (1, "so")
    assert replay_of(OFF, 1.9).explanation((), {}) is None
    assert replay_of(OFF, 1.9).residual({}) == math.inf


def test_replay_ends_at_the_first_step_that_is_too_far_off() -> None:
    replay = replay_of([OFF[1], OFF[0], OFF[0]])
    taken = []

    def steps() -> Iterator[tuple[Record, Array]]:
        for record in replay.history.records():
            taken.append(record.batch.step)
            yield record, record.framework

    assert replay.largest(steps()) == math.inf
    assert taken == [1]
    assert replay.largest(iter(())) == 0


@pytest.mark.parametrize(("limit", "diverges"), [(1.9, True), (2.0, False), (3.0, False)])
def test_framework_diverges_by_more_than_its_limit(limit: float, diverges: bool) -> None:
    assert replay_of(OFF, limit).framework_diverges() is diverges


def test_change_shows_at_the_first_step_that_it_moves_by_more_than_a_limit() -> None:
    # Its steps are ¼ and ¾ longer, and their bounds 2u of them wider.
    change = {"lr_factor": 1.5}
    assert replay_of(TORCHS, 0.9).first_shown(change) == 1
    assert replay_of(TORCHS, 1.0).first_shown(change) == 2
    assert replay_of(TORCHS, 3.0).first_shown(change) is None
    # The scratch side's own steps do not matter.
    assert replay_of(OFF, 3.0).first_shown(change) is None
    assert replay_of(TORCHS).first_shown({}) is None


def test_rule_that_sees_rows_is_unknown_where_they_cannot_be_seen() -> None:
    replay = replay_of(TORCHS)
    replay.sees_rows = False
    rule, other = replay.by({"loss_factor": 2.0}), replay.by({"target": "batch-mean"})
    assert [float(after[0]) for _, after in replay.steps(rule)] == [1.0, -1.5]
    assert [update for _, update in replay.updates(other)] == [None, None]
    assert np.isnan([after for _, after in replay.steps(other)]).all()
    assert replay.residual({"target": "batch-mean"}) == math.inf
    # By the rows themselves, 1 and 2, whose outputs are 2 and 4, with the targets' mean ½.
    replay.sees_rows = True
    (_, first), _ = replay.steps(other)
    assert first == 2 - 0.5 * (1.5 * 1 + 3.5 * 2)
