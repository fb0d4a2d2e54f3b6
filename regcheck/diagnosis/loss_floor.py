"""Where the logarithms of a reported log loss stop: at a floor that is not torch's, or nowhere.

A loss −y log p − (1 − y) log(1 − p) by hand is kept from log 0 by a small δ, in one of these forms:

    kept within   log p′ and log(1 − p′) with p′ = min(max(p, δ), 1 − δ), or
                  log max(p, δ) and log max(1 − p, δ)
    added         log(p + δ) and log(1 − p + δ)

BCELoss takes no logarithm below −100, and BCEWithLogitsLoss takes them of z, where none is log 0.
So reported losses part once some p is as close to 0 or 1 as δ, though the training is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, islice

import numpy as np
from numpy.typing import NDArray

from regcheck.compare.history import Record
from regcheck.diagnosis.records import Observed
from regcheck.numerics.losses import sigmoid

Array = NDArray[np.floating]
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


def logarithm_clue(seen: Observed, *, explained: bool) -> str:
    """Say where the scratch side's logarithms stop, if that is why the losses part; else ''.

    Args:
        seen: the run.
        explained: whether all losses that are numbers are explained already.
    """
    problem = seen.torch.problem
    if not seen.sees_rows or (problem.model, problem.loss) not in TORCHS:
        return ""
    with np.errstate(all="ignore"):
        return infinite(seen) or ("" if explained else floor_of(seen))


def infinite(seen: Observed) -> str:
    """Say at which step a logarithm of 0 makes the scratch side's loss no number."""
    scratch, framework = seen.history.loss("scratch"), seen.history.loss("framework")
    lost = np.flatnonzero(~np.isfinite(scratch) & np.isfinite(framework))
    if not len(lost):
        return ""
    record = next(islice(seen.history.records(), int(lost[0]), None))
    if not any(np.isin(sigmoid(z), (0, 1)).any() for z, _ in outputs_of(seen, record)):
        return ""
    return (
        f"the scratch side's loss is {scratch[lost[0]]} from step {record.batch.step} on: there "
        f"some p is 0 or 1 to rounding, and its logarithm is infinite. Take it of z: {OF_Z}."
    )


def floor_of(seen: Observed) -> str:
    """Name the floor with which all reported losses agree; '' where there is none.

    The step at which they differ most leaves few forms, of which the others are asked one by one.
    """
    scratch, framework = seen.history.loss("scratch"), seen.history.loss("framework")
    told = np.isfinite(scratch) & np.isfinite(framework)
    if not told.any():
        return ""
    allowed = seen.limits["loss"] * seen.history.loss("bound") + CLOSE * np.abs(scratch)
    worst = int(np.argmax(np.where(told, np.abs(scratch - framework), -1.0)))
    left = [
        (said, form, floor) for said, forms in FORMS.items() for form in forms for floor in FLOORS
    ]
    places = chain([worst], range(len(scratch)))
    records = chain(islice(seen.history.records(), worst, worst + 1), seen.history.records())
    for place, record in zip(places, records, strict=True):
        if not left:
            return ""
        if told[place]:
            parts = outputs_of(seen, record)
            left = [
                one
                for one in left
                if abs(loss_by(one[1], one[2], parts) - scratch[place]) <= allowed[place]
            ]
    if not left:
        return ""
    floor = min(one[2] for one in left)
    forms = dict.fromkeys(said.format(f"{floor:.3g}") for said, _, one in left if one == floor)
    problem = seen.torch.problem
    return (
        f"the scratch side's loss has {', or '.join(forms)}; "
        f"{TORCHS[problem.model, problem.loss]}. With that in torch's formula the losses of all "
        f"{int(told.sum()):,} steps agree. Take both losses of z, {OF_Z} (BCEWithLogitsLoss), or "
        "`compare: [parameters]`."
    )


OF_Z = "max(z, 0) − z y + log(1 + e^(−|z|))"
"""The loss by which no logarithm is taken of 0."""

TORCHS = {
    ("logistic", "bce"): "torch's BCELoss takes no logarithm below −100",
    ("logistic", "bce_with_logits"): "torch's BCEWithLogitsLoss has no floor, as it takes z",
}
"""What torch does in the place of that, by model and loss."""


def outputs_of(seen: Observed, record: Record) -> list[tuple[Array, Array]]:
    """Give z and y of a step's micro-batches."""
    outputs = seen.torch.forward_backward(seen.history.split(record.before), record.batch).outputs
    return [
        (z, seen.torch.y[index])
        for z, index in zip(outputs, record.batch.micro_batches, strict=True)
    ]


def loss_by(form: Form, floor: float, parts: list[tuple[Array, Array]]) -> float:
    """Take the mean loss of micro-batches by one form."""
    losses = []
    for z, y in parts:
        log_p, log_other = form(sigmoid(z), floor)
        losses.append(float(np.mean((y - 1) * log_other - y * log_p)))
    return sum(losses) / len(losses)
