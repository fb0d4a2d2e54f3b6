from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest

from regcheck.problem.batches import training_of
from regcheck.problem.problem import Array, Parameters, Problem, build_problem, with_settings
from regcheck.rules.convention import Convention, Decay, Faults, MomentumForm
from regcheck.rules.equivalent import Matching, NoMatchError, matching, torch_call
from regcheck.spec import LoadedSpec, from_mapping
from regcheck.spec.training import TorchSettings, WeightDecay
from regcheck.trainers.numpy_trainer import NumpyTrainer
from regcheck.trainers.torch_trainer import TorchTrainer
from tests.formula_reader import training

OPTIMIZERS: list[dict[str, Any]] = [
    {},
    {"name": "sgd", "momentum": 0.9},
    {"name": "sgd", "momentum": 0.9, "nesterov": True},
    {"name": "sgd", "momentum": 0.6, "dampening": 0.3},
]
SCHEDULE = {"kind": "exponential", "factor": 0.8}


def data(seed: int, rows: int = 8, features: int = 3) -> dict[str, Any]:
    """Draw rows with labels."""
    draw = np.random.default_rng(seed)
    return {
        "X": draw.normal(size=(rows, features)).tolist(),
        "y": draw.integers(0, 2, rows).astype(float).tolist(),
    }


def loaded_spec(spec: dict[str, Any], seed: int = 0) -> LoadedSpec:
    """Fill a spec up."""
    base = {
        "data": data(seed),
        "model": "linear",
        "init": {"normal": {"std": 0.5, "seed": seed}},
        "lr": 0.05,
    }
    return from_mapping(base | spec)


def match_of(spec: LoadedSpec) -> Matching:
    """Match a spec; raises NoMatchError."""
    return matching(spec.spec.named_convention(), training_of(spec.spec, 8))


def match_or_reason(spec: LoadedSpec) -> Matching | str:
    """Match a spec, or tell why not."""
    try:
        return match_of(spec)
    except NoMatchError as reason:
        return str(reason)


def by_numpy(problem: Problem) -> Iterator[Parameters]:
    """Train in NumPy."""
    trainer = NumpyTrainer(problem)
    state = trainer.start()
    for batch in problem.schedule.batches():
        state = trainer.step(state, batch).state
        yield state.parameters


def by_torch(problem: Problem, match: Matching) -> Iterator[Parameters]:
    """Train in torch with the matched settings in the place of the spec's."""
    matched = TorchSettings(
        lr=problem.schedule.lr * match.lr_factor,
        weight_decay=WeightDecay(**match.sgd.weight_decay),
        optimizer=problem.optimizer.model_copy(update=match.sgd.options()),
    )
    trainer = TorchTrainer(with_settings(problem, matched))
    for batch in problem.schedule.batches():
        yield trainer.step(batch).after


def apart(spec: LoadedSpec, match: Matching) -> float:
    """Give the largest difference after any step, relative to numbers of order 1."""
    problem = build_problem(spec)
    worst = 0.0
    for left, right in zip(by_numpy(problem), by_torch(problem, match), strict=True):
        for name, tensor in left.items():
            size = max(1.0, float(np.abs(tensor).max()))
            worst = max(worst, float(np.abs(tensor - right[name]).max()) / size)
    return worst


def could_match(loaded: LoadedSpec) -> bool:
    """Say whether any lr and weight decays that torch takes give the convention's steps.

    Along the scratch side's path, torch's displacement is linear in a = lr′/lr and c = a λ′ of
    each tensor: lr (a d(g) + c d(w)) with d the direction that momentum makes of a sequence. So
    least squares over all entries of all steps finds a and c, or leaves a residual.
    """
    problem = build_problem(loaded)
    trainer, options = NumpyTrainer(problem), problem.optimizer
    plain = NumpyTrainer(replace(problem, convention=Convention()))
    state = trainer.start()
    buffers: dict[tuple[str, str], Array] = {}
    columns, target = [], []
    for batch in problem.schedule.batches():
        before = state.parameters
        state = trainer.step(state, batch).state
        slopes = plain.clipped(plain.forward_backward(before, batch).gradient)
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
    """Give every combination of what matching looks at; the rest is drawn for each."""
    draw = random.Random("matching")
    for optimizer, form, decay, clip, scheduled in itertools.product(
        OPTIMIZERS, get_args(MomentumForm), get_args(Decay), [False, True], [False, True]
    ):
        for _ in range(3):
            yield {
                "optimizer": {"name": "sgd"} | optimizer,
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


def test_matched_torch_trains_as_the_convention_and_refusals_are_right() -> None:
    matched = refused = 0
    for seed, spec in enumerate(specs()):
        loaded = loaded_spec(spec, seed)
        match = match_or_reason(loaded)
        if isinstance(match, str):
            refused += 1
            # Where nothing is ever clipped there might be a match; only the steps could tell.
            assert "clip" in match or not could_match(loaded), (spec, match)
            continue
        assert could_match(loaded), spec
        # Up to 16 steps of some 50 roundings, of numbers of order 1.
        assert apart(loaded, match) < 1e-12, (spec, match)
        matched += 1
    assert matched > 100
    assert refused > 100


@pytest.mark.parametrize(
    ("changes", "convention", "lr", "weight_decay"),
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
    ],
)
def test_match_by_hand(
    changes: dict[str, Any], convention: Convention, lr: float, weight_decay: float
) -> None:
    found = matching(convention, training(**changes))
    # One or two roundings.
    assert found.sgd.lr == pytest.approx(lr, rel=1e-15)
    assert found.sgd.weight_decay == pytest.approx(dict.fromkeys(("weight", "bias"), weight_decay))


def test_changing_lr_is_matched_by_a_factor_on_each() -> None:
    found = matching(
        Convention(loss_factor=0.5), training(lr=0.0, lr_varies=True)
    )  # a list of lrs: the spec's own lr says nothing
    assert found.lr_factor == 0.5


# --- refusals -------------------------------------------------------------------------------------

MOMENTUM = {"optimizer": {"name": "sgd", "momentum": 0.9}}
DECAYING = {"weight_decay": 0.3}

NESTEROV = {"optimizer": {"name": "sgd", "momentum": 0.9, "nesterov": True}}
DAMPENED = {"optimizer": {"name": "sgd", "momentum": 0.6, "dampening": 0.3}}
VARYING = {"lr_schedule": SCHEDULE}

REFUSED: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("old parameters", {}, {"update_order": "bias-first"}),
    ("differ in rows, so their sum", {"batch_size": 3}, {"loss_reduction": "sum"}),
    ("differ in rows, so their sum", {"batch_size": 3, "accumulate": 2}, {"loss_reduction": "sum"}),
    ("clipping acts", {"clip_value": 0.2}, {"loss_factor": 0.5}),
    ("dampened velocity", NESTEROV, {"momentum_form": "dampened"}),
    ("does not dampen the first step", DAMPENED, {"momentum_form": "dampened"}),
    ("does not hold the lr", MOMENTUM | VARYING, {"momentum_form": "lr-inside"}),
    ("counts nothing", DECAYING, {"loss_factor": 0.0}),
    ("no constant multiple of w", DECAYING, {"penalty_norm": "unsquared"}),
    ("λ/B is no constant", DECAYING | {"batch_size": 3}, {"divide_penalty_by": "batch"}),
    ("clips before", DECAYING | {"clip_norm": 0.1}, {"decay": "before-clipping"}),
    ("with momentum", DECAYING | MOMENTUM, {"decay": "after-momentum"}),
    ("with momentum", DECAYING | MOMENTUM, {"decay": "decoupled"}),
    ("with momentum", DECAYING | MOMENTUM, {"decay": "decoupled-unscaled"}),
    ("with momentum", DECAYING | MOMENTUM, {"decay": "after-update"}),
    ("does not change with it", DECAYING | VARYING, {"decay": "decoupled-unscaled"}),
    ("does not change with it", DECAYING | VARYING, {"decay": "after-update"}),
    ("an lr of its own", {"weight_decay": {"weight": 0.3, "bias": 0.1}}, {"decay": "after-update"}),
    ("ends at zero", {"weight_decay": 2.0, "lr": 0.5}, {"decay": "after-update"}),
    ("no negative lr", {}, {"loss_factor": -1.0}),
    ("no negative lr", {"weight_decay": 4.0, "lr": 0.5}, {"decay": "after-update"}),
    ("no negative weight decay", DECAYING, {"penalty_factor": -1.0}),
    ("the lr is 0", DECAYING | {"lr": 0.0}, {"decay": "decoupled-unscaled"}),
]


@pytest.mark.parametrize(("reason", "spec", "convention"), REFUSED)
def test_refusal_names_its_reason_and_nothing_would_match(
    reason: str, spec: dict[str, Any], convention: dict[str, Any]
) -> None:
    loaded = loaded_spec(spec | {"convention": convention, "epochs": 4})
    with pytest.raises(NoMatchError, match=reason):
        match_of(loaded)
    assert not could_match(loaded)


def test_no_settings_take_the_floor_of_bceloss_away() -> None:
    spec = loaded_spec({"model": "logistic", "loss": "bce", "weight_decay": 0.1})
    training, plain = training_of(spec.spec, 8), Faults(bce_slope="plain")

    with pytest.raises(NoMatchError, match=r"`loss: bce_with_logits` \(torch.nn.BCEWithLogitsLoss"):
        matching(Convention(), training, plain)
    with pytest.raises(NoMatchError, match="or scaled features"):
        matching(Convention(penalty_factor=2.0), training, plain)


# --- the call -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "call"),
    [
        ({}, "torch.optim.SGD(lr=0.1, weight_decay=0.5)"),
        ({"weight_decay": {"weight": 0.0, "bias": 0.0}}, "torch.optim.SGD(lr=0.1)"),
        (
            {"momentum": 0.9, "nesterov": True},
            "torch.optim.SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.5)",
        ),
        (
            {"momentum": 0.9, "dampening": 0.5, "weight_decay": {"weight": 0.5, "bias": 0.0}},
            (
                'torch.optim.SGD([{"params": [model.weight], "weight_decay": 0.5}, '
                '{"params": [model.bias], "weight_decay": 0}], '
                "lr=0.1, momentum=0.9, dampening=0.5)"
            ),
        ),
    ],
)
def test_torch_call_is_written_as(changes: dict[str, Any], call: str) -> None:
    assert torch_call(training(**changes).sgd) == call
