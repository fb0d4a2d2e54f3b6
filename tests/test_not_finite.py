"""What is no number, and what is not there, on one side or on both: never a pass."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from regcheck.checking import check
from regcheck.problem.batches import Batch
from regcheck.problem.problem import Parameters, Step
from regcheck.testing import assert_equivalent
from regcheck.trainers.framework.torch_trainer import TorchTrainer
from tests.altered import PLACES, Change, DoubledAt, altered, altered_torch, on_side, with_entry
from tests.first_steps import MOMENTUM, Spec, agrees, found, spec_of

Place = Callable[[Any], None]
Places = dict[str, Place]


def poison(
    step: int = 5, tensor: str = "weight", index: tuple[int, ...] = (0, 1), value: float = math.nan
) -> Change:
    """Make one entry not finite after one step."""

    def change(batch: Batch, told: Step) -> Step:
        if batch.step != step:
            return told
        return told._replace(after=with_entry(told.after, tensor, index, value))

    return change


class PoisonedTorch(TorchTrainer):
    """Has one weight NaN after step 5, and so on."""

    def step(self, batch: Batch) -> Step:
        done = super().step(batch)
        if batch.step == 5:
            self.views.now()["weight"][0, 1] = math.nan
        return done._replace(after=self.parameters())


@pytest.mark.sampled(every=9)
@pytest.mark.parametrize("side", ["scratch", "framework"])
@pytest.mark.parametrize("settings", [{}, MOMENTUM], ids=["plain", "momentum"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("tensor", "index", "step"), PLACES)
def test_one_entry_not_finite_on_one_side_is_caught_at_its_step(
    place: Places,
    side: str,
    settings: Spec,
    tensor: str,
    index: tuple[int, ...],
    step: int,
    value: float,
) -> None:
    place[side](on_side(side, poison(step, tensor, index, value)))
    report = check(spec_of() | settings)
    assert found(report) == (step, "update", tensor)
    assert report.first_divergence is not None
    assert report.first_divergence.at.index == index
    assert report.first_divergence.at.ratio == math.inf


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("part", ["gradient", "delta"])
@pytest.mark.parametrize("tensor", ["weight", "bias"])
def test_bound_that_is_no_number_passes_nothing(
    framework: Place, value: float, part: str, tensor: str
) -> None:
    def change(batch: Batch, told: Step) -> Step:
        if batch.step != 3:
            return told
        put: dict[str, Any] = {part: with_entry(getattr(told, part), tensor, (0, ...), value)}
        return told._replace(**put)

    framework(altered_torch(change))
    report = check(spec_of() | {"clip_norm": 1.0})
    assert (report.verdict, report.comparison.compared) == ("inconclusive", 2)


def test_not_finite_on_both_sides_from_one_step_is_inconclusive_from_there(
    scratch: Place, framework: Place
) -> None:
    scratch(altered(poison()))
    framework(PoisonedTorch)
    report = check(spec_of())
    assert (report.verdict, report.comparison.first_unjudged) == ("inconclusive", 5)
    assert report.comparison.compared == 4
    assert agrees(report, until=5)
    with pytest.raises(AssertionError, match="INCONCLUSIVE"):
        assert_equivalent(spec_of())


@pytest.mark.parametrize("first", [5, 1], ids=["other entry", "divergence before"])
def test_not_finite_on_both_sides_hides_nothing_else(
    scratch: Place, framework: Place, first: int
) -> None:
    scratch(altered(poison(), partial(DoubledAt, when=lambda batch: batch.step >= first)))
    framework(PoisonedTorch)
    report = check(spec_of())
    assert found(report)[0] == first
    assert report.comparison.first_unjudged == 5


def test_loss_not_finite_on_one_side_is_caught_and_on_both_inconclusive(
    scratch: Place, framework: Place
) -> None:
    def change(batch: Batch, told: Step) -> Step:
        return told._replace(loss=math.nan) if batch.step == 3 else told

    scratch(altered(change))
    report = check(spec_of())
    assert report.verdict == "diverged"
    assert report.first_loss_divergence is not None
    assert report.first_loss_divergence.step == 3
    framework(altered_torch(change))
    report = check(spec_of())
    assert (report.verdict, report.comparison.losses.first_unjudged) == ("inconclusive", 3)


MISSHAPEN: dict[str, Callable[[Parameters], Parameters]] = {
    "without bias": lambda tensors: {"weight": tensors["weight"]},
    "with another": lambda tensors: {**tensors, "other": tensors["bias"]},
    "flattened": lambda tensors: {**tensors, "weight": tensors["weight"][0]},
    "longer": lambda tensors: {**tensors, "bias": np.repeat(tensors["bias"], 2)},
    "emptied": lambda tensors: {**tensors, "bias": tensors["bias"][:0]},
}


@pytest.mark.parametrize("shape", MISSHAPEN)
@pytest.mark.parametrize("quantity", ["after", "gradient", "penalty", "delta"])
@pytest.mark.parametrize("side", ["scratch", "framework"])
def test_tensor_that_is_missing_or_misshapen_never_passes(
    place: Places, side: str, quantity: str, shape: str
) -> None:
    def change(batch: Batch, told: Step) -> Step:
        put: dict[str, Any] = {quantity: MISSHAPEN[shape](getattr(told, quantity))}
        return told._replace(**put)

    place[side](on_side(side, change))
    with pytest.raises((ValueError, KeyError)):
        check(spec_of())


def test_rows_that_one_side_drops_never_pass(framework: Place) -> None:
    class DropsTheLastRow(TorchTrainer):
        def __init__(self, problem: Any, module: Any = None) -> None:
            super().__init__(problem, module)
            self.X, self.y = self.X[:-1], self.y[:-1]

    framework(DropsTheLastRow)
    with pytest.raises(ValueError, match="shape"):
        check(spec_of())
