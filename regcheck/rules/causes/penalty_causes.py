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
        "applies no weight decay to the bias",
        changes=({"penalize_bias": False},),
        concerns=bias_penalized,
        stage="penalty",
        since="once the bias is not 0",
        fix="add λ b to the bias's gradient too, like λ w to the weights'",
        fix_apart="subtract lr·λ b from the bias too, like lr·λ w from the weights",
        hidden_by=("no-bias-decay", "bias-zero"),
    ),
    "bias-penalized": Cause(
        "applies weight decay to the bias too",
        changes=({"bias_decay": "of-weight"},),
        concerns=bias_free,
        stage="penalty",
        since="once the bias is not 0",
        fix="add no λ b to the bias's gradient: torch's weight_decay for the bias is 0",
        fix_apart="do not decay the bias: torch's weight_decay for it is 0",
        hidden_by=("bias-zero",),
    ),
    "decay-after-momentum": Cause(
        "adds λ w after the momentum buffer",
        changes=({"decay": "after-momentum"},),
        concerns=penalized_with_momentum,
        stage="optimizer",
        since=REMEMBERED,
        fix="add λ w to the gradient before it enters the momentum buffer, not after",
        hidden_by=(*PENALTY, "one-step"),
    ),
    "decay-after-update": Cause(
        "applies the weight decay after the update",
        changes=({"decay": "after-update"},),
        concerns=penalized,
        stage="penalty",
        since=AT_ONCE,
        fix="add λ w to the gradient, with w from before the update; do not decay w afterwards",
        fix_apart="subtract lr·λ w before the update, not after it",
        hidden_by=PENALTY,
    ),
    "decay-bias-corrected": Cause(
        "multiplies the weight decay by the bias-corrected lr",
        changes=({"decay_rate": "corrected"},),
        concerns=lambda training, convention: (
            training.settings.rule.correction is not None and decoupled(training, convention)
        ),
        stage="penalty",
        since=NOT_ZERO,
        fix="subtract lr·λ w with the lr itself, without the bias correction",
        hidden_by=PENALTY,
    ),
    "decay-before-clipping": Cause(
        "adds λ w before clipping",
        changes=({"decay": "before-clipping"},),
        concerns=lambda training, convention: training.clipped and penalized(training, convention),
        stage="optimizer",
        since="where a gradient is clipped, once the weights are not 0",
        fix="clip the gradient of the loss alone, then add λ w",
        fix_apart="clip the gradient of the loss alone, and subtract lr·λ w separately",
        hidden_by=(*PENALTY, "never-clipped"),
    ),
    "decay-not-scaled-by-lr": Cause(
        "does not multiply the weight decay by the lr",
        changes=({"decay": "decoupled-unscaled"},),
        concerns=penalized,
        stage="penalty",
        since=NOT_ZERO,
        fix="add λ w to the gradient, so that the lr multiplies it; do not subtract λ w itself",
        fix_apart="subtract lr·λ w, not λ w",
        hidden_by=PENALTY,
    ),
    "penalty-constant": Cause(
        "uses λ itself as weight decay, not λ times w",
        changes=({"penalty_form": "constant"},),
        concerns=penalized,
        stage="penalty",
        since=AT_ONCE,
        fix="multiply λ by w: add λ w to the gradient",
        fix_apart="multiply λ by w: subtract lr·λ w",
        hidden_by=("no-decay",),
    ),
    "penalty-coupled": Cause(
        "adds λ w to the gradient; torch's weight decay is decoupled",
        changes=({"decay": "gradient"},),
        concerns=decoupled,
        stage="optimizer",
        since=NOT_ZERO,
        fix="do not add λ w to the gradient; subtract lr·λ w from w before the step",
        hidden_by=PENALTY,
    ),
    "penalty-decoupled": Cause(
        "decouples the weight decay from the gradient, as AdamW does",
        changes=({"decay": "decoupled"},),
        concerns=coupled,
        stage="optimizer",
        since=REMEMBERED,
        fix="add λ w to the gradient before the optimizer uses it; do not subtract it separately",
        hidden_by=(*PENALTY, "one-step"),
    ),
    "penalty-divided-by-batch": Cause(
        "divides the weight decay by the batch size",
        changes=({"divide_penalty_by": "batch"},),
        concerns=penalized,
        stage="penalty",
        since=NOT_ZERO,
        fix="add λ w to the mean gradient, not to the sum before it is divided by the number of "
        "samples",
        fix_apart="subtract lr·λ w, without dividing λ by the number of samples",
        hidden_by=(*PENALTY, "one-row-batches"),
    ),
    "penalty-divided-by-dataset": Cause(
        "divides the weight decay by the number of training samples",
        changes=({"divide_penalty_by": "dataset"},),
        concerns=penalized,
        stage="penalty",
        since=NOT_ZERO,
        fix="add λ w to the mean gradient, without dividing λ by the number of training samples",
        fix_apart="subtract lr·λ w, without dividing λ by the number of training samples",
        hidden_by=(*PENALTY, "one-training-row"),
    ),
    "penalty-doubled": Cause(
        "doubles the weight decay (λ Σw² without ½, or added twice)",
        changes=({"penalty_factor": 2.0},),
        concerns=penalized,
        stage="penalty",
        since=NOT_ZERO,
        fix="add λ w once: the weight-decay term is ½ λ Σw², whose gradient has no 2",
        fix_apart="subtract lr·λ w once, without a 2",
        hidden_by=PENALTY,
    ),
    "penalty-halved": Cause(
        "halves the weight decay",
        changes=({"penalty_factor": 0.5},),
        concerns=penalized,
        stage="penalty",
        since=NOT_ZERO,
        fix="add λ w without a ½: the weight-decay term is ½ λ Σw², whose gradient is λ w",
        fix_apart="subtract lr·λ w, without a ½",
        hidden_by=PENALTY,
    ),
    "penalty-in-loss": Cause(
        "reports the loss with the weight-decay term in it",
        changes=({"penalty_in_loss": True},),
        concerns=penalized,
        stage="loss",
        since=NOT_ZERO,
        fix="report the loss without the weight-decay term; keep it in the update",
        hidden_by=PENALTY,
    ),
    "penalty-missing": Cause(
        "applies no weight decay",
        changes=({"penalty_factor": 0.0},),
        concerns=penalized,
        stage="penalty",
        since=NOT_ZERO,
        fix="add λ w to the gradient",
        fix_apart="subtract lr·λ w from w before the step",
        fix_by_entry="add λ w to the gradient of those entries too",
        hidden_by=PENALTY,
    ),
    "penalty-norm-not-squared": Cause(
        "uses λ w/‖w‖ as weight decay: the norm is not squared",
        changes=({"penalty_norm": "unsquared"},),
        concerns=penalized,
        stage="penalty",
        since=NOT_ZERO,
        fix="do not divide by ‖w‖: the weight-decay term is ½ λ ‖w‖², whose gradient is λ w",
        fix_apart="do not divide by ‖w‖: subtract lr·λ w",
        hidden_by=PENALTY,
    ),
    "penalty-scaled": Cause(
        "multiplies the weight decay by a constant factor",
        changes=({"penalty_factor": ONE_PERCENT},),
        concerns=penalized,
        stage="penalty",
        since=NOT_ZERO,
        fix="remove the factor c: add λ w to the gradient",
        fix_apart="remove the factor c: subtract lr·λ w",
        fix_by_entry="add torch's λ w to the gradient of those entries",
        hidden_by=PENALTY,
        fitted=True,
    ),
    "penalty-sign-flipped": Cause(
        "gives the weight decay the wrong sign (−λ w)",
        changes=({"penalty_factor": -1.0},),
        concerns=penalized,
        stage="penalty",
        since=NOT_ZERO,
        fix="add λ w to the gradient; do not subtract it",
        fix_apart="subtract lr·λ w from w; do not add it",
        hidden_by=PENALTY,
    ),
}
