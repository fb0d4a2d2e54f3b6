"""Inputs of another kind: numbers kept in float32, batches and schedules early or late."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from regcheck.checking import check
from regcheck.diagnosis.records import Diagnosis
from regcheck.problem.batches import Schedule
from regcheck.problem.row_orders import other_orders
from regcheck.report.terminal.details import report_text
from regcheck.user_code.problem_api import UserProblem
from tests.by_hand import BASE, LAMBDA, LR, MOMENTUM, TORCHS, At, Spec, Step, code, same, silent
from tests.conftest import told

BATCHES: Spec = {"batch_size": 16, "shuffle": {"seed": 3}, "epochs": 6}  # 16, 16 and 8 rows
BY_EPOCH: Spec = {"lr_schedule": {"kind": "step", "every": 2, "factor": 0.5, "per": "epoch"}}
BY_STEP: Spec = {"lr_schedule": {"kind": "step", "every": 5, "factor": 0.5}}
COSINE: Spec = {"lr_schedule": {"kind": "cosine", "steps": 6, "floor": 0.001, "per": "epoch"}}
PER_EPOCH = 3


def single(values: Any) -> Any:
    return np.asarray(values, np.float32).astype(np.float64)


def kept(weight: Callable[[Any], Any], bias: Callable[[Any], Any] = same) -> Step:
    """Make something of the parameters after torch's step."""

    def step(at: At) -> tuple[Any, Any]:
        w, b = TORCHS(at)
        return weight(w), bias(b)

    return step


def at_rate(rate: Callable[[At], float], penalty: float = LAMBDA) -> Step:
    return lambda at: at.along(at.gw, at.gb, penalty, lr=rate(at))


def found_in(step: Step = TORCHS, inputs: Spec | None = None, **spec: Any) -> Diagnosis:
    """Diagnose a step on inputs that are not as they should be, where any are given."""
    report = check(BASE | BATCHES | spec, scratch=code(step, silent, **(inputs or {})))
    assert report.diagnosis is not None
    text = " ".join(report_text(report).split())
    assert report.diagnosis.best is None or report.diagnosis.best.note in text
    return report.diagnosis


# --- float32 in a part of it ----------------------------------------------------------------------

ROUNDED: dict[str, tuple[Step, Spec, str]] = {
    "X": (TORCHS, {"data": (single, same)}, "the data X are rounded to float32"),
    "y": (TORCHS, {"data": (same, single)}, "the targets y are rounded to float32"),
    "X and y": (TORCHS, {"data": (single, single)}, "the data X and y are rounded to float32"),
    "all parameters": (
        kept(single, single),
        {"start": single},
        "the parameters are rounded to float32",
    ),
    "all but the start": (kept(single, single), {}, "the parameters are rounded to float32"),
    "the weight": (kept(single), {}, "weight is rounded to float32"),
}


@pytest.mark.sampled(every=6)
@pytest.mark.slow
@pytest.mark.parametrize("name", ROUNDED)
def test_part_that_is_rounded_to_float32_is_named(name: str) -> None:
    step, inputs, note = ROUNDED[name]
    found = found_in(step, inputs)

    assert (found.explained, found.causes) == (True, ("precision",))
    assert told(found.best).note == note


def test_gradient_in_float32_is_named() -> None:
    found = found_in(lambda at: at.along(single(at.gw), single(at.gb)))
    assert (found.explained, found.causes) == (True, ("precision",))
    assert told(found.best).note == "the gradient is rounded to float32"


def velocity(keep: Callable[[Any], Any]) -> Step:
    """Keep the velocity rounded, and step by what is kept."""

    def step(at: At) -> tuple[Any, Any]:
        v = keep(0.9 * at.memory.get("v", 0) + at.gw + LAMBDA * at.w)
        u = keep(0.9 * at.memory.get("u", 0) + at.gb + LAMBDA * at.b)
        at.memory |= {"v": v, "u": u}
        return at.w - LR * v, at.b - LR * u

    return step


def test_velocity_in_float32_is_told_by_the_size_of_the_difference() -> None:
    found = found_in(velocity(single), **MOMENTUM)
    (evidence,) = found.evidence
    assert (evidence.kind, found.stage, found.causes) == ("float32", "update", ())
    clause = "The updates are torch's to 1.1e-07 of their size, about the rounding of float32"
    assert evidence.clause == clause


@pytest.mark.parametrize("digits", [4, 10])
def test_velocity_that_is_rounded_more_or_less_is_not_told_so(digits: int) -> None:
    def keep(values: Any) -> Any:
        return np.array([float(f"{value:.{digits}g}") for value in values])

    assert not any(one.kind == "float32" for one in found_in(velocity(keep), **MOMENTUM).evidence)


@pytest.mark.slow
def test_other_rounding_is_not_taken_for_float32() -> None:
    def half(values: Any) -> Any:
        return np.asarray(values, np.float16).astype(np.float64)

    assert not found_in(inputs={"data": (half, same)}).explained
    assert not found_in(kept(lambda w: w + 1e-8)).explained


# --- batches --------------------------------------------------------------------------------------

MOVED: dict[str, tuple[Callable[[int, int], int], str]] = {
    "early": (lambda t, steps: (t + 1) % steps, "each batch one step early"),
    "late": (lambda t, _: max(t - 1, 0), "each batch one step late, the first one twice"),
    "late by a negative index": (
        lambda t, steps: (t - 1) % steps,
        "each batch one step late, the last one first",
    ),
    "early within each epoch": (
        lambda t, _: t // PER_EPOCH * PER_EPOCH + (t + 1) % PER_EPOCH,
        "each batch one step early, within its epoch",
    ),
    "late within each epoch": (
        lambda t, _: t // PER_EPOCH * PER_EPOCH + (t - 1) % PER_EPOCH,
        "each batch one step late, within its epoch",
    ),
}


@pytest.mark.sampled(every=8)
@pytest.mark.slow
@pytest.mark.parametrize("name", MOVED)
def test_batches_of_another_step_are_named(name: str) -> None:
    at, note = MOVED[name]
    found = found_in(inputs={"batch": at})

    assert (found.explained, found.causes, found.stage) == (True, ("row-order",), "gradient")
    assert told(found.best).note == note


def test_moved_batches_are_those_of_the_schedule() -> None:
    schedule = Schedule(40, 4, 16, False, 1, 3, LR, None)
    own = [tuple(batch.micro_batches[0].tolist()) for batch in schedule.batches()]  # type: ignore[union-attr]
    orders = other_orders(schedule)
    for name, (at, note) in MOVED.items():
        rows = [tuple(batch.micro_batches[0].tolist()) for batch in orders[note]]  # type: ignore[union-attr]
        assert rows == [own[at(step, len(own))] for step in range(len(own))], name


# --- schedules ------------------------------------------------------------------------------------


def shifted(steps: int, penalty: float = LAMBDA) -> Step:
    """Take the lr of another step, of a list that is long enough."""
    return at_rate(lambda at: float(at.lrs[max(0, at.t + steps)]), penalty)


SHIFTED: dict[str, tuple[Spec, int, str]] = {
    "an epoch late": (BY_EPOCH, -3, "1 epoch late"),
    "two epochs late": (COSINE, -6, "2 epochs late"),
    "a step late": (BY_STEP, -1, "1 step late"),
    "four steps late": (BY_STEP, -4, "4 steps late"),
    "an epoch late, of a cosine": (COSINE, -3, "1 epoch late"),
}


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize("name", SHIFTED)
def test_schedule_that_is_late_is_named_with_how_late(name: str) -> None:
    spec, steps, note = SHIFTED[name]
    found = found_in(shifted(steps), **spec)

    assert (found.explained, found.causes) == (True, ("schedule-shifted",))
    assert found.best is not None
    assert (found.best.change, found.best.note) == ({"lr_shift": steps}, note)


@pytest.mark.sampled(every=2)
@pytest.mark.parametrize(("epochs", "note"), [(1, "1 epoch early"), (2, "2 epochs early")])
def test_schedule_that_is_epochs_early_is_named(epochs: int, note: str) -> None:
    every_third = {"kind": "step", "every": 3, "factor": 0.5, "per": "epoch"}
    early = at_rate(lambda at: LR * 0.5 ** ((at.t // PER_EPOCH + epochs) // 3))
    found = found_in(early, lr_schedule=every_third)

    assert found.causes == ("schedule-shifted",)
    assert told(found.best).note == note


def test_epoch_late_and_another_cause_are_named_together() -> None:
    found = found_in(shifted(-PER_EPOCH, 2 * LAMBDA), **BY_EPOCH)

    assert found.causes == ("penalty-doubled", "schedule-shifted")


@pytest.mark.slow
def test_schedule_that_is_not_applied_is_told_and_named_by_no_shift() -> None:
    found = found_in(TORCHS, **BY_EPOCH)

    assert not found.explained
    assert found.stage == "optimizer"
    (clue,) = found.evidence
    assert clue.kind == "schedule-ignored"
    assert clue.clause == "The updates are torch's with the constant lr 0.05"
    assert clue.rest.endswith(" is not applied.")


@pytest.mark.sampled(every=2)
@pytest.mark.slow
@pytest.mark.parametrize("momentum", [0, 0.9])
def test_lr_of_each_step_is_told_where_it_is_any(momentum: float) -> None:
    def step(at: At) -> tuple[Any, Any]:
        v = at.memory.get("v", np.zeros(4))
        pull = np.append(at.gw + LAMBDA * at.w, at.gb + LAMBDA * at.b)
        at.memory["v"] = v = momentum * v + pull
        return at.w - LR / (1 + at.t) * v[:-1], at.b - LR / (1 + at.t) * v[-1:]

    found = found_in(step, optimizer={"name": "sgd", "momentum": momentum})

    (clue,) = found.evidence
    assert (clue.kind, clue.clause) == ("other-lrs", "The updates are torch's with other lrs")
    # Step 1 agrees: the first that does not is step 2.
    assert "from step 2 on 0.025, 0.0166667, 0.0125, 0.01, 0.00833333, 0.00714286, .." in clue.rest
    assert "where torch has 0.05, 0.05" in clue.rest
    assert found.stage == "optimizer"


@pytest.mark.slow
def test_gradient_that_is_wrong_has_no_lr_of_each_step() -> None:
    found = found_in(inputs={"data": (lambda A: A + 0.1, same)})

    assert not any(one.kind in ("schedule-ignored", "other-lrs") for one in found.evidence)


# --- another start --------------------------------------------------------------------------------


def test_start_that_a_long_step_leaves_behind_is_told_by_step_2() -> None:
    def adagrad(problem: UserProblem) -> Iterator[dict[str, Any]]:
        w, squares = np.array([0.5]), np.zeros(1)
        for _ in problem.batches:  # from 0.5 along 0.7 to −0.2, which is the way from −0.9 too
            squares = squares + (2 * w) ** 2
            w = w - problem.lr * 2 * w / np.sqrt(squares)
            yield {"weight": w}

    spec = BASE | {
        "data": {"X": [[1.0]], "y": [0.0]},
        "loss": "mse",
        "model": "linear",
        "bias": False,
        "init": {"constant": 2.0},
        "optimizer": {"name": "adagrad", "eps": 0.0},
        "lr": 0.7,
        "weight_decay": 0,
        "epochs": 4,
        "batch_size": "full",
    }
    diagnosis = told(check(spec, scratch=adagrad).diagnosis)

    assert diagnosis.causes == ("initial-parameters",)
    assert told(diagnosis.start)["weight"] == pytest.approx(0.5)


def test_start_is_found_where_its_last_digits_are_more_than_torchs_first_step_rounds() -> None:
    random = np.random.default_rng(3)
    X, y = random.normal(size=(200, 10)), (random.random(200) < 0.5).astype(float)
    weight, bias = random.normal(size=10), random.normal()

    def train(problem: UserProblem) -> Iterator[Spec]:
        w, b = weight, bias
        for rows in problem.batches:
            r = 1 / (1 + np.exp(-(X[rows] @ w + b))) - y[rows]
            w = w - problem.lr * (X[rows].T @ r / len(r) + LAMBDA * w)
            b = b - problem.lr * (r.mean() + LAMBDA * b)
            yield {"weight": w, "bias": b}

    labels = {"data": {"X": X.tolist(), "y": y.tolist()}, "model": "logistic", "loss": "bce"}
    spec = labels | {"lr": 0.01, "weight_decay": LAMBDA, "epochs": 5}
    found = told(check(spec, scratch=train).diagnosis)

    assert found.causes == ("initial-parameters",)
    assert told(found.start)["weight"].ravel() == pytest.approx(weight)
