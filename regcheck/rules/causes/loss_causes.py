"""Causes of the loss: another one whose gradient is taken, or one that is reported alone."""

from __future__ import annotations

from regcheck.rules.causes.cause import AT_ONCE, Cause, in_batches

LOSS_CAUSES: dict[str, Cause] = {
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
    "reported-loss-scaled": Cause(
        "reports the loss times a constant, e.g. the sum or half of it",
        stage="loss",
        since=AT_ONCE,
        fix="report the mean of the samples' losses, without a factor",
        reports="c {}",
    ),
}
