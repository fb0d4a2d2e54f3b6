"""Sets of causes that no factor brings near a run's first steps are told by few replays."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from regcheck.diagnosis.fits import newton
from regcheck.diagnosis.fits.newton import TOO_FAR, Open, misses

SLOPES = np.array([[10.0, 0.0], [20.0, 0.0]])
"""What a factor multiplies in two steps of two entries: the second it does not move."""

OFF = 2 * TOO_FAR


def missed(slopes: Any, scratch: Any) -> tuple[bool, int]:
    """Look for c with c slope + (0, 5) = scratch; also gives the replays that it took."""
    replays = []

    def by_problem(at: Sequence[float]) -> Any:
        replays.append(at)
        return at[0] * np.asarray(slopes) + np.array([0.0, 5.0])

    moves = SimpleNamespace(
        scratch=np.asarray(scratch),
        limits=np.ones((2, 2)),
        replay=SimpleNamespace(u=2.0**-53),
        by_problem=by_problem,
    )
    rule: Any = list
    with patch.object(newton, "Moves", lambda *_, **__: moves):
        return misses(SimpleNamespace(), rule, Open(1.0)), len(replays)  # type: ignore[arg-type]


def test_factor_that_makes_the_steps_does_not_miss_them() -> None:
    assert missed(SLOPES, 3 * SLOPES + [0, 5]) == (False, 4)


def test_entry_that_the_factor_does_not_move_must_agree_already() -> None:
    assert missed(SLOPES, 3 * SLOPES + [0, 5 + OFF]) == (True, 2)
    assert not missed(SLOPES, 3 * SLOPES + [0, 5 + TOO_FAR / 2])[0]


@pytest.mark.parametrize("far", [True, False])
def test_steps_that_no_factor_brings_together_are_missed(far: bool) -> None:
    off = 2 * OFF if far else TOO_FAR / 2

    assert missed(np.full((2, 2), 100.0), [[off, 5 - off], [off, 5 - off]])[0] is far


def test_steps_that_do_not_tell_the_factor_miss_nothing() -> None:
    assert missed(np.full((2, 2), 0.1), [[OFF, 5], [OFF, 5]]) == (False, 2)


def test_steps_that_the_factor_does_not_move_must_agree_already() -> None:
    assert missed(np.zeros((2, 2)), [[OFF, 5], [OFF, 5]]) == (True, 2)
    assert missed(np.zeros((2, 2)), [[TOO_FAR / 2, 5], [0, 5]]) == (False, 2)
