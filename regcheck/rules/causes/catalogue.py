"""The causes, in one catalogue: those of the penalty, of the optimizer's step, and the others.

A new one is an entry in one of the three. The trials of what a run could have shown, the diagnosis,
the explanation and the planted bugs read it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from regcheck.rules.causes.adam_causes import ADAM_CAUSES
from regcheck.rules.causes.cause import AT_ONCE, ONE_PERCENT, Cause, Change, put_in
from regcheck.rules.causes.penalty_causes import PENALTY_CAUSES
from regcheck.rules.causes.step_causes import STEP_CAUSES
from regcheck.rules.convention import Convention, is_bias
from regcheck.rules.faults import NO_FAULTS
from regcheck.rules.formulas.formula import EPOCHS, loss_text, rule_lines
from regcheck.rules.settings import Letters, Training, letters


def in_batches(training: Training, convention: Convention) -> bool:
    """Whether a step sees some of the rows."""
    return training.batch_rows[0] < training.train_rows


OTHER_CAUSES: dict[str, Cause] = {
    "accumulation-last-only": Cause(
        "uses the last micro-batch's or rank's gradient alone",
        changes=({"accumulation": "last"},),
        concerns=lambda training, _: bool(training.micro_rows),
        stage="gradient",
        since="at every step with several micro-batches or ranks",
        fix="average all micro-batches' or ranks' gradients: zero them once a step, not for each",
        hidden_by=("one-micro-batch", "zero-gradient"),
    ),
    "accumulation-not-averaged": Cause(
        "sums the micro-batches' or ranks' gradients, without averaging",
        changes=({"accumulation": "sum"},),
        concerns=lambda training, _: bool(training.micro_rows),
        stage="gradient",
        since="at every step with several micro-batches or ranks",
        fix="divide the sum of the gradients by the number of micro-batches, or of ranks",
        hidden_by=("one-micro-batch", "zero-gradient"),
    ),
    "accumulation-over-rows": Cause(
        "averages over all samples, not over micro-batch or rank means",
        changes=({"accumulation": "over-rows"},),
        concerns=lambda training, _: (
            len(training.micro_rows) > 1 or bool(training.micro_rows and training.weighted)
        ),
        stage="gradient",
        since="where a step's micro-batches, or its ranks' shares, differ in size",
        fix="average the micro-batches' or ranks' mean gradients, each with the same weight",
        hidden_by=("even-micro-batches", "zero-gradient"),
    ),
    "bce-saturated": Cause(
        "uses p − y where torch's BCELoss has no gradient",
        changes=({"bce_slope": "plain"},),
        concerns=lambda training, _: training.loss == "bce",
        stage="gradient",
        since="where p is within 1e-12 of 0 or 1 (z beyond ±27.6; in float32 from z = 17.3 on)",
        fix="keep p − y, which is right: change torch's loss (bce_with_logits), or scale the "
        "features",
        hidden_by=("never-saturated",),
    ),
    "clip-per-tensor": Cause(
        "clips each tensor by its own norm",
        changes=({"clip_scope": "tensor"},),
        concerns=lambda training, _: (
            training.clipped_by_norm and len(training.settings.weight_decay) > 1
        ),
        stage="optimizer",
        since="where a gradient is clipped",
        fix="compute one norm over the gradients of all tensors, and scale them all by one factor",
        hidden_by=("never-clipped",),
    ),
    "gradient-accumulated": Cause(
        "never zeroes the gradients, so that they accumulate",
        changes=({"zeroing": "never"},),
        stage="gradient",
        since="from step 2 on",
        fix="set the gradients to 0 before each step",
        hidden_by=("one-step", "zero-gradient"),
    ),
    "gradient-scaled": Cause(
        "multiplies the gradient by a constant factor",
        changes=({"gradient_factor": ONE_PERCENT},),
        stage="gradient",
        since=AT_ONCE,
        fix="remove the factor c: use the gradient of the batch's mean loss",
        fix_by_entry="do not multiply the gradient of the entries named above",
        hidden_by=("zero-gradient",),
        fitted=True,
    ),
    "initial-parameters": Cause(
        "does not start from the spec's initial parameters",
        stage="initial",
        since="before step 1",
        fix="start every weight and bias from the spec's `init`",
    ),
    "last-batch-divisor": Cause(
        "divides a smaller batch or rank's share by the full size",
        changes=({"batch_divisor": "batch-size"},),
        concerns=lambda training, _: len(training.loss_rows) > 1,
        stage="gradient",
        since="at the smaller last batch, or a smaller share",
        fix="divide each batch's or share's sum by its own number of samples, not by batch_size",
        hidden_by=("zero-gradient",),
    ),
    "learning-rate-scaled": Cause(
        "multiplies the lr by a constant factor",
        changes=({"lr_factor": ONE_PERCENT},),
        stage="optimizer",
        since=AT_ONCE,
        fix="remove the factor c: use torch's lr",
        fix_by_entry="use torch's lr for those entries too",
        hidden_by=("zero-gradient",),
        fitted=True,
    ),
    "loss-after-update": Cause(
        "reports the loss after the update, not before it",
        stage="loss",
        since=AT_ONCE,
        fix="compute the loss before the update, from the same outputs as the gradient",
        hidden_by=("zero-gradient",),
        reports="{}, at the parameters after the update",
    ),
    "loss-epoch-mean": Cause(
        "reports the epoch's mean loss so far, not the batch's loss",
        concerns=in_batches,
        stage="loss",
        since="from the second batch of an epoch on",
        fix="report each batch's own loss, not averaged with the epoch's earlier batches",
        reports="mean over the epoch's batches so far of {}",
    ),
    "loss-halved": Cause(
        "takes the gradient of half the loss",
        changes=({"loss_factor": 0.5},),
        stage="gradient",
        since=AT_ONCE,
        fix="remove the ½ before the loss: torch's mean loss has none",
        hidden_by=("zero-gradient",),
    ),
    "loss-last-micro-batch": Cause(
        "reports the last micro-batch's loss, not the mean over the step's",
        concerns=lambda training, _: bool(training.micro_rows),
        stage="loss",
        since="at every step with several micro-batches or ranks",
        fix="report the mean of the losses of all micro-batches, or of all ranks",
        reports="mean ℓ of the last micro-batch",
    ),
    "loss-summed": Cause(
        "takes the gradient of the summed loss, not of the mean loss",
        changes=({"loss_reduction": "sum"},),
        stage="gradient",
        since="at every batch of several samples",
        fix="divide each batch's or share's gradient by its number of samples, to take the mean",
        hidden_by=("one-row-losses", "zero-gradient"),
    ),
    "precision": Cause(
        "computes in a different dtype",
        stage="update",
        since="from step 1 on, by the rounding of the coarser dtype",
        fix="compute in torch's dtype, including the data and the parameters",
    ),
    "reported-loss-scaled": Cause(
        "reports the loss times a constant, e.g. the sum or half of it",
        stage="loss",
        since=AT_ONCE,
        fix="report the mean of the samples' losses, without a factor",
        reports="c {}",
    ),
    "row-order": Cause(
        "does not use the same samples as torch at each step",
        concerns=in_batches,
        stage="gradient",
        since="at the first step whose samples differ",
        fix="use the samples that the spec gives each step: its order, shuffle and batch_size",
    ),
    "target-broadcast": Cause(
        "uses the batch's mean target instead of each sample's target",
        changes=({"target": "batch-mean"},),
        concerns=lambda training, _: training.loss != "cross_entropy",
        stage="gradient",
        since=AT_ONCE,
        fix="give targets and outputs the same shape: (B,) and (B, 1) broadcast to (B, B)",
        hidden_by=("equal-targets",),
    ),
    "update-sequential": Cause(
        "takes the weight's gradient after the bias is updated",
        changes=({"update_order": "bias-first"},),
        concerns=lambda training, _: any(map(is_bias, training.settings.weight_decay)),
        stage="gradient",
        since=AT_ONCE,
        fix="compute all gradients first, at the old parameters, then update weight and bias",
        hidden_by=("zero-gradient",),
    ),
}

CAUSES: dict[str, Cause] = dict(
    sorted((PENALTY_CAUSES | STEP_CAUSES | ADAM_CAUSES | OTHER_CAUSES).items())
)
"""All causes by their names."""


class Formulas(NamedTuple):
    """The lines in which two rules differ; both empty where a cause changes no formula.

    `scratch` has the lines of each way in which the cause can act.
    """

    scratch: list[list[str]]
    framework: list[str]


def scratch_formula(
    name: str,
    training: Training,
    factor: float | None = None,
    loss_scale: float | None = None,
    change: Change | None = None,
) -> str:
    """Write what a cause makes of torch's rule, with a training's numbers; empty where nothing.

    Args:
        name: the cause.
        training: with the settings that the cause is about.
        factor: the one that stands behind a fitted cause; None writes c.
        loss_scale: the factor on the data loss that is reported, for a cause of the reporting;
            None where it is not known.
        change: what a cause puts into torch's rule whose entry does not say it.

    >>> from regcheck.rules.settings import Settings
    >>> training = Training(Settings(0.05, {"weight": 0.1, "bias": 0.1}), (32,), 273)
    >>> scratch_formula("penalty-divided-by-batch", training)
    'w ← w − 0.05 (g + 0.1/32 w), b likewise'
    >>> scratch_formula("learning-rate-scaled", training, 2.0)
    'w ← w − 2·0.05 (g + 0.1 w), b likewise'
    >>> scratch_formula("penalty-in-loss", training, loss_scale=0.5)
    'reports  0.5 mean ℓ + ½·0.1 Σw² + ½·0.1 Σb²'
    """
    base = None if loss_scale is None else with_loss_scale(training, loss_scale)
    ways = formulas_of(name, letters(training), factor, base, change).scratch
    return ", or ".join("; ".join(lines) for lines in ways)


def framework_formula(name: str, training: Training, change: Change | None = None) -> str:
    """Write the lines of torch's rule that a cause changes, with a training's numbers."""
    return "; ".join(formulas_of(name, letters(training), change=change).framework)


def with_loss_scale(training: Training, scale: float) -> Convention:
    """Return torch's rule with `scale` times its mean loss, or the sum of the rows' losses.

    >>> from regcheck.rules.settings import Settings
    >>> training = Training(Settings(0.1, {"weight": 0.0}), (32, 17), 273)
    >>> loss_text(with_loss_scale(training, 16.0), letters(training))
    '0.5 Σℓ'
    """
    rows = training.loss_rows[0]
    for share in (1.0, 0.5):
        if scale == share * rows != 1:
            return training.settings.torchs._replace(loss_reduction="sum", loss_factor=share)
    return training.settings.torchs._replace(loss_factor=scale)


def formulas_of(
    name: str,
    given: Letters,
    factor: float | None = None,
    base: Convention | None = None,
    change: Change | None = None,
) -> Formulas:
    """Return the lines that differ between torch's rule and a cause's.

    Those of the update, or of the reported loss for a cause that changes nothing else; the latter
    is put into a rule whose data loss may be another than torch's already, `base`.
    """
    cause, torchs = CAUSES[name], given.torchs
    base = base or torchs

    def written(change: Change, base: Convention) -> list[str]:
        """Write torch's rule, or its loss, with a change in it."""
        convention, faults = put_in(change, base, NO_FAULTS)
        if cause.kind == "update":
            return rule_lines(convention, given, faults)
        return [f"reports  {loss_text(convention, given, faults)}"]

    changes = cause.changing(torchs) if change is None else (change,)
    if cause.factor_key:
        changes = ({cause.factor_key: math.nan if factor is None else factor},)
    framework = written({}, torchs)
    if any("state" in change for change in changes):
        framework = [EPOCHS["kept"], *framework]  # which else goes without saying
    ways = [written(change, torchs if cause.kind == "update" else base) for change in changes]
    if cause.reports:
        # The c of a scaled loss is in its formula already.
        text = cause.reports if base == torchs else cause.reports.removeprefix("c ")
        ways.append([f"reports  {text.format(loss_text(base, given))}"])
    common = {line for line in framework if all(line in lines for lines in ways)}
    scratch = [[line for line in lines if line not in common] for lines in ways]
    return Formulas(scratch, [line for line in framework if line not in common])
