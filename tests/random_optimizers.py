"""Random optimizers with their options, and what of one a spec or a cause may need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.random import Generator

from tests.reference_optimizers import is_decoupled

Options = dict[str, Any]
"""An optimizer as a spec has it, its name among the options."""


def power_of_ten(random: Generator, low: float, high: float) -> float:
    """Draw a number whose logarithm is uniform."""
    return float(10 ** random.uniform(low, high))


def chance(random: Generator, share: float) -> bool:
    """Be true in a share of the draws."""
    return bool(random.random() < share)


def sgd(random: Generator) -> Options:
    """Draw SGD with or without momentum."""
    options: Options = {"name": "sgd", "momentum": 0.0, "nesterov": False, "dampening": 0.0}
    if chance(random, 0.5):
        return options
    options["momentum"] = random_momentum(random)
    if chance(random, 0.3):
        return options | {"nesterov": True}
    return options | {"dampening": float(random.choice([0.0, 0.0, 0.1, 0.5, 0.9]))}


def adam(random: Generator) -> Options:
    """Draw Adam."""
    options: Options = {"name": "adam", "amsgrad": chance(random, 0.3)}
    options |= {"betas": random_betas(random), "eps": random_eps(random, 1e-8)}
    return options | {"decoupled_weight_decay": chance(random, 0.15)}


def adamw(random: Generator) -> Options:
    """Draw AdamW."""
    options = adam(random) | {"name": "adamw"}
    return {key: value for key, value in options.items() if key != "decoupled_weight_decay"}


def rmsprop(random: Generator) -> Options:
    """Draw RMSprop, with momentum or without, centered or not."""
    return {
        "name": "rmsprop",
        "alpha": float(random.choice([0.99, 0.9, below_1(random)])),
        "eps": random_eps(random, 1e-8),
        "momentum": random_momentum(random) if chance(random, 0.4) else 0.0,
        "centered": chance(random, 0.3),
    }


def adagrad(random: Generator) -> Options:
    """Draw Adagrad."""
    return {
        "name": "adagrad",
        "lr_decay": power_of_ten(random, -3, 0) if chance(random, 0.4) else 0.0,
        "initial_accumulator_value": power_of_ten(random, -3, 0) if chance(random, 0.3) else 0.0,
        "eps": random_eps(random, 1e-10),
    }


def adadelta(random: Generator) -> Options:
    """Draw Adadelta."""
    rho = float(random.choice([0.9, 0.99, below_1(random)]))
    return {"name": "adadelta", "rho": rho, "eps": random_eps(random, 1e-6)}


def adamax(random: Generator) -> Options:
    """Draw Adamax."""
    return {"name": "adamax", "betas": random_betas(random), "eps": random_eps(random, 1e-8)}


def asgd(random: Generator) -> Options:
    """Draw ASGD, with a decay of its own that is seen or not."""
    lambd = power_of_ten(random, -4, 0) if chance(random, 0.7) else 0.0
    alpha = float(random.choice([0.75, 0.0, round(random.uniform(-1, 3), 3)]))
    return {"name": "asgd", "lambd": lambd, "alpha": alpha, "t0": float(random.choice([0, 3, 1e6]))}


def nadam(random: Generator) -> Options:
    """Draw NAdam."""
    decay = 4e-3 if chance(random, 0.5) else float(random.choice([0.0, round(random.random(), 3)]))
    return radam(random) | {"name": "nadam", "momentum_decay": decay}


def radam(random: Generator) -> Options:
    """Draw RAdam."""
    options: Options = {"name": "radam", "betas": random_betas(random)}
    options |= {"eps": random_eps(random, 1e-8)}
    return options | {"decoupled_weight_decay": chance(random, 0.3)}


def adafactor(random: Generator) -> Options:
    """Draw Adafactor; ε₁ is a number, as by default it is that of torch's dtype."""
    return {
        "name": "adafactor",
        "beta2_decay": float(random.choice([-0.8, -0.5, 0.0])),
        "eps": [power_of_ten(random, -16, -1), power_of_ten(random, -4, 0)],
        "d": float(random.choice([1.0, 1.5])),
    }


def muon(random: Generator) -> Options:
    """Draw Muon, with torch's coefficients mostly."""
    coefficients = [3.4445, -4.775, 2.0315] if chance(random, 0.7) else [2.0, -1.5, 0.5]
    return {
        "name": "muon",
        "momentum": random_momentum(random) if chance(random, 0.8) else 0.0,
        "nesterov": chance(random, 0.7),
        "ns_coefficients": coefficients,
        "eps": random_eps(random, 1e-7),
        "ns_steps": 5 if chance(random, 0.6) else int(random.integers(0, 9)),
        "adjust_lr_fn": str(random.choice(["original", "match_rms_adamw"])),
    }


def rprop(random: Generator) -> Options:
    """Draw Rprop."""
    etas = [0.5, 1.2] if chance(random, 0.5) else [round(random.uniform(0.1, 0.9), 3), 1.5]
    sizes = [power_of_ten(random, -9, -4), power_of_ten(random, -2, 2)]
    return {"name": "rprop", "etas": etas, "step_sizes": sizes}


def random_momentum(random: Generator) -> float:
    """Draw a momentum."""
    return float(random.choice([0.5, 0.9, 0.99, round(random.uniform(0.05, 0.95), 3)]))


def random_betas(random: Generator) -> list[float]:
    """Draw the decays of two moments, mostly the usual ones."""
    if chance(random, 0.5):
        return [0.9, 0.999]
    first = float(random.choice([0.0, 0.5, 0.9, below_1(random)]))
    return [first, float(random.choice([0.9, 0.99, below_1(random)]))]


def below_1(random: Generator) -> float:
    """Draw what an option below 1 may be; 0.9996 would be rounded to 1."""
    return min(0.999, round(random.random(), 3))


def random_eps(random: Generator, usual: float) -> float:
    """Draw ε."""
    return usual if chance(random, 0.5) else power_of_ten(random, -12, -1)


DRAWN: dict[str, Callable[[Generator], Options]] = {
    "adadelta": adadelta,
    "adagrad": adagrad,
    "adam": adam,
    "adamax": adamax,
    "adamw": adamw,
    "asgd": asgd,
    "nadam": nadam,
    "radam": radam,
    "rmsprop": rmsprop,
    "sgd": sgd,
}
"""How each optimizer is drawn, with all its options but `maximize`."""

RARE: dict[str, Callable[[Generator], Options]] = {"adafactor": adafactor, "rprop": rprop}
"""How those are drawn that have no form in common with another."""

OF_MOMENTS: dict[str, list[Any]] = {
    "bias_correction": [False, "compounded"],
    "epsilon": ["uncorrected", "inside"],
}
FORMS: dict[str, dict[str, list[Any]]] = {
    "adadelta": {"epsilon": ["outside"]},
    "adafactor": {},
    "adagrad": {"accumulator_start": [0.2, 2.0], "epsilon": ["inside"]},
    "adam": OF_MOMENTS,
    "adamax": {"bias_correction": [False, "compounded"], "epsilon": ["outside"]},
    "adamw": OF_MOMENTS,
    "asgd": {},
    "muon": {},
    "nadam": OF_MOMENTS,
    "radam": {"bias_correction": [False, "compounded"], "epsilon": ["outside", "inside"]},
    "rmsprop": {
        "accumulator_start": [0.1, 1.0],
        "epsilon": ["inside"],
        "momentum_form": ["dampened", "lr-inside"],
    },
    "rprop": {},
    "sgd": {"momentum_form": ["dampened", "lr-inside"]},
}
"""Each optimizer's keys of a convention, with values that are not torch's."""

NEEDED: dict[str, Callable[[Options], bool]] = {
    "amsgrad": lambda options: options.get("amsgrad") is True,
    "apart": is_decoupled,
    "averaging": lambda options: options["name"] in ("adam", "adamw", "rmsprop"),
    "averaged": lambda options: options["name"] == "adadelta",
    "betas": lambda options: len(set(options.get("betas", ()))) > 1,
    "capped": lambda options: options["name"] == "adafactor",
    "centered": lambda options: options.get("centered") is True,
    "corrected": lambda options: "betas" in options,
    "corrected-apart": lambda options: options["name"] in ("adam", "adamw"),
    "counted": lambda options: options["name"] in ("adam", "adamax", "adamw"),
    "corrected-root": lambda options: "amsgrad" in options,
    **dict.fromkeys(("bias-decay", "bias-free", "decay"), lambda o: o["name"] != "rprop"),
    "dampening": lambda options: options.get("dampening", 0) > 0,
    "epsilon-inside": lambda options: options["name"] in ("adadelta", "adamax"),
    "lr-decay": lambda options: options.get("lr_decay", 0) > 0,
    "matrices": lambda options: options["name"] == "muon",
    "momentum": lambda options: options.get("momentum", 0) > 0,
    "nesterov": lambda options: options.get("nesterov") is True,
    "no-amsgrad": lambda options: options.get("amsgrad") is False,
    "norm": lambda options: options["name"] == "adamax",
    "not-centered": lambda options: options.get("centered") is False,
    "plain-momentum": lambda options: (
        options.get("momentum", 0) > 0 and options.get("nesterov") is False
    ),
    "rectified": lambda options: options["name"] == "radam",
    "remembering": lambda options: options["name"] != "sgd" or options["momentum"] > 0,
    "remembered": lambda options: (
        not is_decoupled(options)
        and options["name"] != "rprop"
        and (options["name"] != "sgd" or options["momentum"] > 0)
    ),
    "reversal": lambda options: options["name"] == "rprop",
    "root": lambda options: options["name"] in ("adagrad", "adam", "adamw", "rmsprop"),
    "sgd": lambda options: options["name"] == "sgd",
    "squares": lambda options: options["name"] in ("adagrad", "rmsprop"),
    "worked-out": lambda options: options["name"] != "adafactor",
    "uncorrected-root": lambda options: options["name"] in ("adagrad", "rmsprop"),
}
"""What a cause may need of the optimizer."""


WORKED_OUT = frozenset({"worked-out"})
"""What judges of bounds need: Adafactor's are measured."""


def random_optimizer(
    random: Generator, needs: frozenset[str] = frozenset(), tries: int | None = None
) -> Options:
    """Draw an optimizer that has what is needed, SGD in half of the draws.

    Raises:
        LookupError: so many tries gave none.
    """
    others = sorted(DRAWN.keys() - {"sgd"})
    while tries is None or tries > 0:
        name = "sgd" if chance(random, 0.5) else str(random.choice(others))
        options = DRAWN[name](random)
        if name != "sgd" and chance(random, 0.1):
            options["maximize"] = True
        if all(NEEDED[need](options) for need in needs & NEEDED.keys()):
            return options
        tries = None if tries is None else tries - 1
    raise LookupError(f"no optimizer has {sorted(needs)}")


def random_decay(
    random: Generator, none: float = 0.15, low: float = -8, needs: frozenset[str] = frozenset()
) -> Any:
    """Draw λ from 10^low to 1, often one for each tensor; `none` is the share without any."""
    if "bias-free" in needs:
        return {"weight": power_of_ten(random, low, 0), "bias": 0.0}
    if not needs & {"decay", "bias-decay"} and chance(random, none):
        return 0
    if chance(random, 0.25):
        free = "bias-decay" not in needs and chance(random, 0.5)
        bias = 0.0 if free else power_of_ten(random, low, 0)
        return {"weight": power_of_ten(random, low, 0), "bias": bias}
    return power_of_ten(random, low, 0)


def rare_optimizer(seed: int, needs: frozenset[str] = frozenset()) -> Options | None:
    """Draw one of the rare optimizers for every eighth seed or so, if it has what is needed."""
    random = np.random.default_rng([seed, 98])
    if not chance(random, 0.12):
        return None
    options = RARE[str(random.choice(sorted(RARE)))](random)
    options |= {"maximize": True} if chance(random, 0.1) else {}
    return options if all(NEEDED[need](options) for need in needs & NEEDED.keys()) else None


def with_rare_optimizer(
    spec: dict[str, Any], seed: int, needs: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """Put a rare optimizer into some specs, whatever else was drawn."""
    options = rare_optimizer(seed, needs)
    if options is None:
        return spec
    decay = {"weight_decay": 0} if options["name"] == "rprop" else {}
    return spec | {"optimizer": options} | decay
