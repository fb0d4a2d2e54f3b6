"""The faults of an optimizer's step that are other options of it."""

from __future__ import annotations

from typing import Any

from regcheck.rules.faults import Faults
from regcheck.rules.optimizers.update_rule import Options


def faulty(options: Options, faults: Faults) -> Options:
    """Return options, as numbers or letters, with those faults in them that are other options."""
    changed: dict[str, Any] = {}
    for flag in ("amsgrad", "centered", "nesterov"):
        if getattr(faults, flag) != "as-set":
            changed[flag] = getattr(faults, flag) != "missing"
    if faults.momentum == "ignored" and "momentum" in options:
        none = type(options["momentum"])()
        changed |= {"momentum": none, "dampening": none, "nesterov": False}
    if faults.lr_decay == "missing" and "lr_decay" in options:
        changed["lr_decay"] = type(options["lr_decay"])()
    if faults.betas == "swapped" and "betas" in options:
        changed["betas"] = options["betas"][::-1]
    changed |= dict(faults.options)
    return {**options, **{key: value for key, value in changed.items() if key in options}}
