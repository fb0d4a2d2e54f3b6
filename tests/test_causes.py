"""The catalogue: each cause does what its sabotage does, and concerns the trainings it is about."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.random import Generator

from regcheck.causes import CAUSES, LATER, put_in
from regcheck.convention import NO_SLIPS, TORCH, Convention, Slips
from regcheck.numpy_trainer import NumpyTrainer
from regcheck.problem import Problem, Step, build_problem
from regcheck.schedule import training_of
from regcheck.spec import from_mapping
from regcheck.training import Training
from regcheck.trials import CIRCUMSTANCES
from tests.planted import BUGS, ByHand

Spec = dict[str, Any]

# --- what a cause does --------------------------------------------------------------------------


@cache
def trainings() -> list[tuple[Problem, Training]]:
    random = np.random.default_rng(5)
    return [a_training(random) for _ in range(200)]


def a_training(random: Generator) -> tuple[Problem, Training]:
    """Draw a training of a dozen rows, of any rule that a spec can ask for."""
    rows, features = int(random.integers(1, 13)), int(random.integers(1, 4))
    model, loss = [("linear", "mse"), ("logistic", "bce"), ("logistic", "mse")][random.integers(3)]
    momentum = random.choice(["none", "plain", "nesterov", "dampened"])
    options: Spec = {"name": "sgd", "momentum": 0.0 if momentum == "none" else random.random()}
    if momentum == "nesterov":
        options["nesterov"] = True
    if momentum == "dampened":
        options["dampening"] = random.random()
    bias_decay = random.choice([0.0, random.random()])
    spec: Spec = {
        "data": {
            "X": random.normal(size=(rows, features)).tolist(),
            "y": random.integers(2, size=rows).tolist(),
        },
        "model": model,
        "loss": loss,
        "init": {"weight": random.normal(size=features).tolist(), "bias": random.normal()},
        "optimizer": options,
        "lr": 0.1,
        "weight_decay": {"weight": random.random(), "bias": bias_decay},
        "batch_size": int(random.integers(1, rows + 1)),
        "accumulate": int(random.integers(1, 4)),
        "epochs": 5,
        **SCHEDULES[random.integers(len(SCHEDULES))],
        **CLIPPINGS[random.integers(len(CLIPPINGS))],
    }
    loaded = from_mapping(spec)
    return build_problem(loaded), training_of(loaded.spec, rows)


SCHEDULES: tuple[Spec, ...] = (
    {},
    {"lr_schedule": {"kind": "exponential", "factor": 0.8}},
    {"lr_schedule": {"kind": "step", "every": 2, "factor": 0.5, "per": "epoch"}},
    {"lr_schedule": {"kind": "warmup", "steps": 5}},
)
CLIPPINGS: tuple[Spec, ...] = ({}, {"clip_norm": 0.5}, {"clip_value": 0.2})


def steps_beside(trainer: Any, problem: Problem, path: list[Step]) -> Iterator[Step]:
    """Take each step of a training from the parameters of another's."""
    state = trainer.start()
    for batch, step in zip(problem.schedule.batches(), path, strict=True):
        update = trainer.step(state._replace(parameters=step.before), batch)
        state = update.state
        yield update.step


def path_of(problem: Problem) -> list[Step]:
    """Train as torch does."""
    trainer: Any = ByHand(problem)
    state, steps = trainer.start(), []
    for batch in problem.schedule.batches():
        update = trainer.step(state, batch)
        state = update.state
        steps.append(update.step)
    return steps


def numbers_of(step: Step) -> dict[str, Any]:
    """Give what both trainers must agree on."""
    parts = ("gradient", "penalty", "shift", "after")
    tensors = {
        f"{part} {name}": tensor for part in parts for name, tensor in getattr(step, part).items()
    }
    return tensors | {"loss": np.array(step.loss)}


def apart(step: Step, other: Step) -> float:
    """Give the largest difference of two steps, relative to the largest number of its kind."""
    pairs = zip(numbers_of(step).values(), numbers_of(other).values(), strict=True)
    return max(float(np.abs(a - b).max() / (1 + np.abs(b).max())) for a, b in pairs)


PAIRS = [
    pytest.param(cause, number, id=f"{cause}-{number}")
    for cause in CAUSES
    for number in range(len(CAUSES[cause].changes))
]


@pytest.mark.parametrize(("cause", "number"), PAIRS)
def test_cause_makes_the_steps_of_its_sabotage(cause: str, number: int) -> None:
    acted, concerns = 0, CAUSES[cause].concerns
    concerned = [problem for problem, training in trainings() if concerns(training, TORCH)]
    assert len(concerned) >= 12
    for problem in concerned[:12]:
        convention, slips = put_in(CAUSES[cause].changes[number], TORCH, NO_SLIPS)
        rule = NumpyTrainer(replace(problem, convention=convention, slips=slips))
        path = path_of(problem)
        mine = list(steps_beside(rule, problem, path))
        theirs = list(steps_beside(BUGS[cause][number](problem), problem, path))
        # A few dozen roundings of 1e-16 each, with velocities and sums of up to 60 gradients.
        assert max(map(apart, mine, theirs)) < 1e-13
        acted += max(map(apart, theirs, path)) > 1e-6
    assert acted >= 4  # else the sabotage showed nothing either


# --- which trainings a cause concerns -----------------------------------------------------------

ALWAYS = {
    "gradient-accumulated",
    "gradient-scaled",
    "learning-rate-scaled",
    "loss-halved",
    "loss-summed",
    "target-broadcast",
    "update-sequential",
}
PENALTY = {
    "decay-after-update",
    "decay-not-scaled-by-lr",
    "penalty-constant",
    "penalty-divided-by-batch",
    "penalty-divided-by-dataset",
    "penalty-doubled",
    "penalty-halved",
    "penalty-in-loss",
    "penalty-missing",
    "penalty-norm-not-squared",
    "penalty-scaled",
    "penalty-sign-flipped",
}
MOMENTUM = {"momentum-dampened", "momentum-missing"}
BIAS = {"bias-not-penalized"}
COUPLED = {"decay-after-momentum", "penalty-decoupled"}

NO_DECAY: Spec = {"weight_decay": 0}
HEAVY: Spec = {"optimizer": {"name": "sgd", "momentum": 0.9}}
LEAPING: Spec = {"optimizer": {"name": "sgd", "momentum": 0.9, "nesterov": True}}
HALVED_LR: Spec = {"lr_schedule": {"kind": "exponential", "factor": 0.5}}

CONCERNED: list[tuple[Spec, set[str]]] = [
    (NO_DECAY, set()),
    ({}, PENALTY | BIAS),
    ({"weight_decay": {"weight": 0.5, "bias": 0}}, PENALTY | {"bias-penalized"}),
    ({"weight_decay": {"weight": 0, "bias": 0.5}}, PENALTY | BIAS),
    # What the spec's convention says of a penalty concerns it, whatever λ is.
    (NO_DECAY | {"convention": "doubled"}, PENALTY),
    (NO_DECAY | {"convention": "bias-free"}, PENALTY | BIAS),
    (NO_DECAY | {"convention": {"loss_factor": 0.5}}, set()),
    (NO_DECAY | HEAVY, MOMENTUM | {"nesterov-added"}),
    (HEAVY, MOMENTUM | {"nesterov-added"} | PENALTY | BIAS | COUPLED),
    (NO_DECAY | LEAPING, MOMENTUM | {"nesterov-missing"}),
    (
        NO_DECAY | {"optimizer": {"name": "sgd", "momentum": 0.9, "dampening": 0.1}},
        MOMENTUM | {"nesterov-added", "dampening-on-first-step"},
    ),
    # torch's dampening acts on a velocity, and there is none.
    (NO_DECAY | {"optimizer": {"name": "sgd", "dampening": 0.1}}, set()),
    (NO_DECAY | HALVED_LR, {"schedule-shifted"}),
    (
        NO_DECAY | HALVED_LR | HEAVY,
        MOMENTUM | {"nesterov-added", "schedule-shifted", "momentum-lr-inside"},
    ),
    (NO_DECAY | {"clip_norm": 1.0}, {"clip-per-tensor"}),
    ({"clip_norm": 1.0}, {"clip-per-tensor", "decay-before-clipping"} | PENALTY | BIAS),
    ({"clip_value": 1.0}, {"decay-before-clipping"} | PENALTY | BIAS),
    # Four rows: 2 and 2; 3 and 1; 3 alone; or two micro-batches of 2; of 3 and 1.
    (NO_DECAY | {"batch_size": 2}, set()),
    (NO_DECAY | {"batch_size": 3}, {"last-batch-divisor"}),
    (NO_DECAY | {"batch_size": 3, "drop_last": True}, set()),
    (NO_DECAY | {"batch_size": 2, "accumulate": 2}, {"accumulation-not-averaged"}),
    (
        NO_DECAY | {"batch_size": 3, "accumulate": 2},
        {"accumulation-not-averaged", "last-batch-divisor"},
    ),
]


@pytest.mark.parametrize(("changes", "concerning"), CONCERNED, ids=str)
def test_cause_concerns_the_trainings_that_it_is_about(
    small: Spec, changes: Spec, concerning: set[str]
) -> None:
    loaded = from_mapping(small | changes)
    training, convention = training_of(loaded.spec, 4), loaded.spec.named_convention()
    found = {name for name, cause in CAUSES.items() if cause.concerns(training, convention)}

    assert found == ALWAYS | concerning


def test_every_cause_concerns_some_training() -> None:
    assert set().union(ALWAYS, *(concerning for _, concerning in CONCERNED)) == set(CAUSES)


# --- the table itself ---------------------------------------------------------------------------

NAMES = """
accumulation-not-averaged adagrad-accumulator-initial adam-bias-correction-compounded
adam-bias-correction-missing adam-epsilon-uncorrected bias-not-penalized bias-penalized
clip-per-tensor dampening-on-first-step decay-after-momentum decay-after-update
decay-before-clipping decay-bias-corrected decay-not-scaled-by-lr gradient-accumulated
gradient-scaled initial-parameters last-batch-divisor learning-rate-scaled loss-halved loss-summed
momentum-dampened momentum-lr-inside momentum-missing nesterov-added nesterov-missing
penalty-constant penalty-coupled penalty-decoupled penalty-divided-by-batch
penalty-divided-by-dataset penalty-doubled penalty-halved penalty-in-loss penalty-missing
penalty-norm-not-squared penalty-scaled penalty-sign-flipped precision rmsprop-epsilon-inside
row-order schedule-shifted target-broadcast update-sequential
"""
"""Those that users, scripts and CI jobs rely on."""


def test_names_are_final_and_sorted() -> None:
    assert sorted([*CAUSES, *LATER]) == NAMES.split()
    assert list(CAUSES) == sorted(CAUSES)


@pytest.mark.parametrize("cause", CAUSES)
def test_each_change_is_one_key_that_is_not_torchs(cause: str) -> None:
    for change in CAUSES[cause].changes:
        [(key, value)] = change.items()
        convention, slips = put_in(change, TORCH, NO_SLIPS)
        [(was, now)] = [
            pair
            for pair in zip((*TORCH, *NO_SLIPS), (*convention, *slips), strict=True)
            if pair[0] != pair[1]
        ]
        assert now == value != was
        assert getattr(convention, key, None) == value or getattr(slips, key, None) == value


def test_changes_are_put_into_any_rule() -> None:
    doubled, careless = Convention(penalty_factor=2.0), Slips(zeroing="never")
    convention, slips = put_in({"momentum": "ignored"}, doubled, careless)

    assert convention == doubled
    assert slips == Slips(zeroing="never", momentum="ignored")
    assert put_in({"decay": "decoupled"}, doubled, careless) == (
        Convention(penalty_factor=2.0, decay="decoupled"),
        careless,
    )


def test_causes_are_hidden_by_known_circumstances() -> None:
    named = {name for cause in CAUSES.values() for name in cause.hidden_by}

    assert named | {"lr-zero"} == set(CIRCUMSTANCES)


def test_only_factors_that_may_be_anything_are_fitted() -> None:
    fitted = {name for name, cause in CAUSES.items() if cause.fitted}

    assert fitted == {"gradient-scaled", "learning-rate-scaled", "penalty-scaled"}
    assert {name for name, cause in CAUSES.items() if cause.kind == "reporting"} == {
        "penalty-in-loss"
    }
