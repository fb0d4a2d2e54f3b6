"""What a run must say of the losses that a user's function reports."""

from __future__ import annotations

import numpy as np

from tests.exact_steps import NOISE, SINGLE, SURE, Seen, exactly
from tests.faults import OUTSIDE
from tests.random_functions import batch_of
from tests.random_needs import Array


def faults_of_losses(seen: Seen, torch: list[float]) -> list[str]:
    """Return what is wrong with what is said of the reported losses."""
    history, found = seen.history, []
    scratch, bound = history.loss("scratch"), history.loss("bound") * seen.limits("loss")
    expected = seen.case.reporting
    with np.errstate(all="ignore"):
        off = np.abs(scratch - np.array(torch)) / bound
    largest = float(off[np.isfinite(off)].max(initial=0.0))
    first = seen.report.first_loss_divergence
    if first is None:
        return [f"loss: {largest:.3g} limits off, not found"] if largest > 1 + NOISE else []
    if largest < NOISE and np.isfinite(off).all():
        found.append(f"loss: diverged, {largest:.3g} limits off")
    reporting = seen.diagnosis.reporting
    if "precision" in seen.case.causes and largest <= SINGLE and reporting is not None:
        # What is within float32's rounding of torch's loss is that.
        return [*found, f"loss: float32's, taken for {reporting}"] if reporting.causes else found
    if expected is None:
        # Strengths that are free to choose make as many losses, whatever these are.
        telling = reporting is not None and int((off[np.isfinite(off)] > 1).sum()) > 2 * len(
            reporting.strengths
        )
        if reporting is not None and telling and largest > SURE:
            found.append(f"loss: simply wrong, explained by {reporting.causes}")
        return found
    if reporting is None:
        if "loss-epoch-mean" in expected:  # which rounds as the losses before do
            largest = float(np.nanmax(off * bound / np.maximum(bound, mean_of_epoch(seen, bound))))
        if largest > SURE and losses_must_be_explained(seen):
            found.append(f"loss: {sorted(expected)}, {largest:.3g} limits off, is not explained")
    elif not expected <= set(reporting.causes) and penalty_shows(seen):
        found.append(f"loss: {sorted(expected)} is taken for {reporting.causes}")
    return found


def mean_of_epoch(seen: Seen, values: Array) -> Array:
    """Return the mean of each epoch's values so far."""
    each = seen.problem.steps // seen.problem.epochs
    parts = [values[start : start + each] for start in range(0, len(values), each)]
    return np.concatenate([np.cumsum(part) / np.arange(1, len(part) + 1) for part in parts])


def penalty_shows(seen: Seen) -> bool:
    """Whether a penalty in the loss, if there is one, is more than the loss's rounding."""
    report, history = seen.case.code.report, seen.history
    if not any(report.strengths):
        return True
    before = history.all("before")
    halves = [(before[:, part] ** 2).sum(axis=1) / 2 for part in history.slices.values()]
    # Without a bias, the second strength is 0.
    added = sum(k * half for k, half in zip(report.strengths, halves, strict=False))
    with np.errstate(all="ignore"):
        loss = np.maximum(1, np.abs(history.loss("scratch") / history.loss("framework")))
        shown = added / (history.loss("bound") * seen.limits("loss") * loss)
    rows = batch_of(seen.case.spec, len(seen.case.y)) if report.per_batch else 1
    coarser = SINGLE if "precision" in seen.case.causes else 1
    return bool(
        np.nanmax(shown, initial=0.0) > SURE * coarser * rows * seen.case.spec["accumulate"]
    )


def losses_must_be_explained(seen: Seen) -> bool:
    """Whether the losses are those of a rule that is known, and the steps tell the rest."""
    report, history = seen.case.code.report, seen.history
    torch = report.base != "own" or not (seen.case.wrong or seen.case.causes)
    told = [set(one.causes) for one in seen.diagnosis.explanations]
    explained = any(seen.case.causes <= one for one in told)
    hidden = {one.cause for one in seen.report.not_distinguished}
    if not explained and seen.case.causes & OUTSIDE.keys():
        return False  # the steps alone tell other rows, or another start
    if starts_elsewhere_too(seen):
        return False  # and at the start that is found, the loss is not the code's
    if seen.report.first_divergence is None and not seen.case.reporting:
        return False  # what it reports is the loss of its rule, of which no step tells
    explained |= seen.report.first_divergence is None
    if not torch and (seen.case.wrong or not explained or seen.case.causes & hidden):
        return False
    if not any(report.strengths) or report.plain:
        return len(history) > 0
    # Of a penalty of any strength, the parameters must show the shape.
    before = history.all("before")
    columns = np.column_stack(
        [(before[:, part] ** 2).sum(axis=1) for part in history.slices.values()]
    )
    columns = columns[:, columns.any(axis=0)] / history.loss("bound")[:, None]
    if not np.isfinite(columns).all() or len(columns) < 4 or not columns.size:
        return False
    values = np.linalg.svd(columns / np.linalg.norm(columns, axis=0), compute_uv=False)
    return bool(values.min() > 1e-6)


def starts_elsewhere_too(seen: Seen) -> bool:
    """Whether the code's steps are those from another start too, which was found."""
    found, own = seen.diagnosis.start, seen.case.code.start
    if found is None or own is None:
        return False
    history = seen.history
    there, start = history.flat(found), np.append(*own)[: history.entries]
    if np.allclose(there, start, rtol=1e-6, atol=1e-6 * float(np.abs(start).max())):
        return False
    step_1 = next(exactly(seen, seen.case.code.rule, found))
    return step_1.update < SURE
