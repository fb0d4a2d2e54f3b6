"""What only bounds that an explanation itself widens allow, and what holds without."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from regcheck.checking import check
from regcheck.diagnosis.fits.fitting import guesses, with_factor
from regcheck.diagnosis.listing import Found
from regcheck.diagnosis.records import Explanation
from regcheck.diagnosis.search import nearest
from regcheck.numerics.least_squares import Fit
from regcheck.rules.causes.cause import Change
from tests.by_hand import BASE, ROWS, Spec, training


class Wide:
    """Leaves, by the factor on the lr, so many limits in bounds that are not widened."""

    def __init__(
        self, left: Mapping[float, float], refused: frozenset[float] = frozenset()
    ) -> None:
        self.left, self.refused = left, refused

    def unwidened(self, change: Change) -> float:
        return self.left[float(str(change["lr_factor"]))]

    def explanation(
        self, causes: tuple[str, ...], change: Change, fits: Mapping[str, Fit]
    ) -> Explanation | None:
        refused = change["lr_factor"] in self.refused
        return None if refused else Explanation(causes, change, 0.5, fits)


class Anything(Wide):
    """Leaves nothing by any factor."""

    def __init__(self) -> None:
        super().__init__({})

    def unwidened(self, change: Change) -> float:
        return 0.0

    def explanation(
        self, causes: tuple[str, ...], change: Change, fits: Mapping[str, Fit]
    ) -> Explanation | None:
        return Explanation(causes, change, 0.5, fits)


def explanations(*factors: float) -> Found:
    return tuple(Explanation((f"by {one}",), {"lr_factor": one}, 0.5) for one in factors)


@pytest.mark.parametrize(
    ("left", "kept"),
    [
        # What leaves 8 times as much as the least, and no less than 8 limits, is still beside it.
        ({1.0: 0.1, 2.0: 8.0, 3.0: 8.1}, [1.0, 2.0]),
        ({1.0: 20.0, 2.0: 160.0, 3.0: 161.0}, [1.0, 2.0]),
        ({1.0: 1e9}, [1.0]),
        ({}, []),
    ],
)
def test_what_only_wider_bounds_allow_is_left_out(
    left: dict[float, float], kept: list[float]
) -> None:
    stub: Any = Wide(left)
    assert nearest(stub, explanations(*left)) == explanations(*kept)


FIT = Fit(1.23456, 0.001)
"""Within 8 deviations of 1.23, within one of 1.234 and 1.235; 1.2 is farther."""


@pytest.mark.parametrize(
    ("left", "refused", "told"),
    [
        ({1.23: 0.9, 1.235: 0.1, 1.23456: 0.1}, set(), 1.23),
        ({1.23: 1.1, 1.235: 0.9, 1.23456: 0.1}, set(), 1.235),
        ({1.23: 5.0, 1.235: 1.1, 1.23456: 0.1}, set(), 1.23456),
        # Where all need wider bounds, the plainest.
        ({1.23: 5.0, 1.235: 4.0, 1.23456: 3.0}, set(), 1.23),
        ({1.23: 5.0, 1.235: 4.0, 1.23456: 3.0}, {1.23}, 1.235),
        ({1.23: 0.1, 1.235: 0.1, 1.23456: 0.1}, {1.23, 1.235, 1.23456}, None),
    ],
)
def test_plainest_factor_that_needs_no_wider_bounds_is_told(
    left: dict[float, float], refused: set[float], told: float | None
) -> None:
    cause, stub = "learning-rate-scaled", Wide(left, frozenset(refused))
    replay: Any = stub
    found = with_factor(replay, (cause,), {}, cause, FIT, training({}))

    assert (found and found.fits[cause].factor) == told


@pytest.mark.parametrize(
    ("cause", "told"), [("learning-rate-scaled", 0.1235), ("penalty-scaled", 0.123)]
)
def test_factor_that_makes_shorter_steps_is_to_be_as_much_nearer(cause: str, told: float) -> None:
    # What is rounded in torch's own steps by the lr that matches is as much less.
    replay: Any = Anything()
    found = with_factor(replay, (cause,), {}, cause, Fit(0.123456, 0.0001), training({}))

    assert found
    assert found.fits[cause].factor == told


@pytest.mark.parametrize("alone", [True, False])
def test_only_a_factor_on_a_penalty_is_sought_below_zero(alone: bool) -> None:
    # 1 + ν lr t has no power γ where it is negative, as ASGD's lr would make it.
    for key in ("gradient_factor", "lr_factor"):
        assert all(start.least == 0 for start, _ in guesses(key, alone))
    found = list(guesses("penalty_factor", alone))
    assert any(start.least < 0 for start, _ in found)
    assert any(start.start < 0 for start, _ in found) is alone


@pytest.mark.exhaustive
@pytest.mark.parametrize("factor", [0.02, 0.3, 7.0, -0.5])
def test_factor_on_a_coupled_penalty_that_is_nearly_alone_is_named(factor: float) -> None:
    # All rows are saturated: c λ w/(c λ |w| + ε) is nearly its sign, whatever c is.
    spec: Spec = BASE | {
        "data": {"X": np.full((ROWS, 1), 4.0).tolist(), "y": [1.0] * ROWS},
        "model": "logistic",
        "init": {"weight": [9.0], "bias": [2.0]},
        "optimizer": {"name": "adam", "eps": 1e-6},
        "lr": 1e-3,
        "weight_decay": 1e-3,
        "epochs": 8,
        "convention": {"penalty_factor": factor},
    }
    report = check(spec)

    # Nothing but ε is beside it, so that another one would make the same steps.
    assert report.diagnosis is not None
    told = {one.causes[0]: one for one in report.diagnosis.explanations}
    assert told.keys() <= {"penalty-scaled", "option-differs"}
    assert told["penalty-scaled"].fits["penalty-scaled"].is_near(factor)
