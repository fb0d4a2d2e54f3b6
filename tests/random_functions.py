"""Random users' functions, with faults planted in them or gradients that are simply wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.random import Generator

from tests.faults import FAULTS, OPEN, OTHER_UNIT, OUTSIDE
from tests.random_needs import NEEDS, Array, random_spec
from tests.random_optimizers import (
    NEEDED,
    chance,
    power_of_ten,
    random_optimizer,
    with_rare_optimizer,
)
from tests.random_specs import (
    SpecDict,
    with_muon,
    without_some_biases,
)
from tests.rule import Base, Reported, Rule
from tests.user_functions import WRONG, Code


class Facts(NamedTuple):
    """Numbers of a spec that a mistake may have in it."""

    rows: int
    batch: int
    mu: float


BIASED = frozenset({"bias-not-penalized", "bias-penalized", "clip-per-tensor", "update-sequential"})
"""The causes that a model without a bias cannot have."""


NOT_OF_MUON = BIASED | {"decay-bias-corrected", "gradient-scaled"}
"""The causes that Muon cannot have, or whose factor nothing tells through a cast to bfloat16."""

DRAWN_APART: dict[str, Callable[[SpecDict], bool]] = {
    "adafactor-lr-uncapped": lambda spec: bool(spec["optimizer"]["name"] == "adafactor"),
    "muon-bfloat16-missing": lambda spec: bool(spec["optimizer"]["name"] == "muon"),
    "rprop-sign-change-stepped": lambda spec: NEEDED["reversal"](spec["optimizer"]),
    "rprop-step-taken-back": lambda spec: NEEDED["reversal"](spec["optimizer"]),
    "radam-rectified-early": lambda spec: NEEDED["rectified"](spec["optimizer"]),
    "accumulation-last-only": lambda spec: bool(spec["accumulate"] > 1),
    "adam-amsgrad-corrected": lambda spec: NEEDED["amsgrad"](spec["optimizer"]),
    # Its first step is by 1/ε, after which a tiny ε leaves nothing to compare.
    "adamax-norm-stale": lambda spec: bool(
        NEEDED["norm"](spec["optimizer"]) and spec["optimizer"]["eps"] > 1e-4
    ),
    "adam-steps-not-counted": lambda spec: NEEDED["counted"](spec["optimizer"]),
}
"""Causes that take the place of some others, by the specs that can have them.

A new one belongs here: among the others, it would change what every seed draws.
"""


@dataclass
class Case:
    """A spec, and the user's function that is checked against it.

    Attributes:
        spec: the spec.
        X, y: its data.
        code: the function.
        causes: those planted in the update; with `wrong`, there is something else in it.
        reporting: those planted in the reported loss; None where it is simply wrong.
        factors: the open factors of the causes.
        wrong: the mistake that has no name; empty for none.
    """

    spec: SpecDict
    X: Array
    y: Array
    code: Code
    causes: frozenset[str]
    reporting: frozenset[str] | None
    factors: dict[str, float]
    wrong: str = ""

    def __str__(self) -> str:
        shown = {key: value for key, value in self.spec.items() if key not in ("data", "init")}
        planted = " + ".join([*sorted(self.causes), *([self.wrong] if self.wrong else [])])
        return (
            f"[{planted or 'no cause'}; reports {self.code.report}] {self.X.shape} {shown} "
            f"{self.factors}"
        )


def random_case(seed: int, folder: Path) -> Case:
    random = np.random.default_rng([seed, 2])
    causes, wrong = random_causes(random)
    needs = frozenset[str]().union(*(NEEDS[cause] for cause in causes))
    spec, X, y = random_spec(random, needs, folder / f"{seed}.npz")
    spec = with_rare_optimizer(spec, seed, needs)
    if len(causes) < 2 and not NOT_OF_MUON.intersection(causes):
        spec = with_muon(spec, seed, needs)
    causes = with_cause_apart(causes, spec, seed)
    if not BIASED.intersection(causes):
        spec = without_some_biases(spec, seed)
    facts = Facts(
        len(y), min(len(y), batch_of(spec, len(y))), float(spec["optimizer"].get("momentum", 0))
    )
    rule, factors = planted(random, causes, facts)
    report, reporting = random_report(random, spec, facts)
    size = X.size * spec["epochs"]
    start = None
    if "initial-parameters" in causes:
        start = (np.asarray(random.normal(size=X.shape[1])), np.asarray(random.normal()))
        if not spec.get("bias", True):
            start = (start[0], np.zeros(()))
    code = Code(
        spec,
        rule,
        report,
        single="precision" in causes,
        loops=size <= 400 and chance(random, 0.5),
        start=start,
        in_file_order="row-order" in causes,
        wrong=WRONG[wrong] if wrong else None,
    )
    return Case(spec, X, y, code, frozenset(causes), reporting, factors, wrong)


def random_causes(random: Generator) -> tuple[tuple[str, ...], str]:
    """Draw the causes of the update; or a mistake that is none."""
    kind = random.random()
    if kind < 0.08:
        return (), ""
    if kind < 0.22:
        return (), str(random.choice(sorted(WRONG)))
    names = sorted(FAULTS.keys() - DRAWN_APART.keys())
    if kind < 0.55:
        return (str(random.choice(names)),), ""
    if kind < 0.70:
        outside = str(random.choice(sorted(OUTSIDE)))
        return (outside,), ""
    while True:
        one, other = sorted(map(str, random.choice(names, size=2, replace=False)))
        if compatible(one, other):
            return (one, other), ""


def with_cause_apart(causes: tuple[str, ...], spec: SpecDict, seed: int) -> tuple[str, ...]:
    """Put a cause that is drawn apart in the place of some single ones."""
    own = [cause for cause, can_have in DRAWN_APART.items() if can_have(spec)]
    rarely = len(causes) == 1 and chance(np.random.default_rng([seed, 97]), 0.4)
    return tuple(own[:1]) if own and rarely and not OUTSIDE.keys() & set(causes) else causes


def compatible(one: str, other: str) -> bool:
    """Whether a pair can act at once, each with a meaning of its own."""
    keys = [{*FAULTS[name].changes, FAULTS[name].key} - {None} for name in (one, other)]
    needs = NEEDS[one] | NEEDS[other]
    alone = not {one, other} <= OPEN  # of two open factors no run tells the second's
    if not (keys[0].isdisjoint(keys[1]) and not {"bias-decay", "bias-free"} <= needs and alone):
        return False
    try:
        random_optimizer(np.random.default_rng(0), needs, tries=200)
    except LookupError:
        return False
    return True


def batch_of(spec: SpecDict, rows: int) -> int:
    return rows if spec["batch_size"] == "full" else int(spec["batch_size"])


def decays_of(spec: SpecDict) -> tuple[float, float]:
    """Return λ of the weight and of the bias, 0 where there is none."""
    decay = spec["weight_decay"]
    weight = decay["weight"] if isinstance(decay, dict) else decay
    bias = decay.get("bias", 0.0) if isinstance(decay, dict) else decay
    return weight, bias if spec.get("bias", True) else 0.0


def planted(
    random: Generator, causes: Sequence[str], facts: Facts
) -> tuple[Rule, dict[str, float]]:
    """Put causes into torch's rule; gives the rule and the open factors in it."""
    changes: dict[str, Any] = {}
    factors: dict[str, float] = {}
    for cause in causes:
        if cause == "schedule-differs":
            changes["schedule"] = OTHER_UNIT.schedule
        if cause in OUTSIDE:
            continue
        changes |= FAULTS[cause].changes
        if cause == "schedule-shifted" and chance(random, 0.5):
            changes["early"] = -1
        key = FAULTS[cause].key
        if key is not None:
            factors[cause] = changes[key] = random_factor(random, cause, facts)
    return Rule(**changes), factors


def random_factor(random: Generator, cause: str, facts: Facts) -> float:
    """Draw a factor: any, near 1, or one that is a number of the training."""
    kind = random.random()
    if kind < 0.6:
        factor = power_of_ten(random, -2, 2)
        return -factor if cause == "penalty-scaled" and chance(random, 0.2) else factor
    if kind < 0.75:
        return 1 + power_of_ten(random, -6, -1)
    named = [0.5, 2.0, 1 / facts.batch, 1 / facts.rows, float(facts.batch)]
    if facts.mu:
        named += [1 - facts.mu, 1 / (1 - facts.mu)]
    return float(random.choice([one for one in named if one != 1]))


def random_report(
    random: Generator, spec: SpecDict, facts: Facts
) -> tuple[Reported, frozenset[str] | None]:
    """Draw what is reported as the loss, and the causes that this is."""
    kind = random.random()
    if kind < 0.65:
        if kind >= 0.6:
            return Reported("torch", wobble=float(random.choice([0.1, 1e-4]))), None
        base: Base = "own" if kind < 0.35 else "torch" if kind < 0.5 else "none"
        return Reported(base), frozenset()
    if kind < 0.7:
        return Reported("after"), frozenset({"loss-after-update"})
    decays = decays_of(spec)
    if kind < 0.8 and facts.batch * spec["accumulate"] < facts.rows:
        base = "epoch" if chance(random, 0.5) else "epoch by rows"
        return Reported(base), frozenset({"loss-epoch-mean"})
    if kind < 0.83 and spec["accumulate"] > 1:
        return Reported("last"), frozenset({"loss-last-micro-batch"})
    if not any(decays):
        return Reported("torch"), frozenset()
    base = "torch" if chance(random, 0.5) else "own"
    plain, factor, per_batch = chance(random, 0.8), power_of_ten(random, -2, 2), False
    if plain:
        factor = float(random.choice([1, 2, 0.5, 1 / facts.rows]))
        per_batch = chance(random, 0.3)
    if per_batch and factor < 0.5:
        factor = 1.0
    bias = 0.0 if chance(random, 0.4) else factor * decays[1]
    report = Reported(base, (factor * decays[0], bias), plain=plain, per_batch=per_batch)
    return report, frozenset({"penalty-in-loss"})
