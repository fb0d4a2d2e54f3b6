"""What is known of weight decay that no cause explains: a penalty of another shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from regcheck.compare.history import History, Record
from regcheck.diagnosis.evidence.record import Evidence
from regcheck.diagnosis.fits.moves import Moves
from regcheck.diagnosis.replay import Replay
from regcheck.numerics.least_squares import fit_all
from regcheck.problem.problem import Array
from regcheck.rules.convention import is_bias


def other_penalty(replay: Replay) -> Evidence | None:
    """Describe steps that are torch's with a penalty of another shape; None if they are not.

    S_t = G_t + c Q_t, where Q_t is what a penalty's gradient of another shape makes.
    """
    moves, history = Moves(replay), replay.history
    by_gradient, limits = moves.by_gradient(), moves.limits
    target = (moves.scratch - by_gradient) / limits
    off = (moves.scratch - moves.by_torch()) / limits
    # Some tensors, like the bias, may be free of it, or have torch's own.
    concerned = np.zeros(history.entries, dtype=bool)
    for part in history.slices.values():
        concerned[part] = all(np.abs(rest[:, part]).max() > 1 for rest in (target, off))
    for one, shape in penalties(history).items():
        slope = (moves.by_gradient(shape) - by_gradient) / limits
        if not (np.isfinite(slope).all() and np.isfinite(target).all()):
            continue
        here, there = slope[:, concerned], target[:, concerned]
        if here.any():
            strength, _ = fit_all(here, there)
            if strength and np.abs(there - strength * here).max() <= 1:
                return replace(one, clause=one.clause.format(f"{strength:.6g}"))
    return None


def penalties(history: History) -> dict[Evidence, Callable[[Record], Array]]:
    """Return other penalties' gradients as functions of a step, by what is said of each.

    Its strength is to be put in.
    """
    weights = np.zeros(history.entries, dtype=bool)
    for name, part in history.slices.items():
        weights[part] = not is_bias(name)

    def sums(entries: NDArray[np.bool_], *, by_row: bool) -> Callable[[Record], Array]:
        def added(record: Record) -> Array:
            total = record.before[entries].sum() / (record.batch.size if by_row else 1)
            return np.full_like(record.before, total)

        return added

    every = np.ones_like(weights)
    shape = "The updates are torch's with weight decay whose gradient is {} %s."
    number = (
        "The updates are torch's with one number, {} %s, added to each entry of the gradient as "
        "weight decay"
    )
    by_each = ": multiply λ by each weight, not by their sum."
    return {
        Evidence(shape % "w³"): lambda record: record.before**3,
        Evidence(shape % "|w|"): lambda record: np.abs(record.before),
        Evidence(number % "Σw", by_each): sums(weights, by_row=False),
        Evidence(number % "Σw over weights and biases", by_each): sums(every, by_row=False),
        Evidence(number % "Σw/B", by_each): sums(weights, by_row=True),
        Evidence(number % "Σw/B over weights and biases", by_each): sums(every, by_row=True),
    }
