"""The optimizers by their names in a spec, which are torch's in lower case."""

from __future__ import annotations

from regcheck.rules.optimizers.adam import ADAM, ADAMW
from regcheck.rules.optimizers.sgd import SGD
from regcheck.rules.optimizers.update_rule import UpdateRule

OPTIMIZERS: dict[str, UpdateRule] = {
    "adam": ADAM,
    "adamw": ADAMW,
    "sgd": SGD,
}
