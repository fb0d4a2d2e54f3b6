"""Random users' functions with one factor 1 + δ in them, and what the diagnosis of each must say.

δ is from 1e-12 to 1e-6, of either sign, and stands on the lr, the gradient, λ, or the number of
rows that something is divided by. Run as a program it checks as many as one likes, and prints each
fault:

    python tests/random_factors.py --seed 0 --count 1000
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from regcheck import checking
from regcheck.checking import check
from regcheck.compare.comparison import Comparison, compare
from regcheck.compare.history import History
from regcheck.diagnosis.replay import Explanation
from regcheck.report.result import Report
from regcheck.spec import Spec
from regcheck.user_code.problem_api import UserProblem
from tests.random_specs import SpecDict, chance, data_of, power_of_ten, random_batches

Array = NDArray[np.float64]

PLACES: dict[str, frozenset[str]] = {
    "lr": frozenset({"learning-rate-scaled"}),
    "gradient": frozenset({"gradient-scaled"}),
    "λ": frozenset({"penalty-scaled"}),
    "n of the gradient": frozenset({"gradient-scaled"}),
    "n of gradient and penalty": frozenset({"learning-rate-scaled"}),
}
"""Where the factor stands, and the cause that this is."""

SAME = frozenset({"learning-rate-scaled", "gradient-scaled"})
"""What is one and the same where there is no penalty, or none that shows."""


@dataclass
class Case:
    """A spec, and the factor in the user's function that is checked against it."""

    spec: SpecDict
    place: str
    delta: float

    def __str__(self) -> str:
        shown = {key: value for key, value in self.spec.items() if key not in ("data", "init")}
        return f"[{self.place} times 1 + {self.delta:.4g}] {shown}"

    @property
    def factors(self) -> tuple[float, float]:
        """Give what the gradient and the penalty of each step are multiplied by."""
        by = 1 + self.delta
        if self.place.startswith("n "):
            by = 1 / by
        both = self.place in ("lr", "n of gradient and penalty")
        return (by if self.place != "λ" else 1.0, by if both or self.place == "λ" else 1.0)

    def train(self, problem: UserProblem) -> Iterator[dict[str, Any]]:
        """Train as users do, with the factor in its place."""
        at = {place: 1 + self.delta if place == self.place else 1.0 for place in PLACES}
        w, b = problem.initial["weight"], problem.initial["bias"]
        v, c = np.zeros_like(w), np.zeros_like(b)
        assert isinstance(problem.weight_decay, float)
        lr, decay = problem.lr * at["lr"], problem.weight_decay * at["λ"]
        mu = problem.optimizer["momentum"]
        for rows in problem.batches:
            X, y = problem.X[rows], problem.y[rows]
            z = X @ w + b
            r = 2 * (z - y) if problem.model == "linear" else 1 / (1 + np.exp(-z)) - y
            r = r * at["gradient"]
            n = len(y) * at["n of the gradient"]
            if self.place == "n of gradient and penalty":
                n = len(y) * at[self.place]
                gw, gb = (X.T @ r + decay * len(y) * w) / n, (r.sum() + decay * len(y) * b) / n
            else:
                gw, gb = X.T @ r / n + decay * w, r.sum() / n + decay * b
            v, c = mu * v + gw, mu * c + gb
            w, b = w - lr * v, b - lr * c
            yield {"weight": w, "bias": b}


def random_case(seed: int, folder: Path) -> Case:
    """Draw a spec, and a factor in it."""
    random = np.random.default_rng([seed, 3])
    rows, features = round(power_of_ten(random, 0.3, 3)), int(random.integers(1, 9))
    X = random.normal(size=(rows, features)) * 10 ** random.uniform(-1, 1, size=features)
    z = X @ (random.normal(size=features) / np.abs(X).max()) + random.normal()
    model = str(random.choice(["linear", "logistic"]))
    noisy = z + random.normal(size=rows)
    y = noisy if model == "linear" else (noisy > 0).astype(np.float64)
    batch_size = random_batches(random, rows)[0]
    place = str(random.choice(sorted(PLACES)))
    decayed = place == "λ" or chance(random, 0.7)
    curvature = 1 + float(np.mean(np.einsum("ij,ij->i", X, X)))
    spec: SpecDict = {
        "data": data_of(X, y, folder / f"{seed}.npz"),
        "model": model,
        "loss": "mse" if model == "linear" else "bce_with_logits",
        "init": {
            "weight": random.normal(size=features).tolist(),
            "bias": random.normal(size=1).tolist(),
        },
        "lr": power_of_ten(random, -2, 0) / curvature,
        "weight_decay": power_of_ten(random, -3, 0) if decayed else 0,
        "epochs": int(random.integers(2, 31)),
        "batch_size": batch_size if batch_size < rows else "full",
    }
    if chance(random, 0.3):
        spec["optimizer"] = {"name": "sgd", "momentum": float(random.choice([0.5, 0.9]))}
    delta = power_of_ten(random, -12, -6) * float(random.choice([-1, 1]))
    return Case(spec, place, delta)


# --- what a run finds, and what it must find ------------------------------------------------------


@dataclass
class Seen:
    """A run, and the largest effect of the factor in it, in limits."""

    case: Case
    report: Report
    effect: float


def see(case: Case) -> Seen:
    """Check a case, and measure what its factor does."""
    histories: list[History] = []

    def watched(*arguments: Any) -> tuple[Comparison, History]:
        found, history = compare(*arguments)
        histories.append(history)
        return found, history

    with patch.object(checking, "compare", watched):
        report = check(case.spec, scratch=case.train)
    return Seen(case, report, float(effect(case, report.spec, *histories).max(initial=0.0)))


def effect(case: Case, spec: Spec, history: History) -> Array:
    """Give what the factor adds to each step, in limits.

    d_t = μ d_(t−1) + (α − 1) g_t + (κ − 1) λ w_t, and the step differs by lr d_t.
    """
    alpha, kappa = case.factors
    added = (alpha - 1) * history.all("gradient")
    added = added + (kappa - 1) * case.spec["weight_decay"] * history.all("before")
    for step in range(1, len(added)):
        added[step] += spec.optimizer.momentum * added[step - 1]
    found: Array = np.abs(spec.lr * added) / (8 * history.all("bound"))
    return found


NOISE = 0.5
"""Limits below which an effect is none, and what rounding may take from or add to one limit."""

SURE = 2.0
"""Limits above which an effect must be explained: what is left without it is no rounding."""


def faults_of(seen: Seen) -> list[str]:
    """Say what is wrong with a run's verdict and its diagnosis."""
    found = []
    diverged = seen.report.first_divergence is not None
    if not diverged and seen.effect > 1 + NOISE:
        found.append(f"not found: {seen.effect:.3g} limits")
    if diverged and seen.effect < NOISE:
        found.append(f"diverged: {seen.effect:.3g} limits")
    diagnosis = seen.report.diagnosis
    if not diverged or diagnosis is None:
        return found
    named = PLACES[seen.case.place]
    told = [one.causes for one in diagnosis.explanations]
    if diagnosis.best is None:
        if seen.effect > SURE:
            found.append(f"not explained: {seen.effect:.3g} limits, {diagnosis.evidence}")
    elif not any(named.issuperset(one) for one in told):
        found.append(f"taken for {told}: {seen.effect:.3g} limits")
    elif any(len(one) > 1 for one in told) or not is_factor(seen, diagnosis.best):
        found.append(f"{sorted(named)} is beside {told}: {seen.effect:.3g} limits")
    for one in diagnosis.explanations:
        found += wrong_factor(seen.case, one)
    return found


def is_factor(seen: Seen, best: Explanation) -> bool:
    """Say whether the first explanation is the factor, under a name that is as true."""
    named = PLACES[seen.case.place]
    names = SAME if named & SAME else named
    return len(best.causes) == 1 and names.issuperset(best.causes)


def wrong_factor(case: Case, one: Explanation) -> list[str]:
    """Say which fitted factor is not the one that is there."""
    alpha, kappa = case.factors
    found = []
    for cause, fit in one.fits.items():
        factor = kappa if cause == "penalty-scaled" else alpha
        if set(one.causes) == PLACES[case.place] and not fit.is_near(factor):
            found.append(f"{cause}: 1 + {fit.factor - 1:.4g} ± {fit.deviation:.1g}")
    return found


# --- the program --------------------------------------------------------------------------------


def run_case(seed: int) -> tuple[Seen, list[str]]:
    """Draw, check and judge one case."""
    with tempfile.TemporaryDirectory() as folder:
        seen = see(random_case(seed, Path(folder)))
    return seen, faults_of(seen)


def outcome(seen: Seen) -> str:
    """Say in a word what became of a run."""
    if seen.report.diagnosis is None:
        return seen.report.verdict
    return "explained" if seen.report.diagnosis.explanations else "unexplained"


def main() -> int:
    """Check many cases and print each fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000)
    chosen = parser.parse_args()
    outcomes: Counter[str] = Counter()
    faulty = 0
    for seed in range(chosen.seed, chosen.seed + chosen.count):
        seen, faults = run_case(seed)
        outcomes[outcome(seen)] += 1
        if faults:
            faulty += 1
            print(f"seed {seed}: {seen.case}", *faults, sep="\n    ", flush=True)
    print(f"{chosen.count} runs, {faulty} with faults; {dict(sorted(outcomes.items()))}")
    return 1 if faulty else 0


if __name__ == "__main__":
    sys.exit(main())
