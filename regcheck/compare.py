"""Steps of both sides to rows of differences, and the first divergence.

At each step there are three updates: the framework's, along its own trajectory; the scratch
side's from the framework's parameters (local); and the scratch side's along its own trajectory
(drift). A step diverges where a parameter's local difference exceeds `limit` times the rounding
bound; the stage named is the first within the step at which the two parted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from regcheck.problem import Array, Parameters, Step
from regcheck.rounding import Bounds
from regcheck.schedule import Batch


@dataclass(frozen=True, slots=True)
class Difference:
    """The entry of one tensor whose difference is the most bounds; ratio = difference/bound.

    The ratio is inf where one side alone is not finite. `judged` is false where some entry could
    not be judged, being finite on neither side or having no bound; the ratio is then that of the
    other entries, NaN if there are none.
    """

    tensor: str
    index: tuple[int, ...]
    scratch: float
    framework: float
    difference: float
    bound: float
    ratio: float
    judged: bool


class Row(NamedTuple):
    """One compared step.

    Attributes:
        loss: the reported losses, both at the framework's parameters.
        drift: the largest difference of each tensor, each side on its own trajectory.
        within: the worst local difference at each stage before the update.
        local: the worst local difference of each tensor after the update.
    """

    step: int
    epoch: int
    batch: int
    scratch_loss: float
    framework_loss: float
    loss: Difference
    drift: dict[str, float]
    within: dict[str, Difference]
    local: dict[str, Difference]

    @property
    def judged(self) -> bool:
        """Whether every parameter could be judged."""
        return all(difference.judged for difference in self.local.values())


class Divergence(NamedTuple):
    """The first step whose local difference rounding cannot explain.

    `at` is the parameter after the update; `within` is the difference at the stage named, in
    that stage's own quantity. `scratch` and `framework` are the updates that were compared.
    """

    step: int
    epoch: int
    batch: int
    stage: str
    at: Difference
    within: Difference
    scratch: Step
    framework: Step


def worst(tensor: str, scratch: Array, framework: Array, bound: Array) -> Difference:
    """Find the entry of a tensor whose difference is the most bounds.

    Raises:
        ValueError: the two have different shapes, or no entries.
    """
    if not scratch.shape == framework.shape == bound.shape or scratch.size == 0:
        shapes = f"{scratch.shape} and {framework.shape}, with bounds {bound.shape}"
        raise ValueError(f"{tensor}: cannot compare the shapes {shapes}")
    if scratch.size == 1:  # the bias: plain floats are several times faster than arrays of one
        return difference_of(
            tensor, (0,) * scratch.ndim, scratch.item(), framework.item(), bound.item()
        )
    with np.errstate(all="ignore"):
        ratios = np.abs(np.subtract(scratch, framework, dtype=np.float64)) / bound
        place = int(ratios.argmax())  # the first NaN, where there is one
        if math.isfinite(ratios.item(place) + float(np.add.reduce(bound, axis=None))):
            return difference_at(place, tensor, scratch, framework, bound)
    return worst_of_some(tensor, scratch, framework, bound)


def worst_of_some(tensor: str, scratch: Array, framework: Array, bound: Array) -> Difference:
    """Find the worst entry where some are not finite: what can be judged counts first."""
    found = [
        difference_at(place, tensor, scratch, framework, bound) for place in range(scratch.size)
    ]
    return replace(greatest(found), judged=all(one.judged for one in found))


def difference_at(
    place: int, tensor: str, scratch: Array, framework: Array, bound: Array
) -> Difference:
    """Compare one entry, counted along the rows."""
    index: tuple[int, ...] = ()
    rest = place
    for size in reversed(scratch.shape):
        rest, at = divmod(rest, size)
        index = (at, *index)
    return difference_of(
        tensor, index, scratch.item(place), framework.item(place), bound.item(place)
    )


def difference_of(
    tensor: str, index: tuple[int, ...], scratch: float, framework: float, bound: float
) -> Difference:
    """Compare two numbers.

    One alone that is not finite is infinitely far off, unless the bound is inf, which allows it.
    """
    difference = abs(scratch - framework)
    finite = math.isfinite(scratch), math.isfinite(framework)
    if bound == math.inf or not any(finite):
        ratio = math.nan
    elif not all(finite):
        ratio = math.inf
    elif bound == 0:
        ratio = math.inf if difference > 0 else 0.0
    else:
        ratio = difference / bound
    return Difference(
        tensor, index, scratch, framework, difference, bound, ratio, not math.isnan(ratio)
    )


def exceeds(difference: Difference, limit: float) -> bool:
    """Say whether rounding cannot explain a difference."""
    return difference.ratio > limit


def each(
    scratch: Parameters, framework: Parameters, bounds: Mapping[str, Array]
) -> dict[str, Difference]:
    """Compare tensor by tensor.

    Raises:
        ValueError: a tensor is missing on one side, or has no bound.
    """
    if not scratch.keys() == framework.keys() == bounds.keys():
        names = f"{sorted(scratch)} and {sorted(framework)}, with bounds for {sorted(bounds)}"
        raise ValueError(f"the sides have different tensors: {names}")
    return {name: worst(name, scratch[name], framework[name], bounds[name]) for name in framework}


def compare_loss(scratch: Step, framework: Step, bounds: Bounds) -> Difference:
    """Compare the reported losses at the same parameters."""
    return difference_of("loss", (), scratch.loss, framework.loss, bounds.loss)


def compare_step(batch: Batch, own: Step, local: Step, framework: Step, bounds: Bounds) -> Row:
    """Compare one step: `own` along its trajectory, `local` from the framework's parameters.

    Raises:
        ValueError: a tensor is missing on one side, or the shapes differ.
    """
    locally = each(local.after, framework.after, bounds.after)
    return Row(
        step=batch.step,
        epoch=batch.epoch,
        batch=batch.batch,
        scratch_loss=own.loss,
        framework_loss=framework.loss,
        loss=compare_loss(local, framework, bounds),
        drift={name: drift(own.after[name], w) for name, w in framework.after.items()},
        within=stages(local, framework, bounds),
        local=locally,
    )


def drift(scratch: Array, framework: Array) -> float:
    """Give the largest difference of a tensor's entries; NaN where one is not a number."""
    if framework.size == 1:
        return abs(float(scratch.item()) - float(framework.item()))
    with np.errstate(all="ignore"):
        return float(np.abs(np.subtract(scratch, framework, dtype=np.float64)).max())


def diverges(row: Row, limit: float) -> bool:
    """Say whether a parameter's local difference exceeds the limit."""
    return any(exceeds(difference, limit) for difference in row.local.values())


def stages(scratch: Step, framework: Step, bounds: Bounds) -> dict[str, Difference]:
    """Give the worst difference at each stage before the update, in the stages' order."""
    outputs = [
        worst("output", left, right, bound)
        for left, right, bound in zip(
            scratch.outputs, framework.outputs, bounds.outputs, strict=True
        )
    ]
    return {
        "forward": greatest(outputs),
        "gradient": greatest(each(scratch.gradient, framework.gradient, bounds.gradient).values()),
        "penalty": greatest(each(scratch.penalty, framework.penalty, bounds.penalty).values()),
        "optimizer": greatest(each(scratch.shift, framework.shift, bounds.shift).values()),
    }


def greatest(differences: Iterable[Difference]) -> Difference:
    """Give the difference with the largest ratio; one that cannot be judged counts least."""
    return max(differences, key=lambda one: -1.0 if math.isnan(one.ratio) else one.ratio)


def locate(row: Row, scratch: Step, framework: Step, bounds: Bounds, limit: float) -> Divergence:
    """Name the first stage at which a diverging step parts, and the entry that parts most.

    At that stage the same entry is told, unless another one alone parts there.
    """
    at = greatest(row.local.values())
    stage = next((name for name, found in row.within.items() if exceeds(found, limit)), "update")
    within = at if stage == "update" else row.within[stage]
    quantities = {
        "gradient": (scratch.gradient, framework.gradient, bounds.gradient),
        "penalty": (scratch.penalty, framework.penalty, bounds.penalty),
        "optimizer": (scratch.shift, framework.shift, bounds.shift),
    }
    if stage in quantities:
        values = (float(tensors[at.tensor][at.index]) for tensors in quantities[stage])
        same = difference_of(at.tensor, at.index, *values)
        within = same if exceeds(same, limit) else within
    return Divergence(row.step, row.epoch, row.batch, stage, at, within, scratch, framework)
