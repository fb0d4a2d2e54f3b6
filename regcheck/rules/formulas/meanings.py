"""What the letters of formulas stand for."""

from __future__ import annotations

import re
from collections.abc import Iterable

from regcheck.rules.optimizers.registry import OPTIMIZERS
from regcheck.rules.settings import Training

GENERAL = {
    "w": "weight",
    "b": "bias",
    "g": "gradient of the batch's mean loss, without the penalty",
    "Σg": "sum of the gradients of all steps so far",
    "p−y": "in the place of BCELoss's slope (p−y) q/max(q, 1e-12) with q = p (1−p)",
    "ȳ": "mean of the batch's targets, in the place of each",
    "clip": "clipping, by the norm of all tensors together where it is by a norm",
    "clip_w": "clipping by the norm of this tensor alone",
    "ℓ": "loss of a row",
    "ℓᵢⱼ": "loss of row i's output against row j's target",
    "j": "number of the tensor's update, each tensor's own counted as one more",
    "e": "number of the epoch, from 1",
    "lr": "learning rate",
    "lr₊₁": "lr of the next step",
    "lr₋₁": "lr of the step before, at step 1 its own",
    "c": "a factor that may be anything",
    "λ": "weight_decay",
    "B": "rows of the step's batch",
    "m": "rows of a micro-batch",
    "mᵢ": "rows of micro-batch i",
    "k": "micro-batches of the step",
    "batch_size": "rows of every batch but a smaller last one",
    "n": "training rows",
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
) -> list[str]:
    """Return the meanings of those of some letters that occur in formulas, of a training's.

    >>> meanings(["w ← w − lr g"], ["g", "v", "lr"])
    ["g gradient of the batch's mean loss, without the penalty", 'lr learning rate']
    """
    known = MEANINGS | (training.meanings if training else {})
    text = " ".join(lines)
    separated = text.translate(APART)
    return [
        f"{letter} {known[letter]}"
        for letter in letters
        if re.search(rf"(?<!\w){letter}(?!\w)", text if letter.startswith("Σ") else separated)
    ]
