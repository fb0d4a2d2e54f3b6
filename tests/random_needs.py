"""Random specs that have what a fault needs to act."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from tests.faults import FAULTS, OUTSIDE
from tests.random_optimizers import chance, power_of_ten, random_decay, random_optimizer
from tests.random_specs import (
    KINDS,
    SpecDict,
    data_of,
    random_batches,
    random_columns,
    random_init,
    random_lr,
    random_schedule,
    random_target,
)

Array = NDArray[np.floating]
Needs = frozenset[str]

NEEDS: dict[str, Needs] = OUTSIDE | {cause: one.needs for cause, one in FAULTS.items()}
"""What a spec must have for each cause of the update."""


def random_spec(random: Generator, needs: Needs, file: Path) -> tuple[SpecDict, Array, Array]:
    model, loss = KINDS[random.integers(len(KINDS))]
    least = 6 if needs & {"micro-batches", "uneven", "uneven-steps", "batches", "shuffle"} else 1
    X = random_columns(random, rows=(least, 5000), features=64, constant=False)
    y = random_target(random, model, X)
    rows, features = X.shape
    batch_size, accumulate = batches(random, rows, needs)
    per_epoch = math.ceil(math.ceil(rows / batch_size) / accumulate)
    steps = int(random.integers(1, 31)) if X.size < 50_000 else int(random.integers(1, 6))
    init, optimizer = random_init(random, features), random_optimizer(random, needs)
    if "saturated" in needs:
        y = np.asarray(random.integers(2, size=rows), np.float64)
        model, loss, init = "logistic", "bce", saturating(random, X)
    spec: SpecDict = {
        "data": data_of(X, y, file),
        "model": model,
        "loss": loss,
        "init": init,
        "optimizer": optimizer,
        "lr": random_lr(random, optimizer, model, X, strange=False),
        "weight_decay": random_decay(random, none=0.4, low=-6, needs=needs),
        "epochs": max(2 if "epochs" in needs else 1, steps // per_epoch),
        "batch_size": batch_size if batch_size < rows else "full",
        "accumulate": accumulate,
        "dtype": random_dtype(random, needs),
    }
    if "shuffle" in needs or chance(random, 0.3):
        spec["shuffle"] = {"seed": int(random.integers(1000))}
    if "schedule" in needs or chance(random, 0.15):
        spec["lr_schedule"] = random_schedule(random, spec["lr"], strange=False)
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


def batches(random: Generator, rows: int, needs: Needs) -> tuple[int, int]:
    """Draw a batch size, and how many of them make a step."""
    if not needs & {"micro-batches", "uneven", "uneven-steps", "batches"}:
        return random_batches(random, rows)
    batch_size = max(2, rows // int(random.integers(2, 8)))
    if needs & {"uneven", "uneven-steps"}:
        uneven = [size for size in range(2, rows) if rows % size and rows / size < 20]
        batch_size = int(random.choice(uneven))
    if "uneven-steps" in needs:
        parts = math.ceil(rows / batch_size)  # the smaller last one is in a step with others
        together = [count for count in range(2, parts + 1) if parts % count != 1]
        return batch_size, int(random.choice(together))
    several = "micro-batches" in needs or ("batches" not in needs and chance(random, 0.2))
    return batch_size, int(random.integers(2, 4)) if several else 1


def random_dtype(random: Generator, needs: Needs) -> str | dict[str, str]:
    """Draw float64 mostly."""
    if needs & {"float64", "saturated"} or chance(random, 0.75):
        return "float64"
    if chance(random, 0.5):
        return "float32"
    dtypes = ["float32", "float64"]
    random.shuffle(dtypes)
    return {"scratch": dtypes[0], "framework": dtypes[1]}
