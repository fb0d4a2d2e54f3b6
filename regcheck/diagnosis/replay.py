"""Causes as hypotheses: put into torch's rule, and replayed along the steps that a run recorded.

A set of causes explains a run where torch's rule with them makes every step of the scratch side,
from the parameters that it had before, to rounding. The data gradient of each step is torch's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from regcheck.compare.history import History, Record
from regcheck.diagnosis.records import Explanation
from regcheck.numerics.least_squares import Fit
from regcheck.numerics.losses import total_weight
from regcheck.numerics.packing import finite
from regcheck.problem.batches import Batch
from regcheck.problem.problem import Array, Problem
from regcheck.rules.causes.cause import Change
from regcheck.rules.settings import Settings
from regcheck.trainers.numpy_state import ForwardBackward, Update
from regcheck.trainers.numpy_trainer import NumpyTrainer

SHARE = 0.01
"""The share of a rule's longest step that wider bounds may allow it to differ by."""


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

    @property
    def stands(self) -> bool:
        """Whether the scratch side changes no parameter in any recorded step."""
        return bool((self.history.all("scratch") == self.history.all("before")).all())

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
            state = state._replace(parameters=self.history.split(record.before))
            update = rule.step(state, record.batch, there)
            state = update.state
            yield record, update

    def steps(self, rule: NumpyTrainer) -> Iterator[tuple[Record, Array]]:
        """Yield each record, its bounds widened for a rule, and the parameters after its step."""
        longest, longest_torch = np.zeros((2, self.history.entries))
        steepness = rule.settings.rule.steepness(rule.problem.faults)
        for record, update in self.updates(rule):
            if update is None:  # which explains no step, be it finite or not
                yield record, np.where(np.isfinite(record.scratch), math.nan, 0.0)
                continue
            after = self.history.flat(update.step.after)
            longer: Array | float = 1.0
            if not rule.settings.rule.linear:
                longest = np.fmax(longest, np.abs(after - record.before))
                longest_torch = np.fmax(longest_torch, np.abs(record.framework - record.before))
                longer = (longest / longest_torch) ** steepness
            yield self.widened(rule.problem, record, after, longer), after

    def widened(
        self, rule: Problem, record: Record, after: Array, longer: Array | float = 1.0
    ) -> Record:
        """Widen a step's bounds by what a rule rounds more than torch does.

        All of torch's bound but the rounding of w itself, 2u |w|, goes with the gradient. The
        limit of many bounds is for what no rounding exceeds: where the gradient is many times
        larger, a quarter of it is ample. Larger steps add their own rounding.

        Where a step is no linear function of the gradients, their rounding is a share of it: of
        an entry's longest step so far, as one that is nearly 0 by cancellation has no less. And a
        rule may make its own rounding larger, in all entries.

        Args:
            rule: what makes the step.
            record: the step.
            after: the parameters after the rule's step.
            longer: how many times longer the rule's longest steps are than torch's, by entry; or
                how many times more they round for that.
        """
        larger = np.fmax(gain(rule, record.batch), longer) / 4 - 1
        moved = np.abs(after - record.before)
        wider = record.bound + 2 * self.u * moved
        # What swallows the rule's own steps would prove nothing.
        most = SHARE * moved.max() / self.limits
        own = rule.scratch_settings.rule.growth(rule.scratch_settings.options, rule.faults)
        if own:
            wider += np.minimum(own * self.u * moved.max(), most)
        if np.any(larger > 0):
            larger = np.fmax(larger, 0)
            rest = record.bound - 2 * self.u * np.abs(record.before)
            more = larger * np.maximum(rest, 0)
            wider += np.minimum(more, most) if np.ndim(longer) else more
        if not finite(wider):
            wider = np.where(np.isfinite(wider), wider, record.bound)
        return record._replace(bound=wider)

    def scaled_pass(self, problem: Problem, record: Record) -> ForwardBackward | None:
        """Return what a rule makes of torch's gradient; None where it must see the rows itself."""
        scale = pass_scale(problem, record.batch)
        return None if scale is None else self.pass_with(record, scale * record.gradient)

    def pass_with(self, record: Record, gradient: Array) -> ForwardBackward:
        """Return a pass over a step's rows of which only the gradient is known."""
        return ForwardBackward((), (), math.nan, self.history.split(gradient), record.skipped)

    def ratios(self, record: Record, after: Array) -> Array:
        """Return each entry's difference from the scratch side, in limits; 0 where not judged."""
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

    def unwidened(self, change: Change) -> float:
        """Return the largest ratio that a change leaves in bounds that are not widened for it."""
        steps = zip(self.history.records(), self.steps(self.by(change)), strict=True)
        return max((float(self.ratios(own, after).max()) for own, (_, after) in steps), default=0.0)

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

    def fit(self, change: Change, key: str) -> Fit | None:
        """Fit the factor under a key, on top of a change; None: none explains the steps, or any."""
        from regcheck.diagnosis.fits.fitting import fitted_factor  # which needs this class

        return fitted_factor(self, change, key)

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


def gain(rule: Problem, batch: Batch) -> float:
    """Return how many times larger a rule makes a step's share of the gradient, at most.

    An optimizer that divides by the gradient's size makes no more of a larger one: its rounding
    is a share of the step, which the lr alone scales. What else makes it longer, as a root that is
    missing, shows in the steps themselves.
    """
    faults, options = rule.faults, rule.scratch_settings
    found = abs(faults.lr_factor)
    if (faults.lr_shift or faults.lr_schedule) and batch.lr:
        other = rule.faulty_schedule.lr_at(batch.step + faults.lr_shift)
        found *= max(1.0, other / batch.lr)
    if faults.zeroing == "never":
        found *= batch.step
    if options.rule.linear:
        found *= abs(rule.convention.loss_factor * faults.gradient_factor)
        if rule.convention.loss_reduction == "sum":
            found *= max(weights_of(rule, batch))
        if faults.accumulation in {"sum", "last"}:
            found *= len(batch.micro_batches)
        elif faults.accumulation == "over-rows":
            sizes = weights_of(rule, batch)
            found *= max(sizes) * len(sizes) / sum(sizes)
        if divides_by_rows(rule):
            found *= max(mean_weights(rule, batch))
        found *= gain_of_velocity(rule, options)
    return found if math.isfinite(found) else 1.0


def gain_of_velocity(rule: Problem, options: Settings) -> float:
    """Return how many times larger a rule makes the gradients' share in the velocity.

    That is 1 − τ of all but the first, or 1 − μ of each; and those so far add up to 1/(1 − μ).
    """
    torch, found = rule.settings, 1.0
    share = 1 - torch.dampening if 0 < torch.dampening < 1 else 1.0
    if rule.convention.momentum_form == "dampened" and options.momentum:
        found = (1 - options.momentum) / share
    elif options.dampening != torch.dampening:
        found = max(1.0, abs(1 - options.dampening) / share)
    if torch.momentum < options.momentum < 1:
        found *= (1 - torch.momentum) / (1 - options.momentum)
    return found


def pass_scale(rule: Problem, batch: Batch) -> float | None:
    """Return what a rule's pass over the rows makes of torch's gradient; None where it varies.

    The faults on the gradient itself come later in the step.
    """
    convention, faults = rule.convention, rule.faults
    looks_again = convention.update_order != "simultaneous"
    if looks_again or faults.target != "row" or faults.bce_slope != "floored":
        return None
    if faults.accumulation == "last" and len(batch.micro_batches) > 1:
        return None
    scale = convention.loss_factor
    together = faults.accumulation == "over-rows"
    summed = convention.loss_reduction == "sum" or faults.batch_divisor == "batch-size"
    if summed or together:
        sizes = weights_of(rule, batch)
        if len(set(sizes)) > 1:
            return None
        scale *= sizes[0] if summed else 1 / len(sizes)
        if faults.batch_divisor == "batch-size":
            scale /= rule.schedule.nominal_rows
    if faults.accumulation in {"sum", "over-rows"}:
        scale *= len(batch.micro_batches)
    if divides_by_rows(rule):
        means = mean_weights(rule, batch)
        if len(set(means)) > 1:
            return None
        scale *= means[0]
    return scale


def divides_by_rows(rule: Problem) -> bool:
    """Whether a rule's mean is over rows that torch's weights by their classes."""
    return rule.faults.batch_divisor == "unweighted" and rule.convention.loss_reduction == "mean"


def mean_weights(rule: Problem, batch: Batch) -> list[float]:
    """Return the mean class weight of each micro-batch's rows."""
    sizes = [len(rule.y[index]) for index in batch.micro_batches]
    return [weight / n for weight, n in zip(weights_of(rule, batch), sizes, strict=True)]


def weights_of(rule: Problem, batch: Batch) -> list[float]:
    """Return what torch's mean divides by in each micro-batch: its rows, or their weights."""
    return [total_weight(rule.y[index], rule.loss_options) for index in batch.micro_batches]
