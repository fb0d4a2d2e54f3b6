"""What is known of a divergence that no cause explains: where it is, and who is right."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from regcheck.compare.history import History, Record
from regcheck.diagnosis.effective_settings import (
    EffectiveSettings,
    other_penalty,
    own_shifts,
    rates,
    recursion,
    window,
)
from regcheck.diagnosis.records import Observed
from regcheck.diagnosis.replay import Replay
from regcheck.diagnosis.search import LATE
from regcheck.problem.problem import Array
from regcheck.rules.convention import is_bias
from regcheck.rules.settings import Training

Indices = NDArray[np.intp]
"""Places of some entries."""


def without_cause(
    seen: Observed, replay: Replay, scales: Mapping[str, EffectiveSettings]
) -> tuple[list[str], str]:
    """Say what is known where nothing in the catalogue explains the updates; and the stage."""
    clues = late_clues(seen)
    record = next((one for one in seen.history.records() if one.batch.step == seen.first), None)
    if record is None:
        kept = len(seen.history)
        return [*clues, f"Only the first {kept:,} steps are kept and could be replayed."], "update"
    lost = lost_clue(seen, record)
    if lost:
        return [*clues, lost], "update"
    if replay.residual({}) <= 1:
        return [*clues, KEEPS_TO_IT], "update"
    agrees = gradient_agrees(seen, record)
    clues += gradient_clues(agrees)
    rate = "" if agrees is False else rate_clue(replay)
    if rate:
        return [*clues, rate], "optimizer"
    penalty = "" if agrees is False else penalty_clue(replay)
    if penalty:
        return [*clues, penalty], "penalty"
    clues += scale_clues(scales, seen.training)
    found, stage = recursion_clues(seen, replay, scales) if agrees is None else ([], "")
    clues += found
    stage = stage or ("optimizer" if agrees else "gradient")
    if stage == "gradient":
        clues += difference_clues(seen, record)
    if seen.leads and seen.gradient is None:
        clues.append(
            'If your code yields its gradient too, as {"weight": w, .., "grad": {"weight": gw, '
            "..}}, regcheck tells whether that is off, or what the step makes of it."
        )
    return clues, stage


KEEPS_TO_IT = (
    "The scratch side makes the steps of torch's rule, by the settings of the framework side's "
    "optimizer; it is the framework side that does not. Look for what else changes its parameters: "
    "a hook, a clamp, a constraint, tied weights."
)


def late_clues(seen: Observed) -> list[str]:
    """Tell of many steps that agree before the first that does not."""
    if seen.first is None or seen.first <= LATE:
        return []
    text = (
        f"Steps 1 to {seen.first - 1:,} agree: look at what changes in step {seen.first:,}, like "
        "an lr, an epoch, or the branch of an `if`."
    )
    return [text]


def gradient_clues(agrees: bool | None) -> list[str]:
    """Tell whether the gradient that a user's code yields is torch's; nothing if it yields none."""
    if agrees is None:
        return []
    if not agrees:
        return ["The gradient that your code yields is not torch's."]
    text = "The gradient that your code yields is torch's, to rounding: what differs is what the "
    return [text + "step makes of it."]


def recursion_clues(
    seen: Observed, replay: Replay, scales: Mapping[str, EffectiveSettings]
) -> tuple[list[str], str]:
    """Tell of steps that are made from torch's gradients all the same; and the stage, if known."""
    rule = recursion(replay)
    if rule is None or not rule.fits or any(one.fits for one in scales.values()):
        return [], ""
    if abs(rule.now) <= 1e-3 * abs(rule.last):
        text = (
            "Each step is made from the gradient of the step before: take the predictions and the "
            "gradient anew, from the parameters as they are."
        )
        return [text], "gradient"
    if not seen.training.sgd.momentum:
        return [], ""
    size = abs(rule.now) + abs(rule.last)
    parts = {
        "g": rule.now,
        "times the last g": rule.last,
        "times the last step": rule.kept,
        "w": rule.decay,
    }
    told = [f"{value:.6g} {what}" for what, value in parts.items() if abs(value) > 1e-9 * size]
    text = (
        f"The steps are those of an optimizer all the same, which subtracts {' + '.join(told)}; "
        f"torch's momentum is {seen.training.sgd.momentum:g}."
    )
    return [text], "optimizer"


def lost_clue(seen: Observed, record: Record) -> str:
    """Say where the scratch side's first diverging step is not finite; empty if it is."""
    missing = ~np.isfinite(record.scratch)
    if not missing.any():
        return ""
    place = int(missing.argmax())
    name = next(name for name, part in seen.history.slices.items() if part.stop > place)
    return (
        f"At step {record.batch.step} the scratch side gives {record.scratch[place]:g} in {name}, "
        "from numbers from which torch gives numbers: look for a division by 0, a logarithm of 0, "
        "or an exponential that overflows."
    )


MOST_RATES = 6
"""The lrs that are listed."""


def rate_clue(replay: Replay) -> str:
    """Say whether the steps are torch's with another lr in each; empty if not."""
    found = rates(replay)
    if found is None:
        return ""
    told = np.isfinite(found.scratch)
    own, torch = found.scratch[told], found.torch[told]
    if found.constant and (torch != torch[0]).any():
        return (
            f"The steps are torch's with an lr of {own[0]:.6g} in each: the schedule, which has "
            f"{listed(torch)}, is not applied."
        )
    first = 1 + window(replay).start + int(told.argmax())
    return (
        f"The steps are torch's with another lr in each: from step {first:,} on {listed(own)}, "
        f"where torch has {listed(torch)}."
    )


def listed(values: Array) -> str:
    """List the first values."""
    some = ", ".join(f"{value:.6g}" for value in values[:MOST_RATES])
    return some + (", .." if len(values) > MOST_RATES else "")


def penalty_clue(replay: Replay) -> str:
    """Say whether the steps are torch's with a penalty of another shape; empty if not."""
    known = own_shifts(replay)
    for text, shape in SHAPES.items():
        strength = other_penalty(replay, shape, known)
        if strength is not None:
            return f"The steps are torch's with a penalty of {strength:.6g} {text} in its gradient."
    for text, shape in sums(replay.history).items():
        strength = other_penalty(replay, shape, known)
        if strength is not None:
            return (
                f"The steps are torch's with one number added to the gradient of each entry, "
                f"{strength:.6g} {text}, in the place of a penalty: multiply λ by each weight, "
                "not by their sum."
            )
    return ""


SHAPES: dict[str, Callable[[Record], Array]] = {
    "sign(w), as an L1 penalty of λ Σ|w| has,": lambda record: np.sign(record.before),
    "w³": lambda record: record.before**3,
    "|w|": lambda record: np.abs(record.before),
}
"""Other penalties' gradients, in words, and as functions of a step."""


def sums(history: History) -> dict[str, Callable[[Record], Array]]:
    """Give numbers that a sum over parameters may add to every entry, over the rows or not."""
    weights = np.concatenate(
        [
            np.full(part.stop - part.start, not is_bias(name))
            for name, part in history.slices.items()
        ]
    )

    def whole(record: Record) -> Array:
        return np.full_like(record.before, record.before.sum())

    def of_weights(record: Record) -> Array:
        return np.full_like(record.before, record.before[weights].sum())

    return {
        "Σw": of_weights,
        "Σw over weights and biases": whole,
        "Σw/B": lambda record: of_weights(record) / record.batch.size,
        "Σw/B over weights and biases": lambda record: whole(record) / record.batch.size,
    }


def gradient_agrees(seen: Observed, record: Record) -> bool | None:
    """Say whether the scratch side's own gradient is torch's; None where it tells none."""
    if seen.gradient is None or seen.gradient_bound is None:
        return None
    history = seen.history
    here, bound = history.flat(seen.gradient), history.flat(seen.gradient_bound)
    limits = np.concatenate(
        [np.full(history.shapes[name], seen.limits[name]).ravel() for name in history.shapes]
    )
    return bool((np.abs(here - record.gradient) <= limits * bound).all())


def scale_clues(scales: Mapping[str, EffectiveSettings], training: Training) -> list[str]:
    """Say which tensors go by torch's rule, which by it with other numbers, and which by neither.

    Nothing where none goes by it, or the run does not tell.
    """
    told: dict[str, list[str]] = {}
    for name, one in scales.items():
        told.setdefault(scale_text(one, training.sgd.weight_decay.get(name, 0.0)), []).append(name)
    if not any(told.keys() - {NEITHER}):
        return []
    return [
        f"{few(names)} {'go' if len(names) > 1 else 'goes'} {text}." for text, names in told.items()
    ]


MOST_TENSORS = 6
"""Tensors that are named."""


def few(names: list[str]) -> str:
    """Name some tensors."""
    if len(names) > MOST_TENSORS:
        names = [*names[: MOST_TENSORS - 1], f"{len(names) - MOST_TENSORS + 1} more tensors"]
        return f"{', '.join(names[:-1])} and {names[-1]}"
    return " and ".join(names)


NEITHER = "by no multiple of torch's gradient and of the parameters"


def scale_text(one: EffectiveSettings, weight_decay: float) -> str:
    """Say by what rule one tensor goes."""
    if not one.fits or one.gradient is None:
        return NEITHER
    alpha, decay = one.gradient, one.decay
    own = decay is None or decay.is_near(weight_decay)
    if alpha.is_near(1.0) and own:
        return "by torch's rule"
    if alpha.is_near(-1.0) and (decay is None or decay.is_near(-weight_decay)):
        return "by −1 times torch's step: a sign is wrong"
    factor = "" if alpha.is_near(1.0) else f"{alpha.factor:.6g} times "
    if alpha.is_near(-1.0):
        factor = "a wrong sign: −1 times "
    penalty = "" if decay is None or own else f", and a penalty of {decay.factor:.6g} w"
    if decay is not None and not own and decay.is_near(0.0):
        penalty = ", and no penalty"
    return f"by {factor}torch's gradient{penalty}"


MOST_PROBED = 12
"""Entries whose derivative is taken by finite differences."""


def difference_clues(seen: Observed, record: Record) -> list[str]:
    """Take the derivative by central differences of torch's loss: with whom does it side?

    The scratch side's gradient is its own, or else what it must have been to make its step by
    torch's rule.
    """
    if seen.loss_at is None:
        return []
    history = seen.history
    implied = history.flat(seen.gradient) if seen.gradient is not None else implied_gradient(seen)
    if implied is None:
        return []
    apart = np.abs(implied - record.gradient)
    order = np.argsort(-apart)[:MOST_PROBED]
    slopes = differences(seen, record, order, apart[order])
    if slopes is None:
        return []
    scratch_off = float(np.abs(implied[order] - slopes).max())
    torch_off = float(np.abs(record.gradient[order] - slopes).max())
    worst = int(order[0])
    name = next(name for name, part in history.slices.items() if part.start <= worst < part.stop)
    if not torch_off < SIDES * scratch_off < math.inf:
        return []
    text = (
        f"Finite differences of the loss side with torch: at step {record.batch.step}, its "
        f"gradient is off by at most {torch_off:.1e}, and the one behind your step by "
        f"{scratch_off:.1e}, most in {name}."
    )
    return [text]


SIDES = 0.1
"""How much nearer to a derivative one gradient must be than the other."""

RELIABLE = 0.25
"""How far two differences may be apart, of what the two gradients are apart."""

FLOORED = 27.0
"""z beyond which torch's BCELoss no longer follows its own logarithm: p (1 − p) is 1e-12 there."""


def differences(seen: Observed, record: Record, order: Indices, apart: Array) -> Array | None:
    """Take central differences of torch's loss, (L(w + h) − L(w − h))/2h, for some entries.

    None where they tell no derivative: the loss is random, has a floor, or another slope at h/2.

    Args:
        seen: the run.
        record: the step.
        order: the entries.
        apart: how far the two gradients are apart in each, which the slopes must tell.
    """
    history, loss_at = seen.history, seen.loss_at
    assert loss_at is not None
    here = history.split(record.before)
    if loss_at(here, record.batch) != loss_at(here, record.batch) or is_floored(seen, record):
        return None
    step = float(np.finfo(seen.torch.problem.framework_dtype).eps) ** (1 / 3)
    found = np.empty(len(order))
    for place, entry in enumerate(order):
        slopes = []
        for h in (step, step / 2):
            h *= max(1.0, abs(float(record.before[entry])))
            moved = [record.before.copy() for _ in range(2)]
            moved[0][entry] += h
            moved[1][entry] -= h
            ends = [loss_at(history.split(entries), record.batch) for entries in moved]
            slopes.append((ends[0] - ends[1]) / float(moved[0][entry] - moved[1][entry]))
        reliable = abs(slopes[0] - slopes[1]) <= RELIABLE * apart[place]
        if not reliable or not any(slopes):  # of a loss that stays the same, nothing is known
            return None
        found[place] = slopes[1]
    return found


def is_floored(seen: Observed, record: Record) -> bool:
    """Say whether torch's loss has a floor at some rows of a step."""
    problem = seen.torch.problem
    if not seen.sees_rows or problem.loss != "bce":
        return False
    there = seen.torch.forward_backward(seen.history.split(record.before), record.batch)
    return any(bool((np.abs(z) > FLOORED).any()) for z in there.outputs)


def implied_gradient(seen: Observed) -> Array | None:
    """Give the data gradient that would make the scratch side's first diverging step by torch's.

    Torch's step is affine in the gradient, w′ = w − lr (a g + ..), so one more step with a changed
    gradient gives a. None where clipping or an lr of 0 hides it.
    """
    problem, history = seen.torch.problem, seen.history
    if problem.clip_norm is not None or problem.clip_value is not None:
        return None
    state = seen.torch.start()
    for record in history.records():
        before = history.split(record.before)
        if record.batch.step != seen.first:
            seen_pass = Replay.seen_as(history, record.gradient)
            state = seen.torch.step(
                state._replace(parameters=before), record.batch, seen_pass
            ).state
            continue
        afters = []
        for gradient in (record.gradient, record.gradient + 1):
            seen_pass = Replay.seen_as(history, gradient)
            update = seen.torch.step(state._replace(parameters=before), record.batch, seen_pass)
            afters.append(history.flat(update.step.after))
        slope = afters[1] - afters[0]
        if not slope.all():
            return None
        found: Array = record.gradient + (record.scratch - afters[0]) / slope
        return found
    return None
