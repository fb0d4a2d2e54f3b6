"""The losses: torch's, of what a model's head gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from regcheck.rules.models import HEADS


class Loss(NamedTuple):
    """One of torch's losses of a row, ℓ, taken of a model's output z.

    Attributes:
        torch: its class in torch.nn; the mean over the rows is meant.
        of: by head, the class in torch.nn that turns z into what the loss is taken of.
        title, formulas, notes: what `explain` writes.
        steepest: by head, the largest |d²ℓ/dz²| over all z and all y from 0 to 1; none where z is
            no number.
        tail: how many times e^(−|z|) the logistic head's |d²ℓ/dz²| can be.
        logarithms: what keeps it from log 0, to follow its name; empty where it takes none.
    """

    torch: str
    of: Mapping[str, str]
    title: str
    formulas: list[str]
    notes: list[str]
    steepest: Mapping[str, float]
    tail: float
    logarithms: str = ""


LOSSES: dict[str, Loss] = {
    "bce": Loss(
        "BCELoss",
        {"logistic": "Sigmoid"},
        "torch.nn.BCELoss of a sigmoid, p = σ(z)",
        ["ℓ = −y log p − (1 − y) log(1 − p)", "dℓ/dz = p − y"],
        [
            "torch takes no logarithm below -100, and the gradient vanishes where",
            "p (1 − p) < 1e-12.",
        ],
        steepest={"logistic": 0.25},
        tail=1.0,
        logarithms="takes no logarithm below −100",
    ),
    "bce_with_logits": Loss(
        "BCEWithLogitsLoss",
        {"logistic": "Identity"},
        "torch.nn.BCEWithLogitsLoss",
        ["ℓ = max(z, 0) − z y + log(1 + e^(−|z|))", "dℓ/dz = σ(z) − y"],
        ["The same loss as bce, also exact where p is nearly 0 or 1."],
        steepest={"logistic": 0.25},
        tail=1.0,
        logarithms="has no floor, as it takes z",
    ),
    "cross_entropy": Loss(
        "CrossEntropyLoss",
        {"softmax": "Identity"},
        "torch.nn.CrossEntropyLoss of K logits, p = softmax(z)",
        [
            "log p = z − max z − log Σ e^(z − max z)",
            "ℓ = −Σⱼ tⱼ log pⱼ,  dℓ/dz = p Σⱼ tⱼ − t",
            "tⱼ = (1 − ε) wⱼ [j = y] + ε wⱼ/K",
        ],
        [
            "ε is label_smoothing, 0 unless given, and w the classes' weight, all 1 unless given.",
            "With weights torch's mean is Σ ℓ/Σ w_y: it divides by the targets' class weights,",
            "not by the number of samples.",
        ],
        steepest={},
        tail=0.0,
        logarithms="takes z, and no logarithm of p",
    ),
    "mse": Loss(
        "MSELoss",
        {"linear": "Identity", "logistic": "Sigmoid"},
        "torch.nn.MSELoss: no ½",
        [
            "linear:    ℓ = (z − y)²,  dℓ/dz = 2 (z − y)",
            "logistic:  ℓ = (p − y)²,  dℓ/dz = 2 (p − y) p (1 − p)",
        ],
        ["Half the squared error is `convention: {loss_factor: 0.5}`."],
        steepest={"linear": 2.0, "logistic": 0.16},
        tail=2.5,
    ),
}

LOSSES_OF_HEAD = {
    head: tuple(name for name, loss in LOSSES.items() if head in loss.of) for head in HEADS
}
"""Each head with the losses that go with it, its default first."""


class LossOptions(NamedTuple):
    """What torch.nn.CrossEntropyLoss takes: ε, and the weight of each class; None: all 1."""

    label_smoothing: float = 0.0
    weight: tuple[float, ...] | None = None


NO_OPTIONS = LossOptions()
