"""Random specs, matched and mismatched, and what a run of one must find.

Run as a program it checks as many as one likes and prints the largest ratios:

    python tests/random_specs.py --seed 0 --count 1000 [--mismatched]
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from regcheck.checking import check
from regcheck.compare import comparison
from regcheck.compare.differences import Difference
from regcheck.compare.steps import Divergence, LossDivergence, Row, compare_step
from regcheck.numerics.rounding import Bounds, RoundingModel, RoundingState
from regcheck.problem.batches import Batch
from regcheck.problem.problem import Problem, Step
from regcheck.report.result import Report
from regcheck.rules.convention import TORCH, Convention
from regcheck.trainers import sides
from regcheck.trainers.numpy_trainer import NumpyTrainer, State

Array = NDArray[np.floating]
SpecDict = dict[str, Any]
Tensors = dict[str, Array]

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
    spec["convention"] = equal_convention(random, spec, rows)
    return without_some_biases(spec, seed)


def mismatched_spec(seed: int, folder: Path) -> SpecDict:
    """Make a spec whose scratch side differs by one key of the convention, or two."""
    random = np.random.default_rng([seed, 1])
    spec, _ = random_training(random, folder / f"{seed}.npz", strange=False)
    if not decays(spec):
        spec["weight_decay"] = power_of_ten(random, -8, 0)
    changes = different_keys(random)
    keys = random.choice(sorted(changes), size=random.integers(1, 3), replace=False)
    spec["convention"] = {str(key): changes[str(key)] for key in keys}
    return without_some_biases(spec, seed)


# --- what is drawn ------------------------------------------------------------------------------

BIAS_KEYS = ("penalize_bias", "update_order")
"""Keys of the convention that are about the bias."""


def without_some_biases(spec: SpecDict, seed: int) -> SpecDict:
    """Take the bias out of the model of every seventh spec or so, whatever else was drawn."""
    return without_bias(spec) if chance(np.random.default_rng([seed, 99]), 0.15) else spec


def without_bias(spec: SpecDict) -> SpecDict:
    """Take the bias out of a spec's model, and out of all that is said of it."""
    changed = spec | {"bias": False}
    for key, gone in (("init", ["bias"]), ("weight_decay", ["bias"]), ("convention", BIAS_KEYS)):
        if isinstance(spec.get(key), dict):
            kept = {name: value for name, value in spec[key].items() if name not in gone}
            changed[key] = kept
    return changed


def power_of_ten(random: Generator, low: float, high: float) -> float:
    """Draw a number whose logarithm is uniform."""
    return float(10 ** random.uniform(low, high))


def chance(random: Generator, share: float) -> bool:
    """Be true in a share of the draws."""
    return bool(random.random() < share)


def random_training(random: Generator, file: Path, *, strange: bool) -> tuple[SpecDict, int]:
    """Draw everything but the convention; `strange` lets in overflow, denormals and lr 0."""
    model, loss = KINDS[random.integers(len(KINDS))]
    X = random_columns(random, strange=strange)
    y = random_target(random, model, X)
    rows, features = X.shape
    batch_size, parts = random_batches(random, rows)
    per_epoch = math.ceil(math.ceil(rows / batch_size) / parts)
    steps = int(random.integers(5, 41)) if rows * features < 100_000 else 5
    epochs = max(1, steps // per_epoch)
    spec: SpecDict = {
        "data": data_of(X, y, file),
        "model": model,
        "loss": loss,
        "init": random_init(random, features),
        "optimizer": random_optimizer(random),
        "lr": random_lr(random, model, X, strange=strange),
        "weight_decay": random_decay(random),
        "epochs": epochs,
        "batch_size": batch_size if batch_size < rows else "full",
        "accumulate": parts,
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


def random_columns(random: Generator, *, strange: bool) -> Array:
    """Draw X: columns with scales of their own, some with offsets, some constant."""
    rows = round(power_of_ten(random, 0, math.log10(8192)))
    features = round(power_of_ten(random, 0, math.log10(128)))
    X = random.normal(size=(rows, features))
    if chance(random, 0.1):
        X = np.round(X)  # many zeros, many equal rows
    if chance(random, 0.4):
        X += random.normal(size=features) * power_of_ten(random, -1, 2)
    if chance(random, 0.1):
        X[:, random.integers(features)] = random.choice([0.0, 1.0, 1000.0])
    if chance(random, 0.5):
        X *= 10 ** random.uniform(-3, 3, size=features)
    elif chance(random, 0.5):
        X *= power_of_ten(random, -3, 3)
    if strange and chance(random, 0.06):
        X *= power_of_ten(random, -42, 30)
    return np.asarray(np.clip(X, -3e38, 3e38))


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
    """Draw one of the ways to start."""
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


def random_optimizer(random: Generator) -> Any:
    """Draw SGD with or without momentum."""
    if chance(random, 0.5):
        return "sgd"
    momentum = float(random.choice([0.5, 0.9, 0.99, random.random()]))
    options: SpecDict = {"name": "sgd", "momentum": momentum}
    if chance(random, 0.3):
        return options | {"nesterov": True}
    return options | {"dampening": float(random.choice([0.0, 0.0, 0.1, 0.9]))}


def random_lr(random: Generator, model: str, X: Array, *, strange: bool) -> float:
    """Draw a lr around 2/‖H‖, with H the curvature: above it gradient descent is unstable."""
    with np.errstate(all="ignore"):
        curvature = CURVATURE[model] * (1 + float(np.mean(np.einsum("ij,ij->i", X, X))))
    if not math.isfinite(curvature):
        curvature = 1e300
    if strange and chance(random, 0.05):
        return float(random.choice([0.0, 1e3 / curvature, 1e9 / curvature]))
    return 2 / curvature * power_of_ten(random, -4, 0.7)


def random_decay(random: Generator) -> Any:
    """Draw λ, often one for each tensor."""
    if chance(random, 0.15):
        return 0
    if chance(random, 0.25):
        bias = 0.0 if chance(random, 0.5) else power_of_ten(random, -8, 0)
        return {"weight": power_of_ten(random, -8, 0), "bias": bias}
    return power_of_ten(random, -8, 0)


def random_schedule(random: Generator, lr: float, *, strange: bool) -> SpecDict:
    """Draw a schedule of the lr."""
    low = [0.0] if strange else []
    return (
        {"kind": "step", "every": 3, "factor": 0.5},
        {"kind": "exponential", "factor": 0.9, "per": "epoch"},
        {"kind": "cosine", "steps": 10, "floor": 0.0 if strange else lr / 10},
        {"kind": "warmup", "steps": 5},
        {"kind": "list", "values": [lr, *low, lr / 3, lr]},
    )[random.integers(5)]


def data_of(X: Array, y: Array, file: Path) -> SpecDict:
    """Put data into the spec, or into a file where they are many."""
    if X.size <= INLINE:
        return {"X": X.tolist(), "y": y.tolist()}
    np.savez(file, X=X, y=y)
    return {"npz": str(file)}


def decays(spec: SpecDict) -> bool:
    """Say whether any tensor has a penalty."""
    decay = spec["weight_decay"]
    return any(decay.values()) if isinstance(decay, dict) else decay > 0


def equal_convention(random: Generator, spec: SpecDict, rows: int) -> Any:
    """Draw a convention that is torch's own rule for this spec, though written otherwise."""
    equal: list[SpecDict | str] = ["pytorch"]
    momentum = isinstance(spec["optimizer"], dict)
    clipped = "clip_norm" in spec or "clip_value" in spec
    if not momentum:
        equal += [
            {"decay": "decoupled"},
            {"decay": "after-momentum"},
            {"momentum_form": "dampened"},
        ]
    if not clipped:
        equal += [{"decay": "before-clipping"}]
    if "lr_schedule" not in spec:
        equal += [{"momentum_form": "lr-inside"}]
    if not decays(spec):
        keys = {"divide_penalty_by": "batch", "penalty_factor": 3, "penalty_norm": "unsquared"}
        equal += [keys, {"penalty_in_loss": True, "decay": "after-update"}]
    if isinstance(spec["weight_decay"], dict) and spec["weight_decay"]["bias"] == 0:
        equal += [{"penalize_bias": False}]
    if rows == 1:
        equal += [{"divide_penalty_by": "dataset", "loss_reduction": "sum"}]
    if spec["batch_size"] == 1 and spec["accumulate"] == 1:
        equal += [{"divide_penalty_by": "batch", "loss_reduction": "sum"}]
    if len(equal) > 1 and chance(random, 0.6):
        return equal[random.integers(1, len(equal))]
    return "pytorch"


def different_keys(random: Generator) -> SpecDict:
    """Draw a value that is not torch's for each key of the convention."""
    near = 1 + power_of_ten(random, -8, 0)
    return {
        "divide_penalty_by": str(random.choice(["batch", "dataset"])),
        "penalty_factor": float(random.choice([2.0, 0.5, 0.0, -1.0, near])),
        "penalize_bias": False,
        "decay": str(
            random.choice(
                [
                    "after-momentum",
                    "decoupled",
                    "decoupled-unscaled",
                    "after-update",
                    "before-clipping",
                ]
            )
        ),
        "penalty_norm": "unsquared",
        "penalty_in_loss": True,
        "loss_reduction": "sum",
        "loss_factor": float(random.choice([0.5, 2.0, near])),
        "momentum_form": str(random.choice(["dampened", "lr-inside"])),
        "update_order": "bias-first",
    }


# --- what a run finds, and what it must find ----------------------------------------------------


@dataclass
class Observed:
    """A run's report, with every step's bounds and differences, which a report does not keep."""

    report: Report
    problem: Problem | None = None
    steps: list[tuple[Batch, Step, Bounds]] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)

    def ratios(self) -> dict[str, float]:
        """Give the largest ratio of the run at each stage, of the loss and of the update."""
        largest: dict[str, float] = defaultdict(float)
        for row in self.rows:
            found = {**row.within, **({"loss": row.loss} if row.loss else {})}
            for name, difference in row.local.items():
                found[f"update {name}"] = difference
            for name, difference in found.items():
                if not math.isnan(difference.ratio):
                    largest[name] = max(largest[name], difference.ratio)
        return largest


def observe(spec: SpecDict) -> Observed:
    """Check a spec, and keep what passes by."""
    seen = Observed(report=None)  # type: ignore[arg-type]

    class Recording(RoundingModel):
        def __init__(self, problem: Problem, own: Collection[str] = ()) -> None:
            super().__init__(problem, own)
            seen.problem = problem

        def bounds(
            self, state: RoundingState, batch: Batch, step: Step, dloss_dz: Sequence[Array]
        ) -> tuple[Bounds, RoundingState]:
            found, state = super().bounds(state, batch, step, dloss_dz)
            seen.steps.append((batch, step, found))
            return found, state

    def comparing(*arguments: Any) -> Row:
        row = compare_step(*arguments)
        seen.rows.append(row)
        return row

    with (
        patch.object(sides, "RoundingModel", Recording),
        patch.object(comparison, "compare_step", comparing),
    ):
        seen.report = check(spec)
    return seen


@dataclass
class Effect:
    """What a rule's difference does at one step, in bounds, free of rounding: by stage, and all.

    The bounds are those of the framework's rule. Where the scratch rule makes the gradient `scale`
    times larger, it makes the gradient's rounding as much larger.
    """

    step: int
    scale: float
    stages: dict[str, float]
    update: float
    loss: float


def effects(observed: Observed) -> Iterator[Effect]:
    """Measure what the scratch rule changes at each step, from the framework's parameters.

    Both rules are taken by the NumPy trainer in extended precision, each with its own velocity.
    """
    problem = observed.problem
    assert problem is not None
    rules = [extended(problem, rule) for rule in (problem.convention, TORCH)]
    velocities = [rule.start().velocities for rule in rules]
    for batch, framework, bounds in observed.steps:
        before = {name: w.astype(np.longdouble) for name, w in framework.before.items()}
        taken = [
            rule.step(State(before, velocity), batch)
            for rule, velocity in zip(rules, velocities, strict=True)
        ]
        velocities = [update.state.velocities for update in taken]
        own, torch = (update.step for update in taken)
        assert own.loss is not None
        assert torch.loss is not None
        yield Effect(
            batch.step,
            scale_of(problem.convention, batch),
            {
                "gradient": in_bounds(own.gradient, torch.gradient, bounds.gradient),
                "penalty": in_bounds(own.penalty, torch.penalty, bounds.penalty),
                "optimizer": in_bounds(own.delta, torch.delta, bounds.delta),
            },
            in_bounds(own.after, torch.after, bounds.after),
            abs(own.loss - torch.loss) / bounds.loss,
        )


def scale_of(convention: Convention, batch: Batch) -> float:
    """Give how much larger a convention makes the loss than torch does, and at least 1."""
    rows = batch.size if convention.loss_reduction == "sum" else 1
    return max(1.0, rows * abs(convention.loss_factor))


def extended(problem: Problem, convention: Convention) -> NumpyTrainer:
    """Make the NumPy trainer of a problem in extended precision, by a convention."""
    trainer = NumpyTrainer(replace(problem, convention=convention))
    trainer.dtype = np.dtype(np.longdouble)
    trainer.X, trainer.y = problem.X.astype(np.longdouble), problem.y.astype(np.longdouble)
    return trainer


def in_bounds(own: Tensors | None, torch: Tensors | None, bounds: Tensors) -> float:
    """Give the largest difference of two sets of tensors, which both sides tell, in bounds."""
    assert own is not None
    assert torch is not None
    return max(float((np.abs(own[name] - torch[name]) / bounds[name]).max()) for name in torch)


LIMIT = 8.0
"""Bounds above which a step diverges."""

CLEAR = 20.0
"""Bounds that an effect must exceed to be asked for."""

NOISE = 4.0
"""Bounds that an effect must exceed for rounding to carry it over the limit of 8."""


def matched_faults(observed: Observed) -> list[str]:
    """Say what is wrong with the run of a matched spec: any divergence, at any stage.

    In two dtypes the coarser may overflow alone, which is no false alarm.
    """
    report, found = observed.report, []
    if overflows_alone(observed):
        return []
    if report.first_divergence is not None:
        first = report.first_divergence
        found.append(f"diverged at step {first.step}, {first.stage}: {first.at}")
    if report.first_loss_divergence is not None:
        found.append(f"loss diverged: {report.first_loss_divergence}")
    if report.comparison.first_by_stage:
        found.append(f"stages part: {report.comparison.first_by_stage}")
    swallowed = report.comparison.power is not None and report.comparison.power.reason()
    if report.verdict == "inconclusive" and not swallowed and not blown_up(observed):
        found.append(f"inconclusive: {report.reason}")
    return found


def overflows_alone(observed: Observed) -> bool:
    """Say whether all that parts, parts because one side, in the coarser dtype, is not finite."""
    problem = observed.problem
    assert problem is not None
    apart = [
        one
        for row in observed.rows
        for one in (row.loss, *row.within.values(), *row.local.values())
        if one is not None and one.ratio > LIMIT
    ]
    mixed = problem.scratch_dtype != problem.framework_dtype
    return mixed and bool(apart) and all(map(infinite_alone, apart))


def blown_up(observed: Observed) -> bool:
    """Say whether numbers of the last step come near the end of the coarser dtype's range."""
    assert observed.problem is not None
    dtypes = (observed.problem.scratch_dtype, observed.problem.framework_dtype)
    top = min(float(np.finfo(dtype).max) for dtype in dtypes)
    return any(
        not float(np.abs(value).max()) < top**0.45  # whose square is the loss
        for _, step, _ in observed.steps
        for tensors in (step.delta, step.gradient)
        for value in (*(step.outputs or ()), *(tensors or {}).values())
    )


def mismatched_faults(observed: Observed) -> list[str]:
    """Say what is wrong with the run of a mismatched spec: missed, late, early, wrong stage."""
    report = observed.report
    if report.comparison.saturation is not None and "float32" in report.dtypes:
        return []  # the effects are worked out in float64, where σ is not 1 from z = 17 on
    divergence, loss = report.first_divergence, report.first_loss_divergence
    seen = list(effects(observed))
    scales = {one.step: one.scale for one in seen}
    update = {one.step: one.update for one in seen}
    reported = {one.step: one.loss for one in seen}
    found = faults_of_step("update", update, scales, divergence)
    found += faults_of_step("loss", reported, scales, loss)
    if divergence is not None and not found and not infinite_alone(divergence.at):
        at = next(one for one in seen if one.step == divergence.step)
        found += faults_of_stage(at, divergence.stage)
    return found


def infinite_alone(difference: Difference) -> bool:
    """Say whether one side alone is not finite, as the coarser of two dtypes may be."""
    return math.isfinite(difference.scratch) != math.isfinite(difference.framework)


def faults_of_step(
    what: str,
    effect: dict[int, float],
    scales: dict[int, float],
    divergence: Divergence | LossDivergence | None,
) -> list[str]:
    """Compare the step of a divergence with the effects by step."""
    step = None if divergence is None else divergence.step
    clear = next((k for k, size in effect.items() if size > CLEAR * scales[k]), None)
    if clear is not None and (step is None or step > clear):
        return [f"{what}: {effect[clear]:.3g} bounds at step {clear}, found at {step}"]
    if divergence is None or step is None or infinite_alone(divergence.at):
        return []
    if effect[step] * scales[step] < NOISE:
        return [f"{what}: diverged at step {step} by {effect[step]:.3g} bounds"]
    return []


def faults_of_stage(effect: Effect, stage: str) -> list[str]:
    """Compare the stage of a divergence with the effects by stage, in the stages' order."""
    sizes = effect.stages
    clear = next((name for name, size in sizes.items() if size > CLEAR * effect.scale), "update")
    order = [*sizes, "update"]
    if stage not in order or order.index(stage) > order.index(clear):
        return [f"stage {stage}, but {clear} is the first to part: {sizes}"]
    if stage != "update" and sizes[stage] * effect.scale < NOISE:
        return [f"stage {stage} by {sizes[stage]:.3g} bounds only: {sizes}"]
    return []


def main() -> int:
    """Check many specs and print each fault, then the largest ratios by class."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--mismatched", action="store_true")
    chosen = parser.parse_args()
    largest: dict[tuple[str, str], dict[str, list[tuple[float, int]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    verdicts: dict[str, int] = defaultdict(int)
    faulty = 0
    for seed in range(chosen.seed, chosen.seed + chosen.count):
        with tempfile.TemporaryDirectory() as folder:
            make = mismatched_spec if chosen.mismatched else matched_spec
            spec = make(seed, Path(folder))
            observed = observe(spec)
            judge = mismatched_faults if chosen.mismatched else matched_faults
            faults = judge(observed)
        verdicts[observed.report.verdict] += 1
        if faults:
            faulty += 1
            print(f"seed {seed}:", *faults, sep="\n    ")
        dtype = spec["dtype"] if isinstance(spec["dtype"], str) else "mixed"
        for name, ratio in observed.ratios().items():
            largest[f"{spec['model']} {spec['loss']}", dtype][name].append((ratio, seed))
    print(f"{chosen.count} specs, {faulty} with faults; verdicts {dict(verdicts)}")
    if not chosen.mismatched:
        for (kind, dtype), stages in sorted(largest.items()):
            print(f"{kind}, {dtype}")
            for name, ratios in stages.items():
                ordered = sorted(ratios)
                quantiles = [ordered[int(q * (len(ordered) - 1))] for q in (0.1, 0.5, 0.9, 1.0)]
                text = "  ".join(f"{ratio:9.3g}" for ratio, _ in quantiles)
                print(f"    {name:14} {text}   seed {quantiles[-1][1]}")
    return 1 if faulty else 0


if __name__ == "__main__":
    sys.exit(main())
