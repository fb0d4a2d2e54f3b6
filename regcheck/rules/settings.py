"""The numbers of one training that enter its update formulas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from regcheck.rules.convention import Convention, penalized


class Training(NamedTuple):
    """What formulas, their numbers, and the match with torch are made from.

    `batch_rows` holds the distinct numbers of rows that a step sees, the usual one first.
    `micro_rows` holds those of its micro-batches where gradients are accumulated, else nothing.
    """

    lr: float
    lr_varies: bool
    weight_decay: Mapping[str, float]
    momentum: float
    dampening: float
    nesterov: bool
    clipped: bool
    batch_rows: tuple[int, ...]
    train_rows: int
    micro_rows: tuple[int, ...] = ()
    clipped_by_norm: bool = False
    loss: str = ""

    @property
    def loss_rows(self) -> tuple[int, ...]:
        """The distinct numbers of rows over which one loss is taken, the usual one first."""
        return self.micro_rows or self.batch_rows


def gradient_gain(convention: Convention, training: Training) -> float:
    """Give c, the factor that a convention puts on the gradient of the mean loss."""
    gain = convention.loss_factor
    if convention.loss_reduction == "sum":
        gain *= training.loss_rows[0]
    return gain


def penalty_strength(convention: Convention, training: Training, tensor: str) -> float:
    """Give κ λ, the factor on w in the gradient of the penalty."""
    if not penalized(convention, tensor):
        return 0.0
    divisor = {"nothing": 1, "batch": training.batch_rows[0], "dataset": training.train_rows}
    strength = training.weight_decay[tensor] * convention.penalty_factor
    return strength / divisor[convention.divide_penalty_by]
