"""Where the logarithms of a reported log loss stop: at a floor that is not torch's, or nowhere.

A loss −y log p − (1 − y) log(1 − p) by hand is kept from log 0 by a small δ, in one of these forms:

    kept within   log p′ and log(1 − p′) with p′ = min(max(p, δ), 1 − δ), or
                  log max(p, δ) and log max(1 − p, δ)
    added         log(p + δ) and log(1 − p + δ)

BCELoss takes no logarithm below −100, and BCEWithLogitsLoss takes them of z, where none is log 0.
So reported losses part once some p is as close to 0 or 1 as δ, though the training is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from regcheck.losses import sigmoid
from regcheck.observed import Observed

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


def logarithm_clue(seen: Observed) -> str:
    """Say how the scratch side's logarithms stop, where that is why the losses part; else ''."""
    problem = seen.torch.problem
    if not seen.sees_rows or (problem.model, problem.loss) not in TORCHS:
        return ""
    scratch, framework = seen.history.loss("scratch"), seen.history.loss("framework")
    outputs = list(outputs_of(seen))
    lost = np.isnan(scratch) | np.isinf(scratch)
    for place in np.flatnonzero(lost & np.isfinite(framework)):
        batch, parts = outputs[place]
        if any(np.isin(sigmoid(z), (0, 1)).any() for z, _ in parts):
            return (
                f"the scratch side's loss is {scratch[place]} from step {batch} on: there some p "
                f"is 0 or 1 to rounding, and its logarithm is infinite. Take it of z: {OF_Z}."
            )
    told = np.flatnonzero(np.isfinite(scratch) & np.isfinite(framework))
    allowed = seen.limits["loss"] * seen.history.loss("bound") + CLOSE * np.abs(scratch)
    # Where the losses differ most, a wrong form shows at once.
    order = sorted(told, key=lambda place: -abs(scratch[place] - framework[place]))
    with np.errstate(all="ignore"):
        for floor in FLOORS if order else ():
            forms = [
                said.format(f"{floor:.3g}")
                for said, forms in FORMS.items()
                if any(
                    all(
                        abs(loss_by(form, floor, outputs[at][1]) - scratch[at]) <= allowed[at]
                        for at in order
                    )
                    for form in forms
                )
            ]
            if forms:
                return (
                    f"the scratch side's loss has {', or '.join(forms)}; "
                    f"{TORCHS[problem.model, problem.loss]}. With that in torch's formula the "
                    f"losses of all {len(order):,} steps agree. Take both losses of z, "
                    f"{OF_Z} (BCEWithLogitsLoss), or `compare: [parameters]`."
                )
    return ""


OF_Z = "max(z, 0) − z y + log(1 + e^(−|z|))"
"""The loss by which no logarithm is taken of 0."""

TORCHS = {
    ("logistic", "bce"): "torch's BCELoss takes no logarithm below −100",
    ("logistic", "bce_with_logits"): "torch's BCEWithLogitsLoss has no floor, as it takes z",
}
"""What torch does in the place of that, by model and loss."""


def outputs_of(seen: Observed) -> Iterator[tuple[int, list[tuple[Array, Array]]]]:
    """Give each step's number, and z and y of its micro-batches."""
    for record in seen.history.records():
        outputs = seen.torch.pass_over(seen.history.split(record.before), record.batch).outputs
        targets = [seen.torch.y[index] for index in record.batch.parts]
        yield record.batch.step, list(zip(outputs, targets, strict=True))


def loss_by(form: Form, floor: float, parts: list[tuple[Array, Array]]) -> float:
    """Take the mean loss of micro-batches by one form."""
    losses = []
    for z, y in parts:
        log_p, log_other = form(sigmoid(z), floor)
        losses.append(float(np.mean((y - 1) * log_other - y * log_p)))
    return sum(losses) / len(losses)
