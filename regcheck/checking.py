"""Train both sides in lockstep, compare every step, and come to a verdict."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from regcheck.compare.detectability import Power
from regcheck.compare.differences import (
    Divergence,
    Row,
    compare_start,
    compare_step,
    diverges,
    in_limits,
    injected,
    locate,
    parts,
)
from regcheck.compare.drift import DriftMeter
from regcheck.compare.history import History
from regcheck.compare.not_distinguished import Trials, sees_alike
from regcheck.compare.trace import Trace
from regcheck.diagnosis.diagnose import Diagnosis, diagnose
from regcheck.diagnosis.fix import SpecFix, fix_spec, reports
from regcheck.diagnosis.observed import Observed
from regcheck.diagnosis.replay import Replay
from regcheck.errors import UserCodeError
from regcheck.numerics.losses import saturated
from regcheck.numerics.models import accuracy
from regcheck.numerics.rounding import Bounds
from regcheck.problem.batches import Batch, training_of
from regcheck.problem.problem import Parameters, Problem, Step, build_problem
from regcheck.report.result import (
    Final,
    LossDivergence,
    Report,
    Sample,
    Saturation,
    equivalent_settings,
)
from regcheck.rules.causes import CAUSES
from regcheck.rules.equivalent import Matching
from regcheck.spec import LoadedSpec, from_mapping, read_spec
from regcheck.spec.tolerance import Tolerances, Verdict, weighed_limits
from regcheck.trainers.lockstep import Steps, TorchFollowsScratch
from regcheck.trainers.measured_bounds import MeasuredBounds
from regcheck.trainers.numpy_trainer import ForwardBackward, NumpyTrainer
from regcheck.trainers.sides import Sides, sides_of
from regcheck.trainers.torch_trainer import environment as torch_environment
from regcheck.trainers.torch_trainer import torch_settings
from regcheck.user_code.generator import TIMEOUT
from regcheck.user_code.updates import WANTED, kind_of

Progress = Callable[[int, int], None]
"""Called with the number of each compared step, and of all steps."""

Code = Callable[[Any], Any]
"""A function of the user's own, called with the problem."""


def check(
    spec: str | Path | Mapping[str, Any],
    *,
    scratch: Code | None = None,
    framework: Code | None = None,
    timeout: float = TIMEOUT,
    progress: Progress | None = None,
) -> Report:
    """Run a spec: a file's path, or its content as a mapping.

    Args:
        spec: the file, or the mapping; a mapping's relative paths are relative to here.
        scratch: a function of your own in the place of the built-in scratch side.
        framework: likewise one that gives (model, loss_function, optimizer).
        timeout: seconds that one step of your own code may take.
        progress: called after each compared step, with its number and that of all steps.

    Raises:
        InputError: the spec or its data are not as they must be.
        UserCodeError: your own code is off.
    """
    own = {"scratch": scratch, "framework": framework}
    given = {key: code for key, code in own.items() if code is not None}
    for side, code in given.items():
        if not (callable(code) or isinstance(code, str | Mapping)):
            raise UserCodeError(f"{side}: got {kind_of(code)}; {WANTED[side]}")
    if isinstance(spec, Mapping):
        loaded = from_mapping(dict(spec) | given)
    else:
        loaded = read_spec(Path(spec), given)
    return check_loaded(loaded, progress or no_progress, timeout)


def no_progress(step: int, total: int) -> None:
    """Show no progress."""


def check_loaded(loaded: LoadedSpec, progress: Progress, timeout: float = TIMEOUT) -> Report:
    """Run a spec that is loaded."""
    return check_problem(loaded, build_problem(loaded), progress, timeout)


def check_problem(
    loaded: LoadedSpec, problem: Problem, progress: Progress, timeout: float = TIMEOUT
) -> Report:
    """Run a spec whose problem is built: train both sides in lockstep and compare every step."""
    work = min(problem.schedule.batch_size, len(problem.y)) * problem.X[0].size
    # Overflow is an outcome of a training, judged by the comparison: no warnings.
    with (
        torch_settings(work) as threads,
        np.errstate(all="ignore"),
        sides_of(loaded, problem, NumpyTrainer, timeout) as sides,
    ):
        report = new_report(loaded, sides)
        run = Run(sides, report)
        run.compare_start()
        for batch in sides.problem.schedule.batches():
            if report.random or not run.advance(batch):
                break
            progress(batch.step, report.steps)
        run.finish()
        report.verdict, report.reason = conclusion(report)
        if report.verdict == "diverged":
            run.diagnose()
    report.environment = {
        "python": platform.python_version(),
        **torch_environment(),
        "threads": threads,
        "platform": platform.platform(),
    }
    return report


def new_report(loaded: LoadedSpec, sides: Sides) -> Report:
    """Begin the report of a run."""
    training = training_of(loaded.spec, len(sides.problem.y))
    if sides.torch is not None and loaded.spec.framework is not None:
        training = training._replace(sgd=sides.torch.problem.sgd)
    return Report(
        name=loaded.name,
        spec=loaded.spec,
        training=training,
        features=sides.problem.features,
        row_shape=sides.problem.X.shape[1:],
        steps=sides.problem.schedule.steps,
        trace=Trace(tuple(sides.problem.initial)),
        plain_sgd=sides.torch is not None,
        dtypes=(sides.problem.scratch_dtype, sides.problem.framework_dtype),
        random=sides.random,
    )


def strictly(report: Report) -> None:
    """Make a run inconclusive that agrees, and could not have shown every cause that concerns it.

    An equivalent run says nothing of what it could not have shown.
    """
    if report.verdict == "equivalent" and report.not_distinguished:
        causes = [hidden.cause for hidden in report.not_distinguished]
        told = " and ".join(causes) if len(causes) < 3 else f"{len(causes)} causes"
        report.verdict = "inconclusive"
        report.reason = f"the sides agree, but this run cannot tell {told} from torch's rule"


class Run:
    """Both sides of a run while it lasts, filling a report."""

    def __init__(self, sides: Sides, report: Report) -> None:
        self.sides, self.problem, self.report = sides, sides.problem, report
        self.spec = report.spec
        self.drift = DriftMeter(self.spec.tolerance)
        torch = sides.torch
        self.trials: Trials | None = None
        if torch is not None:
            self.trials = Trials(self.spec, report.training, torch, sides.sees_rows)
        shapes = {name: w.shape for name, w in self.problem.initial.items()}
        self.schedule = (self.problem if torch is None else torch.problem).schedule
        self.history = History(shapes, self.schedule)
        self.losses = {"scratch": math.nan, "framework": math.nan}
        self.last: Sample | None = None
        self.gradient_bound: Parameters | None = None
        report.power = Power(weighed_limits(self.spec.tolerance, self.problem.initial))

    def compare_start(self) -> None:
        """Compare the parameters that the sides start from."""
        own, start = self.sides.pair.start()
        bounds = self.sides.bounder.start_bounds(self.problem.initial)
        local, judged = compare_start(own, start, bounds, self.spec.tolerance)
        self.drift.need_start(local, own, start)
        at = max(judged.values(), key=lambda one: in_limits(one, self.spec.tolerance))
        if in_limits(at, self.spec.tolerance) > 1:
            still = Step(start, None, None, None, None, {}, None, start)
            self.report.first_divergence = Divergence(1, 1, 1, "initial", at, at, still, still)

    def advance(self, batch: Batch) -> bool:
        """Take and compare one step; False where it cannot be judged, which ends the run."""
        report, tolerances = self.report, self.spec.tolerance
        steps = self.sides.pair.advance(batch)
        # What torch is given may not be what the scratch side is given.
        batch = batch._replace(lr=self.schedule.lr_at(batch.step))
        seen = self.seen(steps, batch)
        bounds = self.sides.bounder.bounds(batch, steps, seen)
        row = compare_step(batch, steps, bounds, tolerances)
        while report.first_divergence is None and suspicious(row, tolerances):
            closer = self.sides.bounder.closer(batch, steps)
            if closer is None:
                break
            bounds, row = closer, compare_step(batch, steps, closer, tolerances)
        self.losses = {
            side: math.nan if step.loss is None else step.loss
            for side, step in (("scratch", steps.scratch_own), ("framework", steps.framework_own))
        }
        report.trace.append(row)
        sample = Sample(batch.step, steps.scratch, steps.framework)
        for stage, difference in row.within.items():
            if row.complete and parts(difference, tolerances):
                report.first_by_stage.setdefault(stage, batch.step)
        self.note_loss(row)
        if self.problem.loss == "bce" and seen is not None:
            share = float(np.mean(np.concatenate([saturated(z) for z in seen.outputs])))
            report.saturation = Saturation.noted(report.saturation, batch.step, share)
        if report.first_divergence is None and diverges(row, tolerances):
            report.first_divergence = locate(
                row, steps.scratch, steps.framework, bounds, tolerances
            )
            report.sample, report.previous = sample, self.last
            self.history.parts()
            self.gradient_bound = bounds.gradient
        if report.sample is None:
            report.sample = sample
        self.last = sample
        self.drift.measure(row, injected(steps.scratch, steps.framework))
        if not row.complete:
            report.first_unjudged = batch.step
            return False
        self.drift.need_step(row, steps.scratch_own, steps.framework_own)
        self.weigh(batch, steps, bounds)
        self.history.append(steps, bounds)
        if self.trials is not None:
            self.trials.advance(batch, steps, bounds, seen)
        report.compared += 1
        return True

    def weigh(self, batch: Batch, steps: Steps, bounds: Bounds) -> None:
        """Take in what the step could have shown."""
        bounder, power = self.sides.bounder, self.report.power
        assert power is not None
        if not power.has_judged(steps.framework.after):
            noise = bounder.gradient_noise_of() if isinstance(bounder, MeasuredBounds) else None
            power.take(steps, bounds, noise)
        if self.sides.altered is not None:
            self.sides.altered.advance(batch.step, steps, bounds)
        if isinstance(bounder, MeasuredBounds) and bounder.random_model:
            self.report.random = True

    def seen(self, steps: Steps, batch: Batch) -> ForwardBackward | None:
        """Give the pass of torch's rule over the rows, at the leader's parameters."""
        torch = self.sides.torch
        if torch is None or not self.sides.sees_rows:
            return None
        if steps.forward_backward is not None and sees_alike(self.problem, torch.problem):
            return steps.forward_backward
        return torch.forward_backward(steps.framework.before, batch)

    def note_loss(self, row: Row) -> None:
        """Note the first step at which the reported losses part, or cannot be judged."""
        report = self.report
        if row.loss is None:
            return
        report.losses_told += 1
        loss = row.judged["loss"]
        if report.first_loss_divergence is None and in_limits(loss, self.spec.tolerance) > 1:
            report.first_loss_divergence = LossDivergence(row.step, loss)
        if report.first_loss_unjudged is None and not loss.judged:
            report.first_loss_unjudged = row.step

    def finish(self) -> None:
        """Note where both sides ended, how far they drifted, and what could not show."""
        report, problem, pair = self.report, self.problem, self.sides.pair
        if report.first_unjudged is None and not report.random:
            pair.finish()
        if self.sides.altered is not None and report.power is not None:
            report.power.hidden = self.sides.altered.hidden()
        for side, parameters in zip(("scratch", "framework"), pair.ends(), strict=True):
            accuracies = {}
            if problem.model == "logistic":
                accuracies = {
                    "train": accuracy(problem.X, problem.y, parameters),
                    "test": accuracy(problem.X_test, problem.y_test, parameters),
                }
            report.final[side] = Final(parameters, self.losses[side], accuracies)
        report.max_drift = self.drift.largest
        report.needed = self.drift.needed
        report.amplification = self.drift.amplification
        report.first_lost = self.drift.first_lost
        if self.trials is not None:
            report.not_distinguished = self.trials.hidden()

    def diagnose(self) -> None:
        """Find out why the sides part."""
        report, sides = self.report, self.sides
        if sides.torch is None:
            report.diagnosis = undiagnosed(sides)
            return
        tolerance = self.spec.tolerance
        first = report.first_divergence
        hidden = {one.cause for one in report.not_distinguished}
        leads = isinstance(sides.pair, TorchFollowsScratch)
        report.diagnosis = diagnose(
            Observed(
                history=self.history,
                torch=sides.torch,
                sees_rows=sides.sees_rows,
                training=report.training,
                convention=self.spec.named_convention(),
                limits={
                    name: tolerance.of(name).limit_within
                    for name in (*self.problem.initial, "loss")
                },
                parted=first is not None,
                loss_parted=report.first_loss_divergence is not None,
                visible=None if tolerance.on_drift else frozenset(CAUSES) - hidden,
                fits_float32=isinstance(sides.pair, TorchFollowsScratch)
                and sides.pair.fits_float32
                and self.spec.dtype.scratch == "float64",
                starts_apart=first is not None and first.stage == "initial",
                leads=leads,
                loss_at=sides.probe.loss_at,
                gradient=report.sample.scratch.gradient if report.sample and leads else None,
                gradient_bound=self.gradient_bound,
                first=first.step if first else None,
                dtypes_differ=self.problem.scratch_dtype != self.problem.framework_dtype,
            )
        )
        self.mend()
        stage = report.diagnosis.stage
        # A user's code tells its parameters alone: the stage is what the diagnosis finds.
        if leads and first is not None and first.stage == "update" and stage is not None:
            report.first_divergence = first._replace(stage=stage)

    def mend(self) -> None:
        """Find the change of the spec that makes the sides agree, and replay the steps with it."""
        report, torch = self.report, self.sides.torch
        found = report.diagnosis
        assert found is not None
        assert torch is not None
        if not found.explained:
            return
        match = equivalent_settings(report, loss="bce_with_logits")
        settings = match if isinstance(match, Matching) else None
        plain = found.best is not None and "bce-saturated" in found.best.causes
        told = plain and report.losses_told > 0
        logits = not told or reports(self.history, torch, "bce_with_logits")
        report.fix = fix_spec(self.spec, found, settings, reports_logits=logits)
        replayed = isinstance(report.fix, SpecFix) and "framework" in report.fix.changes
        if replayed and settings is not None and found.start is None:
            limits = {
                name: self.spec.tolerance.of(name).limit_within for name in self.history.shapes
            }
            replay = Replay(self.history, matched(torch, settings), limits, sees_rows=True)
            if replay.residual({"bce_slope": "plain"} if plain else {}) > 1:
                report.fix = "the settings that match are lost to rounding: change the code"


def undiagnosed(sides: Sides) -> Diagnosis:
    """Say that the framework side's rule is not in the catalogue."""
    optimizer = type(sides.probe.optimizer)
    name = f"{optimizer.__module__}.{optimizer.__qualname__}"
    if name == "torch.optim.sgd.SGD":
        name = "torch.optim.SGD with `maximize`, or not on all tensors alike"
    clue = (
        f"The framework side's optimizer is {name}; causes are known for torch.optim.SGD going "
        "downhill on all parameters, with one lr and one momentum."
    )
    return Diagnosis(explained=False, clues=(clue,))


def matched(torch: NumpyTrainer, match: Matching) -> NumpyTrainer:
    """Give torch's rule with the settings that match the scratch side."""
    problem = torch.problem
    faults = problem.faults._replace(lr_factor=match.lr_factor)
    matched = problem.with_sgd(match.sgd._replace(lr=problem.sgd.lr))
    return torch.by(replace(matched, faults=faults))


def conclusion(report: Report) -> tuple[Verdict, str]:
    """Come to a verdict, with its reason where it is not plain from the report.

    What was judged stays judged: a divergence stands whatever comes after it.
    """
    judged = report.spec.compare
    if report.random:
        return "inconclusive", RANDOM
    if report.first_divergence is not None and "parameters" in judged:
        return "diverged", ""
    if report.first_loss_divergence is not None and "loss" in judged:
        return "diverged", ""
    if report.steps == 0:
        return "inconclusive", "there is no step: drop_last leaves out every row"
    if "parameters" not in judged and not report.losses_told:
        return "inconclusive", "`compare` names the loss alone, and no step tells one on both sides"
    if report.verdict_stops:
        told = [f"from step {step:,} on {what}" for what, step in report.verdict_stops.items()]
        return "inconclusive", ", and ".join(told)
    weak = report.power.reason() if report.power is not None else ""
    if weak and "parameters" in judged and not report.spec.tolerance.on_drift:
        return "inconclusive", weak
    return "equivalent", ""


RANDOM = (
    "the framework side's model is random: it gave two different results for the same rows, so "
    "that no step of it can be compared. Call model.eval() or set the dropout's p to 0, or call "
    "torch.manual_seed(..) in forward"
)
"""Why a model with dropout or noise in it is not judged."""


def suspicious(row: Row, tolerances: Tolerances) -> bool:
    """Return whether anything in a row differs by more than its bounds allow."""
    found = [*row.local.values(), *row.within.values()]
    if row.loss is not None:
        found.append(row.loss)
    return any(not one.ratio <= tolerances.of(one.tensor).limit_within for one in found)
