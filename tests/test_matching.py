from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from types import MappingProxyType
from typing import Any, get_args

import numpy as np
import pytest

from regcheck.problem.batches import training_of
from regcheck.problem.problem import Array, build_problem, with_torch_settings
from regcheck.rules.causes.cause import Change
from regcheck.rules.convention import TORCH, Convention, Decay, MomentumForm
from regcheck.rules.equivalent import Matching, NoMatchError, matching
from regcheck.rules.faults import NO_FAULTS, Faults
from regcheck.rules.settings import Settings
from regcheck.spec import LoadedSpec, from_mapping
from regcheck.spec.sections.training import Optimizer, TorchSettings, WeightDecay
from regcheck.trainers.framework.torch_trainer import TorchTrainer
from regcheck.trainers.numpy_trainer import NumpyTrainer
from tests.every_rule import OPTIMIZERS
from tests.formula_cases import training

SCHEDULE = {"kind": "exponential", "factor": 0.8}


def data(seed: int, rows: int = 8, features: int = 3) -> dict[str, Any]:
    draw = np.random.default_rng(seed)
    return {
        "X": draw.normal(size=(rows, features)).tolist(),
        "y": draw.integers(0, 2, rows).astype(float).tolist(),
    }


def loaded_spec(spec: dict[str, Any], seed: int = 0) -> LoadedSpec:
    base = {
        "data": data(seed),
        "model": "linear",
        "init": {"normal": {"std": 0.5, "seed": seed}},
        "lr": 0.05,
    }
    return from_mapping(base | spec)


def match_of(spec: LoadedSpec) -> Matching:
    return matching(spec.spec.named_convention(), training_of(spec.spec, 8))


def difference(spec: LoadedSpec, match: Matching, change: Change = MappingProxyType({})) -> float:
    """Return how far torch with the matched settings is from NumPy, relative to order 1.

    The largest difference after any step.
    """
    problem = build_problem(spec)
    matched = TorchSettings(
        lr=problem.schedule.lr * match.lr_factor,
        weight_decay=WeightDecay(**match.settings.weight_decay),
        optimizer=Optimizer.of(match.settings.optimizer, **match.settings.options),
    )
    torch, scratch = (
        TorchTrainer(with_torch_settings(problem, matched)),
        NumpyTrainer(problem.with_change(change)),
    )
    state, worst = scratch.start(), 0.0
    for batch in problem.schedule.batches():
        state, after = scratch.step(state, batch).state, torch.step(batch).after
        for name, w in state.parameters.items():
            size = max(1.0, float(np.abs(w).max()))
            worst = max(worst, float(np.abs(w - after[name]).max()) / size)
    return worst


def could_match(loaded: LoadedSpec) -> bool:
    """Whether any lr and weight decays that torch takes give the convention's steps.

    Along the scratch side's path, torch's displacement is linear in a = lr′/lr and c = a λ′ of
    each tensor: lr (a d(g) + c d(w)) with d the direction that momentum makes of a sequence. So
    least squares over all entries of all steps finds a and c, or leaves a residual.
    """
    problem = build_problem(loaded)
    trainer, options = NumpyTrainer(problem), problem.settings
    plain = NumpyTrainer(replace(problem, convention=Convention()))
    state = trainer.start()
    buffers: dict[tuple[str, str], Array] = {}
    columns, target = [], []
    for batch in problem.schedule.batches():
        before = state.parameters
        state = trainer.step(state, batch).state
        slopes = plain.optimizer.clipped(plain.forward_backward(before, batch).gradient)
        for place, name in enumerate(before):
            entry = np.zeros((before[name].size, 3))
            for column, x in ((0, slopes[name]), (1 + place, before[name])):
                d, key = x, (name, f"column {column}")
                if options.momentum:
                    v = (
                        options.momentum * buffers[key] + (1 - options.dampening) * x
                        if key in buffers
                        else x
                    )
                    buffers[key] = v
                    d = x + options.momentum * v if options.nesterov else v
                entry[:, column] = batch.lr * d.ravel()
            columns.append(entry)
            target.append((before[name] - state.parameters[name]).ravel())
    A, t = np.vstack(columns), np.concatenate(target)
    solution, *_ = np.linalg.lstsq(A, t)
    a, *c = solution
    # Rounding leaves 1e-15 of numbers of order 1; the differences at stake are above 1e-8.
    return bool(np.abs(A @ solution - t).max() < 1e-10 and a > 1e-10 and min(c) > -1e-10)


def specs() -> Iterator[dict[str, Any]]:
    """Yield every combination of what matching looks at; the rest is drawn for each."""
    draw = random.Random("matching")
    for optimizer, form, decay, clip, scheduled in itertools.product(
        OPTIMIZERS, get_args(MomentumForm), get_args(Decay), [False, True], [False, True]
    ):
        for _ in range(3):
            yield {
                "optimizer": optimizer,
                "convention": {
                    "momentum_form": form,
                    "decay": decay,
                    "divide_penalty_by": draw.choice(["nothing", "batch", "dataset"]),
                    "penalty_factor": draw.choice([1.0, 2.0, 0.5]),
                    "penalize_bias": draw.random() < 0.6,
                    "loss_reduction": draw.choice(["mean", "mean", "sum"]),
                    "loss_factor": draw.choice([1.0, 1.0, 0.5]),
                    "update_order": draw.choice(["simultaneous"] * 9 + ["bias-first"]),
                    "penalty_norm": draw.choice(["squared"] * 9 + ["unsquared"]),
                },
                "weight_decay": draw.choice([0.3, {"weight": 0.3, "bias": 0.2}, 0.0]),
                "batch_size": draw.choice([3, 4, 8, 8]),
                "accumulate": draw.choice([1, 2]),
                "drop_last": draw.random() < 0.5,
                "epochs": 4,
                **({"clip_norm": 0.3} if clip else {}),
                **({"lr_schedule": SCHEDULE} if scheduled else {}),
                "model": draw.choice(["linear", "logistic"]),
            }


@pytest.mark.slow
def test_matched_torch_trains_as_the_convention_and_refusals_are_right() -> None:
    matched = refused = 0
    for seed, spec in enumerate(islice(specs(), 0, None, 3)):
        loaded = loaded_spec(spec, seed)
        try:
            worst, reason = difference(loaded, match_of(loaded)), ""
        except NoMatchError as error:
            worst, reason = np.inf, str(error)
        # Where nothing is ever clipped there might be a match; only the steps could tell. What
        # `could_match` knows is linear; `test_adaptive_matching` has the others' refusals.
        linear = loaded.spec.optimizer.name == "sgd"
        right = not linear or could_match(loaded) == (not reason)
        assert right or "clip" in reason, (spec, reason)
        # Up to 16 steps of some 50 roundings, of numbers of order 1.
        assert reason or worst < 1e-12, spec
        matched += not reason
        refused += bool(reason)
    assert matched > 30
    assert refused > 30


@pytest.mark.parametrize(
    ("changes", "rule", "lr", "weight_decay"),
    [
        # lr 0.1, λ 0.5, 8 rows, momentum 0.9 where named
        ({}, Convention(), 0.1, 0.5),
        ({}, Convention(divide_penalty_by="batch"), 0.1, 0.0625),
        ({}, Convention(penalty_factor=2.0), 0.1, 1.0),
        ({}, Convention(loss_reduction="sum"), 0.8, 0.0625),
        ({}, Convention(loss_factor=0.5), 0.05, 1.0),
        ({"momentum": 0.9}, Convention(momentum_form="dampened"), 0.01, 0.5),
        ({"momentum": 0.9}, Convention(momentum_form="lr-inside"), 0.1, 0.5),
        ({}, Convention(decay="decoupled"), 0.1, 0.5),
        ({}, Convention(decay="decoupled-unscaled"), 0.1, 5.0),
        ({}, Convention(decay="after-update"), 0.095, 0.5 / 0.95),
        # A micro-batch's sum is 4 times its mean, whatever the step's rows.
        ({"micro_rows": (4,)}, Convention(loss_reduction="sum"), 0.4, 0.125),
        # .. and λ is divided by the step's rows, not by a micro-batch's.
        ({"micro_rows": (4,)}, Convention(divide_penalty_by="batch"), 0.1, 0.0625),
        ({"lr": 0.0}, Convention(divide_penalty_by="batch"), 0.0, 0.0625),
        ({}, Faults(gradient_factor=2.0), 0.2, 0.25),
        ({}, Faults(lr_factor=2.0), 0.2, 0.5),
        ({}, Faults(lr_shift=1), 0.1, 0.5),
        ({}, Faults(batch_divisor="batch-size"), 0.1, 0.5),
        ({"micro_rows": (4,)}, Faults(accumulation="sum"), 0.2, 0.25),
        ({"micro_rows": (3, 2)}, Faults(accumulation="sum"), 0.3, 0.5 / 3),
        ({"micro_rows": (4,)}, Faults(accumulation="over-rows"), 0.1, 0.5),
        ({"weight_decay": {"weight": 0.5, "bias": 0.0}}, Faults(bias_decay="of-weight"), 0.1, 0.5),
    ],
)
def test_match_by_hand(
    changes: dict[str, Any], rule: Convention | Faults, lr: float, weight_decay: float
) -> None:
    convention, faults = (rule, NO_FAULTS) if isinstance(rule, Convention) else (TORCH, rule)
    found = matching(convention, training(**changes), faults)
    # One or two roundings.
    assert found.settings.lr == pytest.approx(lr, rel=1e-15)
    assert found.settings.weight_decay == pytest.approx(
        dict.fromkeys(("weight", "bias"), weight_decay)
    )


def test_other_settings_of_momentum_are_matched_by_themselves() -> None:
    dampened = training(momentum=0.9, dampening=0.3)
    missing = matching(TORCH, dampened, Faults(momentum="ignored")).settings
    assert missing == Settings(0.1, {"weight": 0.5, "bias": 0.5})
    added = matching(TORCH, training(momentum=0.9), Faults(nesterov="added")).settings
    assert added == training(momentum=0.9, nesterov=True).settings
    assert matching(TORCH, training(**added._asdict()), Faults(nesterov="missing")).settings == (
        training(momentum=0.9).settings
    )


def test_dampening_from_the_first_step_on_is_an_lr() -> None:
    dampened = {"name": "sgd", "momentum": 0.9, "dampening": 0.3}
    spec = loaded_spec({"optimizer": dampened, "weight_decay": 0.1, "epochs": 6})
    match = matching(TORCH, training_of(spec.spec, 8), Faults(first_step="dampened"))

    assert [match.settings.lr, match.settings.dampening] == pytest.approx([0.035, 0.0])
    assert difference(spec, match, {"first_step": "dampened"}) < 1e-14


def test_changing_lr_is_matched_by_a_factor_on_each() -> None:
    found = matching(
        Convention(loss_factor=0.5), training(lr=0.0, lr_varies=True)
    )  # a list of lrs: the spec's own lr says nothing
    assert found.lr_factor == 0.5
