"""Differences of tensors: the entry of each whose difference is the most bounds, and the drift."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from regcheck.numerics.packing import (
    Layout,
    are_finite,
    common_layout,
    flat,
    position,
)
from regcheck.problem.problem import Array, Parameters
from regcheck.spec.sections.tolerance import Tolerance, Tolerances


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


def worst(tensor: str, scratch: Array, framework: Array, bound: Array) -> Difference:
    """Find the entry of a tensor whose difference is the most bounds.

    Raises:
        ValueError: the two have different shapes, or no entries.
    """
    if not scratch.shape == framework.shape == bound.shape or scratch.size == 0:
        shapes = f"{scratch.shape} and {framework.shape}, with bounds {bound.shape}"
        raise ValueError(f"{tensor}: cannot compare the shapes {shapes}")
    if scratch.size == 1:  # the bias: plain floats are several times faster than arrays of one
        return difference_at(0, tensor, scratch, framework, bound)
    ratios = np.abs(np.subtract(scratch, framework, dtype=np.float64)) / bound
    place = int(ratios.argmax())  # the first NaN, where there is one
    if math.isfinite(ratios.item(place) + float(np.add.reduce(bound, axis=None))):
        return difference_at(place, tensor, scratch, framework, bound)
    # Some entries are not finite: those that can be judged count first.
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
    """Whether rounding cannot explain a difference."""
    return difference.ratio > limit


def each(
    scratch: Parameters, framework: Parameters, bounds: Mapping[str, Array]
) -> dict[str, Difference]:
    """Compare tensor by tensor.

    Raises:
        ValueError: a tensor is missing on one side, or has no bound.
    """
    layout = common_layout(scratch, framework, bounds)
    if layout is not None:
        found = worst_of_each(layout, flat(scratch), flat(framework), flat(bounds))
        if found is not None and are_finite(bounds):
            return found
    elif not scratch.keys() == framework.keys() == bounds.keys():
        names = f"{sorted(scratch)} and {sorted(framework)}, with bounds for {sorted(bounds)}"
        raise ValueError(f"the sides have different tensors: {names}")
    return {name: worst(name, scratch[name], framework[name], bounds[name]) for name in framework}


def worst_of_each(
    layout: Layout, here: Array, there: Array, bound: Array
) -> dict[str, Difference] | None:
    """Compare all tensors at once, as `worst` does each; None where some ratio is not finite."""
    places, ratios = [0] * len(layout.sizes), [-1.0] * len(layout.sizes)
    for part, _, _, spans in layout.blocks:
        some = np.abs(here[part] - there[part]) / bound[part]
        for tensor, start, stop in spans:
            place = start + int(some[start:stop].argmax())  # the first NaN, where there is one
            ratio = some.item(place)
            if not math.isfinite(ratio):
                return None
            if ratio > ratios[tensor]:
                places[tensor], ratios[tensor] = part.start + place, ratio
    each = zip(layout.places, layout.starts, places, ratios, strict=True)
    return {
        name: Difference(
            name,
            position(place - start, shape),
            a := here.item(place),
            b := there.item(place),
            abs(a - b),
            bound.item(place),
            ratio,
            judged=True,
        )
        for (name, _, shape), start, place, ratio in each
    }


def worst_of_all(
    scratch: Parameters, framework: Parameters, bounds: Mapping[str, Array]
) -> Difference:
    """Find the entry, of all tensors, whose difference is the most bounds.

    Raises:
        ValueError: a tensor is missing on one side, or has no bound.
    """
    layout = common_layout(scratch, framework, bounds)
    if layout is not None:
        here, there, bound = flat(scratch), flat(framework), flat(bounds)
        ratios = np.abs(here - there) / bound
        place = int(ratios.argmax())
        ratio = ratios.item(place)
        if math.isfinite(ratio) and are_finite(bounds):
            a, b = here.item(place), there.item(place)
            return Difference(*layout.at(place), a, b, abs(a - b), bound.item(place), ratio, True)
    return greatest(each(scratch, framework, bounds).values())


def drift_differences(
    tolerances: Tolerances, own: Parameters, framework: Parameters
) -> dict[str, Difference]:
    """Compare those parameters of the two trajectories whose tolerance is on the drift."""
    if not tolerances.on_drift:
        return {}
    return {
        name: within_tolerance(tolerances.of(name), name, own[name], theirs)
        for name, theirs in framework.items()
        if tolerances.of(name).on_drift
    }


def within_tolerance(
    tolerance: Tolerance, name: str, scratch: Array, framework: Array
) -> Difference:
    """Compare two trajectories' tensors: the bound of an entry is atol + rtol |framework|.

    With `exact` the bound is 0, and zeros of different sign are infinitely far apart.
    """
    scratch, framework = scratch.astype(np.float64), framework.astype(np.float64)
    allowed = (tolerance.atol or 0.0) + (tolerance.rtol or 0.0) * np.abs(framework)
    # However much is allowed, it is a number: else one infinite side would allow the other.
    allowed = np.minimum(allowed, np.finfo(np.float64).max)
    found = worst(name, scratch, framework, allowed)
    signs = np.signbit(scratch) != np.signbit(framework)
    if tolerance.exact and found.ratio == 0 and found.judged and signs.any():
        at = difference_at(int(signs.argmax()), name, scratch, framework, allowed)
        return at._replace(ratio=math.inf)
    return found


def drifts(own: Parameters, framework: Parameters) -> dict[str, float]:
    """Return the largest difference of each tensor; NaN where one is not a number."""
    layout = common_layout(own, framework)
    if layout is None:
        return {name: drift(own[name], w) for name, w in framework.items()}
    here, there = flat(own), flat(framework)
    most = layout.reduced(lambda part: np.abs(here[part] - there[part]))
    return dict(zip(framework, most.tolist(), strict=True))


def greatest_drift(own: Parameters, framework: Parameters) -> float:
    """Return the largest difference of any tensor; NaN where one is not a number."""
    if common_layout(own, framework) is None:
        return float(np.max(list(drifts(own, framework).values())))
    return float(np.abs(flat(own) - flat(framework)).max())


def drift(scratch: Array, framework: Array) -> float:
    """Return the largest difference of a tensor's entries; NaN where one is not a number."""
    if framework.size == 1:
        return abs(float(scratch.item()) - float(framework.item()))
    return float(np.abs(np.subtract(scratch, framework, dtype=np.float64)).max())


def greatest(differences: Iterable[Difference]) -> Difference:
    """Return the difference with the largest ratio; one that cannot be judged counts least."""
    return max(differences, key=lambda one: -1.0 if math.isnan(one.ratio) else one.ratio)
