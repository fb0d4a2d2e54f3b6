"""What a report says besides the verdict: why it shows when it shows, and what was not judged.

Each remark is a sentence, or empty where it does not apply.
"""

from __future__ import annotations

import math

from regcheck.compare.comparison import OUT_OF_RANGE
from regcheck.report.numbers import both, short
from regcheck.report.result import Report
from regcheck.report.text import WHERE, differing_keys, judged
from regcheck.rules.convention import is_bias


def first_remarks(report: Report) -> list[str]:
    """Give the remarks on the two terms that differ: why they show when they show."""
    return [remark for remark in (overflow_remark(report), hidden_remark(report)) if remark]


def remarks(report: Report) -> list[str]:
    """Give the other remarks that apply, in the order of reading."""
    told = (
        not_judged_remark(report),
        floor_remark(report),
        saturated_remark(report),
        loss_remark(report),
        untold_remark(report),
        unjudged_remark(report),
        masked_remark(report),
        drift_remark(report),
        undistinguished_remark(report),
        blind_remark(report),
        convention_remark(report),
    )
    return [remark for remark in told if remark]


def not_judged_remark(report: Report) -> str:
    """Tell of a divergence that the spec does not judge."""
    found = []
    if report.first_divergence is not None and not judged(report, "parameters"):
        found.append(f"the parameters part at step {report.first_divergence.step:,}")
    if report.first_loss_divergence is not None and not judged(report, "loss"):
        found.append(f"the reported losses part at step {report.first_loss_divergence.step:,}")
    if not found:
        return ""
    return f"Not judged, since `compare` leaves it out: {' and '.join(found)}."


def overflow_remark(report: Report) -> str:
    """Say that one side's numbers end before the other's, where that is what parts them."""
    divergence, (scratch, framework) = report.first_divergence, report.dtypes
    if divergence is None or scratch == framework:
        return ""
    if math.isfinite(divergence.at.scratch) == math.isfinite(divergence.at.framework):
        return ""
    side = "scratch" if scratch == "float32" else "torch"
    return f"The {side} side's float32 ends at 3.4e+38: it overflows where float64 does not."


def hidden_remark(report: Report) -> str:
    """Say why the steps before the divergence could not show it; empty where nothing is known."""
    divergence = report.first_divergence
    if divergence is None or report.comparison.previous is None or not judged(report, "parameters"):
        return ""
    earlier = "Step 1" if divergence.step == 2 else f"Step {divergence.step - 1:,}"
    tensor = divergence.within.tensor
    if (
        divergence.stage == "penalty"
        and not report.comparison.previous.framework.before[tensor].any()
    ):
        was = "the bias was" if is_bias(tensor) else "the weights were"
        return f"{earlier} could not show it: {was} still zero, and so was the penalty."
    if divergence.stage == "optimizer" and divergence.step == 2 and report.training.sgd.momentum:
        return "Step 1 could not show it: the velocity held nothing from before."
    return ""


def floor_remark(report: Report) -> str:
    """Say from which step on BCELoss's floor is met, where the diagnosis names it."""
    found = report.comparison.saturation
    if found is None or not report.names("bce-saturated"):
        return ""
    return (
        f"BCELoss's floor is met from step {found.first:,} on, by "
        f"{percent(found.first_share)} of that step's samples."
    )


def saturated_remark(report: Report) -> str:
    """Say that most rows are saturated, so that torch's side does not learn from them."""
    found = report.comparison.saturation
    if found is None or found.last_share <= 1 / 2:
        return ""
    learns = "torch does not learn" if report.names("bce-saturated") else "neither side learns"
    return (
        f"In step {found.last:,}, {percent(found.last_share)} of the samples are saturated (p "
        f"rounds to 0 or 1, or nearly): {learns} from them. Scale the features "
        "(`standardize: true`), or take `loss: bce_with_logits`."
    )


def percent(share: float) -> str:
    """Write a share: `97 %`, and no 0 or 100 where it is not just that.

    >>> percent(1.0), percent(0.9734), percent(0.9999), percent(1e-5)
    ('100 %', '97 %', '99.99 %', '0.001 %')
    """
    rounded = (float(f"{100 * share:.{digits}g}") for digits in range(2, 17))
    return f"{next(one for one in rounded if (one < 100) == (share < 1)):.15g} %"


def loss_remark(report: Report) -> str:
    """Say where the reported losses part, beside a divergence of the parameters."""
    loss = report.first_loss_divergence
    if loss is None:
        return ""
    too = " too" if report.first_divergence and report.first_divergence.step == loss.step else ""
    on_drift = report.spec.tolerance.of("loss").on_drift
    where = "each side on its own" if on_drift else "at the same parameters"
    scratch, torch = both(loss.at.scratch, loss.at.framework)
    return (
        f"The reported losses part at step {loss.step:,}{too}, {where}: "
        f"scratch {scratch}, torch {torch}, "
        f"difference {short(loss.at.difference)}."
    )


def untold_remark(report: Report) -> str:
    """Say that a user's code yields no loss, where the losses are to be compared."""
    if (
        report.spec.scratch is None
        or report.comparison.losses_reported
        or not judged(report, "loss")
    ):
        return ""
    return "Your code yields no loss, so that the reported losses are not compared."


def unjudged_remark(report: Report) -> str:
    """Say from which step on something could not be judged, where the verdict does not say it."""
    step, loss = report.comparison.first_unjudged, report.comparison.first_loss_unjudged
    told = []
    if step is not None and report.verdict != "inconclusive":
        told.append(f"From step {step:,} on {OUT_OF_RANGE}: the run ends there.")
    told_already = report.verdict == "inconclusive" and judged(report, "loss")
    if loss is not None and loss != step and not told_already:
        told.append(f"From step {loss:,} on the reported losses are out of range, and not judged.")
    return " ".join(told)


def masked_remark(report: Report) -> str:
    """Tell of a stage that differs where the parameters do not: the step hides it."""
    if report.first_divergence is not None or not report.comparison.first_by_stage:
        return ""
    found = [
        f"{WHERE[stage]} (step {step:,})"
        for stage, step in report.comparison.first_by_stage.items()
    ]
    if report.spec.tolerance.on_drift:
        return (
            f"The rules differ all the same, {' and '.join(found)}, by more than rounding: the "
            "tolerance allows what has come of it."
        )
    return f"The sides differ {' and '.join(found)}, but no parameter shows it."


def drift_remark(report: Report) -> str:
    """Tell how far the trajectories part where the sides agree, and whether that is amplified."""
    if report.verdict == "diverged" or report.first_divergence or not report.comparison.compared:
        return ""
    amplified = report.comparison.drift.amplification
    if amplified is None:
        if report.verdict != "equivalent":
            return ""
        if report.comparison.drift.largest == 0:
            return "The two trajectories are the same."
        share = max(
            report.comparison.drift.needed[name].rtol_alone
            for name in report.comparison.trace.tensors
        )
        size = f", {short(share)} of an entry's size" if share < 1e-3 else ""
        furthest = short(report.comparison.drift.largest)
        return f"The two trajectories are never more than {furthest} apart{size}."
    return (
        f"The drift is amplified rounding: each step agrees, and the training magnifies what "
        f"rounding puts in, from step {amplified.first_step:,} on. After step {amplified.step:,} "
        f"the trajectories are {short(amplified.drift)} apart, {short(amplified.factor)} times "
        f"what all steps so far put in. A smaller lr may keep them together."
    )


NAMES = 4
"""Causes that are named before the rest is counted."""


def blind_remark(report: Report) -> str:
    """Say which causes a run that agrees could not have told from its own rule, and why."""
    if not report.not_distinguished or report.first_divergence or report.verdict == "diverged":
        return ""
    if not report.comparison.compared:
        return ""
    by_reason: dict[str, list[str]] = {}
    for hidden in report.not_distinguished:
        by_reason.setdefault(hidden.reason, []).append(hidden.cause)
    told = [f"from {named(causes)} because {reason}" for reason, causes in by_reason.items()]
    return f"This run cannot tell torch's rule {'; nor '.join(told)}."


def named(causes: list[str]) -> str:
    """Name some causes: `a`, `a or b`, `a, b, c, d or 3 more`."""
    if len(causes) > NAMES + 1:
        causes = [*causes[:NAMES], f"{len(causes) - NAMES} more"]
    return " or ".join(part for part in (", ".join(causes[:-1]), causes[-1]) if part)


def undistinguished_remark(report: Report) -> str:
    """Say of a run that agrees that its conventions differ all the same: it could not show it."""
    keys = differing_keys(report)
    shown = (
        report.first_divergence or report.first_loss_divergence or report.comparison.first_by_stage
    )
    if report.verdict != "equivalent" or shown or not keys:
        return ""
    return f"The spec's convention differs in {keys}; nothing in this run tells the two apart."


def convention_remark(report: Report) -> str:
    """Name what the spec's convention chooses otherwise than torch, where the sides diverge."""
    keys = differing_keys(report)
    if report.verdict != "diverged" or not keys:
        return ""
    return f"The spec's convention differs in {keys}."
