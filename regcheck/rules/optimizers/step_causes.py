"""Causes of the optimizer's step: momentum, moments, their bias correction, and ε."""

from __future__ import annotations

from collections.abc import Callable

from regcheck.rules.cause import AT_ONCE, Cause
from regcheck.rules.convention import Convention
from regcheck.rules.settings import Training


def with_momentum(training: Training, convention: Convention) -> bool:
    """Whether there is momentum."""
    return training.sgd.momentum > 0


def obeys(*keys: str) -> Callable[[Training, Convention], bool]:
    """Return whether a training's optimizer has forms of its own under some keys."""
    return lambda training, _: training.sgd.rule.keys.issuperset(keys)


STEP_CAUSES: dict[str, Cause] = {
    "adam-amsgrad-added": Cause(
        "divides by the largest second moment so far, where torch has this step's",
        changes=({"amsgrad": "added"},),
        concerns=lambda training, _: training.sgd.options.get("amsgrad") is False,
        stage="optimizer",
        since="once a second moment becomes smaller",
        fix="divide by the second moment of this step, without a maximum (amsgrad=False)",
        hidden_by=("one-step", "zero-gradient"),
    ),
    "adam-amsgrad-missing": Cause(
        "divides by this step's second moment, where torch's amsgrad has the largest so far",
        changes=({"amsgrad": "missing"},),
        concerns=lambda training, _: training.sgd.options.get("amsgrad") is True,
        stage="optimizer",
        since="once a second moment becomes smaller",
        fix="keep the largest second moment of each entry, and divide by the root of that",
        hidden_by=("one-step", "zero-gradient"),
    ),
    "adam-betas-swapped": Cause(
        "has β₁ and β₂ in each other's place",
        changes=({"betas": "swapped"},),
        concerns=lambda training, _: len(set(training.sgd.options.get("betas", ()))) > 1,
        stage="optimizer",
        since="from step 2 on",
        fix="let betas[0] decay the first moment, and betas[1] the second",
        hidden_by=("one-step", "zero-gradient"),
    ),
    "adam-bias-correction-compounded": Cause(
        "remembers the corrected moments, so that the next step corrects them again",
        changes=({"bias_correction": "compounded"},),
        concerns=obeys("bias_correction"),
        stage="optimizer",
        since="from step 2 on",
        fix="keep m and s as they are, and correct copies of them for the step",
        hidden_by=("one-step", "zero-gradient"),
    ),
    "adam-bias-correction-missing": Cause(
        "takes the moments without their bias correction",
        changes=({"bias_correction": False},),
        concerns=obeys("bias_correction"),
        stage="optimizer",
        since=AT_ONCE,
        fix="divide the moments by 1 − β₁ᵗ and 1 − β₂ᵗ, with t = 1 at the first step",
        hidden_by=("zero-gradient",),
    ),
    "adam-epsilon-inside": Cause(
        "adds ε inside the root",
        changes=({"epsilon": "inside"},),
        concerns=obeys("bias_correction", "epsilon"),
        stage="optimizer",
        since=AT_ONCE,
        fix="take the root of the second moment first, and add ε to it",
        hidden_by=("zero-gradient",),
    ),
    "adam-epsilon-uncorrected": Cause(
        "adds ε to √s before the bias correction (ε̂)",
        changes=({"epsilon": "uncorrected"},),
        concerns=obeys("bias_correction", "epsilon"),
        stage="optimizer",
        since=AT_ONCE,
        fix="divide s by 1 − β₂ᵗ first, and add ε to the root of that",
        hidden_by=("zero-gradient",),
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
    "root-missing": Cause(
        "divides by the second moment itself, not by its root",
        changes=({"root": "missing"},),
        concerns=obeys("root"),
        stage="optimizer",
        since=AT_ONCE,
        fix="divide by the root of the second moment",
        hidden_by=("zero-gradient",),
    ),
}
