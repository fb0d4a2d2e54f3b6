"""The causes, in one catalogue: those of the penalty, and here the others.

A new one is an entry in one of the two. The trials of what a run could have shown, the diagnosis,
the explanation with both formulas (`cause_formula`) and the planted bugs read it.
"""

from __future__ import annotations

from regcheck.rules.cause import AT_ONCE, ONE_PERCENT, Cause
from regcheck.rules.convention import Convention, is_bias
from regcheck.rules.penalty_causes import PENALTY_CAUSES
from regcheck.rules.settings import Training


def with_momentum(training: Training, convention: Convention) -> bool:  # noqa: ARG001
    """Whether there is momentum."""
    return training.sgd.momentum > 0


def in_batches(training: Training, convention: Convention) -> bool:  # noqa: ARG001
    """Whether a step sees some of the rows."""
    return training.batch_rows[0] < training.train_rows


OTHER_CAUSES: dict[str, Cause] = {
    "accumulation-not-averaged": Cause(
        "sums the micro-batches' gradients",
        changes=({"accumulation": "sum"},),
        concerns=lambda training, _: bool(training.micro_rows),
        stage="gradient",
        since="at every step of several micro-batches",
        fix="divide the sum of the micro-batches' gradients by the number of micro-batches",
        hidden_by=("one-micro-batch", "zero-gradient"),
    ),
    "bce-saturated": Cause(
        "takes p − y where torch's BCELoss passes no gradient",
        changes=({"bce_slope": "plain"},),
        concerns=lambda training, _: training.loss == "bce",
        stage="gradient",
        since="where p is within 1e-12 of 0 or 1 (z beyond ±27.6; in float32 from z = 17.3 on)",
        fix="keep p − y, which is right: it is torch's loss that is to change, or the features' "
        "scale",
        hidden_by=("never-saturated",),
    ),
    "clip-per-tensor": Cause(
        "clips each tensor by its own norm",
        changes=({"clip_scope": "tensor"},),
        concerns=lambda training, _: (
            training.clipped_by_norm and len(training.sgd.weight_decay) > 1
        ),
        stage="optimizer",
        since="where a gradient is clipped",
        fix="take one norm over the gradients of all tensors, and scale all of them by one factor",
        hidden_by=("never-clipped",),
    ),
    "dampening-on-first-step": Cause(
        "dampens the first step's velocity too",
        changes=({"first_step": "dampened"},),
        concerns=lambda training, _: training.sgd.momentum > 0 and training.sgd.dampening != 0,
        stage="optimizer",
        since=AT_ONCE,
        fix="start the velocity at step 1 without the factor 1 − τ, and dampen from step 2 on",
        hidden_by=("zero-gradient",),
    ),
    "gradient-accumulated": Cause(
        "never zeroes the gradients",
        changes=({"zeroing": "never"},),
        stage="gradient",
        since="from step 2 on",
        fix="set the gradients to 0 before each step, so that no earlier one is left in them",
        hidden_by=("one-step", "zero-gradient"),
    ),
    "gradient-scaled": Cause(
        "multiplies the gradient by some factor",
        changes=({"gradient_factor": ONE_PERCENT},),
        stage="gradient",
        since=AT_ONCE,
        fix="leave the factor c out: the gradient is that of the batch's mean loss",
        fix_by_entry="leave out what multiplies the gradient of the entries named above",
        hidden_by=("zero-gradient",),
        fitted=True,
    ),
    "initial-parameters": Cause(
        "does not start from the spec's parameters",
        stage="initial",
        since="before step 1",
        fix="start from the spec's `init`, every weight and bias of it",
    ),
    "last-batch-divisor": Cause(
        "divides the smaller last batch by batch_size too",
        changes=({"batch_divisor": "batch-size"},),
        concerns=lambda training, _: len(training.loss_rows) > 1,
        stage="gradient",
        since="at the smaller last batch",
        fix="divide each batch's sum by the rows that it has, not by batch_size",
        hidden_by=("zero-gradient",),
    ),
    "learning-rate-scaled": Cause(
        "multiplies the lr by some factor",
        changes=({"lr_factor": ONE_PERCENT},),
        stage="optimizer",
        since=AT_ONCE,
        fix="leave the factor c out: step by torch's own lr",
        fix_by_entry="step those entries by torch's lr too",
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
        "reports the mean of the epoch's batch losses so far, not the batch's own",
        concerns=in_batches,
        stage="loss",
        since="from the second batch of an epoch on",
        fix="report each batch's own loss, without averaging over the epoch's earlier batches",
        reports="mean over the epoch's batches so far of {}",
    ),
    "loss-halved": Cause(
        "takes the gradient of half the loss",
        changes=({"loss_factor": 0.5},),
        stage="gradient",
        since=AT_ONCE,
        fix="leave out the ½ in front of the loss: torch's mean loss has none",
        hidden_by=("zero-gradient",),
    ),
    "loss-summed": Cause(
        "takes the gradient of the rows' sum, not of their mean",
        changes=({"loss_reduction": "sum"},),
        stage="gradient",
        since="at every batch of several rows",
        fix="divide each batch's summed gradient by its rows: torch takes the mean",
        hidden_by=("one-row-losses", "zero-gradient"),
    ),
    "momentum-dampened": Cause(
        "puts 1 − μ on the gradient in the velocity",
        changes=({"momentum_form": "dampened"},),
        concerns=with_momentum,
        stage="optimizer",
        since=AT_ONCE,
        fix="add the gradient to μ v as it is, not times 1 − μ: torch's factor is 1 − dampening",
        hidden_by=("zero-gradient",),
    ),
    "momentum-lr-inside": Cause(
        "holds the lr inside the velocity",
        changes=({"momentum_form": "lr-inside"},),
        concerns=lambda training, _: training.sgd.momentum > 0 and training.lr_varies,
        stage="optimizer",
        since="where the lr changes",
        fix="keep the lr out of the velocity, and multiply by it only where w moves",
        hidden_by=("lr-unchanged",),
    ),
    "momentum-missing": Cause(
        "ignores the momentum",
        changes=({"momentum": "ignored"},),
        concerns=with_momentum,
        stage="optimizer",
        since="from step 2 on (with Nesterov's momentum from step 1 on)",
        fix="keep a velocity from step to step, μ times the last plus the gradient; move by it",
        hidden_by=("one-plain-step",),
    ),
    "nesterov-added": Cause(
        "takes Nesterov's step, where torch's momentum is plain",
        changes=({"nesterov": "added"},),
        concerns=lambda training, _: training.sgd.momentum > 0 and not training.sgd.nesterov,
        stage="optimizer",
        since=AT_ONCE,
        fix="move by the velocity v alone, without looking ahead by μ v",
        hidden_by=("zero-gradient",),
    ),
    "nesterov-missing": Cause(
        "takes the plain momentum's step, where torch has Nesterov's",
        changes=({"nesterov": "missing"},),
        concerns=lambda training, _: training.sgd.momentum > 0 and training.sgd.nesterov,
        stage="optimizer",
        since=AT_ONCE,
        fix="move by the gradient (with λ w in it) plus μ v, not by the velocity v alone",
        hidden_by=("zero-gradient",),
    ),
    "precision": Cause(
        "computes in another dtype",
        stage="update",
        since="from step 1 on, by the rounding of the coarser dtype",
        fix="compute in torch's dtype, from the data and the parameters on",
    ),
    "reported-loss-scaled": Cause(
        "reports the loss times some factor, such as half of it or its rows' sum",
        stage="loss",
        since=AT_ONCE,
        fix="report the mean of the rows' losses, without a factor",
        reports="c {}",
    ),
    "row-order": Cause(
        "does not see the same rows at the same step",
        concerns=in_batches,
        stage="gradient",
        since="at the first batch of other rows",
        fix="take at each step the rows that the spec says: its order, shuffle and batch_size",
    ),
    "schedule-shifted": Cause(
        "runs the lr schedule a step or an epoch early or late",
        changes=({"lr_shift": 1}, {"lr_shift": -1}),
        concerns=lambda training, _: training.lr_varies,
        stage="optimizer",
        since="where the lr changes",
        fix="take each step with torch's lr of it: its schedule moves on as a step or epoch ends",
        hidden_by=("lr-unchanged",),
    ),
    "target-broadcast": Cause(
        "has the targets' mean in the place of each target",
        changes=({"target": "batch-mean"},),
        stage="gradient",
        since=AT_ONCE,
        fix="give targets and outputs one shape: (B,) against (B, 1) pairs each with every other",
        hidden_by=("equal-targets",),
    ),
    "update-sequential": Cause(
        "takes the weight's gradient after the bias has moved",
        changes=({"update_order": "bias-first"},),
        concerns=lambda training, _: any(map(is_bias, training.sgd.weight_decay)),
        stage="gradient",
        since=AT_ONCE,
        fix="take all gradients first, at the old parameters, and then move weight and bias",
        hidden_by=("zero-gradient",),
    ),
}

CAUSES: dict[str, Cause] = dict(sorted((PENALTY_CAUSES | OTHER_CAUSES).items()))
"""All causes by their names."""
