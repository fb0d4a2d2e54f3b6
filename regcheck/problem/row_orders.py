"""Other orders of the rows, in which a scratch side may have taken them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from regcheck.problem.batches import Batch, Schedule

NOT_SHUFFLED = "in the order of the data, not shuffled"

SEEDS = (0, 1, 42)
"""Seeds that people choose."""


def other_orders(schedule: Schedule) -> dict[str, Iterator[Batch]]:
    """Return the steps of a schedule with its rows in other orders: what they are → the steps."""
    plain, own, steps = np.arange(schedule.rows), schedule.shuffle_seed, schedule.steps

    def shuffled(epoch: int) -> NDArray[np.intp]:
        order = schedule.order(max(0, epoch))
        return plain if order is None else order

    def within(step: int, by: int) -> int:
        """Return the step so many later in its epoch, round whose end it goes."""
        epoch, batch = divmod(step - 1, schedule.steps_per_epoch)
        return epoch * schedule.steps_per_epoch + (batch + by) % schedule.steps_per_epoch + 1

    orders: dict[str, Callable[[int], NDArray[np.intp]]] = {
        NOT_SHUFFLED: lambda _: plain,
        "in the first epoch's order in every epoch": lambda _: shuffled(1),
        "in the order of the epoch before": lambda epoch: shuffled(epoch - 1),
        "in the order of the epoch after": lambda epoch: shuffled(epoch + 1),
    }
    found = {} if own is None else {note: taken(schedule, order) for note, order in orders.items()}
    others: dict[str, Callable[[int], int]] = {
        "each batch one step early": lambda step: step % steps + 1,
        "each batch one step early, within its epoch": lambda step: within(step, 1),
        "each batch one step late, the first one twice": lambda step: max(1, step - 1),
        "each batch one step late, the last one first": lambda step: (step - 2) % steps + 1,
        "each batch one step late, within its epoch": lambda step: within(step, -1),
    }
    found |= {note: taken(schedule, schedule.order, other) for note, other in others.items()}
    found["in the reverse order"] = taken(schedule, lambda epoch: shuffled(epoch)[::-1])
    rows, size = (slice(0, schedule.rows),), schedule.rows
    found["all rows at every step"] = (
        batch._replace(micro_batches=rows, size=size) for batch in schedule.batches()
    )
    found["the first batch at every step"] = taken(schedule, lambda _: None, lambda _: 1)
    for seed in dict.fromkeys((*(() if own is None else (own,)), *SEEDS)):
        new, old = np.random.default_rng(seed), np.random.RandomState(seed % 2**32)
        found[f"shuffled by numpy.random.default_rng({seed})"] = taken(
            schedule, drawn(new, schedule.rows)
        )
        found[f"shuffled by numpy.random.seed({seed})"] = taken(schedule, drawn(old, schedule.rows))
    return found


def drawn(
    random: np.random.Generator | np.random.RandomState, rows: int
) -> Callable[[int], NDArray[np.intp]]:
    """Draw one order of the rows after the other."""
    return lambda _: random.permutation(rows)


def taken(
    schedule: Schedule,
    order: Callable[[int], NDArray[np.intp] | None],
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
