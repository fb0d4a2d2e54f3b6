"""Rules replayed along a few steps whose numbers are worked by hand, and factors fitted to them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from regcheck.compare.history import History, Record
from regcheck.diagnosis.fits.fitting import COARSE, FEW, fit_near
from regcheck.diagnosis.replay import Replay, gain, pass_scale, weights_of
from regcheck.numerics.least_squares import Fit
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


# --- factors that are fitted ----------------------------------------------------------------------


def lines(slopes: Sequence[float], scratch: Sequence[float], limit: float = 1.0) -> Any:
    """Replay a rule that goes from 0 to c times each slope, by its one key's factor c.

    Its steps are counted: `taken` holds how many each replay took.
    """
    steps = [(0, end, slope, slope, 1) for slope, end in zip(slopes, scratch, strict=True)]
    replay: Any = replay_of(steps, limit, epochs=len(steps), batch_size="full")

    def steps_by(factor: float) -> Iterator[tuple[Record, Array]]:
        place = len(replay.taken)
        replay.taken.append(0)
        for record in replay.history.records():
            replay.taken[place] += 1
            yield record, factor * record.gradient

    replay.taken, replay.steps = [], steps_by
    replay.by = lambda change: change["key"]
    return replay


def test_factor_is_fitted_by_least_squares() -> None:
    # (10·30 + 20·66.5)/(10² + 20²); one bound makes 1/√500 of it.
    fit = told(fit_near(lines([10, 20], [30, 66.5]), {}, "key", 1.0))
    assert list(fit) == pytest.approx([3.26, 500**-0.5])
    # Twice the limits, twice the deviation.
    assert told(fit_near(lines([10, 20], [30, 66.5], 2.0), {}, "key", 1.0)).deviation == (
        pytest.approx(2 * 500**-0.5)
    )
    # From 0, the other step is at 1.
    assert fit_near(lines([10, 20], [30, 66.5]), {}, "key", 0.0) == fit
    rounded = fit_near(lines([1e17], [3e17]), {}, "key", 1.0)
    assert list(told(rounded)) == [3, pytest.approx(12 * U)]


def test_fit_near_leaves_no_more_than_so_many_limits() -> None:
    # By 2.1 more than 1 each 10 end at 31; one bound grows by the way to it in steps of ½ to 5.2.
    replay = lines([10, 10], [30, 32])
    assert fit_near(replay, {}, "key", 1.0, coarse=0.193)
    assert fit_near(replay, {}, "key", 1.0, coarse=0.192) is None
    assert fit_near(replay, {}, "key", 1.0, coarse=0.386, share=0.2)  # 2.1/0.2 for 2.1/0.5
    assert fit_near(lines([10, 10], [20, 22]), {}, "key", 0.0, coarse=0.323)  # 1/(1 + 2.1/1)
    assert fit_near(lines([10, 10], [9, 11]), {}, "key", 1.0, coarse=1.0)
    assert fit_near(lines([10, 10], [-30, -32]), {}, "key", 1.0, coarse=0.109)  # 1/9.2
    assert fit_near(lines([10, 10], [-30, -32]), {}, "key", 1.0, coarse=0.108) is None


def test_step_that_no_factor_moves_is_to_agree_by_itself() -> None:
    # However far it is to the factor from there on.
    assert fit_near(lines([0, 1], [3, 5e3]), {}, "key", 1.0, coarse=3.0)
    replay = lines([0, 1], [4, 5e3])
    assert fit_near(replay, {}, "key", 1.0, coarse=3.0) is None
    assert max(replay.taken) == 1
    assert fit_near(lines([0, 0], [0, 0]), {}, "key", 1.0) is None  # any factor does


def test_numbers_out_of_range_fit_no_factor() -> None:
    for slope, end in ((math.inf, 1.0), (1.0, math.inf), (math.nan, 1.0)):
        assert fit_near(lines([1, slope], [1, end]), {}, "key", 1.0) is None


@pytest.mark.parametrize(("slope", "taken"), [(5e-4, 100), (1e-3, 100), (2e-3, 5)])
def test_fit_near_takes_so_many_steps_that_move_by_more_than_a_thousandth_of_a_bound(
    slope: float, taken: int
) -> None:
    replay = lines([slope] * 100, [0] * 100)
    assert fit_near(replay, {}, "key", 1.0, most=5)
    assert replay.taken[0] == taken


@pytest.mark.parametrize(
    ("spoilt", "taken"),
    [(1, [FEW] * 2), (10, [FEW] * 2 + [64] * 2), (80, [FEW] * 2 + [64] * 2 + [90] * 2)],
)
def test_fit_that_does_not_hold_is_given_up_after_few_steps(spoilt: int, taken: list[int]) -> None:
    ends = [20.0] * 90
    assert lines([10] * 90, ends).fit({}, "key") == (pytest.approx(2), pytest.approx(9000**-0.5))
    ends[spoilt] += 4 * COARSE
    ends[spoilt + 1] -= 4 * COARSE
    replay = lines([10] * 90, ends)
    assert replay.fit({}, "key") is None
    assert replay.taken == taken


@pytest.mark.parametrize(("off", "fits"), [(1.0, True), (1.5, False)])
def test_last_fit_leaves_one_limit_at_most(off: float, fits: bool) -> None:
    assert (lines([10, 10], [20 - off, 20 + off]).fit({}, "key") is not None) is fits


# --- a factor on gradients that are clipped -------------------------------------------------------

# Six steps along these gradients, each from 0; lr is ½.
GRADIENTS = (1.0, -2.0, 3.0, 0.5, -1.5, 0.25)


def clipped(
    factor: float,
    gradients: Sequence[float] = GRADIENTS,
    limit: float = 2.5,
    bound: float = 16 * U,
) -> Replay:
    """Record what a factor on gradients makes of them, with entries clipped to ±limit."""

    def end(factor: float, gradient: float) -> float:
        return -0.5 * max(-limit, min(limit, factor * gradient))

    steps = [(0, end(factor, one), end(1, one), one, bound) for one in gradients]
    return replay_of(steps, epochs=len(gradients), batch_size="full", clip_value=limit)


def fitted(replay: Replay) -> Fit | None:
    return replay.fit({}, "gradient_factor")


@pytest.mark.parametrize("factor", [0.5, 1.5, 4.0, -2.0])
def test_factor_is_fitted_to_the_steps_that_are_not_clipped(factor: float) -> None:
    assert told(fitted(clipped(factor))).factor == pytest.approx(factor, rel=1e-14)


def test_factor_of_thousandths_is_fitted_where_all_is_clipped_at_1() -> None:
    large = [1e3 * one for one in GRADIENTS]
    assert told(fitted(clipped(2e-3, large))).factor == pytest.approx(2e-3, rel=1e-12)


def test_factor_is_not_fitted_to_clipped_gradients_on_top_of_another_change() -> None:
    replay = clipped(1.5)
    assert replay.fit({"loss_factor": 1.0}, "gradient_factor") is None
    assert replay.fit({}, "lr_factor") is None


def test_factor_is_unknown_where_all_is_clipped() -> None:
    assert fitted(clipped(-1.0, [1e9, 2e9])) is None


def test_factor_is_to_make_the_clipped_steps_too() -> None:
    replay = clipped(1.5)
    assert abs(replay.history.all("scratch")[2, 0]) == 0.5 * 2.5
    replay.history.all("scratch")[2] += 8 * U  # half a bound
    assert told(fitted(replay)).factor == pytest.approx(1.5)
    replay.history.all("scratch")[2] += 16 * U
    assert fitted(replay) is None


def test_factor_that_leaves_torchs_steps_is_none() -> None:
    assert fitted(clipped(1.0)) is None
    # It is known to 0.03, and moves each step by a twentieth of its bound.
    assert fitted(clipped(1.01, [1.0] * 50, bound=0.1)) is None


@pytest.mark.parametrize(("bound", "known"), [(0.02, True), (0.03, False), (0.05, False)])
def test_factor_that_is_not_known_to_a_tenth_is_none(bound: float, known: bool) -> None:
    # Its deviation is the bound over ½, and a tenth of it 0.05.
    assert (fitted(clipped(0.5, [1.0], bound=bound)) is not None) is known
