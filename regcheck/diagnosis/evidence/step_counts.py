"""What is known of a bias correction that no cause explains: by which t it makes each step.

Adam's moments do not hold t, so that each step has its own, which is tried: that after the last
one, torch's, and all others that come into question.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

from regcheck.compare.history import Record
from regcheck.diagnosis.evidence.record import Evidence
from regcheck.diagnosis.replay import Replay
from regcheck.problem.batches import Batch
from regcheck.trainers.numpy_state import State

MOST_STEPS = 32
"""Steps whose t is looked for."""

LISTED = 4
"""Numbers that are listed."""


def other_counts(replay: Replay) -> Evidence | None:
    """Describe steps that are torch's with another t in the bias correction; None if not."""
    if "counts_from" not in replay.torch.settings.rule.keys:
        return None
    records = list(islice(replay.history.records(), MOST_STEPS))
    counts: list[int] = []
    for record, state in states(replay, records):
        last = counts[-1] if counts else 0
        tried = dict.fromkeys((last + 1, record.batch.step, *range(1, len(records) + 2)))
        count = next((t for t in tried if is_made_by(replay, record, state, t)), None)
        if count is None:
            return None
        counts.append(count)
    batches = [record.batch for record in records]
    if len(counts) < 2 or counts == [batch.step for batch in batches]:
        return None
    clause = "The updates are torch's with another t in the bias correction"
    return Evidence(clause, f": {told(counts, batches)}.", "other-t")


def states(replay: Replay, records: Sequence[Record]) -> Iterator[tuple[Record, State]]:
    """Yield torch's state before each step, at the scratch side's parameters."""
    state = replay.torch.start()
    for record, update in replay.updates(replay.torch, records):
        yield record, state._replace(parameters=replay.history.split(record.before))
        assert update is not None  # torch's own rule needs no rows
        state = update.state


def is_made_by(replay: Replay, record: Record, state: State, t: int) -> bool:
    """Whether a step is torch's with another t."""
    rule = replay.by({"counts_from": t - record.batch.step + 1})
    update = rule.step(state, record.batch, replay.scaled_pass(rule.problem, record))
    after = replay.history.flat(update.step.after)
    longer = np.abs(after - record.before) / np.abs(record.framework - record.before)
    wider = replay.widened(rule.problem, record, after, np.nan_to_num(longer, posinf=1.0))
    return float(replay.ratios(wider, after).max()) <= 1


def told(counts: Sequence[int], batches: Sequence[Batch]) -> str:
    """Describe the numbers beside torch's."""
    steps = [batch.step for batch in batches]
    first = next(at for at, (t, step) in enumerate(zip(counts, steps, strict=True)) if t != step)
    off = {t - step for t, step in zip(counts[first:], steps[first:], strict=True)}
    if list(counts) == [batch.batch for batch in batches]:
        return "it counts from 1 in each epoch"
    if len(off) == 1:
        (by,) = off
        return f"from step {steps[first]} on it is {abs(by)} too {'large' if by > 0 else 'small'}"
    listed = (", ".join(map(str, some[first : first + LISTED])) for some in (counts, steps))
    return f"from step {steps[first]} on {next(listed)}, .., where torch has {next(listed)}, .."
