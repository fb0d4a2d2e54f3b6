"""The causes: named differences of the scratch side from torch, each a row of one catalogue.

A row says what the scratch side does where torch does not, which trainings it concerns, since
when and at which stage of a step it shows, what mends it, and the change of `Convention` and
`Faults` that puts it into torch's rule. From it come the trials of what a run could have shown, the
diagnosis, the explanation (`cause_formula` writes both sides' formulas), and the planted
bugs that prove it. A cause may be a family; then it has several changes, or one that stands for
the rest. One that changes no rule, such as another start or other rows, has none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from regcheck.rules.concerns import (
    accumulating,
    always,
    bias_free,
    bias_penalized,
    clipped_by_norm,
    dampened,
    in_batches,
    momentum,
    momentum_with_schedule,
    nesterov,
    of_probabilities,
    penalized,
    penalized_with_clipping,
    penalized_with_momentum,
    plain_momentum,
    scheduled,
    uneven,
    with_bias,
)
from regcheck.rules.convention import Convention, Faults
from regcheck.rules.settings import Training

Change = Mapping[str, object]
"""Keys of `Convention` and `Faults`, and the values that a cause gives them."""

Stage = Literal["initial", "forward", "gradient", "penalty", "optimizer", "update", "loss"]
"""The stages of a step in their order, and the loss that is reported beside it."""

ONE_PERCENT = 1.01
"""What a scale that may be anything is tried with: a run that misses one percent tells no scale."""


class Cause(NamedTuple):
    """One row of the catalogue.

    Attributes:
        title: what the scratch side does, where torch does not.
        concerns: whether a training has the settings that the cause is about.
        changes: what makes torch's rule the cause's; each alone.
        stage: the first at which the two sides part. What changes the lr parts in the optimizer;
            where there is a penalty too, its lr·λ w shows that first.
        since: when it shows, to follow "it shows".
        fix: what to change in the scratch code, as a request.
        hidden_by: what can hide it from a run, of `HIDING`, the plainest first.
        kind: whether the training differs, or only the loss that is reported.
        fitted: whether a factor that may be anything stands behind the change.
        factor_key: the key that holds this factor.
        reports: the reported loss where no change makes it, with {} for torch's.
    """

    title: str
    concerns: Callable[[Training, Convention], bool]
    changes: tuple[Change, ...]
    stage: Stage
    since: str
    fix: str
    hidden_by: tuple[str, ...] = ()
    kind: Literal["update", "reporting"] = "update"
    fitted: bool = False
    factor_key: Literal["penalty_factor", "gradient_factor", "lr_factor"] | None = None
    reports: str = ""


HIDING: dict[str, str] = {
    "bias-zero": "the bias stays 0",
    "equal-targets": "all targets of a batch are equal",
    "lr-unchanged": "the lr does not change in these steps",
    "lr-zero": "the lr is 0",
    "never-clipped": "no gradient is large enough to be clipped",
    "never-saturated": "no output is saturated",
    "no-bias-decay": "the bias has no weight_decay",
    "no-decay": "weight_decay is 0",
    "one-micro-batch": "each step has one micro-batch",
    "one-plain-step": "only one step is compared, and the velocity is the gradient in it",
    "one-row-batches": "each step sees one row",
    "one-row-losses": "each loss is taken over one row",
    "one-step": "only one step is compared",
    "one-training-row": "there is one training row",
    "penalized-zero": "what is penalized stays 0",
    "zero-gradient": "the gradient stays 0",
}
"""What can hide a cause from a run, in words; `compare.not_distinguished` has the tests."""

PENALTY = ("no-decay", "penalized-zero")
"""What hides any difference of the penalty."""

AT_ONCE = "from step 1 on"
NOT_ZERO = "once the weights are not 0"
REMEMBERED = "one step after the weights are first not 0 (with Nesterov's momentum at once)"

CAUSES: dict[str, Cause] = {
    "accumulation-not-averaged": Cause(
        "sums the micro-batches' gradients",
        accumulating,
        ({"accumulation": "sum"},),
        stage="gradient",
        since="at every step of several micro-batches",
        fix="divide the sum of the micro-batches' gradients by the number of micro-batches",
        hidden_by=("one-micro-batch", "zero-gradient"),
    ),
    "bce-saturated": Cause(
        "takes p − y where torch's BCELoss passes no gradient",
        of_probabilities,
        ({"bce_slope": "plain"},),
        stage="gradient",
        since="where p is within 1e-12 of 0 or 1 (z beyond ±27.6; in float32 from z = 17.3 on)",
        fix="keep p − y, which is right: it is torch's loss that is to change, or the features' "
        "scale",
        hidden_by=("never-saturated",),
    ),
    "bias-not-penalized": Cause(
        "leaves the bias without a penalty",
        bias_penalized,
        ({"penalize_bias": False},),
        stage="penalty",
        since="once the bias is not 0",
        fix="add λ b to the bias's gradient too, as λ w to that of the weights",
        hidden_by=("no-bias-decay", "bias-zero"),
    ),
    "bias-penalized": Cause(
        "penalizes the bias too",
        bias_free,
        ({"bias_decay": "of-weight"},),
        stage="penalty",
        since="once the bias is not 0",
        fix="add no λ b to the bias's gradient: torch's weight_decay for the bias is 0",
        hidden_by=("bias-zero",),
    ),
    "clip-per-tensor": Cause(
        "clips each tensor by its own norm",
        clipped_by_norm,
        ({"clip_scope": "tensor"},),
        stage="optimizer",
        since="where a gradient is clipped",
        fix="take one norm over the gradients of all tensors, and scale all of them by one factor",
        hidden_by=("never-clipped",),
    ),
    "dampening-on-first-step": Cause(
        "dampens the first step's velocity too",
        dampened,
        ({"first_step": "dampened"},),
        stage="optimizer",
        since=AT_ONCE,
        fix="start the velocity at step 1 without the factor 1 − τ, and dampen from step 2 on",
        hidden_by=("zero-gradient",),
    ),
    "decay-after-momentum": Cause(
        "adds λ w behind the momentum buffer",
        penalized_with_momentum,
        ({"decay": "after-momentum"},),
        stage="optimizer",
        since=REMEMBERED,
        fix="add λ w to the gradient before the velocity takes it up, not to the velocity",
        hidden_by=(*PENALTY, "one-step"),
    ),
    "decay-after-update": Cause(
        "shrinks w after the update",
        penalized,
        ({"decay": "after-update"},),
        stage="penalty",
        since=AT_ONCE,
        fix="add λ w to the gradient, with w from before the update; do not shrink w after it",
        hidden_by=PENALTY,
    ),
    "decay-before-clipping": Cause(
        "adds λ w before clipping",
        penalized_with_clipping,
        ({"decay": "before-clipping"},),
        stage="optimizer",
        since="where a gradient is clipped, once the weights are not 0",
        fix="clip the gradient of the loss alone, and add λ w to what comes out",
        hidden_by=(*PENALTY, "never-clipped"),
    ),
    "decay-not-scaled-by-lr": Cause(
        "shrinks w by λ, not by lr·λ",
        penalized,
        ({"decay": "decoupled-unscaled"},),
        stage="penalty",
        since=NOT_ZERO,
        fix="add λ w to the gradient, so that the lr scales it; do not shrink w by λ itself",
        hidden_by=PENALTY,
    ),
    "gradient-accumulated": Cause(
        "never zeroes the gradients",
        always,
        ({"zeroing": "never"},),
        stage="gradient",
        since="from step 2 on",
        fix="set the gradients to 0 before each step, so that no earlier one is left in them",
        hidden_by=("one-step", "zero-gradient"),
    ),
    "gradient-scaled": Cause(
        "multiplies the gradient by some factor",
        always,
        ({"gradient_factor": ONE_PERCENT},),
        stage="gradient",
        since=AT_ONCE,
        fix="leave the factor c out: the gradient is that of the batch's mean loss",
        hidden_by=("zero-gradient",),
        fitted=True,
        factor_key="gradient_factor",
    ),
    "initial-parameters": Cause(
        "does not start from the spec's parameters",
        always,
        (),
        stage="initial",
        since="before step 1",
        fix="start from the spec's `init`, every weight and bias of it",
    ),
    "last-batch-divisor": Cause(
        "divides the smaller last batch by batch_size too",
        uneven,
        ({"batch_divisor": "batch-size"},),
        stage="gradient",
        since="at the smaller last batch",
        fix="divide each batch's sum by the rows that it has, not by batch_size",
        hidden_by=("zero-gradient",),
    ),
    "learning-rate-scaled": Cause(
        "multiplies the lr by some factor",
        always,
        ({"lr_factor": ONE_PERCENT},),
        stage="optimizer",
        since=AT_ONCE,
        fix="leave the factor c out: step by torch's own lr",
        hidden_by=("zero-gradient",),
        fitted=True,
        factor_key="lr_factor",
    ),
    "loss-after-update": Cause(
        "reports the loss after the update, not before it",
        always,
        (),
        stage="loss",
        since=AT_ONCE,
        fix="compute the loss before the update, from the same outputs as the gradient",
        hidden_by=("zero-gradient",),
        kind="reporting",
        reports="{}, at the parameters after the update",
    ),
    "loss-epoch-mean": Cause(
        "reports the mean of the epoch's batch losses so far, not the batch's own",
        in_batches,
        (),
        stage="loss",
        since="from the second batch of an epoch on",
        fix="report each batch's own loss, without averaging over the epoch's earlier batches",
        kind="reporting",
        reports="mean over the epoch's batches so far of {}",
    ),
    "loss-halved": Cause(
        "takes the gradient of half the loss",
        always,
        ({"loss_factor": 0.5},),
        stage="gradient",
        since=AT_ONCE,
        fix="leave out the ½ in front of the loss: torch's mean loss has none",
        hidden_by=("zero-gradient",),
    ),
    "loss-summed": Cause(
        "takes the gradient of the rows' sum, not of their mean",
        always,
        ({"loss_reduction": "sum"},),
        stage="gradient",
        since="at every batch of several rows",
        fix="divide each batch's summed gradient by its rows: torch takes the mean",
        hidden_by=("one-row-losses", "zero-gradient"),
    ),
    "momentum-dampened": Cause(
        "puts 1 − μ on the gradient in the velocity",
        momentum,
        ({"momentum_form": "dampened"},),
        stage="optimizer",
        since=AT_ONCE,
        fix="add the gradient to μ v as it is, not times 1 − μ: torch's factor is 1 − dampening",
        hidden_by=("zero-gradient",),
    ),
    "momentum-lr-inside": Cause(
        "holds the lr inside the velocity",
        momentum_with_schedule,
        ({"momentum_form": "lr-inside"},),
        stage="optimizer",
        since="where the lr changes",
        fix="keep the lr out of the velocity, and multiply by it only where w moves",
        hidden_by=("lr-unchanged",),
    ),
    "momentum-missing": Cause(
        "ignores the momentum",
        momentum,
        ({"momentum": "ignored"},),
        stage="optimizer",
        since="from step 2 on (with Nesterov's momentum from step 1 on)",
        fix="keep a velocity from step to step, μ times the last plus the gradient; move by it",
        hidden_by=("one-plain-step",),
    ),
    "nesterov-added": Cause(
        "takes Nesterov's step, where torch's momentum is plain",
        plain_momentum,
        ({"nesterov": "added"},),
        stage="optimizer",
        since=AT_ONCE,
        fix="move by the velocity v alone, without looking ahead by μ v",
        hidden_by=("zero-gradient",),
    ),
    "nesterov-missing": Cause(
        "takes the plain momentum's step, where torch has Nesterov's",
        nesterov,
        ({"nesterov": "missing"},),
        stage="optimizer",
        since=AT_ONCE,
        fix="move by the gradient (with λ w in it) plus μ v, not by the velocity v alone",
        hidden_by=("zero-gradient",),
    ),
    "penalty-constant": Cause(
        "adds λ itself, not λ times w",
        penalized,
        ({"penalty_form": "constant"},),
        stage="penalty",
        since=AT_ONCE,
        fix="multiply λ by w: what joins the gradient is λ w",
        hidden_by=("no-decay",),
    ),
    "penalty-decoupled": Cause(
        "shrinks w by lr·λ apart from the gradient",
        penalized_with_momentum,
        ({"decay": "decoupled"},),
        stage="optimizer",
        since=REMEMBERED,
        fix="add λ w to the gradient before the velocity takes it up; do not shrink w on its own",
        hidden_by=(*PENALTY, "one-step"),
    ),
    "penalty-divided-by-batch": Cause(
        "divides λ by the rows of the batch",
        penalized,
        ({"divide_penalty_by": "batch"},),
        stage="penalty",
        since=NOT_ZERO,
        fix="add λ w to the mean gradient, not to the sum before it is divided by the batch's rows",
        hidden_by=(*PENALTY, "one-row-batches"),
    ),
    "penalty-divided-by-dataset": Cause(
        "divides λ by the training rows",
        penalized,
        ({"divide_penalty_by": "dataset"},),
        stage="penalty",
        since=NOT_ZERO,
        fix="add λ w to the mean gradient, without dividing λ by the training rows",
        hidden_by=(*PENALTY, "one-training-row"),
    ),
    "penalty-doubled": Cause(
        "has 2 λ w: no ½ in the penalty, or it acts twice",
        penalized,
        ({"penalty_factor": 2.0},),
        stage="penalty",
        since=NOT_ZERO,
        fix="add λ w once: torch's penalty is ½ λ Σw², and its gradient has no 2",
        hidden_by=PENALTY,
    ),
    "penalty-halved": Cause(
        "has ½ λ w",
        penalized,
        ({"penalty_factor": 0.5},),
        stage="penalty",
        since=NOT_ZERO,
        fix="add the whole λ w: torch's penalty is ½ λ Σw², and its gradient has no ½",
        hidden_by=PENALTY,
    ),
    "penalty-in-loss": Cause(
        "reports the loss with the penalty in it",
        penalized,
        ({"penalty_in_loss": True},),
        stage="loss",
        since=NOT_ZERO,
        fix="report the loss of the data alone; the update keeps its penalty",
        hidden_by=PENALTY,
        kind="reporting",
    ),
    "penalty-missing": Cause(
        "has no penalty in the update",
        penalized,
        ({"penalty_factor": 0.0},),
        stage="penalty",
        since=NOT_ZERO,
        fix="add λ w to the gradient",
        hidden_by=PENALTY,
    ),
    "penalty-norm-not-squared": Cause(
        "has λ w/‖w‖, the gradient of λ ‖w‖",
        penalized,
        ({"penalty_norm": "unsquared"},),
        stage="penalty",
        since=NOT_ZERO,
        fix="do not divide by ‖w‖: torch's penalty is ½ λ ‖w‖², and its gradient λ w",
        hidden_by=PENALTY,
    ),
    "penalty-scaled": Cause(
        "multiplies λ w by some factor",
        penalized,
        ({"penalty_factor": ONE_PERCENT},),
        stage="penalty",
        since=NOT_ZERO,
        fix="leave the factor c out: add λ w to the gradient as it is",
        hidden_by=PENALTY,
        fitted=True,
        factor_key="penalty_factor",
    ),
    "penalty-sign-flipped": Cause(
        "has −λ w",
        penalized,
        ({"penalty_factor": -1.0},),
        stage="penalty",
        since=NOT_ZERO,
        fix="add λ w to the gradient; do not subtract it",
        hidden_by=PENALTY,
    ),
    "precision": Cause(
        "computes in another dtype",
        always,
        (),
        stage="update",
        since="from step 1 on, by the rounding of the coarser dtype",
        fix="compute in torch's dtype, from the data and the parameters on",
    ),
    "reported-loss-scaled": Cause(
        "reports the loss times some factor, such as half of it or its rows' sum",
        always,
        (),
        stage="loss",
        since=AT_ONCE,
        fix="report the mean of the rows' losses, without a factor",
        kind="reporting",
        reports="c {}",
    ),
    "row-order": Cause(
        "does not see the same rows at the same step",
        in_batches,
        (),
        stage="gradient",
        since="at the first batch of other rows",
        fix="take at each step the rows that the spec says: its order, shuffle and batch_size",
    ),
    "schedule-shifted": Cause(
        "runs the lr schedule a step or an epoch early or late",
        scheduled,
        ({"lr_shift": 1}, {"lr_shift": -1}),
        stage="optimizer",
        since="where the lr changes",
        fix="take each step with torch's lr of it: its schedule moves on as a step or epoch ends",
        hidden_by=("lr-unchanged",),
    ),
    "target-broadcast": Cause(
        "has the targets' mean in the place of each target",
        always,
        ({"target": "batch-mean"},),
        stage="gradient",
        since=AT_ONCE,
        fix="give targets and outputs one shape: (B,) against (B, 1) pairs each with every other",
        hidden_by=("equal-targets",),
    ),
    "update-sequential": Cause(
        "takes the weight's gradient after the bias has moved",
        with_bias,
        ({"update_order": "bias-first"},),
        stage="gradient",
        since=AT_ONCE,
        fix="take all gradients first, at the old parameters, and then move weight and bias",
        hidden_by=("zero-gradient",),
    ),
}


def put_in(change: Change, convention: Convention, faults: Faults) -> tuple[Convention, Faults]:
    """Put a cause's change into a rule."""
    chosen = {key: value for key, value in change.items() if key in Convention._fields}
    slipped = {key: value for key, value in change.items() if key in Faults._fields}
    return convention._replace(**chosen), faults._replace(**slipped)  # type: ignore[arg-type]
