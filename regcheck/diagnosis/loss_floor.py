"""Where the logarithms of a reported log loss stop: at a floor that is not torch's, or nowhere.

A loss −y log p − (1 − y) log(1 − p) by hand is kept from log 0 by a small δ, in one of these forms:

    kept within   log p′ and log(1 − p′) with p′ = min(max(p, δ), 1 − δ), or
                  log max(p, δ) and log max(1 − p, δ)
    added         log(p + δ) and log(1 − p + δ)

BCELoss takes no logarithm below −100, and BCEWithLogitsLoss takes them of z, where none is log 0.
So reported losses differ once some p is as close to 0 or 1 as δ, though the training is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, islice

import numpy as np
from numpy.typing import NDArray

from regcheck.compare.history import Record
from regcheck.diagnosis.records import Run
from regcheck.numerics.losses import Array, sigmoid

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
