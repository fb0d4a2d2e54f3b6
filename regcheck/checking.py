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
    compare_step,
    diverges,
    each,
    exceeds,
    greatest,
    locate,
)
from regcheck.models import accuracy
from regcheck.numpy_trainer import NumpyTrainer, State
from regcheck.problem import Problem, Step, build_problem
from regcheck.record import OUT_OF_RANGE, Final, LossDivergence, Report, Sample, Verdict
from regcheck.rounding import RoundingModel
from regcheck.schedule import Batch, training_of
from regcheck.spec import LoadedSpec, from_mapping, read_spec
from regcheck.torch_trainer import TorchTrainer, torch_settings
from regcheck.torch_trainer import environment as torch_environment
from regcheck.trace import Trace

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
    tensors = tuple(problem.initial)
    report = Report(
        name=loaded.name,
        spec=loaded.spec,
        training=training_of(loaded.spec, len(problem.y)),
        features=problem.features,
        steps=problem.schedule.steps,
        limit=loaded.spec.tolerance.rounding,
        trace=Trace(tensors),
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


class Run:
    """Both sides of a run while it lasts, filling a report."""

    def __init__(self, problem: Problem, report: Report) -> None:
        self.problem, self.report = problem, report
        self.scratch = NumpyTrainer(problem)
        self.framework = TorchTrainer(problem)
        self.rounding = RoundingModel(problem)
        self.own = self.scratch.start()
        self.velocities = self.own.velocities
        self.losses = {"scratch": math.nan, "framework": math.nan}
        self.last: Sample | None = None

    def compare_start(self) -> None:
        """Compare the parameters that the sides start from."""
        start = self.framework.parameters()
        bounds = self.rounding.start_bounds(self.problem.initial)
        at = greatest(each(self.own.parameters, start, bounds).values())
        if exceeds(at, self.report.limit):
            still = Step(start, (), math.nan, {}, {}, {}, {}, start)
            self.report.first_divergence = Divergence(1, 1, 1, "initial", at, at, still, still)

    def advance(self, batch: Batch) -> bool:
        """Take and compare one step; False where it cannot be judged, which ends the run."""
        report, limit = self.report, self.report.limit
        framework = self.framework.step(batch)
        own = self.scratch.step(self.own, batch)
        # The scratch rule from the framework's parameters, its optimizer fed by them all along.
        local = self.scratch.step(State(framework.before, self.velocities), batch)
        bounds = self.rounding.bounds(batch, framework, local.slopes)
        row = compare_step(batch, own.step, local.step, framework, bounds)
        self.own, self.velocities = own.state, local.state.velocities
        self.losses = {"scratch": own.step.loss, "framework": framework.loss}

        report.trace.append(row)
        sample = Sample(batch.step, local.step, framework)
        for stage, difference in row.within.items():
            if row.judged and exceeds(difference, limit):
                report.first_by_stage.setdefault(stage, batch.step)
        if report.first_loss_divergence is None and exceeds(row.loss, limit):
            report.first_loss_divergence = LossDivergence(batch.step, row.loss)
        if report.first_loss_unjudged is None and not row.loss.judged:
            report.first_loss_unjudged = batch.step
        if report.first_divergence is None and diverges(row, limit):
            report.first_divergence = locate(row, local.step, framework, bounds, limit)
            report.sample, report.previous = sample, self.last
        if report.sample is None:
            report.sample = sample
        self.last = sample
        report.max_drift = max(report.max_drift, *row.drift.values(), key=nan_is_largest)
        if not row.judged:
            report.first_unjudged = batch.step
            return False
        report.compared += 1
        return True

    def finish(self) -> None:
        """Note where both sides ended."""
        ends = {"scratch": self.own.parameters, "framework": self.framework.parameters()}
        problem = self.problem
        for side, parameters in ends.items():
            accuracies = {
                "train": accuracy(problem.X, problem.y, parameters),
                "test": accuracy(problem.X_test, problem.y_test, parameters),
            }
            self.report.final[side] = Final(
                parameters, self.losses[side], accuracies if problem.model == "logistic" else {}
            )


def nan_is_largest(value: float) -> float:
    """Order numbers with NaN above all."""
    return math.inf if math.isnan(value) else value


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
    if report.first_unjudged is not None:
        return "inconclusive", f"from step {report.first_unjudged:,} on {OUT_OF_RANGE}"
    if report.first_loss_unjudged is not None and "loss" in judged:
        step = report.first_loss_unjudged
        return "inconclusive", f"from step {step:,} on the reported losses are out of range"
    return "equivalent", ""
