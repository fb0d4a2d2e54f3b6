"""What torch's loss tells: its derivative by finite differences, and where its logarithms stop.

A loss −y log p − (1 − y) log(1 − p) by hand is kept from log 0 by a small δ, in one of these forms:

    kept within   log p′ and log(1 − p′) with p′ = min(max(p, δ), 1 − δ), or
                  log max(p, δ) and log max(1 − p, δ)
    added         log(p + δ) and log(1 − p + δ)

BCELoss takes no logarithm below −100, and BCEWithLogitsLoss takes them of z, where none is log 0.
So reported losses differ once some p is as close to 0 or 1 as δ, though the training is the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import chain, islice

import numpy as np
from numpy.typing import NDArray

from regcheck.compare.history import Record
from regcheck.diagnosis.records import Run
from regcheck.diagnosis.replay import Replay
from regcheck.numerics.losses import Array, sigmoid
from regcheck.trainers.numpy_trainer import ForwardBackward

Form = Callable[[Array, float], tuple[Array, Array]]

FORMS: dict[str, tuple[Form, ...]] = {
    "p kept between {0} and 1 − {0}": (
        lambda p, d: (np.log(np.clip(p, d, 1 - d)), np.log(1 - np.clip(p, d, 1 - d))),
        lambda p, d: (np.log(np.maximum(p, d)), np.log(np.maximum(1 - p, d))),
    ),
    "{0} added to p and to 1 − p": (lambda p, d: (np.log(p + d), np.log(1 - p + d)),),
}
"""The logarithms of p and of 1 − p by each form, as it is said. (1 − δ rounds, and δ does not.)"""

FLOORS = (
    *(10.0**-k for k in range(3, 21)),
    float(np.finfo(np.float32).eps),
    float(np.finfo(np.float64).eps),
)
"""What people take for δ."""

CLOSE = 1e-9
"""The relative difference of losses beside their bounds: δ is beside 1 in p, and rounded there."""

OF_Z = "max(z, 0) − z y + log(1 + e^(−|z|))"
"""The loss by which no logarithm is taken of 0."""

TORCHS = {
    ("logistic", "bce"): "torch's BCELoss takes no logarithm below −100",
    ("logistic", "bce_with_logits"): "torch's BCEWithLogitsLoss has no floor, as it takes z",
}
"""What torch does in the place of that, by model and loss."""

MOST_PROBED = 12
"""Entries whose derivative is taken by finite differences."""

NEARER = 0.1
"""How much nearer to a derivative one gradient must be than the other."""

RELIABLE = 0.25
"""How far two finite differences may be apart, of what the two gradients are apart."""

FLOORED = 27.0
"""z beyond which torch's BCELoss no longer follows its own logarithm: p (1 − p) is 1e-12 there."""


def logarithm_evidence(run: Run, *, explained: bool) -> str:
    """Describe where the scratch side's logarithms stop, if that is why the losses differ; else ''.

    `explained` is whether all losses that are numbers are explained already.
    """
    problem = run.torch.problem
    if not run.sees_rows or (problem.model, problem.loss) not in TORCHS:
        return ""
    scratch, framework = run.history.loss("scratch"), run.history.loss("framework")
    with np.errstate(all="ignore"):
        lost = np.flatnonzero(~np.isfinite(scratch) & np.isfinite(framework))
        if len(lost):
            record = record_at(run, int(lost[0]))
            if any(np.isin(sigmoid(z), (0, 1)).any() for z, _ in outputs_of(run, record)):
                return (
                    f"the scratch side's loss is {scratch[lost[0]]} from step {record.batch.step} "
                    "on: there some p is 0 or 1 to rounding, and its logarithm is infinite. Take "
                    f"it of z: {OF_Z}."
                )
        reported = np.isfinite(scratch) & np.isfinite(framework)
        return "" if explained or not reported.any() else floor_of(run, reported)


def floor_of(run: Run, reported: NDArray[np.bool_]) -> str:
    """Name the floor with which all reported losses agree; '' where there is none.

    The step at which they differ most leaves few forms, of which the others are asked one by one.
    """
    scratch, framework = run.history.loss("scratch"), run.history.loss("framework")
    limits = run.limits["loss"] * run.history.loss("bound") + CLOSE * np.abs(scratch)
    worst = int(np.argmax(np.where(reported, np.abs(scratch - framework), -1.0)))
    left = [
        (text, form, floor) for text, forms in FORMS.items() for form in forms for floor in FLOORS
    ]
    places = chain([worst], range(len(scratch)))
    records = chain([record_at(run, worst)], run.history.records())
    for place, record in zip(places, records, strict=True):
        if reported[place] and left:
            rows = outputs_of(run, record)
            losses = (loss_by(form, floor, rows) for _, form, floor in left)
            near = [abs(loss - scratch[place]) <= limits[place] for loss in losses]
            left = [one for one, is_near in zip(left, near, strict=True) if is_near]
    if not left:
        return ""
    floor = min(floor for _, _, floor in left)
    forms = dict.fromkeys(text.format(f"{floor:.3g}") for text, _, one in left if one == floor)
    problem = run.torch.problem
    return (
        f"the scratch side's loss has {', or '.join(forms)}; "
        f"{TORCHS[problem.model, problem.loss]}. With that in torch's formula the losses of all "
        f"{int(reported.sum()):,} steps agree. Take both losses of z, {OF_Z} (BCEWithLogitsLoss), "
        "or `compare: [parameters]`."
    )


def record_at(run: Run, place: int) -> Record:
    """Return a recorded step."""
    return next(islice(run.history.records(), place, None))


def outputs_of(run: Run, record: Record) -> list[tuple[Array, Array]]:
    """Return z and y of a step's micro-batches."""
    there = run.torch.forward_backward(run.history.split(record.before), record.batch)
    batches = zip(there.outputs, record.batch.micro_batches, strict=True)
    return [(z, run.torch.y[index]) for z, index in batches]


def loss_by(form: Form, floor: float, rows: list[tuple[Array, Array]]) -> float:
    """Return the mean loss of micro-batches by one form."""
    losses = []
    for z, y in rows:
        log_p, log_other = form(sigmoid(z), floor)
        losses.append(float(np.mean((y - 1) * log_other - y * log_p)))
    return sum(losses) / len(losses)


def finite_differences(run: Run, replay: Replay, record: Record) -> list[str]:
    """Take the derivative by central differences of torch's loss: with whom does it side?

    The scratch side's gradient is its own, or else what it must have been to make its step by
    torch's rule.
    """
    own = run.gradient
    implied = run.history.flat(own) if own is not None else implied_gradient(run, replay, record)
    if implied is None:
        return []
    apart = np.abs(implied - record.gradient)
    order = np.argsort(-apart)[:MOST_PROBED]
    derivative = central_differences(run, record, order, apart[order])
    if derivative is None:
        return []
    scratch_off = float(np.abs(implied[order] - derivative).max())
    torch_off = float(np.abs(record.gradient[order] - derivative).max())
    if not torch_off < NEARER * scratch_off < math.inf:
        return []
    text = (
        f"Finite differences of the loss side with torch: at step {record.batch.step}, its "
        f"gradient is off by at most {torch_off:.1e}, and the one behind your step by "
        f"{scratch_off:.1e}, most in {run.history.tensor_at(int(order[0]))}."
    )
    return [text]


def central_differences(
    run: Run, record: Record, order: NDArray[np.intp], apart: Array
) -> Array | None:
    """Take central differences of torch's loss, (L(w + h) − L(w − h))/2h, for some entries.

    None where they tell no derivative: the loss is random, has a floor, or another slope at h/2.
    `apart` is how far the two gradients are apart in each entry, which they must tell.
    """

    def loss(entries: Array) -> float:
        return run.sides.probe.loss_at(run.history.split(entries), record.batch)

    if loss(record.before) != loss(record.before) or is_floored(run, record):
        return None
    step = float(np.finfo(run.torch.problem.framework_dtype).eps) ** (1 / 3)
    found = np.empty(len(order))
    for place, entry in enumerate(order):
        slopes = []
        for h in (step, step / 2):
            above, below = record.before.copy(), record.before.copy()
            above[entry] += h * max(1.0, abs(float(record.before[entry])))
            below[entry] -= h * max(1.0, abs(float(record.before[entry])))
            slopes.append((loss(above) - loss(below)) / float(above[entry] - below[entry]))
        reliable = abs(slopes[0] - slopes[1]) <= RELIABLE * apart[place]
        if not reliable or not any(slopes):  # of a loss that stays the same, nothing is known
            return None
        found[place] = slopes[1]
    return found


def is_floored(run: Run, record: Record) -> bool:
    """Whether torch's loss has a floor at some rows of a step."""
    if not run.sees_rows or run.torch.problem.loss != "bce":
        return False
    there = run.torch.forward_backward(run.history.split(record.before), record.batch)
    return any(bool((np.abs(z) > FLOORED).any()) for z in there.outputs)


def implied_gradient(run: Run, replay: Replay, record: Record) -> Array | None:
    """Return the data gradient that would make the scratch side's first diverging step by torch's.

    Torch's step is affine in the gradient, w′ = w − lr (a g + ..), so one more step with a changed
    gradient gives a. None where clipping or an lr of 0 hides it.
    """
    problem, step = run.torch.problem, record.batch.step
    if problem.clip_norm is not None or problem.clip_value is not None:
        return None

    def after(gradient: Array) -> Array:
        def known(one: Record) -> ForwardBackward:
            return replay.pass_with(gradient if one.batch.step == step else one.gradient)

        *_, (_, update) = islice(replay.updates(run.torch, known=known), step)
        assert update is not None
        return run.history.flat(update.step.after)

    torch = after(record.gradient)
    slope = after(record.gradient + 1) - torch
    return record.gradient + (record.scratch - torch) / slope if slope.all() else None
