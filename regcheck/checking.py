"""Train both sides in lockstep, compare every step, and come to a verdict."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from regcheck.compare.comparison import Comparison, Progress, Watch, compare
from regcheck.diagnosis.diagnose import diagnose
from regcheck.diagnosis.records import Run
from regcheck.errors import RunError, UserCodeError
from regcheck.fix import with_fix
from regcheck.golden import Recording, golden_of, recorded_side, write_golden
from regcheck.problem.batches import training_of
from regcheck.problem.problem import Problem, build_problem
from regcheck.report.result import Report
from regcheck.rules.settings import Training
from regcheck.spec import LoadedSpec, Spec, from_mapping, read_spec
from regcheck.spec.sections.tolerance import Verdict
from regcheck.trainers.framework.determinism import environment as torch_environment
from regcheck.trainers.framework.determinism import torch_settings
from regcheck.trainers.lockstep import Steps
from regcheck.trainers.numpy_trainer import NumpyTrainer
from regcheck.trainers.sides import Sides, sides_of
from regcheck.user_code.function import TIMEOUT
from regcheck.user_code.updates import WANTED, kind_of

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


def no_watch(steps: object) -> None:
    """Keep nothing of a step."""


def check_loaded(
    loaded: LoadedSpec, progress: Progress, timeout: float = TIMEOUT, watch: Watch = no_watch
) -> Report:
    """Run a spec that is loaded, also against its recording where it names one.

    Where torch's steps are not the recorded ones, the report is on these two.
    """
    name, golden = loaded.spec.golden, None
    if name is not None:  # read before anything is trained
        golden = golden_of(loaded)
    report, problem = check_problem(loaded, build_problem(loaded), progress, timeout, watch)
    if name is None or golden is None:
        return report
    recorded = recorded_side(loaded, problem, golden)
    found, _ = check_problem(recorded, build_problem(recorded), no_progress, timeout)
    if found.verdict != "equivalent":
        return found
    return replace(report, golden=golden.title(name))


def record(loaded: LoadedSpec, path: Path, progress: Progress, timeout: float = TIMEOUT) -> Report:
    """Run a spec that is loaded, and record torch's steps in a file; its own recording is not read.

    Raises:
        RunError: the run ends before its last step, so that there is nothing whole to record.
    """
    loaded = loaded._replace(spec=loaded.spec.model_copy(update={"golden": None}))
    recording = Recording()
    steps = build_problem(loaded).schedule.steps

    def watch(taken: Steps) -> None:
        recording.take(taken, steps)

    report, problem = check_problem(loaded, build_problem(loaded), progress, timeout, watch)
    if report.comparison.compared < steps or not steps:
        why = report.reason or "the numbers are not finite from there on"
        raise RunError(f"--record: nothing was recorded, as the run ends early: {why}")
    write_golden(path, recording.golden(loaded.spec, problem, report.environment))
    return report


def check_problem(
    loaded: LoadedSpec,
    problem: Problem,
    progress: Progress,
    timeout: float = TIMEOUT,
    watch: Watch = no_watch,
) -> tuple[Report, Problem]:
    """Run a spec whose problem is built: compare both sides at every step, and diagnose.

    Returns the report, and the problem as the sides have it, with the tensors of a user's model.
    """
    spec = loaded.spec
    work = min(problem.schedule.batch_size, len(problem.y)) * multiplications(problem)
    # Overflow is an outcome of a training, judged by the comparison: nothing in here warns of it.
    with (
        torch_settings(work) as threads,
        np.errstate(all="ignore"),
        sides_of(loaded, problem, NumpyTrainer, timeout) as sides,
    ):
        training = training_of_sides(spec, sides)
        comparison, history = compare(sides, spec, training, progress, watch)
        verdict, reason = conclusion(spec, comparison)
        diagnosis = None
        if verdict == "diverged":
            run = Run(comparison, history, sides, spec, training)
            diagnosis = with_fix(diagnose(run), run)
        problem = sides.problem
    report = Report(
        name=loaded.name,
        spec=spec,
        training=training,
        schedule=problem.schedule,
        features=problem.features,
        row_shape=problem.X.shape[1:],
        classes=problem.classes,
        dtypes=(problem.scratch_dtype, problem.framework_dtype),
        rule_is_known=sides.torch is not None,
        comparison=comparison,
        verdict=verdict,
        reason=reason,
        diagnosis=diagnosis,
        environment={
            "python": platform.python_version(),
            **torch_environment(),
            "threads": threads,
            "platform": platform.platform(),
        },
    )
    return report, problem


def multiplications(problem: Problem) -> int:
    """Return how many multiplications one row takes on its way forward, as far as it is known."""
    if problem.architecture is None:
        return int(problem.X[0].size)
    return sum(w.size for w in problem.initial.values() if w.ndim == 2)


def training_of_sides(spec: Spec, sides: Sides) -> Training:
    """Return a spec's training with the settings that the framework side really has."""
    training = training_of(spec, len(sides.problem.y))
    if sides.torch is None or spec.framework is None:
        return training
    return training._replace(settings=sides.torch.problem.settings)


def conclusion(spec: Spec, found: Comparison) -> tuple[Verdict, str]:
    """Come to a verdict, with its reason where it is not plain from the comparison.

    What was judged stays judged: a divergence stands whatever comes after it.
    """
    judged = spec.compare
    if found.random:
        return "inconclusive", RANDOM
    if found.first_divergence is not None and "parameters" in judged:
        return "diverged", ""
    if found.losses.divergence is not None and "loss" in judged:
        return "diverged", ""
    if found.steps == 0:
        return "inconclusive", "there is no step: drop_last leaves out every sample"
    if "parameters" not in judged and not found.losses.reported:
        return (
            "inconclusive",
            "`compare` names the loss alone, and at no step do both sides report a loss",
        )
    stops = found.stops(judged)
    if stops:
        reasons = [f"from step {step:,} on {what}" for what, step in stops.items()]
        return "inconclusive", ", and ".join(reasons)
    weak = found.power.reason()
    if weak and "parameters" in judged and not spec.tolerance.on_drift:
        return "inconclusive", weak
    return "equivalent", ""


RANDOM = (
    "the framework side's model is random: it gave two different results for the same samples, "
    "so that its steps cannot be compared. Call model.eval(), set the dropout's p to 0, or call "
    "torch.manual_seed(..) in forward"
)
"""Why a model with dropout or noise in it is not judged."""


def strict(report: Report) -> Report:
    """Return an equivalent report as inconclusive where some cause could not have shown in it."""
    if report.verdict != "equivalent" or not report.not_distinguished:
        return report
    causes = [hidden.cause for hidden in report.not_distinguished]
    which = " and ".join(causes) if len(causes) < 3 else f"{len(causes)} causes"
    reason = f"the sides agree, but this run cannot distinguish {which} from torch's rule"
    return replace(report, verdict="inconclusive", reason=reason)
