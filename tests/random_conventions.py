"""Random conventions: those that come to torch's rule, and keys that do not."""

from __future__ import annotations

from typing import Any

from numpy.random import Generator

from tests.random_optimizers import (
    FORMS,
    NEEDED,
    Options,
    chance,
    power_of_ten,
)
from tests.reference_optimizers import is_decoupled

SpecDict = dict[str, Any]


def decays(spec: SpecDict) -> bool:
    """Whether any tensor has a penalty."""
    decay = spec["weight_decay"]
    return any(decay.values()) if isinstance(decay, dict) else decay > 0


def equal_convention(random: Generator, spec: SpecDict, rows: int) -> Any:
    """Draw a convention that is torch's own rule for this spec, though written otherwise."""
    equal: list[SpecDict | str] = ["pytorch"]
    equal += equal_by_optimizer(
        spec["optimizer"], clipped="clip_norm" in spec or "clip_value" in spec
    )
    if "lr_schedule" not in spec:
        equal += [{"momentum_form": "lr-inside"}]
    if not decays(spec):
        keys = {"divide_penalty_by": "batch", "penalty_factor": 3, "penalty_norm": "unsquared"}
        equal += [keys, {"penalty_in_loss": True, "decay": "after-update"}]
    if isinstance(spec["weight_decay"], dict) and spec["weight_decay"].get("bias") == 0:
        equal += [{"penalize_bias": False}]
    if rows == 1:
        equal += [{"divide_penalty_by": "dataset", "loss_reduction": "sum"}]
    if spec["batch_size"] == 1 and spec["accumulate"] == 1:
        equal += [{"divide_penalty_by": "batch", "loss_reduction": "sum"}]
    if len(equal) > 1 and chance(random, 0.6):
        return equal[random.integers(1, len(equal))]
    return "pytorch"


def equal_by_optimizer(optimizer: Options, *, clipped: bool) -> list[SpecDict | str]:
    """Return the conventions that are torch's own rule for an optimizer."""
    forms = {key: value for form in FORMS.values() for key, value in form.items()}
    own = set(FORMS[optimizer["name"]])
    if not NEEDED["momentum"](optimizer):
        own.discard("momentum_form")
    equal: list[SpecDict | str] = [
        {key: value} for key, values in forms.items() if key not in own for value in values
    ]
    if not NEEDED["remembered"](optimizer):
        equal += [{"decay": "decoupled"}, {"decay": "after-momentum"}]
    if not (clipped or is_decoupled(optimizer)):
        equal += [{"decay": "before-clipping"}]
    return equal


def different_keys(random: Generator, optimizer: Options) -> SpecDict:
    """Draw a value that is not torch's for each key of the convention that an optimizer has."""
    near = 1 + power_of_ten(random, -8, 0)
    decays = ["after-momentum", "decoupled-unscaled", "after-update", "before-clipping"]
    decays += ["gradient" if is_decoupled(optimizer) else "decoupled"]
    keys: SpecDict = {
        "divide_penalty_by": str(random.choice(["batch", "dataset"])),
        "penalty_factor": float(random.choice([2.0, 0.5, 0.0, -1.0, near])),
        "penalize_bias": False,
        "decay": str(random.choice(decays)),
        "penalty_norm": "unsquared",
        "penalty_in_loss": True,
        "loss_reduction": "sum",
        "loss_factor": float(random.choice([0.5, 2.0, near])),
        "update_order": "bias-first",
    }
    forms = FORMS[optimizer["name"]].items()
    return keys | {key: values[random.integers(len(values))] for key, values in forms}
