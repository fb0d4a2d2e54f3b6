"""Drift: how far two trajectories part, what would have allowed it, and whether it was amplified.

Each step adds its own rounding to the drift, and passes on the drift that was there, multiplied by
how strongly the step depends on its parameters: drift_t ≤ ‖J_t‖ drift_(t−1) + local_t. While the
training contracts, ‖J‖ ≤ 1, the drift stays below the sum of all local differences so far. Where
it grows beyond that sum, the training itself amplifies what rounding put in: a learning rate near
the stability limit, or chaos. That is no difference of rules, whatever the drift comes to.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from regcheck.compare import Difference, Row
from regcheck.problem import Array, Step
from regcheck.spec.judging import Tolerance, Tolerances

AMPLIFIED = 10.0
"""Times the sum of all local differences beyond which drift counts as amplified.

The sum bounds the drift of a contracting training in the Euclidean norm; in the largest entry, of
up to a hundred, it can be √100 more.
"""


class Needed(NamedTuple):
    """The smallest tolerance of each kind that would have passed, of one tensor or of all.

    `rtol` is what is needed beside the spec's atol (0 if it gives none), `atol` beside its rtol.
    All are inf where no number would do. `exact` says whether the bits were the same.
    """

    rounding: float = 0.0
    rtol: float = 0.0
    atol: float = 0.0
    exact: bool = True

    def joined(self, other: Needed) -> Needed:
        """Give what passes both."""
        return Needed(
            max(self.rounding, other.rounding),
            max(self.rtol, other.rtol),
            max(self.atol, other.atol),
            self.exact and other.exact,
        )


SLACK = 1 + 4 * float(np.finfo(np.float64).eps)
"""More than the rounding of a quotient and of atol + rtol |b|, so that what is told passes."""


def needed(tolerance: Tolerance, local: Difference, scratch: Array, framework: Array) -> Needed:
    """Give the smallest tolerances by which one tensor passes one step.

    |a − b| ≤ atol + rtol |b| gives rtol ≥ (|a − b| − atol)/|b| and atol ≥ |a − b| − rtol |b|.
    """
    atol, rtol = tolerance.atol or 0.0, tolerance.rtol or 0.0
    with np.errstate(all="ignore"):
        apart = np.abs(np.subtract(scratch, framework, dtype=np.float64))
        size = np.abs(framework)
        largest = float(apart.max())
        if largest == 0:
            exact = bool((np.signbit(scratch) == np.signbit(framework)).all())
            return Needed(at_least_zero(local.ratio), 0.0, 0.0, exact)
        beyond = apart - atol
        share = float(np.where(beyond > 0, beyond / size, 0.0).max()) * SLACK
        rest = float((apart - rtol * size).max()) * SLACK if rtol else largest
    return Needed(at_least_zero(local.ratio), no_nan(share), at_least_zero(no_nan(rest)), False)


def at_least_zero(ratio: float) -> float:
    """Give a ratio; 0 where none was found, or what is left is negative."""
    return ratio if ratio > 0 else 0.0


def no_nan(value: float) -> float:
    """Give a number, inf in the place of NaN."""
    return math.inf if math.isnan(value) else value


class Amplification(NamedTuple):
    """Drift beyond what all steps' rounding adds up to: most by `factor`, at `step`."""

    first_step: int
    step: int
    factor: float
    drift: float


class DriftMeter:
    """Watches the drift of a run: the tolerance that it needs, and whether it is amplified.

    `first_lost` is the first step after which the scratch side's own trajectory alone is not
    finite, although the step itself agrees.
    """

    def __init__(self, tolerances: Tolerances) -> None:
        self.tolerances = tolerances
        self.needed: dict[str, Needed] = {}
        self.largest = 0.0
        self.rounding = 0.0
        self.amplification: Amplification | None = None
        self.first_lost: int | None = None

    def need(self, name: str, local: Difference, scratch: Array, framework: Array) -> None:
        """Take in what one tensor, or the loss, needs."""
        found = needed(self.tolerances.of(name), local, scratch, framework)
        self.needed[name] = self.needed.get(name, Needed()).joined(found)

    def need_step(self, row: Row, own: Step, framework: Step) -> None:
        """Take in what a step needs."""
        for name, local in row.local.items():
            self.need(name, local, own.after[name], framework.after[name])
        if row.loss.judged:
            here, there = np.asarray(own.loss, np.float64), np.asarray(framework.loss, np.float64)
            self.need("loss", row.loss, here, there)

    def measure(self, row: Row, rounding: float) -> None:
        """Take in how far apart the trajectories are, and how far this step alone puts them."""
        drift = max(row.drift.values(), key=no_nan)
        self.largest = max(self.largest, drift, key=no_nan)
        if not row.complete:
            return
        if not math.isfinite(drift):
            self.first_lost = self.first_lost or row.step
            return
        self.rounding += rounding
        if drift <= AMPLIFIED * self.rounding:
            return
        factor = drift / self.rounding if self.rounding else math.inf
        before = self.amplification
        first = before.first_step if before else row.step
        if before is None or factor > before.factor:
            self.amplification = Amplification(first, row.step, factor, drift)
