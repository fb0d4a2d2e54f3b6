"""Both sides of a run, trained in lockstep and compared at every step."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from regcheck.compare.detectability import AlteredOptimizers, Power, PowerMeter
from regcheck.compare.drift import Drift, DriftMeter
from regcheck.compare.history import History
from regcheck.compare.not_distinguished import Hidden, Trials, sees_alike
from regcheck.compare.steps import (
    Divergence,
    LossDivergence,
    Row,
    Sample,
    Saturation,
    compare_start,
    compare_step,
    differs,
    diverges,
    in_limits,
    injected,
    locate,
    saturation_with,
    suspicious,
)
from regcheck.compare.trace import Trace
from regcheck.numerics.losses import accuracy, saturated
from regcheck.numerics.rounding import Bounds
from regcheck.problem.batches import Batch
from regcheck.problem.problem import Parameters, Problem, Step
from regcheck.rules.settings import Training
from regcheck.spec import Spec
from regcheck.spec.tolerance import weighed_limits
from regcheck.trainers.measured_bounds import MeasuredBounds
from regcheck.trainers.numpy_trainer import ForwardBackward
from regcheck.trainers.sides import Sides, Steps

Progress = Callable[[int, int], None]
"""Called with the number of each compared step, and of all steps."""


OUT_OF_RANGE = "the numbers are infinite, or too near it to be judged"
"""What ends a run before its last step."""

LOST = "the scratch side's own training is not finite, though every step agrees"
"""What rounding comes to where a training amplifies it without end."""


class Final(NamedTuple):
    """Where one side ended: parameters, the last reported loss, and accuracies (None: no rows)."""

    parameters: Parameters
    loss: float
    accuracy: dict[str, float | None]


@dataclass(frozen=True)
class Comparison:
    """What the steps of both sides come to; `compared` of all `steps` could be judged.

    Attributes:
        trace: every step's numbers.
        first_divergence: the first step at which a parameter does not keep its tolerance.
        first_loss_divergence: the first at which a reported loss does not.
        first_by_stage: the first step at which the sides differ at each stage within a step.
        sample: the step of the first divergence, or step 1; `previous` is the one before it.
        first_unjudged: the first step at which a parameter could not be judged.
        first_loss_unjudged: likewise the loss.
        losses_reported: the steps whose loss both sides reported.
        final: where each side ended.
        drift: how far the two trajectories are from each other.
        not_distinguished: the causes that no step could have shown.
        saturation: where outputs saturate; None where none does.
        power: what the steps could have shown.
        random: whether the user's model gives two outputs for one input.
        gradient_bound: the bounds of the gradient at the first divergence.
    """

    steps: int
    compared: int
    trace: Trace
    first_divergence: Divergence | None
    first_loss_divergence: LossDivergence | None
    first_by_stage: Mapping[str, int]
    sample: Sample | None
    previous: Sample | None
    first_unjudged: int | None
    first_loss_unjudged: int | None
    losses_reported: int
    final: Mapping[str, Final]
    drift: Drift
    not_distinguished: tuple[Hidden, ...]
    saturation: Saturation | None
    power: Power
    random: bool
    gradient_bound: Parameters | None

    def stops(self, judged: Collection[str]) -> dict[str, int]:
        """Return what could not be judged on from which step, the first first.

        `judged` is what the spec compares: the parameters, the loss.
        """
        stops = {OUT_OF_RANGE: self.first_unjudged, LOST: self.drift.first_lost}
        if "loss" in judged and self.first_loss_unjudged != self.first_unjudged:
            stops["the reported losses are out of range"] = self.first_loss_unjudged
        found = {what: step for what, step in stops.items() if step is not None}
        return dict(sorted(found.items(), key=lambda stop: stop[1]))


def compare(
    sides: Sides, spec: Spec, training: Training, progress: Progress
) -> tuple[Comparison, History]:
    """Train both sides step by step, and compare every step.

    Returns what was found, and the recorded steps for the diagnosis.
    """
    run = Comparing(sides, spec, training)
    run.compare_start()
    steps = sides.problem.schedule.steps
    for batch in sides.problem.schedule.batches():
        if run.random or not run.advance(batch):
            break
        progress(batch.step, steps)
    return run.result(), run.history


class Comparing:
    """What a comparison has found up to the present step."""

    def __init__(self, sides: Sides, spec: Spec, training: Training) -> None:
        self.sides, self.problem, self.tolerances = sides, sides.problem, spec.tolerance
        torch, initial = sides.torch, self.problem.initial
        self.schedule = (self.problem if torch is None else torch.problem).schedule
        self.trace = Trace(tuple(initial))
        self.drift = DriftMeter(self.tolerances)
        self.history = History({name: w.shape for name, w in initial.items()}, self.schedule)
        limits = weighed_limits(self.tolerances, initial)
        altered = None
        if isinstance(sides.bounder, MeasuredBounds):
            altered = AlteredOptimizers(sides.bounder.trainer, limits)
        self.power = PowerMeter(limits, altered)
        self.trials = None
        if torch is not None:
            self.trials = Trials(spec, training, torch, sides.sees_rows)
        self.random = sides.random
        self.compared = self.losses_reported = 0
        self.first: Divergence | None = None
        self.first_loss: LossDivergence | None = None
        self.first_by_stage: dict[str, int] = {}
        self.first_unjudged: int | None = None
        self.first_loss_unjudged: int | None = None
        self.sample: Sample | None = None
        self.previous: Sample | None = None
        self.last: Sample | None = None
        self.last_losses = (math.nan, math.nan)
        self.saturation: Saturation | None = None
        self.gradient_bound: Parameters | None = None

    def compare_start(self) -> None:
        """Compare the parameters that the sides start from."""
        own, start = self.sides.pair.parameters()
        bounds = self.sides.bounder.start_bounds(self.problem.initial)
        local, judged = compare_start(own, start, bounds, self.tolerances)
        self.drift.need_start(local, own, start)
        at = max(judged.values(), key=lambda one: in_limits(one, self.tolerances))
        if in_limits(at, self.tolerances) > 1:
            still = Step(start, None, None, None, None, {}, None, start)
            self.first = Divergence(1, 1, 1, "initial", at, at, still, still)

    def advance(self, batch: Batch) -> bool:
        """Take and compare one step; False where it cannot be judged, which ends the run."""
        steps = self.sides.pair.advance(batch)
        # What torch is given may not be what the scratch side is given.
        batch = batch._replace(lr=self.schedule.lr_at(batch.step))
        rows_pass = self.forward_backward(steps, batch)
        row, bounds = self.judge(batch, steps, rows_pass)
        self.last_losses = row.scratch_loss, row.framework_loss
        self.trace.append(row)
        self.note_divergence(row, steps, bounds)
        self.note_loss(row)
        if self.problem.loss == "bce" and rows_pass is not None:
            share = float(np.mean(np.concatenate([saturated(z) for z in rows_pass.outputs])))
            self.saturation = saturation_with(self.saturation, batch.step, share)
        self.drift.measure(row, injected(steps.scratch, steps.framework))
        if not row.complete:
            self.first_unjudged = batch.step
            return False
        self.drift.need_step(row, steps.scratch_own, steps.framework_own)
        bounder = self.sides.bounder
        self.power.take(batch.step, steps, bounds, bounder.gradient_noise())
        self.random = self.random or bounder.random_model
        self.history.append(steps, bounds)
        if self.trials is not None:
            self.trials.advance(batch, steps, bounds, rows_pass)
        self.compared += 1
        return True

    def forward_backward(self, steps: Steps, batch: Batch) -> ForwardBackward | None:
        """Return the pass of torch's rule over the rows, at the reference's parameters."""
        torch = self.sides.torch
        if torch is None or not self.sides.sees_rows:
            return None
        if steps.forward_backward is not None and sees_alike(self.problem, torch.problem):
            return steps.forward_backward
        return torch.forward_backward(steps.framework.before, batch)

    def judge(
        self, batch: Batch, steps: Steps, rows_pass: ForwardBackward | None
    ) -> tuple[Row, Bounds]:
        """Compare a step by its bounds, and by closer ones where they make it a divergence."""
        bounder = self.sides.bounder
        bounds = bounder.bounds(batch, steps, rows_pass)
        row = compare_step(batch, steps, bounds, self.tolerances)
        while self.first is None and suspicious(row, self.tolerances):
            closer = bounder.closer(batch, steps)
            if closer is None:
                break
            bounds, row = closer, compare_step(batch, steps, closer, self.tolerances)
        return row, bounds

    def note_divergence(self, row: Row, steps: Steps, bounds: Bounds) -> None:
        """Note where the sides differ, and a sample of the first step in which they diverge."""
        for stage, difference in row.within.items():
            if row.complete and differs(difference, self.tolerances):
                self.first_by_stage.setdefault(stage, row.step)
        sample = Sample(row.step, steps.scratch, steps.framework)
        if self.first is None and diverges(row, self.tolerances):
            self.first = locate(row, steps.scratch, steps.framework, bounds, self.tolerances)
            self.sample, self.previous = sample, self.last
            self.history.note_divergence()
            self.gradient_bound = bounds.gradient
        if self.sample is None:
            self.sample = sample
        self.last = sample

    def note_loss(self, row: Row) -> None:
        """Note the first step at which the reported losses differ, or cannot be judged."""
        if row.loss is None:
            return
        self.losses_reported += 1
        loss = row.judged["loss"]
        if self.first_loss is None and in_limits(loss, self.tolerances) > 1:
            self.first_loss = LossDivergence(row.step, loss)
        if self.first_loss_unjudged is None and not loss.judged:
            self.first_loss_unjudged = row.step

    def result(self) -> Comparison:
        """Return all that was found, once the last step is taken."""
        if self.first_unjudged is None and not self.random:
            self.sides.pair.finish()
        return Comparison(
            steps=self.problem.schedule.steps,
            compared=self.compared,
            trace=self.trace,
            first_divergence=self.first,
            first_loss_divergence=self.first_loss,
            first_by_stage=self.first_by_stage,
            sample=self.sample,
            previous=self.previous,
            first_unjudged=self.first_unjudged,
            first_loss_unjudged=self.first_loss_unjudged,
            losses_reported=self.losses_reported,
            final=finals(self.problem, self.sides.pair.parameters(), self.last_losses),
            drift=self.drift.result(),
            not_distinguished=tuple(self.trials.hidden()) if self.trials is not None else (),
            saturation=self.saturation,
            power=self.power.result(),
            random=self.random,
            gradient_bound=self.gradient_bound,
        )


def finals(
    problem: Problem, ends: tuple[Parameters, Parameters], losses: tuple[float, float]
) -> dict[str, Final]:
    """Return where each side ended."""
    rows = {"train": (problem.X, problem.y), "test": (problem.X_test, problem.y_test)}
    if problem.model != "logistic":
        rows = {}
    return {
        side: Final(end, loss, {name: accuracy(X, y, end) for name, (X, y) in rows.items()})
        for side, end, loss in zip(("scratch", "framework"), ends, losses, strict=True)
    }
