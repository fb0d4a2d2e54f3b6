"""The catalogue: each cause does what its sabotage does, and says when and where it shows."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.random import Generator

from regcheck import checking
from regcheck.checking import check
from regcheck.compare.not_distinguished import HIDES
from regcheck.errors import PLANNED
from regcheck.problem.batches import training_of
from regcheck.problem.problem import Problem, Step, build_problem
from regcheck.rules.causes.catalogue import CAUSES
from regcheck.rules.causes.cause import HIDING, ONE_PERCENT, put_in
from regcheck.rules.convention import Convention
from regcheck.rules.faults import NO_FAULTS, Faults
from regcheck.rules.settings import Training
from regcheck.spec import from_mapping
from regcheck.trainers.numpy_trainer import NumpyTrainer
from tests.conftest import Spec, told
from tests.faults import BUGS, Planted
from tests.first_steps import FIRSTS, NESTEROV
from tests.random_specs import without_bias
from tests.test_concerns import IN_BATCHES, UNCHANGING

# --- what a cause does --------------------------------------------------------------------------


@cache
def trainings() -> list[tuple[Problem, Training]]:
    random = np.random.default_rng(5)
    return [a_training(random) for _ in range(600)]


def a_training(random: Generator) -> tuple[Problem, Training]:
    """Draw a training of a dozen rows, of any rule that a spec can ask for."""
    rows, features = int(random.integers(1, 13)), int(random.integers(1, 4))
    model, loss, size = MODELS[random.integers(len(MODELS))]
    spec: Spec = {
        "data": {
            "X": (size * random.normal(size=(rows, features))).tolist(),
            "y": random.integers(2, size=rows).tolist(),
        },
        "model": model,
        "loss": loss,
        "init": {"weight": random.normal(size=features).tolist(), "bias": random.normal()},
        "optimizer": OPTIMIZERS[random.integers(len(OPTIMIZERS))],
        "lr": 0.1,
        "weight_decay": {
            "weight": random.random(),
            "bias": random.choice([0.0, random.random()]),
        },
        "batch_size": int(random.integers(1, rows + 1)),
        "accumulate": int(random.integers(1, 4)),
        "epochs": 5,
        **SCHEDULES[random.integers(len(SCHEDULES))],
        **CLIPPINGS[random.integers(len(CLIPPINGS))],
    }
    if spec["optimizer"]["name"] == "adafactor":
        spec["lr"] = 0.9  # which 1/√t falls below
    if spec["optimizer"]["name"] == "rprop":
        spec |= {"weight_decay": 0, "lr": 1.0}  # by which signs change
    if spec["optimizer"]["name"] == "muon":
        spec = without_bias(spec)
    loaded = from_mapping(spec)
    return build_problem(loaded), training_of(loaded.spec, rows)


MODELS = (
    ("linear", "mse", 1.0),
    ("logistic", "mse", 1.0),
    ("logistic", "bce", 1.0),
    ("logistic", "bce", 100.0),  # its outputs saturate
)
OPTIMIZERS: tuple[Spec, ...] = (
    {"name": "sgd"},
    {"name": "sgd", "momentum": 0.7},
    {"name": "sgd", "momentum": 0.7, "nesterov": True},
    {"name": "sgd", "momentum": 0.7, "dampening": 0.4},
    {"name": "adam", "betas": [0.8, 0.3], "eps": 1e-3},
    {"name": "adam", "betas": [0.8, 0.3], "eps": 1e-3, "amsgrad": True},
    {"name": "adamw", "betas": [0.8, 0.3], "eps": 1e-3},
    {"name": "rmsprop", "alpha": 0.7, "eps": 1e-3, "momentum": 0.6},
    {"name": "rmsprop", "alpha": 0.7, "eps": 1e-3, "centered": True},
    {"name": "adagrad", "lr_decay": 0.3, "initial_accumulator_value": 0.4, "eps": 1e-3},
    {"name": "adadelta", "rho": 0.7, "eps": 1e-3},
    {"name": "adamax", "betas": [0.8, 0.3], "eps": 1e-3},
    {"name": "adafactor", "eps": [1e-9, 1e-3]},
    {"name": "muon"},
    {"name": "rprop"},
    {"name": "radam", "betas": [0.8, 0.95], "eps": 1e-3},
)
SCHEDULES: tuple[Spec, ...] = (
    {},
    {"lr_schedule": {"kind": "exponential", "factor": 0.8}},
    {"lr_schedule": {"kind": "step", "every": 2, "factor": 0.5, "per": "epoch"}},
    {"lr_schedule": {"kind": "warmup", "steps": 5}},
)
CLIPPINGS: tuple[Spec, ...] = ({}, {"clip_norm": 0.5}, {"clip_value": 0.2})


def steps_of(trainer: Any, problem: Problem, path: list[Step] | None = None) -> list[Step]:
    """Take the steps of a training: along its own path, or each from where another's begins."""
    state = trainer.start()
    steps: list[Step] = []
    for batch in problem.schedule.batches():
        if path is not None:
            state = state._replace(parameters=path[len(steps)].before)
        update = trainer.step(state, batch)
        state = update.state
        steps.append(update.step)
    return steps


def difference(step: Step, other: Step) -> float:
    """Return the largest difference of two steps, relative to the largest number of its kind."""
    kinds = [(getattr(step, kind), getattr(other, kind)) for kind in COMPARED]
    pairs = [(left[name], right[name]) for left, right in kinds for name in left]
    pairs.append((np.array(step.loss), np.array(other.loss)))
    return max(float(np.abs(a - b).max() / (1 + np.abs(b).max())) for a, b in pairs)


COMPARED = ("gradient", "penalty", "delta", "after")

PAIRS = [(cause, way) for cause in BUGS for way in range(len(CAUSES[cause].changes))]


def changed_by(cause: str, way: int) -> list[Problem]:
    """Return the trainings that a cause concerns, and that one of its changes makes others."""
    change = CAUSES[cause].changes[way]
    return [
        one
        for one, training in trainings()
        if CAUSES[cause].concerns(training, one.convention)
        and put_in(change, one.convention, NO_FAULTS) != (one.convention, NO_FAULTS)
    ]


@pytest.mark.sampled(every=8)
@pytest.mark.parametrize(("cause", "way"), PAIRS)
def test_cause_makes_the_steps_of_its_sabotage(cause: str, way: int) -> None:
    acted, concerned = 0, changed_by(cause, way)
    assert len(concerned) >= 12
    for problem in concerned[:12]:
        convention, faults = put_in(CAUSES[cause].changes[way], problem.convention, NO_FAULTS)
        rule = NumpyTrainer(replace(problem, convention=convention, faults=faults))
        path = steps_of(Planted(problem), problem)
        mine = steps_of(rule, problem, path)
        theirs = steps_of(BUGS[cause][way](problem), problem, path)
        # A few dozen roundings of 1e-16 each, with velocities and sums of up to 60 gradients.
        assert max(map(difference, mine, theirs)) < 1e-13
        acted += max(map(difference, theirs, path)) > 1e-6
    assert acted >= 4  # else the sabotage showed nothing either


# --- the table itself ---------------------------------------------------------------------------
NAMES = """
    accumulation-last-only accumulation-not-averaged accumulation-over-rows
    adadelta-lr-inside adafactor-lr-uncapped adagrad-accumulator-initial adagrad-lr-decay-early
    adagrad-lr-decay-missing
    adam-amsgrad-added adam-amsgrad-corrected adam-amsgrad-missing adam-betas-swapped
    adam-bias-correction-compounded
    adam-bias-correction-late adam-bias-correction-missing adam-bias-correction-partial
    adam-bias-correction-swapped adam-epsilon-inside adam-epsilon-uncorrected adam-moments-reset
    adam-steps-not-counted adam-steps-per-epoch adam-steps-per-tensor adamax-norm-stale
    bce-saturated
    bias-not-penalized bias-penalized class-weights-not-averaged clip-per-tensor
    dampening-on-first-step decay-after-momentum decay-after-update
    decay-before-clipping decay-bias-corrected decay-not-scaled-by-lr epsilon-outside
    gradient-accumulated gradient-scaled initial-parameters label-smoothing-missing
    label-smoothing-over-others last-batch-divisor
    learning-rate-scaled loss-after-update loss-epoch-mean loss-halved loss-last-micro-batch
    loss-summed
    moments-not-averaged moments-stale momentum-dampened momentum-lr-inside momentum-missing
    muon-bfloat16-missing nesterov-added nesterov-missing optimizer-state-reset option-differs
    penalty-constant
    penalty-coupled penalty-decoupled penalty-divided-by-batch penalty-divided-by-dataset
    penalty-doubled penalty-halved penalty-in-loss penalty-missing penalty-norm-not-squared
    penalty-scaled penalty-sign-flipped precision radam-rectified-early reported-loss-scaled
    rmsprop-centered-added
    rmsprop-centered-missing rmsprop-epsilon-inside root-missing row-order
    rprop-sign-change-stepped rprop-step-taken-back schedule-differs
    schedule-shifted target-broadcast update-sequential
"""
"""Those that users, scripts and CI jobs rely on."""


def test_names_are_final_and_sorted() -> None:
    assert sorted([*CAUSES, *PLANNED["cause"].names]) == NAMES.split()
    assert list(CAUSES) == sorted(CAUSES)


@pytest.mark.parametrize(("cause", "way"), PAIRS)
def test_each_change_is_one_key_that_is_not_torchs(cause: str, way: int) -> None:
    [(key, value)] = CAUSES[cause].changes[way].items()
    torchs = changed_by(cause, way)[0].convention
    torch = torchs._asdict() | NO_FAULTS._asdict()
    convention, faults = put_in({key: value}, torchs, NO_FAULTS)

    assert torch[key] != value
    assert convention._asdict() | faults._asdict() == torch | {key: value}


def test_changes_are_put_into_any_rule() -> None:
    doubled, careless = Convention(penalty_factor=2.0), Faults(zeroing="never")
    convention, faults = put_in({"momentum": "ignored"}, doubled, careless)

    assert convention == doubled
    assert faults == Faults(zeroing="never", momentum="ignored")
    assert put_in({"decay": "decoupled"}, doubled, careless) == (
        Convention(penalty_factor=2.0, decay="decoupled"),
        careless,
    )


def test_only_what_is_no_change_of_a_rule_has_none() -> None:
    without = {name for name, one in CAUSES.items() if not one.changes}
    assert without == UNCHANGING | IN_BATCHES | {"loss-last-micro-batch", "schedule-differs"}


def test_causes_are_hidden_by_known_circumstances() -> None:
    named = {name for cause in CAUSES.values() for name in cause.hidden_by}

    assert named | {"lr-zero"} == set(HIDING) == set(HIDES)


def test_only_factors_that_may_be_anything_are_fitted() -> None:
    fitted = {name: cause.changes for name, cause in CAUSES.items() if cause.fitted}

    assert fitted == {
        "gradient-scaled": ({"gradient_factor": ONE_PERCENT},),
        "learning-rate-scaled": ({"lr_factor": ONE_PERCENT},),
        "penalty-scaled": ({"penalty_factor": ONE_PERCENT},),
    }
    keys = {cause.factor_key for cause in CAUSES.values()}
    assert keys == {None, "gradient_factor", "lr_factor", "penalty_factor"}


def test_only_some_causes_change_the_reported_loss_alone() -> None:
    assert {name for name, cause in CAUSES.items() if cause.kind == "reporting"} == {
        "loss-after-update",
        "loss-epoch-mean",
        "loss-last-micro-batch",
        "penalty-in-loss",
        "reported-loss-scaled",
    }


@pytest.mark.parametrize("cause", CAUSES)
def test_words_go_on_within_a_sentence(cause: str) -> None:
    for words in (CAUSES[cause].title, CAUSES[cause].since, CAUSES[cause].fix):
        assert words[0].islower()
        assert words[-1] not in ".;, "
        assert 5 < len(words) <= 90


# --- where and since when it shows --------------------------------------------------------------


def test_stage_is_that_at_which_a_planted_bug_first_shows() -> None:
    stages = {cause: {first.stage for first in firsts} for cause, firsts in FIRSTS.items()}

    # Where there is a penalty too, as with the planted bugs, lr λ w shows another lr first.
    named = [(stages.pop(f"schedule-{it}"), f"schedule-{it}") for it in ("differs", "shifted")]
    assert all(found == {"penalty"} and CAUSES[it].stage == "optimizer" for found, it in named)
    assert stages == {cause: {CAUSES[cause].stage} for cause in stages}


SINCE: dict[str, set[tuple[int, int]]] = {
    "at every batch of several samples": {(1, 1)},
    "at every step with several micro-batches or ranks": {(1, 1)},
    "where a step's micro-batches, or its ranks' shares, differ in size": {(1, 1)},
    "at the first step t whose lr is above 1/√t": {(2, 2)},
    "at the first step whose samples differ": {(1, 1)},
    "at the smaller last batch, or a smaller share": {(3, 3)},
    "before step 1": {(1, 1)},
    "from step 1 on": {(1, 1)},
    "from step 1 on, by the rounding of the coarser dtype": {(1, 1)},
    "from step 1 on (with Adamax from step 2 on)": {(1, 1), (2, 2)},
    "from epoch 2 on": {(4, 4)},
    "from step 2 on": {(2, 2)},
    "from step 2 on, in an epoch of several steps": {(2, 2)},
    "from the first step in which the option acts (a momentum or β from step 2 on)": {(2, 2)},
    "from step 2 on (with Nesterov momentum from step 1 on)": {(2, 2), (1, 1)},
    "from the second batch of an epoch on": {(2, 2)},
    "once the bias is not 0": {(2, 1)},
    "once the weights are not 0": {(2, 1)},
    "once the weights are not 0 (with plain momentum one step later)": {(2, 1), (3, 2)},
    "where a gradient is clipped": {(1, 1)},
    "where a gradient is clipped, once the weights are not 0": {(2, 1)},
    "once a bias-corrected second moment decreases": {(2, 2)},
    "once a second moment decreases": {(2, 2)},
    "where N is above 4 and at most 5 (with β₂ = 0.999 at step 5)": {(5, 5)},
    "once a gradient changes its sign": {(2, 2)},
    "at the first step whose lr differs": {(2, 2)},
    "where the lr changes": {(4, 4), (5, 5)},
    "where p is within 1e-12 of 0 or 1 (z beyond ±27.6; in float32 from z = 17.3 on)": {(2, 1)},
}
"""By what is said: the first step from a start at zero and from elsewhere, of planted bugs."""


@pytest.mark.parametrize("cause", FIRSTS)
def test_cause_shows_since_when_its_entry_says(cause: str) -> None:
    shown = {(first.zeros, first.elsewhere) for first in FIRSTS[cause]}
    said = SINCE[CAUSES[cause].since]
    # The lr changes at step 5: one that runs early shows it at step 4.
    assert shown <= said
    assert shown == said or cause == "momentum-lr-inside"


@pytest.mark.parametrize("cause", ["decay-after-momentum", "penalty-decoupled"])
@pytest.mark.parametrize(("start", "step"), [("zeros", 2), ({"constant": 0.5}, 1)])
def test_with_nesterov_a_penalty_behind_the_velocity_shows_at_once(
    cause: str, start: Any, step: int, small: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "NumpyTrainer", BUGS[cause][0])
    first = check(small | NESTEROV | {"init": start, "epochs": 3}).first_divergence

    assert told(first).step == step
