"""The causes: named differences of formulas, each as a change of torch's rule.

One row a cause: what the scratch side does where torch does not, which trainings it concerns, and
the change of `Convention` and `Slips` that puts it into torch's rule. A cause may be a family;
then it has several changes, or one that stands for the rest.

Not here, because they are no change of a rule: other starts, other rows, other precision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from regcheck.convention import Convention, Slips, differences
from regcheck.training import Training

Change = Mapping[str, object]
"""Keys of `Convention` and `Slips`, and the values that a cause gives them."""

ONE_PERCENT = 1.01
"""What a scale that may be anything is tried with: a run that misses one percent tells no scale."""

PENALTY_KEYS = frozenset(
    {"divide_penalty_by", "penalty_factor", "penalize_bias", "decay", "penalty_norm"}
    | {"penalty_in_loss"}
)
"""Keys of a convention that say something about the penalty."""


class Cause(NamedTuple):
    """One row of the catalogue.

    Attributes:
        title: what the scratch side does, where torch does not.
        concerns: whether a training has the settings that the cause is about.
        changes: what makes torch's rule the cause's; each alone.
        hidden_by: what can hide it from a run, of `trials.CIRCUMSTANCES`, the plainest first.
        fitted: whether a factor that may be anything stands behind the change.
    """

    title: str
    concerns: Callable[[Training, Convention], bool]
    changes: tuple[Change, ...]
    hidden_by: tuple[str, ...] = ()
    kind: Literal["update", "reporting"] = "update"
    fitted: bool = False


def always(training: Training, convention: Convention) -> bool:  # noqa: ARG001
    """Concern every training."""
    return True


def penalized(training: Training, convention: Convention) -> bool:
    """Concern trainings with a penalty, and specs whose convention says something about one."""
    decays = any(decay > 0 for decay in training.weight_decay.values())
    return decays or not PENALTY_KEYS.isdisjoint(differences(convention))


def bias_penalized(training: Training, convention: Convention) -> bool:
    """Concern trainings whose bias torch penalizes."""
    return training.weight_decay["bias"] > 0 or not convention.penalize_bias


def bias_free(training: Training, convention: Convention) -> bool:  # noqa: ARG001
    """Concern trainings whose weights torch penalizes, and not the bias."""
    return training.weight_decay["weight"] > 0 and training.weight_decay["bias"] == 0


def penalized_with_momentum(training: Training, convention: Convention) -> bool:
    """Concern trainings with a penalty and momentum."""
    return training.momentum > 0 and penalized(training, convention)


def penalized_with_clipping(training: Training, convention: Convention) -> bool:
    """Concern trainings with a penalty and clipping."""
    return training.clipped and penalized(training, convention)


def momentum(training: Training, convention: Convention) -> bool:  # noqa: ARG001
    """Concern trainings with momentum."""
    return training.momentum > 0


def dampened(training: Training, convention: Convention) -> bool:  # noqa: ARG001
    """Concern trainings with momentum and dampening."""
    return training.momentum > 0 and training.dampening != 0


def nesterov(training: Training, convention: Convention) -> bool:  # noqa: ARG001
    """Concern trainings with Nesterov's momentum."""
    return training.momentum > 0 and training.nesterov


def plain_momentum(training: Training, convention: Convention) -> bool:  # noqa: ARG001
    """Concern trainings with momentum that is not Nesterov's."""
    return training.momentum > 0 and not training.nesterov


def momentum_with_schedule(training: Training, convention: Convention) -> bool:  # noqa: ARG001
    """Concern trainings with momentum whose lr changes."""
    return training.momentum > 0 and training.lr_varies


def scheduled(training: Training, convention: Convention) -> bool:  # noqa: ARG001
    """Concern trainings whose lr changes."""
    return training.lr_varies


def uneven(training: Training, convention: Convention) -> bool:  # noqa: ARG001
    """Concern trainings with a smaller last batch."""
    return len(training.loss_rows) > 1


def accumulating(training: Training, convention: Convention) -> bool:  # noqa: ARG001
    """Concern trainings whose steps have several micro-batches."""
    return bool(training.micro_rows)


def clipped_by_norm(training: Training, convention: Convention) -> bool:  # noqa: ARG001
    """Concern trainings that clip the gradient's norm."""
    return training.clipped_by_norm


PENALTY = ("no-decay", "penalized-zero")
"""What hides any difference of the penalty."""

CAUSES: dict[str, Cause] = {
    "accumulation-not-averaged": Cause(
        "sums the micro-batches' gradients",
        accumulating,
        ({"accumulation": "sum"},),
        ("one-micro-batch", "zero-gradient"),
    ),
    "bias-not-penalized": Cause(
        "leaves the bias without a penalty",
        bias_penalized,
        ({"penalize_bias": False},),
        ("no-bias-decay", "bias-zero"),
    ),
    "bias-penalized": Cause(
        "penalizes the bias too",
        bias_free,
        ({"bias_decay": "of-weight"},),
        ("bias-zero",),
    ),
    "clip-per-tensor": Cause(
        "clips each tensor by its own norm",
        clipped_by_norm,
        ({"clip_scope": "tensor"},),
        ("never-clipped",),
    ),
    "dampening-on-first-step": Cause(
        "dampens the first step's velocity too",
        dampened,
        ({"first_step": "dampened"},),
        ("zero-gradient",),
    ),
    "decay-after-momentum": Cause(
        "adds λ w behind the momentum buffer",
        penalized_with_momentum,
        ({"decay": "after-momentum"},),
        (*PENALTY, "one-step"),
    ),
    "decay-after-update": Cause(
        "shrinks w after the update",
        penalized,
        ({"decay": "after-update"},),
        PENALTY,
    ),
    "decay-before-clipping": Cause(
        "adds λ w before clipping",
        penalized_with_clipping,
        ({"decay": "before-clipping"},),
        (*PENALTY, "never-clipped"),
    ),
    "decay-not-scaled-by-lr": Cause(
        "shrinks w by λ, not by lr·λ",
        penalized,
        ({"decay": "decoupled-unscaled"},),
        PENALTY,
    ),
    "gradient-accumulated": Cause(
        "never zeroes the gradients",
        always,
        ({"zeroing": "never"},),
        ("one-step", "zero-gradient"),
    ),
    "gradient-scaled": Cause(
        "multiplies the gradient by some factor",
        always,
        ({"gradient_factor": ONE_PERCENT},),
        ("zero-gradient",),
        fitted=True,
    ),
    "last-batch-divisor": Cause(
        "divides the smaller last batch by batch_size too",
        uneven,
        ({"batch_divisor": "batch-size"},),
        ("zero-gradient",),
    ),
    "learning-rate-scaled": Cause(
        "multiplies the lr by some factor",
        always,
        ({"lr_factor": ONE_PERCENT},),
        ("zero-gradient",),
        fitted=True,
    ),
    "loss-halved": Cause(
        "takes the gradient of half the loss",
        always,
        ({"loss_factor": 0.5},),
        ("zero-gradient",),
    ),
    "loss-summed": Cause(
        "takes the gradient of the rows' sum, not of their mean",
        always,
        ({"loss_reduction": "sum"},),
        ("one-row-losses", "zero-gradient"),
    ),
    "momentum-dampened": Cause(
        "puts 1 − μ on the gradient in the velocity",
        momentum,
        ({"momentum_form": "dampened"},),
        ("zero-gradient",),
    ),
    "momentum-lr-inside": Cause(
        "holds the lr inside the velocity",
        momentum_with_schedule,
        ({"momentum_form": "lr-inside"},),
        ("lr-unchanged",),
    ),
    "momentum-missing": Cause(
        "ignores the momentum",
        momentum,
        ({"momentum": "ignored"},),
        ("one-plain-step",),
    ),
    "nesterov-added": Cause(
        "takes Nesterov's step, where torch's momentum is plain",
        plain_momentum,
        ({"nesterov": "added"},),
        ("zero-gradient",),
    ),
    "nesterov-missing": Cause(
        "takes the plain momentum's step, where torch has Nesterov's",
        nesterov,
        ({"nesterov": "missing"},),
        ("zero-gradient",),
    ),
    "penalty-constant": Cause(
        "adds λ itself, not λ times w",
        penalized,
        ({"penalty_form": "constant"},),
        ("no-decay",),
    ),
    "penalty-decoupled": Cause(
        "shrinks w by lr·λ apart from the gradient",
        penalized_with_momentum,
        ({"decay": "decoupled"},),
        (*PENALTY, "one-step"),
    ),
    "penalty-divided-by-batch": Cause(
        "divides λ by the rows of the batch",
        penalized,
        ({"divide_penalty_by": "batch"},),
        (*PENALTY, "one-row-batches"),
    ),
    "penalty-divided-by-dataset": Cause(
        "divides λ by the training rows",
        penalized,
        ({"divide_penalty_by": "dataset"},),
        (*PENALTY, "one-training-row"),
    ),
    "penalty-doubled": Cause(
        "has 2 λ w: no ½ in the penalty, or it acts twice",
        penalized,
        ({"penalty_factor": 2.0},),
        PENALTY,
    ),
    "penalty-halved": Cause(
        "has ½ λ w",
        penalized,
        ({"penalty_factor": 0.5},),
        PENALTY,
    ),
    "penalty-in-loss": Cause(
        "reports the loss with the penalty in it",
        penalized,
        ({"penalty_in_loss": True},),
        PENALTY,
        kind="reporting",
    ),
    "penalty-missing": Cause(
        "has no penalty in the update",
        penalized,
        ({"penalty_factor": 0.0},),
        PENALTY,
    ),
    "penalty-norm-not-squared": Cause(
        "has λ w/‖w‖, the gradient of λ ‖w‖",
        penalized,
        ({"penalty_norm": "unsquared"},),
        PENALTY,
    ),
    "penalty-scaled": Cause(
        "multiplies λ w by some factor",
        penalized,
        ({"penalty_factor": ONE_PERCENT},),
        PENALTY,
        fitted=True,
    ),
    "penalty-sign-flipped": Cause(
        "has −λ w",
        penalized,
        ({"penalty_factor": -1.0},),
        PENALTY,
    ),
    "schedule-shifted": Cause(
        "runs the lr schedule a step early or late",
        scheduled,
        ({"lr_shift": 1}, {"lr_shift": -1}),
        ("lr-unchanged",),
    ),
    "target-broadcast": Cause(
        "has the targets' mean in the place of each target",
        always,
        ({"target": "batch-mean"},),
        ("equal-targets",),
    ),
    "update-sequential": Cause(
        "takes the weight's gradient after the bias has moved",
        always,
        ({"update_order": "bias-first"},),
        ("zero-gradient",),
    ),
}

LATER = (
    "adagrad-accumulator-initial",
    "adam-bias-correction-compounded",
    "adam-bias-correction-missing",
    "adam-epsilon-uncorrected",
    "decay-bias-corrected",
    "initial-parameters",
    "penalty-coupled",
    "precision",
    "rmsprop-epsilon-inside",
    "row-order",
)
"""Causes that regcheck will know."""


def put_in(change: Change, convention: Convention, slips: Slips) -> tuple[Convention, Slips]:
    """Put a cause's change into a rule."""
    chosen = {key: value for key, value in change.items() if key in Convention._fields}
    slipped = {key: value for key, value in change.items() if key in Slips._fields}
    return convention._replace(**chosen), slips._replace(**slipped)  # type: ignore[arg-type]
