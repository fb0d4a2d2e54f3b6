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
        "averages the squares of lr d, not of d",
        changes=({"lr_in_average": "inside"},),
        concerns=lambda training, convention: (
            obeys("lr_in_average")(training, convention)
            and (training.settings.lr != 1 or training.lr_varies)
        ),
        stage="optimizer",
        since="from step 2 on",
        fix="remember the step as it is before the lr, and multiply by the lr only where w moves",
        hidden_by=("one-step", "zero-gradient"),
    ),
    "adagrad-accumulator-initial": Cause(
        "starts the sum or average of the squares at another number",
        changes=tuple({"accumulator_start": start} for start in STARTS),
        concerns=obeys("accumulator_start"),
        stage="optimizer",
        since=AT_ONCE,
        fix="start the squares where torch does: at 0, or Adagrad's initial_accumulator_value",
        hidden_by=("zero-gradient",),
    ),
    "adagrad-lr-decay-early": Cause(
        "counts the decay of the lr from t = 1 on: lr/(1 + t δ)",
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
        "dampens the first step's velocity too",
        changes=({"first_step": "dampened"},),
        concerns=lambda training, _: (
            training.settings.momentum > 0 and training.settings.dampening != 0
        ),
        stage="optimizer",
        since=AT_ONCE,
        fix="start the velocity at step 1 without the factor 1 − τ, and dampen from step 2 on",
        hidden_by=("zero-gradient",),
    ),
    "epsilon-outside": Cause(
        "adds ε to the root, corrected where that is, or to the maximum, where torch does not",
        changes=({"epsilon": "outside"},),
        concerns=lambda training, _: training.settings.torchs.epsilon != "outside",
        stage="optimizer",
        since="from step 1 on (in Adamax's maximum from step 2 on)",
        fix="add ε where torch does: under Adadelta's roots, in Adamax's maximum, to RAdam's √S",
        hidden_by=("zero-gradient",),
    ),
    "moments-not-averaged": Cause(
        "adds the gradient, and its square, to the moments as they are, not times 1 − β",
        changes=({"averages": "sums"},),
        concerns=obeys("averages"),
        stage="optimizer",
        since=AT_ONCE,
        fix="put 1 − β on what is added to each moment, as in β m + (1 − β) g",
        hidden_by=("zero-gradient",),
        rare=True,
    ),
    "moments-stale": Cause(
        "divides by, or moves by, the moments of the step before",
        changes=({"moments": "stale"},),
        concerns=obeys("moments"),
        stage="optimizer",
        since=AT_ONCE,
        fix="update the moments by this step's gradient first, and take the step by them",
        hidden_by=("zero-gradient",),
    ),
    "momentum-dampened": Cause(
        "puts 1 − μ on the gradient in the velocity",
        changes=({"momentum_form": "dampened"},),
        concerns=remembers_momentum,
        stage="optimizer",
        since=AT_ONCE,
        fix="add the gradient to μ v as it is, not times 1 − μ: torch's factor is 1 − dampening",
        hidden_by=("zero-gradient",),
    ),
    "momentum-lr-inside": Cause(
        "holds the lr inside the velocity",
        changes=({"momentum_form": "lr-inside"},),
        concerns=lambda training, convention: (
            remembers_momentum(training, convention) and training.lr_varies
        ),
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
        concerns=lambda training, convention: (
            with_momentum(training, convention) and has(nesterov=False)(training, convention)
        ),
        stage="optimizer",
        since=AT_ONCE,
        fix="move by the velocity v alone, without looking ahead by μ v",
        hidden_by=("zero-gradient",),
    ),
    "nesterov-missing": Cause(
        "takes the plain momentum's step, where torch has Nesterov's",
        changes=({"nesterov": "missing"},),
        concerns=lambda training, _: training.settings.momentum > 0 and training.settings.nesterov,
        stage="optimizer",
        since=AT_ONCE,
        fix="move by the gradient (with λ w in it) plus μ v, not by the velocity v alone",
        hidden_by=("zero-gradient",),
    ),
    "optimizer-state-reset": Cause(
        "makes the optimizer anew at each epoch, with nothing remembered",
        changes=({"state": "renewed"},),
        concerns=remembers,
        stage="optimizer",
        since="from epoch 2 on",
        fix="make the optimizer once, before the loop over the epochs",
        hidden_by=("one-epoch", "zero-gradient"),
        rare=True,
    ),
    "option-differs": Cause(
        "has another value of an option",
        concerns=lambda training, _: bool(training.settings.rule.numbers),
        stage="optimizer",
        since="from the first step in which the option acts (a momentum or β from step 2 on)",
        fix="take torch's value",
    ),
    "rmsprop-centered-added": Cause(
        "subtracts the squared mean from that of the squares, where torch does not",
        changes=({"centered": "added"},),
        concerns=has(centered=False),
        stage="optimizer",
        since=AT_ONCE,
        fix="divide by the root of S itself, without M² (centered=False)",
        hidden_by=("zero-gradient",),
    ),
    "rmsprop-centered-missing": Cause(
        "divides by the root of S alone, where torch's centered subtracts M²",
        changes=({"centered": "missing"},),
        concerns=has(centered=True),
        stage="optimizer",
        since=AT_ONCE,
        fix="average the gradients too, and divide by the root of S − M²",
        hidden_by=("zero-gradient",),
    ),
    "rmsprop-epsilon-inside": Cause(
        "adds ε inside the root",
        changes=({"epsilon": "inside"},),
        concerns=adds_epsilon("outside", corrected=False),
        stage="optimizer",
        since=AT_ONCE,
        fix="take the root of the squares' average or sum first, and add ε to it",
        hidden_by=("zero-gradient",),
    ),
    "root-missing": Cause(
        "divides by the squares' average or sum itself, not by its root",
        changes=({"root": "missing"},),
        concerns=obeys("root"),
        stage="optimizer",
        since=AT_ONCE,
        fix="divide by the root of the squares' average or sum",
        hidden_by=("zero-gradient",),
    ),
    "schedule-differs": Cause(
        "runs the lr schedule with another of its keys",
        concerns=lambda training, _: training.lr_varies,
        stage="optimizer",
        since="where the two schedules differ in the lr",
        fix="take the schedule's own keys",
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
}
