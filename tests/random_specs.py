"""Random specs, matched and mismatched, and what is drawn for other searches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from tests.random_conventions import decays, different_keys, equal_convention
from tests.random_optimizers import (
    WORKED_OUT,
    Options,
    chance,
    muon,
    power_of_ten,
    random_decay,
    random_optimizer,
    with_rare_optimizer,
)

Array = NDArray[np.floating]
SpecDict = dict[str, Any]
Tensors = Mapping[str, Array]

DTYPES: tuple[str | dict[str, str], ...] = (
    "float32",
    "float64",
    {"scratch": "float64", "framework": "float32"},
    {"scratch": "float32", "framework": "float64"},
)
KINDS = (
    ("linear", "mse"),
    ("logistic", "bce"),
    ("logistic", "bce_with_logits"),
    ("logistic", "mse"),
)
CURVATURE = {"linear": 2.0, "logistic": 0.25}
INLINE = 200
"""Numbers in X up to which it stands in the spec itself; larger ones go to a file."""


def matched_spec(seed: int, folder: Path) -> SpecDict:
    """Make a spec whose two sides follow the same rule, whatever its convention is called."""
    random = np.random.default_rng([seed, 0])
    spec, rows = random_training(random, folder / f"{seed}.npz", strange=True)
    spec = with_muon(with_rare_optimizer(spec, seed, WORKED_OUT), seed)
    spec["convention"] = equal_convention(random, spec, rows)
    return without_some_biases(spec, seed)


def mismatched_spec(seed: int, folder: Path, needs: frozenset[str] = frozenset()) -> SpecDict:
    """Make a spec whose scratch side differs by one key of the convention, or two.

    `needs` are those of the optimizer.
    """
    random = np.random.default_rng([seed, 1])
    spec, _ = random_training(random, folder / f"{seed}.npz", strange=False, needs=needs)
    spec = with_rare_optimizer(spec, seed, needs | WORKED_OUT)
    if not decays(spec) and spec["optimizer"]["name"] != "rprop":
        spec["weight_decay"] = power_of_ten(random, -8, 0)
    changes = different_keys(random, spec["optimizer"])
    keys = random.choice(sorted(changes), size=random.integers(1, 3), replace=False)
    spec["convention"] = {str(key): changes[str(key)] for key in keys}
    return without_some_biases(spec, seed)


# --- what is drawn ------------------------------------------------------------------------------

BIAS_KEYS = ("penalize_bias", "update_order")
"""Keys of the convention that are about the bias."""


def without_some_biases(spec: SpecDict, seed: int) -> SpecDict:
    """Take the bias out of the model of every seventh spec or so, whatever else was drawn."""
    return without_bias(spec) if chance(np.random.default_rng([seed, 99]), 0.15) else spec


NEEDS_OF_MUON = """
apart batches clip clip-norm decay epochs float64 matrices micro-batches remembering saturated
schedule shuffle uneven uneven-steps
"""
OF_MUON = frozenset(NEEDS_OF_MUON.split())
"""What Muon has of what a cause may need."""


def with_muon(spec: SpecDict, seed: int, needs: frozenset[str] = frozenset()) -> SpecDict:
    """Put Muon into every twentieth spec or so, without a bias, if it has what is needed."""
    random = np.random.default_rng([seed, 78])
    if not (chance(random, 0.05) and needs <= OF_MUON):
        return spec
    return without_bias(spec | {"optimizer": muon(random)})


def without_bias(spec: SpecDict) -> SpecDict:
    """Take the bias out of a spec's model, and out of all that is said of it."""
    changed = spec | {"bias": False}
    for key, gone in (("init", ["bias"]), ("weight_decay", ["bias"]), ("convention", BIAS_KEYS)):
        if isinstance(spec.get(key), dict):
            kept = {name: value for name, value in spec[key].items() if name not in gone}
            changed[key] = kept
    return changed


def random_training(
    random: Generator, file: Path, *, strange: bool, needs: frozenset[str] = frozenset()
) -> tuple[SpecDict, int]:
    """Draw everything but the convention; `strange` lets in overflow, denormals and lr 0."""
    model, loss = KINDS[random.integers(len(KINDS))]
    X = random_columns(random, rows=(1, 8192), features=128, constant=True)
    if strange and chance(random, 0.06):
        X = np.clip(X * power_of_ten(random, -42, 30), -3e38, 3e38)
    y = random_target(random, model, X)
    rows, features = X.shape
    batch_size, micro_batches = random_batches(random, rows)
    per_epoch = math.ceil(math.ceil(rows / batch_size) / micro_batches)
    steps = int(random.integers(5, 41)) if rows * features < 100_000 else 5
    optimizer = random_optimizer(random, needs)
    epochs = max(1, steps // per_epoch)
    spec: SpecDict = {
        "data": data_of(X, y, file),
        "model": model,
        "loss": loss,
        "init": random_init(random, features),
        "optimizer": optimizer,
        "lr": random_lr(random, optimizer, model, X, strange=strange),
        "weight_decay": random_decay(random),
        "epochs": epochs,
        "batch_size": batch_size if batch_size < rows else "full",
        "accumulate": micro_batches,
        "dtype": DTYPES[random.integers(len(DTYPES))],
    }
    if chance(random, 0.4):
        spec["shuffle"] = {"seed": int(random.integers(1000))}
    if batch_size < rows and chance(random, 0.1):
        spec["drop_last"] = True
    if chance(random, 0.3):
        spec["lr_schedule"] = random_schedule(random, spec["lr"], strange=strange)
    if chance(random, 0.25):
        # Around the norm of a gradient of these data, so that some steps clip and some do not.
        size = float(np.abs(X).max()) * power_of_ten(random, -2, 2)
        spec["clip_norm" if chance(random, 0.7) else "clip_value"] = size or 1.0
    return spec, rows


MOST_NUMBERS = 20_000
"""Numbers in X up to which a long run is not too long."""


def lengthened(spec: SpecDict, X: Array, steps: int) -> SpecDict:
    """Give a spec at least so many steps, or a tenth of them where X is large."""
    rows = len(X)
    batch_size = rows if spec["batch_size"] == "full" else spec["batch_size"]
    batches = rows // batch_size if spec.get("drop_last") else math.ceil(rows / batch_size)
    per_epoch = max(1, math.ceil(batches / spec["accumulate"]))
    epochs = math.ceil((steps if X.size <= MOST_NUMBERS else steps // 10) / per_epoch)
    changed = spec | {"epochs": epochs}
    if isinstance(schedule := spec.get("lr_schedule"), dict) and schedule["kind"] == "one-cycle":
        changed["lr_schedule"] = schedule | {"steps": epochs * per_epoch}  # torch takes no more
    return changed


def columns_of(spec: SpecDict) -> Array:
    """Return a spec's X."""
    data = spec["data"]
    return np.array(data["X"]) if "X" in data else np.load(data["npz"])["X"]


def random_columns(
    random: Generator, *, rows: tuple[int, int], features: int, constant: bool
) -> Array:
    """Draw X: columns with scales of their own, some with offsets, some constant if that may be."""
    count = round(power_of_ten(random, math.log10(rows[0]), math.log10(rows[1])))
    X = random.normal(size=(count, round(power_of_ten(random, 0, math.log10(features)))))
    if chance(random, 0.1):
        X = np.round(X)  # many zeros, many equal rows
    if chance(random, 0.4):
        X += random.normal(size=X.shape[1]) * power_of_ten(random, -1, 2)
    if constant and chance(random, 0.1):
        X[:, random.integers(X.shape[1])] = random.choice([0.0, 1.0, 1000.0])
    if chance(random, 0.5):
        X *= 10 ** random.uniform(-3, 3, size=X.shape[1])
    elif constant and chance(random, 0.5):
        X *= power_of_ten(random, -3, 3)
    return np.asarray(X)


def random_target(random: Generator, model: str, X: Array) -> Array:
    """Draw y: from a model with noise, or with no relation to X, or all the same."""
    rows, features = X.shape
    size = max(float(np.abs(X).max()), 1e-300)
    z = X @ (random.normal(size=features) / size) + random.normal()
    if model == "linear":
        y = z + power_of_ten(random, -6, 1) * random.normal(size=rows)
        return np.asarray(y * power_of_ten(random, -3, 3))
    if chance(random, 0.1):
        return np.full(rows, float(random.integers(2)))
    if chance(random, 0.1):
        return random.random(size=(rows,))  # torch takes any probability for a label
    return (random.random(rows) < 1 / (1 + np.exp(-4 * z))).astype(np.float64)


def random_batches(random: Generator, rows: int) -> tuple[int, int]:
    """Draw a batch size, and how many of them make a step; often the last one is smaller."""
    if rows == 1 or chance(random, 0.5):
        return rows, 1
    batch_size = max(1, rows // int(random.integers(1, 11)) - int(random.integers(0, 2)))
    return batch_size, int(random.integers(2, 5)) if chance(random, 0.3) else 1


def random_init(random: Generator, features: int) -> Any:
    match int(random.integers(4)):
        case 0:
            return "zeros"
        case 1:
            return {"constant": float(random.choice([0.5, 1.0, -2.0, 1e-3]))}
        case 2:
            return {"normal": {"std": power_of_ten(random, -3, 1), "seed": 1}}
        case _:
            weight = random.normal(size=features).tolist()
            return {"weight": weight, "bias": [float(random.normal())]}


def random_lr(
    random: Generator, optimizer: Options, model: str, X: Array, *, strange: bool
) -> float:
    """Draw a lr: for SGD around 2/‖H‖, with H the curvature, above which it is unstable.

    Of the others it is the size of a step, by which weights or outputs move.
    """
    if optimizer["name"] != "sgd":
        if strange and chance(random, 0.05):
            return float(random.choice([0.0, 1e3, 1e9]))
        size = float(np.abs(X).max()) if chance(random, 0.5) else 1.0
        return power_of_ten(random, -4, 0) / (size or 1.0)
    with np.errstate(all="ignore"):
        curvature = CURVATURE[model] * (1 + float(np.mean(np.einsum("ij,ij->i", X, X))))
    if not math.isfinite(curvature):
        curvature = 1e300
    if strange and chance(random, 0.05):
        return float(random.choice([0.0, 1e3 / curvature, 1e9 / curvature]))
    return 2 / curvature * power_of_ten(random, -4, 0.7)


def random_schedule(random: Generator, lr: float, *, strange: bool) -> SpecDict:
    low = [0.0] if strange else []
    return (
        {"kind": "step", "every": 3, "factor": 0.5},
        {"kind": "exponential", "factor": 0.9, "per": "epoch"},
        {"kind": "cosine", "steps": 10, "floor": 0.0 if strange else lr / 10},
        {"kind": "warmup", "steps": 5},
        {"kind": "list", "values": [lr, *low, lr / 3, lr]},
        {"kind": "multistep", "milestones": [2, 5], "factor": 0.3},
        {"kind": "linear", "steps": 7, "start_factor": 0.25, "end_factor": 0.0 if strange else 1.0},
        {"kind": "one-cycle", "steps": 12, "div_factor": 5.0, "final_div_factor": 10.0},
    )[random.integers(8)]


def data_of(X: Array, y: Array, file: Path) -> SpecDict:
    """Put data into the spec, or into a file where they are many."""
    if X.size <= INLINE:
        return {"X": X.tolist(), "y": y.tolist()}
    np.savez(file, X=X, y=y)
    return {"npz": str(file)}
