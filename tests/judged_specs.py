"""What a run of a random spec finds, and what it must find."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from unittest.mock import patch

import numpy as np

from regcheck.checking import check
from regcheck.compare import comparison
from regcheck.compare.differences import Difference
from regcheck.compare.steps import Divergence, Row, compare_step
from regcheck.compare.trace import LossDivergence
from regcheck.numerics.bounds.rounding import Bounds, RoundingModel
from regcheck.numerics.bounds.update_rounding import RoundingState
from regcheck.problem.batches import Batch
from regcheck.problem.problem import Problem, Step
from regcheck.report.result import Report
from regcheck.rules.convention import Convention
from regcheck.spec.sections.tolerance import Tolerances
from regcheck.trainers import sides
from regcheck.trainers.framework.torch_trainer import TorchTrainer
from regcheck.trainers.lockstep import Steps
from regcheck.trainers.measured.measured_bounds import MeasuredBounds
from regcheck.trainers.numpy_state import State
from regcheck.trainers.numpy_trainer import NumpyTrainer
from tests.random_specs import Array, SpecDict, Tensors


@dataclass
class Observed:
    """A run's report, with every step's bounds and differences, which a report does not keep."""

    report: Report
    problem: Problem | None = None
    steps: list[tuple[Batch, Step, Bounds]] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)

    def ratios(self) -> dict[str, float]:
        """Return the largest ratio of the run at each stage, of the loss and of the update."""
        largest: dict[str, float] = defaultdict(float)
        for row in self.rows:
            found = {**row.within, **({"loss": row.loss} if row.loss else {})}
            for name, difference in row.local.items():
                found[f"update {name}"] = difference
            for name, difference in found.items():
                if not math.isnan(difference.ratio):
                    largest[name] = max(largest[name], difference.ratio)
        return largest


def observe(spec: SpecDict) -> Observed:
    """Check a spec, and keep what passes by."""
    seen = Observed(report=None)  # type: ignore[arg-type]

    class Recording(RoundingModel):
        def __init__(self, problem: Problem, own: Collection[str] = ()) -> None:
            super().__init__(problem, own)
            seen.problem = problem

        def bounds(
            self, state: RoundingState, batch: Batch, step: Step, dloss_dz: Sequence[Array]
        ) -> tuple[Bounds, RoundingState]:
            found, state = super().bounds(state, batch, step, dloss_dz)
            seen.steps.append((batch, step, found))
            return found, state

    class Measuring(MeasuredBounds):
        def __init__(self, trainer: TorchTrainer, *dtypes: str) -> None:
            super().__init__(trainer, *dtypes)
            seen.problem = trainer.problem

    measured: dict[int, tuple[Batch, Step, Bounds]] = {}

    def comparing(batch: Batch, steps: Steps, bounds: Bounds, tolerances: Tolerances) -> Row:
        row = compare_step(batch, steps, bounds, tolerances)
        seen.rows.append(row)
        measured[batch.step] = batch, steps.framework, bounds  # those that were looked at last
        return row

    with (
        patch.object(sides, "RoundingModel", Recording),
        patch.object(sides, "MeasuredBounds", Measuring),
        patch.object(comparison, "compare_step", comparing),
    ):
        seen.report = check(spec)
    seen.steps = seen.steps or list(measured.values())
    return seen


@dataclass
class Effect:
    """What a rule's difference does at one step, in bounds, free of rounding: by stage, and all.

    The bounds are those of the framework's rule. Where the scratch rule makes the gradient `scale`
    times larger, it makes the gradient's rounding as much larger.
    """

    step: int
    scale: float
    stages: dict[str, float]
    update: float
    loss: float


def effects(observed: Observed) -> Iterator[Effect]:
    """Measure what the scratch rule changes at each step, from the framework's parameters.

    Both rules are taken by the NumPy trainer in extended precision, each with its own memory.
    """
    problem = observed.problem
    assert problem is not None
    rules = [extended(problem, rule) for rule in (problem.convention, problem.settings.torchs)]
    memories = [rule.start().memory for rule in rules]
    for batch, framework, bounds in observed.steps:
        before = {name: w.astype(np.longdouble) for name, w in framework.before.items()}
        taken = [
            rule.step(State(before, memory), batch)
            for rule, memory in zip(rules, memories, strict=True)
        ]
        memories = [update.state.memory for update in taken]
        own, torch = (update.step for update in taken)
        assert own.loss is not None
        assert torch.loss is not None
        yield Effect(
            batch.step,
            scale_of(problem.convention, batch),
            {
                "gradient": in_bounds(own.gradient, torch.gradient, bounds.gradient),
                "penalty": in_bounds(own.penalty, torch.penalty, bounds.penalty),
                "optimizer": in_bounds(own.delta, torch.delta, bounds.delta),
            },
            in_bounds(own.after, torch.after, bounds.after),
            abs(own.loss - torch.loss) / bounds.loss,
        )


def scale_of(convention: Convention, batch: Batch) -> float:
    """Return how much larger a convention makes the loss than torch does, and at least 1."""
    rows = batch.size if convention.loss_reduction == "sum" else 1
    return max(1.0, rows * abs(convention.loss_factor))


def extended(problem: Problem, convention: Convention) -> NumpyTrainer:
    """Make the NumPy trainer of a problem in extended precision, by a convention."""
    trainer = NumpyTrainer(replace(problem, convention=convention))
    trainer.dtype = np.dtype(np.longdouble)
    labels = problem.y.dtype.kind == "i"
    trainer.X = problem.X.astype(np.longdouble)
    trainer.y = problem.y if labels else problem.y.astype(np.longdouble)
    return trainer


def in_bounds(own: Tensors | None, torch: Tensors | None, bounds: Tensors) -> float:
    """Return the largest difference of two sets of tensors, which both sides tell, in bounds."""
    assert own is not None
    assert torch is not None
    return max(float((np.abs(own[name] - torch[name]) / bounds[name]).max()) for name in torch)


LIMIT = 8.0
"""Bounds above which a step diverges."""

CLEAR = 20.0
"""Bounds that an effect must exceed to be asked for."""

NOISE = 4.0
"""Bounds that an effect must exceed for rounding to carry it over the limit of 8."""


def matched_faults(observed: Observed) -> list[str]:
    """Return what is wrong with the run of a matched spec: any divergence, at any stage.

    In two dtypes the coarser may overflow alone, which is no false alarm.
    """
    report, found = observed.report, []
    if overflows_alone(observed):
        return []
    if report.first_divergence is not None:
        first = report.first_divergence
        found.append(f"diverged at step {first.step}, {first.stage}: {first.at}")
    if report.first_loss_divergence is not None:
        found.append(f"loss diverged: {report.first_loss_divergence}")
    if report.comparison.first_by_stage:
        found.append(f"stages part: {report.comparison.first_by_stage}")
    swallowed = report.comparison.power is not None and report.comparison.power.reason()
    if report.verdict == "inconclusive" and not swallowed and not blown_up(observed):
        found.append(f"inconclusive: {report.reason}")
    return found


def overflows_alone(observed: Observed) -> bool:
    """Whether all that parts, parts because one side, in the coarser dtype, is not finite."""
    problem = observed.problem
    assert problem is not None
    apart = [
        one
        for row in observed.rows
        for one in (row.loss, *row.within.values(), *row.local.values())
        if one is not None and one.ratio > LIMIT
    ]
    mixed = problem.scratch_dtype != problem.framework_dtype
    return mixed and bool(apart) and all(map(infinite_alone, apart))


def blown_up(observed: Observed) -> bool:
    """Whether numbers of the last step come near the end of the coarser dtype's range."""
    assert observed.problem is not None
    dtypes = (observed.problem.scratch_dtype, observed.problem.framework_dtype)
    top = min(float(np.finfo(dtype).max) for dtype in dtypes)
    return any(
        not float(np.abs(value).max()) < top**0.45  # whose square is the loss
        for _, step, _ in observed.steps
        for tensors in (step.delta, step.gradient)
        for value in (*(step.outputs or ()), *(tensors or {}).values())
    )


def mismatched_faults(observed: Observed) -> list[str]:
    """Return what is wrong with the run of a mismatched spec: missed, late, early, wrong stage."""
    report = observed.report
    if report.comparison.saturation is not None and "float32" in report.dtypes:
        # What is left of a gradient is rounding, of which Adagrad and its like make whole steps:
        # that a rule without rounding makes the same ones says nothing.
        return []
    divergence, loss = report.first_divergence, report.first_loss_divergence
    seen = list(effects(observed))
    scales = {one.step: one.scale for one in seen}
    update = {one.step: one.update for one in seen}
    reported = {one.step: one.loss for one in seen}
    found = faults_of_step("update", update, scales, divergence)
    found += faults_of_step("loss", reported, scales, loss)
    if divergence is not None and not found and not infinite_alone(divergence.at):
        at = next(one for one in seen if one.step == divergence.step)
        found += faults_of_stage(at, divergence.stage)
    return found


def infinite_alone(difference: Difference) -> bool:
    """Whether one side alone is not finite, as the coarser of two dtypes may be."""
    return math.isfinite(difference.scratch) != math.isfinite(difference.framework)


def faults_of_step(
    what: str,
    effect: dict[int, float],
    scales: dict[int, float],
    divergence: Divergence | LossDivergence | None,
) -> list[str]:
    """Compare the step of a divergence with the effects by step."""
    step = None if divergence is None else divergence.step
    clear = next((k for k, size in effect.items() if size > CLEAR * scales[k]), None)
    if clear is not None and (step is None or step > clear):
        return [f"{what}: {effect[clear]:.3g} bounds at step {clear}, found at {step}"]
    if divergence is None or step is None or infinite_alone(divergence.at):
        return []
    if effect[step] * scales[step] < NOISE:
        return [f"{what}: diverged at step {step} by {effect[step]:.3g} bounds"]
    return []


def faults_of_stage(effect: Effect, stage: str) -> list[str]:
    """Compare the stage of a divergence with the effects by stage, in the stages' order."""
    sizes = effect.stages
    clear = next((name for name, size in sizes.items() if size > CLEAR * effect.scale), "update")
    order = [*sizes, "update"]
    if stage not in order or order.index(stage) > order.index(clear):
        return [f"stage {stage}, but {clear} is the first to part: {sizes}"]
    if stage != "update" and sizes[stage] * effect.scale < NOISE:
        return [f"stage {stage} by {sizes[stage]:.3g} bounds only: {sizes}"]
    return []
