"""One step of both sides: what of it is compared, and where it is found to diverge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from regcheck.compare.differences import Difference, difference_of, exceeds
from regcheck.compare.steps import (
    Divergence,
    Row,
    compare_start,
    compare_step,
    differs,
    diverges,
    in_limits,
    injected,
    locate,
)
from regcheck.numerics.bounds.rounding import Bounds
from regcheck.problem.batches import Batch
from regcheck.problem.problem import Step
from regcheck.spec.sections.tolerance import Tolerance, Tolerances
from regcheck.trainers.lockstep import Steps
from tests.conftest import told

NAN, INF = math.nan, math.inf
LIMIT = 8.0
DEFAULT, EXACT = Tolerances(), Tolerances(exact=True)
BATCH = Batch(step=3, epoch=2, batch=1, lr=0.1, size=4, micro_batches=(slice(0, 4),))

TENSORS = {"weight": np.array([[1.0, 2.0]]), "bias": np.array([3.0])}
STEP = Step(TENSORS, (np.array([1.0, 2, 3, 4]),), 0.5, TENSORS, TENSORS, {}, TENSORS, TENSORS)
"""A step of two features and four rows; its numbers need not fit together."""

HUNDREDTHS = {"weight": np.full((1, 2), 0.01), "bias": np.full(1, 0.01)}
BOUNDS = Bounds((np.full(4, 0.01),), 0.01, *[HUNDREDTHS] * 4)

ENTRIES: list[tuple[str, Any]] = [("weight", (0, 0)), ("weight", (0, 1)), ("bias", 0)]
STAGES = [("gradient", "gradient"), ("penalty", "penalty"), ("delta", "optimizer")]
ON_BOTH_SIDES = pytest.mark.parametrize("side", ["scratch", "framework"])


def changed(step: Step, part: str, tensor: str, index: Any, value: float) -> Step:
    """Copy a step with one number of it put in another's place."""
    tensors = {name: old.copy() for name, old in getattr(step, part).items()}
    tensors[tensor][index] = value
    other: dict[str, Any] = {part: tensors}
    return step._replace(**other)


def with_outputs(*outputs: Sequence[float]) -> Step:
    return STEP._replace(outputs=tuple(np.array(one, np.float64) for one in outputs))


def pair(other: Step, side: str) -> tuple[Step, Step]:
    """Put another step on one side, and the usual one on the other."""
    return (other, STEP) if side == "scratch" else (STEP, other)


def compared(
    scratch: Step,
    framework: Step,
    tolerances: Tolerances = DEFAULT,
    own: Step = STEP,
    framework_own: Step | None = None,
) -> Row:
    """Compare the steps from the same parameters, and those of each side's own trajectory."""
    steps = Steps(own, framework_own or framework, scratch, framework, None)
    return compare_step(BATCH, steps, BOUNDS, tolerances)


def located(scratch: Step, framework: Step, tolerances: Tolerances = DEFAULT) -> Divergence:
    """Compare two steps, and tell where they diverge."""
    row = compared(scratch, framework, tolerances, own=scratch)
    return locate(row, scratch, framework, BOUNDS, tolerances)


def ratios(found: dict[str, Difference]) -> dict[str, float]:
    return {name: one.ratio for name, one in found.items()}


# --- what is compared ---------------------------------------------------------------------------


def test_equal_steps_differ_nowhere() -> None:
    row = compared(STEP, STEP)

    assert (row.step, row.epoch, row.batch) == (3, 2, 1)
    assert (row.scratch_loss, row.framework_loss, told(row.loss).ratio) == (0.5, 0.5, 0.0)
    assert row.drift == ratios(row.local) == {"weight": 0.0, "bias": 0.0}
    stages = ["forward", "gradient", "penalty", "optimizer"]
    assert ratios(row.within) == dict.fromkeys(stages, 0.0)
    assert row.complete
    assert not diverges(row, DEFAULT)


@pytest.mark.parametrize(("part", "stage"), STAGES)
@pytest.mark.parametrize(("tensor", "index"), ENTRIES)
@ON_BOTH_SIDES
def test_every_entry_of_every_stage_is_compared(
    part: str, stage: str, tensor: str, index: Any, side: str
) -> None:
    row = compared(*pair(changed(STEP, part, tensor, index, 100.0), side))

    assert [name for name, one in row.within.items() if exceeds(one, LIMIT)] == [stage]
    assert row.within[stage].tensor == tensor
    assert not diverges(row, DEFAULT)


def test_every_output_of_every_micro_batch_is_compared() -> None:
    two, bounds = with_outputs([1, 2], [3, 4]), BOUNDS._replace(outputs=(np.ones(2), np.ones(2)))
    cases = [([10, 2], [3, 4]), ([1, 11], [3, 4]), ([1, 2], [12, 4]), ([1, 2], [3, 13])]
    for number, outputs in enumerate(cases):
        steps = Steps(two, two, with_outputs(*outputs), two, None)
        found = compare_step(BATCH, steps, bounds, DEFAULT).within["forward"]
        assert (found.index, found.ratio) == ((number % 2,), 9.0)
    with pytest.raises(ValueError, match="zip"):
        compare_step(BATCH, Steps(two, two, with_outputs([1, 2]), two, None), bounds, DEFAULT)


@pytest.mark.parametrize(("tensor", "index"), ENTRIES)
def test_every_parameter_is_compared(tensor: str, index: Any) -> None:
    other = changed(STEP, "after", tensor, index, 100.0)
    row = compared(other, STEP)

    assert diverges(row, DEFAULT)
    assert exceeds(row.local[tensor], LIMIT)
    assert row.drift == {"weight": 0.0, "bias": 0.0}
    assert located(other, STEP).stage == "update"


@pytest.mark.parametrize(("tensor", "index"), ENTRIES)
def test_drift_is_that_of_the_two_trajectories_alone(tensor: str, index: Any) -> None:
    other = changed(STEP, "after", tensor, index, 100.0)._replace(loss=7.5)
    close = Tolerances(atol=1.0)
    drift = 100.0 - float(STEP.after[tensor][index])
    for row in (compared(STEP, STEP, own=other), compared(STEP, STEP, framework_own=other)):
        assert row.drift[tensor] == drift
        assert {row.scratch_loss, row.framework_loss} == {0.5, 7.5}
        assert told(row.loss).ratio == 0.0
        assert not diverges(row, DEFAULT)
    # A tolerance on the drift judges the two that train on their own.
    assert diverges(compared(STEP, STEP, close, framework_own=other), close)
    beside = compared(other, STEP, close)
    assert not diverges(beside, close)
    assert beside.judged["loss"].ratio == 0.0


@pytest.mark.parametrize("value", [NAN, INF, 100.0])
@ON_BOTH_SIDES
def test_reported_losses_are_compared_at_the_same_parameters(value: float, side: str) -> None:
    other = STEP._replace(loss=value)

    assert exceeds(told(compared(*pair(other, side)).loss), LIMIT)
    assert told(compared(STEP, STEP, own=other).loss).ratio == 0.0


@ON_BOTH_SIDES
@pytest.mark.parametrize("tolerances", [DEFAULT, Tolerances(rtol=0.1)], ids=["rounding", "drift"])
def test_a_loss_that_one_side_does_not_tell_is_not_compared(
    tolerances: Tolerances, side: str
) -> None:
    silent, other = pair(STEP._replace(loss=None), side)
    row = compared(silent, other, tolerances, own=silent)

    assert row.loss is None
    assert row.judged.keys() == row.local.keys() == {"weight", "bias"}
    assert math.isnan(row.scratch_loss) is (side == "scratch")
    assert math.isnan(row.framework_loss) is (side == "framework")
    assert row.complete
    assert not diverges(row, tolerances)


@pytest.mark.parametrize(("part", "stage"), [("outputs", "forward"), *STAGES])
@ON_BOTH_SIDES
def test_a_stage_that_one_side_does_not_tell_is_left_out(part: str, stage: str, side: str) -> None:
    missing: dict[str, Any] = {part: None}
    scratch, framework = pair(STEP._replace(**missing), side)
    scratch = changed(scratch, "after", "weight", (0, 1), 50.0)

    left = [name for _, name in [("outputs", "forward"), *STAGES] if name != stage]
    assert list(compared(scratch, framework).within) == left
    assert located(scratch, framework).stage == "update"


def test_a_step_of_which_only_the_parameters_are_told_differs_in_the_update() -> None:
    silent = changed(STEP, "after", "bias", 0, 50.0)._replace(
        outputs=None, loss=None, gradient=None, penalty=None, memory={}, delta=None
    )
    found = located(silent, STEP)

    assert compared(silent, STEP).within == {}
    assert (found.stage, found.at.tensor, found.within) == ("update", "bias", found.at)


@pytest.mark.parametrize(("tensor", "index"), ENTRIES)
def test_a_row_is_judged_only_if_every_parameter_is(tensor: str, index: Any) -> None:
    step = changed(STEP, "after", tensor, index, NAN)
    row = compared(step, step)

    assert not row.complete
    assert not diverges(row, DEFAULT)


def test_injected_is_what_one_step_puts_in() -> None:
    other = changed(changed(STEP, "after", "weight", (0, 1), 2.5), "after", "bias", 0, 3.25)

    assert injected(STEP, STEP) == 0
    assert injected(other, STEP) == 0.5
    assert injected(changed(STEP, "after", "bias", 0, 4.0), STEP) == 1.0


def test_limits_rank_tensors_of_different_tolerances() -> None:
    mixed = Tolerances(rounding=4.0, bias=Tolerance(rtol=0.5, atol=1.0))
    ten = difference_of("weight", (0, 0), 10.0, 0.0, 1.0)

    assert in_limits(ten, mixed) == 2.5
    assert in_limits(ten._replace(tensor="bias"), mixed) == 10.0
    assert in_limits(ten, DEFAULT) == 10 / 8
    assert in_limits(ten._replace(ratio=NAN), mixed) == -1.0
    assert in_limits(ten._replace(ratio=0.0), mixed) == 0.0


def test_start_is_compared_by_rounding_and_by_each_tolerance() -> None:
    own = {"weight": np.array([1.0, 2.0]), "bias": np.array([3.0])}
    other = {"weight": np.array([1.0, 2.5]), "bias": np.array([3.25])}
    bounds = {"weight": np.full(2, 0.25), "bias": np.full(1, 0.25)}
    local, judged = compare_start(own, other, bounds, Tolerances(bias=Tolerance(atol=0.125)))

    assert ratios(local) == {"weight": 2.0, "bias": 1.0}
    assert ratios(judged) == {"weight": 2.0, "bias": 2.0}


@pytest.mark.parametrize("name", ["weight", "bias", "loss"])
def test_each_has_its_own_tolerance(name: str) -> None:
    # The trajectories are apart by 1, and the rules agree.
    own = STEP._replace(loss=1.5, after={key: tensor + 1 for key, tensor in TENSORS.items()})
    tolerances = Tolerances.model_validate({name: Tolerance(atol=0.5)})
    judged = compared(STEP, STEP, tolerances, own=own).judged

    assert ratios(judged) == {"weight": 0.0, "bias": 0.0, "loss": 0.0} | {name: 2.0}


@pytest.mark.parametrize(
    ("tolerances", "most"),
    [(Tolerances(rtol=1.0), 8.0), (Tolerances(rounding=3.0), 3.0), (EXACT, 8.0)],
)
def test_a_stage_differs_beyond_rounding(tolerances: Tolerances, most: float) -> None:
    at = difference_of("output", (0,), most, 0.0, 1.0)

    assert not differs(at, tolerances)
    assert differs(at._replace(ratio=most + 0.1), tolerances)


# --- where a step diverges ----------------------------------------------------------------------


@pytest.mark.parametrize("first", range(3))
def test_locate_names_the_first_stage_and_tells_the_same_entry(first: int) -> None:
    other = changed(STEP, "after", "weight", (0, 1), 50.0)
    for part, _ in STAGES[first:]:
        other = changed(other, part, "weight", (0, 1), 20.0)
        other = changed(other, part, "bias", 0, 30.0)
    found = located(other, STEP)

    assert (found.step, found.stage) == (3, STAGES[first][1])
    assert (found.at.tensor, found.at.index, found.at.scratch) == ("weight", (0, 1), 50.0)
    # The bias differs further there, but it is the weight that differs most after the update.
    within = found.within
    assert (within.tensor, within.index, within.scratch) == ("weight", (0, 1), 20.0)
    # The outputs are before all else.
    found = located(other._replace(outputs=with_outputs([2, 3, 4, 5]).outputs), STEP)
    assert (found.stage, found.within.tensor) == ("forward", "output")


def test_locate_tells_another_entry_where_that_one_alone_differs() -> None:
    other = changed(STEP, "after", "weight", (0, 1), 50.0)
    found = located(changed(other, "gradient", "bias", 0, 30.0), STEP)

    assert (found.stage, found.within.tensor, found.within.scratch) == ("gradient", "bias", 30.0)


def test_locate_tells_the_first_bit_where_no_stage_is_beyond_rounding() -> None:
    alone = changed(STEP, "after", "weight", (0, 1), 2.001)
    # A tenth of a bound in the gradient, and in what follows.
    other = changed(changed(alone, "delta", "bias", 0, 3.001), "gradient", "weight", (0, 1), 2.001)
    found = located(other, STEP, EXACT)
    assert (found.stage, found.within.index, found.within.scratch) == ("gradient", (0, 1), 2.001)
    # Where one is, that one: the rounding before it is no news.
    further = changed(other, "penalty", "weight", (0, 1), 20.0)
    assert located(further, STEP, EXACT).stage == "penalty"
    # Where no stage differs by a bit, the update itself does; and rounding has no such first bit.
    assert located(alone, STEP, EXACT).stage == "update"
    far = changed(changed(STEP, "gradient", "bias", 0, 3.001), "after", "bias", 0, 9.0)
    assert located(far, STEP).stage == "update"
