"""Whether a user's code follows a rule from other inputs: another start, or other rows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from regcheck.causes import CAUSES, Change
from regcheck.history import Record
from regcheck.hypotheses import Explanation, Replay
from regcheck.numpy_trainer import NumpyTrainer
from regcheck.observed import Observed
from regcheck.orders import other_orders
from regcheck.problem import Array, Parameters


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
        state, largest = seen.torch.start(), 0.0
        for record, batch in zip(seen.history.records(), batches, strict=False):
            before = seen.history.split(record.before)
            update = seen.torch.step(state._replace(parameters=before), batch)
            state = update.state
            after = seen.history.flat(update.step.after)
            largest = max(largest, float(replay.ratios(record, after).max()))
            if largest > 1:
                break
        else:
            yield Explanation(("row-order",), {}, largest, note=note)


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
        for record, after in list_after(replay, trainer, state):
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


def list_after(replay: Replay, trainer: NumpyTrainer, state: object) -> list[tuple[Record, Array]]:
    """Take all recorded steps but the first, from a state."""
    found = []
    for record in replay.history.records():
        if record.batch.step == 1:
            continue
        before = replay.history.split(record.before)
        seen = replay.seen(trainer.problem, record)
        update = trainer.step(state._replace(parameters=before), record.batch, seen)  # type: ignore[attr-defined]
        state = update.state
        found.append((record, replay.history.flat(update.step.after)))
    return found
