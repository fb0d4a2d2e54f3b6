"""Causes as hypotheses: put into torch's rule, and replayed along the steps that a run recorded.

A set of causes explains a run where torch's rule with them makes every step of the scratch side,
from the parameters that it had before, to rounding. The data gradient of each step is torch's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from regcheck.compare.history import History, Record
from regcheck.diagnosis.pass_scale import gain, pass_scale
from regcheck.diagnosis.records import Explanation
from regcheck.numerics.least_squares import Fit
from regcheck.numerics.packing import finite
from regcheck.problem.problem import Array, Problem
from regcheck.rules.causes.cause import Change
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
