"""The settings with which `torch.optim.SGD` trains as a convention does, and how to write them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from keyword import iskeyword
from typing import Any, NamedTuple, TypeVar

from regcheck.rules.convention import NO_FAULTS, Convention, Faults
from regcheck.rules.settings import (
    Settings,
    Training,
    effective_decay,
    exact,
    gradient_factor,
    number,
    with_faults,
)

Value = TypeVar("Value")


class NoMatchError(Exception):
    """No weight decay and lr of torch's make it match; the text says why."""


class Matching(NamedTuple):
    """What to give `torch.optim.SGD` so that it trains as the scratch side does.

    `lr_factor` is what every lr is multiplied by, those of a schedule included.
    """

    sgd: Settings
    lr_factor: float


def matching(convention: Convention, training: Training, faults: Faults = NO_FAULTS) -> Matching:
    """Find the lr′ and λ′ with which torch's rule becomes the convention's.

    A step without momentum is w ← w − lr (c g + κλ w) with c the factor on the gradient and κλ
    the effective decay, so lr′ = c lr and λ′ = κλ/c. The other forms reduce to it:

    - momentum_form dampened: v is (1 − μ) times torch's, so lr′ = c (1 − μ) lr.
    - decoupled-unscaled, without momentum: κλ/lr in the place of κλ.
    - after-update, without momentum: (1 − lr κλ)(w − lr c g), so c (1 − lr κλ) in the place of c.

    Faults that are other settings of torch's come down to these.

    Raises:
        NoMatchError: where no constant lr′ and λ′ that torch takes do it.
    """
    own_lr = training.sgd.lr
    refuse(fault_obstacles(training, faults))
    training = with_torch_settings(training, faults)
    lr, momentum = training.sgd.lr, training.sgd.momentum
    c = gradient_factor(convention, training, faults)
    names = training.sgd.weight_decay
    decays = {name: effective_decay(convention, training, name) for name in names}
    refuse(gradient_obstacles(convention, training, c))
    if any(decays.values()):
        refuse(penalty_obstacles(convention, training, c))
        if convention.decay == "decoupled-unscaled":
            decays = {name: decay / lr for name, decay in decays.items()}
        elif convention.decay == "after-update":
            c *= common_shrink(lr, decays)
    decays = {name: decay / c if decay else 0.0 for name, decay in decays.items()}
    # The penalty goes through the same velocity as the gradient, so λ keeps its share.
    lr_factor = c * (1 - momentum) if convention.momentum_form == "dampened" and momentum else c
    refuse(
        {
            "torch takes no negative lr": lr_factor < 0,
            "torch takes no negative weight decay": min(decays.values()) < 0,
        }
    )
    matched = training.sgd._replace(lr=lr * lr_factor, weight_decay=decays)
    return Matching(matched, matched.lr / own_lr if own_lr else lr_factor)


def with_torch_settings(training: Training, faults: Faults) -> Training:
    """Return a training with those faults in it that are settings of torch's."""
    sgd = with_faults(training.sgd, faults)
    decays = dict(sgd.weight_decay)
    if faults.bias_decay == "of-weight":
        decays = dict.fromkeys(decays, max(decays.values()))
    return training._replace(sgd=sgd._replace(lr=sgd.lr * faults.lr_factor, weight_decay=decays))


def fault_obstacles(training: Training, faults: Faults) -> dict[str, bool]:
    """Return which faults no settings of torch's come to."""
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


def common_shrink(lr: float, decays: Mapping[str, float]) -> float:
    """Return 1 − lr κλ, the factor that decay after the update leaves on the gradient."""
    shrink, *others = {1 - lr * decay for decay in decays.values()}
    refuse(
        {
            "each tensor would need an lr of its own": bool(others),
            "lr·λ is 1: each step ends at zero": shrink == 0,
        }
    )
    return shrink


def gradient_obstacles(convention: Convention, training: Training, c: float) -> dict[str, bool]:
    """Return what keeps the gradient and its momentum from matching."""
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
        "clipping acts on the scaled gradient": training.clipped and c != 1,
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


def penalty_obstacles(convention: Convention, training: Training, c: float) -> dict[str, bool]:
    """Return what keeps a penalty from matching."""
    divided_unevenly = convention.divide_penalty_by == "batch" and len(training.batch_rows) > 1
    inside = convention.decay in ("gradient", "before-clipping")
    unscaled = convention.decay == "decoupled-unscaled"
    return {
        "the loss counts nothing, only the penalty acts": c == 0,
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


def torch_call(sgd: Settings) -> str:
    """Write the call of torch's optimizer with some settings.

    >>> torch_call(Settings(0.1, {"weight": 1.0, "bias": 1.0}))
    'torch.optim.SGD(lr=0.1, weight_decay=1)'
    """
    options = [f"lr={exact(sgd.lr)}"]
    for key, value in sgd.options.items():
        if value != sgd.rule.options[key].default:
            options.append(f"{key}={option_text(value)}")
    groups = alike(sgd.weight_decay)
    if len(groups) == 1:
        [decay] = groups
        options += [f"weight_decay={exact(decay)}"] if decay else []
        return f"torch.optim.{sgd.rule.torch}({', '.join(options)})"
    written = [
        f'{{"params": [{", ".join(map(attribute, names))}], "weight_decay": {exact(decay)}}}'
        for decay, names in groups.items()
    ]
    return f"torch.optim.{sgd.rule.torch}([{', '.join(written)}], {', '.join(options)})"


def option_text(value: Any) -> str:
    """Write an option's value as Python does."""
    if isinstance(value, tuple):
        return f"({', '.join(map(option_text, value))})"
    return exact(value) if isinstance(value, float) else str(value)


def alike(values: Mapping[str, Value]) -> dict[Value, list[str]]:
    """Return the tensors of each value, in their order."""
    found: dict[Value, list[str]] = {}
    for name, value in values.items():
        found.setdefault(value, []).append(name)
    return found


def attribute(name: str) -> str:
    """Write a parameter as Python reaches it: what a container numbers is an item of it.

    >>> attribute("layers.0.weight"), attribute("0.bias"), attribute("my-net.w")
    ('model.layers[0].weight', 'model[0].bias', 'model.get_parameter("my-net.w")')
    """
    parts = name.split(".")
    if not all(part.isdecimal() or (part.isidentifier() and not iskeyword(part)) for part in parts):
        return f"model.get_parameter({json.dumps(name)})"
    return "model" + "".join(f"[{part}]" if part.isdecimal() else f".{part}" for part in parts)


def decays_text(decays: Mapping[str, float], torch: Mapping[str, float]) -> str:
    """Describe which tensors have another weight decay than torch's.

    >>> decays_text({"0.w": 0.05, "1.w": 0.05, "b": 0.0}, {"0.w": 0.1, "1.w": 0.1, "b": 0.0})
    "the weight_decay of 0.w and 1.w is 0.05, torch's is 0.1"
    """
    pairs = {name: (decay, torch[name]) for name, decay in decays.items() if decay != torch[name]}
    return "; ".join(
        f"the weight_decay of {' and '.join(names)} is {own:.6g}, torch's is {number(other)}"
        for (own, other), names in alike(pairs).items()
    )
