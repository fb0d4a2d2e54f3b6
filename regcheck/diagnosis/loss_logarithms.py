"""Where the logarithms of a reported loss stop, if that is why the losses differ.

A loss −y log p − (1 − y) log(1 − p), or −log p of the right class, is by hand kept from log 0 by
a small δ, in one of the forms of `KEPT_FROM_ZERO`, and the weight-decay term may be in it too.
torch's losses of z have no δ, and BCELoss stops at another place. The training may be the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from regcheck.diagnosis.evidence.record import Evidence
from regcheck.diagnosis.fits.loss_inputs import losses_of, places
from regcheck.diagnosis.records import Explanation, Reporting, Run
from regcheck.diagnosis.reported_loss import Losses, Penalty, named_penalties, reported_at
from regcheck.numerics.losses import (
    FLOORS,
    KEPT_FROM_ZERO,
    Logarithms,
    mean_by_logarithms,
    probabilities,
)
from regcheck.problem.problem import Array
from regcheck.rules.losses import LOSSES as TORCHS

CLOSE = (1e-13, 1e-9)
"""Relative differences of losses beside their bounds: in 1 − p + δ, δ is rounded beside 1."""

OF_Z = TORCHS["bce_with_logits"].formulas[0].removeprefix("ℓ = ")
"""The loss by which no logarithm is taken of 0."""

FIXES = {
    "cross_entropy": f"Compute yours from z as torch does, {TORCHS['cross_entropy'].formulas[0]}",
    "bce": f"Compute both losses from z, {OF_Z} (BCEWithLogitsLoss)",
}
FIXES["bce_with_logits"] = FIXES["bce"]


class Form(NamedTuple):
    """A way in which logarithms are kept from log 0: how it is said, and by what δ."""

    text: str
    by: Logarithms
    floor: float


FORMS = [
    Form(text, by, floor)
    for text, some in KEPT_FROM_ZERO.items()
    for by in some
    for floor in FLOORS
]


def explain_logarithms(
    run: Run, found: Sequence[Explanation], *, explained: bool
) -> tuple[Reporting | None, Evidence | None]:
    """Describe where the scratch side's logarithms stop; None where losses differ by another thing.

    The weight-decay term is returned, where it is in the loss too.

    Args:
        run: its outputs z must be known.
        found: what explains its updates.
        explained: whether all losses that are numbers are explained already.
    """
    if not run.sees_rows or not TORCHS[run.torch.problem.loss].logarithms:
        return None, None
    lost = infinite_logarithm(run)
    return (None, lost) if lost or explained else floor_of(run, found)


def infinite_logarithm(run: Run) -> Evidence | None:
    """Say from which step on the scratch side takes log 0; None where it does not."""
    scratch, framework = run.history.loss("scratch"), run.history.loss("framework")
    lost = np.flatnonzero(~np.isfinite(scratch) & np.isfinite(framework))
    record = run.history.record(int(lost[0]) + 1) if len(lost) else None
    outputs = run.outputs(record) if record is not None else []
    of_classes = run.torch.problem.loss == "cross_entropy"
    ends = (0,) if of_classes else (0, 1)
    if not any(np.isin(probabilities(z), ends).any() for z, _ in outputs):
        return None
    said = "0" if of_classes else "0 or 1"
    return Evidence(
        f"the scratch side's loss is {scratch[lost[0]]} from step {lost[0] + 1} on",
        f": some p rounds to {said} there, and its logarithm is infinite. "
        f"Compute the loss from z: {TORCHS['cross_entropy'].formulas[0] if of_classes else OF_Z}.",
    )


def floor_of(run: Run, found: Sequence[Explanation]) -> tuple[Reporting | None, Evidence | None]:
    """Name the δ, and the weight-decay term, with which all reported losses agree."""
    losses = reported_at(run, next(places(run, (), None)))
    if not len(losses.scratch):
        return None, None
    problem, shown = run.torch.problem, losses.shown
    formula = losses_of(run.torch, run.history, shown.before, shown.batches)
    if (np.abs(formula - shown.framework) > shown.limit + CLOSE[-1] * np.abs(formula)).any():
        return None, None  # torch's is another, as a user's own may be
    rules = [*(problem.with_change(one.change) for one in found), problem]
    known: dict[int, Array] = {}
    for close in CLOSE:
        for penalty in named_penalties(losses, 1.0, rules):
            left = forms_left(losses, penalty, close, known)
            if left:
                term = Reporting(("penalty-in-loss",), penalty.strengths, 1.0, penalty.squared)
                return (term if penalty.strengths else None), said_of(run, losses, left)
    return None, None


def forms_left(
    losses: Losses, penalty: Penalty, close: float, known: dict[int, Array]
) -> list[Form]:
    """Return the forms that, with a penalty, make the losses of all steps; torch's must not.

    The step at which they differ most leaves few, of which the others are asked one by one.
    `known` are the losses of all forms at such a step.
    """
    data = losses.scratch - penalty.values
    limits = losses.shown.limit + close * np.abs(losses.scratch) + 1e-14 * np.abs(penalty.values)
    off = np.abs(data - losses.shown.framework)
    worst = int(np.nanargmax(off / limits))
    if not off[worst] > limits[worst]:
        return []
    if worst not in known:
        known[worst] = means(losses, worst, FORMS)
    near = np.abs(known[worst] - data[worst]) <= limits[worst]
    left = [form for form, is_near in zip(FORMS, near, strict=True) if is_near]
    for step in range(len(data)):
        if not left:
            break
        near = np.abs(means(losses, step, left) - data[step]) <= limits[step]
        left = [form for form, is_near in zip(left, near, strict=True) if is_near]
    return left


def means(losses: Losses, step: int, forms: Sequence[Form]) -> Array:
    """Return the loss of each form at a step: the mean over its micro-batches' means."""
    trainer, shown = losses.run.torch, losses.shown
    before, batch = losses.run.history.split(shown.before[step]), shown.batches[step]
    outputs = trainer.forward_backward(before, batch).outputs
    rows = [(z, trainer.y[index]) for z, index in zip(outputs, batch.micro_batches, strict=True)]
    options = trainer.problem.loss_options
    return np.array(
        [
            np.mean([mean_by_logarithms(one.by, one.floor, z, y, options) for z, y in rows])
            for one in forms
        ]
    )


def said_of(run: Run, losses: Losses, left: Sequence[Form]) -> Evidence:
    """Say the smallest δ with which all losses agree, in each form that it may have."""
    name, floor = run.torch.problem.loss, min(form.floor for form in left)
    of = "p" if name == "cross_entropy" else "p and to 1 − p"
    said = dict.fromkeys(form.text.format(f"{floor:.3g}", of) for form in smallest(left, floor))
    return Evidence(
        f"the scratch side's loss has {', or '.join(said)}",
        f"; torch's {TORCHS[name].torch} {TORCHS[name].logarithms}. With that in torch's formula "
        f"the losses of all {len(losses.scratch):,} steps agree. {FIXES[name]}, or set "
        "`compare: [parameters]`.",
    )


def smallest(forms: Sequence[Form], floor: float) -> Iterator[Form]:
    """Yield the forms of one δ."""
    return (form for form in forms if form.floor == floor)
