"""Where a rule's first step starts, by where it ends.

A step that an optimizer makes as long whatever the gradient's size ends in one place from several
starts, where the lr is large: one to either side. Which of them it is tells step 2, by what step 1
left in the optimizer's memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, islice
from typing import NamedTuple

import numpy as np

from regcheck.compare.history import Record
from regcheck.diagnosis.replay import Replay
from regcheck.numerics.least_squares import newton
from regcheck.problem.batches import Batch
from regcheck.problem.problem import Array
from regcheck.trainers.numpy_state import ForwardBackward
from regcheck.trainers.numpy_trainer import NumpyTrainer

MOST_SOLVED = 200
"""Entries of the parameters up to which a start is solved for by Newton's method."""

MOST_TURNED = 32
"""Entries up to which those that step 1 moves the other way are looked for."""


class Way(NamedTuple):
    """A way to solve for a start.

    Attributes:
        times: iterations after which it is given up.
        near: the share of a limit that may be left.
        patience: iterations after which less must be left,
        slow: than this share.
    """

    times: int
    near: float
    patience: int
    slow: float


BY_ROUNDING = 0.5
"""The share of a limit that may be left where an iteration no longer leaves less: last digits."""

BY_FIXED_POINT, BY_NEWTON = Way(500, 0.01, 25, 0.7), Way(30, 0.05, 4, 0.5)


def first_starts(replay: Replay, rule: NumpyTrainer, *, turned: bool) -> Iterator[Array]:
    """Solve step(w) = w₁ for where a rule's first step starts; nothing where it does not converge.

    The fixed point's iteration, which is w ← w + (w₁ − step(w)), is that of a lr which is not
    large; else Newton's method has J⁺ (w₁ − step(w)), where steps are smooth. `turned` is whether
    to look then for what step 2 tells.
    """
    kind, entries = rule.settings.rule, replay.history.entries
    ways = [BY_FIXED_POINT]
    if kind.smooth and entries <= MOST_SOLVED:
        ways.append(BY_NEWTON)

    def solved(near: Array) -> Iterator[Array]:
        starts = (solved_start(replay, rule, way, near) for way in ways)
        yield from islice((start for start in starts if start is not None), 1)

    yield from solved(next(replay.history.records()).scratch)
    if turned and kind.elementwise and not kind.linear and entries <= MOST_TURNED:
        yield from solved(by_second_step(replay, rule))


def from_start(
    replay: Replay, rule: NumpyTrainer, start: Array
) -> tuple[Iterator[Record], Callable[[Record], ForwardBackward | None]]:
    """Return the steps, the first of them from a start, and the passes over their rows."""
    records = replay.history.records()
    first = from_place(replay, next(records), start)

    def known(record: Record) -> ForwardBackward | None:
        return None if record.batch.step == 1 else replay.scaled_pass(rule.problem, record)

    return chain([first], records), known


def from_place(replay: Replay, record: Record, start: Array) -> Record:
    """Return a step from another place: what is rounded of larger parameters is more."""
    larger = np.maximum(np.abs(start) - np.abs(record.before), 0)
    return record._replace(before=start, bound=record.bound + 2 * replay.u * larger)


def by_second_step(replay: Replay, rule: NumpyTrainer) -> Array:
    """Return about where a rule starts that then makes step 2, too.

    Each entry is a step before or after where step 1 ends; one after the other is put on the other
    side, the one that leaves the least of step 2, until none leaves less.
    """
    first, second, *_ = replay.history.records()
    moved = second.scratch - second.before
    length = first.scratch - after_first(replay, rule, first.batch, first.scratch)

    def left(sides: Array) -> float:
        start = first.scratch + sides * length
        records, known = from_start(replay, rule, start)
        (_, _), (_, update) = replay.updates(rule, islice(records, 2), known)
        assert update is not None
        by_rule = replay.history.flat(update.step.after) - second.before
        return float(np.nansum(np.abs(by_rule - moved) / (np.abs(by_rule) + np.abs(moved))))

    sides = np.ones(len(moved))
    least = left(sides)
    for _ in sides:
        others = sides * (1 - 2 * np.eye(len(sides)))  # one is on the other side in each
        rest = [left(other) for other in others]
        if min(rest) >= least:
            break
        least, sides = min(rest), others[int(np.argmin(rest))]
    return first.scratch + sides * length


def after_first(replay: Replay, rule: NumpyTrainer, batch: Batch, start: Array) -> Array:
    """Return the parameters after a rule's first step from a start."""
    state = rule.start()._replace(parameters=replay.history.split(start))
    return replay.history.flat(rule.step(state, batch).step.after)


def solved_start(replay: Replay, rule: NumpyTrainer, way: Way, near: Array) -> Array | None:
    """Solve for a start in one way, from a place that is near it."""
    record = next(replay.history.records())
    after = partial(after_first, replay, rule, record.batch)
    start, least = near.copy(), [math.inf]
    for _ in range(way.times):
        end = after(start)
        rest = record.scratch - end
        if not np.isfinite(rest).all():
            return None
        here = replay.widened(rule.problem, from_place(replay, record, start), end)
        left = float(np.abs(rest / (here.bound * replay.limits)).max())
        if left < way.near:
            return start + rest if way is BY_FIXED_POINT else start
        least.append(min(left, least[-1]))
        if len(least) > way.patience and least[-1] > way.slow * least[-1 - way.patience]:
            return start if left < BY_ROUNDING else None
        start = start + (rest if way is BY_FIXED_POINT else newton(after, start, end, rest))
    return None
