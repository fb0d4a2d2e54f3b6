"""Causes as hypotheses: put into torch's rule, and replayed along the steps that a run recorded.

A set of causes explains a run where torch's rule with them makes every step of the scratch side,
from the parameters that it had before, to rounding. The data gradient of each step is torch's own.

Some causes leave a factor open. A step is an affine function of a factor c on the penalty, on the
gradient or on the lr (all but decay after the update), so with the steps P₁ and P₂ at two factors

    P(c) = P₁ + (c − c₁)/(c₂ − c₁) (P₂ − P₁)

and weighted least squares gives c.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from regcheck.compare.history import History, Record
from regcheck.diagnosis.records import Explanation
from regcheck.numerics.least_squares import Fit, fit_all, rounded
from regcheck.numerics.losses import total_weight
from regcheck.problem.batches import Batch
from regcheck.problem.problem import Array, Problem
from regcheck.rules.cause import Change
from regcheck.trainers.numpy_trainer import ForwardBackward, NumpyTrainer, Update

FEW = 4
"""Informative steps after which a fit that does not hold is given up."""

COARSE = 1e3
"""Limits that a first fit may leave: from far off, rounding is multiplied by the way to c."""


class Replay:
    """Replays rules along a run's recorded steps.

    Ratios are in limits: above 1, rounding cannot explain a difference.

    Args:
        history: the steps.
        torch: torch's rule, by the settings that the framework side really has.
        limits: the rounding bounds that each tensor may differ by.
        sees_rows: whether NumPy can pass over the rows itself, as with one-layer models.
        first: the step of the first divergence.
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
        self.first = first
        self.history, self.torch, self.sees_rows = history, torch, sees_rows
        dtypes = (torch.problem.scratch_dtype, torch.problem.framework_dtype)
        self.u = max(float(np.finfo(dtype).eps) for dtype in dtypes) / 2
        self.limits = np.concatenate(
            [np.full(math.prod(shape), limits[name]) for name, shape in history.shapes.items()]
        )

    def by(self, change: Change) -> NumpyTrainer:
        """Return torch's rule with a change in it; the empty change is its own."""
        return self.torch.by(self.torch.problem.with_change(change))

    def updates(
        self,
        rule: NumpyTrainer,
        records: Iterable[Record] | None = None,
        known: Callable[[Record], ForwardBackward | None] | None = None,
    ) -> Iterator[tuple[Record, Update | None]]:
        """Yield each recorded step and a rule's update from its parameters, by the rule's momentum.

        Args:
            rule: its update is None where it would have to see rows that cannot be seen.
            records: the steps, where rows or parameters are not the recorded ones.
            known: the pass over a step's rows, or None for the rule's own; by default what it
                makes of torch's gradient.
        """
        state = rule.start()
        for record in self.history.records() if records is None else records:
            there = known(record) if known else self.scaled_pass(rule.problem, record)
            if there is None and not self.sees_rows:
                yield record, None
                continue
            before = self.history.split(record.before)
            update = rule.step(state._replace(parameters=before), record.batch, there)
            state = update.state
            yield record, update

    def steps(self, rule: NumpyTrainer) -> Iterator[tuple[Record, Array]]:
        """Yield each record, its bounds widened for a rule, and the parameters after its step."""
        for record, update in self.updates(rule):
            if update is None:
                yield record, np.full_like(record.scratch, math.nan)
            else:
                after = self.history.flat(update.step.after)
                yield self.widened(rule.problem, record, after), after

    def widened(self, rule: Problem, record: Record, after: Array) -> Record:
        """Widen a step's bounds by what a rule rounds more than torch does.

        All of torch's bound but the rounding of w itself, 2u |w|, goes with the gradient. The
        limit of many bounds is for what no rounding exceeds: where the gradient is many times
        larger, a quarter of it is ample. Larger steps add their own rounding. Where a step is no
        linear function of the gradients, it is the entry's step that is so many times larger.
        """
        with np.errstate(all="ignore"):
            moved = np.abs(after - record.before)
            wider = record.bound + 2 * self.u * moved
            times: Array | float = gain(rule, record.batch)
            if not rule.sgd.rule.linear:  # a larger gradient is divided by its own size
                times = moved / np.abs(record.framework - record.before)
            larger = np.fmax(np.asarray(times) / 4 - 1, 0)
            if larger.any():
                rest = record.bound - 2 * self.u * np.abs(record.before)
                wider += larger * np.maximum(rest, 0)
            known = np.isfinite(wider)
        return record._replace(bound=np.where(known, wider, record.bound))

    def scaled_pass(self, problem: Problem, record: Record) -> ForwardBackward | None:
        """Return what a rule makes of torch's gradient; None where it must see the rows itself."""
        scale = pass_scale(problem, record.batch)
        return None if scale is None else self.pass_with(record, scale * record.gradient)

    def pass_with(self, record: Record, gradient: Array) -> ForwardBackward:
        """Return a pass over a step's rows of which only the gradient is known."""
        return ForwardBackward((), (), math.nan, self.history.split(gradient), record.skipped)

    def ratios(self, record: Record, after: Array) -> Array:
        """Return each entry's difference from the scratch side, in limits; 0 where not judged."""
        with np.errstate(all="ignore"):
            ratios: Array = np.abs(after - record.scratch) / (record.bound * self.limits)
            lost = np.isnan(ratios)
            if lost.any():
                # Where the range of a dtype is left, or on both sides, nothing is known.
                one_sided = np.isfinite(record.scratch) != np.isfinite(after)
                ratios = np.where(lost, np.where(one_sided, math.inf, 0.0), ratios)
        return ratios

    def largest(self, steps: Iterable[tuple[Record, Array]]) -> float:
        """Return the largest ratio of some steps; inf from the first above 1, which ends them."""
        largest = 0.0
        for record, after in steps:
            largest = max(largest, float(self.ratios(record, after).max()))
            if largest > 1:
                return math.inf
        return largest

    def residual(self, change: Change) -> float:
        """Return the largest ratio that a change leaves, or inf."""
        return self.largest(self.steps(self.by(change)))

    def explanation(
        self,
        causes: tuple[str, ...],
        change: Change,
        fits: Mapping[str, Fit] | None = None,
        note: str = "",
    ) -> Explanation | None:
        """Return a set of causes as an explanation, if its change makes every step."""
        residual = self.residual(change)
        return Explanation(causes, change, residual, fits or {}, note) if residual <= 1 else None

    def framework_diverges(self) -> bool:
        """Whether the framework side's own steps are others than the scratch side's."""
        return self.largest((one, one.framework) for one in self.history.records()) > 1

    def first_shown(self, change: Change) -> int | None:
        """Return the first recorded step in which a change differs from torch beyond rounding."""
        for record, after in self.steps(self.by(change)):
            beside_torch = record._replace(scratch=record.framework)
            if float(self.ratios(beside_torch, after).max()) > 1:
                return record.batch.step
        return None

    def fit(self, change: Change, key: str) -> Fit | None:
        """Fit the factor under a key, on top of a change; None: none explains the steps, or any."""
        clipped = self.torch.problem.clip_norm or self.torch.problem.clip_value
        if clipped and key == "gradient_factor":
            return None if change else self.fit_clipped()
        fit, factor = None, 1.0
        for coarse, most in ((COARSE, FEW), (COARSE, 64), (1.0, None)):
            fit = self.fit_near(change, key, factor, coarse=coarse, most=most)
            if fit is None:
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
                near = self.fit_near({}, "gradient_factor", fit.factor, share=1 - 2**-12)
                if near is None:
                    break
                fit = near
            # A factor that is not known says nothing, nor one whose wider bounds allow torch's own
            # steps too: 1e21 g is clipped like any large one, and its rounding exceeds every step.
            known = fit.deviation < 0.1 * abs(fit.factor)
            change = {"gradient_factor": fit.factor}
            if known and self.residual(change) <= 1:
                steps = self.steps(self.by(change))
                if self.largest((record, record.framework) for record, _ in steps) > 1:
                    return fit
        return None

    def fit_near(
        self,
        change: Change,
        key: str,
        factor: float,
        *,
        coarse: float = math.inf,
        most: int | None = None,
        share: float = 0.5,
    ) -> Fit | None:
        """Fit a factor from the steps at a first guess and at a share of it (or at 0 and 1).

        None where more than `coarse` limits are left, from at most so many informative steps.
        """
        other = factor * share if factor else 1.0
        here, there = (self.steps(self.by({**change, key: value})) for value in (factor, other))
        shown, informative, slopes, rests = False, 0, [], []
        for (record, one), (_, two) in zip(here, there, strict=True):
            with np.errstate(all="ignore"):
                bound = record.bound * self.limits
                slope = (two - one) / (other - factor) / bound
                rest = (record.scratch - one) / bound
            if not (np.isfinite(slope).all() and np.isfinite(rest).all()):
                return None
            slopes.append(slope)
            rests.append(rest)
            shown = shown or bool(slope.any())
            if not shown and np.abs(rest).max() > coarse:
                return None
            informative += bool(np.abs(slope).max() > 1e-3)
            if informative == most:
                break
        slope, rest = np.array(slopes), np.array(rests)
        by, spread = fit_all(slope, rest)
        left = np.abs(rest - by * slope).max() / (1 + abs(by / other))
        fits = math.isfinite(by) and left <= coarse
        return rounded(factor + by, spread, self.u) if fits else None


def gain(rule: Problem, batch: Batch) -> float:
    """Return how many times larger a rule makes the gradient than torch does, at most."""
    faults, options = rule.faults, rule.sgd
    found = abs(rule.convention.loss_factor * faults.gradient_factor * faults.lr_factor)
    if rule.convention.loss_reduction == "sum":
        found *= max(weights_of(rule, batch))
    if faults.accumulation == "sum":
        found *= len(batch.micro_batches)
    if faults.zeroing == "never":
        found *= batch.step
    if faults.lr_shift and batch.lr:
        shifted = rule.schedule.lr_at(batch.step + faults.lr_shift)
        found *= max(1.0, shifted / batch.lr)
    dampened = rule.convention.momentum_form == "dampened" and options.momentum
    if dampened:
        found *= 1 - options.momentum
    # Torch's share of all gradients but the first is 1 − its dampening.
    if (dampened or faults.momentum == "ignored") and 0 < options.dampening < 1:
        found /= 1 - options.dampening
    return found if math.isfinite(found) else 1.0


def pass_scale(rule: Problem, batch: Batch) -> float | None:
    """Return what a rule's pass over the rows makes of torch's gradient; None where it varies.

    The faults on the gradient itself come later in the step.
    """
    convention, faults = rule.convention, rule.faults
    looks_again = convention.update_order != "simultaneous"
    if looks_again or faults.target != "row" or faults.bce_slope != "floored":
        return None
    scale = convention.loss_factor
    if convention.loss_reduction == "sum" or faults.batch_divisor == "batch-size":
        sizes = weights_of(rule, batch)
        if len(set(sizes)) > 1:
            return None
        scale *= sizes[0]
        if faults.batch_divisor == "batch-size":
            scale /= rule.schedule.batch_size
    if faults.accumulation == "sum":
        scale *= len(batch.micro_batches)
    return scale


def weights_of(rule: Problem, batch: Batch) -> list[float]:
    """Return what torch's mean divides by in each micro-batch: its rows, or their weights."""
    return [total_weight(rule.y[index], rule.loss_options) for index in batch.micro_batches]
