"""Drift: how far two trajectories part, what would have allowed it, and whether it was amplified.

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
from typing import NamedTuple

import numpy as np

from regcheck.compare import Difference, Row
from regcheck.compare import drift as apart
from regcheck.packing import flat, largest_in_each, starts, worth_packing
from regcheck.problem import Array, Parameters, Step
from regcheck.spec.judging import Tolerance, Tolerances

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
        """Give what passes both."""
        return Needed(
            max(self.rounding, other.rounding),
            max(self.rtol, other.rtol),
            max(self.atol, other.atol),
            max(self.rtol_alone, other.rtol_alone),
            max(self.atol_alone, other.atol_alone),
            self.exact and other.exact,
        )


NOTHING_PASSES = Needed(math.inf, math.inf, math.inf, math.inf, math.inf, exact=False)

SLACK = 1 + 4 * float(np.finfo(np.float64).eps)
"""More than the rounding of a quotient and of atol + rtol |b|, so that what is told passes."""


def needed(tolerance: Tolerance, local: Difference, scratch: Array, framework: Array) -> Needed:
    """Give the smallest tolerances by which one tensor passes one step.

    |a − b| ≤ atol + rtol |b| gives rtol ≥ (|a − b| − atol)/|b| and atol ≥ |a − b| − rtol |b|.
    """
    atol, rtol = tolerance.atol or 0.0, tolerance.rtol or 0.0
    rounding = local.ratio if local.judged else math.inf
    framework = framework.astype(np.float64, copy=False)
    with np.errstate(all="ignore"):
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
    """Return whether a step is seen at a glance to need nothing that none before it has needed."""
    if scratch.size == 1:
        here, there = float(scratch.item()), float(framework.item())
        off, least = abs(here - there), abs(there)
    else:
        off = float(np.abs(scratch - framework).max())
        least = float(np.abs(framework).min())
    return off <= before.atol_alone and off * SLACK <= before.rtol_alone * least


def no_nan(value: float) -> float:
    """Give a number, inf in the place of NaN."""
    return math.inf if math.isnan(value) else value


def last_digit(scratch: Array, framework: Array) -> float:
    """Give the last digit of the largest entry, on the side where it is coarser."""
    return max(float(np.spacing(np.abs(side).max())) for side in (scratch, framework))


def coarsest(own: Parameters, framework: Parameters) -> float:
    """Return the last digit of the largest entry of any tensor."""
    if not worth_packing(framework):
        return max(last_digit(own[name], w) for name, w in framework.items())
    dtypes = {x.dtype for side in (own, framework) for x in side.values()}
    # The largest entry has the largest last digit, in each dtype.
    digits = []
    for dtype in dtypes:
        some = [x for side in (own, framework) for x in side.values() if x.dtype == dtype]
        peak = np.abs(np.concatenate([x.ravel() for x in some])).max()
        digits.append(float(np.spacing(peak)))
    return max(digits)


def furthest(row: Row) -> float:
    """Give the largest drift of any tensor; NaN where there is one."""
    return max(row.drift.values(), key=no_nan)


class Amplification(NamedTuple):
    """Drift beyond what all steps' rounding adds up to: most by `factor`, at `step`."""

    first_step: int
    step: int
    factor: float
    drift: float


class DriftMeter:
    """Watches the drift of a run: the tolerance that it needs, and whether it is amplified.

    `rounding` is what the start and all steps so far have put in. `first_lost` is the first step
    after which the scratch side's own trajectory alone is not finite, although the step itself
    agrees.
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

    def need_packed(self, row: Row, own: Step, framework: Step) -> dict[str, Difference]:
        """Take in what many tensors need in one pass; returns those that must be looked at.

        Those are the ones that need more than any step before, or are the same in value.
        """
        theirs = framework.after
        with np.errstate(all="ignore"):
            size = flat(theirs)
            off = np.abs(flat({name: own.after[name] for name in theirs}) - size)
            shares = np.where(off > 0, off * SLACK / np.abs(size), 0.0)
        begins = starts(theirs)
        each = zip(
            theirs, largest_in_each(off, begins), largest_in_each(shares, begins), strict=True
        )
        rest = {}
        for name, largest, share in each:
            local, before = row.local[name], self.needed.get(name)
            if (
                before is None
                or not 0 < largest <= before.atol_alone
                or not share <= before.rtol_alone
                or not local.ratio <= before.rounding
                or not local.judged
                or before.exact
            ):
                rest[name] = local
        return rest

    def need_start(self, local: dict[str, Difference], own: Parameters, other: Parameters) -> None:
        """Take in where the sides start: what that needs, and how far apart it puts them."""
        for name, difference in local.items():
            self.need(name, difference, own[name], other[name])
        self.rounding = max(apart(own[name], other[name]) for name in local)

    def measure(self, row: Row, rounding: float) -> None:
        """Take in how far apart the trajectories are, and how far this step alone puts them."""
        drift = furthest(row)
        self.largest = max(self.largest, drift, key=no_nan)
        if row.complete and not math.isfinite(drift):
            self.first_lost = self.first_lost or row.step
        self.rounding += no_nan(rounding)

    def need_step(self, row: Row, own: Step, framework: Step) -> None:
        """Take in what a measured step needs; what cannot be judged needs nothing."""
        packed = worth_packing(framework.after) and not self.tolerances.on_drift
        rest = self.need_packed(row, own, framework) if packed else row.local
        for name, local in rest.items():
            self.need(name, local, own.after[name], framework.after[name])
        if row.loss is not None and row.judged["loss"].judged:
            here, there = np.asarray(own.loss, np.float64), np.asarray(framework.loss, np.float64)
            self.need("loss", row.loss, here, there)
        self.rounding += coarsest(own.after, framework.after)
        self.amplify(row.step, furthest(row))

    def amplify(self, step: int, drift: float) -> None:
        """Note drift beyond what rounding adds up to."""
        if not AMPLIFIED * self.rounding < drift < math.inf:
            return
        factor = drift / self.rounding if self.rounding else math.inf
        before = self.amplification
        first = before.first_step if before else step
        if before is None or factor > before.factor:
            self.amplification = Amplification(first, step, factor, drift)
