"""Planted faults, each of which must be caught: at its own first step, in its own stage and tensor.

The trainers of `tests.faults` stand in the place of the scratch side's, and both sides' spec is the
same, with torch's own convention. The step at which each first shows is worked out by hand, with
its reason beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pytest

from regcheck import checking
from regcheck.checking import check
from regcheck.problem.problem import build_problem
from regcheck.report.result import Report
from regcheck.rules.causes import CAUSES
from regcheck.spec import from_mapping
from tests.faults import BUGS, Plant, Planted

Spec = dict[str, Any]
Use = Callable[[Any], None]
"""Puts a trainer in the place of the scratch side's own."""

ROWS, BATCH, STEPS = 11, 4, 6
RANDOM = np.random.default_rng(20)
X = RANDOM.normal(loc=(0.0, 0.5, -1.0), size=(ROWS, 3))
TARGETS = {
    "linear": X @ [1.0, -2.0, 0.5] + 1 + RANDOM.normal(size=ROWS),
    # In no batch as many ones as zeros, which would leave a bias of 0 where it is.
    "logistic": np.array([1.0, 0, 1, 1, 0, 0, 1, 0, 1, 1, 0]),
}

FULL: Spec = {"batch_size": "full", "epochs": STEPS}
MINI: Spec = {"batch_size": BATCH, "epochs": STEPS // 3}  # 4, 4 and 3 rows
BATCHES = {"full": FULL, "mini": MINI}

ZEROS: Spec = {"init": "zeros"}
ELSEWHERE: Spec = {"init": {"weight": [0.5, -0.3, 0.8], "bias": [0.4]}}
STARTS = {"zeros": ZEROS, "elsewhere": ELSEWHERE}

MOMENTUM: Spec = {"optimizer": {"name": "sgd", "momentum": 0.9}}
NESTEROV: Spec = {"optimizer": {"name": "sgd", "momentum": 0.9, "nesterov": True}}
DAMPENED: Spec = {"optimizer": {"name": "sgd", "momentum": 0.9, "dampening": 0.25}}
NEW_LR_AT_5: Spec = {"lr_schedule": {"kind": "step", "every": 4, "factor": 0.5}}
SATURATED: Spec = {
    "data": {"X": (1000 * X).tolist(), "y": TARGETS["logistic"].tolist()},
    "model": "logistic",
    "loss": "bce",
}
ALWAYS_CLIPPED: Spec = {"clip_norm": 1e-2}


def spec_of(
    model: str = "linear", dtype: str = "float64", batches: str = "full", start: str = "elsewhere"
) -> Spec:
    """Make the spec of a training in which every term acts."""
    data = {"X": X.tolist(), "y": TARGETS[model].tolist()}
    spec = {"data": data, "model": model, "dtype": dtype, "lr": 0.1, "weight_decay": 0.5}
    return spec | BATCHES[batches] | STARTS[start]


@pytest.fixture
def scratch(monkeypatch: pytest.MonkeyPatch) -> Use:
    return lambda trainer: monkeypatch.setattr(checking, "NumpyTrainer", trainer)


def found(report: Report) -> tuple[int, str, str]:
    """Return at which step a run diverges, at which stage, and in which tensor."""
    assert report.verdict == "diverged"
    first = report.first_divergence
    assert first is not None
    return first.step, first.stage, first.at.tensor


def agrees(report: Report, until: int) -> bool:
    """Whether no step before the given one had a difference beyond rounding."""
    ratios = [
        tensor.ratio
        for row in report.comparison.trace
        if row.step < until
        for tensor in row.tensors.values()
    ]
    return all(ratio <= 8 for ratio in ratios)  # the default tolerance


# --- one fault for each cause ---------------------------------------------------------------------


class First(NamedTuple):
    """Where a bug first shows: the step from a start at zero and from elsewhere, and the stage.

    `tensor` is the only one that the bug touches; `batches` those with which it acts at all.
    """

    zeros: int
    elsewhere: int
    stage: str
    settings: Spec = {}  # noqa: RUF012 - never changed
    tensor: str | None = None
    batches: tuple[str, ...] = ("full", "mini")


PENALTY = First(2, 1, "penalty")  # λ w is nothing while w is 0
STEP_1 = First(1, 1, "gradient")  # no gradient is 0, from either start

FIRSTS: dict[str, tuple[First, ...]] = {
    # Step 1 has two micro-batches.
    "accumulation-not-averaged": (STEP_1._replace(settings={"accumulate": 2}, batches=("mini",)),),
    # Of rows as large all outputs are saturated, once the weights are not 0.
    "bce-saturated": (First(2, 1, "gradient", SATURATED),),
    "bias-not-penalized": (PENALTY._replace(tensor="bias"),),
    "bias-penalized": (
        PENALTY._replace(tensor="bias", settings={"weight_decay": {"weight": 0.5, "bias": 0}}),
    ),
    # One factor for both tensors, or one for each: as soon as it is not 1.
    "clip-per-tensor": (First(1, 1, "optimizer", ALWAYS_CLIPPED),),
    "dampening-on-first-step": (First(1, 1, "optimizer", DAMPENED),),
    # v₁ = g₁ + λ w₀ either way, but only torch's v₂ holds μ λ w₀, and v₃ μ λ w₁.
    "decay-after-momentum": (First(3, 2, "optimizer", MOMENTUM),),
    # λ u, where u = w − lr g is no longer 0.
    "decay-after-update": (First(1, 1, "penalty"),),
    "decay-before-clipping": (First(2, 1, "optimizer", ALWAYS_CLIPPED),),
    "decay-not-scaled-by-lr": (PENALTY,),
    "gradient-accumulated": (First(2, 2, "gradient"),),  # at step 1 there is nothing to zero
    "gradient-scaled": (STEP_1,),
    "initial-parameters": (First(1, 1, "initial", tensor="weight"),),
    # 4, 4, and then 3 rows.
    "last-batch-divisor": (First(3, 3, "gradient", batches=("mini",)),),
    # Without a penalty, lr g is the first in which the lr shows; with one, lr λ w.
    "learning-rate-scaled": (
        First(1, 1, "optimizer", {"weight_decay": 0}),
        First(1, 1, "optimizer", {"weight_decay": 0, **MOMENTUM}),
    ),
    "loss-after-update": (First(1, 1, "loss"),),
    "loss-epoch-mean": (First(2, 2, "loss", batches=("mini",)),),  # a mean of one loss is that loss
    "loss-halved": (STEP_1,),
    "loss-summed": (STEP_1,),
    "momentum-dampened": (First(1, 1, "optimizer", MOMENTUM),),
    # v = Σ lr g equals lr Σ g until the lr changes.
    "momentum-lr-inside": (First(5, 5, "optimizer", MOMENTUM | NEW_LR_AT_5),),
    # v₁ = g₁; but Nesterov's first step is (1 + μ) g₁.
    "momentum-missing": (First(2, 2, "optimizer", MOMENTUM), First(1, 1, "optimizer", NESTEROV)),
    "nesterov-added": (First(1, 1, "optimizer", MOMENTUM),),
    "nesterov-missing": (First(1, 1, "optimizer", NESTEROV),),
    "penalty-constant": (First(1, 1, "penalty"),),  # λ is something where λ w is nothing
    # As decay-after-momentum: w₀ is remembered by torch's velocity alone.
    "penalty-decoupled": (First(3, 2, "optimizer", MOMENTUM),),
    "penalty-divided-by-batch": (PENALTY,),
    "penalty-divided-by-dataset": (PENALTY,),
    "penalty-doubled": (PENALTY,),
    "penalty-halved": (PENALTY,),
    "penalty-in-loss": (PENALTY._replace(stage="loss"),),
    "penalty-missing": (PENALTY,),
    "penalty-norm-not-squared": (PENALTY,),
    "penalty-scaled": (PENALTY,),
    "penalty-sign-flipped": (PENALTY,),
    "precision": (First(1, 1, "update"),),
    "reported-loss-scaled": (First(1, 1, "loss"), First(1, 1, "loss")),
    "row-order": (STEP_1._replace(batches=("mini",)),),  # a full batch holds all rows in any order
    # The lr changes at step 5: early it has done so at 4, late not yet at 5. lr λ w shows it.
    "schedule-shifted": (
        First(4, 4, "penalty", NEW_LR_AT_5),
        First(5, 5, "penalty", NEW_LR_AT_5),
    ),
    # Σ (z − ȳ) = Σ (z − y): the bias is not touched.
    "target-broadcast": (STEP_1._replace(tensor="weight"),),
    "update-sequential": (STEP_1._replace(tensor="weight"),),
}
"""By cause, where each of its bugs first shows (or one bug, in several trainings)."""


SAME_RULE: dict[str, tuple[str, tuple[str, ...]]] = {
    # Without a penalty, the only term is lr g: 1.01 lr times g is lr times 1.01 g.
    "learning-rate-scaled": ("gradient-scaled", ("full", "mini")),
    # lr (v + λ w) is lr v + lr λ w: where torch's lr multiplies both, they are one rule.
    "penalty-decoupled": ("decay-after-momentum", ("full", "mini")),
    # A full batch has all rows of the data.
    "penalty-divided-by-dataset": ("penalty-divided-by-batch", ("full",)),
}
"""Causes that make the very rule of another one in these settings, and with which batches.

No run by them tells the two apart, so that the one is named first, the other as an alternative.
"""

USERS_ALONE = {"precision", "row-order"}
"""Causes that only a user's own code can have: the built-in scratch side follows the spec."""


HALF = {name: number for names in (TARGETS, BATCHES, STARTS) for number, name in enumerate(names)}
HALF |= {"float64": 0, "float32": 1, "built-in": 0, "code": 1, "code without loss": 0}
"""Numbers of the settings, of which the default run takes the combinations with an even sum.

So each cause is seen in every pair of them, and in all with `-m exhaustive`.
"""


def planted() -> Iterator[Any]:
    """Pair each bug with each training in which it acts, and each place that it may stand in."""
    for cause, firsts in FIRSTS.items():
        bugs = BUGS[cause] if len(BUGS[cause]) > 1 else BUGS[cause] * len(firsts)
        for number, (bug, first) in enumerate(zip(bugs, firsts, strict=True)):
            for settings in product(TARGETS, ("float64", "float32"), first.batches, STARTS, SIDES):
                if cause in USERS_ALONE and settings[-1] == "built-in":
                    continue
                if settings[1] == "float32" and settings[-1] != "built-in":
                    continue
                odd = sum(HALF[name] for name in settings) % 2
                yield pytest.param(
                    *(cause, bug, first, settings),
                    id="-".join((cause, str(number), *settings)),
                    marks=[pytest.mark.exhaustive] if odd else [],
                )


SIDES = ("built-in", "code", "code without loss")
"""Where a fault is: in the scratch side's own trainer, or in a user's function."""


def named_first(cause: str, spec: Spec) -> str:
    """Return which cause is named first where one is planted."""
    same, batches = SAME_RULE.get(cause, (cause, ()))
    sizes = [BATCHES[one]["batch_size"] for one in batches]
    return same if spec["batch_size"] in sizes else cause


def as_code(bug: Plant, spec: Spec, *, tells_loss: bool) -> Callable[[Any], Any]:
    """Make a user's function of a trainer: it yields its parameters, and its loss if it is to."""

    def train(_: object) -> Iterator[dict[str, Any]]:
        problem = build_problem(from_mapping(spec))
        trainer = bug(problem)
        state: Any = trainer.start()
        for batch in problem.schedule.batches():
            update = trainer.step(state, batch)
            state = update.state
            yield {**update.step.after, **({"loss": update.step.loss} if tells_loss else {})}

    return train


@pytest.mark.parametrize(("cause", "bug", "first", "settings"), list(planted()))
def test_planted_cause_is_caught_at_its_own_first_step(
    scratch: Use, cause: str, bug: Plant, first: First, settings: tuple[str, ...]
) -> None:
    model, dtype, batches, start, side = settings
    spec = spec_of(model, dtype, batches, start) | first.settings
    if side == "built-in":
        scratch(bug)
        report = check(spec)
    else:
        report = check(spec, scratch=as_code(bug, spec, tells_loss=side == "code"))
    if first.stage == "loss" and side == "code without loss":
        assert report.verdict == "equivalent"
        return
    step = first.zeros if start == "zeros" else first.elsewhere
    assert_explained(report, cause, spec)
    if first.stage == "loss":
        assert_found_in_the_loss(report, cause, step)
        return
    # Of a user's steps nothing within is known: the stage is that of the cause that is named.
    stage = first.stage if side == "built-in" else CAUSES[named_first(cause, spec)].stage
    assert found(report)[:2] == (step, stage)
    assert found(report)[2] == (first.tensor or found(report)[2])
    assert agrees(report, until=step)
    assert report.comparison.drift.largest > 0
    if side == "built-in" and first.tensor is not None:
        [other] = {"weight", "bias"} - {first.tensor}
        assert report.comparison.trace[step - 1].tensors[other].ratio <= 8


def assert_explained(report: Report, cause: str, spec: Spec) -> None:
    """Assert that a cause is named, alone and first, or as the first one's very rule."""
    diagnosis = report.diagnosis
    assert diagnosis is not None
    assert diagnosis.explained
    assert report.names(cause)
    assert diagnosis.evidence == ()
    if CAUSES[cause].stage != "loss":
        sets = [one.causes for one in diagnosis.explanations]
        assert sets[0] == (named_first(cause, spec),)
        assert (cause,) in sets
        assert all(one.residual <= 1 for one in diagnosis.explanations)


def assert_found_in_the_loss(report: Report, cause: str, step: int) -> None:
    """Assert that the reported loss alone differs, and why."""
    assert report.verdict == "diverged"
    assert report.first_divergence is None
    assert report.comparison.first_by_stage == {}
    assert report.first_loss_divergence is not None
    assert report.first_loss_divergence.step == step
    assert report.diagnosis is not None
    assert report.diagnosis.explanations == ()
    assert report.diagnosis.causes == (cause,)


def test_every_cause_has_its_sabotage() -> None:
    assert set(BUGS) == set(FIRSTS) == set(CAUSES)


@pytest.mark.parametrize("batches", BATCHES)
@pytest.mark.parametrize("model", TARGETS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_trainer_by_hand_without_a_fault_raises_no_alarm(
    scratch: Use, model: str, dtype: str, batches: str
) -> None:
    # Were it caught itself, none of its faults would be.
    scratch(Planted)
    settings = [first.settings for firsts in FIRSTS.values() for first in firsts]
    settings += [{"clip_value": 0.1}, {"loss": "mse"}]
    for start, setting in product(STARTS, {repr(one): one for one in settings}.values()):
        report = check(spec_of(model, dtype, batches, start) | setting)
        assert report.verdict == "equivalent"
        assert report.comparison.first_by_stage == {}


# --- where else a fault first shows ---------------------------------------------------------------


@pytest.mark.parametrize("cause", ["clip-per-tensor", "decay-before-clipping"])
def test_clipping_bug_waits_for_the_first_clipped_step(scratch: Use, cause: str) -> None:
    # Rows 5 to 8 are the second batch: a hundred times as large, so is the gradient.
    large = np.where(np.arange(ROWS)[:, None] // BATCH == 1, 100 * X, X)
    spec = spec_of(batches="mini") | {"clip_norm": 50.0}
    spec["data"] = {"X": large.tolist(), "y": TARGETS["linear"].tolist()}
    scratch(BUGS[cause][0])
    assert found(check(spec))[:2] == (2, "optimizer")


@pytest.mark.parametrize(("start", "stage"), [("elsewhere", "penalty"), ("zeros", "optimizer")])
def test_learning_rate_shows_in_the_penalty_where_there_is_one(
    scratch: Use, start: str, stage: str
) -> None:
    scratch(BUGS["learning-rate-scaled"][0])
    assert found(check(spec_of(start=start)))[:2] == (1, stage)


def test_norm_that_is_not_guarded_is_caught_at_zero(scratch: Use) -> None:
    class NotGuarded(Planted):
        def __init__(self, problem: Any) -> None:
            super().__init__(problem)
            self.training.penalty = (  # type: ignore[method-assign]
                lambda strength, w: strength * w / np.sqrt((w * w).sum())  # 0/0 at step 1
            )

    scratch(NotGuarded)
    report = check(spec_of(start="zeros"))
    assert found(report)[:2] == (1, "penalty")
    assert report.first_divergence is not None
    assert math.isnan(report.first_divergence.at.scratch)


@pytest.mark.parametrize(("start", "stage"), [("zeros", "gradient"), ("elsewhere", "forward")])
def test_other_rows_are_caught_in_mini_batches(scratch: Use, start: str, stage: str) -> None:
    scratch(BUGS["row-order"][0])  # from zeros, z is 0 in any row
    assert found(check(spec_of(batches="mini", start=start)))[:2] == (1, stage)


def test_other_order_within_a_batch_shows_in_the_outputs_alone(scratch: Use) -> None:
    scratch(BUGS["row-order"][0])  # the full batch's sum is the same in any order
    report = check(spec_of(batches="full"))
    assert report.verdict == "equivalent"
    assert report.comparison.first_by_stage == {"forward": 1}


def test_fault_in_the_reported_loss_alone_leaves_the_parameters_alone(scratch: Use) -> None:
    scratch(BUGS["reported-loss-scaled"][0])
    assert agrees(check(spec_of()), until=STEPS + 1)
    assert check(spec_of() | {"compare": ["parameters"]}).verdict == "equivalent"
