"""What a rule makes of torch's data gradient: a factor on it, and how much longer its steps are."""

from __future__ import annotations

import math

from regcheck.numerics.losses import total_weight
from regcheck.problem.batches import Batch
from regcheck.problem.problem import Problem
from regcheck.rules.settings import Settings


def gain(rule: Problem, batch: Batch) -> float:
    """Return how many times larger a rule makes a step's share of the gradient, at most.

    An optimizer that divides by the gradient's size makes no more of a larger one: its rounding
    is a share of the step, which the lr alone scales. What else makes it longer, as a root that is
    missing, shows in the steps themselves.
    """
    faults, options = rule.faults, rule.scratch_settings
    found = abs(faults.lr_factor)
    if (faults.lr_shift or faults.lr_schedule) and batch.lr:
        other = rule.faulty_schedule.lr_at(batch.step + faults.lr_shift)
        found *= max(1.0, other / batch.lr)
    if faults.zeroing == "never":
        found *= batch.step
    if options.rule.linear:
        found *= abs(rule.convention.loss_factor * faults.gradient_factor)
        if rule.convention.loss_reduction == "sum":
            found *= max(weights_of(rule, batch))
        if faults.accumulation in {"sum", "last"}:
            found *= len(batch.micro_batches)
        elif faults.accumulation == "over-rows":
            sizes = weights_of(rule, batch)
            found *= max(sizes) * len(sizes) / sum(sizes)
        if divides_by_rows(rule):
            found *= max(mean_weights(rule, batch))
        found *= gain_of_velocity(rule, options)
    return found if math.isfinite(found) else 1.0


def gain_of_velocity(rule: Problem, options: Settings) -> float:
    """Return how many times larger a rule makes the gradients' share in the velocity.

    That is 1 − τ of all but the first, or 1 − μ of each; and those so far add up to 1/(1 − μ).
    """
    torch, found = rule.settings, 1.0
    share = 1 - torch.dampening if 0 < torch.dampening < 1 else 1.0
    if rule.convention.momentum_form == "dampened" and options.momentum:
        found = (1 - options.momentum) / share
    elif options.dampening != torch.dampening:
        found = max(1.0, abs(1 - options.dampening) / share)
    if torch.momentum < options.momentum < 1:
        found *= (1 - torch.momentum) / (1 - options.momentum)
    return found


def pass_scale(rule: Problem, batch: Batch) -> float | None:
    """Return what a rule's pass over the rows makes of torch's gradient; None where it varies.

    The faults on the gradient itself come later in the step.
    """
    convention, faults = rule.convention, rule.faults
    looks_again = convention.update_order != "simultaneous"
    if looks_again or faults.target != "row" or faults.bce_slope != "floored":
        return None
    if faults.accumulation == "last" and len(batch.micro_batches) > 1:
        return None
    scale = convention.loss_factor
    together = faults.accumulation == "over-rows"
    summed = convention.loss_reduction == "sum" or faults.batch_divisor == "batch-size"
    if summed or together:
        sizes = weights_of(rule, batch)
        if len(set(sizes)) > 1:
            return None
        scale *= sizes[0] if summed else 1 / len(sizes)
        if faults.batch_divisor == "batch-size":
            scale /= rule.schedule.nominal_rows
    if faults.accumulation in {"sum", "over-rows"}:
        scale *= len(batch.micro_batches)
    if divides_by_rows(rule):
        means = mean_weights(rule, batch)
        if len(set(means)) > 1:
            return None
        scale *= means[0]
    return scale


def divides_by_rows(rule: Problem) -> bool:
    """Whether a rule's mean is over rows that torch's weights by their classes."""
    return rule.faults.batch_divisor == "unweighted" and rule.convention.loss_reduction == "mean"


def mean_weights(rule: Problem, batch: Batch) -> list[float]:
    """Return the mean class weight of each micro-batch's rows."""
    sizes = [len(rule.y[index]) for index in batch.micro_batches]
    return [weight / n for weight, n in zip(weights_of(rule, batch), sizes, strict=True)]


def weights_of(rule: Problem, batch: Batch) -> list[float]:
    """Return what torch's mean divides by in each micro-batch: its rows, or their weights."""
    return [total_weight(rule.y[index], rule.loss_options) for index in batch.micro_batches]
