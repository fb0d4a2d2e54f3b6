"""Steps of both sides to rows of differences, and the first divergence.

At each step there are up to four updates (`lockstep`): each side's along its own trajectory, and
both sides' from the leader's parameters (local). What is judged is each tensor's own tolerance:

    rounding K      |local − framework| ≤ K bound
    rtol, atol      |own − framework| ≤ atol + rtol |framework|
    exact           own and framework have the same bits

A step diverges where a parameter does not keep its tolerance; the stage named is the first within
the step at which the two parted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from regcheck.numerics.packing import Layout, common_layout, finite, flat, position
from regcheck.numerics.rounding import Bounds
from regcheck.problem.batches import Batch
from regcheck.problem.problem import Array, Parameters, Step
from regcheck.spec.tolerance import Tolerance, Tolerances
from regcheck.trainers.lockstep import Steps


class Difference(NamedTuple):
    """The entry of one tensor whose difference is the most bounds; ratio = difference/bound.

    The ratio is inf where one side alone is not finite. `judged` is false where some entry could
    not be judged, being finite on neither side or having no bound; the ratio is then that of the
    other entries, NaN if there are none.
    """

    tensor: str
    index: tuple[int, ...]  # type: ignore[assignment]  # as tuples have a method of that name
    scratch: float
    framework: float
    difference: float
    bound: float
    ratio: float
    judged: bool


class Row(NamedTuple):
    """One compared step.

    Attributes:
        loss: the reported losses, both at the leader's parameters; None where a side tells none.
        drift: the largest difference of each tensor, each side on its own trajectory.
        within: the worst local difference at each stage before the update that both sides tell.
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
    that stage's own quantity, or `at` itself. `scratch` and `framework` are the updates from the
    same parameters.
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
    return greatest(found)._replace(judged=all(one.judged for one in found))


def difference_at(
    place: int, tensor: str, scratch: Array, framework: Array, bound: Array
) -> Difference:
    """Compare one entry, counted along the rows."""
    index = position(place, scratch.shape)
    return difference_of(
        tensor, index, scratch.item(place), framework.item(place), bound.item(place)
    )


def difference_of(
    tensor: str, index: tuple[int, ...], scratch: float, framework: float, bound: float
) -> Difference:
    """Compare two numbers.

    One alone that is not finite is infinitely far off, unless the bound is inf, which allows it.
    Two finite numbers with no bound, inf or NaN, cannot be judged.
    """
    difference = abs(scratch - framework)
    finite = math.isfinite(scratch), math.isfinite(framework)
    if bound == math.inf or not any(finite):
        ratio = math.nan
    elif not all(finite):
        ratio = math.inf
    elif math.isnan(bound):
        ratio = math.nan
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
    layout = common_layout(scratch, framework, bounds)
    if layout is not None:
        found = worst_of_each(layout, flat(scratch), flat(framework), flat(bounds))
        if found is not None:
            return found
    return {name: worst(name, scratch[name], framework[name], bounds[name]) for name in framework}


def worst_of_each(
    layout: Layout, here: Array, there: Array, bound: Array
) -> dict[str, Difference] | None:
    """Compare all tensors at once, as `worst` does each; None where some entry is not finite."""
    places, ratios = [0] * len(layout.sizes), [-1.0] * len(layout.sizes)
    for part, tensors, starts in layout.blocks:
        with np.errstate(all="ignore"):
            some = np.abs(here[part] - there[part]) / bound[part]
        if not finite(some, bound[part]):
            return None
        for tensor, start, stop in zip(
            range(tensors.start, tensors.stop), starts, [*starts[1:], len(some)], strict=True
        ):
            place = start + int(some[start:stop].argmax())
            if some.item(place) > ratios[tensor]:
                places[tensor], ratios[tensor] = part.start + place, some.item(place)
    return {
        name: difference_of(
            name,
            position(place - start, shape),
            here.item(place),
            there.item(place),
            bound.item(place),
        )
        for (name, _, shape), start, place in zip(layout.places, layout.starts, places, strict=True)
    }


def local_differences(local: Step, framework: Step, bounds: Bounds) -> dict[str, Difference]:
    """Compare each parameter after the update, and the loss, both from the same parameters.

    Raises:
        ValueError: a tensor is missing on one side, or the shapes differ.
    """
    found = each(local.after, framework.after, bounds.after)
    if local.loss is not None and framework.loss is not None:
        found["loss"] = difference_of("loss", (), local.loss, framework.loss, bounds.loss)
    return found


def drift_differences(
    tolerances: Tolerances, own: Parameters, framework: Parameters
) -> dict[str, Difference]:
    """Compare those parameters of the two trajectories whose tolerance is on the drift."""
    return {
        name: within_tolerance(tolerances.of(name), name, own[name], theirs)
        for name, theirs in framework.items()
        if tolerances.of(name).on_drift
    }


def judge(
    tolerances: Tolerances, own: Step, framework: Step, local: dict[str, Difference]
) -> dict[str, Difference]:
    """Put drift in the place of those local differences whose tolerance is on it."""
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


def within_tolerance(
    tolerance: Tolerance, name: str, scratch: Array, framework: Array
) -> Difference:
    """Compare two trajectories' tensors: the bound of an entry is atol + rtol |framework|.

    With `exact` the bound is 0, and zeros of different sign are infinitely far apart.
    """
    scratch, framework = scratch.astype(np.float64), framework.astype(np.float64)
    with np.errstate(all="ignore"):
        allowed = (tolerance.atol or 0.0) + (tolerance.rtol or 0.0) * np.abs(framework)
        # However much is allowed, it is a number: else one infinite side would allow the other.
        allowed = np.minimum(allowed, np.finfo(np.float64).max)
    found = worst(name, scratch, framework, allowed)
    signs = np.signbit(scratch) != np.signbit(framework)
    if tolerance.exact and found.ratio == 0 and found.judged and signs.any():
        at = difference_at(int(signs.argmax()), name, scratch, framework, allowed)
        return at._replace(ratio=math.inf)
    return found


def compare_step(batch: Batch, steps: Steps, bounds: Bounds, tolerances: Tolerances) -> Row:
    """Compare one step of both sides.

    Raises:
        ValueError: a tensor is missing on one side, or the shapes differ.
    """
    own, alone, local, framework, _ = steps
    found = local_differences(local, framework, bounds)
    return Row(
        step=batch.step,
        epoch=batch.epoch,
        batch=batch.batch,
        scratch_loss=math.nan if own.loss is None else own.loss,
        framework_loss=math.nan if alone.loss is None else alone.loss,
        loss=found.get("loss"),
        drift=drifts(own.after, alone.after),
        within=stages(local, framework, bounds),
        local={name: found[name] for name in framework.after},
        judged=judge(tolerances, own, alone, found),
    )


def drifts(own: Parameters, alone: Parameters) -> dict[str, float]:
    """Return the largest difference of each tensor; NaN where one is not a number."""
    layout = common_layout(own, alone)
    if layout is None:
        return {name: drift(own[name], w) for name, w in alone.items()}
    here, there = flat(own), flat(alone)
    with np.errstate(all="ignore"):
        most = layout.reduced(lambda part: np.abs(here[part] - there[part]))
    return dict(zip(alone, most, strict=True))


def injected(local: Step, framework: Step) -> float:
    """Give the largest difference that one step put in, in any parameter's entry."""
    return max(drifts(local.after, framework.after).values())


def drift(scratch: Array, framework: Array) -> float:
    """Give the largest difference of a tensor's entries; NaN where one is not a number."""
    if framework.size == 1:
        return abs(float(scratch.item()) - float(framework.item()))
    with np.errstate(all="ignore"):
        return float(np.abs(np.subtract(scratch, framework, dtype=np.float64)).max())


def diverges(row: Row, tolerances: Tolerances) -> bool:
    """Say whether a parameter does not keep its tolerance."""
    return any(exceeds(row.judged[name], tolerances.of(name).limit) for name in row.local)


def in_limits(difference: Difference, tolerances: Tolerances) -> float:
    """Give a ratio in units of its limit, by which tensors can be ranked; −1 if unknown."""
    if math.isnan(difference.ratio):
        return -1.0
    return difference.ratio / tolerances.of(difference.tensor).limit


def differs(stage: Difference, tolerances: Tolerances) -> bool:
    """Whether the sides differ at a stage within a step."""
    return exceeds(stage, tolerances.of(stage.tensor).limit_within)


def stages(scratch: Step, framework: Step, bounds: Bounds) -> dict[str, Difference]:
    """Give the worst difference at each stage before the update, in the stages' order.

    A stage that either side does not tell is left out.
    """
    found = {}
    if scratch.outputs is not None and framework.outputs is not None:
        triples = zip(scratch.outputs, framework.outputs, bounds.outputs, strict=True)
        found["forward"] = greatest(worst("output", *triple) for triple in triples)
    for stage, (here, there, bound) in quantities(scratch, framework, bounds).items():
        if here is not None and there is not None:
            found[stage] = greatest(each(here, there, bound).values())
    return found


def quantities(
    scratch: Step, framework: Step, bounds: Bounds
) -> dict[str, tuple[Parameters | None, Parameters | None, Parameters]]:
    """Give what is compared of each tensor at the stages before the update, with its bounds."""
    return {
        "gradient": (scratch.gradient, framework.gradient, bounds.gradient),
        "penalty": (scratch.penalty, framework.penalty, bounds.penalty),
        "optimizer": (scratch.delta, framework.delta, bounds.delta),
    }


def greatest(differences: Iterable[Difference]) -> Difference:
    """Give the difference with the largest ratio; one that cannot be judged counts least."""
    return max(differences, key=lambda one: -1.0 if math.isnan(one.ratio) else one.ratio)


def locate(
    row: Row, scratch: Step, framework: Step, bounds: Bounds, tolerances: Tolerances
) -> Divergence:
    """Name the first stage at which a diverging step parts, and the entry that parts most.

    At that stage the same entry is told, unless another one alone parts there.
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
    told = quantities(scratch, framework, bounds)
    if stage in told:
        values = [float(tensors[at.tensor][at.index]) for tensors in told[stage] if tensors]
        same = difference_of(at.tensor, at.index, *values)
        within = same if differs(same, tolerances) or not differs(within, tolerances) else within
    return Divergence(row.step, row.epoch, row.batch, stage, at, within, scratch, framework)
