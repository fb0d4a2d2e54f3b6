"""What the letters of formulas stand for."""

from __future__ import annotations

import re
from collections.abc import Iterable

from regcheck.rules.optimizers.registry import OPTIMIZERS
from regcheck.rules.settings import Training

GENERAL = {
    "w": "weight",
    "b": "bias",
    "g": "gradient of the batch's mean loss, without weight decay",
    "gₖ": "gradient of the last micro-batch's mean loss, without weight decay",
    "Σg": "sum of the gradients of all steps so far",
    "p−y": "with p − y in place of BCELoss's slope (p−y) q/max(q, 1e-12), q = p (1−p)",
    "ȳ": "mean of the batch's targets, in place of each target",
    "y₀": "the label as target, without smoothing",
    "ỹ": "targets that are smoothed over the other K − 1 classes alone",
    "clip": "clipping (by norm: the norm over all tensors)",
    "clip_w": "clipping by the norm of this tensor alone",
    "ℓ": "loss of one sample",
    "ℓᵢⱼ": "loss of sample i's output against sample j's target",
    "j": "number of the update, where each tensor's update counts as one",
    "e": "number of the epoch, from 1",
    "lr": "learning rate",
    "lr₊₁": "lr of the next step",
    "lr₋₁": "lr of the previous step (at step 1, of step 1)",
    "c": "a constant factor",
    "λ": "weight_decay",
    "B": "samples in the step's batch",
    "m": "samples in a micro-batch",
    "mᵢ": "samples in micro-batch i",
    "mₖ": "samples in the last micro-batch",
    "W": "class weights of the batch's samples, in all",
    "Wᵢ": "class weights of the samples in micro-batch i, in all",
    "Wₖ": "class weights of the samples in the last micro-batch, in all",
    "k": "micro-batches in the step",
    "batch_size": "samples in every batch except a smaller last one",
    "n": "training samples",
}
"""What each letter of a formula stands for, whatever the optimizer."""

MEANINGS = GENERAL | {
    letter: text for rule in OPTIMIZERS.values() for letter, text in rule.meanings.items()
}
"""The same, with the optimizers' own."""


APART = str.maketrans({"Σ": "Σ ", "²": " ²", "ᵗ": " t", "ʲ": " j", "ᵉ": " e"})
"""Sets letters apart that stand together in formulas."""


def meanings(
    lines: Iterable[str],
    letters: Iterable[str] = tuple(MEANINGS),
    training: Training | None = None,
) -> dict[str, str]:
    """Return the meanings of those of some letters that occur in formulas, of a training's.

    >>> meanings(["w ← w − lr λ w"], ["λ", "v", "lr"])
    {'λ': 'weight_decay', 'lr': 'learning rate'}
    """
    known = MEANINGS | (training.meanings if training else {})
    text = " ".join(lines)
    separated = text.translate(APART)
    return {
        letter: known[letter]
        for letter in letters
        if re.search(rf"(?<!\w){letter}(?!\w)", text if letter.startswith("Σ") else separated)
    }
