"""One step of both sides to a row of differences, and the stage and entry at which it diverges.

At each step there are up to four updates (`Steps`): each side's along its own trajectory, and
both sides' from the reference's parameters (local). What is judged is each tensor's own tolerance:

    rounding K      |local − framework| ≤ K bound
    rtol, atol      |own − framework| ≤ atol + rtol |framework|
    exact           own and framework have the same bits

A step diverges where a parameter does not keep its tolerance; the stage named is the first within
the step at which the two differ.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from regcheck.compare.differences import (
    Difference,
    difference_of,
    drift_differences,
    drifts,
    each,
    exceeds,
    greatest,
    greatest_drift,
    within_tolerance,
    worst,
    worst_of_all,
)
from regcheck.numerics.bounds.rounding import Bounds
from regcheck.problem.batches import Batch
from regcheck.problem.problem import Parameters, Step
from regcheck.spec.sections.tolerance import Tolerances
from regcheck.trainers.lockstep import Steps


class Row(NamedTuple):
    """One compared step.

    Attributes:
        loss: the reported losses, both at the reference's parameters; None where one is missing.
        drift: the largest difference of each tensor, each side on its own trajectory.
        within: the worst local difference at each stage before the update that both sides report.
        local: the worst local difference of each tensor after the update.
        judged: the worst difference by the tolerance of each tensor and of the loss: the local
            one, or the drift in units of what is allowed.
    """

    step: int
    epoch: int
    batch: int
    scratch_loss: float
    framework_loss: float
    loss: Difference | None
    drift: dict[str, float]
    within: dict[str, Difference]
    local: dict[str, Difference]
    judged: dict[str, Difference]

    @property
    def complete(self) -> bool:
        """Whether every parameter could be judged."""
        return all(self.judged[name].judged for name in self.local)


class Divergence(NamedTuple):
    """The first step at which a parameter does not keep its tolerance.

    `at` is the parameter after the update; `within` is the local difference at the stage named, in
    that stage's own quantity, or `at` itself.
    """

    step: int
    epoch: int
    batch: int
    stage: str
    at: Difference
    within: Difference


def local_differences(local: Step, framework: Step, bounds: Bounds) -> dict[str, Difference]:
    """Compare each parameter after the update, and the loss, both from the same parameters.

    Raises:
        ValueError: a tensor is missing on one side, or the shapes differ.
    """
    found = each(local.after, framework.after, bounds.after)
    if local.loss is not None and framework.loss is not None:
        found["loss"] = difference_of("loss", (), local.loss, framework.loss, bounds.loss)
    return found


def judge(
    tolerances: Tolerances, own: Step, framework: Step, local: dict[str, Difference]
) -> dict[str, Difference]:
    """Put drift in the place of those local differences whose tolerance is on it."""
    if not tolerances.on_drift:
        return local
    judged = local | drift_differences(tolerances, own.after, framework.after)
    tolerance = tolerances.of("loss")
    if tolerance.on_drift and "loss" in local:
        here, there = (np.asarray(loss, np.float64) for loss in (own.loss, framework.loss))
        judged["loss"] = within_tolerance(tolerance, "loss", here, there)
    return judged


def compare_start(
    own: Parameters, framework: Parameters, bounds: Parameters, tolerances: Tolerances
) -> tuple[dict[str, Difference], dict[str, Difference]]:
    """Compare the parameters before step 1: by rounding, and by each one's tolerance."""
    local = each(own, framework, bounds)
    return local, local | drift_differences(tolerances, own, framework)


def compare_step(batch: Batch, steps: Steps, bounds: Bounds, tolerances: Tolerances) -> Row:
    """Compare one step of both sides.

    Raises:
        ValueError: a tensor is missing on one side, or the shapes differ.
    """
    own, framework_own, local, framework, _ = steps
    found = local_differences(local, framework, bounds)
    return Row(
        step=batch.step,
        epoch=batch.epoch,
        batch=batch.batch,
        scratch_loss=math.nan if own.loss is None else own.loss,
        framework_loss=math.nan if framework_own.loss is None else framework_own.loss,
        loss=found.get("loss"),
        drift=drifts(own.after, framework_own.after),
        within=stages(local, framework, bounds),
        local={name: found[name] for name in framework.after},
        judged=judge(tolerances, own, framework_own, found),
    )


def diverges(row: Row, tolerances: Tolerances) -> bool:
    """Whether a parameter does not keep its tolerance."""
    return any(exceeds(row.judged[name], tolerances.of(name).limit) for name in row.local)


def in_limits(difference: Difference, tolerances: Tolerances) -> float:
    """Return a ratio in units of its limit, by which tensors can be ranked; −1 if unknown."""
    if math.isnan(difference.ratio):
        return -1.0
    return difference.ratio / tolerances.of(difference.tensor).limit


def differs(stage: Difference, tolerances: Tolerances) -> bool:
    """Whether the sides differ at a stage within a step."""
    return exceeds(stage, tolerances.of(stage.tensor).limit_within)


def stages(scratch: Step, framework: Step, bounds: Bounds) -> dict[str, Difference]:
    """Return the worst difference at each stage before the update, in the stages' order.

    A stage that either side does not report is left out.
    """
    found = {}
    if scratch.outputs is not None and framework.outputs is not None and bounds.outputs:
        triples = zip(scratch.outputs, framework.outputs, bounds.outputs, strict=True)
        found["forward"] = greatest(worst("output", *triple) for triple in triples)
    for stage, (here, there, bound) in quantities(scratch, framework, bounds).items():
        if here is not None and there is not None:
            found[stage] = worst_of_all(here, there, bound)
    return found


def quantities(
    scratch: Step, framework: Step, bounds: Bounds
) -> dict[str, tuple[Parameters | None, Parameters | None, Parameters]]:
    """Return what is compared of each tensor at the stages before the update, with its bounds."""
    return {
        "gradient": (scratch.gradient, framework.gradient, bounds.gradient),
        "penalty": (scratch.penalty, framework.penalty, bounds.penalty),
        "optimizer": (scratch.delta, framework.delta, bounds.delta),
    }


def locate(
    row: Row, scratch: Step, framework: Step, bounds: Bounds, tolerances: Tolerances
) -> Divergence:
    """Name the first stage at which a diverging step differs, and the entry that differs most.

    At that stage the same entry is reported, unless only another one differs there.
    """
    at = max(
        (row.judged[name] for name in row.local),
        key=lambda one: in_limits(one, tolerances),
    )
    stage = next(
        (name for name, found in row.within.items() if differs(found, tolerances)), "update"
    )
    if stage == "update" and tolerances.of(at.tensor).exact:  # by rounding alone, but where
        stage = next((name for name, found in row.within.items() if found.ratio > 0), "update")
    within = at if stage == "update" else row.within[stage]
    compared = quantities(scratch, framework, bounds)
    if stage in compared:
        values = [float(tensors[at.tensor][at.index]) for tensors in compared[stage] if tensors]
        same = difference_of(at.tensor, at.index, *values)
        within = same if differs(same, tolerances) or not differs(within, tolerances) else within
    return Divergence(row.step, row.epoch, row.batch, stage, at, within)


def injected(local: Step, framework: Step) -> float:
    """Return the largest difference that one step put in, in any parameter's entry."""
    return greatest_drift(local.after, framework.after)


def suspicious(row: Row, tolerances: Tolerances) -> bool:
    """Whether anything in a row but its loss differs by more than its bounds allow."""
    found = (*row.local.values(), *row.within.values())
    return any(not one.ratio <= tolerances.of(one.tensor).limit_within for one in found)
