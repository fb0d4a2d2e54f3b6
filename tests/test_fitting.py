"""Factors that causes leave open are fitted from the steps, by values worked by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from regcheck.compare.history import Record
from regcheck.diagnosis.fits.fitting import COARSE, FEW, NEARER, fit_near
from regcheck.diagnosis.replay import Replay
from regcheck.numerics.least_squares import Fit
from regcheck.problem.problem import Array
from regcheck.rules.causes.cause import Change
from tests.conftest import told
from tests.test_replay import U, replay_of

# --- factors that are fitted ----------------------------------------------------------------------


def lines(slopes: Sequence[Any], scratch: Sequence[Any], limit: float = 1.0, **spec: Any) -> Any:
    """Replay a rule that goes from 0 to c times each slope, by its one key's factor c.

    Its steps are counted: `taken` holds how many each replay took.
    """
    steps = [(0, end, slope, slope, 1) for slope, end in zip(slopes, scratch, strict=True)]
    spec = {"epochs": len(steps), "batch_size": "full", **spec}
    replay: Any = replay_of(steps, limit, **spec)

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
    ("spoilt", "by", "taken"),
    [
        (1, COARSE, [FEW] * 2),
        (10, COARSE, [FEW] * 2 + [64] * 2),
        (10, NEARER, [FEW] * 2 + [64] * 2),
        (80, COARSE, [FEW] * 2 + [64] * 2 + [90] * 2),
    ],
)
def test_fit_that_does_not_hold_is_given_up_after_few_steps(
    spoilt: int, by: float, taken: list[int]
) -> None:
    ends = [20.0] * 90
    assert lines([10] * 90, ends).fit({}, "key") == (pytest.approx(2), pytest.approx(9000**-0.5))
    ends[spoilt] += 4 * by
    ends[spoilt + 1] -= 4 * by
    replay = lines([10] * 90, ends)
    assert replay.fit({}, "key") is None
    assert replay.taken == taken


TWO: dict[str, Any] = {"data": {"X": [[1, 1]], "y": [0]}, "init": {"weight": [0, 0]}}


def test_step_whose_entries_need_two_factors_ends_a_fit() -> None:
    # 2 and 3 times the slope: least squares leave 500 or so of each.
    replay = lines([[1e3, 1e3]] * 9, [[2e3, 3e3]] * 9, **TWO)
    assert fit_near(replay, {}, "key", 1.0, coarse=100.0) is None
    assert replay.taken == [1, 1]
    # 1 leaves 1 in each; of one step alone, least squares leave 1.2 by 1.02.
    replay = lines([[10, 30]] * 2, [[9, 31], [11, 29]], **TWO)
    assert fit_near(replay, {}, "key", 1.0, coarse=1.0)


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


# --- a factor beside another cause ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "change", "decay", "key", "told_by"),
    [
        ("asgd", {"penalty_factor": 0.5}, 0.1, "gradient_factor", "the step itself"),
        ("rmsprop", {"centered": "added"}, 0.1, "gradient_factor", "the penalty"),
        ("rmsprop", {"centered": "added"}, 0.0, "gradient_factor", ""),  # but for ε
        # Torch's own lr is cut to 1/√t in all steps.
        ("adafactor", {"penalty_factor": -1.0}, 0.1, "lr_factor", "an lr below 1/√t"),
    ],
)
def test_factor_is_fitted_beside_a_cause_where_it_shows(
    name: str, change: Change, decay: float, key: str, told_by: str
) -> None:
    steps = [(1 + 0.1 * place, 0, 0, one, 16 * U) for place, one in enumerate(GRADIENTS)]
    spec: dict[str, Any] = {"epochs": 6, "batch_size": "full", "weight_decay": decay, "lr": 1.5}
    replay = replay_of(steps, optimizer={"name": name}, **spec)
    for place, rule in ((1, {**change, key: 0.25}), (2, {})):
        after = [end for _, end in replay.steps(replay.by(rule))]
        replay.history.numbers[: len(steps), place] = after
    fit = replay.fit(change, key)

    assert (fit is not None) is bool(told_by)
    assert fit is None or fit.factor == pytest.approx(0.25)
