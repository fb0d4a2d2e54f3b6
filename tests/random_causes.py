"""Random users' functions with planted causes, and what the diagnosis of each must say.

Run as a program it checks as many as one likes, and prints each fault and how long it took:

    python tests/random_causes.py --seed 0 --count 1000
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from regcheck import checking
from regcheck.checking import check
from regcheck.compare.comparison import Comparison, compare
from regcheck.compare.history import History
from regcheck.diagnosis.diagnose import diagnose
from regcheck.diagnosis.records import Diagnosis
from regcheck.diagnosis.replay import ByEntry, Explanation
from regcheck.problem.problem import Parameters
from regcheck.report.result import Report
from regcheck.trainers.sides import Sides
from regcheck.user_code.problem_api import UserProblem, user_problem
from tests.faults import FAULTS, OPEN, OUTSIDE
from tests.random_specs import (
    KINDS,
    SpecDict,
    chance,
    data_of,
    power_of_ten,
    random_batches,
    random_init,
    random_lr,
    random_target,
    without_some_biases,
)
from tests.reference import Training
from tests.rule import Base, Kept, Moment, Pair, Reported, Rule, Wrong
from tests.user_functions import WRONG, Code, schedule_of

Array = NDArray[np.floating]
Needs = frozenset[str]


class Facts(NamedTuple):
    """Numbers of a spec that a mistake may have in it."""

    rows: int
    batch: int
    mu: float


BIASED = frozenset({"bias-not-penalized", "bias-penalized", "clip-per-tensor", "update-sequential"})
"""The causes that a model without a bias cannot have."""


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


# --- what is drawn ------------------------------------------------------------------------------


def random_case(seed: int, folder: Path) -> Case:
    """Draw a spec and a user's function."""
    random = np.random.default_rng([seed, 2])
    causes, wrong = random_causes(random)
    needs = frozenset[str]().union(*(needs_of(cause) for cause in causes))
    spec, X, y = random_spec(random, needs, folder / f"{seed}.npz")
    if not BIASED.intersection(causes):
        spec = without_some_biases(spec, seed)
    facts = Facts(len(y), min(len(y), batch_of(spec, len(y))), momentum_of(spec))
    rule, factors = planted(random, causes, facts)
    report, reporting = random_report(random, spec, facts)
    size = X.size * spec["epochs"]
    start = None
    if "initial-parameters" in causes:
        start = (np.asarray(random.normal(size=X.shape[1])), np.asarray(random.normal()))
        if not has_bias(spec):
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


def needs_of(cause: str) -> Needs:
    """Say what a spec must have for a cause."""
    return OUTSIDE[cause] if cause in OUTSIDE else FAULTS[cause].needs


def random_causes(random: Generator) -> tuple[tuple[str, ...], str]:
    """Draw the causes of the update; or a mistake that is none."""
    kind = random.random()
    if kind < 0.08:
        return (), ""
    if kind < 0.22:
        return (), str(random.choice(sorted(WRONG)))
    names = sorted(FAULTS)
    if kind < 0.55:
        return (str(random.choice(names)),), ""
    if kind < 0.70:
        outside = str(random.choice(sorted(OUTSIDE)))
        return (outside,), ""
    while True:
        one, other = sorted(map(str, random.choice(names, size=2, replace=False)))
        if compatible(one, other):
            return (one, other), ""


def compatible(one: str, other: str) -> bool:
    """Say whether a pair can act at once, each with a meaning of its own."""
    keys = [{*FAULTS[name].changes, FAULTS[name].key} - {None} for name in (one, other)]
    needs = needs_of(one) | needs_of(other)
    alone = not {one, other} <= OPEN  # of two open factors no run tells the second's
    return keys[0].isdisjoint(keys[1]) and not {"bias-decay", "bias-free"} <= needs and alone


def random_spec(random: Generator, needs: Needs, file: Path) -> tuple[SpecDict, Array, Array]:
    """Draw a spec that has what is needed."""
    model, loss = KINDS[random.integers(len(KINDS))]
    X = random_columns(
        random, 6 if needs & {"micro-batches", "uneven", "batches", "shuffle"} else 1
    )
    y = random_target(random, model, X)
    rows, features = X.shape
    batch_size, parts = batches(random, rows, needs)
    per_epoch = math.ceil(math.ceil(rows / batch_size) / parts)
    steps = int(random.integers(1, 31)) if X.size < 50_000 else int(random.integers(1, 6))
    init = random_init(random, features)
    if "saturated" in needs:
        y = np.asarray(random.integers(2, size=rows), np.float64)
        model, loss, init = "logistic", "bce", saturating(random, X)
    spec: SpecDict = {
        "data": data_of(X, y, file),
        "model": model,
        "loss": loss,
        "init": init,
        "optimizer": random_optimizer(random, needs),
        "lr": random_lr(random, model, X, strange=False),
        "weight_decay": random_decay(random, needs),
        "epochs": max(1, steps // per_epoch),
        "batch_size": batch_size if batch_size < rows else "full",
        "accumulate": parts,
        "dtype": random_dtype(random, needs),
    }
    if "shuffle" in needs or chance(random, 0.3):
        spec["shuffle"] = {"seed": int(random.integers(1000))}
    if "schedule" in needs or chance(random, 0.15):
        spec["lr_schedule"] = random_schedule(random, spec["lr"])
    if needs & {"clip", "clip-norm"} or chance(random, 0.1):
        size = float(np.abs(X).max()) * power_of_ten(random, -2, 1)
        by_norm = "clip-norm" in needs or chance(random, 0.6)
        spec["clip_norm" if by_norm else "clip_value"] = size or 1.0
    return spec, X, y


def saturating(random: Generator, X: Array) -> SpecDict:
    """Draw a start at which some outputs are so large that BCELoss passes no gradient."""
    w = random.normal(size=X.shape[1])
    size = float(np.abs(X @ w).max()) or 1.0
    weight = np.asarray(power_of_ten(random, 1.7, 3) / size * w)
    return {"weight": weight.tolist(), "bias": 0.0}


def random_columns(random: Generator, least: int) -> Array:
    """Draw X: 1 to 5,000 rows, 1 to 64 columns with scales and offsets of their own."""
    rows = round(power_of_ten(random, math.log10(least), math.log10(5000)))
    features = round(power_of_ten(random, 0, math.log10(64)))
    X = random.normal(size=(rows, features))
    if chance(random, 0.1):
        X = np.round(X)
    if chance(random, 0.4):
        X += random.normal(size=features) * power_of_ten(random, -1, 2)
    if chance(random, 0.5):
        X *= 10 ** random.uniform(-3, 3, size=features)
    return np.asarray(X)


def batches(random: Generator, rows: int, needs: Needs) -> tuple[int, int]:
    """Draw a batch size, and how many of them make a step."""
    if not needs & {"micro-batches", "uneven", "batches"}:
        return random_batches(random, rows)
    batch_size = max(2, rows // int(random.integers(2, 8)))
    if "uneven" in needs:
        uneven = [size for size in range(2, rows) if rows % size and rows / size < 20]
        batch_size = int(random.choice(uneven))
    several = "micro-batches" in needs or ("batches" not in needs and chance(random, 0.2))
    parts = int(random.integers(2, 4)) if several else 1
    return batch_size, parts


def random_optimizer(random: Generator, needs: Needs) -> SpecDict:
    """Draw SGD's options."""
    if not needs & {"momentum", "nesterov", "dampening"} and chance(random, 0.6):
        return {"name": "sgd"}
    momentum = float(random.choice([0.5, 0.9, 0.99, round(random.uniform(0.1, 0.95), 3)]))
    options: SpecDict = {"name": "sgd", "momentum": momentum}
    if "nesterov" in needs:
        return options | {"nesterov": True}
    if "dampening" in needs or chance(random, 0.2):
        return options | {"dampening": float(random.choice([0.1, 0.5, 0.9]))}
    return options | {"nesterov": "momentum" not in needs and chance(random, 0.2)}


def random_decay(random: Generator, needs: Needs) -> Any:
    """Draw λ from 1e-6 to 1, often one for each tensor."""
    if "bias-free" in needs:
        return {"weight": power_of_ten(random, -6, 0), "bias": 0.0}
    if not needs & {"decay", "bias-decay"} and chance(random, 0.4):
        return 0
    if chance(random, 0.25):
        free = "bias-decay" not in needs and chance(random, 0.5)
        bias = 0.0 if free else power_of_ten(random, -6, 0)
        return {"weight": power_of_ten(random, -6, 0), "bias": bias}
    return power_of_ten(random, -6, 0)


def random_dtype(random: Generator, needs: Needs) -> str | dict[str, str]:
    """Draw float64 mostly."""
    if needs & {"float64", "saturated"} or chance(random, 0.75):
        return "float64"
    if chance(random, 0.5):
        return "float32"
    dtypes = ["float32", "float64"]
    random.shuffle(dtypes)
    return {"scratch": dtypes[0], "framework": dtypes[1]}


def random_schedule(random: Generator, lr: float) -> SpecDict:
    """Draw a schedule of the lr."""
    return (
        {"kind": "step", "every": 2, "factor": 0.5},
        {"kind": "exponential", "factor": 0.8, "per": "epoch"},
        {"kind": "cosine", "steps": 10, "floor": lr / 10},
        {"kind": "warmup", "steps": 5},
        {"kind": "list", "values": [lr, lr / 3, lr / 2, lr]},
    )[random.integers(5)]


def batch_of(spec: SpecDict, rows: int) -> int:
    """Give the rows of one micro-batch."""
    return rows if spec["batch_size"] == "full" else int(spec["batch_size"])


def has_bias(spec: SpecDict) -> bool:
    """Say whether a spec's model has a bias."""
    return bool(spec.get("bias", True))


def decays_of(spec: SpecDict) -> tuple[float, float]:
    """Give λ of the weight and of the bias, 0 where there is none."""
    decay = spec["weight_decay"]
    weight = decay["weight"] if isinstance(decay, dict) else decay
    bias = decay.get("bias", 0.0) if isinstance(decay, dict) else decay
    return weight, bias if has_bias(spec) else 0.0


def momentum_of(spec: SpecDict) -> float:
    """Give μ."""
    return float(spec["optimizer"].get("momentum", 0))


def planted(
    random: Generator, causes: Sequence[str], facts: Facts
) -> tuple[Rule, dict[str, float]]:
    """Put causes into torch's rule; gives the rule and the open factors in it."""
    changes: dict[str, Any] = {}
    factors: dict[str, float] = {}
    for cause in causes:
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
    if kind < 0.35:
        return Reported("own"), frozenset()
    if kind < 0.5:
        return Reported("torch"), frozenset()
    if kind < 0.6:
        return Reported("none"), frozenset()
    if kind < 0.65:
        return Reported("torch", wobble=float(random.choice([0.1, 1e-4]))), None
    if kind < 0.7:
        return Reported("after"), frozenset({"loss-after-update"})
    both = decays_of(spec)
    if kind < 0.8 and spec["batch_size"] != "full":
        base: Base = "epoch" if chance(random, 0.5) else "epoch by rows"
        return Reported(base), frozenset({"loss-epoch-mean"})
    if not any(both):
        return Reported("torch"), frozenset()
    base = "torch" if chance(random, 0.5) else "own"
    plain = chance(random, 0.8)
    factor = power_of_ten(random, -2, 2)
    per_batch = False
    if plain:
        factor = float(random.choice([1, 2, 0.5, 1 / facts.rows]))
        per_batch = chance(random, 0.3)
    if per_batch and factor < 0.5:
        factor = 1.0
    bias = 0.0 if chance(random, 0.4) else factor * both[1]
    report = Reported(base, (factor * both[0], bias), plain=plain, per_batch=per_batch)
    return report, frozenset({"penalty-in-loss"})


# --- what a run finds ---------------------------------------------------------------------------


@dataclass
class Seen:
    """A run, the user's problem in it, and the seconds that it and its diagnosis took.

    `used` are those that the process had, whatever else the machine did.
    """

    case: Case
    report: Report
    sides: Sides
    history: History
    problem: UserProblem
    seconds: float
    diagnosing: float
    used: float

    @property
    def diagnosis(self) -> Diagnosis:
        """Give the diagnosis of a run that diverged."""
        assert self.report.diagnosis is not None
        return self.report.diagnosis

    def limits(self, name: str) -> float:
        """Give the bounds that a tensor may differ by."""
        return float(self.report.spec.tolerance.of(name).limit_within)


def see(case: Case) -> Seen:
    """Check a case, and keep what passes by."""
    compared: list[tuple[Sides, History]] = []
    took = [0.0, 0.0]

    def watched(sides: Sides, *rest: Any) -> tuple[Comparison, History]:
        found, history = compare(sides, *rest)
        compared.append((sides, history))
        return found, history

    def timed(*arguments: Any) -> Diagnosis:
        start, used = time.perf_counter(), time.process_time()
        found = diagnose(*arguments)
        took[:] = time.perf_counter() - start, time.process_time() - used
        return found

    with patch.object(checking, "compare", watched), patch.object(checking, "diagnose", timed):
        start = time.perf_counter()
        report = check(case.spec, scratch=case.code.train)
        seconds = time.perf_counter() - start
    report.to_dict()
    ((sides, history),) = compared
    problem = user_problem(sides.problem, report.spec, framework=False)
    problem = replace(problem, X=case.X.astype(np.longdouble), y=case.y.astype(np.longdouble))
    return Seen(case, report, sides, history, problem, seconds, *took)


def exact_training(seen: Seen, rule: Rule, wrong: Wrong | None = None) -> Training:
    """Make a training in extended precision by a rule, with what spoils its gradient."""
    schedule = schedule_of(seen.case.spec, seen.problem.steps // seen.problem.epochs)
    return Training(seen.problem, rule, schedule, np.longdouble, wrong=wrong)


class Exact(NamedTuple):
    """One recorded step by a rule in extended precision: how far off the code's is, in limits.

    `loss` is torch's loss before the update.
    """

    update: float
    loss: float


def exactly(
    seen: Seen,
    rule: Rule,
    start: Parameters | None = None,
    by_entry: ByEntry | None = None,
) -> Iterator[Exact]:
    """Take each recorded step by a rule, without rounding, from the code's parameters.

    The first is taken from a start, where that is not the spec's. Some entries may have numbers of
    their own.
    """
    history = seen.history
    wrong = of_entries(seen, by_entry, bias="bias" in history.shapes)
    training = exact_training(seen, rule, wrong)
    rates = by_entry.values if by_entry is not None and by_entry.what == "lr" else 1.0
    limits = np.concatenate(
        [np.full(math.prod(shape), seen.limits(name)) for name, shape in history.shapes.items()]
    )
    dtypes = seen.report.dtypes
    u = max(float(np.finfo(dtype).eps) for dtype in dtypes) / 2
    kept = Kept()
    for step, record in enumerate(history.records()):
        at = history.flat(start) if step == 0 and start is not None else record.before
        before = training.pair(*(at[:-1], at[-1]) if training.bias else (at, None))
        taken = training.step(kept, before, step)
        kept = taken.kept
        after = np.append(taken.after[0], taken.after[1] if training.bias else [])
        after = record.before + rates * (after - record.before) if by_entry else after
        with np.errstate(all="ignore"):
            moved = np.abs(after - record.before)
            bound = record.bound + 2 * u * (step + 1) * moved  # what a longer step rounds more
            off = np.abs(after - record.scratch) / (bound * limits)
        known = np.isfinite(record.bound) & np.isfinite(record.scratch)
        largest = np.where(np.isnan(off), np.where(known, math.inf, 0), off).max()
        yield Exact(float(largest), taken.passed.loss)


def of_entries(seen: Seen, by_entry: ByEntry | None, *, bias: bool) -> Wrong | None:
    """Put each entry's own factor on the gradient, or λ in it, into a training."""
    if by_entry is None or by_entry.what == "lr":
        return None
    values = by_entry.values.astype(np.longdouble)
    weight, rest = (values[:-1], values[-1]) if bias else (values, np.longdouble(0))
    if by_entry.what == "gradient":
        return lambda moment: (weight * moment.gradient[0], rest * moment.gradient[1])
    own = decays_of(seen.case.spec)

    def decayed(moment: Moment) -> Pair:
        (gw, gb), (w, b) = moment.gradient, moment.at
        return gw + (weight - own[0]) * w, gb + (rest - own[1]) * b

    return decayed


# --- what it must find --------------------------------------------------------------------------

SURE = 2.5
"""Limits (of 8 bounds each) above which a difference must be found and explained: 20 bounds."""

NOISE = 0.5
"""Limits below which a difference is none."""

SLACK = 1.5
"""Limits that an explanation may leave in extended precision; the engine allows 1 in float64."""

SINGLE = 2.0**29
"""How much coarser float32 rounds than float64."""

SLOW = 5.0
"""Seconds that a diagnosis may take."""


def faults_of(seen: Seen) -> list[str]:
    """Say what is wrong with a run's verdict and its diagnosis."""
    found = []
    torch = list(exactly(seen, Rule()))
    largest = max((one.update for one in torch), default=0.0)
    divergence = seen.report.first_divergence
    finite = all(math.isfinite(one.update) for one in torch)
    if divergence is None and largest > 1 + NOISE and finite:
        found.append(f"not found: the code is {largest:.3g} limits off torch's rule")
    if divergence is not None and largest < NOISE:
        found.append(f"diverged, {largest:.3g} limits off torch's rule")
    if divergence is not None:
        found += faults_of_updates(seen, largest)
    found += faults_of_losses(seen, [one.loss for one in torch])
    if seen.used > SLOW:
        found.append(f"the diagnosis took {seen.used:.1f} s")
    return found


def faults_of_updates(seen: Seen, largest: float) -> list[str]:
    """Say what is wrong with the explanation of the updates."""
    case, found = seen.case, []
    explanations = seen.diagnosis.explanations
    for one in explanations:
        found += faults_of_explanation(seen, one)
    if found:
        return found
    told = [one.causes for one in explanations]
    if case.wrong:
        if explanations and not all(is_telling(seen, one) for one in explanations):
            found.append(f"{case.wrong} is explained by {told}, of which no step tells")
    elif explanations:
        hidden = {one.cause for one in seen.report.not_distinguished}
        shown = must_be_named(seen) and (len(case.causes) == 1 or not case.causes & hidden)
        if shown and not any(is_planted(case, one) for one in explanations):
            found.append(f"{sorted(case.causes)} is not among {told}")
    elif largest > SURE and must_be_named(seen):
        found.append(f"{sorted(case.causes)}, {largest:.3g} limits, is not named")
    return found


def is_telling(seen: Seen, one: Explanation) -> bool:
    """Say whether an explanation has more numbers to make than it is free to choose.

    A mistake that has no name may come to the very steps of a cause that has one, as where a wrong
    slope is 0.9 times the right one at every row. By luck it never does.
    """
    history = seen.history
    steps = slice(1, None) if "initial-parameters" in one.causes else slice(None)
    shown = history.all("scratch") - history.all("framework" if one.fits else "before")
    limits = history.all("bound") * seen.limits("weight")
    with np.errstate(all="ignore"):
        return int((np.abs(shown) > limits)[steps].sum()) > len(one.fits)


def must_be_named(seen: Seen) -> bool:
    """Say whether a run tells its causes from mistakes that have no name."""
    spec, causes = seen.case.spec, seen.case.causes
    if "precision" in causes and spec["loss"] == "bce":
        return False  # in float32 the slope fades out from z = 16 on, which is no rounding
    if "float32" in str(spec["dtype"]) and spec["loss"] == "bce" and len(causes) > 1:
        return False  # likewise, where two causes let z grow
    if {"clip_norm", "clip_value"} & set(spec) and causes & OPEN:
        return False  # a factor on what is clipped is no factor on the step
    if "update-sequential" in causes and causes & OPEN:
        return False  # nor is one on a gradient that is taken after it has acted
    if "initial-parameters" in seen.case.causes:
        # The first step may start anywhere: later ones must move.
        history = seen.history
        moved = np.abs(history.all("framework") - history.all("before"))[1:]
        return bool((moved > history.all("bound")[1:] * seen.limits("weight")).any())
    return all(np.isfinite(record.bound).all() for record in seen.history.records())


def is_planted(case: Case, one: Explanation) -> bool:
    """Say whether an explanation is what was planted, under any name that is as true.

    Some of several planted causes may be all that shows.
    """
    for cause, fit in one.fits.items():
        factor = case.factors.get(cause)
        slack = max(1e-6, 10 * fit.deviation)
        if factor is None or set(one.causes) != case.causes:
            continue
        if abs(fit.factor - factor) > slack * max(1, abs(factor)):
            return False
    ways = [{*case.causes}]
    for cause in case.causes & OPEN:
        ways += [{*case.causes} - {cause} | {name} for name in NAMED_FACTORS[cause]]
    return any(set(one.causes) <= way for way in ways)


NAMED_FACTORS: dict[str, tuple[str, ...]] = {
    "gradient-scaled": ("loss-halved", "loss-summed", "accumulation-not-averaged"),
    "learning-rate-scaled": (),
    "penalty-scaled": (
        "penalty-divided-by-batch",
        "penalty-divided-by-dataset",
        "penalty-doubled",
        "penalty-halved",
        "penalty-missing",
        "penalty-sign-flipped",
    ),
}
"""The causes that an open factor may be another name for, where they make the same steps."""


def faults_of_explanation(seen: Seen, one: Explanation) -> list[str]:
    """Say whether the rule that an explanation names makes the code's steps, without rounding."""
    if "row-order" in one.causes:
        # Where nothing moves much, an old gradient is that of the rows before.
        late = seen.case.wrong in ("stale", "stale-weight")
        known = "row-order" in seen.case.causes or late
        return [] if known else [f"{one.causes} though in order"]
    clipped = {"clip_norm", "clip_value"} & set(seen.case.spec)
    if clipped and one.by_entry is not None and one.by_entry.what != "lr":
        return []  # what is put into the gradient is clipped with it
    changes: dict[str, Any] = {}
    for cause in one.causes:
        if cause not in OUTSIDE:
            changes |= FAULTS[cause].changes
            key = FAULTS[cause].key
            if key is not None and cause in one.fits:
                changes[key] = one.fits[cause].factor
        if cause == "schedule-shifted":
            changes["early"] = one.change["lr_shift"]
    if one.weight_decay is not None:  # each tensor's own is told, in the place of a factor
        decays = dict(one.weight_decay)
        seen = replace(seen, problem=replace(seen.problem, weight_decay=decays))
    rule = Rule(**changes)
    start = seen.diagnosis.start if "initial-parameters" in one.causes else None
    steps = [step.update for step in exactly(seen, rule, start, one.by_entry)]
    if start is not None:
        steps = steps[1:]  # the bound of the first is that at the spec's start
    allowed = SLACK * gain(seen, rule) * (SINGLE if "precision" in one.causes else 1)
    largest = max(steps, default=0.0)
    return [f"{one.causes} leaves {largest:.3g} limits"] if largest > allowed else []


def gain(seen: Seen, rule: Rule) -> float:
    """Give how many times larger a rule makes the gradient, and so its rounding, at most."""
    spec, rows = seen.case.spec, len(seen.case.y)
    largest = abs(rule.half * rule.gradient * rule.rate)
    largest *= batch_of(spec, rows) if rule.reduce == "sum" else 1
    largest *= spec["accumulate"] if rule.micro_batches == "sum" else 1
    largest *= len(seen.history) if not rule.zeroed else 1
    if rule.early or rule.velocity == "lr inside":
        steps = range(1, seen.report.comparison.steps + 2)
        rates = [seen.history.schedule.lr_at(step) for step in steps]
        largest *= max(rates) / min(rate for rate in rates if rate)
    if rule.velocity in ("none", "dampened"):
        largest /= 1 - spec["optimizer"].get("dampening", 0)
    return max(1.0, largest)


def faults_of_losses(seen: Seen, torch: list[float]) -> list[str]:
    """Say what is wrong with what is said of the reported losses."""
    history, found = seen.history, []
    scratch, bound = history.loss("scratch"), history.loss("bound") * seen.limits("loss")
    with np.errstate(all="ignore"):
        off = np.abs(scratch - np.array(torch)) / bound
    off = off[np.isfinite(off)]
    largest = float(off.max(initial=0.0))
    first = seen.report.first_loss_divergence
    if first is None:
        return [f"loss: {largest:.3g} limits off, not found"] if largest > 1 + NOISE else []
    if largest < NOISE and len(off) == len(scratch):
        found.append(f"loss: diverged, {largest:.3g} limits off")
    reporting, expected = seen.diagnosis.reporting, seen.case.reporting
    if expected is None:
        # Strengths that are free to choose make as many losses, whatever these are.
        telling = reporting is not None and int((off > 1).sum()) > 2 * len(reporting.strengths)
        if reporting is not None and telling and largest > SURE:
            found.append(f"loss: simply wrong, explained by {reporting.causes}")
        return found
    if reporting is None:
        if largest > SURE and losses_must_be_explained(seen):
            found.append(f"loss: {sorted(expected)}, {largest:.3g} limits off, is not explained")
    elif not expected <= set(reporting.causes) and penalty_shows(seen):
        found.append(f"loss: {sorted(expected)} is taken for {reporting.causes}")
    return found


def penalty_shows(seen: Seen) -> bool:
    """Say whether a penalty in the loss, if there is one, is more than the loss's rounding."""
    report, history = seen.case.code.report, seen.history
    if not any(report.strengths):
        return True
    before = history.all("before")
    halves = [(before[:, part] ** 2).sum(axis=1) / 2 for part in history.slices.values()]
    # Without a bias, the second strength is 0.
    added = sum(k * half for k, half in zip(report.strengths, halves, strict=False))
    with np.errstate(all="ignore"):
        loss = np.maximum(1, np.abs(history.loss("scratch") / history.loss("framework")))
        shown = added / (history.loss("bound") * seen.limits("loss") * loss)
    rows = batch_of(seen.case.spec, len(seen.case.y)) if report.per_batch else 1
    coarser = SINGLE if "precision" in seen.case.causes else 1
    return bool(
        np.nanmax(shown, initial=0.0) > SURE * coarser * rows * seen.case.spec["accumulate"]
    )


def losses_must_be_explained(seen: Seen) -> bool:
    """Say whether the losses are those of a rule that is known, and the steps tell the rest."""
    report, history = seen.case.code.report, seen.history
    torch = report.base != "own" or not (seen.case.wrong or seen.case.causes)
    told = [set(one.causes) for one in seen.diagnosis.explanations]
    explained = seen.report.first_divergence is None or any(seen.case.causes <= one for one in told)
    hidden = {one.cause for one in seen.report.not_distinguished}
    if not torch and (seen.case.wrong or not explained or seen.case.causes & hidden):
        return False
    if not any(report.strengths) or report.plain:
        return len(history) > 0
    # Of a penalty of any strength, the parameters must show the shape.
    before = history.all("before")
    columns = np.column_stack(
        [(before[:, part] ** 2).sum(axis=1) for part in history.slices.values()]
    )
    columns = columns[:, columns.any(axis=0)] / history.loss("bound")[:, None]
    if not np.isfinite(columns).all() or len(columns) < 4 or not columns.size:
        return False
    values = np.linalg.svd(columns / np.linalg.norm(columns, axis=0), compute_uv=False)
    return bool(values.min() > 1e-6)


# --- the program --------------------------------------------------------------------------------


def run_case(seed: int) -> tuple[Case, Seen, list[str]]:
    """Draw, check and judge one case."""
    with tempfile.TemporaryDirectory() as folder:
        case = random_case(seed, Path(folder))
        seen = see(case)
    return case, seen, faults_of(seen)


def outcome(seen: Seen) -> str:
    """Say in a word what became of a run."""
    if seen.report.diagnosis is None:
        return seen.report.verdict
    if seen.report.first_divergence is None:
        return "loss explained" if seen.diagnosis.explained else "loss unexplained"
    return "explained" if seen.diagnosis.explanations else "unexplained"


def main() -> int:
    """Check many cases and print each fault, then what took longest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000)
    chosen = parser.parse_args()
    outcomes: Counter[str] = Counter()
    slow: list[tuple[float, float, int, str]] = []
    faulty = 0
    for seed in range(chosen.seed, chosen.seed + chosen.count):
        case, seen, faults = run_case(seed)
        outcomes[outcome(seen)] += 1
        slow.append((seen.diagnosing, seen.diagnosing / seen.seconds, seed, str(case)))
        if faults:
            faulty += 1
            print(f"seed {seed}: {case}", *faults, sep="\n    ", flush=True)
    print(f"{chosen.count} runs, {faulty} with faults; {dict(sorted(outcomes.items()))}")
    for seconds, share, seed, text in sorted(slow, reverse=True)[:5]:
        print(f"    {seconds:.2f} s, {share:.0%} of the run, seed {seed}: {text}")
    return 1 if faulty else 0


if __name__ == "__main__":
    sys.exit(main())
