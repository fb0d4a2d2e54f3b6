"""The faults of an optimizer's step that are other options of it."""

from __future__ import annotations

from regcheck.rules.convention import Faults
from regcheck.rules.optimizers.update_rule import Options


def faulty(options: Options, faults: Faults) -> Options:
    """Return options, as numbers or letters, with those faults in them that are other options."""
    if faults.momentum == "ignored" and "momentum" in options:
        none = type(options["momentum"])()
        return {**options, "momentum": none, "dampening": none, "nesterov": False}
    if faults.nesterov != "as-set" and "nesterov" in options:
        options = {**options, "nesterov": faults.nesterov == "added"}
    if faults.amsgrad != "as-set" and "amsgrad" in options:
        options = {**options, "amsgrad": faults.amsgrad == "added"}
    if faults.betas == "swapped" and "betas" in options:
        options = {**options, "betas": options["betas"][::-1]}
    return options
