"""Causes of the penalty: where λ w enters, what it is multiplied by, and what it acts on."""

from __future__ import annotations

from regcheck.rules.causes.cause import AT_ONCE, ONE_PERCENT, Cause
from regcheck.rules.convention import Convention, differences, is_bias
from regcheck.rules.settings import Training

NOT_ZERO = "once the weights are not 0"
REMEMBERED = "once the weights are not 0 (with plain momentum one step later)"

PENALTY = ("no-decay", "penalized-zero")
"""What hides any difference of the penalty."""

PENALTY_KEYS = frozenset(
    {"divide_penalty_by", "penalty_factor", "penalize_bias", "decay", "penalty_norm"}
    | {"penalty_in_loss"}
)
"""Keys of a convention that say something about the penalty."""


def penalized(training: Training, convention: Convention) -> bool:
    """Whether there is a penalty, or the convention says something about one."""
    return any(training.settings.weight_decay.values()) or not PENALTY_KEYS.isdisjoint(
        differences(convention, training.settings.torchs)
    )


def penalized_with_momentum(training: Training, convention: Convention) -> bool:
    """Whether there is momentum besides."""
    return training.settings.momentum > 0 and coupled(training, convention)


def coupled(training: Training, convention: Convention) -> bool:
    """Whether there is a penalty that joins the gradient, where that makes a difference."""
    settings = training.settings
    remembers = settings.momentum > 0 or not settings.rule.linear
    return remembers and settings.torchs.decay == "gradient" and penalized(training, convention)


def decoupled(training: Training, convention: Convention) -> bool:
    """Whether there is a penalty that torch keeps apart from the gradient."""
    return training.settings.torchs.decay == "decoupled" and penalized(training, convention)


def bias_penalized(training: Training, convention: Convention) -> bool:
    """Whether there is a bias that torch penalizes, or that the convention leaves free."""
    biases = [decay for name, decay in training.settings.weight_decay.items() if is_bias(name)]
    return any(biases) or (bool(biases) and not convention.penalize_bias)


def bias_free(training: Training, convention: Convention) -> bool:
    """Whether torch penalizes the weights, and not the bias that there is."""
    decays = training.settings.weight_decay
    biases = [decay for name, decay in decays.items() if is_bias(name)]
    return any(decays.values()) and bool(biases) and not any(biases)


PENALTY_CAUSES: dict[str, Cause] = {
    "bias-not-penalized": Cause(
        "leaves the bias without a penalty",
        changes=({"penalize_bias": False},),
        concerns=bias_penalized,
        stage="penalty",
        since="once the bias is not 0",
        fix="add λ b to the bias's gradient too, as λ w to that of the weights",
        fix_apart="shrink the bias by lr·λ too, as the weights",
        hidden_by=("no-bias-decay", "bias-zero"),
    ),
    "bias-penalized": Cause(
        "penalizes the bias too",
        changes=({"bias_decay": "of-weight"},),
        concerns=bias_free,
        stage="penalty",
        since="once the bias is not 0",
        fix="add no λ b to the bias's gradient: torch's weight_decay for the bias is 0",
        fix_apart="leave the bias as it is: torch's weight_decay for it is 0",
        hidden_by=("bias-zero",),
    ),
    "decay-after-momentum": Cause(
        "adds λ w behind the momentum buffer",
        changes=({"decay": "after-momentum"},),
        concerns=penalized_with_momentum,
        stage="optimizer",
        since=REMEMBERED,
        fix="add λ w to the gradient before the velocity takes it up, not to the velocity",
        hidden_by=(*PENALTY, "one-step"),
    ),
    "decay-after-update": Cause(
        "shrinks w after the update",
        changes=({"decay": "after-update"},),
        concerns=penalized,
        stage="penalty",
        since=AT_ONCE,
        fix="add λ w to the gradient, with w from before the update; do not shrink w after it",
        fix_apart="shrink w by lr·λ before the update, not after it",
        hidden_by=PENALTY,
    ),
    "decay-bias-corrected": Cause(
        "shrinks w by the lr with the bias correction in it, lr √(1 − β₂ᵗ)/(1 − β₁ᵗ), times λ",
        changes=({"decay_rate": "corrected"},),
        concerns=lambda training, convention: (
            training.settings.rule.correction is not None and decoupled(training, convention)
        ),
        stage="penalty",
        since=NOT_ZERO,
        fix="shrink w by lr·λ, with the lr as it is",
        hidden_by=PENALTY,
    ),
    "decay-before-clipping": Cause(
        "adds λ w before clipping",
        changes=({"decay": "before-clipping"},),
        concerns=lambda training, convention: training.clipped and penalized(training, convention),
        stage="optimizer",
        since="where a gradient is clipped, once the weights are not 0",
        fix="clip the gradient of the loss alone, and add λ w to what comes out",
        fix_apart="clip the gradient of the loss alone, and shrink w by lr·λ apart from it",
        hidden_by=(*PENALTY, "never-clipped"),
    ),
    "decay-not-scaled-by-lr": Cause(
        "shrinks w by λ, not by lr·λ",
        changes=({"decay": "decoupled-unscaled"},),
        concerns=penalized,
        stage="penalty",
        since=NOT_ZERO,
        fix="add λ w to the gradient, so that the lr scales it; do not shrink w by λ itself",
        fix_apart="shrink w by lr·λ, not by λ itself",
        hidden_by=PENALTY,
    ),
    "penalty-constant": Cause(
        "adds λ itself, not λ times w",
        changes=({"penalty_form": "constant"},),
        concerns=penalized,
        stage="penalty",
        since=AT_ONCE,
        fix="multiply λ by w: what joins the gradient is λ w",
        fix_apart="multiply λ by w: what is subtracted beside the step is lr·λ w",
        hidden_by=("no-decay",),
    ),
    "penalty-coupled": Cause(
        "adds λ w to the gradient, where torch shrinks w apart from it",
        changes=({"decay": "gradient"},),
        concerns=decoupled,
        stage="optimizer",
        since=NOT_ZERO,
        fix="leave λ w out of the gradient, and shrink w by lr·λ before the step",
        hidden_by=PENALTY,
    ),
    "penalty-decoupled": Cause(
        "shrinks w by lr·λ apart from the gradient",
        changes=({"decay": "decoupled"},),
        concerns=coupled,
        stage="optimizer",
        since=REMEMBERED,
        fix="add λ w to the gradient before the optimizer takes it up; do not shrink w on its own",
        hidden_by=(*PENALTY, "one-step"),
    ),
    "penalty-divided-by-batch": Cause(
        "divides λ by the rows of the batch",
        changes=({"divide_penalty_by": "batch"},),
        concerns=penalized,
        stage="penalty",
        since=NOT_ZERO,
        fix="add λ w to the mean gradient, not to the sum before it is divided by the batch's rows",
        fix_apart="shrink w by lr·λ, without dividing λ by the batch's rows",
        hidden_by=(*PENALTY, "one-row-batches"),
    ),
    "penalty-divided-by-dataset": Cause(
        "divides λ by the training rows",
        changes=({"divide_penalty_by": "dataset"},),
        concerns=penalized,
        stage="penalty",
        since=NOT_ZERO,
        fix="add λ w to the mean gradient, without dividing λ by the training rows",
        fix_apart="shrink w by lr·λ, without dividing λ by the training rows",
        hidden_by=(*PENALTY, "one-training-row"),
    ),
    "penalty-doubled": Cause(
        "has 2 λ w: no ½ in the penalty, or it acts twice",
        changes=({"penalty_factor": 2.0},),
        concerns=penalized,
        stage="penalty",
        since=NOT_ZERO,
        fix="add λ w once: torch's penalty is ½ λ Σw², and its gradient has no 2",
        fix_apart="shrink w by lr·λ once, without a 2",
        hidden_by=PENALTY,
    ),
    "penalty-halved": Cause(
        "has ½ λ w",
        changes=({"penalty_factor": 0.5},),
        concerns=penalized,
        stage="penalty",
        since=NOT_ZERO,
        fix="add the whole λ w: torch's penalty is ½ λ Σw², and its gradient has no ½",
        fix_apart="shrink w by the whole lr·λ, without a ½",
        hidden_by=PENALTY,
    ),
    "penalty-in-loss": Cause(
        "reports the loss with the penalty in it",
        changes=({"penalty_in_loss": True},),
        concerns=penalized,
        stage="loss",
        since=NOT_ZERO,
        fix="report the loss of the data alone; the update keeps its penalty",
        hidden_by=PENALTY,
    ),
    "penalty-missing": Cause(
        "has no penalty in the update",
        changes=({"penalty_factor": 0.0},),
        concerns=penalized,
        stage="penalty",
        since=NOT_ZERO,
        fix="add λ w to the gradient",
        fix_apart="shrink w by lr·λ before the step",
        fix_by_entry="add λ w to the gradient of those entries too",
        hidden_by=PENALTY,
    ),
    "penalty-norm-not-squared": Cause(
        "has λ w/‖w‖, the gradient of λ ‖w‖",
        changes=({"penalty_norm": "unsquared"},),
        concerns=penalized,
        stage="penalty",
        since=NOT_ZERO,
        fix="do not divide by ‖w‖: torch's penalty is ½ λ ‖w‖², and its gradient λ w",
        fix_apart="do not divide by ‖w‖: what is subtracted beside the step is lr·λ w",
        hidden_by=PENALTY,
    ),
    "penalty-scaled": Cause(
        "multiplies λ w by some factor",
        changes=({"penalty_factor": ONE_PERCENT},),
        concerns=penalized,
        stage="penalty",
        since=NOT_ZERO,
        fix="leave the factor c out: add λ w to the gradient as it is",
        fix_apart="leave the factor c out: shrink w by lr·λ",
        fix_by_entry="add torch's own λ w to the gradient of those entries",
        hidden_by=PENALTY,
        fitted=True,
    ),
    "penalty-sign-flipped": Cause(
        "has −λ w",
        changes=({"penalty_factor": -1.0},),
        concerns=penalized,
        stage="penalty",
        since=NOT_ZERO,
        fix="add λ w to the gradient; do not subtract it",
        fix_apart="shrink w by lr·λ; do not let it grow",
        hidden_by=PENALTY,
    ),
}
