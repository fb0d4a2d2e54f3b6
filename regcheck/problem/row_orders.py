"""Other orders of the rows, in which a scratch side may have taken them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from regcheck.problem.batches import Batch, Schedule

Order = Callable[[int], NDArray[np.intp]]
"""Gives an epoch's order of the rows."""

NOT_SHUFFLED = "in the order of the data, not shuffled"

SEEDS = (0, 1, 42)
"""Seeds that people choose."""


def other_orders(schedule: Schedule) -> dict[str, Iterator[Batch]]:
    """Give the steps of a schedule with its rows in other orders: what they are → the steps."""
    rows = schedule.rows
    plain = np.arange(rows)
    seeds = dict.fromkeys(
        (*(() if schedule.shuffle_seed is None else (schedule.shuffle_seed,)), *SEEDS)
    )
    found: dict[str, Iterator[Batch]] = {}
    if schedule.shuffle_seed is not None:
        found[NOT_SHUFFLED] = ordered(schedule, lambda _: plain)
        found["in the first epoch's order in every epoch"] = ordered(
            schedule, lambda _: shuffled(schedule, 1)
        )
        found["in the order of the epoch before"] = ordered(
            schedule, lambda epoch: shuffled(schedule, epoch - 1)
        )
        found["in the order of the epoch after"] = ordered(
            schedule, lambda epoch: shuffled(schedule, epoch + 1)
        )
    found |= moved(schedule)
    found["in the reverse order"] = ordered(schedule, lambda epoch: shuffled(schedule, epoch)[::-1])
    found["all rows at every step"] = whole(schedule)
    found["the first batch at every step"] = first_only(schedule)
    for seed in seeds:
        found[f"shuffled by numpy.random.default_rng({seed})"] = ordered(
            schedule, drawn(rows, seed)
        )
        found[f"shuffled by numpy.random.seed({seed})"] = ordered(schedule, drawn_old(rows, seed))
    return found


def shuffled(schedule: Schedule, epoch: int) -> NDArray[np.intp]:
    """Give an epoch's own order."""
    order = schedule.order(max(0, epoch))
    return np.arange(schedule.rows) if order is None else order


def drawn(rows: int, seed: int) -> Order:
    """Draw one order after the other from a generator."""
    random = np.random.default_rng(seed)
    return lambda _: random.permutation(rows)


def drawn_old(rows: int, seed: int) -> Order:
    """Draw one order after the other from NumPy's older generator."""
    random = np.random.RandomState(seed % 2**32)
    return lambda _: random.permutation(rows)


def ordered(schedule: Schedule, order: Order) -> Iterator[Batch]:
    """Give the steps with each epoch's rows in an order."""
    now, rows = 0, np.arange(schedule.rows)
    for batch in schedule.batches():
        if batch.epoch != now:
            now, rows = batch.epoch, order(batch.epoch)
        parts, _ = schedule.parts(batch.batch, rows)
        yield batch._replace(parts=parts)


def moved(schedule: Schedule) -> dict[str, Iterator[Batch]]:
    """Give the steps with the rows of the step after, or before; the ends go round, or stay."""
    steps, per_epoch = schedule.steps, schedule.steps_per_epoch

    def within(step: int, by: int) -> int:
        first = (step - 1) // per_epoch * per_epoch
        return first + (step - 1 - first + by) % per_epoch + 1

    others: dict[str, Callable[[int], int]] = {
        "each batch one step early": lambda step: step % steps + 1,
        "each batch one step early, within its epoch": lambda step: within(step, 1),
        "each batch one step late, the first one twice": lambda step: max(1, step - 1),
        "each batch one step late, the last one first": lambda step: (step - 2) % steps + 1,
        "each batch one step late, within its epoch": lambda step: within(step, -1),
    }
    return {note: taken_at(schedule, other) for note, other in others.items()}


def taken_at(schedule: Schedule, other: Callable[[int], int]) -> Iterator[Batch]:
    """Give the steps with each one's rows those of another step."""
    known: dict[int, NDArray[np.intp] | None] = {}
    for batch in schedule.batches():
        place = other(batch.step) - 1
        epoch, index = place // schedule.steps_per_epoch + 1, place % schedule.steps_per_epoch + 1
        if epoch not in known:
            known = {epoch: schedule.order(epoch)}
        parts, size = schedule.parts(index, known[epoch])
        yield batch._replace(parts=parts, size=size)


def whole(schedule: Schedule) -> Iterator[Batch]:
    """Give the steps with all rows at each."""
    for batch in schedule.batches():
        yield batch._replace(parts=(slice(0, schedule.rows),), size=schedule.rows)


def first_only(schedule: Schedule) -> Iterator[Batch]:
    """Give the steps with the first batch's rows at each."""
    plain = replace(schedule, shuffle_seed=None)
    parts, size = plain.parts(1, None)
    for batch in schedule.batches():
        yield batch._replace(parts=parts, size=size)
