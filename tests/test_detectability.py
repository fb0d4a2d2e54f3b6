"""What an equivalent run could have told, worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from regcheck.compare.detectability import ROUNDING_ALONE, SHARE, Power, PowerMeter, swallowed_text
from regcheck.numerics.bounds.rounding import Bounds
from regcheck.problem.batches import Batch
from regcheck.problem.problem import Step
from regcheck.trainers.lockstep import Steps

Tensors = dict[str, list[float]]

FIRST = Batch(1, 1, 1, 0.1, 4, (slice(0, 4),))


def both(step: Step) -> Steps:
    return Steps(step, step, step, step, None)


def bounds_of(after: Tensors) -> Bounds:
    entries = {name: np.array(x) for name, x in after.items()}
    return Bounds((), 0.0, entries, entries, entries, entries)


def take(
    meter: PowerMeter,
    before: Tensors,
    after: Tensors,
    gradient: Tensors,
    bound: Tensors,
    noise: Tensors | None = None,
) -> None:
    """Take in a step of both sides."""
    given = [{name: np.array(x) for name, x in one.items()} for one in (before, after, gradient)]
    step = Step(given[0], None, None, given[2], None, {}, None, given[1])
    own = {name: np.array(x) for name, x in (noise or {}).items()}
    meter.take(FIRST, both(step), bounds_of(bound), own)


def taken(meter: PowerMeter, bound: list[float], noise: float = 0.0) -> Power:
    """Take in a step of w = (1, 2, 3), which moves by (0.1, 0.5, 0): what could have shown."""
    step = {"w": [1.0, 2.0, 3.0]}, {"w": [1.1, 2.5, 3.0]}, {"w": [1.0, 5.0, 0.0]}
    take(meter, *step, {"w": bound}, {"w": [noise] * 3})
    return meter.result()


def test_the_share_is_the_smallest_of_all_entries_that_move_and_of_all_steps() -> None:
    meter = PowerMeter({"w": 8.0})
    power = taken(meter, [0.05, 0.05, 1e-12])
    assert power.shares == power.swallowed == pytest.approx({"w": 8 * 0.05 / 0.5})

    power = taken(meter, [0.1, 0.1, 0.1])
    assert power.shares == pytest.approx({"w": 0.8})

    power = taken(meter, [1e-5, 0.1, 0.1])
    assert power.shares == pytest.approx({"w": 8 * 1e-5 / 0.1})
    assert (power.swallowed, power.reason()) == ({}, "")


@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        (SHARE * 0.999, ""),
        (SHARE * 1.001, "% of the update of w"),
        (np.inf, "the update of w itself"),
    ],
)
def test_a_tensor_is_judged_from_a_hundredth_on(limit: float, reason: str) -> None:
    found = taken(PowerMeter({"w": limit}), [9.0, 0.5, 0.5]).reason()

    assert reason in found
    assert bool(found) is bool(reason)


def test_a_bound_that_is_no_number_shows_nothing() -> None:
    power = taken(PowerMeter({"w": 8.0}), [np.nan, np.nan, 0.0])

    assert "as large as the update of w itself" in power.reason()


def test_a_tensor_that_does_not_move_is_not_asked() -> None:
    meter = PowerMeter({"w": 8.0, "frozen": 8.0})
    before, after = {"w": [1.0], "frozen": [1.0]}, {"w": [2.0], "frozen": [1.0]}
    take(meter, before, after, {"w": [1.0], "frozen": [0.0]}, {"w": [1e-9], "frozen": [1.0]})
    power = meter.result()

    assert power.shares == pytest.approx({"w": 8e-9})
    assert power.reason() == ""


@pytest.mark.parametrize(("times", "counts"), [(1.1, False), (0.9, True)])
def test_a_tensor_whose_gradient_is_rounding_alone_does_not_count_beside_others(
    times: float, counts: bool
) -> None:
    meter = PowerMeter({"w": 8.0, "b": 8.0})
    step = {"w": [1.0], "b": [0.0]}, {"w": [2.0], "b": [1.0]}, {"w": [1.0], "b": [1e-16]}
    noise = {"w": [0.0], "b": [times * ROUNDING_ALONE * 1e-16]}
    take(meter, *step, {"w": [1e-9], "b": [1.0]}, noise)
    power = meter.result()

    assert power.swallowed == {"b": 8.0}
    assert ("b" in power.clear) is ("the update of b itself" in power.reason()) is counts
    assert bool(power.reason()) is counts


def test_but_where_all_are_swallowed_that_is_the_reason() -> None:
    power = taken(PowerMeter({"w": 8.0}), [0.05, 0.05, 0.05], noise=100.0)

    assert power.clear == set()
    assert "80 %" in power.reason()


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.04, "as large as 4 % of the update of w; an lr error of 4 % would pass"),
        (0.00042, "as large as 0.00042 of the update of w; an lr error of 0.00042 would pass"),
        (0.999, "as large as 1e+02 % of the update of w"),
        (1.0, "as large as the update of w itself, so that any lr or gradient would pass"),
        (np.nan, "as large as the update of w itself"),
    ],
)
def test_the_reason_names_the_share(share: float, text: str) -> None:
    assert text in swallowed_text("w", share)


def test_a_fault_that_would_not_have_shown_is_a_reason() -> None:
    power = taken(PowerMeter({"w": 1e-6}), [0.05, 0.05, 0.05])
    hidden = ("a doubled weight decay", "a missing weight decay")

    assert power._replace(hidden=hidden).reason() == (
        "a doubled weight decay and a missing weight decay would have passed too"
    )
