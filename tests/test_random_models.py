"""Random specs of softmax and the mlp: no false alarm, and what is planted is found and named.

More of them: `pytest -n 2 tests/test_random_models.py --count 1000 --seed 1000`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.random import Generator

from regcheck.checking import check
from regcheck.trainers.measured.monte_carlo import share_alike
from tests.conftest import told
from tests.judged_specs import mismatched_faults, observe
from tests.random_conventions import different_keys
from tests.random_optimizers import DRAWN, RARE, chance, power_of_ten, random_decay
from tests.random_specs import (
    DTYPES,
    Array,
    random_batches,
    random_columns,
    random_schedule,
    without_bias,
    without_some_biases,
)

Spec = dict[str, Any]
Record = Callable[[str, object], None]

OPTIMIZERS = DRAWN | RARE


def targets(random: Generator, head: str, X: Array) -> tuple[Array, Any]:
    """Draw targets of a head, and a loss that goes with it."""
    z = 4 * X @ random.normal(size=(X.shape[1], int(random.integers(2, 7))))
    z /= max(1e-300, float(np.abs(X).max()))
    if head == "linear":
        return z[:, 0] * power_of_ten(random, -2, 2) + random.normal(size=len(X)), "mse"
    if head == "logistic":
        losses = ("bce", "bce_with_logits", "mse")
        return (z[:, 0] > random.normal(size=len(X))).astype(float), str(random.choice(losses))
    labels = (z + random.gumbel(size=z.shape)).argmax(axis=1)
    y: Array = np.unique(labels, return_inverse=True)[1].astype(np.float64)
    options: Spec = {}
    if chance(random, 0.3):
        options["label_smoothing"] = float(random.choice([0.1, 0.3, 1.0]))
    if chance(random, 0.3):
        options["weight"] = (10 ** random.uniform(-1, 1, size=int(y.max()) + 1)).tolist()
    return y, {"cross_entropy": options} if options else "cross_entropy"


def random_spec(seed: int, folder: Path) -> Spec:
    """Draw a spec whose sides agree."""
    random = np.random.default_rng([seed, 77])
    X = random_columns(random, rows=(4, 800), features=16, constant=True)
    head = str(random.choice(["softmax", "softmax", "logistic", "linear"]))
    y, loss = targets(random, head, X)
    np.savez(folder / f"{seed}.npz", X=X, y=y)
    model: Any = "softmax"
    if head != "softmax" or chance(random, 0.6):
        hidden = random.integers(1, 20, size=int(random.integers(1, 4))).tolist()
        activation = str(random.choice(["tanh", "relu", "sigmoid", "gelu"]))
        model = {"mlp": {"hidden": hidden, "activation": activation, "head": head}}
    batch_size, micro_batches = random_batches(random, len(X))
    steps = math.ceil(math.ceil(len(X) / batch_size) / micro_batches)
    optimizer = OPTIMIZERS[str(random.choice(sorted(OPTIMIZERS)))](random)
    spec: Spec = {
        "data": {"npz": str(folder / f"{seed}.npz"), "standardize": chance(random, 0.7)},
        "model": model,
        "loss": loss,
        "init": {"normal": {"std": power_of_ten(random, -2, 0.3), "seed": seed}},
        "optimizer": optimizer,
        "lr": power_of_ten(random, -4, -1),
        "weight_decay": 0.0 if optimizer["name"] == "rprop" else random_decay(random),
        "epochs": max(1, int(random.integers(5, 40)) // steps),
        "batch_size": batch_size if batch_size < len(X) else "full",
        "accumulate": micro_batches,
        "dtype": DTYPES[random.integers(len(DTYPES))],
    }
    if chance(random, 0.3):
        spec["clip_norm"] = power_of_ten(random, -2, 1)
    if chance(random, 0.3):
        spec["lr_schedule"] = random_schedule(random, spec["lr"], strange=False)
    return without_some_biases(spec, seed)


@pytest.mark.search(sample=6, whole=300)
def test_random_model_raises_no_alarm(seed: int, tmp_path: Path, record_property: Record) -> None:
    report = check(random_spec(seed, tmp_path))
    record_property("specs of softmax and the mlp", report.verdict)
    record_property("ratio", report.smallest_tolerance().rounding)

    if report.verdict == "diverged":  # float32 overflows alone, where float64 does not
        at = told(report.first_divergence).at
        assert len(set(report.dtypes)) == 2
        assert math.isfinite(at.scratch) != math.isfinite(at.framework)
        return
    if report.comparison.first_unjudged or report.comparison.losses.first_unjudged:
        return  # a training that blows up
    assert report.verdict == "equivalent" or report.reason == report.comparison.power.reason()


def mismatched_spec(seed: int, folder: Path) -> Spec:
    """Draw a spec whose scratch side differs by one key of the convention, or two."""
    random, spec = np.random.default_rng([seed, 78]), random_spec(seed, folder)
    changes = different_keys(random, spec["optimizer"])
    del changes["update_order"]  # which is of one-layer models
    if spec["optimizer"]["name"] == "rprop":  # which has no weight decay
        changes = {key: changes[key] for key in ("loss_factor", "loss_reduction")}
    elif not spec["weight_decay"]:
        spec["weight_decay"] = power_of_ten(random, -6, 0)
    keys = random.choice(sorted(changes), size=random.integers(1, 3), replace=False)
    spec["convention"] = {str(key): changes[str(key)] for key in keys}
    return spec if spec.get("bias", True) else without_bias(spec)


@pytest.mark.search(sample=4, whole=200)
def test_mismatched_model_diverges_at_its_first_clear_step(
    seed: int, tmp_path: Path, record_property: Record
) -> None:
    observed = observe(mismatched_spec(seed, tmp_path))
    record_property("mismatched specs of softmax and the mlp", observed.report.verdict)

    assert mismatched_faults(observed) == []


PLANTED: dict[str, Spec] = {
    "loss-halved": {"loss_factor": 0.5},
    "loss-summed": {"loss_reduction": "sum"},
    "penalty-divided-by-batch": {"divide_penalty_by": "batch"},
    "penalty-doubled": {"penalty_factor": 2.0},
    "penalty-norm-not-squared": {"penalty_norm": "unsquared"},
}


@pytest.mark.search(sample=3, whole=200)
def test_fault_planted_in_a_random_model_is_named(
    seed: int, tmp_path: Path, record_property: Record
) -> None:
    planted_fault_is_named(seed, tmp_path, record_property)


def test_fault_is_named_though_rounding_passes_a_derived_bound(
    tmp_path: Path, record_property: Record
) -> None:
    planted_fault_is_named(507, tmp_path, record_property)


def planted_fault_is_named(seed: int, tmp_path: Path, record_property: Record) -> None:
    """Check a random model with a fault planted in it."""
    spec = random_spec(seed, tmp_path)
    cause = sorted(PLANTED)[seed % len(PLANTED)]
    spec |= {"dtype": "float64", "convention": PLANTED[cause]}
    spec["weight_decay"] = spec["weight_decay"] or 0.05
    if spec["optimizer"]["name"] == "rprop":  # which has no weight decay
        spec["optimizer"] = "sgd"
    report = check(spec)
    record_property("faults in softmax and the mlp", report.verdict)

    diagnosis = report.diagnosis
    if diagnosis is not None and report.first_divergence is None:
        # Steps of one size whatever the gradient's hide a factor; the reported loss has it alone.
        assert diagnosis.causes == ("reported-loss-scaled",)
        assert cause.startswith("loss-")
    elif report.verdict == "diverged":
        assert any(cause in one.causes for one in told(diagnosis).explanations)
    else:
        hidden = [one.cause for one in report.not_distinguished]
        assert cause in hidden or report.verdict == "inconclusive"


def test_share_of_terms_alike_is_none_where_numbers_are_infinite() -> None:
    assert share_alike(torch.full((600,), math.inf, dtype=torch.float64), 1e-9) == 0
    assert share_alike(torch.full((600,), math.nan, dtype=torch.float64), 1e-9) == 0
    assert share_alike(torch.ones(600, dtype=torch.float64), 1e-9) == 1
