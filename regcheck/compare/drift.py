"""Drift: how far two trajectories are apart, what would have allowed it, whether it was amplified.

Each step adds its own rounding to the drift, and passes on the drift that was there, multiplied by
how strongly the step depends on its parameters: drift_t ≤ ‖J_t‖ drift_(t−1) + rounding_t. While
the training contracts, ‖J‖ ≤ 1, the drift stays below the start's and the sum of all steps'
rounding so far. Where it grows beyond that sum, the training itself amplifies what rounding put
in: a learning rate near the stability limit, or chaos. That is no difference of rules, whatever
the drift comes to.

rounding_t is the local difference and one last digit of the largest parameter: from the same
parameters both sides may round alike, and still round otherwise each on its own trajectory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from regcheck.compare.differences import Difference, drifts
from regcheck.compare.steps import Row
from regcheck.numerics.packing import Layout, Packed, common_layout, flat
from regcheck.problem.problem import Array, Parameters, Step
from regcheck.spec.sections.tolerance import Tolerance, Tolerances

AMPLIFIED = 10.0
"""Times the sum of all rounding beyond which drift counts as amplified.

The sum bounds the drift of a contracting training in the Euclidean norm; in the largest entry, of
up to a hundred, it can be √100 more.
"""


class Needed(NamedTuple):
    """The smallest tolerance of each kind that would have passed, of one tensor or of all.

    `rtol` is what is needed beside the spec's atol (0 if it gives none), `atol` beside its rtol;
    the others are what is needed of one where the other is 0. All are inf where no number would
    do. `exact` says whether the bits were the same.
    """

    rounding: float = 0.0
    rtol: float = 0.0
    atol: float = 0.0
    rtol_alone: float = 0.0
    atol_alone: float = 0.0
    exact: bool = True

    def joined(self, other: Needed) -> Needed:
        """Return what passes both."""
        return Needed(
            max(self.rounding, other.rounding),
            max(self.rtol, other.rtol),
            max(self.atol, other.atol),
            max(self.rtol_alone, other.rtol_alone),
            max(self.atol_alone, other.atol_alone),
            self.exact and other.exact,
        )

    def passes(self, rounding: float, rtol: float, atol: float) -> bool:
        """Whether it passes what needs these, each where the others are 0."""
        return (
            not self.exact
            and rounding <= self.rounding
            and rtol <= self.rtol_alone
            and atol <= self.atol_alone
        )


NOTHING_PASSES = Needed(math.inf, math.inf, math.inf, math.inf, math.inf, exact=False)

SLACK = 1 + 4 * float(np.finfo(np.float64).eps)
"""More than the rounding of a quotient and of atol + rtol |b|, so that what is reported passes."""


def needed(tolerance: Tolerance, local: Difference, scratch: Array, framework: Array) -> Needed:
    """Return the smallest tolerances by which one tensor passes one step.

    |a − b| ≤ atol + rtol |b| gives rtol ≥ (|a − b| − atol)/|b| and atol ≥ |a − b| − rtol |b|.
    """
    atol, rtol = tolerance.atol or 0.0, tolerance.rtol or 0.0
    rounding = local.ratio if local.judged else math.inf
    framework = framework.astype(np.float64, copy=False)
    off = np.abs(scratch - framework)
    size = np.abs(framework)
    largest = float(off.max())
    if largest == 0:
        exact = bool((np.signbit(scratch) == np.signbit(framework)).all())
        return Needed(rounding, exact=exact)
    if not math.isfinite(largest):
        return NOTHING_PASSES._replace(rounding=rounding)
    # The slack is on the difference: what is left of it may be much smaller than its rounding.
    share = float(np.where(off > 0, off * SLACK / size, 0.0).max())
    beside_atol, beside_rtol = share, largest
    if atol:
        rest = np.where(off > atol, (off * SLACK - atol) / size, 0.0)
        beside_atol = float(rest.max())
    if rtol:
        allowed = rtol * size
        rest = np.where(off > allowed, off * SLACK - allowed, 0.0)
        beside_rtol = float(rest.max())
    return Needed(rounding, beside_atol, beside_rtol, share, largest, exact=False)


def needs_no_more(before: Needed, scratch: Array, framework: Array) -> bool:
    """Whether a step plainly needs no more than the steps before it."""
    if scratch.size == 1:
        here, there = float(scratch.item()), float(framework.item())
        off, least = abs(here - there), abs(there)
    else:
        off = float(np.abs(scratch - framework).max())
        least = float(np.abs(framework).min())
    return off <= before.atol_alone and off * SLACK <= before.rtol_alone * least


def no_nan(value: float) -> float:
    """Return a number, inf in the place of NaN."""
    return math.inf if math.isnan(value) else value


def last_digit(tensors: Parameters) -> float:
    """Return the last digit of the largest entry."""
    if isinstance(tensors, Packed):  # without a copy of all sizes
        x = tensors.vector
        return float(np.spacing(max(np.maximum.reduce(x), -np.minimum.reduce(x))))
    return max(float(np.spacing(np.abs(x).max())) for x in tensors.values())


def furthest(row: Row) -> float:
    """Return the largest drift of any tensor; NaN where there is one."""
    drifts = row.drift.values()
    return max(drifts) if math.isfinite(sum(drifts)) else max(drifts, key=no_nan)


class Amplification(NamedTuple):
    """Drift beyond what all steps' rounding adds up to: most by `factor`, at `step`."""

    first_step: int
    step: int
    factor: float
    drift: float


class Drift(NamedTuple):
    """How far two trajectories are from each other.

    Attributes:
        largest: the largest difference of any parameter's entry after any step.
        needed: the smallest tolerances with which each tensor, and the loss, would have passed.
        amplification: drift beyond what rounding adds up to; None where there is none.
        first_lost: the first step after which the scratch side's own trajectory alone is not
            finite, although the step itself agrees.
    """

    largest: float
    needed: dict[str, Needed]
    amplification: Amplification | None
    first_lost: int | None


class DriftMeter:
    """Measure the drift of a run: the tolerance that it needs, and whether it is amplified.

    `rounding` is what the start and all steps so far have put in.
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
        before = self.needed.get(name)
        if before is not None and local.judged and local.ratio <= before.rounding:
            plain = not (before.exact or self.tolerances.of(name).on_drift)
            if plain and needs_no_more(before, scratch, framework):
                return
        found = needed(self.tolerances.of(name), local, scratch, framework)
        self.needed[name] = self.needed.get(name, Needed()).joined(found)

    def need_packed(self, layout: Layout, row: Row, own: Step, framework: Step) -> list[str]:
        """Take in what many tensors need, by rounding alone; returns those that are the same.

        Zeros of different sign are the same in value, and not in their bits.
        """
        here, there = flat(own.after), flat(framework.after)

        def shares(part: slice) -> Array:
            off: Array = here[part] - there[part]
            off *= SLACK
            off /= there[part]
            return np.abs(off, out=off)

        # 0/0 needs nothing
        each = zip(framework.after, layout.reduced(shares, np.fmax).tolist(), strict=True)
        same = []
        for name, share in each:
            local, before, largest = row.local[name], self.needed.get(name), row.drift[name]
            rounding = local.ratio if local.judged else math.inf
            if largest == 0 and (before is None or before.exact or rounding > before.rounding):
                same.append(name)
            if largest == 0:
                continue
            if before is not None and before.passes(rounding, share, largest):
                continue
            found = NOTHING_PASSES._replace(rounding=rounding)
            if math.isfinite(largest):
                found = Needed(rounding, share, largest, share, largest, exact=False)
            self.needed[name] = found if before is None else before.joined(found)
        return same

    def need_start(self, local: dict[str, Difference], own: Parameters, other: Parameters) -> None:
        """Take in where the sides start: what that needs, and how far apart it puts them."""
        for name, difference in local.items():
            self.need(name, difference, own[name], other[name])
        self.rounding = max(drifts(own, other).values())

    def measure(self, row: Row, rounding: float) -> None:
        """Take in how far apart the trajectories are, and how far this step alone puts them."""
        drift = furthest(row)
        self.largest = max(self.largest, drift, key=no_nan)
        if row.complete and not math.isfinite(drift):
            self.first_lost = self.first_lost or row.step
        self.rounding += no_nan(rounding)

    def need_step(self, row: Row, own: Step, framework: Step) -> None:
        """Take in what a measured step needs; what cannot be judged needs nothing."""
        names: Iterable[str] = row.local
        layout = common_layout(own.after, framework.after)
        if layout is not None and not self.tolerances.on_drift:
            names = self.need_packed(layout, row, own, framework)
        for name in names:
            self.need(name, row.local[name], own.after[name], framework.after[name])
        if row.loss is not None and row.judged["loss"].judged:
            here, there = np.asarray(own.loss, np.float64), np.asarray(framework.loss, np.float64)
            self.need("loss", row.loss, here, there)
        self.rounding += max(last_digit(own.after), last_digit(framework.after))
        self.amplify(row.step, furthest(row))

    def result(self) -> Drift:
        """Return what the steps so far come to."""
        return Drift(self.largest, self.needed, self.amplification, self.first_lost)

    def amplify(self, step: int, drift: float) -> None:
        """Note drift beyond what rounding adds up to."""
        if not AMPLIFIED * self.rounding < drift < math.inf:
            return
        factor = drift / self.rounding if self.rounding else math.inf
        before = self.amplification
        first = before.first_step if before else step
        if before is None or factor > before.factor:
            self.amplification = Amplification(first, step, factor, drift)
