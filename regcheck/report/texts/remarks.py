"""What a report says besides the verdict: why it shows when it shows, and what was not judged.

Each group of remarks yields the sentences that apply.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from regcheck.compare.comparison import OUT_OF_RANGE
from regcheck.report.result import Report
from regcheck.report.texts.text import WHERE, both, short
from regcheck.report.texts.tolerance_text import tolerances
from regcheck.rules.convention import differences, is_bias
from regcheck.rules.words import all_of

MOST_NAMED = 4
"""Causes that are named before the rest is counted."""


def first_remarks(report: Report) -> list[str]:
    """Return the remarks on the two terms that differ: why they show when they show."""
    return [*overflow(report), *hidden_before(report)]


def remarks(report: Report) -> list[str]:
    """Return the other remarks that apply, in the order of reading."""
    groups = (of_run, losses, unjudged, masked, drift, conventions, tolerances)
    return [remark for group in groups for remark in group(report)]


def short_remarks(report: Report) -> list[str]:
    """Return those remarks that limit the verdict, in the order of reading."""
    groups = (of_run, unjudged, masked, hidden_causes, drift)
    return [remark for group in groups for remark in group(report)]


def of_run(report: Report) -> Iterator[str]:
    """Say what limits all that a run can say."""
    for group in (recorded, coarse, left_out, symmetry, saturation):
        yield from group(report)


def recorded(report: Report) -> Iterator[str]:
    """Say that torch's steps are the recorded ones."""
    if report.golden:
        yield f"torch's steps are those of {report.golden}."


def coarse(report: Report) -> Iterator[str]:
    """Say how to have less rounding, where that of float32 is why a run is inconclusive."""
    power = report.comparison.power
    if report.verdict != "inconclusive" or "float32" not in report.dtypes:
        return
    if power is not None and report.reason == power.reason() != "":
        own = report.spec.own_framework is not None and report.dtypes[1] == "float32"
        how = "return the model as model.double()" if own else "set `dtype: float64`"
        yield f"float64 rounds by 5e+08 times less than float32: {how}."


def hidden_causes(report: Report) -> Iterator[str]:
    """Name the causes that a run which agrees could not have shown."""
    diverged = report.verdict == "diverged" or report.first_divergence
    if diverged or not report.comparison.compared or not report.not_distinguished:
        return
    causes = [hidden.cause for hidden in report.not_distinguished]
    yield f"This run cannot distinguish {any_of(causes)} (why: --details)."


def overflow(report: Report) -> Iterator[str]:
    """Say that one side's numbers end before the other's, where that is why they differ."""
    divergence, (scratch, framework) = report.first_divergence, report.dtypes
    if divergence is None or scratch == framework:
        return
    if math.isfinite(divergence.at.scratch) != math.isfinite(divergence.at.framework):
        side = "scratch" if scratch == "float32" else "torch"
        yield f"float32 ends at 3.4e+38: the {side} side overflows where float64 does not."


def hidden_before(report: Report) -> Iterator[str]:
    """Say why the steps before the divergence could not show it, where it is known."""
    divergence, previous = report.first_divergence, report.comparison.previous
    if divergence is None or previous is None or "parameters" not in report.spec.compare:
        return
    tensor = divergence.within.tensor
    if divergence.stage == "penalty" and not previous.framework.before[tensor].any():
        earlier = f"Step {divergence.step - 1:,}"
        was = "the bias was" if is_bias(tensor) else "the weights were"
        yield f"{earlier} agrees: {was} still zero, so weight decay had no effect."
    elif (
        divergence.stage == "optimizer"
        and divergence.step == 2
        and report.training.settings.momentum
    ):
        yield "Step 1 agrees: there was no velocity from earlier steps."


def left_out(report: Report) -> Iterator[str]:
    """Describe divergences that the spec does not judge."""
    found = []
    judged = report.spec.compare
    if report.first_divergence is not None and "parameters" not in judged:
        found.append(f"the parameters diverge at step {report.first_divergence.step:,}")
    if report.first_loss_divergence is not None and "loss" not in judged:
        found.append(f"the reported losses diverge at step {report.first_loss_divergence.step:,}")
    if found:
        yield f"Not judged, since `compare` leaves it out: {all_of(found)}."


def symmetry(report: Report) -> Iterator[str]:
    """Say that hidden units which start alike stay alike, where an mlp starts so."""
    model, init = report.spec.architecture, report.spec.init
    if report.spec.own_framework is not None or model is None or not model.hidden:
        return
    if init.constant is None and not (init.normal and init.normal.std == 0):
        return
    units = "each hidden layer's units" if max(model.hidden) > 1 else "the hidden units"
    start = "the same numbers" if init.constant else "zeros"
    yield (
        f"All tensors start from {start}: {units} start alike, and no step makes them differ, so "
        "that much of the mlp goes untested. Take `init: {normal: {std: 0.1, seed: 0}}`."
    )


def saturation(report: Report) -> Iterator[str]:
    """Say from which step on BCELoss's floor is met, and that most rows are saturated."""
    found, by_floor = report.comparison.saturation, report.names("bce-saturated")
    if found is None:
        return
    if by_floor:
        yield (
            f"BCELoss's floor applies from step {found.first:,} on, to "
            f"{percent(found.first_share)} of that step's samples."
        )
    if found.last_share > 1 / 2:
        learns = "torch does not learn" if by_floor else "neither side learns"
        yield (
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


def losses(report: Report) -> Iterator[str]:
    """Say where the reported losses differ, or that there are none to compare."""
    loss, first = report.first_loss_divergence, report.first_divergence
    if loss is not None:
        also = "also " if first is not None and first.step == loss.step else ""
        on_drift = report.spec.tolerance.of("loss").on_drift
        where = "each side on its own" if on_drift else "at the same parameters"
        scratch, torch = both(loss.at.scratch, loss.at.framework)
        yield (
            f"The reported losses {also}diverge at step {loss.step:,}, {where}: "
            f"scratch {scratch}, torch {torch}, difference {short(loss.at.difference)}."
        )
    if report.spec.textbook is not None:
        yield "Both sides take the gradient that torch has: the update alone is compared."
        return
    own = report.spec.scratch is not None
    if own and not report.comparison.losses.reported and "loss" in report.spec.compare:
        yield "Your code yields no loss, so the reported losses are not compared."


def unjudged(report: Report) -> Iterator[str]:
    """Say from which step on something could not be judged, where the verdict does not say it."""
    step, loss = report.comparison.first_unjudged, report.comparison.losses.first_unjudged
    inconclusive = report.verdict == "inconclusive"
    found = []
    if step is not None and not inconclusive:
        found.append(f"From step {step:,} on {OUT_OF_RANGE}: the run ends there.")
    if loss is not None and loss != step and not (inconclusive and "loss" in report.spec.compare):
        found.append(f"From step {loss:,} on the reported losses are out of range, and not judged.")
    if found:
        yield " ".join(found)


def masked(report: Report) -> Iterator[str]:
    """Name a stage that differs where the parameters do not: the step hides it."""
    if report.first_divergence is not None or not report.comparison.first_by_stage:
        return
    stages = [
        f"{WHERE[stage]} (step {step:,})"
        for stage, step in report.comparison.first_by_stage.items()
    ]
    if report.spec.tolerance.on_drift:
        yield (
            f"The rules differ nevertheless, {all_of(stages)}, by more than rounding: the "
            "tolerance allows the accumulated difference that results."
        )
    else:
        yield f"The sides differ {all_of(stages)}, but no parameter shows it."


def drift(report: Report) -> Iterator[str]:
    """Say how far the trajectories are apart where the steps agree, and whether it is amplified."""
    found, amplified = report.comparison.drift, report.comparison.drift.amplification
    if report.verdict == "diverged" or report.first_divergence or not report.comparison.compared:
        return
    if amplified is not None:
        yield (
            "The accumulated difference is amplified rounding: each step agrees, and the training "
            f"amplifies the rounding errors, from step {amplified.first_step:,} on. After step "
            f"{amplified.step:,} the trajectories are {short(amplified.drift)} apart, "
            f"{short(amplified.factor)} times the sum of the rounding errors so far. A smaller "
            "lr may keep them together."
        )
    elif report.verdict == "equivalent" and found.largest == 0:
        yield "The two trajectories are identical."
    elif report.verdict == "equivalent":
        share = max(found.needed[name].rtol_alone for name in report.comparison.trace.tensors)
        size = f", {short(share)} of an entry's size" if share < 1e-3 else ""
        yield f"The two trajectories are never more than {short(found.largest)} apart{size}."


def conventions(report: Report) -> Iterator[str]:
    """Name the causes and conventions that a run could not distinguish, and why."""
    chosen = differences(
        report.spec.named_convention(), report.training.settings.torchs, bias=report.spec.bias
    )
    keys = ", ".join(f"{key}: {here} (torch: {torch})" for key, (here, torch) in chosen.items())
    diverged = report.verdict == "diverged"
    shown = (
        report.first_divergence or report.first_loss_divergence or report.comparison.first_by_stage
    )
    if keys and diverged:
        yield f"The spec's convention differs in {keys}."
    if keys and report.verdict == "equivalent" and not shown:
        yield f"The spec's convention differs in {keys}; nothing in this run distinguishes the two."
    if diverged or report.first_divergence or not report.comparison.compared:
        return
    by_reason: dict[str, list[str]] = {}
    for hidden in report.not_distinguished:
        by_reason.setdefault(hidden.reason, []).append(hidden.cause)
    found = [f"from {any_of(causes)} because {reason}" for reason, causes in by_reason.items()]
    if found:
        yield f"This run cannot distinguish torch's rule {'; nor '.join(found)}."


def any_of(names: list[str]) -> str:
    """Name one of some causes: `a`, `a or b`, `a, b, c, d or 3 more`."""
    return all_of(names, "or", most=MOST_NAMED)
