"""Random users' functions with one factor 1 + δ: it is named as that factor, never as others.

δ is from 1e-12 to 1e-6, of either sign, and stands on the lr, the gradient or λ; every third time
the optimizer may be any. More of them:
`pytest -n 2 tests/test_random_factors.py --count 5000 --seed 1000`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from regcheck.diagnosis.records import Explanation
from regcheck.diagnosis.replay import Replay
from regcheck.numerics.least_squares import Fit
from regcheck.rules.causes.cause import Change
from tests.exact_steps import Seen, exactly, see
from tests.faults import FAULTS, OPEN
from tests.judged_functions import faults_of
from tests.random_functions import Case
from tests.random_optimizers import chance, power_of_ten, random_optimizer
from tests.random_specs import SpecDict, data_of, random_batches
from tests.rule import Reported, Rule
from tests.user_functions import Code

Record = Callable[[str, object], None]

SAME = frozenset({"learning-rate-scaled", "gradient-scaled"})
"""What is one and the same where there is no penalty, or none that shows."""


def same(seen: Seen) -> frozenset[str]:
    """Return what a factor may be another name for.

    An optimizer that divides by the gradient's size has options of the same effect, such as ε.
    """
    plain = seen.case.spec["optimizer"]["name"] == "sgd"
    return SAME if plain else SAME | {"option-differs"}


SURE = 2.0
"""Limits above which an effect must be explained: what is left without it is no rounding."""


def random_case(seed: int, folder: Path) -> Case:
    """Draw a spec, and a factor in the user's function that is checked against it."""
    random = np.random.default_rng([seed, 3])
    rows, features = round(power_of_ten(random, 0.3, 3)), int(random.integers(1, 9))
    X = random.normal(size=(rows, features)) * 10 ** random.uniform(-1, 1, size=features)
    z = X @ (random.normal(size=features) / np.abs(X).max()) + random.normal()
    model = str(random.choice(["linear", "logistic"]))
    noisy = z + random.normal(size=rows)
    y = noisy if model == "linear" else (noisy > 0).astype(np.float64)
    batch_size = random_batches(random, rows)[0]
    cause = str(random.choice(sorted(OPEN)))
    decayed = cause == "penalty-scaled" or chance(random, 0.7)
    curvature = 1 + float(np.mean(np.einsum("ij,ij->i", X, X)))
    momentum = float(random.choice([0.5, 0.9])) if chance(random, 0.3) else 0.0
    optimizer, lr = {"name": "sgd", "momentum": momentum}, power_of_ten(random, -2, 0) / curvature
    if seed % 3 == 2:
        optimizer, lr = random_optimizer(random), power_of_ten(random, -4, -1)
    spec: SpecDict = {
        "data": data_of(X, y, folder / f"{seed}.npz"),
        "model": model,
        "loss": "mse" if model == "linear" else "bce_with_logits",
        "init": {
            "weight": random.normal(size=features).tolist(),
            "bias": random.normal(size=1).tolist(),
        },
        "optimizer": optimizer,
        "lr": lr,
        "weight_decay": power_of_ten(random, -3, 0) if decayed else 0,
        "epochs": int(random.integers(2, 31)),
        "batch_size": batch_size if batch_size < rows else "full",
        "accumulate": 1,
        "dtype": "float64",
    }
    factor = 1 + power_of_ten(random, -12, -6) * float(random.choice([-1, 1]))
    code = Code(spec, FAULTS[cause].rule(factor), Reported("none"))
    return Case(spec, X, y, code, frozenset({cause}), frozenset(), {cause: factor})


def faults_near_one(seen: Seen) -> list[str]:
    """Return what is wrong with a run, and what tells a factor near 1 from others."""
    found = faults_of(seen)
    if seen.report.first_divergence is None:
        return found
    (cause,) = seen.case.causes
    told = [one.causes for one in seen.diagnosis.explanations]
    effect = max(step.update for step in exactly(seen, Rule()))
    if not told:
        sure = effect > SURE
        return [*found, f"{cause} is not explained: {effect:.3g} limits"] if sure else found
    if (cause,) not in told:
        found.append(f"taken for {told}: {effect:.3g} limits")
    elif any(len(one) > 1 for one in told) or told[0][0] not in same(seen) | {cause}:
        found.append(f"{cause} is beside {told}: {effect:.3g} limits")
    found += [fault for one in seen.diagnosis.explanations for fault in wrong_factor(seen, one)]
    return found


def wrong_factor(seen: Seen, one: Explanation) -> list[str]:
    """Return which fitted factor is not the one that is there."""
    return [
        f"{cause}: 1 + {fit.factor - 1:.4g} ± {fit.deviation:.1g}"
        for cause, fit in one.fits.items()
        if set(one.causes) == seen.case.causes and not fit.is_near(seen.case.factors[cause])
    ]


@pytest.mark.slow
@pytest.mark.search(sample=3, whole=200)
def test_factor_near_one_is_named_as_what_it_is(
    seed: int, tmp_path: Path, record_property: Record
) -> None:
    seen = see(random_case(seed, tmp_path))
    record_property("factors near 1", seen.outcome())
    print(seen.case)

    assert faults_near_one(seen) == []


@pytest.mark.slow
def test_random_factors_come_to_every_place_and_outcome(tmp_path: Path) -> None:
    cases = [random_case(seed, tmp_path) for seed in range(40)]
    deltas = [factor - 1 for case in cases for factor in case.factors.values()]

    assert {cause for case in cases for cause in case.causes} == OPEN
    assert {delta > 0 for delta in deltas} == {True, False}
    assert min(map(abs, deltas)) < 1e-11
    assert max(map(abs, deltas)) > 1e-7
    assert {see(cases[seed]).outcome() for seed in (0, 14)} == {"equivalent", "explained"}


@pytest.mark.exhaustive
@pytest.mark.slow
def test_factor_that_is_taken_for_one_is_caught(tmp_path: Path) -> None:
    # As where a billionth of the factor was its slack: then sets of others were found for it.
    fit = Replay.fit

    def rounded(replay: Replay, change: Change, key: str) -> Fit | None:
        found = fit(replay, change, key)
        return None if found is None or abs(found.factor - 1) < 1e-9 else found

    cases = [random_case(seed, tmp_path) for seed in range(60)]
    tiny = [case for case in cases if all(abs(f - 1) < 1e-9 for f in case.factors.values())]
    with patch.object(Replay, "fit", rounded):
        faults = [fault for case in tiny[:8] for fault in faults_near_one(see(case))]

    assert any(fault.startswith("taken for") for fault in faults)
