"""Other orders of the rows, in which a scratch side may have taken them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from regcheck.problem.batches import Batch, Schedule

Order = Callable[[int], NDArray[np.intp] | None]
"""Returns an epoch's order of the rows."""

NOT_SHUFFLED = "in the order of the data, not shuffled"

SEEDS = (0, 1, 42)
"""Seeds that people choose."""


def other_orders(schedule: Schedule) -> dict[str, Iterator[Batch]]:
    """Return the steps of a schedule with its rows in other orders: what they are → the steps."""
    own, rows = schedule.shuffle_seed, schedule.rows
    found: dict[str, Iterator[Batch]] = {}
    if own is not None:
        orders: dict[str, Order] = {
            NOT_SHUFFLED: lambda _: np.arange(rows),
            "in the first epoch's order in every epoch": lambda _: shuffled(schedule, 1),
            "in the previous epoch's order": lambda epoch: shuffled(schedule, epoch - 1),
            "in the next epoch's order": lambda epoch: shuffled(schedule, epoch + 1),
        }
        found = {note: taken(schedule, order) for note, order in orders.items()}
    others = other_steps(schedule.steps, schedule.steps_per_epoch)
    found |= {note: taken(schedule, schedule.order, other) for note, other in others.items()}
    found["in the reverse order"] = taken(schedule, lambda epoch: shuffled(schedule, epoch)[::-1])
    found["all samples at every step"] = (
        batch._replace(micro_batches=(slice(0, rows),), size=rows) for batch in schedule.batches()
    )
    found["the first batch at every step"] = taken(schedule, lambda _: None, lambda _: 1)
    for seed in dict.fromkeys(SEEDS if own is None else (own, *SEEDS)):
        generators: dict[str, np.random.Generator | np.random.RandomState] = {
            f"default_rng({seed})": np.random.default_rng(seed),
            f"seed({seed})": np.random.RandomState(seed % 2**32),
        }
        for name, random in generators.items():
            found[f"shuffled by numpy.random.{name}"] = taken(schedule, drawn(random, rows))
    return found


def other_steps(steps: int, per_epoch: int) -> dict[str, Callable[[int], int]]:
    """Return whose rows each step takes, of so many steps; the ends go round, or stay."""

    def within(step: int, by: int) -> int:
        epoch, batch = divmod(step - 1, per_epoch)
        return epoch * per_epoch + (batch + by) % per_epoch + 1

    return {
        "each batch one step early": lambda step: step % steps + 1,
        "each batch one step early, within its epoch": lambda step: within(step, 1),
        "each batch one step late, the first one twice": lambda step: max(1, step - 1),
        "each batch one step late, the last one first": lambda step: (step - 2) % steps + 1,
        "each batch one step late, within its epoch": lambda step: within(step, -1),
    }


def shuffled(schedule: Schedule, epoch: int) -> NDArray[np.intp]:
    """Return an epoch's own order."""
    order = schedule.order(max(0, epoch))
    return np.arange(schedule.rows) if order is None else order


def drawn(random: np.random.Generator | np.random.RandomState, rows: int) -> Order:
    """Draw one order of the rows after the other, whatever the epoch."""
    return lambda _: random.permutation(rows)


def taken(
    schedule: Schedule,
    order: Order,
    other: Callable[[int], int] = lambda step: step,
) -> Iterator[Batch]:
    """Yield the steps, each with the rows of another, each epoch's rows in an order."""
    now, rows = 0, None
    for batch in schedule.batches():
        epoch, index = divmod(other(batch.step) - 1, schedule.steps_per_epoch)
        if epoch + 1 != now:
            now, rows = epoch + 1, order(epoch + 1)
        micro_batches, size = schedule.micro_batches(index + 1, rows)
        yield batch._replace(micro_batches=micro_batches, size=size)
