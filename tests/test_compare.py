from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from regcheck.compare.differences import (
    Difference,
    difference_of,
    drift,
    each,
    exceeds,
    greatest,
    within_tolerance,
    worst,
)
from regcheck.compare.steps import (
    Row,
    compare_start,
    compare_step,
    differs,
    diverges,
    in_limits,
    injected,
    locate,
)
from regcheck.numerics.rounding import Bounds
from regcheck.problem.batches import Batch
from regcheck.problem.problem import Step
from regcheck.spec.tolerance import Tolerance, Tolerances
from regcheck.trainers.lockstep import Steps

Array = NDArray[np.floating]
NAN, INF = math.nan, math.inf
BATCH = Batch(step=3, epoch=2, batch=1, lr=0.1, size=4, micro_batches=(slice(0, 4),))
LIMIT = 8.0
DEFAULT = Tolerances()


def array(*values: float) -> Array:
    return np.array(values)


def a_step() -> Step:
    """Make a step of two features and four rows; its numbers need not fit together."""
    tensors = {"weight": np.array([[1.0, 2.0]]), "bias": np.array([3.0])}
    parts = [{name: tensor.copy() for name, tensor in tensors.items()} for _ in range(6)]
    return Step(parts[0], (array(1, 2, 3, 4),), 0.5, *parts[1:])


def outputs_of(step: Step) -> tuple[Array, ...]:
    """Give a step's outputs, which it tells."""
    assert step.outputs is not None
    return step.outputs


def loss_of(row: Row) -> Difference:
    """Give a row's loss, which both sides tell."""
    assert row.loss is not None
    return row.loss


def steps(own: Step, local: Step, framework: Step, alone: Step | None = None) -> Steps:
    """Put the updates of both sides together; torch's own is the leader's, as it leads."""
    return Steps(own, framework if alone is None else alone, local, framework, None)


def some_bounds(size: float = 0.01) -> Bounds:
    tensors = {"weight": np.full((1, 2), size), "bias": np.full(1, size)}
    return Bounds((np.full(4, size),), size, tensors, tensors, tensors, tensors)


def changed(step: Step, part: str, tensor: str, index: Any, value: float) -> Step:
    """Copy a step with one number of it put in another's place."""
    tensors = {name: old.copy() for name, old in getattr(step, part).items()}
    tensors[tensor][index] = value
    other: dict[str, Any] = {part: tensors}
    return step._replace(**other)


# --- one tensor ---------------------------------------------------------------------------------


@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_worst_finds_the_one_entry_that_differs(place: int, dtype: type[np.floating]) -> None:
    framework = np.arange(5).astype(dtype)
    scratch = framework.copy()
    scratch[place] += 0.5
    found = worst("weight", scratch, framework, np.full(5, 0.25))

    assert found == Difference(
        "weight", (place,), place + 0.5, float(place), 0.5, 0.25, 2.0, judged=True
    )


def test_worst_counts_in_bounds_and_not_in_size() -> None:
    found = worst("weight", array(1.0, 0.01), array(0.0, 0.0), array(1.0, 0.001))

    assert found.index == (1,)
    assert found.ratio == pytest.approx(10.0)


def test_worst_ranks_by_the_quotient_to_its_last_digit() -> None:
    # Less its bound, the first entry is off by more; divided without a rest, both are 1.
    off, bound = array(0.5, 0.02), array(0.4, 0.001)
    assert worst("weight", off, array(0.0, 0.0), bound).index == (1,)
    assert worst("weight", array(1.2, 1.7), array(0.0, 0.0), array(1.0, 1.0)).index == (1,)


@pytest.mark.parametrize("odd", range(3))
@pytest.mark.parametrize("shape", [(1, 3), (3, 1), (1,), (2,), (4,), (0,)], ids=str)
def test_worst_broadcasts_nothing(odd: int, shape: tuple[int, ...]) -> None:
    three = [np.zeros(3), np.zeros(3), np.ones(3)]
    three[odd] = np.ones(shape)
    with pytest.raises(ValueError, match="cannot compare the shapes"):
        worst("weight", *three)


def test_worst_gives_the_index_in_the_tensors_own_shape() -> None:
    framework = np.zeros((2, 3))
    scratch = framework.copy()
    scratch[1, 0] = 1.0

    assert worst("weight", scratch, framework, np.ones((2, 3))).index == (1, 0)
    assert worst("bias", array(1.0), array(0.0), array(1.0)).index == (0,)
    assert worst("weight", np.ones((1, 1)), np.zeros((1, 1)), np.ones((1, 1))).index == (0, 0)


def test_worst_measures_float32_in_float64() -> None:
    # In float32 the difference of these two would overflow.
    top = np.array([3e38, 0.0], np.float32)

    assert worst("weight", top, -top, array(1.0, 1.0)).difference == pytest.approx(6e38)


ONE_SIDED = [(NAN, 1.0), (1.0, NAN), (INF, 1.0), (1.0, -INF)]
NEITHER = [(NAN, NAN), (INF, INF), (INF, -INF), (NAN, INF), (-INF, NAN)]


@pytest.mark.parametrize(("scratch", "framework"), ONE_SIDED)
@pytest.mark.parametrize("bound", [0.0, 1.0, 1e300, NAN])
def test_one_side_alone_not_finite_is_infinitely_far(
    scratch: float, framework: float, bound: float
) -> None:
    found = difference_of("bias", (0,), scratch, framework, bound)

    assert (found.ratio, found.judged) == (INF, True)
    for place in range(3):
        pair = np.zeros((2, 3))
        pair[:, place] = scratch, framework
        within = worst("weight", pair[0], pair[1], np.full(3, bound if bound else 1.0))
        assert (within.index, within.ratio) == ((place,), INF)


@pytest.mark.parametrize(("scratch", "framework"), NEITHER)
def test_neither_side_finite_is_not_judged(scratch: float, framework: float) -> None:
    found = difference_of("bias", (0,), scratch, framework, 1.0)

    assert math.isnan(found.ratio)
    assert not found.judged
    assert not exceeds(found, LIMIT)


@pytest.mark.parametrize(("scratch", "framework"), [*NEITHER, *ONE_SIDED, (1.0, 1.0), (1.0, 9.0)])
def test_no_bound_is_not_judged(scratch: float, framework: float) -> None:
    found = difference_of("bias", (0,), scratch, framework, INF)

    assert math.isnan(found.ratio)
    assert not found.judged


@pytest.mark.parametrize(("scratch", "framework"), NEITHER)
@pytest.mark.parametrize("place", range(3))
def test_an_entry_that_cannot_be_judged_hides_no_other(
    place: int, scratch: float, framework: float
) -> None:
    pair = np.zeros((2, 4))
    pair[:, place] = scratch, framework
    pair[0, 3] = 9.0
    found = worst("weight", pair[0], pair[1], np.ones(4))

    assert (found.index, found.ratio, found.judged) == ((3,), 9.0, False)
    assert exceeds(found, LIMIT)


@pytest.mark.parametrize("unknown", [NAN, INF])
def test_an_entry_without_a_bound_hides_no_other(unknown: float) -> None:
    found = worst("weight", array(5.0, 9.0), array(0.0, 0.0), array(unknown, 1.0))

    assert (found.index, found.ratio, found.judged) == ((1,), 9.0, False)


def test_a_tensor_of_which_nothing_can_be_judged_says_so() -> None:
    found = worst("weight", array(NAN, INF), array(NAN, INF), np.ones(2))

    assert math.isnan(found.ratio)
    assert not found.judged


@pytest.mark.parametrize(("difference", "ratio"), [(0.0, 0.0), (1e-300, INF)])
def test_a_bound_of_zero_asks_for_equality(difference: float, ratio: float) -> None:
    assert difference_of("bias", (0,), difference, 0.0, 0.0).ratio == ratio
    assert worst("weight", array(0.0, difference), array(0.0, 0.0), np.zeros(2)).ratio == ratio


def test_finite_numbers_too_far_apart_to_subtract_differ_infinitely() -> None:
    found = worst("weight", array(1.0, 1e308), array(1.0, -1e308), np.ones(2))

    assert (found.index, found.ratio, found.judged) == ((1,), INF, True)


@pytest.mark.parametrize(
    ("scratch", "framework", "bound"),
    [((2,), (1,), (2,)), ((2,), (1, 2), (2,)), ((2,), (2,), (1,))],
)
def test_worst_refuses_shapes_that_would_broadcast(
    scratch: tuple[int, ...], framework: tuple[int, ...], bound: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="weight: cannot compare the shapes"):
        worst("weight", np.zeros(scratch), np.zeros(framework), np.ones(bound))


def test_worst_refuses_a_tensor_without_entries() -> None:
    with pytest.raises(ValueError, match="cannot compare the shapes"):
        worst("weight", np.zeros(0), np.zeros(0), np.zeros(0))


@pytest.mark.parametrize("side", range(3))
@pytest.mark.parametrize("names", [("weight",), ("weight", "bias", "more"), ("weight", "Bias")])
def test_each_refuses_missing_and_extra_tensors(side: int, names: tuple[str, ...]) -> None:
    three: list[dict[str, Array]] = [
        {name: np.ones(2) for name in ("weight", "bias")} for _ in range(3)
    ]
    three[side] = {name: np.ones(2) for name in names}

    with pytest.raises(ValueError, match="different tensors"):
        each(*three)


def test_greatest_takes_a_number_over_one_that_is_none() -> None:
    one = difference_of("bias", (0,), 1.0, 0.0, 1.0)
    none = one._replace(ratio=NAN, judged=False)

    assert greatest([none, one, none]) is one
    zero = one._replace(ratio=0.0)
    assert greatest([none, zero]) is zero
    assert greatest([one, one._replace(ratio=2.0), none]).ratio == 2.0


def test_exceeds_is_strict() -> None:
    assert not exceeds(difference_of("bias", (0,), 8.0, 0.0, 1.0), LIMIT)
    assert exceeds(difference_of("bias", (0,), 8.0 + 1e-9, 0.0, 1.0), LIMIT)


# --- the tolerance ------------------------------------------------------------------------------


CLOSE = Tolerance(rtol=0.5, atol=1.0)


def test_drift_may_be_atol_and_rtol_of_the_frameworks() -> None:
    found = within_tolerance(CLOSE, "weight", array(9.0, -7.0), array(6.0, -4.0))

    # 1 + 0.5·6 = 4 and 1 + 0.5·4 = 3, so that 3 are 3/4 of the one, and all of the other.
    assert (found.index, found.difference, found.bound, found.ratio) == ((1,), 3.0, 3.0, 1.0)
    assert within_tolerance(CLOSE, "bias", array(9.0), array(6.0)).ratio == 0.75
    assert within_tolerance(Tolerance(atol=2.0), "bias", array(9.0), array(6.0)).ratio == 1.5
    assert within_tolerance(Tolerance(rtol=0.25), "bias", array(9.0), array(6.0)).ratio == 2.0
    assert within_tolerance(Tolerance(rtol=0.25), "bias", array(9.0), array(0.0)).ratio == INF


def test_drift_of_an_infinite_side_is_never_allowed() -> None:
    for pair in ((1.0, INF), (INF, 1.0), (1.0, NAN), (NAN, 1.0)):
        found = within_tolerance(CLOSE, "bias", array(pair[0]), array(pair[1]))
        assert (found.ratio, found.judged) == (INF, True)
    assert not within_tolerance(CLOSE, "bias", array(INF), array(INF)).judged


EXACT = Tolerance(exact=True)


def test_exact_takes_the_same_bits_alone() -> None:
    one = array(1.0, -0.0, 5e-324)
    assert within_tolerance(EXACT, "weight", one, one.copy()).ratio == 0
    zero = within_tolerance(EXACT, "weight", one, array(1.0, 0.0, 5e-324))
    assert (zero.index, zero.ratio, zero.difference) == ((1,), INF, 0.0)
    other = within_tolerance(EXACT, "weight", array(1.0, 0.0, 5e-324), one)
    assert (other.index, other.ratio, other.difference) == ((1,), INF, 0.0)
    near = within_tolerance(EXACT, "weight", one, array(1.0, 0.0, 1e-323))
    assert (near.index, near.ratio, near.difference) == ((2,), INF, 5e-324)
    # A sign is no matter to any other tolerance.
    none = Tolerance(atol=0.0)
    assert within_tolerance(none, "weight", one, array(1.0, 0.0, 5e-324)).ratio == 0
    same = within_tolerance(EXACT, "weight", array(-0.0, NAN), array(0.0, NAN))
    assert not same.judged


def test_exact_takes_float32_for_the_number_that_it_is() -> None:
    tenth = np.array([0.1], np.float32)
    assert within_tolerance(EXACT, "bias", tenth, tenth.astype(np.float64)).ratio == 0
    assert within_tolerance(EXACT, "bias", tenth, array(0.1)).ratio == INF


def test_limits_rank_tensors_of_different_tolerances() -> None:
    mixed = Tolerances(rounding=4.0, bias=CLOSE)
    ten = difference_of("weight", (0, 0), 10.0, 0.0, 1.0)

    assert in_limits(ten, mixed) == 2.5
    assert in_limits(ten._replace(tensor="bias"), mixed) == 10.0
    assert in_limits(ten, DEFAULT) == 10 / 8
    assert in_limits(ten._replace(ratio=NAN), mixed) == -1.0
    assert in_limits(ten._replace(ratio=0.0), mixed) == 0.0


def test_start_is_compared_by_rounding_and_by_each_tolerance() -> None:
    own = {"weight": array(1.0, 2.0), "bias": array(3.0)}
    other = {"weight": array(1.0, 2.5), "bias": array(3.25)}
    bounds = {"weight": array(0.25, 0.25), "bias": array(0.25)}
    local, judged = compare_start(own, other, bounds, Tolerances(bias=Tolerance(atol=0.125)))

    assert {name: one.ratio for name, one in local.items()} == {"weight": 2.0, "bias": 1.0}
    assert {name: one.ratio for name, one in judged.items()} == {"weight": 2.0, "bias": 2.0}


@pytest.mark.parametrize("name", ["weight", "bias", "loss"])
def test_each_has_its_own_tolerance(name: str) -> None:
    step = a_step()
    # The trajectories are apart by 1, and the rules agree.
    own = step._replace(loss=0.5 + 1, after={key: tensor + 1 for key, tensor in step.after.items()})
    tolerances = Tolerances.model_validate({name: Tolerance(atol=0.5)})
    judged = compare_step(BATCH, steps(own, step, step), some_bounds(), tolerances).judged

    assert {key: one.ratio for key, one in judged.items()} == {
        "weight": 0.0,
        "bias": 0.0,
        "loss": 0.0,
    } | {name: 2.0}


def test_stage_of_a_drift_tolerance_parts_beyond_rounding() -> None:
    for tolerances, smallest in (
        (Tolerances(rtol=1.0), 8.0),
        (Tolerances(rounding=3.0), 3.0),
        (Tolerances(exact=True), 8.0),
    ):
        at = difference_of("output", (0,), smallest, 0.0, 1.0)
        assert not differs(at, tolerances)
        assert differs(at._replace(ratio=smallest + 0.1), tolerances)


def test_injected_is_what_one_step_puts_in() -> None:
    step = a_step()
    other = changed(changed(step, "after", "weight", (0, 1), 2.5), "after", "bias", 0, 3.25)

    assert injected(step, step) == 0
    assert injected(other, step) == 0.5
    assert injected(changed(step, "after", "bias", 0, 4.0), step) == 1.0


# --- one step -----------------------------------------------------------------------------------


def test_equal_steps_differ_nowhere() -> None:
    step = a_step()
    row = compare_step(BATCH, steps(step, step, step), some_bounds(), DEFAULT)

    assert (row.step, row.epoch, row.batch) == (3, 2, 1)
    assert (row.scratch_loss, row.framework_loss, loss_of(row).ratio) == (0.5, 0.5, 0.0)
    assert row.drift == {"weight": 0.0, "bias": 0.0}
    assert {name: one.ratio for name, one in row.local.items()} == {"weight": 0.0, "bias": 0.0}
    assert {name: one.ratio for name, one in row.within.items()} == {
        "forward": 0.0,
        "gradient": 0.0,
        "penalty": 0.0,
        "optimizer": 0.0,
    }
    assert row.complete
    assert not diverges(row, DEFAULT)


ENTRIES: list[tuple[str, Any]] = [("weight", (0, 0)), ("weight", (0, 1)), ("bias", 0)]
STAGE_PARTS = [("gradient", "gradient"), ("penalty", "penalty"), ("delta", "optimizer")]


@pytest.mark.parametrize(("part", "stage"), STAGE_PARTS)
@pytest.mark.parametrize(("tensor", "index"), ENTRIES)
@pytest.mark.parametrize("side", ["scratch", "framework"])
def test_every_entry_of_every_stage_is_compared(
    part: str, stage: str, tensor: str, index: Any, side: str
) -> None:
    step = a_step()
    other = changed(step, part, tensor, index, 100.0)
    pair = (other, step) if side == "scratch" else (step, other)
    row = compare_step(BATCH, steps(step, *pair), some_bounds(), DEFAULT)

    assert [name for name, one in row.within.items() if exceeds(one, LIMIT)] == [stage]
    assert row.within[stage].tensor == tensor
    assert not diverges(row, DEFAULT)


@pytest.mark.parametrize("place", range(4))
def test_every_output_is_compared(place: int) -> None:
    step = a_step()
    outputs = outputs_of(step)[0].copy()
    outputs[place] += 1.0
    row = compare_step(
        BATCH, steps(step, step._replace(outputs=(outputs,)), step), some_bounds(), DEFAULT
    )

    assert row.within["forward"].index == (place,)
    assert row.within["forward"].ratio == pytest.approx(100.0)


def test_every_micro_batch_is_compared() -> None:
    two = a_step()._replace(outputs=(array(1, 2), array(3, 4)))
    bounds = some_bounds()._replace(outputs=(np.ones(2), np.ones(2)))
    for part, place in product(range(2), range(2)):
        outputs = [one.copy() for one in outputs_of(two)]
        outputs[part][place] += 9.0
        other = two._replace(outputs=tuple(outputs))
        assert (
            compare_step(BATCH, steps(two, other, two), bounds, DEFAULT).within["forward"].ratio
            == 9.0
        )
    with pytest.raises(ValueError, match="zip"):
        compare_step(
            BATCH, steps(two, two._replace(outputs=outputs_of(two)[:1]), two), bounds, DEFAULT
        )


@pytest.mark.parametrize(("tensor", "index"), ENTRIES)
def test_every_parameter_is_compared(tensor: str, index: Any) -> None:
    step = a_step()
    other = changed(step, "after", tensor, index, 100.0)
    row = compare_step(BATCH, steps(step, other, step), some_bounds(), DEFAULT)

    assert diverges(row, DEFAULT)
    assert exceeds(row.local[tensor], LIMIT)
    assert row.drift == {"weight": 0.0, "bias": 0.0}
    assert locate(row, other, step, some_bounds(), DEFAULT).stage == "update"


@pytest.mark.parametrize(("tensor", "index"), ENTRIES)
def test_drift_is_that_of_the_own_trajectory(tensor: str, index: Any) -> None:
    step = a_step()
    own = changed(step, "after", tensor, index, 100.0)
    row = compare_step(BATCH, steps(own, step, step), some_bounds(), DEFAULT)

    assert row.drift[tensor] == 100.0 - float(step.after[tensor][index])
    assert not diverges(row, DEFAULT)


@pytest.mark.parametrize("value", [NAN, INF])
def test_drift_does_not_lose_what_is_not_finite(value: float) -> None:
    assert not drift(array(1.0, value), array(1.0, 1.0)) < INF


@pytest.mark.parametrize("value", [NAN, INF, 100.0])
@pytest.mark.parametrize("side", ["scratch", "framework"])
def test_reported_losses_are_compared_at_the_same_parameters(value: float, side: str) -> None:
    step = a_step()
    other = step._replace(loss=value)
    pair = (other, step) if side == "scratch" else (step, other)

    row = compare_step(BATCH, steps(step, *pair), some_bounds(), DEFAULT)
    assert exceeds(loss_of(row), LIMIT)
    own = compare_step(BATCH, steps(other, step, step), some_bounds(), DEFAULT)
    assert loss_of(own).ratio == 0.0


@pytest.mark.parametrize("side", ["scratch", "framework"])
def test_a_loss_that_one_side_does_not_tell_is_not_compared(side: str) -> None:
    step = a_step()
    silent = step._replace(loss=None)
    pair = (silent, step) if side == "scratch" else (step, silent)
    for tolerances in (DEFAULT, Tolerances(rtol=0.1)):
        row = compare_step(BATCH, steps(pair[0], *pair, pair[1]), some_bounds(), tolerances)

        assert row.loss is None
        assert row.judged.keys() == row.local.keys() == {"weight", "bias"}
        assert math.isnan(row.scratch_loss) is (side == "scratch")
        assert math.isnan(row.framework_loss) is (side == "framework")
        assert row.complete
        assert not diverges(row, tolerances)


UNTOLD: list[tuple[str, str]] = [("outputs", "forward"), *STAGE_PARTS]


@pytest.mark.parametrize(("part", "stage"), UNTOLD)
@pytest.mark.parametrize("side", ["scratch", "framework"])
def test_a_stage_that_one_side_does_not_tell_is_left_out(part: str, stage: str, side: str) -> None:
    step, other = a_step(), changed(a_step(), "after", "weight", (0, 1), 50.0)
    missing: dict[str, Any] = {part: None}
    silent = (other._replace(**missing), step), (other, step._replace(**missing))
    pair = silent[0] if side == "scratch" else silent[1]
    row = compare_step(BATCH, steps(step, *pair), some_bounds(), DEFAULT)

    assert list(row.within) == [name for _, name in UNTOLD if name != stage]
    assert locate(row, *pair, some_bounds(), DEFAULT).stage == "update"


def test_a_step_of_which_only_the_parameters_are_told_parts_in_the_update() -> None:
    step = a_step()
    silent = changed(step, "after", "bias", 0, 50.0)._replace(
        outputs=None, loss=None, gradient=None, penalty=None, velocity={}, delta=None
    )
    row = compare_step(BATCH, steps(silent, silent, step), some_bounds(), DEFAULT)
    found = locate(row, silent, step, some_bounds(), DEFAULT)

    assert row.within == {}
    assert (found.stage, found.at.tensor, found.within) == ("update", "bias", found.at)


@pytest.mark.parametrize(("tensor", "index"), ENTRIES)
def test_drift_is_from_torch_alone_and_local_differences_from_torch_beside(
    tensor: str, index: Any
) -> None:
    step = a_step()
    alone = changed(step, "after", tensor, index, 100.0)._replace(loss=7.5)
    local = compare_step(BATCH, steps(step, step, step, alone), some_bounds(), DEFAULT)

    assert local.drift[tensor] == 100.0 - float(step.after[tensor][index])
    assert (local.scratch_loss, local.framework_loss, loss_of(local).ratio) == (0.5, 7.5, 0.0)
    assert not diverges(local, DEFAULT)
    # A tolerance on the drift judges the two that train on their own.
    close = Tolerances(atol=1.0)
    assert diverges(
        compare_step(BATCH, steps(step, step, step, alone), some_bounds(), close), close
    )
    beside = compare_step(BATCH, steps(step, alone, step, step), some_bounds(), close)
    assert not diverges(beside, close)
    assert beside.judged["loss"].ratio == 0.0


def test_a_row_is_judged_only_if_every_parameter_is() -> None:
    for tensor, index in ENTRIES:
        step = changed(a_step(), "after", tensor, index, NAN)
        row = compare_step(BATCH, steps(step, step, step), some_bounds(), DEFAULT)
        assert not row.complete
        assert not diverges(row, DEFAULT)


# --- where a step differs -------------------------------------------------------------------------


@pytest.mark.parametrize(("part", "stage"), STAGE_PARTS)
def test_locate_names_the_first_stage_and_tells_the_same_entry(part: str, stage: str) -> None:
    step = a_step()
    other = changed(step, "after", "weight", (0, 1), 50.0)
    for later, _ in STAGE_PARTS[[one for one, _ in STAGE_PARTS].index(part) :]:
        other = changed(other, later, "weight", (0, 1), 20.0)
        other = changed(other, later, "bias", 0, 30.0)
    row = compare_step(BATCH, steps(step, other, step), some_bounds(), DEFAULT)
    found = locate(row, other, step, some_bounds(), DEFAULT)

    assert (found.step, found.stage) == (3, stage)
    assert (found.at.tensor, found.at.index, found.at.scratch) == ("weight", (0, 1), 50.0)
    # The bias differs further there, but it is the weight that differs most after the update.
    assert (found.within.tensor, found.within.index, found.within.scratch) == (
        "weight",
        (0, 1),
        20.0,
    )


def test_locate_tells_another_entry_where_that_one_alone_parts() -> None:
    step = a_step()
    other = changed(step, "after", "weight", (0, 1), 50.0)
    other = changed(other, "gradient", "bias", 0, 30.0)
    row = compare_step(BATCH, steps(step, other, step), some_bounds(), DEFAULT)
    found = locate(row, other, step, some_bounds(), DEFAULT)

    assert (found.stage, found.within.tensor, found.within.scratch) == ("gradient", "bias", 30.0)


def test_locate_tells_the_first_bit_where_no_stage_is_beyond_rounding() -> None:
    step, exact = a_step(), Tolerances(exact=True)
    # A tenth of a bound in the gradient, and in what follows.
    other = changed(changed(step, "after", "weight", (0, 1), 2.001), "delta", "bias", 0, 3.001)
    other = changed(other, "gradient", "weight", (0, 1), 2.001)
    row = compare_step(BATCH, steps(other, other, step), some_bounds(), exact)
    found = locate(row, other, step, some_bounds(), exact)
    assert (found.stage, found.within.index, found.within.scratch) == ("gradient", (0, 1), 2.001)
    # Where one is, that one: the rounding before it is no news.
    other = changed(other, "penalty", "weight", (0, 1), 20.0)
    row = compare_step(BATCH, steps(other, other, step), some_bounds(), exact)
    assert locate(row, other, step, some_bounds(), exact).stage == "penalty"
    # Where no stage differs by a bit, the update itself does; and rounding has no such first bit.
    alone = changed(step, "after", "weight", (0, 1), 2.001)
    row = compare_step(BATCH, steps(alone, alone, step), some_bounds(), exact)
    assert locate(row, alone, step, some_bounds(), exact).stage == "update"
    far = changed(changed(step, "gradient", "bias", 0, 3.001), "after", "bias", 0, 9.0)
    row = compare_step(BATCH, steps(far, far, step), some_bounds(), DEFAULT)
    assert locate(row, far, step, some_bounds(), DEFAULT).stage == "update"


def test_locate_names_the_outputs_before_all_else() -> None:
    step = a_step()
    other = changed(step, "after", "bias", 0, 50.0)
    other = changed(other, "gradient", "bias", 0, 50.0)
    other = other._replace(outputs=(outputs_of(other)[0] + 1,))
    row = compare_step(BATCH, steps(step, other, step), some_bounds(), DEFAULT)
    found = locate(row, other, step, some_bounds(), DEFAULT)

    assert (found.stage, found.within.tensor) == ("forward", "output")
