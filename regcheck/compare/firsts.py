"""What a run keeps of its steps: where each thing is first so. Each step makes the next record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from regcheck.compare.differences import Difference
from regcheck.compare.steps import Divergence, Row, diverges, in_limits, locate
from regcheck.numerics.losses import saturated
from regcheck.numerics.rounding import Bounds
from regcheck.problem.problem import Array, Parameters, Step
from regcheck.spec.tolerance import Tolerances
from regcheck.trainers.sides import Steps


class Sample(NamedTuple):
    """One step of both sides from the same parameters, and the bounds of its gradient."""

    step: int
    scratch: Step
    framework: Step
    gradient_bound: Parameters


class FirstDivergence(NamedTuple):
    """The first divergence of the parameters, and the steps that are shown with it.

    Attributes:
        divergence: None where every parameter keeps its tolerance.
        sample: the step of the divergence; step 1 where there is none, or the start diverges.
        previous: the step before the divergence; the last one where there is none.
    """

    divergence: Divergence | None = None
    sample: Sample | None = None
    previous: Sample | None = None

    def with_step(
        self, row: Row, steps: Steps, bounds: Bounds, tolerances: Tolerances
    ) -> FirstDivergence:
        """Take in one more step."""
        sample = Sample(row.step, steps.scratch, steps.framework, bounds.gradient)
        if self.divergence is not None:
            return self._replace(sample=self.sample or sample)
        if not diverges(row, tolerances):
            return self._replace(sample=self.sample or sample, previous=sample)
        divergence = locate(row, steps.scratch, steps.framework, bounds, tolerances)
        return FirstDivergence(divergence, sample, self.previous)


class LossDivergence(NamedTuple):
    """The first step at which the reported losses differ, at the same parameters."""

    step: int
    at: Difference


class Losses(NamedTuple):
    """The reported losses.

    Attributes:
        reported: whether both sides reported one in any step.
        divergence: the first one; None where every loss keeps its tolerance.
        first_unjudged: the first step at which they could not be judged.
    """

    reported: bool = False
    divergence: LossDivergence | None = None
    first_unjudged: int | None = None

    def with_step(self, row: Row, tolerances: Tolerances) -> Losses:
        """Take in one more step."""
        if row.loss is None:
            return self
        at, divergence, unjudged = row.judged["loss"], self.divergence, self.first_unjudged
        if divergence is None and in_limits(at, tolerances) > 1:
            divergence = LossDivergence(row.step, at)
        if unjudged is None and not at.judged:
            unjudged = row.step
        return Losses(True, divergence, unjudged)


class Saturation(NamedTuple):
    """Where outputs saturate, by `losses.saturated`: shares of the rows of a step.

    Attributes:
        first: the first step with any such row, and `first_share` its share of them.
        last: the last step that was compared, and `last_share` likewise.
    """

    first: int
    first_share: float
    last: int
    last_share: float


def saturation_with(
    earlier: Saturation | None, step: int, outputs: Sequence[Array]
) -> Saturation | None:
    """Take in one more step's outputs; None where no row was saturated yet."""
    share = float(np.mean(np.concatenate([saturated(z) for z in outputs])))
    if earlier is not None:
        return earlier._replace(last=step, last_share=share)
    return Saturation(step, share, step, share) if share else None
