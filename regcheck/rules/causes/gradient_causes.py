"""Causes of the gradient and of what it is taken from: the samples, the start, the dtype."""

from __future__ import annotations

from regcheck.rules.causes.cause import AT_ONCE, ONE_PERCENT, Cause, in_batches
from regcheck.rules.convention import is_bias

GRADIENT_CAUSES: dict[str, Cause] = {
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
    "class-weights-not-averaged": Cause(
        "divides the weighted loss by the samples, not by their weights",
        changes=({"batch_divisor": "unweighted"},),
        concerns=lambda training, _: training.weighted,
        stage="gradient",
        since=AT_ONCE,
        fix="divide each batch's weighted sum by the sum of its samples' class weights",
        hidden_by=("zero-gradient",),
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
    "precision": Cause(
        "computes in a different dtype",
        stage="update",
        since="from step 1 on, by the rounding of the coarser dtype",
        fix="compute in torch's dtype, including the data and the parameters",
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
