"""The optimizers by their names in a spec, which are torch's in lower case."""

from __future__ import annotations

from regcheck.rules.optimizers.adadelta import ADADELTA
from regcheck.rules.optimizers.adafactor import ADAFACTOR
from regcheck.rules.optimizers.adagrad import ADAGRAD
from regcheck.rules.optimizers.adam import ADAM, ADAMW
from regcheck.rules.optimizers.adamax import ADAMAX
from regcheck.rules.optimizers.asgd import ASGD
from regcheck.rules.optimizers.muon import MUON
from regcheck.rules.optimizers.nadam import NADAM
from regcheck.rules.optimizers.radam import RADAM
from regcheck.rules.optimizers.rmsprop import RMSPROP
from regcheck.rules.optimizers.rprop import RPROP
from regcheck.rules.optimizers.sgd import SGD
from regcheck.rules.optimizers.update_rule import UpdateRule

OPTIMIZERS: dict[str, UpdateRule] = {
    "adadelta": ADADELTA,
    "adafactor": ADAFACTOR,
    "adagrad": ADAGRAD,
    "adam": ADAM,
    "adamax": ADAMAX,
    "adamw": ADAMW,
    "asgd": ASGD,
    "muon": MUON,
    "nadam": NADAM,
    "radam": RADAM,
    "rmsprop": RMSPROP,
    "rprop": RPROP,
    "sgd": SGD,
}
