"""Every stage, tensor, entry and step is looked at: one wrong number is caught where it stands.

Also faults too subtle for a table or a cosine.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from regcheck.checking import check
from regcheck.problem.batches import Batch
from regcheck.problem.problem import Step
from regcheck.trainers.numpy_trainer import NumpyTrainer
from tests.altered import ENTRIES, PLACES, TIMES, DoubledAt, altered, on_side, with_entry
from tests.conftest import told
from tests.faults import Planted
from tests.first_steps import BATCHES, MOMENTUM, TARGETS, Spec, agrees, found, spec_of
from tests.rule import Moment, Pair, Rule

Place = Callable[[Any], None]


# --- one number -----------------------------------------------------------------------------------

QUANTITIES = {
    "gradient": "gradient",
    "penalty": "penalty",
    "optimizer": "delta",
    "update": "after",
}
"""By stage, what a step tells of it."""


def a_little(value: Any) -> Any:
    """Change a number by 1e-9 of its size and 1e-9: some 1e6 u, and nothing that a table shows."""
    return value + 1e-9 * (abs(value) + 1)


def tampering(step: int, tensor: str, index: tuple[int, ...], *quantities: str) -> Any:
    """Make a trainer that tells one entry of some quantities wrong at one step."""

    def change(batch: Batch, told: Step) -> Step:
        if batch.step != step:
            return told
        put: dict[str, Any] = {
            name: with_entry(getattr(told, name), tensor, index, a_little) for name in quantities
        }
        return told._replace(**put)

    return altered(change)


@pytest.mark.sampled(every=6)
@pytest.mark.slow
@pytest.mark.parametrize(("tensor", "index", "step"), PLACES)
@pytest.mark.parametrize("stage", QUANTITIES)
def test_one_number_at_one_step_is_caught_there(
    scratch: Place, stage: str, tensor: str, index: tuple[int, ...], step: int
) -> None:
    # A wrong stage that reaches the parameter: both are caught, at that step, in that entry.
    scratch(tampering(step, tensor, index, *{QUANTITIES[stage], "after"}))
    report = check(spec_of(batches="mini"))
    assert found(report) == (step, stage, tensor)
    first = told(report.first_divergence)
    assert (first.at.index, first.within.tensor, first.within.index) == (index, tensor, index)
    assert report.comparison.first_by_stage == ({} if stage == "update" else {stage: step})
    for row in report.comparison.trace:
        for name, at in row.tensors.items():
            assert (at.ratio > 8) == ((row.step, name) == (step, tensor))


@pytest.mark.parametrize(("tensor", "index", "step"), PLACES)
@pytest.mark.parametrize("stage", ["gradient", "penalty", "optimizer"])
def test_one_number_told_wrong_shows_at_its_stage_alone(
    scratch: Place, stage: str, tensor: str, index: tuple[int, ...], step: int
) -> None:
    # The parameters are right, so that it is no divergence; but it is told.
    scratch(tampering(step, tensor, index, QUANTITIES[stage]))
    report = check(spec_of(batches="mini"))
    assert report.verdict == "equivalent"
    assert report.comparison.first_by_stage == {stage: step}


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("row", [0, 3])
@pytest.mark.parametrize("step", [1, 3, 5])
def test_one_output_of_one_micro_batch_shows_at_its_stage_alone(
    scratch: Place, step: int, row: int, part: int
) -> None:
    def change(batch: Batch, told: Step) -> Step:
        if batch.step == step:
            assert told.outputs is not None
            told.outputs[part][row] += 1e-9
        return told

    scratch(altered(change))
    # Steps 1, 3 and 5 have two micro-batches of four rows.
    report = check(spec_of(batches="mini") | {"accumulate": 2, "epochs": 3})
    assert report.verdict == "equivalent"
    assert report.comparison.first_by_stage == {"forward": step}


@pytest.mark.parametrize("side", ["scratch", "framework"])
@pytest.mark.parametrize("step", TIMES)
def test_loss_told_wrong_at_one_step_is_caught_in_the_loss_alone(
    place: dict[str, Place], step: int, side: str
) -> None:
    def change(batch: Batch, told: Step) -> Step:
        assert told.loss is not None
        wrong = batch.step == step
        return told._replace(loss=told.loss * (1 + 1e-9)) if wrong else told  # some 1e6 u

    place[side](on_side(side, change))
    report = check(spec_of(batches="mini"))
    assert report.verdict == "diverged"
    assert report.first_divergence is None
    assert report.comparison.first_by_stage == {}
    assert report.first_loss_divergence is not None
    assert report.first_loss_divergence.step == step
    assert [row.step for row in report.comparison.trace if row.loss_ratio > 8] == [step]


@pytest.mark.parametrize(("tensor", "index"), ENTRIES, ids=str)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_start_is_compared_entry_by_entry(
    scratch: Place, dtype: str, tensor: str, index: tuple[int, ...]
) -> None:
    class Starts(NumpyTrainer):
        def start(self) -> Any:
            state = super().start()
            state.parameters[tensor][index] *= 1 + 1e-5  # 1e-5 is 20 u and more of float32
            return state

    scratch(Starts)
    report = check(spec_of(dtype=dtype))
    assert found(report) == (1, "initial", tensor)
    assert told(report.first_divergence).at.index == index
    assert report.comparison.first_by_stage == {}  # each step from the same parameters is right


# --- subtle ones ----------------------------------------------------------------------------------


def one_entry(moment: Moment) -> Pair:
    """Make one weight's gradient 1e-10 of itself too large."""
    return moment.gradient[0] * np.array([1, 1, 1 + 1e-10]), moment.gradient[1]


@pytest.mark.sampled(every=4)
@pytest.mark.slow
@pytest.mark.parametrize("model", TARGETS)
@pytest.mark.parametrize("batches", BATCHES)
def test_one_entry_of_one_gradient_off_by_1e10th_is_caught(
    scratch: Place, model: str, batches: str
) -> None:
    scratch(partial(Planted, wrong=one_entry))
    report = check(spec_of(model, batches=batches))
    assert found(report) == (1, "gradient", "weight")
    assert told(report.first_divergence).at.index == (0, 2)


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize("model", TARGETS)
@pytest.mark.parametrize("batches", BATCHES)
def test_scale_to_which_a_cosine_is_blind_is_caught(
    scratch: Place, model: str, batches: str
) -> None:
    scratch(partial(Planted, rule=Rule(gradient=1 + 1e-9)))
    report = check(spec_of(model, batches=batches))
    assert found(report)[:2] == (1, "gradient")
    assert report.comparison.sample is not None
    gradients = [
        np.concatenate([g.ravel() for g in (side.gradient or {}).values()])
        for side in (report.comparison.sample.scratch, report.comparison.sample.framework)
    ]
    cosine = np.vdot(*gradients) / math.prod(float(np.linalg.norm(g)) for g in gradients)
    assert cosine == pytest.approx(1, abs=4e-16)  # two roundings: nothing to see


@pytest.mark.slow
def test_errors_whose_mean_is_zero_are_caught(scratch: Place) -> None:
    def change(batch: Batch, told: Step) -> Step:
        moved = {"weight": told.after["weight"] + [1e-8, -1e-8, 0.0]}
        return told._replace(after={**told.after, **moved})

    scratch(altered(change))
    report = check(spec_of())
    assert found(report) == (1, "update", "weight")
    assert report.comparison.sample is not None
    means = [
        side.after["weight"].mean()
        for side in (report.comparison.sample.scratch, report.comparison.sample.framework)
    ]
    assert means[0] == pytest.approx(means[1], rel=1e-15)  # 1e-8 would be 1e-7 of it


def steps_apart(report: Any) -> list[int]:
    """Return the steps in which a parameter differs by more than rounding."""
    return [
        row.step
        for row in report.comparison.trace
        if max(t.ratio for t in row.tensors.values()) > 8
    ]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("settings", [{}, MOMENTUM], ids=["plain", "momentum"])
def test_bug_at_one_step_of_forty_is_caught_there(
    scratch: Place, dtype: str, settings: Spec
) -> None:
    scratch(partial(DoubledAt, when=lambda batch: batch.step == 17))
    report = check(spec_of(dtype=dtype) | settings | {"epochs": 40})
    assert found(report)[:2] == (17, "penalty")
    assert agrees(report, until=17)
    # A velocity remembers what it was fed; plain gradient descent does not.
    assert steps_apart(report)[: 2 if settings else None] == ([17, 18] if settings else [17])


@pytest.mark.slow
def test_bug_in_the_last_batch_of_each_epoch_is_caught_in_the_first_one(scratch: Place) -> None:
    scratch(partial(DoubledAt, when=lambda batch: batch.batch == 3))  # of 3
    report = check(spec_of(batches="mini"))
    assert found(report)[:2] == (3, "penalty")
    assert steps_apart(report) == [3, 6]
