"""What is known of steps that no cause explains: yielded too early, or one that alone differs."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from regcheck.compare.history import Record
from regcheck.diagnosis.fits.other_inputs import afters
from regcheck.diagnosis.records import Run
from regcheck.diagnosis.replay import Replay
from regcheck.problem.problem import Array
from regcheck.trainers.numpy_state import ForwardBackward

YIELDED_EARLY = "Your code yields its parameters before their update"

EARLY_LOSS = "is judged from the parameters that the code yields: run again once these are right."


def yielded_early(run: Run, replay: Replay) -> str:
    """Say that the code yields its parameters before each update; empty where it does not.

    Then the first that it yields are the start itself, and each later w_k is torch's step from
    w_(k−1) with the batch, and the lr, of step k−1.
    """
    first = next(replay.history.records())
    if run.first != 1 or not run.scratch_is_reference or len(run.history) < 3:
        return ""
    if not np.array_equal(first.scratch, first.before):
        return ""
    if not (run.sees_rows or run.training.batch_rows[0] >= run.training.train_rows):
        return ""
    if replay.largest(late_steps(replay)) > 1:
        return ""
    return (
        f"{YIELDED_EARLY}: those of step 1 are the start, and those of each later step are by "
        "torch's rule those after the step before."
    )


def late_steps(replay: Replay) -> Iterator[tuple[Record, Array]]:
    """Yield the steps from the second on, each with the batch before, and torch's parameters."""

    def known(record: Record) -> ForwardBackward | None:
        return None if replay.sees_rows else replay.scaled_pass(replay.torch.problem, record)

    pairs = pairwise(replay.history.records())
    late = (
        record._replace(batch=last.batch, bound=np.maximum(last.bound, record.bound))
        for last, record in pairs
    )
    return afters(replay, replay.torch, late, known)
