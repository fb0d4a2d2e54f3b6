"""The lr and weight decay with which `torch.optim.SGD` trains as a convention does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from regcheck.rules.convention import NO_FAULTS, Convention, Faults
from regcheck.rules.settings import SgdSettings, Training, as_set, gradient_gain, penalty_strength


class NoMatchError(Exception):
    """No weight decay and lr of torch's make it match; the text says why."""


class Matching(NamedTuple):
    """What to give `torch.optim.SGD` so that it trains as the scratch side does.

    `lr_factor` is what every lr is multiplied by, those of a schedule included.
    """

    sgd: SgdSettings
    lr_factor: float


def matching(convention: Convention, training: Training, faults: Faults = NO_FAULTS) -> Matching:
    """Find the lr′ and λ′ with which torch's rule becomes the convention's.

    A step without momentum is w ← w − lr (c g + κλ w) with c the factor on the gradient and κλ
    the penalty's strength, so lr′ = c lr and λ′ = κλ/c. The other forms reduce to it:

    - momentum_form dampened: v is (1 − μ) times torch's, so lr′ = c (1 − μ) lr.
    - decoupled-unscaled, without momentum: κλ/lr in the place of κλ.
    - after-update, without momentum: (1 − lr κλ)(w − lr c g), so c (1 − lr κλ) in the place of c.

    Faults that are other settings of torch's come down to these.

    Raises:
        NoMatchError: where no constant lr′ and λ′ that torch takes do it.
    """
    refuse(fault_obstacles(training, faults))
    training = torch_training(training, faults)
    own_lr = training.sgd.lr
    training = training._replace(sgd=training.sgd._replace(lr=own_lr * faults.lr_factor))
    gain = gradient_gain(convention, training) * faults.gradient_factor
    if faults.accumulation == "sum":
        gain *= micro_batches(training)
    strengths = {
        name: penalty_strength(convention, training, name) for name in training.sgd.weight_decay
    }
    decaying = any(strengths.values())
    refuse(gradient_obstacles(convention, training, gain))
    if decaying:
        refuse(penalty_obstacles(convention, training, gain))
        if convention.decay == "decoupled-unscaled":
            strengths = {name: strength / training.sgd.lr for name, strength in strengths.items()}
        elif convention.decay == "after-update":
            gain *= common_shrink(training.sgd.lr, strengths)
    weight_decay = {
        name: strength / gain if strength else 0.0 for name, strength in strengths.items()
    }
    # The penalty goes through the same velocity as the gradient, so λ keeps its share.
    dampened = convention.momentum_form == "dampened" and training.sgd.momentum
    lr_factor = gain * (1 - training.sgd.momentum) if dampened else gain
    refuse(
        {
            "torch takes no negative lr": lr_factor < 0,
            "torch takes no negative weight decay": min(weight_decay.values()) < 0,
        }
    )
    lr = training.sgd.lr * lr_factor
    return Matching(
        training.sgd._replace(lr=lr, weight_decay=weight_decay),
        lr / own_lr if own_lr else lr_factor,
    )


def torch_training(training: Training, faults: Faults) -> Training:
    """Put those faults into a training that are settings of torch's."""
    training = training._replace(sgd=as_set(training.sgd, faults))
    if faults.bias_decay == "of-weight":
        decays = training.sgd.weight_decay
        training = training.with_decays(dict.fromkeys(decays, max(decays.values())))
    return training


def micro_batches(training: Training) -> int:
    """Give the micro-batches of a step, the same in each."""
    rows, parts = training.batch_rows, training.micro_rows
    return -(-rows[0] // parts[0]) if parts else 1


def fault_obstacles(training: Training, faults: Faults) -> dict[str, bool]:
    """Say which faults no settings of torch's come to."""
    uneven = len(training.batch_rows) > 1
    return {
        "λ itself is no multiple of w": faults.penalty_form == "constant",
        "the targets' mean is no target": faults.target != "row",
        "BCELoss passes no gradient where p rounds to 0 or 1. Take `loss: bce_with_logits` "
        "(torch.nn.BCEWithLogitsLoss), or scaled features (`standardize: true`)": (
            faults.bce_slope != "floored"
        ),
        "only the last batch's gradient is another": (
            faults.batch_divisor != "rows" and len(training.loss_rows) > 1
        ),
        "the steps have different numbers of micro-batches": (
            faults.accumulation == "sum" and uneven
        ),
        "torch's loop zeroes the gradients at each step": faults.zeroing == "never",
        "the schedule runs earlier or later": faults.lr_shift != 0 and training.lr_varies,
        "torch clips all tensors by one norm": faults.clip_scope != "all",
        "torch does not dampen the first step": faults.first_step != "undampened",
        "with a dampening of its own, Nesterov's step is none of torch's": (
            faults.nesterov == "added" and training.sgd.dampening != 0
        ),
        "clipping acts on the scaled gradient": (
            training.clipped and (faults.gradient_factor != 1 or faults.accumulation == "sum")
        ),
    }


def refuse(obstacles: Mapping[str, bool]) -> None:
    """Raise the first obstacle (reason → whether it stands) that stands."""
    for reason, stands in obstacles.items():
        if stands:
            raise NoMatchError(reason)


def common_shrink(lr: float, strengths: Mapping[str, float]) -> float:
    """Give 1 − lr κλ, the factor that decay after the update leaves on the gradient's share."""
    shrink, *others = {1 - lr * strength for strength in strengths.values()}
    refuse(
        {
            "each tensor would need an lr of its own": bool(others),
            "lr·λ is 1: each step ends at zero": shrink == 0,
        }
    )
    return shrink


def gradient_obstacles(convention: Convention, training: Training, gain: float) -> dict[str, bool]:
    """Say what keeps the gradient and its momentum from matching."""
    moving = bool(training.sgd.momentum)
    dampened = moving and convention.momentum_form == "dampened"
    lr_inside = moving and convention.momentum_form == "lr-inside"
    uneven = len(training.loss_rows) > 1
    return {
        "torch takes all gradients at the old parameters": (
            convention.update_order != "simultaneous"
        ),
        "the batches differ in rows, so their sum is no constant multiple": (
            convention.loss_reduction == "sum" and uneven
        ),
        "clipping acts on the scaled gradient": training.clipped and gain != 1,
        "Nesterov's step of a dampened velocity is no multiple of torch's": (
            dampened and training.sgd.nesterov
        ),
        "torch does not dampen the first step, and dampens by another factor": (
            dampened and training.sgd.dampening != 0
        ),
        "the lr changes, and torch's velocity does not hold the lr": (
            lr_inside and training.lr_varies
        ),
    }


def penalty_obstacles(convention: Convention, training: Training, gain: float) -> dict[str, bool]:
    """Say what keeps a penalty from matching."""
    divided_unevenly = convention.divide_penalty_by == "batch" and len(training.batch_rows) > 1
    inside = convention.decay in ("gradient", "before-clipping")
    unscaled = convention.decay == "decoupled-unscaled"
    return {
        "the loss counts nothing, only the penalty acts": gain == 0,
        "λ w/‖w‖ is no constant multiple of w": convention.penalty_norm == "unsquared",
        "the batches differ in rows, so λ/B is no constant": divided_unevenly,
        "torch clips before it adds the penalty": (
            convention.decay == "before-clipping" and training.clipped
        ),
        "with momentum, decay outside the gradient is no weight decay of torch.optim.SGD": (
            not inside and bool(training.sgd.momentum)
        ),
        "the lr changes, and this decay does not change with it as torch's does": (
            training.lr_varies and (unscaled or convention.decay == "after-update")
        ),
        "the lr is 0, where torch decays nothing": unscaled and training.sgd.lr == 0,
    }
