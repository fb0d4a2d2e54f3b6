"""Causes as hypotheses: put into torch's rule, and replayed along the steps that a run recorded.

A set of causes explains a run where torch's rule with them makes every step of the scratch side,
from the parameters that it had before, to rounding. The data gradient of each step is torch's own.

Some causes leave a factor open. A step is an affine function of a factor c on the penalty, on the
gradient or on the lr (all but decay after the update), so with the steps P₁ and P₂ at two factors

    P(c) = P₁ + (c − c₁)/(c₂ − c₁) (P₂ − P₁)

and least squares, each entry weighted by 1/bound, gives c; its deviation is 1/√Σ (∂P/∂c / bound)²,
and a few units in its own last place.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Literal, NamedTuple

import numpy as np

from regcheck.compare.history import History, Record
from regcheck.problem.batches import Batch
from regcheck.problem.problem import Array, Problem
from regcheck.rules.cause import Change, put_in
from regcheck.rules.convention import Convention, Faults
from regcheck.trainers.numpy_trainer import ForwardBackward, NumpyTrainer

FIRST_LOOK = 4
"""Informative steps after which a fit that does not hold is given up."""

COARSE = 1e3
"""Limits that a first look allows: from far off, rounding is multiplied by the way to c."""


DIVISORS = frozenset({"loss_reduction", "batch_divisor"})
"""Keys that each say what a batch's sum is divided by."""


SLACK = 8.0
"""Deviations within which a value cannot be told from a fitted factor."""

ROUNDED = 4.0
"""Units u in the last place of a factor that are lost to its own computation, on either side.

However many steps tell a factor, a user's lr·c is rounded once for all of them, and its n or λ too:
a few u |c|, which do not average out as the entries' rounding does.
"""


def deviation_of(factor: float, weight: float, u: float) -> float:
    """Give √(1/W + (4 u c)²), of a factor c that is fitted with a weight W = Σ (∂P/∂c / bound)²."""
    return math.hypot(1 / math.sqrt(weight), ROUNDED * u * factor)


class Fit(NamedTuple):
    """A fitted factor, and its deviation: what one rounding bound makes of it.

    A value cannot be told from it within `SLACK` deviations.
    """

    factor: float
    deviation: float

    def is_near(self, value: float) -> bool:
        """Say whether a value cannot be told from the fitted factor."""
        return abs(self.factor - value) <= SLACK * self.deviation

    def plain(self, among: Iterable[float] = ()) -> Fit:
        """Give the plainest number that it cannot be told from: one of some, or the shortest."""
        shortest = (float(f"{self.factor:.{digits}g}") for digits in range(1, 17))
        near = (value for value in chain(among, shortest) if self.is_near(value))
        return self._replace(factor=next(near, self.factor))


Numbers = Literal["weight_decay", "lr", "gradient"]


class ByEntry(NamedTuple):
    """Numbers that some entries have of their own.

    Attributes:
        what: the weight_decay, or a factor on torch's lr, or one on its gradient.
        values: of each entry, torch's own among them: (entries,).
    """

    what: Numbers
    values: Array


@dataclass(frozen=True)
class Explanation:
    """A set of causes that makes every recorded step, to `residual` rounding bounds.

    `fits` holds the factor of those causes that have an open one; `note` says what a title leaves
    open otherwise. `weight_decay` holds the decay of each tensor, where they are fitted each, and
    `by_entry` the numbers of each entry.
    """

    causes: tuple[str, ...]
    change: Change
    residual: float
    fits: Mapping[str, Fit] = field(default_factory=dict)
    note: str = ""
    weight_decay: Mapping[str, float] | None = None
    by_entry: ByEntry | None = None


class Replay:
    """Replays rules along a run's recorded steps.

    Ratios are in limits: above 1, rounding cannot explain a difference. `limits` are the bounds
    that each tensor may differ by.
    """

    def __init__(
        self,
        history: History,
        torch: NumpyTrainer,
        limits: Mapping[str, float],
        *,
        sees_rows: bool,
        first: int = 1,
    ) -> None:
        """Take the recorded steps and torch's rule in NumPy.

        Args:
            history: the steps.
            torch: torch's rule, by the settings that the framework side really has.
            limits: of each tensor, in rounding bounds.
            sees_rows: whether NumPy can pass over the rows itself, as with one-layer models.
            first: the step of the first divergence.
        """
        self.first = first
        self.history, self.torch, self.sees_rows = history, torch, sees_rows
        dtypes = (torch.problem.scratch_dtype, torch.problem.framework_dtype)
        self.u = max(float(np.finfo(dtype).eps) for dtype in dtypes) / 2
        self.limits = np.concatenate(
            [np.full(math.prod(history.shapes[name]), limits[name]) for name in history.shapes]
        )

    def by(self, change: Change) -> NumpyTrainer:
        """Give torch's rule with a change in it."""
        problem = self.torch.problem
        convention, faults = put_in(change, problem.convention, problem.faults)
        return self.torch.by(replace(problem, convention=convention, faults=faults))

    def steps(self, trainer: NumpyTrainer) -> Iterator[tuple[Record, Array]]:
        """Take each recorded step by a rule; gives the record and the parameters after it."""
        state = trainer.start()
        for record in self.history.records():
            before = self.history.split(record.before)
            seen = self.seen(trainer.problem, record)
            if seen is None and not self.sees_rows:
                yield record, np.full_like(record.scratch, math.nan)
                continue
            update = trainer.step(state._replace(parameters=before), record.batch, seen)
            state = update.state
            after = self.history.flat(update.step.after)
            yield self.widened(trainer.problem, record, after), after

    def widened(self, rule: Problem, record: Record, after: Array) -> Record:
        """Widen a step's bounds by what a rule rounds more than torch does.

        All of torch's bound but the rounding of w itself, 2u |w|, goes with the gradient. The
        limit of many bounds is for what no rounding exceeds: where the gradient is many times
        larger, a quarter of it is ample. Larger steps add their own rounding.
        """
        larger = max(0.0, gain(rule, record.batch) / 4 - 1)
        with np.errstate(all="ignore"):
            wider = record.bound + 2 * self.u * np.abs(after - record.before)
            if larger:
                rest = record.bound - 2 * self.u * np.abs(record.before)
                wider += larger * np.maximum(rest, 0)
            known = np.isfinite(wider)
        return record._replace(bound=np.where(known, wider, record.bound))

    def seen(self, problem: Problem, record: Record) -> ForwardBackward | None:
        """Give what a rule makes of torch's gradient; None where it must see the rows itself."""
        scale = pass_scale(problem.convention, problem.faults, record.batch, problem)
        if scale is None:
            return None
        return self.seen_as(self.history, scale * record.gradient)

    @staticmethod
    def seen_as(history: History, gradient: Array) -> ForwardBackward:
        """Give a pass over rows of which only the gradient is known."""
        return ForwardBackward((), (), math.nan, history.split(gradient))

    def ratios(self, record: Record, after: Array) -> Array:
        """Give each entry's difference from the scratch side, in limits; 0 where not judged."""
        with np.errstate(all="ignore"):
            ratios: Array = np.abs(after - record.scratch) / (record.bound * self.limits)
            lost = np.isnan(ratios)
            if lost.any():
                # Where the range of a dtype is left, or on both sides, nothing is known.
                alone = np.isfinite(record.scratch) != np.isfinite(after)
                ratios = np.where(lost, np.where(alone, math.inf, 0.0), ratios)
        return ratios

    def residual(self, change: Change) -> float:
        """Give the largest difference that a change leaves, in limits; inf from the first above 1.

        The empty change is torch's own rule.
        """
        return self.residual_of(self.by(change))

    def residual_of(self, trainer: NumpyTrainer) -> float:
        """Give the largest difference that a rule leaves, in limits; inf from the first above 1."""
        largest = 0.0
        for record, after in self.steps(trainer):
            largest = max(largest, float(self.ratios(record, after).max()))
            if largest > 1:
                return math.inf
        return largest

    def parted(self) -> bool:
        """Say whether the two sides part beyond rounding in any step."""
        return any(
            float(self.ratios(record, record.framework).max()) > 1
            for record in self.history.records()
        )

    def first_shown(self, change: Change) -> int | None:
        """Give the first recorded step in which a change differs from torch beyond rounding."""
        for record, after in self.steps(self.by(change)):
            apart = record._replace(scratch=record.framework)
            if float(self.ratios(apart, after).max()) > 1:
                return record.batch.step
        return None

    def fit(self, change: Change, key: str) -> Fit | None:
        """Fit the factor that stands under a key of the rule, on top of a change.

        None where no factor explains the steps, or any would.
        """
        clipped = self.torch.problem.clip_norm or self.torch.problem.clip_value
        if clipped and key == "gradient_factor":
            return None if change else self.fit_clipped()
        factor = 1.0
        for coarse, most in ((COARSE, FIRST_LOOK), (COARSE, 64), (1.0, 10**9)):
            fit = self.fit_from(change, key, factor, coarse, most)
            if fit is None or not math.isfinite(fit.factor):
                return None
            factor = fit.factor
        return fit

    def fit_clipped(self) -> Fit | None:
        """Fit a factor on a gradient that is clipped, where a step is no affine function of it.

        Newton's method on the steps that are not clipped, from several first guesses.
        """
        for guess in (1.0, 1e-3, 1e3):
            fit = Fit(guess, math.inf)
            for _ in range(6):
                near = self.fit_from({}, "gradient_factor", fit.factor, math.inf, 10**9, 1 - 2**-12)
                if near is None or not math.isfinite(near.factor):
                    break
                fit = near
            # A factor that is not known says nothing: bounds widen with it, and swallow all.
            fitted = fit.deviation < 0.1 * abs(fit.factor)
            change = {"gradient_factor": fit.factor}
            if fitted and self.residual(change) <= 1 and not self.swallowed(change):
                return fit
        return None

    def swallowed(self, change: Change) -> bool:
        """Return whether a change's wider bounds allow torch's own steps too: it explains nothing.

        A gradient times 1e21 is clipped like any large one, and its rounding exceeds every step.
        """
        return all(
            float(self.ratios(record, record.framework).max()) <= 1
            for record, _ in self.steps(self.by(change))
        )

    def fit_from(
        self,
        change: Change,
        key: str,
        factor: float,
        coarse: float,
        most: int,
        share: float = 0.5,
    ) -> Fit | None:
        """Fit a factor from the steps at a first guess and at a share of it (or at 0 and 1)."""
        other = factor * share if factor else 1.0
        here, there = self.by({**change, key: factor}), self.by({**change, key: other})
        moment = weight = 0.0
        seen, parts = 0, []
        for (record, one), (_, two) in zip(self.steps(here), self.steps(there), strict=True):
            with np.errstate(all="ignore"):
                bound = record.bound * self.limits
                slope = (two - one) / (other - factor) / bound
                rest = (record.scratch - one) / bound
            if not (np.isfinite(slope).all() and np.isfinite(rest).all()):
                return None
            moment += float(slope @ rest)
            weight += float(slope @ slope)
            parts.append((slope, rest))
            seen += bool(np.abs(slope).max() > 1e-3)
            if weight == 0 and np.abs(rest).max() > coarse:
                return None
            if seen >= most:
                break
        if weight == 0:
            return None
        change_by = moment / weight
        for slope, rest in parts:
            if np.abs(rest - change_by * slope).max() > coarse * (1 + abs(change_by / other)):
                return None
        found = factor + change_by
        return Fit(found, deviation_of(found, weight, self.u))


def gain(rule: Problem, batch: Batch) -> float:
    """Give how many times larger a rule makes the gradient than torch does, at most."""
    faults, options = rule.faults, rule.optimizer
    found = abs(rule.convention.loss_factor * faults.gradient_factor * faults.lr_factor)
    if rule.convention.loss_reduction == "sum":
        found *= max(len_of(index, rule) for index in batch.micro_batches)
    if faults.accumulation == "sum":
        found *= len(batch.micro_batches)
    if faults.zeroing == "never":
        found *= batch.step
    if faults.lr_shift and batch.lr:
        shifted = rule.schedule.lr_at(batch.step + faults.lr_shift)
        found *= max(1.0, shifted / batch.lr)
    if rule.convention.momentum_form == "dampened" and options.momentum:
        found *= 1 - options.momentum
    elif faults.momentum != "ignored":
        return found if math.isfinite(found) else 1.0
    if 0 < options.dampening < 1:  # torch's share of all gradients but the first
        found /= 1 - options.dampening
    return found if math.isfinite(found) else 1.0


def pass_scale(
    convention: Convention, faults: Faults, batch: Batch, problem: Problem
) -> float | None:
    """Give what a rule's pass over the rows multiplies torch's mean gradient by; None if it varies.

    The faults on the gradient itself come later in the step, and are not in it.
    """
    if convention.update_order != "simultaneous" or faults.target != "row":
        return None  # it must look at the rows again
    if faults.bce_slope != "floored":
        return None
    sizes = {len_of(index, problem) for index in batch.micro_batches}
    scale = convention.loss_factor
    if convention.loss_reduction == "sum" or faults.batch_divisor == "batch-size":
        if len(sizes) > 1:
            return None
        scale *= sizes.pop()
        if faults.batch_divisor == "batch-size":
            scale /= problem.schedule.batch_size
    if faults.accumulation == "sum":
        scale *= len(batch.micro_batches)
    return scale


def len_of(index: object, problem: Problem) -> int:
    """Give the number of rows that an index chooses."""
    if isinstance(index, slice):
        return len(range(*index.indices(len(problem.y))))
    return len(index)  # type: ignore[arg-type]


def merged(changes: Iterable[Change]) -> Change | None:
    """Put several changes together; None where two set the same key, or both set the divisor."""
    together: dict[str, object] = {}
    for change in changes:
        if not together.keys().isdisjoint(change):
            return None
        together |= change
    return None if together.keys() >= DIVISORS else together
