"""What a run of a random user's function finds, and what it must find."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regcheck.diagnosis.records import Explanation
from tests.exact_steps import NOISE, SINGLE, SURE, Seen, exactly, torchs_gradients
from tests.faults import FAULTS, OPEN, OUTSIDE
from tests.judged_losses import faults_of_losses
from tests.random_functions import Case, batch_of
from tests.rule import Rule
from tests.user_functions import schedule_of

SLACK = 1.5
"""Limits that an explanation may leave in extended precision; the engine allows 1 in float64."""

SLOW = 5.0
"""Seconds that a diagnosis may take."""


def faults_of(seen: Seen) -> list[str]:
    """Return what is wrong with a run's verdict and its diagnosis."""
    found: list[str] = []
    torch = list(exactly(seen, Rule()))
    largest = max((one.update for one in torch), default=0.0)
    divergence = seen.report.first_divergence
    finite = all(math.isfinite(one.update) for one in torch)
    if divergence is None and largest > 1 + NOISE and finite:
        found.append(f"not found: the code is {largest:.3g} limits off torch's rule")
    if divergence is not None and largest < NOISE:
        found.append(f"diverged, {largest:.3g} limits off torch's rule")
    if divergence is not None:
        found += faults_of_updates(seen, largest)
    found += faults_of_losses(seen, [one.loss for one in torch])
    if seen.used > SLOW:
        found.append(f"the diagnosis took {seen.used:.1f} s")
    return found


def faults_of_updates(seen: Seen, largest: float) -> list[str]:
    """Return what is wrong with the explanation of the updates."""
    case, found = seen.case, []
    explanations = seen.diagnosis.explanations
    for one in explanations:
        found += faults_of_explanation(seen, one)
    if found:
        return found
    told = [one.causes for one in explanations]
    if case.wrong:
        if explanations and not all(is_telling(seen, one) for one in explanations):
            found.append(f"{case.wrong} is explained by {told}, of which no step tells")
    elif explanations:
        hidden = {one.cause for one in seen.report.not_distinguished}
        shown = must_be_named(seen) and (len(case.causes) == 1 or not case.causes & hidden)
        if shown and not any(is_planted(case, one) for one in explanations):
            found.append(f"{sorted(case.causes)} is not among {told}")
    elif largest > SURE and must_be_named(seen):
        found.append(f"{sorted(case.causes)}, {largest:.3g} limits, is not named")
    return found


def is_telling(seen: Seen, one: Explanation) -> bool:
    """Whether an explanation has more numbers to make than it is free to choose.

    A mistake that has no name may come to the very steps of a cause that has one, as where a wrong
    slope is 0.9 times the right one at every row. By luck it never does.
    """
    history = seen.history
    steps = slice(1, None) if "initial-parameters" in one.causes else slice(None)
    shown = history.all("scratch") - history.all("framework" if one.fits else "before")
    limits = history.all("bound") * seen.limits("weight")
    with np.errstate(all="ignore"):
        return int((np.abs(shown) > limits)[steps].sum()) > len(one.fits)


def must_be_named(seen: Seen) -> bool:
    """Whether a run tells its causes from mistakes that have no name."""
    spec, causes = seen.case.spec, seen.case.causes
    if "precision" in causes and spec["loss"] == "bce":
        return False  # in float32 the slope fades out from z = 16 on, which is no rounding
    if "float32" in str(spec["dtype"]) and spec["loss"] == "bce" and len(causes) > 1:
        return False  # likewise, where two causes let z grow
    if {"clip_norm", "clip_value"} & set(spec) and causes & OPEN:
        return False  # a factor on what is clipped is no factor on the step
    if "update-sequential" in causes and causes & OPEN:
        return False  # nor is one on a gradient that is taken after it has acted
    if "schedule-differs" in causes and len(lrs_of(seen)) == 1:
        return False  # which is told, as no schedule
    if "row-order" in causes and len(steps_off(seen)) < 2:
        return False  # one step on other rows may be another cause's, by Adafactor its sign alone
    if hides_in_rounding(seen):
        return False
    history = seen.history
    if len(causes) > 1 and (history.all("scratch") == history.all("before")).all():
        return False  # what never takes a step is no causes that come to none together
    if "initial-parameters" in seen.case.causes:
        # The first step may start anywhere: later ones must move.
        moved = np.abs(history.all("framework") - history.all("before"))[1:]
        return bool((moved > history.all("bound")[1:] * seen.limits("weight")).any())
    return all(np.isfinite(record.bound).all() for record in history.records())


def hides_in_rounding(seen: Seen) -> bool:
    """Whether the code's rule does not make its steps of torch's gradients, which round otherwise.

    A step that divides by the gradient's size has nothing of its rounding, but one by a fault may.
    """
    rule, torchs = seen.case.code.rule, Rule()
    if seen.case.causes & UNLIKE or any(
        getattr(rule, key) != getattr(torchs, key) for key in OF_THE_PASS
    ):
        return False
    steps = exactly(seen, rule, gradients=torchs_gradients(seen))
    return max((step.update for step in steps), default=0.0) > 1


OF_THE_PASS = ("gradient", "half", "micro_batches", "order", "reduce", "slope", "target")
"""What of a rule makes another gradient than torch's of the rows."""


def steps_off(seen: Seen) -> NDArray[np.intp]:
    """Return the steps, from 0 on, that are torch's to no rounding."""
    history = seen.history
    limits = history.all("bound") * seen.limits("weight")
    with np.errstate(all="ignore"):
        off = np.abs(history.all("scratch") - history.all("framework")) > limits
    return np.flatnonzero(off.any(axis=1))


def lrs_of(seen: Seen) -> set[float]:
    """Return the lrs that the code takes."""
    per_epoch = seen.problem.steps // seen.problem.epochs
    rate = schedule_of(seen.case.spec, per_epoch, seen.case.code.rule)
    return {rate(step) for step in range(seen.problem.steps)}


def is_planted(case: Case, one: Explanation) -> bool:
    """Whether an explanation is what was planted, under any name that is as true.

    Some of several planted causes may be all that shows.
    """
    for cause, fit in one.fits.items():
        factor = case.factors.get(cause)
        slack = max(1e-6, 10 * fit.deviation)
        if factor is None or set(one.causes) != case.causes:
            continue
        if abs(fit.factor - factor) > slack * max(1, abs(factor)):
            return False
    ways = [{*case.causes}]
    for cause in case.causes & OTHER_NAMES.keys():
        ways += [{*case.causes} - {cause} | {name} for name in OTHER_NAMES[cause]]
    return any(set(one.causes) <= way for way in ways)


OTHER_NAMES: dict[str, tuple[str, ...]] = {
    # c g over its own size is g with ε/c.
    "gradient-scaled": (
        "accumulation-not-averaged",
        "loss-halved",
        "loss-summed",
        "option-differs",
    ),
    # With one step an epoch.
    "optimizer-state-reset": ("momentum-missing",),
    # Few lrs are those of a schedule that is late, too.
    "schedule-differs": ("schedule-shifted",),
    "penalty-scaled": (
        "penalty-divided-by-batch",
        "penalty-divided-by-dataset",
        "penalty-doubled",
        "penalty-halved",
        "penalty-missing",
        "penalty-sign-flipped",
    ),
}
"""The causes that another may be one more name for, where they make the same steps."""


def faults_of_explanation(seen: Seen, one: Explanation) -> list[str]:
    """Whether the rule that an explanation names makes the code's steps, without rounding."""
    if "row-order" in one.causes:
        # Where nothing moves much, an old gradient is that of the rows before.
        late = seen.case.wrong in ("stale", "stale-weight")
        known = "row-order" in seen.case.causes or late
        return [] if known else [f"{one.causes} though in order"]
    clipped = {"clip_norm", "clip_value"} & set(seen.case.spec)
    if clipped and one.by_entry is not None and one.by_entry.what != "lr":
        return []  # what is put into the gradient is clipped with it
    changes: dict[str, Any] = {}
    for cause in one.causes:
        if cause not in OUTSIDE:
            changes |= FAULTS[cause].changes
            key = FAULTS[cause].key
            if key is not None and cause in one.fits:
                changes[key] = one.fits[cause].factor
        if cause in FOUND:
            field, key = FOUND[cause]
            changes[field] = one.change[key]
    if one.weight_decay is not None:  # each tensor's own is told, in the place of a factor
        decays = dict(one.weight_decay)
        seen = replace(seen, problem=replace(seen.problem, weight_decay=decays))
    rule = Rule(**changes)
    start = seen.diagnosis.start if "initial-parameters" in one.causes else None
    of = one.tensors or seen.history.shapes.keys()
    left = np.array([step.update for step in exactly(seen, rule, start, one.by_entry, of)])
    left /= own_rounding(seen)
    if start is not None:
        left = left[1:]  # the bound of the first is that at the spec's start
    allowed = SLACK * gain(seen, rule) * (SINGLE if "precision" in one.causes else 1)
    largest = left.max(initial=0.0)
    if largest > allowed:
        return [f"{one.causes} leaves {largest:.3g} limits"]
    others = seen.history.shapes.keys() - of  # which go by torch's rule
    largest = max((step.update for step in exactly(seen, Rule(), tensors=others)), default=0.0)
    return [f"{others} are {largest:.3g} limits off torch's rule"] if largest > SLACK else []


def own_rounding(seen: Seen) -> NDArray[np.floating]:
    """Return the limits that rounding alone is in each of the code's steps, 1 at least.

    What the code's own rule leaves without rounding, as where a variance E[g²] − E[g]² is nearly 0.
    """
    case = seen.case
    if case.wrong or case.causes & UNLIKE:
        return np.ones(len(seen.history))
    return np.array([max(1.0, step.update) for step in exactly(seen, case.code.rule)])


UNLIKE = frozenset({"initial-parameters", "precision", "row-order"})
"""The causes with which the code's steps are not those of its rule."""

FOUND = {
    "schedule-shifted": ("early", "lr_shift"),
    "schedule-differs": ("schedule", "lr_schedule"),
    "option-differs": ("other", "options"),
}
"""Causes whose numbers are found: the field of the rule, and the key of the change."""


def gain(seen: Seen, rule: Rule) -> float:
    """Return how many times larger a rule makes the gradient, and so its rounding, at most."""
    spec, rows = seen.case.spec, len(seen.case.y)
    largest = abs(rule.half * rule.gradient * rule.rate)
    largest *= batch_of(spec, rows) if rule.reduce == "sum" else 1
    largest *= spec["accumulate"] if rule.micro_batches == "sum" else 1
    largest *= len(seen.history) if not rule.zeroed else 1
    if rule.early or rule.schedule or rule.velocity == "lr inside":
        steps = range(1, seen.report.comparison.steps + 2)
        schedules = (seen.history.schedule, seen.history.schedule.with_keys(rule.schedule))
        rates = [one.lr_at(step) for step in steps for one in schedules]
        largest *= max(rates) / min(rate for rate in rates if rate)
    if rule.velocity in ("none", "dampened"):
        largest /= 1 - spec["optimizer"].get("dampening", 0)
    return max(1.0, largest)
