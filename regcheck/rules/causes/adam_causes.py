"""Causes of the steps of Adam and its kin: moments, their bias correction, its count, and ε."""

from __future__ import annotations

from regcheck.rules.causes.cause import AT_ONCE, Cause
from regcheck.rules.causes.step_causes import adds_epsilon, has, obeys

ADAM_CAUSES: dict[str, Cause] = {
    "adam-amsgrad-added": Cause(
        "uses amsgrad (the largest second moment so far); torch does not",
        changes=({"amsgrad": "added"},),
        concerns=has(amsgrad=False),
        stage="optimizer",
        since="once a second moment decreases",
        fix="divide by the root of the current second moment, without a maximum (amsgrad=False)",
        hidden_by=("one-step", "zero-gradient"),
    ),
    "adam-amsgrad-missing": Cause(
        "does not use amsgrad (the largest second moment so far)",
        changes=({"amsgrad": "missing"},),
        concerns=has(amsgrad=True),
        stage="optimizer",
        since="once a second moment decreases",
        fix="keep the largest second moment of each entry, and divide by its root",
        hidden_by=("one-step", "zero-gradient"),
    ),
    "adam-betas-swapped": Cause(
        "swaps β₁ and β₂",
        changes=({"betas": "swapped"},),
        concerns=lambda training, _: len(set(training.settings.options.get("betas", ()))) > 1,
        stage="optimizer",
        since="from step 2 on",
        fix="use betas[0] for the first moment, and betas[1] for the second",
        hidden_by=("one-step", "zero-gradient"),
    ),
    "adam-bias-correction-compounded": Cause(
        "stores the bias-corrected moments, and corrects them again",
        changes=({"bias_correction": "compounded"},),
        concerns=obeys("bias_correction"),
        stage="optimizer",
        since="from step 2 on",
        fix="store M and S uncorrected, and use corrected copies of them in the step",
        hidden_by=("one-step", "zero-gradient"),
    ),
    "adam-bias-correction-late": Cause(
        "bias-corrects with t one too large (t = 2 at step 1)",
        changes=({"counts_from": 2},),
        concerns=obeys("counts_from"),
        stage="optimizer",
        since=AT_ONCE,
        fix="count t from 1, so that the first step divides by 1 − β₁ and 1 − β₂",
        hidden_by=("zero-gradient",),
    ),
    "adam-bias-correction-missing": Cause(
        "uses the moments without bias correction",
        changes=({"bias_correction": False},),
        concerns=obeys("bias_correction"),
        stage="optimizer",
        since=AT_ONCE,
        fix="divide M by 1 − β₁ᵗ, and S, if there is one, by 1 − β₂ᵗ; t is 1 at the first step",
        hidden_by=("zero-gradient",),
    ),
    "adam-bias-correction-partial": Cause(
        "bias-corrects only one of the two moments",
        changes=({"correction": "first"}, {"correction": "second"}),
        concerns=obeys("correction"),
        stage="optimizer",
        since=AT_ONCE,
        fix="divide both: M by 1 − β₁ᵗ and S by 1 − β₂ᵗ",
        hidden_by=("zero-gradient",),
        rare=True,
    ),
    "adam-bias-correction-swapped": Cause(
        "bias-corrects each moment with the other moment's β",
        changes=({"correction": "swapped"},),
        concerns=obeys("correction"),
        stage="optimizer",
        since=AT_ONCE,
        fix="divide M by 1 − β₁ᵗ and S by 1 − β₂ᵗ",
        hidden_by=("zero-gradient",),
        rare=True,
    ),
    "adam-epsilon-inside": Cause(
        "adds ε inside the square root",
        changes=({"epsilon": "inside"},),
        concerns=adds_epsilon("outside", "uncorrected", corrected=True),
        stage="optimizer",
        since=AT_ONCE,
        fix="take the square root of the second moment first, then add ε",
        hidden_by=("zero-gradient",),
    ),
    "adam-epsilon-uncorrected": Cause(
        "adds ε to √S before the bias correction (ε̂)",
        changes=({"epsilon": "uncorrected"},),
        concerns=adds_epsilon("outside", corrected=True),
        stage="optimizer",
        since=AT_ONCE,
        fix="divide S by 1 − β₂ᵗ and take the square root first, then add ε",
        hidden_by=("zero-gradient",),
    ),
    "adam-moments-reset": Cause(
        "resets the moments to 0 at each epoch, while t counts on",
        changes=({"state": "zeroed"},),
        concerns=obeys("counts_from"),
        stage="optimizer",
        since="from epoch 2 on",
        fix="set the moments to 0 once, before the loop over epochs",
        hidden_by=("one-epoch", "zero-gradient"),
        rare=True,
    ),
    "adam-steps-per-epoch": Cause(
        "counts epochs, not steps, in the bias correction",
        changes=({"counted": "epochs"},),
        concerns=lambda training, convention: (
            obeys("counts_from")(training, convention)
            and training.batch_rows[0] < training.train_rows
        ),
        stage="optimizer",
        since="from step 2 on, in an epoch of several steps",
        fix="increment t at each step, not at each epoch",
        hidden_by=("one-step-epochs", "zero-gradient"),
        rare=True,
    ),
    "adam-steps-per-tensor": Cause(
        "increments t for each tensor, not once per step",
        changes=({"counted": "tensors"},),
        concerns=lambda training, convention: (
            obeys("counts_from")(training, convention) and len(training.settings.weight_decay) > 1
        ),
        stage="optimizer",
        since=AT_ONCE,
        fix="increment t once per step, before the loop over tensors",
        hidden_by=("zero-gradient",),
        rare=True,
    ),
}
