"""The numbers of one training that enter its update formulas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from regcheck.rules.convention import Convention, Faults, penalized


class SgdSettings(NamedTuple):
    """The settings of `torch.optim.SGD`; `weight_decay` is λ of each tensor."""

    lr: float
    weight_decay: Mapping[str, float]
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False

    def options(self) -> dict[str, Any]:
        """Return what stands beside the lr and the weight decay, as torch names it."""
        return {key: getattr(self, key) for key in SGD_DEFAULTS}


SGD_DEFAULTS: dict[str, Any] = SgdSettings._field_defaults
"""torch's own values of what stands beside the lr and the weight decay."""


class Training(NamedTuple):
    """What formulas, their numbers, and the match with torch are made from.

    `batch_rows` holds the distinct numbers of rows that a step sees, the usual one first.
    `micro_rows` holds those of its micro-batches where gradients are accumulated, else nothing.
    """

    sgd: SgdSettings
    batch_rows: tuple[int, ...]
    train_rows: int
    micro_rows: tuple[int, ...] = ()
    lr_varies: bool = False
    clipped: bool = False
    clipped_by_norm: bool = False
    loss: str = ""

    @property
    def loss_rows(self) -> tuple[int, ...]:
        """The distinct numbers of rows over which one loss is taken, the usual one first."""
        return self.micro_rows or self.batch_rows

    def with_decays(self, weight_decay: Mapping[str, float]) -> Training:
        """Return the training with another weight decay of each tensor."""
        return self._replace(sgd=self.sgd._replace(weight_decay=weight_decay))


def as_set(sgd: SgdSettings, faults: Faults) -> SgdSettings:
    """Return the settings with those faults put in that are other settings of the optimizer."""
    if faults.momentum == "ignored":
        sgd = sgd._replace(momentum=0.0, dampening=0.0, nesterov=False)
    elif faults.nesterov != "as-set":
        sgd = sgd._replace(nesterov=faults.nesterov == "added")
    return sgd


def gradient_gain(convention: Convention, training: Training) -> float:
    """Return c, the factor that a convention puts on the gradient of the mean loss."""
    gain = convention.loss_factor
    if convention.loss_reduction == "sum":
        gain *= training.loss_rows[0]
    return gain


def penalty_strength(convention: Convention, training: Training, tensor: str) -> float:
    """Return κ λ, the factor on w in the gradient of the penalty."""
    if not penalized(convention, tensor):
        return 0.0
    divisor = {"nothing": 1, "batch": training.batch_rows[0], "dataset": training.train_rows}
    strength = training.sgd.weight_decay[tensor] * convention.penalty_factor
    return strength / divisor[convention.divide_penalty_by]
