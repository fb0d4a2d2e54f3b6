"""Causes of the optimizer's step: momentum, squares, and what is remembered."""

from __future__ import annotations

from collections.abc import Callable

from regcheck.rules.causes.cause import AT_ONCE, Cause
from regcheck.rules.convention import Convention
from regcheck.rules.settings import Training


def with_momentum(training: Training, convention: Convention) -> bool:
    """Whether there is momentum."""
    return training.settings.momentum > 0


def remembers_momentum(training: Training, convention: Convention) -> bool:
    """Whether there is a velocity, of which there are several forms."""
    return with_momentum(training, convention) and "momentum_form" in training.settings.rule.keys


def remembers(training: Training, convention: Convention) -> bool:
    """Whether the optimizer remembers anything from step to step."""
    return training.settings.momentum > 0 or not training.settings.rule.linear


def obeys(*keys: str) -> Callable[[Training, Convention], bool]:
    """Return whether a training's optimizer has forms of its own under some keys."""
    return lambda training, _: training.settings.rule.keys.issuperset(keys)


def has(**options: object) -> Callable[[Training, Convention], bool]:
    """Return whether a training's optimizer has some options at these values."""
    return lambda training, _: all(
        training.settings.options.get(key) is value for key, value in options.items()
    )


def adds_epsilon(*where: str, corrected: bool) -> Callable[[Training, Convention], bool]:
    """Return whether torch adds ε at one of these, with or without a bias correction beside it."""
    return lambda training, _: (
        "epsilon" in training.settings.rule.keys
        and training.settings.torchs.epsilon in where
        and ("bias_correction" in training.settings.rule.keys) == corrected
    )


def decays_lr(training: Training, convention: Convention) -> bool:
    """Whether Adagrad's own decay of the lr acts."""
    return bool(training.settings.options.get("lr_decay"))


STARTS = (0.1, 1.0, 0.0)
"""Where squares start in Keras and optax, in TF 1, and where torch has another start than 0."""

STEP_CAUSES: dict[str, Cause] = {
    "adadelta-lr-inside": Cause(
        "includes the lr in the average of squared updates",
        changes=({"lr_in_average": "inside"},),
        concerns=lambda training, convention: (
            obeys("lr_in_average")(training, convention)
            and (training.settings.lr != 1 or training.lr_varies)
        ),
        stage="optimizer",
        since="from step 2 on",
        fix="average the squares of the step before the lr, and use the lr only in the update of w",
        hidden_by=("one-step", "zero-gradient"),
    ),
    "adafactor-lr-uncapped": Cause(
        "uses the lr itself, where Adafactor's is at most 1/√t",
        changes=({"lr_cap": "missing"},),
        concerns=obeys("lr_cap"),
        stage="optimizer",
        since="at the first step t whose lr is above 1/√t",
        fix="use the smaller of the lr and 1/√t, with t = 1 at the first step",
        hidden_by=("lr-below-cap", "zero-gradient"),
    ),
    "adagrad-accumulator-initial": Cause(
        "starts the sum or average of squares at another value",
        changes=tuple({"accumulator_start": start} for start in STARTS),
        concerns=obeys("accumulator_start"),
        stage="optimizer",
        since=AT_ONCE,
        fix="start the squares at torch's value: 0, or Adagrad's initial_accumulator_value",
        hidden_by=("zero-gradient",),
    ),
    "adagrad-lr-decay-early": Cause(
        "starts lr_decay one step early, with lr/(1 + t δ)",
        changes=({"lr_decay": "early"},),
        concerns=decays_lr,
        stage="optimizer",
        since=AT_ONCE,
        fix="divide the lr by 1 + (t − 1) δ, with t = 1 at the first step",
        hidden_by=("zero-gradient",),
    ),
    "adagrad-lr-decay-missing": Cause(
        "ignores lr_decay",
        changes=({"lr_decay": "missing"},),
        concerns=decays_lr,
        stage="optimizer",
        since="from step 2 on",
        fix="divide the lr by 1 + (t − 1) δ, with t = 1 at the first step",
        hidden_by=("one-step", "zero-gradient"),
    ),
    "dampening-on-first-step": Cause(
        "applies the dampening at the first step too",
        changes=({"first_step": "dampened"},),
        concerns=lambda training, _: (
            training.settings.momentum > 0 and training.settings.dampening != 0
        ),
        stage="optimizer",
        since=AT_ONCE,
        fix="set the velocity to the gradient at step 1, and apply the dampening from step 2 on",
        hidden_by=("zero-gradient",),
    ),
    "epsilon-outside": Cause(
        "adds ε last, to the whole divisor; torch adds it to a part of it",
        changes=({"epsilon": "outside"},),
        concerns=lambda training, _: training.settings.torchs.epsilon != "outside",
        stage="optimizer",
        since="from step 1 on (with Adamax from step 2 on)",
        fix="add ε where torch does: in Adadelta's roots, Adamax's maximum, RAdam's uncorrected √S",
        hidden_by=("zero-gradient",),
    ),
    "moments-not-averaged": Cause(
        "adds to the moments without the factor 1 − β",
        changes=({"averages": "sums"},),
        concerns=obeys("averages"),
        stage="optimizer",
        since=AT_ONCE,
        fix="multiply what is added to each moment by 1 − β, as in β M + (1 − β) g",
        hidden_by=("zero-gradient",),
        rare=True,
    ),
    "moments-stale": Cause(
        "uses the moments of the previous step",
        changes=({"moments": "stale"},),
        concerns=obeys("moments"),
        stage="optimizer",
        since=AT_ONCE,
        fix="update the moments with this step's gradient first, then use them",
        hidden_by=("zero-gradient",),
    ),
    "momentum-dampened": Cause(
        "multiplies the gradient in the velocity by 1 − μ",
        changes=({"momentum_form": "dampened"},),
        concerns=remembers_momentum,
        stage="optimizer",
        since=AT_ONCE,
        fix="add the gradient to μ v without the factor 1 − μ: torch's factor is 1 − dampening",
        hidden_by=("zero-gradient",),
    ),
    "momentum-lr-inside": Cause(
        "includes the lr in the velocity",
        changes=({"momentum_form": "lr-inside"},),
        concerns=lambda training, convention: (
            remembers_momentum(training, convention) and training.lr_varies
        ),
        stage="optimizer",
        since="where the lr changes",
        fix="leave the lr out of the velocity, and use it only in the update of w",
        hidden_by=("lr-unchanged",),
    ),
    "momentum-missing": Cause(
        "ignores the momentum",
        changes=({"momentum": "ignored"},),
        concerns=with_momentum,
        stage="optimizer",
        since="from step 2 on (with Nesterov momentum from step 1 on)",
        fix="keep a velocity, μ times the last one plus the gradient, and update w by it",
        hidden_by=("one-plain-step",),
    ),
    "muon-bfloat16-missing": Cause(
        "does not round to bfloat16 where Muon does",
        changes=({"cast": "missing"},),
        concerns=obeys("cast"),
        stage="optimizer",
        since=AT_ONCE,
        fix="round Z, its norm, and what each iteration makes of them to bfloat16, as torch does",
        hidden_by=("zero-gradient",),
    ),
    "nesterov-added": Cause(
        "uses Nesterov momentum; torch's momentum is plain",
        changes=({"nesterov": "added"},),
        concerns=lambda training, convention: (
            with_momentum(training, convention) and has(nesterov=False)(training, convention)
        ),
        stage="optimizer",
        since=AT_ONCE,
        fix="update by the velocity v alone, not by the gradient plus μ v",
        hidden_by=("zero-gradient",),
    ),
    "nesterov-missing": Cause(
        "uses plain momentum; torch's is Nesterov momentum",
        changes=({"nesterov": "missing"},),
        concerns=lambda training, _: training.settings.momentum > 0 and training.settings.nesterov,
        stage="optimizer",
        since=AT_ONCE,
        fix="update by the gradient (with λ w in it) plus μ v, not by the velocity v alone",
        fix_apart="update by (1 − μ) g + μ v, not by the velocity v alone",
        hidden_by=("zero-gradient",),
    ),
    "optimizer-state-reset": Cause(
        "makes a new optimizer at each epoch, and loses its state",
        changes=({"state": "renewed"},),
        concerns=remembers,
        stage="optimizer",
        since="from epoch 2 on",
        fix="make the optimizer once, before the loop over epochs",
        hidden_by=("one-epoch", "zero-gradient"),
        rare=True,
    ),
    "option-differs": Cause(
        "uses another value of an optimizer option",
        concerns=lambda training, _: bool(training.settings.rule.numbers),
        stage="optimizer",
        since="from the first step in which the option acts (a momentum or β from step 2 on)",
        fix="use torch's value",
    ),
    "rmsprop-centered-added": Cause(
        "subtracts M² from S (centered); torch does not",
        changes=({"centered": "added"},),
        concerns=has(centered=False),
        stage="optimizer",
        since=AT_ONCE,
        fix="divide by the root of S itself, without M² (centered=False)",
        hidden_by=("zero-gradient",),
    ),
    "rmsprop-centered-missing": Cause(
        "does not subtract M² from S; torch does (centered)",
        changes=({"centered": "missing"},),
        concerns=has(centered=True),
        stage="optimizer",
        since=AT_ONCE,
        fix="average the gradients too, and divide by the root of S − M²",
        hidden_by=("zero-gradient",),
    ),
    "rmsprop-epsilon-inside": Cause(
        "adds ε inside the square root",
        changes=({"epsilon": "inside"},),
        concerns=adds_epsilon("outside", corrected=False),
        stage="optimizer",
        since=AT_ONCE,
        fix="take the square root of the average or sum of squares first, then add ε",
        hidden_by=("zero-gradient",),
    ),
    "root-missing": Cause(
        "divides by the average or sum of squares, not by its root",
        changes=({"root": "missing"},),
        concerns=obeys("root"),
        stage="optimizer",
        since=AT_ONCE,
        fix="divide by the square root of the average or sum of squares",
        hidden_by=("zero-gradient",),
    ),
    "rprop-sign-change-stepped": Cause(
        "steps even where a gradient's sign changed; torch takes no step there",
        changes=({"reversal": "stepped"}, {"reversal": "stepped-once"}),
        concerns=obeys("reversal"),
        stage="optimizer",
        since="once a gradient changes its sign",
        fix="set a gradient whose sign changed to 0 before the step, and keep that 0 for the next",
        hidden_by=("one-step", "zero-gradient"),
    ),
    "rprop-step-taken-back": Cause(
        "takes back the last step where a gradient's sign changed; torch takes no step there",
        changes=({"reversal": "taken-back"},),
        concerns=obeys("reversal"),
        stage="optimizer",
        since="once a gradient changes its sign",
        fix="leave an entry where it is when its gradient's sign changed (no backtracking)",
        hidden_by=("one-step", "zero-gradient"),
    ),
    "schedule-differs": Cause(
        "uses another value in the lr schedule",
        concerns=lambda training, _: training.lr_varies,
        stage="optimizer",
        since="at the first step whose lr differs",
        fix="use the spec's value",
    ),
    "schedule-shifted": Cause(
        "runs the lr schedule a step or an epoch early or late",
        changes=({"lr_shift": 1}, {"lr_shift": -1}),
        concerns=lambda training, _: training.lr_varies,
        stage="optimizer",
        since="where the lr changes",
        fix="use torch's lr at each step: its schedule advances after each step or epoch",
        hidden_by=("lr-unchanged",),
    ),
}
