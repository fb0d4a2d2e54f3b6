"""Where each planted fault first shows, worked out by hand, and the trainings to show it in."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from regcheck.report.result import Report
from tests.conftest import told

Spec = dict[str, Any]

ROWS, BATCH, STEPS = 11, 4, 6
RANDOM = np.random.default_rng(20)
X = RANDOM.normal(loc=(0.0, 0.5, -1.0), size=(ROWS, 3))
TARGETS = {
    "linear": X @ [1.0, -2.0, 0.5] + 1 + RANDOM.normal(size=ROWS),
    # In no batch as many ones as zeros, which would leave a bias of 0 where it is.
    "logistic": np.array([1.0, 0, 1, 1, 0, 0, 1, 0, 1, 1, 0]),
}

FULL: Spec = {"batch_size": "full", "epochs": STEPS}
MINI: Spec = {"batch_size": BATCH, "epochs": STEPS // 3}  # 4, 4 and 3 rows
BATCHES = {"full": FULL, "mini": MINI}

ZEROS: Spec = {"init": "zeros"}
ELSEWHERE: Spec = {"init": {"weight": [0.5, -0.3, 0.8], "bias": [0.4]}}
STARTS = {"zeros": ZEROS, "elsewhere": ELSEWHERE}

MOMENTUM: Spec = {"optimizer": {"name": "sgd", "momentum": 0.9}}
NESTEROV: Spec = {"optimizer": {"name": "sgd", "momentum": 0.9, "nesterov": True}}
DAMPENED: Spec = {"optimizer": {"name": "sgd", "momentum": 0.9, "dampening": 0.25}}
# A β₂ so small that a second moment falls with its gradient, and an ε that shows beside any root.
OF_ADAM: Spec = {"betas": [0.9, 0.1], "eps": 0.01}
ADAM: Spec = {"optimizer": {"name": "adam", **OF_ADAM}}
AMSGRAD: Spec = {"optimizer": {"name": "adam", **OF_ADAM, "amsgrad": True}}
ADAMW: Spec = {"optimizer": {"name": "adamw", **OF_ADAM}}
RMSPROP: Spec = {"optimizer": {"name": "rmsprop", "alpha": 0.8, "eps": 0.01}}
CENTERED: Spec = {"optimizer": RMSPROP["optimizer"] | {"centered": True}}
HEAVY_RMSPROP: Spec = {"optimizer": RMSPROP["optimizer"] | {"momentum": 0.9}}
ADAGRAD: Spec = {"optimizer": {"name": "adagrad", "lr_decay": 0.2, "eps": 0.01}}
STARTED: Spec = {"optimizer": ADAGRAD["optimizer"] | {"initial_accumulator_value": 0.5}}
ADAFACTOR: Spec = {"optimizer": {"name": "adafactor", "eps": [1e-12, 0.1]}, "lr": 0.8}
MUON: Spec = {"optimizer": {"name": "muon"}, "bias": False, "init": {"weight": [0.5, -0.3, 0.8]}}
ADADELTA: Spec = {"optimizer": {"name": "adadelta", "rho": 0.8, "eps": 0.01}}
ADAMAX: Spec = {"optimizer": {"name": "adamax", "betas": [0.9, 0.95], "eps": 0.01}}
# A first step so large that each entry goes past its best value.
RPROP: Spec = {"optimizer": {"name": "rprop"}, "lr": 20.0, "weight_decay": 0}
RADAM: Spec = {"optimizer": {"name": "radam", "betas": [0.9, 0.95], "eps": 0.01}}
FALLING_LR: Spec = {"lr_schedule": {"kind": "exponential", "factor": 0.8}}
NEW_LR_AT_5: Spec = {"lr_schedule": {"kind": "step", "every": 4, "factor": 0.5}}
SATURATED: Spec = {
    "data": {"X": (1000 * X).tolist(), "y": TARGETS["logistic"].tolist()},
    "model": "logistic",
    "loss": "bce",
}
ALWAYS_CLIPPED: Spec = {"clip_norm": 1e-2}


def spec_of(
    model: str = "linear", dtype: str = "float64", batches: str = "full", start: str = "elsewhere"
) -> Spec:
    """Make the spec of a training in which every term acts."""
    data = {"X": X.tolist(), "y": TARGETS[model].tolist()}
    spec = {"data": data, "model": model, "dtype": dtype, "lr": 0.1, "weight_decay": 0.5}
    return spec | BATCHES[batches] | STARTS[start]


class First(NamedTuple):
    """Where a bug first shows: the step from a start at zero and from elsewhere, and the stage.

    `tensor` is the only one that the bug touches; `batches` those with which it acts at all.
    """

    zeros: int
    elsewhere: int
    stage: str
    settings: Spec = {}  # noqa: RUF012 - never changed
    tensor: str | None = None
    batches: tuple[str, ...] = ("full", "mini")


PENALTY = First(2, 1, "penalty")  # λ w is nothing while w is 0
STEP_1 = First(1, 1, "gradient")  # no gradient is 0, from either start

FIRSTS: dict[str, tuple[First, ...]] = {
    # Step 1 has two micro-batches.
    "accumulation-last-only": (STEP_1._replace(settings={"accumulate": 2}, batches=("mini",)),),
    "accumulation-not-averaged": (STEP_1._replace(settings={"accumulate": 2}, batches=("mini",)),),
    # One step an epoch, of 4, 4 and 3 rows.
    "accumulation-over-rows": (STEP_1._replace(settings={"accumulate": 3}, batches=("mini",)),),
    # The first step is remembered, and the second divides by it.
    "adadelta-lr-inside": (First(2, 2, "optimizer", ADADELTA),),
    # 1/√2 is below 0.8.
    "adafactor-lr-uncapped": (First(2, 2, "optimizer", ADAFACTOR),),
    "adagrad-accumulator-initial": (First(1, 1, "optimizer", STARTED),) * 3,
    "adagrad-lr-decay-early": (First(1, 1, "optimizer", ADAGRAD),),
    "adagrad-lr-decay-missing": (First(2, 2, "optimizer", ADAGRAD),),
    # Of two steps with ever smaller gradients, the second's moment is the smaller one.
    "adam-amsgrad-added": (First(2, 2, "optimizer", ADAM),),
    "adam-amsgrad-corrected": (First(2, 2, "optimizer", AMSGRAD),),
    "adam-amsgrad-missing": (First(2, 2, "optimizer", AMSGRAD),),
    # At step 1 the corrected moments are g and g², whatever the betas and whatever is kept.
    "adam-betas-swapped": (First(2, 2, "optimizer", ADAM), First(2, 2, "optimizer", ADAMAX)),
    "adam-bias-correction-compounded": (
        First(2, 2, "optimizer", ADAM),
        First(2, 2, "optimizer", ADAMAX),
    ),
    # (1 − β₁)/√(1 − β₂) is 0.1/√0.9, and that over (1 − β₁²)/√(1 − β₂²) no 1 either.
    "adam-bias-correction-late": (First(1, 1, "optimizer", ADAM), First(1, 1, "optimizer", ADAMAX)),
    "adam-bias-correction-missing": (
        First(1, 1, "optimizer", ADAM),
        First(1, 1, "optimizer", ADAMAX),
    ),
    "adam-bias-correction-partial": (First(1, 1, "optimizer", ADAM),) * 2,
    "adam-bias-correction-swapped": (First(1, 1, "optimizer", ADAM),),
    "adam-epsilon-inside": (First(1, 1, "optimizer", ADAM), First(1, 1, "optimizer", ADAMW)),
    "adam-epsilon-uncorrected": (First(1, 1, "optimizer", ADAM),),
    # Three steps an epoch.
    "adam-moments-reset": (First(4, 4, "optimizer", ADAM, batches=("mini",)),),
    "adam-steps-not-counted": (First(2, 2, "optimizer", ADAM), First(2, 2, "optimizer", ADAMAX)),
    "adam-steps-per-epoch": (First(2, 2, "optimizer", ADAM, batches=("mini",)),),
    # Of the bias's step 1 t is 2.
    "adam-steps-per-tensor": (First(1, 1, "optimizer", ADAM, "bias"),),
    # The old one is 0 at step 1.
    "adamax-norm-stale": (First(1, 1, "optimizer", ADAMAX),),
    # Of rows as large all outputs are saturated, once the weights are not 0.
    "bce-saturated": (First(2, 1, "gradient", SATURATED),),
    "bias-not-penalized": (PENALTY._replace(tensor="bias"),),
    "bias-penalized": (
        PENALTY._replace(tensor="bias", settings={"weight_decay": {"weight": 0.5, "bias": 0}}),
    ),
    # One factor for both tensors, or one for each: as soon as it is not 1.
    "clip-per-tensor": (First(1, 1, "optimizer", ALWAYS_CLIPPED),),
    "dampening-on-first-step": (First(1, 1, "optimizer", DAMPENED),),
    # v₁ = g₁ + λ w₀ either way, but only torch's v₂ holds μ λ w₀, and v₃ μ λ w₁.
    "decay-after-momentum": (
        First(3, 2, "optimizer", MOMENTUM),
        First(2, 1, "optimizer", HEAVY_RMSPROP),
    ),
    # λ u, where u = w − lr g is no longer 0.
    "decay-after-update": (First(1, 1, "penalty"), First(1, 1, "penalty", ADAMW)),
    "decay-bias-corrected": (PENALTY._replace(settings=ADAMW),),
    "decay-before-clipping": (First(2, 1, "optimizer", ALWAYS_CLIPPED),),
    "decay-not-scaled-by-lr": (PENALTY, PENALTY._replace(settings=ADAMW)),
    # Adamax's first size is |g| + ε either way, and fades with its ε.
    "epsilon-outside": (First(1, 1, "optimizer", ADADELTA), First(2, 2, "optimizer", ADAMAX)),
    # At step 1 there is nothing to zero.
    "gradient-accumulated": (First(2, 2, "gradient"), First(2, 2, "gradient", ADAM)),
    "gradient-scaled": (STEP_1,),
    "initial-parameters": (First(1, 1, "initial", tensor="weight"),),
    # 4, 4, and then 3 rows.
    "last-batch-divisor": (First(3, 3, "gradient", batches=("mini",)),),
    # Without a penalty, lr g is the first in which the lr shows; with one, lr λ w.
    "learning-rate-scaled": (
        First(1, 1, "optimizer", {"weight_decay": 0}),
        First(1, 1, "optimizer", {"weight_decay": 0, **MOMENTUM}),
    ),
    "loss-after-update": (First(1, 1, "loss"),),
    "loss-last-micro-batch": (First(1, 1, "loss", settings={"accumulate": 2}, batches=("mini",)),),
    "loss-epoch-mean": (First(2, 2, "loss", batches=("mini",)),),  # a mean of one loss is that loss
    "loss-halved": (STEP_1,),
    "loss-summed": (STEP_1,),
    "moments-not-averaged": (First(1, 1, "optimizer", ADAM), First(1, 1, "optimizer", RMSPROP)),
    # The old moments are 0 at step 1, by which Adam does not move, and others too far.
    "moments-stale": (
        First(1, 1, "optimizer", ADAM),
        First(1, 1, "optimizer", RMSPROP),
        First(1, 1, "optimizer", ADAGRAD),
    ),
    "momentum-dampened": (
        First(1, 1, "optimizer", MOMENTUM),
        First(1, 1, "optimizer", HEAVY_RMSPROP),
    ),
    # v = Σ lr g equals lr Σ g until the lr changes.
    "momentum-lr-inside": (
        First(5, 5, "optimizer", MOMENTUM | NEW_LR_AT_5),
        First(5, 5, "optimizer", HEAVY_RMSPROP | NEW_LR_AT_5),
    ),
    # v₁ = g₁; but Nesterov's first step is (1 + μ) g₁.
    "momentum-missing": (First(2, 2, "optimizer", MOMENTUM), First(1, 1, "optimizer", NESTEROV)),
    "muon-bfloat16-missing": (First(1, 1, "optimizer", MUON),),
    "nesterov-added": (First(1, 1, "optimizer", MOMENTUM),),
    "nesterov-missing": (First(1, 1, "optimizer", NESTEROV),),
    "optimizer-state-reset": (
        First(4, 4, "optimizer", MOMENTUM, batches=("mini",)),
        First(4, 4, "optimizer", ADAM, batches=("mini",)),
    ),
    # v₁ = g₁ whatever μ is.
    "option-differs": (First(2, 2, "optimizer", MOMENTUM),),
    "penalty-constant": (First(1, 1, "penalty"),),  # λ is something where λ w is nothing
    # What joins the gradient is divided by the root with it, and lr λ w is not.
    "penalty-coupled": (First(2, 1, "optimizer", ADAMW),),
    # As decay-after-momentum: w₀ is remembered by torch's velocity alone; others divide at once.
    "penalty-decoupled": (
        First(3, 2, "optimizer", MOMENTUM),
        First(2, 1, "optimizer", ADAM),
        First(2, 1, "optimizer", RMSPROP),
        First(2, 1, "optimizer", ADADELTA),
    ),
    "penalty-divided-by-batch": (PENALTY,),
    "penalty-divided-by-dataset": (PENALTY,),
    "penalty-doubled": (
        PENALTY,
        PENALTY._replace(settings=ADAM),
        PENALTY._replace(settings=ADAMW),
    ),
    "penalty-halved": (PENALTY,),
    "penalty-in-loss": (PENALTY._replace(stage="loss"),),
    "penalty-missing": (PENALTY,),
    "penalty-norm-not-squared": (PENALTY,),
    "penalty-scaled": (PENALTY,),
    "penalty-sign-flipped": (PENALTY,),
    "precision": (First(1, 1, "update"),),
    # N is 3.9 at step 4, 4.8 at step 5, 5.7 at step 6.
    "radam-rectified-early": (First(5, 5, "optimizer", RADAM),),
    "reported-loss-scaled": (First(1, 1, "loss"), First(1, 1, "loss")),
    "rmsprop-centered-added": (First(1, 1, "optimizer", RMSPROP),),
    "rmsprop-centered-missing": (First(1, 1, "optimizer", CENTERED),),
    "rmsprop-epsilon-inside": (
        First(1, 1, "optimizer", RMSPROP),
        First(1, 1, "optimizer", ADAGRAD),
    ),
    "root-missing": (
        First(1, 1, "optimizer", ADAM),
        First(1, 1, "optimizer", CENTERED),
        First(1, 1, "optimizer", ADAGRAD),
    ),
    "rprop-sign-change-stepped": (First(2, 2, "optimizer", RPROP),) * 2,
    "rprop-step-taken-back": (First(2, 2, "optimizer", RPROP),),
    "row-order": (STEP_1._replace(batches=("mini",)),),  # a full batch holds all rows in any order
    # By epochs of several steps, the lr falls later than at step 2.
    "schedule-differs": (First(2, 2, "penalty", FALLING_LR, batches=("mini",)),),
    # The lr changes at step 5: early it has done so at 4, late not yet at 5. lr λ w shows it.
    "schedule-shifted": (
        First(4, 4, "penalty", NEW_LR_AT_5),
        First(5, 5, "penalty", NEW_LR_AT_5),
    ),
    # Σ (z − ȳ) = Σ (z − y): the bias is not touched.
    "target-broadcast": (STEP_1._replace(tensor="weight"),),
    "update-sequential": (STEP_1._replace(tensor="weight"),),
}
"""By cause, where each of its bugs first shows (or one bug, in several trainings)."""


SAME_RULE: dict[str, tuple[str, tuple[str, ...]]] = {
    # Without a penalty, the only term is lr g: 1.01 lr times g is lr times 1.01 g.
    "learning-rate-scaled": ("gradient-scaled", ("full", "mini")),
    # lr (v + λ w) is lr v + lr λ w: where torch's lr multiplies both, they are one rule.
    "penalty-decoupled": ("decay-after-momentum", ("full", "mini")),
    # A full batch has all rows of the data.
    "penalty-divided-by-dataset": ("penalty-divided-by-batch", ("full",)),
}
"""Causes that make the very rule of another one by SGD in these settings, and with which batches.

No run by them tells the two apart, so that the one is named first, the other as an alternative.
"""

USERS_ALONE = {"precision", "row-order"}
"""Causes that only a user's own code can have: the built-in scratch side follows the spec."""


def found(report: Report) -> tuple[int, str, str]:
    """Return at which step a run diverges, at which stage, and in which tensor."""
    assert report.verdict == "diverged"
    first = told(report.first_divergence)
    return first.step, first.stage, first.at.tensor


def agrees(report: Report, until: int) -> bool:
    """Whether no step before the given one had a difference beyond rounding."""
    ratios = [
        tensor.ratio
        for row in report.comparison.trace
        if row.step < until
        for tensor in row.tensors.values()
    ]
    return all(ratio <= 8 for ratio in ratios)  # the default tolerance
