"""The catalogue: each cause does what its sabotage does, and concerns the trainings it is about."""

from __future__ import annotations

from collections.abc import Iterator
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
from regcheck.problem.batches import Batch, training_of
from regcheck.problem.problem import Problem, Step, build_problem
from regcheck.report.result import Report
from regcheck.rules.cause import HIDING, ONE_PERCENT, Change, put_in
from regcheck.rules.causes import CAUSES
from regcheck.rules.convention import NO_FAULTS, TORCH, Convention, Faults
from regcheck.rules.settings import Training
from regcheck.spec import from_mapping
from regcheck.trainers.numpy_trainer import ForwardBackward, NumpyTrainer, State, Update
from tests.faults import BUGS, Planted

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
    size = random.choice([1.0, 100.0, 100.0]) if loss == "bce" else 1.0  # so that outputs saturate
    momentum = random.choice(["none", "plain", "nesterov", "dampened"])
    options: Spec = {"name": "sgd", "momentum": 0.0 if momentum == "none" else random.random()}
    if momentum == "nesterov":
        options["nesterov"] = True
    if momentum == "dampened":
        options["dampening"] = random.random()
    bias_decay = random.choice([0.0, random.random()])
    spec: Spec = {
        "data": {
            "X": (size * random.normal(size=(rows, features))).tolist(),
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
    trainer: Any = Planted(problem)
    state, steps = trainer.start(), []
    for batch in problem.schedule.batches():
        update = trainer.step(state, batch)
        state = update.state
        steps.append(update.step)
    return steps


def numbers_of(step: Step) -> dict[str, Any]:
    """Give what both trainers must agree on."""
    parts = ("gradient", "penalty", "delta", "after")
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
        convention, faults = put_in(CAUSES[cause].changes[number], TORCH, NO_FAULTS)
        rule = NumpyTrainer(replace(problem, convention=convention, faults=faults))
        path = path_of(problem)
        mine = list(steps_beside(rule, problem, path))
        theirs = list(steps_beside(BUGS[cause][number](problem), problem, path))
        # A few dozen roundings of 1e-16 each, with velocities and sums of up to 60 gradients.
        assert max(map(apart, mine, theirs)) < 1e-13
        acted += max(map(apart, theirs, path)) > 1e-6
    assert acted >= 4  # else the sabotage showed nothing either


# --- which trainings a cause concerns -----------------------------------------------------------

UNCHANGING = {"initial-parameters", "loss-after-update", "precision", "reported-loss-scaled"}
"""What concerns every training, and changes no rule."""

IN_BATCHES = {"loss-epoch-mean", "row-order"}
"""What concerns trainings in batches, and changes no rule."""

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

LABELS: Spec = {"data": {"X": [[1], [2], [3], [4]], "y": [0, 1, 1, 0]}, "model": "logistic"}

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
    (NO_DECAY | LABELS | {"loss": "bce"}, {"bce-saturated"}),
    (NO_DECAY | LABELS | {"loss": "bce_with_logits"}, set()),
    (NO_DECAY | LABELS | {"loss": "mse"}, set()),
    (NO_DECAY | {"clip_norm": 1.0}, {"clip-per-tensor"}),
    ({"clip_norm": 1.0}, {"clip-per-tensor", "decay-before-clipping"} | PENALTY | BIAS),
    ({"clip_value": 1.0}, {"decay-before-clipping"} | PENALTY | BIAS),
    # Four rows: 2 and 2; 3 and 1; 3 alone; or two micro-batches of 2; of 3 and 1.
    (NO_DECAY | {"batch_size": 2}, IN_BATCHES),
    (NO_DECAY | {"batch_size": 3}, {"last-batch-divisor"} | IN_BATCHES),
    (NO_DECAY | {"batch_size": 3, "drop_last": True}, IN_BATCHES),
    (NO_DECAY | {"batch_size": 2, "accumulate": 2}, {"accumulation-not-averaged"}),
    (
        NO_DECAY | {"batch_size": 3, "accumulate": 2},
        {"accumulation-not-averaged", "last-batch-divisor"},
    ),
]


@pytest.mark.parametrize(("changes", "concerning"), CONCERNED)
def test_cause_concerns_the_trainings_that_it_is_about(
    small: Spec, changes: Spec, concerning: set[str]
) -> None:
    loaded = from_mapping(small | changes)
    training, convention = training_of(loaded.spec, 4), loaded.spec.named_convention()
    found = {name for name, cause in CAUSES.items() if cause.concerns(training, convention)}

    assert found == ALWAYS | UNCHANGING | concerning

    # The tensors of a deeper model go by other names, and concern the same.
    decays = {f"layers.0.{name}": decay for name, decay in training.sgd.weight_decay.items()}
    deeper = training.with_decays(decays)
    assert found == {name for name, cause in CAUSES.items() if cause.concerns(deeper, convention)}


def test_every_cause_concerns_some_training() -> None:
    concerning = (concerning for _, concerning in CONCERNED)
    assert set().union(ALWAYS, UNCHANGING, *concerning) == set(CAUSES)


def test_bias_that_a_model_has_not_is_penalized_by_neither_side() -> None:
    training = training_of(from_mapping(PLAIN).spec, 11).with_decays({"layers.0.weight": 1})

    assert CAUSES["penalty-halved"].concerns(training, TORCH)
    assert not CAUSES["bias-penalized"].concerns(training, TORCH)
    assert not CAUSES["bias-not-penalized"].concerns(training, TORCH)


# --- the table itself ---------------------------------------------------------------------------

NAMES = """
accumulation-not-averaged adagrad-accumulator-initial adam-bias-correction-compounded
adam-bias-correction-missing adam-epsilon-uncorrected bce-saturated bias-not-penalized
bias-penalized clip-per-tensor dampening-on-first-step decay-after-momentum decay-after-update
decay-before-clipping decay-bias-corrected decay-not-scaled-by-lr gradient-accumulated
gradient-scaled initial-parameters last-batch-divisor learning-rate-scaled loss-after-update
loss-epoch-mean loss-halved loss-summed momentum-dampened momentum-lr-inside momentum-missing
nesterov-added nesterov-missing penalty-constant penalty-coupled penalty-decoupled
penalty-divided-by-batch penalty-divided-by-dataset penalty-doubled penalty-halved penalty-in-loss
penalty-missing penalty-norm-not-squared penalty-scaled penalty-sign-flipped precision
reported-loss-scaled rmsprop-epsilon-inside row-order schedule-shifted target-broadcast
update-sequential
"""
"""Those that users, scripts and CI jobs rely on."""


def test_names_are_final_and_sorted() -> None:
    assert sorted([*CAUSES, *PLANNED["cause"].names]) == NAMES.split()
    assert list(CAUSES) == sorted(CAUSES)


CHANGING = [name for name, cause in CAUSES.items() if cause.changes]


@pytest.mark.parametrize("cause", CHANGING)
def test_each_change_is_one_key_that_is_not_torchs(cause: str) -> None:
    for change in CAUSES[cause].changes:
        [(key, value)] = change.items()
        convention, faults = put_in(change, TORCH, NO_FAULTS)
        [(was, now)] = [
            pair
            for pair in zip((*TORCH, *NO_FAULTS), (*convention, *faults), strict=True)
            if pair[0] != pair[1]
        ]
        assert now == value != was
        assert getattr(convention, key, None) == value or getattr(faults, key, None) == value


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
    assert set(CAUSES) - set(CHANGING) == UNCHANGING | IN_BATCHES


def test_causes_are_hidden_by_known_circumstances() -> None:
    named = {name for cause in CAUSES.values() for name in cause.hidden_by}

    assert named | {"lr-zero"} == set(HIDING) == set(HIDES)


def test_only_factors_that_may_be_anything_are_fitted() -> None:
    fitted = {name: cause.factor_key for name, cause in CAUSES.items() if cause.fitted}

    assert fitted == {
        "gradient-scaled": "gradient_factor",
        "learning-rate-scaled": "lr_factor",
        "penalty-scaled": "penalty_factor",
    }
    for name, cause in CAUSES.items():
        assert (cause.factor_key is not None) == cause.fitted
        if cause.factor_key is not None:
            assert CAUSES[name].changes == ({cause.factor_key: ONE_PERCENT},)


def test_only_the_reported_loss_parts_the_sides_in_the_loss() -> None:
    reporting = {name for name, cause in CAUSES.items() if cause.kind == "reporting"}

    assert reporting == {
        "loss-after-update",
        "loss-epoch-mean",
        "penalty-in-loss",
        "reported-loss-scaled",
    }
    assert reporting == {name for name, cause in CAUSES.items() if cause.stage == "loss"}


@pytest.mark.parametrize("cause", CAUSES)
def test_words_go_on_within_a_sentence(cause: str) -> None:
    for words in (CAUSES[cause].title, CAUSES[cause].since, CAUSES[cause].fix):
        assert words[0].islower()
        assert words[-1] not in ".;, "
        assert 5 < len(words) <= 90


# --- where and since when it shows --------------------------------------------------------------

ROWS = np.random.default_rng(3).normal(size=(11, 2))
PLAIN: Spec = {
    "data": {"X": ROWS.tolist(), "y": (ROWS @ [1.0, -2.0] + 1).tolist()},
    "model": "linear",
    "init": {"weight": [0.5, -0.3], "bias": [0.4]},
    "lr": 0.1,
    "weight_decay": 0.5,
    "epochs": 6,
}
"""A training of 11 rows that has a penalty, and nothing else that is special."""

ACTING: dict[str, Spec] = {
    "accumulation-not-averaged": {"batch_size": 4, "accumulate": 2},
    "bce-saturated": {
        "data": {"X": (100 * ROWS).tolist(), "y": (ROWS[:, 0] > 0).astype(int).tolist()},
        "model": "logistic",
        "loss": "bce",
    },
    "bias-penalized": {"weight_decay": {"weight": 0.5, "bias": 0}},
    "clip-per-tensor": {"clip_norm": 0.1},
    "dampening-on-first-step": {"optimizer": {"name": "sgd", "momentum": 0.9, "dampening": 0.5}},
    "decay-after-momentum": HEAVY,
    "decay-before-clipping": {"clip_norm": 0.1},
    "last-batch-divisor": {"batch_size": 4},
    # An lr shows first in lr λ w, where there is one.
    "learning-rate-scaled": NO_DECAY,
    "loss-epoch-mean": {"batch_size": 4},
    "momentum-dampened": HEAVY,
    "momentum-lr-inside": HEAVY | HALVED_LR,
    "momentum-missing": HEAVY,
    "nesterov-added": HEAVY,
    "nesterov-missing": LEAPING,
    "penalty-decoupled": HEAVY,
    # Where z is 0 in every row, other rows show in their gradient first.
    "row-order": {"batch_size": 4, "init": "zeros"},
    "schedule-shifted": NO_DECAY | HALVED_LR,
}
"""What a cause needs to act, or to show where it belongs."""


class LossAfterUpdate(NumpyTrainer):
    """Takes the loss after the update, from another pass."""

    def step(self, state: State, batch: Batch, seen: ForwardBackward | None = None) -> Update:
        update = super().step(state, batch, seen)
        loss = self.forward_backward(update.step.after, batch).loss
        return update._replace(step=update.step._replace(loss=loss))


class LossEpochMean(NumpyTrainer):
    """Divides a running sum of the losses by the batches so far."""

    def step(self, state: State, batch: Batch, seen: ForwardBackward | None = None) -> Update:
        update = super().step(state, batch, seen)
        before = state.velocities.get("losses") if batch.batch > 1 else None
        assert update.step.loss is not None
        losses = np.append([] if before is None else before, update.step.loss)
        velocities = update.state.velocities | {"losses": losses}
        step = update.step._replace(loss=float(losses.sum() / batch.batch))
        return update._replace(state=update.state._replace(velocities=velocities), step=step)


class HalfLossReported(NumpyTrainer):
    """Reports half the loss, and trains by all of it."""

    def step(self, state: State, batch: Batch, seen: ForwardBackward | None = None) -> Update:
        update = super().step(state, batch, seen)
        assert update.step.loss is not None
        return update._replace(step=update.step._replace(loss=0.5 * update.step.loss))


class StoresFloat32(NumpyTrainer):
    """Keeps its parameters in float32."""

    def step(self, state: State, batch: Batch, seen: ForwardBackward | None = None) -> Update:
        update = super().step(state, batch, seen)
        after = {
            name: w.astype(np.float32).astype(w.dtype) for name, w in update.step.after.items()
        }
        return update._replace(
            state=update.state._replace(parameters=after), step=update.step._replace(after=after)
        )


PLANTED: dict[str, Any] = {
    "initial-parameters": BUGS["initial-parameters"][0],
    "loss-after-update": LossAfterUpdate,
    "loss-epoch-mean": LossEpochMean,
    "precision": StoresFloat32,
    "reported-loss-scaled": HalfLossReported,
    "row-order": BUGS["row-order"][0],
}
"""Code that has a cause which changes no rule."""


STAGES = ("forward", "gradient", "penalty", "optimizer")
"""What is compared before the update, in the order of a step."""


def with_change(change: Change) -> type:
    """Make a trainer by torch's rule with a change put in."""

    class Changed(NumpyTrainer):
        def __init__(self, problem: Problem) -> None:
            convention, faults = put_in(change, TORCH, NO_FAULTS)
            super().__init__(replace(problem, convention=convention, faults=faults))

    return Changed


def test_every_cause_without_a_change_is_planted() -> None:
    assert set(PLANTED) == UNCHANGING | IN_BATCHES


@pytest.mark.parametrize("cause", CAUSES)
def test_run_parts_at_the_stage_of_its_cause(cause: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = PLAIN | ACTING.get(cause, {})
    trainers = [PLANTED[cause]] if cause in PLANTED else map(with_change, CAUSES[cause].changes)
    for trainer in trainers:
        monkeypatch.setattr(checking, "NumpyTrainer", trainer)
        report = check(spec)
        assert report.verdict == "diverged"
        assert first_stage(report) == CAUSES[cause].stage


def first_stage(report: Report) -> str:
    """Name the first stage that parts, by what was compared and not by what the cause says."""
    first = report.first_divergence
    if first is None:
        assert report.first_loss_divergence is not None
        return "loss"
    if first.stage == "initial":
        return "initial"
    parted = (name for name, step in report.comparison.first_by_stage.items() if step == first.step)
    return min(parted, key=STAGES.index, default="update")


SINCE: dict[str, set[tuple[int, int]]] = {
    "at every batch of several rows": {(1, 1)},
    "at every step of several micro-batches": {(1, 1)},
    "at the smaller last batch": {(3, 3)},
    "from step 1 on": {(1, 1)},
    "from step 2 on": {(2, 2)},
    "from step 2 on (with Nesterov's momentum from step 1 on)": {(2, 2), (1, 1)},
    "once the bias is not 0": {(2, 1)},
    "once the weights are not 0": {(2, 1)},
    "one step after the weights are first not 0 (with Nesterov's momentum at once)": {(3, 2)},
    "where a gradient is clipped": {(1, 1)},
    "where a gradient is clipped, once the weights are not 0": {(2, 1)},
    "where the lr changes": {(4, 4), (5, 5)},
    "where p is within 1e-12 of 0 or 1 (z beyond ±27.6; in float32 from z = 17.3 on)": {(2, 1)},
}
"""By what is said: the first step from a start at zero and from elsewhere, of planted bugs."""


@pytest.mark.parametrize("cause", CHANGING)
def test_cause_shows_since_when_its_row_says(cause: str) -> None:
    from tests.test_sabotage import FIRSTS

    shown = {(first.zeros, first.elsewhere) for first in FIRSTS[cause]}
    said = SINCE[CAUSES[cause].since]
    # The lr changes at step 5: one that runs early shows it at step 4.
    assert shown <= said
    assert shown == said or cause == "momentum-lr-inside"


@pytest.mark.parametrize("cause", ["decay-after-momentum", "penalty-decoupled"])
@pytest.mark.parametrize(("start", "step"), [("zeros", 2), (PLAIN["init"], 1)])
def test_with_nesterov_a_penalty_behind_the_velocity_shows_at_once(
    cause: str, start: Any, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "NumpyTrainer", with_change(CAUSES[cause].changes[0]))
    report = check(PLAIN | LEAPING | {"init": start})

    assert report.first_divergence is not None
    assert report.first_divergence.step == step


@pytest.mark.parametrize(
    ("cause", "steps"),
    [
        ("loss-after-update", [1, 2, 3, 4, 5, 6]),
        ("loss-epoch-mean", [2, 3, 5, 6]),
        ("reported-loss-scaled", [1, 2, 3, 4, 5, 6]),
    ],
)
def test_reported_loss_parts_since_when_its_row_says(
    cause: str, steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "NumpyTrainer", PLANTED[cause])
    report = check(PLAIN | {"batch_size": 4, "epochs": 2})

    assert [row.step for row in report.comparison.trace if row.loss_ratio > 8] == steps
