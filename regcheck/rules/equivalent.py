"""The settings with which torch's optimizer trains as a convention does, and how to write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeVar

from regcheck.rules.convention import KEYS, Convention
from regcheck.rules.faults import NO_FAULTS, Faults
from regcheck.rules.obstacles import fault_obstacles
from regcheck.rules.optimizers.update_rule import divided, shortest
from regcheck.rules.settings import (
    Settings,
    Training,
    effective_decay,
    gradient_factor,
    with_faults,
)

Value = TypeVar("Value")


class NoMatchError(Exception):
    """No weight decay and lr of torch's make it match; the text says why."""


class Matching(NamedTuple):
    """What to give torch's optimizer so that it trains as the scratch side does.

    `lr_factor` is what every lr is multiplied by, those of a schedule included.
    """

    settings: Settings
    lr_factor: float


def matching(convention: Convention, training: Training, faults: Faults = NO_FAULTS) -> Matching:
    """Find the lr′ and λ′ with which torch's rule becomes the convention's.

    A step without momentum is w ← w − lr (c g + κλ w) with c the factor on the gradient and κλ
    the effective decay, so lr′ = c lr and λ′ = κλ/c. The other forms reduce to it:

    - momentum_form dampened: v is (1 − μ) times torch's, so lr′ = c (1 − μ) lr.
    - decoupled-unscaled, without momentum: κλ/lr in the place of κλ.
    - after-update, without momentum: (1 − lr κλ)(w − lr c g), so c (1 − lr κλ) in the place of c.

    Faults that are other settings of torch's come down to these. Optimizers that divide by the
    gradient's size have their own way (`adaptive_matching`).

    Raises:
        NoMatchError: where no constant lr′ and λ′ that torch takes do it.
    """
    own_lr = training.settings.lr
    refuse({"the parameter groups differ in more than weight_decay": bool(training.settings.own)})
    refuse(fault_obstacles(training, faults))
    training = with_torch_settings(training, faults)
    lr, momentum = training.settings.lr, training.settings.momentum
    c = gradient_factor(convention, training, faults)
    names = training.settings.weight_decay
    decays = {name: effective_decay(convention, training, name) for name in names}
    refuse(gradient_obstacles(convention, training, c))
    if not training.settings.rule.linear:
        return adaptive_matching(convention, training, c, decays, own_lr)
    if any(decays.values()):
        refuse(penalty_obstacles(convention, training, c))
        if convention.decay == "decoupled-unscaled":
            decays = {name: divided(decay, lr) for name, decay in decays.items()}
        elif convention.decay == "after-update":
            c *= common_shrink(lr, decays)
    # The penalty goes through the same velocity as the gradient, so λ keeps its share.
    lr_factor = c * (1 - momentum) if convention.momentum_form == "dampened" and momentum else c
    decays = {name: divided(decay, c) if decay else 0.0 for name, decay in decays.items()}
    return given(training.settings._replace(weight_decay=decays), lr_factor, own_lr)


def given(settings: Settings, lr_factor: float, own_lr: float) -> Matching:
    """Return settings with a factor on their lr, if torch takes them."""
    refuse(
        {
            "torch takes no negative lr": lr_factor < 0,
            "torch takes no negative weight decay": min(settings.weight_decay.values()) < 0,
        }
    )
    lr = settings.lr if lr_factor == 1 else shortest(settings.lr * lr_factor)
    decays = {name: decay or 0.0 for name, decay in settings.weight_decay.items()}  # no -0.0
    matched = settings._replace(lr=lr, weight_decay=decays)
    return Matching(matched, matched.lr / own_lr if own_lr else lr_factor)


MATCHED = frozenset({"momentum_form"})
"""Keys in which a convention may differ, as torch has settings for their forms."""


def adaptive_matching(
    convention: Convention, training: Training, c: float, decays: dict[str, float], own_lr: float
) -> Matching:
    """Find the settings for an optimizer that is not linear, as one that divides by g's size.

    With c g the gradient, c m/(c √s + ε) is m/(√s + ε/c): ε′ = ε/c, and a coupled λ′ is κλ/c. A
    sum of squares that starts at q starts at q/c²; with ε inside its root, √(s + ε), that is a
    start at q + ε, and ε′ = 0. A decay that is coupled, or decoupled, where
    torch's is not, is that of another class of torch's. After the update, (1 − lr κλ)(w − lr d) is
    that before it at lr′ = (1 − lr κλ) lr and λ′ = κλ/(1 − lr κλ), where a step is proportional to
    its lr.
    """
    settings = training.settings
    dampened = convention.momentum_form == "dampened" and "momentum_form" in settings.rule.keys
    lr_factor = 1 - settings.momentum if dampened else 1.0
    refuse(forms_that_torch_has_not(convention, training))
    refuse({"the gradient is 0, or has the opposite sign": c <= 0})
    if any(decays.values()):
        refuse(decay_obstacles(convention, training))
        coupled = convention.decay in ("gradient", "before-clipping")
        if coupled:
            decays = {name: divided(decay, c) for name, decay in decays.items()}
        elif convention.decay == "decoupled-unscaled":
            decays = {name: divided(decay, settings.lr) for name, decay in decays.items()}
        elif convention.decay == "after-update":
            shrink = common_shrink(settings.lr, decays)
            decays = {name: divided(decay, shrink) for name, decay in decays.items()}
            lr_factor *= shrink
        if coupled != (settings.torchs.decay == "gradient"):
            settings = other_class(settings)
    start = settings.rule.start_option
    if start:
        settings = settings.with_options(**{start: convention.accumulator_start})
        if convention.epsilon == "inside":
            begun = shortest(convention.accumulator_start + settings.options["eps"])
            settings = settings.with_options(**{start: begun, "eps": 0.0})
    if c != 1:
        no_options = settings.rule.scaling is None
        refuse({"the gradient is scaled, and no option of torch's compensates for it": no_options})
        powers = dict(settings.rule.scaling or {})
        lr_factor *= c ** -powers.pop("lr", 0)
        scaled = {key: divided(settings.options[key], c**power) for key, power in powers.items()}
        settings = settings.with_options(**scaled)
    return given(settings._replace(weight_decay=decays), lr_factor, own_lr)


def forms_that_torch_has_not(convention: Convention, training: Training) -> dict[str, bool]:
    """Return the forms of the step that no option of torch's chooses."""
    rule, torchs = training.settings.rule, training.settings.torchs
    matched = MATCHED | ({"accumulator_start", "epsilon"} if rule.start_option else set())
    return {
        f"torch.optim.{rule.torch} has no option for {KEYS[key].title}": (
            getattr(convention, key) != getattr(torchs, key)
        )
        for key in sorted((rule.keys & set(Convention._fields)) - matched)
    }


def other_class(settings: Settings) -> Settings:
    """Return the settings of torch's that keep the decay apart where these couple it, or couple.

    Raises:
        NoMatchError: where torch has no such class.
    """
    flag, options = "decoupled_weight_decay", dict(settings.options)
    if settings.optimizer == "adamw":
        return settings._replace(optimizer="adam", options={**options, flag: False})
    if settings.optimizer == "adam" and not options[flag]:
        own = {key: value for key, value in options.items() if key != flag}
        return settings._replace(optimizer="adamw", options=own)
    if flag not in options:
        form = "coupled" if settings.torchs.decay == "decoupled" else "decoupled"
        raise NoMatchError(f"torch.optim.{settings.rule.torch} has no {form} weight decay")
    return settings.with_options(**{flag: not options[flag]})


def with_torch_settings(training: Training, faults: Faults) -> Training:
    """Return a training with those faults in it that are settings of torch's."""
    settings = with_faults(training.settings, faults)
    decays = dict(settings.weight_decay)
    if faults.bias_decay == "of-weight":
        decays = dict.fromkeys(decays, max(decays.values()))
    lr = settings.lr if faults.lr_factor == 1 else shortest(settings.lr * faults.lr_factor)
    if faults.first_step == "dampened":  # the whole velocity is that without dampening, times 1 − d
        lr = shortest(lr * (1 - settings.dampening))
        settings = settings.with_options(dampening=0.0)
    return training._replace(settings=settings._replace(lr=lr, weight_decay=decays))


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
            "lr·λ is 1: each step sets the weights to 0": shrink == 0,
        }
    )
    return shrink


def gradient_obstacles(convention: Convention, training: Training, c: float) -> dict[str, bool]:
    """Return what keeps the gradient and its momentum from matching."""
    moving = bool(training.settings.momentum)
    dampened = moving and convention.momentum_form == "dampened"
    lr_inside = moving and convention.momentum_form == "lr-inside"
    uneven = len(training.loss_rows) > 1
    return {
        "torch takes all gradients at the old parameters": (
            convention.update_order != "simultaneous"
        ),
        "the batches differ in size, so the sum is no constant multiple of the mean": (
            convention.loss_reduction == "sum" and uneven
        ),
        "the batches differ in their total class weight, by which torch divides": (
            convention.loss_reduction == "sum" and training.weighted
        ),
        "clipping acts on the scaled gradient": training.clipped and c != 1,
        "the Nesterov step with a dampened velocity is no multiple of torch's": (
            dampened and training.settings.nesterov
        ),
        "torch does not dampen the first step, and dampens by another factor": (
            dampened and training.settings.dampening != 0
        ),
        "the lr changes, and torch's velocity does not contain the lr": (
            lr_inside and training.lr_varies
        ),
    }


def penalty_obstacles(convention: Convention, training: Training, c: float) -> dict[str, bool]:
    """Return what keeps a penalty from matching."""
    divided_unevenly = convention.divide_penalty_by == "batch" and len(training.batch_rows) > 1
    inside = convention.decay in ("gradient", "before-clipping")
    unscaled = convention.decay == "decoupled-unscaled"
    return {
        "the factor on the loss is 0: only the weight decay acts": c == 0,
        "λ w/‖w‖ is no constant multiple of w": convention.penalty_norm == "unsquared",
        "the batches differ in size, so λ/B is not constant": divided_unevenly,
        "torch clips before it adds λ w": (
            convention.decay == "before-clipping" and training.clipped
        ),
        "torch.optim.SGD with momentum has no weight decay outside the gradient": (
            not inside and bool(training.settings.momentum) and training.settings.rule.linear
        ),
        "the lr changes, and this weight decay does not change with it as torch's does": (
            training.lr_varies and (unscaled or convention.decay == "after-update")
        ),
        "the lr is 0, where torch has no weight decay": unscaled and training.settings.lr == 0,
    }


def decay_obstacles(convention: Convention, training: Training) -> dict[str, bool]:
    """Return what keeps the penalty of an optimizer that is not linear from matching."""
    return penalty_obstacles(convention, training, 1.0) | {
        "torch decays before the update, whose size is not proportional to the lr": (
            convention.decay == "after-update" and not training.settings.rule.proportional
        ),
    }
