"""Train both sides in lockstep, compare every step, and come to a verdict."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from regcheck.compare import (
    Divergence,
    compare_start,
    compare_step,
    diverges,
    in_limits,
    injected,
    locate,
    parts,
)
from regcheck.drift import DriftMeter
from regcheck.models import accuracy
from regcheck.numpy_trainer import NumpyTrainer
from regcheck.problem import Problem, Step, build_problem
from regcheck.record import Final, LossDivergence, Report, Sample
from regcheck.rounding import RoundingModel
from regcheck.schedule import Batch, training_of
from regcheck.spec import LoadedSpec, from_mapping, read_spec
from regcheck.spec.judging import Verdict
from regcheck.torch_trainer import TorchTrainer, torch_settings
from regcheck.torch_trainer import environment as torch_environment
from regcheck.trace import Trace
from regcheck.trials import Lockstep, Proof, Trials

Progress = Callable[[int, int], None]
"""Called with the number of each compared step, and of all steps."""


def check(spec: str | Path | Mapping[str, Any], *, progress: Progress | None = None) -> Report:
    """Run a spec: a file's path, or its content as a mapping.

    Args:
        spec: the file, or the mapping; a mapping's relative paths are relative to here.
        progress: called after each compared step, with its number and that of all steps.

    Raises:
        InputError: the spec or its data are not as they must be.
    """
    loaded = from_mapping(spec) if isinstance(spec, Mapping) else read_spec(Path(spec))
    return check_loaded(loaded, progress or no_progress)


def no_progress(step: int, total: int) -> None:
    """Show no progress."""


def check_loaded(loaded: LoadedSpec, progress: Progress) -> Report:
    """Run a spec that is loaded."""
    return check_problem(loaded, build_problem(loaded), progress)


def check_problem(loaded: LoadedSpec, problem: Problem, progress: Progress) -> Report:
    """Run a spec whose problem is built: train both sides in lockstep and compare every step."""
    training = training_of(loaded.spec, len(problem.y))
    report = Report(
        name=loaded.name,
        spec=loaded.spec,
        training=training,
        features=problem.features,
        steps=problem.schedule.steps,
        trace=Trace(tuple(problem.initial)),
    )
    work = min(problem.schedule.batch_size, len(problem.y)) * problem.X.shape[1]
    # Overflow is an outcome of a training, judged by the comparison: no warnings.
    with torch_settings(work) as threads, np.errstate(all="ignore"):
        run = Run(problem, report)
        run.compare_start()
        for batch in problem.schedule.batches():
            if not run.advance(batch):
                break
            progress(batch.step, report.steps)
        run.finish()
    report.environment = {
        "python": platform.python_version(),
        **torch_environment(),
        "threads": threads,
        "platform": platform.platform(),
    }
    report.verdict, report.reason = conclusion(report)
    return report


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

    def __init__(self, problem: Problem, report: Report) -> None:
        self.problem, self.report, self.spec = problem, report, report.spec
        self.scratch = Lockstep(NumpyTrainer(problem))
        self.framework = TorchTrainer(problem)
        self.rounding = RoundingModel(problem)
        self.drift = DriftMeter(self.spec.tolerance)
        self.trials = Trials(self.spec, report.training, self.scratch.trainer)
        expected = self.spec.expect.cause if self.spec.expect else None
        self.proof = Proof(expected, self.scratch.trainer) if expected else None
        self.losses = {"scratch": math.nan, "framework": math.nan}
        self.last: Sample | None = None

    def compare_start(self) -> None:
        """Compare the parameters that the sides start from."""
        start, own = self.framework.parameters(), self.scratch.own.parameters
        bounds = self.rounding.start_bounds(self.problem.initial)
        local, judged = compare_start(own, start, bounds, self.spec.tolerance)
        self.drift.need_start(local, own, start)
        at = max(judged.values(), key=lambda one: in_limits(one, self.spec.tolerance))
        if in_limits(at, self.spec.tolerance) > 1:
            still = Step(start, (), math.nan, {}, {}, {}, {}, start)
            self.report.first_divergence = Divergence(1, 1, 1, "initial", at, at, still, still)

    def advance(self, batch: Batch) -> bool:
        """Take and compare one step; False where it cannot be judged, which ends the run."""
        report, tolerances = self.report, self.spec.tolerance
        framework = self.framework.step(batch)
        own = self.scratch.step_alone(batch)
        local = self.scratch.step_beside(framework.before, batch)
        bounds = self.rounding.bounds(batch, framework, local.slopes)
        row = compare_step(batch, own.step, local.step, framework, bounds, tolerances)
        self.losses = {"scratch": own.step.loss, "framework": framework.loss}

        report.trace.append(row)
        sample = Sample(batch.step, local.step, framework)
        for stage, difference in row.within.items():
            if row.complete and parts(difference, tolerances):
                report.first_by_stage.setdefault(stage, batch.step)
        loss = row.judged["loss"]
        if report.first_loss_divergence is None and in_limits(loss, tolerances) > 1:
            report.first_loss_divergence = LossDivergence(batch.step, loss)
        if report.first_loss_unjudged is None and not loss.judged:
            report.first_loss_unjudged = batch.step
        if report.first_divergence is None and diverges(row, tolerances):
            report.first_divergence = locate(row, local.step, framework, bounds, tolerances)
            report.sample, report.previous = sample, self.last
        if report.sample is None:
            report.sample = sample
        self.last = sample
        self.drift.measure(row, injected(local.step, framework))
        if not row.complete:
            report.first_unjudged = batch.step
            return False
        self.drift.need_step(row, own.step, framework)
        self.trials.advance(batch, framework, bounds, local.seen)
        if self.proof is not None:
            self.proof.advance(batch, framework, local.step, bounds)
        report.compared += 1
        return True

    def finish(self) -> None:
        """Note where both sides ended, how far they drifted, and what could not show."""
        report, problem = self.report, self.problem
        ends = {
            "scratch": self.scratch.own.parameters,
            "framework": self.framework.parameters(),
        }
        for side, parameters in ends.items():
            accuracies = {
                "train": accuracy(problem.X, problem.y, parameters),
                "test": accuracy(problem.X_test, problem.y_test, parameters),
            }
            report.final[side] = Final(
                parameters, self.losses[side], accuracies if problem.model == "logistic" else {}
            )
        report.max_drift = self.drift.largest
        report.needed = self.drift.needed
        report.amplification = self.drift.amplification
        report.first_lost = self.drift.first_lost
        report.not_distinguished = self.trials.hidden()
        if self.proof is not None:
            report.cause_explains = self.proof.explains(self.spec.tolerance)


def conclusion(report: Report) -> tuple[Verdict, str]:
    """Come to a verdict, with its reason where it is not plain from the report.

    What was judged stays judged: a divergence stands whatever comes after it.
    """
    judged = report.spec.compare
    if report.first_divergence is not None and "parameters" in judged:
        return "diverged", ""
    if report.first_loss_divergence is not None and "loss" in judged:
        return "diverged", ""
    if report.steps == 0:
        return "inconclusive", "there is no step: drop_last leaves out every row"
    if report.verdict_stops:
        told = [f"from step {step:,} on {what}" for what, step in report.verdict_stops.items()]
        return "inconclusive", ", and ".join(told)
    return "equivalent", ""
