"""Planted faults, each of which must be caught: at its own first step, in its own stage and tensor.

The trainers of `tests.faults` stand in the place of the scratch side's, and both sides' spec is the
same, with torch's own convention. The step at which each first shows is worked out by hand, with
its reason beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest

from regcheck.checking import check
from regcheck.problem.problem import build_problem
from regcheck.report.result import Report
from regcheck.rules.causes.catalogue import CAUSES
from regcheck.spec import from_mapping
from tests.conftest import Spec, told
from tests.faults import BUGS, OF_CLASSES, Plant, Planted
from tests.first_steps import (
    BATCH,
    BATCHES,
    FIRSTS,
    MOMENTUM,
    ROWS,
    SAME_RULE,
    STARTS,
    STEPS,
    TARGETS,
    USERS_ALONE,
    First,
    X,
    agrees,
    found,
    spec_of,
)

Use = Callable[[Any], None]
"""Puts a trainer in the place of a side's own."""

SECOND = {"logistic", "mini", "elsewhere", "float32", "code"}
"""One of each two settings. By default, none or three of them are taken at once: so each cause is
seen with every two settings. The other combinations are exhaustive."""


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
                rest = len(SECOND.intersection(settings)) % 3
                yield pytest.param(
                    *(cause, bug, first, settings),
                    id="-".join((cause, str(number), *settings)),
                    marks=[pytest.mark.exhaustive] if rest else [],
                )


SIDES = ("built-in", "code", "code without loss")
"""Where a fault is: in the scratch side's own trainer, or in a user's function."""


def named_first(cause: str, spec: Spec) -> str:
    """Return which cause is named first where one is planted."""
    same, batches = SAME_RULE.get(cause, (cause, ()))
    sizes = [BATCHES[one]["batch_size"] for one in batches]
    linear = (spec | MOMENTUM | spec)["optimizer"]["name"] == "sgd"
    return same if spec["batch_size"] in sizes and linear else cause


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


@pytest.mark.sampled(every=96)
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
    diagnosis = told(report.diagnosis)
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
    assert told(report.first_loss_divergence).step == step
    assert report.diagnosis is not None
    assert report.diagnosis.explanations == ()
    assert report.diagnosis.causes == (cause,)


def test_every_cause_has_its_sabotage() -> None:
    assert set(BUGS) == set(FIRSTS) == set(CAUSES) - OF_CLASSES


@pytest.mark.sampled(every=12)
@pytest.mark.slow
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
    assert math.isnan(told(report.first_divergence).at.scratch)


@pytest.mark.sampled(every=2)
@pytest.mark.slow
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
