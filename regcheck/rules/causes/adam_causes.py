"""Causes of the steps of Adam and its kin: moments, their bias correction, its count, and ε."""

from __future__ import annotations

from regcheck.rules.causes.cause import AT_ONCE, Cause
from regcheck.rules.causes.step_causes import adds_epsilon, has, obeys

ADAM_CAUSES: dict[str, Cause] = {
    "adam-amsgrad-added": Cause(
        "divides by the largest second moment so far, where torch has this step's",
        changes=({"amsgrad": "added"},),
        concerns=has(amsgrad=False),
        stage="optimizer",
        since="once a second moment becomes smaller",
        fix="divide by the second moment of this step, without a maximum (amsgrad=False)",
        hidden_by=("one-step", "zero-gradient"),
    ),
    "adam-amsgrad-missing": Cause(
        "divides by this step's second moment, where torch's amsgrad has the largest so far",
        changes=({"amsgrad": "missing"},),
        concerns=has(amsgrad=True),
        stage="optimizer",
        since="once a second moment becomes smaller",
        fix="keep the largest second moment of each entry, and divide by the root of that",
        hidden_by=("one-step", "zero-gradient"),
    ),
    "adam-betas-swapped": Cause(
        "has β₁ and β₂ in each other's place",
        changes=({"betas": "swapped"},),
        concerns=lambda training, _: len(set(training.settings.options.get("betas", ()))) > 1,
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
    "adam-bias-correction-late": Cause(
        "corrects the moments by one step more than there was: its t is 2 at the first step",
        changes=({"counts_from": 2},),
        concerns=obeys("counts_from"),
        stage="optimizer",
        since=AT_ONCE,
        fix="count the steps from 1, so that the first correction is by 1 − β₁ and 1 − β₂",
        hidden_by=("zero-gradient",),
    ),
    "adam-bias-correction-missing": Cause(
        "takes the moments without their bias correction",
        changes=({"bias_correction": False},),
        concerns=obeys("bias_correction"),
        stage="optimizer",
        since=AT_ONCE,
        fix="divide M by 1 − β₁ᵗ, and where there is S, that by 1 − β₂ᵗ; t is 1 at the first step",
        hidden_by=("zero-gradient",),
    ),
    "adam-bias-correction-partial": Cause(
        "corrects one of the two moments alone",
        changes=({"correction": "first"}, {"correction": "second"}),
        concerns=obeys("correction"),
        stage="optimizer",
        since=AT_ONCE,
        fix="divide M by 1 − β₁ᵗ and S by 1 − β₂ᵗ, both of them",
        hidden_by=("zero-gradient",),
        rare=True,
    ),
    "adam-bias-correction-swapped": Cause(
        "corrects each moment by the other's β",
        changes=({"correction": "swapped"},),
        concerns=obeys("correction"),
        stage="optimizer",
        since=AT_ONCE,
        fix="divide M by 1 − β₁ᵗ and S by 1 − β₂ᵗ",
        hidden_by=("zero-gradient",),
        rare=True,
    ),
    "adam-epsilon-inside": Cause(
        "adds ε inside the root",
        changes=({"epsilon": "inside"},),
        concerns=adds_epsilon("outside", "uncorrected", corrected=True),
        stage="optimizer",
        since=AT_ONCE,
        fix="take the root of the second moment first, and add ε to it",
        hidden_by=("zero-gradient",),
    ),
    "adam-epsilon-uncorrected": Cause(
        "adds ε to √S before the bias correction (ε̂)",
        changes=({"epsilon": "uncorrected"},),
        concerns=adds_epsilon("outside", corrected=True),
        stage="optimizer",
        since=AT_ONCE,
        fix="divide s by 1 − β₂ᵗ first, and add ε to the root of that",
        hidden_by=("zero-gradient",),
    ),
    "adam-moments-reset": Cause(
        "sets the moments to 0 at each epoch, while t counts on",
        changes=({"state": "zeroed"},),
        concerns=obeys("counts_from"),
        stage="optimizer",
        since="from epoch 2 on",
        fix="set the moments to 0 once, before the loop over the epochs",
        hidden_by=("one-epoch", "zero-gradient"),
        rare=True,
    ),
    "adam-steps-per-epoch": Cause(
        "corrects the moments by the number of the epoch, not of the step",
        changes=({"counted": "epochs"},),
        concerns=lambda training, convention: (
            obeys("counts_from")(training, convention)
            and training.batch_rows[0] < training.train_rows
        ),
        stage="optimizer",
        since="from step 2 on, in an epoch of several steps",
        fix="add 1 to t at each step, not at each epoch",
        hidden_by=("one-step-epochs", "zero-gradient"),
        rare=True,
    ),
    "adam-steps-per-tensor": Cause(
        "adds 1 to t at each tensor's update, so that a step of several tensors counts as several",
        changes=({"counted": "tensors"},),
        concerns=lambda training, convention: (
            obeys("counts_from")(training, convention) and len(training.settings.weight_decay) > 1
        ),
        stage="optimizer",
        since=AT_ONCE,
        fix="add 1 to t once a step, before the loop over the tensors",
        hidden_by=("zero-gradient",),
        rare=True,
    ),
}
