"""How a bound goes through clipping."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from regcheck.numerics.bounds.rounding import RoundingModel
from regcheck.numerics.norms import norm
from tests.rounded_steps import (
    TINY32,
    U32,
    U64,
    Array,
    close,
    first_step,
    problem_of,
)


def clipped(limit: float, g: Sequence[float], dg: Array, dtype: str = "float64") -> Array:
    """Carry the bound of a gradient of three entries through clipping."""
    problem = problem_of(clip_norm=limit, dtype=dtype)
    _, step, _ = first_step(problem)
    gradient = {"weight": np.array([g[:2]]), "bias": np.array(g[2:])}
    return RoundingModel(problem).clipped(dg, step._replace(gradient=gradient))


@pytest.mark.parametrize(("limit", "factor"), [(20.0, 1.0), (5.0, 5 / math.sqrt(104))])
def test_clipping_scales_the_bound_and_adds_that_of_the_factor(limit: float, factor: float) -> None:
    g, dg, size = np.array([-6.0, -8.0, -2.0]), np.array([3.0, 4.0, 12.0]) * 1e-14, math.sqrt(104)
    relative = (norm(dg) + U64 * (math.sqrt(3) + 2) * size) / size + 3 * U64
    wobble = 0.0 if limit > size else factor * relative * np.abs(g)

    assert clipped(limit, g.tolist(), dg) == close(factor * dg + wobble, rel=1e-5)


def test_clipping_of_a_gradient_as_small_as_what_is_added_to_its_norm() -> None:
    # f = C/(‖g‖ + 1e-6) with ‖g‖ = 2e-6, of C = 1.5e-6, is 1/2 and moves by f (δ‖g‖/3e-6 + 3u).
    g, dg = np.array([0.0, 1.2e-6, -1.6e-6]), np.array([3.0, 4.0, 12.0])
    wobble = 0.5 * ((13 + (math.sqrt(3) + 2) * 2e-6) / 3e-6 + 3)

    expected = (0.5 * dg + wobble * np.abs(g)) * U64
    assert clipped(1.5e-6, g.tolist(), dg * U64) == close(expected)


def test_a_clipping_factor_is_at_most_one() -> None:
    # ‖g‖ = 2 is known to ±13, so that it may be clipped to 8; as it stands, f = 1.
    g, dg = np.array([0.0, 1.2, -1.6]), np.array([3.0, 4.0, 12.0])

    assert clipped(8.0, g.tolist(), dg) == close(dg + 13 / (2 + 1e-6) * np.abs(g), rel=1e-12)


@pytest.mark.parametrize(("off", "moves"), [(-1e-5, True), (0.0, True), (1e-5, False)])
def test_clipping_near_its_threshold(off: float, moves: bool) -> None:
    # f < 1 from ‖g‖ = C − 1e-6 on; within rounding of that, one side may clip and the other not.
    dg = np.full(3, 1e-14)
    found = clipped(math.sqrt(104) + 1e-6 + off, [-6.0, -8.0, -2.0], dg)

    assert np.any(found > dg * 1.5) == moves


def test_a_clipping_factor_below_the_normal_numbers_has_an_absolute_error() -> None:
    # f = 1e-20/1.7e18 is below float32's 1e-38, and may be off by all of its digits.
    assert np.all(clipped(1e-20, [1e18] * 3, np.zeros(3), "float32") >= 1e18 * TINY32)


@pytest.mark.parametrize(("share", "nothing"), [(0.99, False), (1.01, True), (1e12, True)])
def test_a_norm_that_may_overflow_may_clip_to_nothing(share: float, nothing: bool) -> None:
    # From an eighth of the range on, as for all sums.
    each = math.sqrt(share * (2 - 2.0**-23) * 2.0**127 / 8 / 3)
    found = clipped(1.0, [each] * 3, np.zeros(3), "float32")

    # f |g| = 1/√3 in all, or its rounding: δf = f (u (√3 + 2) + 3u) and the error of a denormal f.
    rounding = (math.sqrt(3) + 5) * U32 / math.sqrt(3) + each * TINY32
    assert found == close(np.full(3, 1 / math.sqrt(3) if nothing else rounding))
