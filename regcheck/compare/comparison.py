"""Both sides of a run, trained in lockstep and compared at every step."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from regcheck.compare.detectability import AlteredOptimizers, AlteredRules, Power, PowerMeter
from regcheck.compare.drift import Drift, DriftMeter
from regcheck.compare.history import History
from regcheck.compare.not_distinguished import Hidden, Trials, sees_alike
from regcheck.compare.steps import (
    Divergence,
    Row,
    compare_start,
    compare_step,
    differs,
    in_limits,
    injected,
    suspicious,
)
from regcheck.compare.trace import (
    FirstDivergence,
    Losses,
    Sample,
    Saturation,
    Trace,
    saturation_with,
)
from regcheck.numerics.bounds.rounding import Bounds
from regcheck.numerics.models import CHOICES, accuracy
from regcheck.problem.batches import Batch
from regcheck.problem.problem import Parameters, Problem
from regcheck.rules.settings import Training
from regcheck.spec import Spec
from regcheck.spec.sections.tolerance import weighed_limits
from regcheck.trainers.lockstep import Steps
from regcheck.trainers.measured.measured_bounds import MeasuredBounds
from regcheck.trainers.numpy_state import ForwardBackward
from regcheck.trainers.sides import Sides
from regcheck.trainers.textbook import FormulaBounds

Progress = Callable[[int, int], None]
"""Called with the number of each compared step, and of all steps."""

Watch = Callable[[Steps], None]
"""Shown each step of both sides as it is taken."""


OUT_OF_RANGE = "the numbers are not finite, or too large to be judged"
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
    """What the steps of both sides come to.

    Attributes:
        steps: all that there are, taken or not.
        trace: the numbers of every step that was taken.
        first_divergence: the first step at which a parameter does not keep its tolerance.
        first_by_stage: the first step at which the sides differ at each stage within a step.
        sample: the step of the first divergence, or step 1.
        previous: the step before the first divergence; the last one where there is none.
        first_unjudged: the first step at which a parameter could not be judged.
        losses: what the reported losses come to.
        final: where each side ended.
        drift: how far the two trajectories are from each other.
        not_distinguished: the causes that no step could have shown.
        saturation: where outputs saturate; None where none does.
        power: what the steps could have shown.
        random: whether the user's model gives two outputs for one input.
    """

    steps: int
    trace: Trace
    first_divergence: Divergence | None
    first_by_stage: Mapping[str, int]
    sample: Sample | None
    previous: Sample | None
    first_unjudged: int | None
    losses: Losses
    final: Mapping[str, Final]
    drift: Drift
    not_distinguished: tuple[Hidden, ...]
    saturation: Saturation | None
    power: Power
    random: bool

    @property
    def compared(self) -> int:
        """The steps that could be judged: all that were taken, but the one that ended the run."""
        return len(self.trace) - (self.first_unjudged is not None)

    def stops(self, judged: Collection[str]) -> dict[str, int]:
        """Return what could not be judged on from which step, the first first.

        `judged` is what the spec compares: the parameters, the loss.
        """
        stops = {OUT_OF_RANGE: self.first_unjudged, LOST: self.drift.first_lost}
        if "loss" in judged and self.losses.first_unjudged != self.first_unjudged:
            stops["the reported losses are out of range"] = self.losses.first_unjudged
        found = {what: step for what, step in stops.items() if step is not None}
        return dict(sorted(found.items(), key=lambda stop: stop[1]))


def compare(
    sides: Sides, spec: Spec, training: Training, progress: Progress, watch: Watch
) -> tuple[Comparison, History]:
    """Train both sides step by step, and compare every step; `watch` is shown each.

    Returns what was found, and the recorded steps for the diagnosis.
    """
    run = Comparing(sides, spec, training, watch)
    run.compare_start()
    steps = sides.problem.schedule.steps
    for batch in sides.problem.schedule.batches():
        if run.random or not run.advance(batch):
            break
        progress(batch.step, steps)
    return run.result(), run.history


class Comparing:
    """What a comparison has found up to the present step: meters, and records made anew."""

    def __init__(self, sides: Sides, spec: Spec, training: Training, watch: Watch) -> None:
        self.sides, self.problem, self.tolerances = sides, sides.problem, spec.tolerance
        self.watch = watch
        torch, initial = sides.torch, self.problem.initial
        self.schedule = (self.problem if torch is None else torch.problem).schedule
        self.trace = Trace(tuple(initial))
        self.drift = DriftMeter(self.tolerances)
        self.history = History({name: w.shape for name, w in initial.items()}, self.schedule)
        limits = weighed_limits(self.tolerances, initial)
        altered: AlteredOptimizers | AlteredRules | None = None
        if isinstance(sides.bounder, MeasuredBounds):
            altered = AlteredOptimizers(sides.bounder.trainer, limits)
        elif isinstance(sides.bounder, FormulaBounds):
            altered = AlteredRules(sides.bounder.rule, limits)
        self.power = PowerMeter(limits, altered)
        self.trials = None
        if torch is not None:
            self.trials = Trials(spec, training, torch, sides.sees_rows)
        self.random = sides.random
        self.first = FirstDivergence()
        self.first_by_stage: dict[str, int] = {}
        self.first_unjudged: int | None = None
        self.losses = Losses()
        self.saturation: Saturation | None = None

    def compare_start(self) -> None:
        """Compare the parameters that the sides start from."""
        own, start = self.sides.pair.parameters()
        bounds = self.sides.bounder.start_bounds(self.problem.initial)
        local, judged = compare_start(own, start, bounds, self.tolerances)
        self.drift.need_start(local, own, start)
        at = max(judged.values(), key=lambda one: in_limits(one, self.tolerances))
        if in_limits(at, self.tolerances) > 1:
            self.first = FirstDivergence(Divergence(1, 1, 1, "initial", at, at))

    def advance(self, batch: Batch) -> bool:
        """Take and compare one step; False where it cannot be judged, which ends the run."""
        steps = self.sides.pair.advance(batch)
        self.watch(steps)
        # What torch is given may not be what the scratch side is given.
        batch = batch._replace(lr=self.schedule.lr_at(batch.step))
        rows_pass = self.forward_backward(steps, batch)
        row, bounds = self.judge(batch, steps, rows_pass)
        self.trace.append(row)
        first = self.first.with_step(row, steps, bounds, self.tolerances)
        if first.divergence is not self.first.divergence:
            self.history.note_divergence()
        self.first = first
        self.losses = self.losses.with_step(row, self.tolerances)
        if self.problem.loss == "bce" and rows_pass is not None:
            self.saturation = saturation_with(self.saturation, row.step, rows_pass.outputs)
        self.drift.measure(row, injected(steps.scratch, steps.framework))
        if not row.complete:
            self.first_unjudged = row.step
            return False
        for stage, difference in row.within.items():
            if differs(difference, self.tolerances):
                self.first_by_stage.setdefault(stage, row.step)
        self.drift.need_step(row, steps.scratch_own, steps.framework_own)
        bounder = self.sides.bounder
        self.power.take(batch, steps, bounds, bounder.gradient_noise())
        self.random = self.random or bounder.random_model
        recorded = self.sides.pair.recorded(steps)
        self.history.append(recorded, bounds)
        if self.trials is not None:
            self.trials.advance(batch, recorded, bounds, rows_pass)
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
        """Compare a step by its bounds, and by other ones where they make it a divergence."""
        bounder = self.sides.bounder
        bounds = bounder.bounds(batch, steps, rows_pass)
        row = compare_step(batch, steps, bounds, self.tolerances)
        while self.would_diverge(row):
            other = bounder.other_bounds(batch, steps)
            if other is None:
                break
            bounds, row = other, compare_step(batch, steps, other, self.tolerances)
        return row, bounds

    def would_diverge(self, row: Row) -> bool:
        """Whether a row would be the first divergence, of all that is compared or of the losses."""
        first = self.first.divergence is None and suspicious(row, self.tolerances)
        return first or self.losses.diverge_in(row, self.tolerances)

    def result(self) -> Comparison:
        """Return all that was found, once the last step is taken."""
        if self.first_unjudged is None and not self.random:
            self.sides.pair.finish()
        return Comparison(
            steps=self.problem.schedule.steps,
            trace=self.trace,
            first_divergence=self.first.divergence,
            first_by_stage=self.first_by_stage,
            sample=self.first.sample,
            previous=self.first.previous,
            first_unjudged=self.first_unjudged,
            losses=self.losses,
            final=finals(self.problem, self.sides.pair.parameters(), self.trace),
            drift=self.drift.result(),
            not_distinguished=tuple(self.trials.hidden()) if self.trials is not None else (),
            saturation=self.saturation,
            power=self.power.result(),
            random=self.random,
        )


def finals(problem: Problem, ends: tuple[Parameters, Parameters], trace: Trace) -> dict[str, Final]:
    """Return where each side ended."""
    losses = (math.nan, math.nan)
    if len(trace):
        losses = trace[-1].scratch_loss, trace[-1].framework_loss
    rows = {"train": (problem.X, problem.y), "test": (problem.X_test, problem.y_test)}
    model = problem.architecture
    right: dict[str, dict[str, float | None]] = {"scratch": {}, "framework": {}}
    if model is not None and model.head in CHOICES:
        right = {
            side: {name: accuracy(model, X, y, end) for name, (X, y) in rows.items()}
            for side, end in zip(right, ends, strict=True)
        }
    return {
        side: Final(end, loss, right[side])
        for side, end, loss in zip(right, ends, losses, strict=True)
    }
