"""Whether a user's code follows a rule from other inputs: another start, other rows, or rounded.

Data or parameters that are kept in float32, in a computation that else is in float64, are known by
what a step comes to from them: from rounded data all of it, to the rounding of float64; from
rounded parameters it is within half a unit in the last place of float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from regcheck.compare.history import Record
from regcheck.diagnosis.records import Observed
from regcheck.diagnosis.replay import Explanation, Replay
from regcheck.problem.batches import Batch
from regcheck.problem.problem import Array, Parameters
from regcheck.problem.row_orders import other_orders
from regcheck.rules.cause import Change
from regcheck.rules.causes import CAUSES
from regcheck.trainers.numpy_trainer import NumpyTrainer, State


def from_other_inputs(
    seen: Observed, replay: Replay
) -> tuple[tuple[Explanation, ...], Parameters | None]:
    """Find other rows, or another start, from which a user's code makes its steps by the rule."""
    if seen.sees_rows and seen.training.batch_rows[0] < seen.training.train_rows:
        found = tuple(in_other_orders(seen, replay))
        if found:
            return found, None
    if seen.first == 1:
        for causes, change in alone(seen):
            elsewhere = from_elsewhere(seen, replay, causes, change)
            if elsewhere is not None:
                return (elsewhere[0],), elsewhere[1]
    return (), None


def in_other_orders(seen: Observed, replay: Replay) -> Iterator[Explanation]:
    """Find the orders of the rows in which torch's rule makes the scratch side's steps."""
    for note, batches in other_orders(seen.torch.problem.schedule).items():
        largest = left_by(replay, seen.torch, batches)
        if largest <= 1:
            yield Explanation(("row-order",), {}, largest, note=note)


def left_by(replay: Replay, trainer: NumpyTrainer, batches: Iterable[Batch] | None = None) -> float:
    """Give the largest difference left by a rule that passes over rows; inf from the first above 1.

    Args:
        replay: the steps.
        trainer: the rule, on its own data.
        batches: the rows of each step, where they are not the schedule's.
    """
    history = replay.history
    state, largest = trainer.start(), 0.0
    nothing: Iterable[Batch | None] = repeat(None)
    for record, batch in zip(history.records(), batches or nothing, strict=False):
        before = history.split(record.before)
        update = trainer.step(state._replace(parameters=before), batch or record.batch)
        state = update.state
        after = history.flat(update.step.after)
        largest = max(largest, float(replay.ratios(record, after).max()))
        if largest > 1:
            return math.inf
    return largest


def from_rounded(seen: Observed, replay: Replay) -> Explanation | None:
    """Find data, or parameters, that are rounded to float32 where torch computes in float64."""
    problem = seen.torch.problem
    if problem.scratch_dtype != "float64" or problem.framework_dtype != "float64":
        return None
    if not np.isfinite(replay.history.all("scratch")).all():  # no number is rounded to NaN
        return None
    found = parameters_rounded(replay)
    if found is not None or not seen.sees_rows or not seen.leads:
        return found
    X, y = (numbers.astype(np.float32).astype(np.float64) for numbers in (problem.X, problem.y))
    for note, rounded in {
        "the data X are rounded to float32": replace(problem, X=X),
        "the targets y are rounded to float32": replace(problem, y=y),
        "the data X and y are rounded to float32": replace(problem, X=X, y=y),
    }.items():
        largest = left_by(replay, NumpyTrainer(rounded))
        if largest <= 1:
            return Explanation(("precision",), {}, largest, note=note)
    return None


def parameters_rounded(replay: Replay) -> Explanation | None:
    """See whether the steps are torch's, with some tensors rounded to float32 after each."""
    history = replay.history
    after = history.all("scratch")
    with np.errstate(all="ignore"):
        single = after.astype(np.float32).astype(np.float64)
    names = [name for name, part in history.slices.items() if same(after[:, part], single[:, part])]
    of_single = np.zeros(history.entries, dtype=bool)
    for name in names:
        of_single[history.slices[name]] = True
    if not names:
        return None
    largest = min(left_rounded(replay, of_single, start) for start in (True, False))
    if largest > 1:
        return None
    which = "the parameters are" if len(names) == len(history.slices) else f"{names[0]} is"
    which = which if len(names) in (1, len(history.slices)) else f"{' and '.join(names)} are"
    return Explanation(("precision",), {}, largest, note=f"{which} rounded to float32")


def left_rounded(replay: Replay, of_single: NDArray[np.bool_], start: bool) -> float:
    """Give the largest difference left beyond half a unit of float32; inf from the first above 1.

    Args:
        replay: the steps.
        of_single: the entries that are rounded.
        start: whether they are so before step 1 too.
    """
    history, torch = replay.history, replay.torch
    state, largest = torch.start(), 0.0
    for record in history.records():
        before = np.where(of_single & start, record.before.astype(np.float32), record.before)
        known = same(before, record.before) or not replay.sees_rows
        seen = replay.seen(torch.problem, record) if known else None
        update = torch.step(state._replace(parameters=history.split(before)), record.batch, seen)
        state, exact = update.state, history.flat(update.step.after)
        half = np.spacing(np.abs(record.scratch).astype(np.float32)).astype(np.float64) / 2
        rounded = np.clip(record.scratch, exact - half, exact + half)
        rounded = np.where(of_single, rounded, exact)
        largest = max(largest, float(replay.ratios(record, rounded).max()))
        if largest > 1:
            return math.inf
    return largest


def same(one: Array, other: Array) -> bool:
    """Say whether two arrays have the same numbers."""
    return bool(np.array_equal(one, other, equal_nan=True))


def alone(seen: Observed) -> Iterator[tuple[tuple[str, ...], Change]]:
    """Give torch's own rule, and then each cause that concerns the run by itself."""
    yield (), {}
    for name, cause in CAUSES.items():
        visible = seen.visible is None or name in seen.visible
        if visible and not cause.fitted and cause.concerns(seen.training, seen.convention):
            yield from (((name,), change) for change in cause.changes)


def from_elsewhere(
    seen: Observed, replay: Replay, causes: tuple[str, ...], change: Change
) -> tuple[Explanation, Parameters] | None:
    """See whether the steps are a rule's, but for where the first one starts.

    Its start is what the rule takes to the end of step 1; all later steps must agree, and some
    must show that.
    """
    history = seen.history
    if len(history) < 2 or not seen.sees_rows or not moves_later(replay):
        return None
    trainer = replay.by(change)
    for find in (by_newton, by_fixed_point):
        start = find(replay, trainer)
        if start is None:
            continue
        first = next(history.records())
        state = trainer.start()._replace(parameters=history.split(start))
        state = trainer.step(state, first.batch).state
        largest = 0.0
        for record, after in later(replay, trainer, state):
            largest = max(largest, float(replay.ratios(record, after).max()))
            if largest > 1:
                break
        else:
            names = ("initial-parameters", *causes)
            return Explanation(names, change, largest), history.split(start)
    return None


def moves_later(replay: Replay) -> bool:
    """Say whether torch moves a parameter beyond rounding in some step but the first."""
    history = replay.history
    moved = np.abs(history.all("framework") - history.all("before"))[1:]
    with np.errstate(all="ignore"):
        return bool((moved > history.all("bound")[1:] * replay.limits).any())


MOST_SOLVED = 200
"""Entries of the parameters up to which a start is solved for."""


def by_newton(replay: Replay, trainer: NumpyTrainer) -> Array | None:
    """Solve step(w) = w₁ for w by Newton's method; None where it does not converge."""
    history = replay.history
    first = next(history.records())
    if history.entries > MOST_SOLVED:
        return None

    def after(entries: Array) -> Array:
        state = trainer.start()._replace(parameters=history.split(entries))
        return history.flat(trainer.step(state, first.batch).step.after)

    start = first.scratch.copy()
    with np.errstate(all="ignore"):
        for _ in range(30):
            end = after(start)
            rest = first.scratch - end
            here = replay.widened(trainer.problem, first._replace(before=start), end)
            if not np.isfinite(rest).all():
                return None
            if float(np.abs(rest / (here.bound * replay.limits)).max()) < 0.05:
                return start
            slopes = np.empty((len(start), len(start)))
            for entry in range(len(start)):
                h = 1e-6 * max(1.0, abs(float(start[entry])))
                moved = start.copy()
                moved[entry] += h
                slopes[:, entry] = (after(moved) - end) / h
            if not np.isfinite(slopes).all():
                return None
            start = start + np.linalg.lstsq(slopes, rest, rcond=1e-13)[0]
    return None


def by_fixed_point(replay: Replay, trainer: NumpyTrainer) -> Array | None:
    """Solve it by w ← w + (w₁ − step(w)); None where that does not converge."""
    history = replay.history
    first = next(history.records())
    start = first.scratch.copy()
    with np.errstate(all="ignore"):
        for _ in range(500):
            state = trainer.start()._replace(parameters=history.split(start))
            end = history.flat(trainer.step(state, first.batch).step.after)
            rest = first.scratch - end
            here = replay.widened(trainer.problem, first._replace(before=start), end)
            start = start + rest
            if not np.isfinite(start).all():
                return None
            if float(np.abs(rest / (here.bound * replay.limits)).max()) < 0.01:
                return start
    return None


def later(replay: Replay, trainer: NumpyTrainer, state: State) -> Iterator[tuple[Record, Array]]:
    """Take the recorded steps but the first, from a state, each when it is asked for."""
    for record in replay.history.records():
        if record.batch.step == 1:
            continue
        before = replay.history.split(record.before)
        seen = replay.seen(trainer.problem, record)
        update = trainer.step(state._replace(parameters=before), record.batch, seen)
        state = update.state
        yield record, replay.history.flat(update.step.after)
