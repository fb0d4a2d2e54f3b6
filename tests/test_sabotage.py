"""Planted bugs, each of which must be caught: at its own first step, in its own stage and tensor.

The bugs of `tests.planted` stand in the place of the scratch side's trainer or of torch's, and
both sides' spec is the same, with torch's own convention. The step at which each first shows is
worked out by hand, with its reason beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, NamedTuple, cast

import numpy as np
import pytest

from regcheck import checking
from regcheck.checking import check
from regcheck.problem.batches import Batch
from regcheck.problem.problem import Parameters, Step, build_problem
from regcheck.report.result import Report
from regcheck.rules.causes import CAUSES
from regcheck.spec import from_mapping
from regcheck.testing import assert_equivalent
from regcheck.trainers import sides
from regcheck.trainers.numpy_trainer import ForwardBackward, NumpyTrainer, State, Update
from regcheck.trainers.torch_trainer import TorchTrainer
from tests import planted
from tests.planted import BUGS, Array, ByHand

Spec = dict[str, Any]
Use = Callable[[type], None]
"""Puts a trainer in the place of a side's own."""

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


@pytest.fixture
def framework(monkeypatch: pytest.MonkeyPatch) -> Use:
    return lambda trainer: monkeypatch.setattr(sides, "TorchTrainer", trainer)


def found(report: Report) -> tuple[int, str, str]:
    """Say at which step a run diverges, at which stage, and in which tensor."""
    assert report.verdict == "diverged"
    first = report.first_divergence
    assert first is not None
    return first.step, first.stage, first.at.tensor


def agrees(report: Report, until: int) -> bool:
    """Say whether no step before the given one had a difference beyond rounding."""
    ratios = [
        tensor.ratio
        for row in report.comparison.trace
        if row.step < until
        for tensor in row.tensors.values()
    ]
    return all(ratio <= 8 for ratio in ratios)  # the default tolerance


# --- one bug for each cause ---------------------------------------------------------------------


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


def planted_bugs(*, users: bool) -> Iterator[Any]:
    """Pair each bug with each training in which it acts: as a user's code, or as the built-in."""
    for cause, firsts in FIRSTS.items():
        bugs = BUGS[cause] if len(BUGS[cause]) > 1 else BUGS[cause] * len(firsts)
        for (bug, first), model, dtype, start in product(
            zip(bugs, firsts, strict=True),
            ("linear", "logistic"),
            ("float64",) if users else ("float64", "float32"),
            STARTS,
        ):
            for batches in first.batches if users or cause not in USERS_ALONE else ():
                given = spec_of(model, dtype, batches, start) | first.settings
                name = f"{cause}-{bug.__name__}-{model}-{dtype}-{batches}-{start}"
                yield pytest.param(cause, bug, given, first, start, id=name)


def named_first(cause: str, spec: Spec) -> str:
    """Say which cause is named first where one is planted."""
    same, batches = SAME_RULE.get(cause, (cause, ()))
    return (
        same if any(spec["batch_size"] == BATCHES[one]["batch_size"] for one in batches) else cause
    )


def assert_explained(report: Report, cause: str, spec: Spec, kind: str) -> None:
    """Assert that a cause is named, alone and first, or as the first one's very rule."""
    diagnosis = report.diagnosis
    assert diagnosis is not None
    assert report.names(cause)
    assert diagnosis.clues == ()
    if kind == "loss":
        assert diagnosis.explained
        assert diagnosis.explanations == ()
        assert diagnosis.causes == (cause,)
        return
    sets = [one.causes for one in diagnosis.explanations]
    assert sets[0] == (named_first(cause, spec),)
    assert (cause,) in sets
    assert all(one.residual <= 1 for one in diagnosis.explanations)


@pytest.mark.parametrize(
    ("cause", "bug", "spec", "first", "start"), list(planted_bugs(users=False))
)
def test_planted_cause_is_caught_at_its_own_first_step(
    scratch: Use, cause: str, bug: type, spec: Spec, first: First, start: str
) -> None:
    scratch(bug)
    report = check(spec)
    step = first.zeros if start == "zeros" else first.elsewhere
    assert_explained(report, cause, spec, first.stage)
    assert report.diagnosis is not None
    assert report.diagnosis.explained
    if first.stage == "loss":
        assert report.verdict == "diverged"
        assert report.first_divergence is None
        assert report.comparison.first_by_stage == {}
        assert report.first_loss_divergence is not None
        assert report.first_loss_divergence.step == step
        return
    at, stage, tensor = found(report)
    assert (at, stage) == (step, first.stage)
    assert tensor == (first.tensor or tensor)
    assert agrees(report, until=step)
    if first.tensor is not None:
        [other] = {"weight", "bias"} - {first.tensor}
        assert report.comparison.trace[step - 1].tensors[other].ratio <= 8
    assert report.comparison.drift.largest > 0


def as_code(bug: type[ByHand], spec: Spec, *, tells_loss: bool) -> Callable[[Any], Any]:
    """Make a user's function of a trainer: it tells its parameters, and its loss if it is to."""

    def train(_: object) -> Iterator[dict[str, Any]]:
        problem = build_problem(from_mapping(spec))
        trainer = bug(problem)
        memory = trainer.start()
        for batch in problem.schedule.batches():
            update = trainer.step(memory, batch)
            memory = cast(planted.Memory, update.state)
            yield {**update.step.after, **({"loss": update.step.loss} if tells_loss else {})}

    return train


@pytest.mark.parametrize("tells_loss", [True, False], ids=["loss", "parameters"])
@pytest.mark.parametrize(("cause", "bug", "spec", "first", "start"), list(planted_bugs(users=True)))
def test_planted_cause_in_a_users_code_is_found_from_what_it_tells(
    cause: str, bug: type[ByHand], spec: Spec, first: First, start: str, tells_loss: bool
) -> None:
    report = check(spec, scratch=as_code(bug, spec, tells_loss=tells_loss))
    if first.stage == "loss" and not tells_loss:
        assert report.verdict == "equivalent"
        return
    step = first.zeros if start == "zeros" else first.elsewhere
    assert_explained(report, cause, spec, first.stage)
    assert report.diagnosis is not None
    assert report.diagnosis.explained
    if first.stage == "loss":
        assert report.first_divergence is None
        assert report.first_loss_divergence is not None
        assert report.first_loss_divergence.step == step
        return
    at, stage, tensor = found(report)
    # The stage is that of the cause that is named, as nothing within the steps was told.
    assert (at, stage) == (step, CAUSES[named_first(cause, spec)].stage)
    # Another start is a start of all that can be told.
    assert tensor == (first.tensor or tensor)
    assert agrees(report, until=step)


def test_every_cause_has_its_sabotage() -> None:
    assert set(BUGS) == set(FIRSTS) == set(CAUSES)


@pytest.mark.parametrize("batches", BATCHES)
@pytest.mark.parametrize("model", TARGETS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_trainer_by_hand_without_a_bug_raises_no_alarm(
    scratch: Use, model: str, dtype: str, batches: str
) -> None:
    # Were it caught itself, none of its bugs would be.
    scratch(ByHand)
    settings = [first.settings for firsts in FIRSTS.values() for first in firsts]
    settings += [{"clip_value": 0.1}, {"loss": "mse"}]
    for start, setting in product(STARTS, {repr(one): one for one in settings}.values()):
        report = check(spec_of(model, dtype, batches, start) | setting)
        assert report.verdict == "equivalent"
        assert report.comparison.first_by_stage == {}


def test_clipping_bug_waits_for_the_first_clipped_step(scratch: Use) -> None:
    # Rows 5 to 8 are the second batch: a hundred times as large, so is the gradient.
    large = np.where(np.arange(ROWS)[:, None] // BATCH == 1, 100 * X, X)
    spec = spec_of(batches="mini") | {"clip_norm": 50.0}
    spec["data"] = {"X": large.tolist(), "y": TARGETS["linear"].tolist()}
    for bug in (planted.ClipPerTensor, planted.DecayBeforeClipping):
        scratch(bug)
        assert found(check(spec))[:2] == (2, "optimizer")


def test_learning_rate_shows_in_the_penalty_where_there_is_one(scratch: Use) -> None:
    scratch(planted.LearningRateScaled)
    assert found(check(spec_of(start="elsewhere")))[:2] == (1, "penalty")
    assert found(check(spec_of(start="zeros")))[:2] == (1, "optimizer")


def test_norm_that_is_not_guarded_is_caught_at_zero(scratch: Use) -> None:
    scratch(planted.PenaltyNormNotGuarded)  # 0/0 at step 1
    report = check(spec_of(start="zeros"))
    assert found(report)[:2] == (1, "penalty")
    assert report.first_divergence is not None
    assert math.isnan(report.first_divergence.at.scratch)


# --- other starts, other rows -------------------------------------------------------------------


def test_other_start_is_caught_before_step_1(scratch: Use) -> None:
    scratch(planted.OtherStart)
    report = check(spec_of())
    assert found(report) == (1, "initial", "weight")
    assert report.first_divergence is not None
    assert report.first_divergence.at.index == (0, 1)
    assert report.comparison.first_by_stage == {}  # each step from the same parameters is right


@pytest.mark.parametrize("entry", [(0, 0), (0, 1), (0, 2), None])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_start_is_compared_entry_by_entry(
    scratch: Use, dtype: str, entry: tuple[int, int] | None
) -> None:
    class Starts(ByHand):
        def start(self) -> planted.Memory:
            memory = super().start()
            tensor = memory.parameters["bias" if entry is None else "weight"]
            tensor[entry or 0] *= 1 + 1e-5  # 1e-5 is 20 u and more of float32
            return memory

    scratch(Starts)
    report = check(spec_of(dtype=dtype))
    assert found(report) == (1, "initial", "bias" if entry is None else "weight")
    assert report.first_divergence is not None
    assert report.first_divergence.at.index == (entry or (0,))


@pytest.mark.parametrize(("start", "stage"), [("zeros", "gradient"), ("elsewhere", "forward")])
def test_other_rows_are_caught_in_mini_batches(scratch: Use, start: str, stage: str) -> None:
    scratch(planted.OtherRows)  # from zeros, z is 0 in any row
    assert found(check(spec_of(batches="mini", start=start)))[:2] == (1, stage)


def test_other_order_within_a_batch_shows_in_the_outputs_alone(scratch: Use) -> None:
    scratch(planted.OtherRows)  # the full batch's sum is the same in any order
    report = check(spec_of(batches="full"))
    assert report.verdict == "equivalent"
    assert report.comparison.first_by_stage == {"forward": 1}


# --- torch's side -------------------------------------------------------------------------------

TORCH_BUGS: dict[type[TorchTrainer], tuple[Spec, tuple[int, str], str | None]] = {
    planted.ForgetsZeroGrad: (spec_of(), (2, "gradient"), None),
    # The penalty of torch's optimizer is by its own groups, which have none here.
    planted.DecaysBeforeClipping: (spec_of() | ALWAYS_CLIPPED, (1, "penalty"), None),
    planted.OneLrLate: (spec_of() | NEW_LR_AT_5, (5, "penalty"), None),
    planted.ForgetsTheBiasGroup: (spec_of(start="zeros"), (2, "penalty"), "bias"),
    planted.SumsTheLoss: (spec_of(batches="mini"), (1, "gradient"), None),
    planted.ForgetsUnsqueeze: (spec_of(), (1, "gradient"), "weight"),
    planted.SumsMicroBatches: (spec_of(batches="mini") | {"accumulate": 2}, (1, "gradient"), None),
    # Three steps an epoch: the second epoch is the first that had momentum to lose.
    planted.NewOptimizerEachEpoch: (spec_of(batches="mini") | MOMENTUM, (4, "optimizer"), None),
    planted.LoadsFloat32: (spec_of(), (1, "forward"), None),
}


@pytest.mark.parametrize("bug", TORCH_BUGS, ids=lambda bug: bug.__name__)
def test_bug_on_torchs_side_is_caught_at_its_own_first_step(
    framework: Use, bug: type[TorchTrainer]
) -> None:
    spec, first, touched = TORCH_BUGS[bug]
    framework(bug)
    report = check(spec)
    step, stage, tensor = found(report)
    assert (step, stage) == first
    assert tensor == (touched or tensor)
    assert agrees(report, until=step)


@pytest.mark.parametrize(
    "bug",
    [
        planted.DecaysBeforeClipping,
        planted.OneLrLate,
        planted.ForgetsTheBiasGroup,
        planted.NewOptimizerEachEpoch,
    ],
    ids=lambda bug: bug.__name__,
)
def test_side_of_torch_that_breaks_its_own_rule_is_not_explained_by_rounding(
    framework: Use, bug: type[TorchTrainer]
) -> None:
    framework(bug)
    report = check(TORCH_BUGS[bug][0])
    assert report.first_divergence is not None
    assert report.first_divergence.at.ratio > 1e6
    assert report.diagnosis is not None
    assert not report.diagnosis.explained


# --- every stage, tensor, entry and step is looked at --------------------------------------------

ENTRIES = [("weight", (0, 0)), ("weight", (0, 1)), ("weight", (0, 2)), ("bias", (0,))]
TIMES = {"first": 1, "middle": 3, "last": STEPS}
QUANTITIES = {
    "gradient": "gradient",
    "penalty": "penalty",
    "optimizer": "delta",
    "update": "after",
}
"""By stage, what a step tells of it."""


def tampering(step: int, *changes: tuple[str, str, tuple[int, ...]]) -> type[NumpyTrainer]:
    """Make a trainer that tells a few numbers wrong at one step: by 1e-9 of their size, and 1e-9.

    That is some 1e6 u, and far below anything that one sees in a table. `after` is what the step
    goes on from.
    """

    class Tampering(NumpyTrainer):
        def step(self, state: State, batch: Batch, seen: ForwardBackward | None = None) -> Update:
            update = super().step(state, batch, seen)
            if batch.step != step:
                return update
            told = update.step
            for part, tensor, index in changes:
                wrong = {name: one.copy() for name, one in getattr(told, part).items()}
                wrong[tensor][index] += 1e-9 * (abs(wrong[tensor][index]) + 1)
                put: dict[str, Any] = {part: wrong}
                told = told._replace(**put)
            return Update(state._replace(parameters=told.after), told, update.forward_backward)

    return Tampering


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize(("tensor", "index"), ENTRIES, ids=str)
@pytest.mark.parametrize("stage", QUANTITIES)
def test_one_number_at_one_step_is_caught_there(
    scratch: Use, stage: str, tensor: str, index: tuple[int, ...], time: str
) -> None:
    # A wrong stage that reaches the parameter: both are caught, at that step, in that entry.
    changes = {(QUANTITIES[stage], tensor, index), ("after", tensor, index)}
    scratch(tampering(TIMES[time], *changes))
    report = check(spec_of(batches="mini"))
    assert found(report) == (TIMES[time], stage, tensor)
    first = report.first_divergence
    assert first is not None
    assert (first.at.index, first.within.tensor, first.within.index) == (index, tensor, index)
    assert report.comparison.first_by_stage == ({} if stage == "update" else {stage: TIMES[time]})
    for row in report.comparison.trace:
        for name, at in row.tensors.items():
            assert (at.ratio > 8) == ((row.step, name) == (TIMES[time], tensor))


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize(("tensor", "index"), ENTRIES, ids=str)
@pytest.mark.parametrize("stage", ["gradient", "penalty", "optimizer"])
def test_one_number_told_wrong_shows_at_its_stage_alone(
    scratch: Use, stage: str, tensor: str, index: tuple[int, ...], time: str
) -> None:
    # The parameters are right, so that it is no divergence; but it is told.
    scratch(tampering(TIMES[time], (QUANTITIES[stage], tensor, index)))
    report = check(spec_of(batches="mini"))
    assert report.verdict == "equivalent"
    assert report.comparison.first_by_stage == {stage: TIMES[time]}


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("row", [0, 3])
@pytest.mark.parametrize("step", [1, 3, 5])
def test_one_output_of_one_micro_batch_shows_at_its_stage_alone(
    scratch: Use, step: int, row: int, part: int
) -> None:
    class Tampering(NumpyTrainer):
        def step(self, state: State, batch: Batch, seen: ForwardBackward | None = None) -> Update:
            update = super().step(state, batch, seen)
            if batch.step == step:
                assert update.step.outputs is not None
                update.step.outputs[part][row] += 1e-9
            return update

    scratch(Tampering)
    # Steps 1, 3 and 5 have two micro-batches of four rows.
    report = check(spec_of(batches="mini") | {"accumulate": 2, "epochs": 3})
    assert report.verdict == "equivalent"
    assert report.comparison.first_by_stage == {"forward": step}


@pytest.mark.parametrize("side", ["scratch", "framework"])
@pytest.mark.parametrize("time", TIMES)
def test_loss_told_wrong_at_one_step_is_caught_in_the_loss_alone(
    monkeypatch: pytest.MonkeyPatch, time: str, side: str
) -> None:
    # 1e-9 of it is some 1e6 u, as above.
    trainer: Any = NumpyTrainer if side == "scratch" else TorchTrainer
    real = trainer.step

    def wrong(self: Any, *arguments: Any) -> Any:
        done = real(self, *arguments)
        batch = next(one for one in arguments if isinstance(one, Batch))
        if batch.step != TIMES[time]:
            return done
        if isinstance(done, Step):
            assert done.loss is not None
            return done._replace(loss=done.loss * (1 + 1e-9))
        return done._replace(step=done.step._replace(loss=done.step.loss * (1 + 1e-9)))

    monkeypatch.setattr(trainer, "step", wrong)
    report = check(spec_of(batches="mini"))
    assert report.verdict == "diverged"
    assert report.first_divergence is None
    assert report.comparison.first_by_stage == {}
    assert report.first_loss_divergence is not None
    assert report.first_loss_divergence.step == TIMES[time]
    parted = [row.step for row in report.comparison.trace if row.loss_ratio > 8]
    assert parted == [TIMES[time]]


# --- subtle ones --------------------------------------------------------------------------------


class OneEntryOfTheGradient(ByHand):
    """One weight's gradient is off by 1e-10 of itself."""

    def keep(self, gradient: Parameters, memory: planted.Memory) -> Parameters:
        wrong = {name: g.copy() for name, g in gradient.items()}
        wrong["weight"][0, 2] *= 1 + 1e-10
        return wrong


@pytest.mark.parametrize("model", TARGETS)
@pytest.mark.parametrize("batches", BATCHES)
def test_one_entry_of_one_gradient_off_by_1e10th_is_caught(
    scratch: Use, model: str, batches: str
) -> None:
    scratch(OneEntryOfTheGradient)
    report = check(spec_of(model, batches=batches))
    assert found(report) == (1, "gradient", "weight")
    assert report.first_divergence is not None
    assert report.first_divergence.at.index == (0, 2)


class AllGradientsScaled(planted.GradientScaled):
    FACTOR = 1 + 1e-9


@pytest.mark.parametrize("model", TARGETS)
@pytest.mark.parametrize("batches", BATCHES)
def test_scale_to_which_a_cosine_is_blind_is_caught(scratch: Use, model: str, batches: str) -> None:
    scratch(AllGradientsScaled)
    report = check(spec_of(model, batches=batches))
    assert found(report)[:2] == (1, "gradient")
    assert report.comparison.sample is not None
    sides = [
        np.concatenate([g.ravel() for g in (side.gradient or {}).values()])
        for side in (report.comparison.sample.scratch, report.comparison.sample.framework)
    ]
    cosine = np.vdot(*sides) / math.prod(float(np.linalg.norm(side)) for side in sides)
    assert cosine == pytest.approx(1, abs=4e-16)  # two roundings: nothing to see


class CancellingPair(ByHand):
    """What one weight gets too much, another gets too little."""

    def move(
        self, name: str, batch: Batch, lr: float, w: Array, g: Array, v: Array | None
    ) -> planted.Moved:
        moved = super().move(name, batch, lr, w, g, v)
        if name == "weight":
            moved.after[0, 0] += 1e-8
            moved.after[0, 1] -= 1e-8
        return moved


def test_errors_whose_mean_is_zero_are_caught(scratch: Use) -> None:
    scratch(CancellingPair)
    report = check(spec_of())
    assert found(report) == (1, "update", "weight")
    assert report.comparison.sample is not None
    means = [
        side.after["weight"].mean()
        for side in (report.comparison.sample.scratch, report.comparison.sample.framework)
    ]
    assert means[0] == pytest.approx(means[1], rel=1e-15)  # 1e-8 would be 1e-7 of it


class DoubledAtStep17(ByHand):
    def penalty(self, name: str, w: Array, batch: Batch) -> Array:
        return (2 if batch.step == 17 else 1) * self.decay[name] * w


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("settings", [{}, MOMENTUM], ids=["plain", "momentum"])
def test_bug_at_one_step_of_forty_is_caught_there(scratch: Use, dtype: str, settings: Spec) -> None:
    scratch(DoubledAtStep17)
    report = check(spec_of(dtype=dtype) | settings | {"epochs": 40})
    assert found(report)[:2] == (17, "penalty")
    assert agrees(report, until=17)
    parted = [
        row.step
        for row in report.comparison.trace
        if max(t.ratio for t in row.tensors.values()) > 8
    ]
    # A velocity remembers what it was fed; plain gradient descent does not.
    assert parted == [17] if not settings else parted[:2] == [17, 18]


class DoubledInTheLastBatch(ByHand):
    def penalty(self, name: str, w: Array, batch: Batch) -> Array:
        last = batch.batch == self.problem.schedule.steps_per_epoch
        return (2 if last else 1) * self.decay[name] * w


def test_bug_in_the_last_batch_of_each_epoch_is_caught_in_the_first_one(scratch: Use) -> None:
    scratch(DoubledInTheLastBatch)
    report = check(spec_of(batches="mini"))
    assert found(report)[:2] == (3, "penalty")
    parted = [
        row.step
        for row in report.comparison.trace
        if max(t.ratio for t in row.tensors.values()) > 8
    ]
    assert parted == [3, 6]


class ReportsTheSum(ByHand):
    def reported(self, loss: float, w: Parameters) -> float:
        return loss * len(self.y)


def test_bug_in_the_reported_loss_alone_leaves_the_parameters_alone(scratch: Use) -> None:
    scratch(ReportsTheSum)
    report = check(spec_of())
    assert report.verdict == "diverged"
    assert report.first_divergence is None
    assert report.first_loss_divergence is not None
    assert report.first_loss_divergence.step == 1
    assert all(t.ratio <= 8 for row in report.comparison.trace for t in row.tensors.values())
    assert check(spec_of() | {"compare": ["parameters"]}).verdict == "equivalent"


# --- what is no number, and what is not there ---------------------------------------------------


class Poisoned(ByHand):
    """Has one entry not finite after one step."""

    STEP, TENSOR, INDEX, VALUE = 5, "weight", (0, 1), math.nan

    def move(
        self, name: str, batch: Batch, lr: float, w: Array, g: Array, v: Array | None
    ) -> planted.Moved:
        moved = super().move(name, batch, lr, w, g, v)
        if (name, batch.step) == (self.TENSOR, self.STEP):
            moved.after[self.INDEX] = self.VALUE
        return moved


class PoisonedTorch(TorchTrainer):
    """Has one weight NaN after step 5, and so on."""

    def step(self, batch: Batch) -> Step:
        done = super().step(batch)
        if batch.step == 5:
            self.views["weight"][0, 1] = math.nan
        return done._replace(after=self.parameters())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("tensor", "index"), ENTRIES, ids=str)
@pytest.mark.parametrize("time", TIMES)
def test_one_entry_not_finite_on_one_side_is_caught_at_its_step(
    scratch: Use, time: str, tensor: str, index: tuple[int, ...], value: float
) -> None:
    at = {"STEP": TIMES[time], "TENSOR": tensor, "INDEX": index, "VALUE": value}
    scratch(type("PoisonedThere", (Poisoned,), at))
    report = check(spec_of())
    assert found(report) == (TIMES[time], "update", tensor)
    assert report.first_divergence is not None
    assert report.first_divergence.at.index == index
    assert report.first_divergence.at.ratio == math.inf


def test_one_entry_not_finite_on_torchs_side_is_caught_at_its_step(framework: Use) -> None:
    framework(PoisonedTorch)
    assert found(check(spec_of())) == (5, "update", "weight")


def test_not_finite_on_both_sides_from_one_step_is_inconclusive_from_there(
    scratch: Use, framework: Use
) -> None:
    scratch(Poisoned)
    framework(PoisonedTorch)
    report = check(spec_of())
    assert (report.verdict, report.comparison.first_unjudged) == ("inconclusive", 5)
    assert report.comparison.compared == 4
    assert agrees(report, until=5)
    with pytest.raises(AssertionError, match="INCONCLUSIVE"):
        assert_equivalent(spec_of())


def test_not_finite_on_both_sides_hides_no_other_entry(scratch: Use, framework: Use) -> None:
    class AlsoDoubled(Poisoned):
        def penalty(self, name: str, w: Array, batch: Batch) -> Array:
            return (2 if batch.step == 5 else 1) * self.decay[name] * w

    scratch(AlsoDoubled)
    framework(PoisonedTorch)
    assert found(check(spec_of()))[0] == 5


def test_divergence_before_both_are_not_finite_stays(scratch: Use, framework: Use) -> None:
    class Doubled(Poisoned):
        def penalty(self, name: str, w: Array, batch: Batch) -> Array:
            return 2 * self.decay[name] * w

    scratch(Doubled)
    framework(PoisonedTorch)
    report = check(spec_of())
    assert found(report)[:2] == (1, "penalty")
    assert report.comparison.first_unjudged == 5


def nan_loss(batch: Batch) -> float:
    return math.nan if batch.step == 3 else 1.0


class LossNan(ByHand):
    def update(
        self, memory: planted.Memory, batch: Batch, w: Parameters, seen: ForwardBackward
    ) -> Update:
        return super().update(memory, batch, w, seen._replace(loss=seen.loss * nan_loss(batch)))


class TorchLossNan(TorchTrainer):
    def step(self, batch: Batch) -> Step:
        done = super().step(batch)
        assert done.loss is not None
        return done._replace(loss=done.loss * nan_loss(batch))


def test_loss_not_finite_on_one_side_is_caught_and_on_both_inconclusive(
    scratch: Use, framework: Use
) -> None:
    scratch(LossNan)
    report = check(spec_of())
    assert report.verdict == "diverged"
    assert report.first_loss_divergence is not None
    assert report.first_loss_divergence.step == 3
    framework(TorchLossNan)
    report = check(spec_of())
    assert (report.verdict, report.comparison.first_loss_unjudged) == ("inconclusive", 3)


def without_bias(tensors: Parameters) -> Parameters:
    return {"weight": tensors["weight"]}


def with_another(tensors: Parameters) -> Parameters:
    return tensors | {"other": tensors["bias"]}


def flattened(tensors: Parameters) -> Parameters:
    return tensors | {"weight": tensors["weight"][0]}


def longer(tensors: Parameters) -> Parameters:
    return tensors | {"bias": np.repeat(tensors["bias"], 2)}


def emptied(tensors: Parameters) -> Parameters:
    return tensors | {"bias": tensors["bias"][:0]}


@pytest.mark.parametrize("change", [without_bias, with_another, flattened, longer, emptied])
@pytest.mark.parametrize("part", ["after", "gradient", "penalty", "delta"])
@pytest.mark.parametrize("side", ["scratch", "framework"])
def test_tensor_that_is_missing_or_misshapen_never_passes(
    scratch: Use,
    framework: Use,
    side: str,
    part: str,
    change: Callable[[Parameters], Parameters],
) -> None:
    def changed(step: Step) -> Step:
        put: dict[str, Any] = {part: change(getattr(step, part))}
        return step._replace(**put)

    class Scratch(NumpyTrainer):
        def step(self, state: State, batch: Batch, seen: ForwardBackward | None = None) -> Update:
            update = super().step(state, batch, seen)
            return update._replace(step=changed(update.step))

    class Framework(TorchTrainer):
        def step(self, batch: Batch) -> Step:
            return changed(super().step(batch))

    if side == "scratch":
        scratch(Scratch)
    else:
        framework(Framework)
    with pytest.raises((ValueError, KeyError)):
        check(spec_of())


def test_rows_that_one_side_drops_never_pass(framework: Use) -> None:
    class DropsTheLastRow(TorchTrainer):
        def __init__(self, problem: Any, module: Any = None) -> None:
            super().__init__(problem, module)
            self.X, self.y = self.X[:-1], self.y[:-1]

    framework(DropsTheLastRow)
    with pytest.raises(ValueError, match="shape"):
        check(spec_of())
