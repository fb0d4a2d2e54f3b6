"""What is known of steps that no cause explains: not finite, yielded too early, or one alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice, pairwise

import numpy as np

from regcheck.compare.history import Record
from regcheck.diagnosis.evidence.record import Evidence, remark
from regcheck.diagnosis.fits.other_inputs import afters
from regcheck.diagnosis.records import Diagnosis, Run
from regcheck.diagnosis.replay import Replay
from regcheck.diagnosis.search import LATE
from regcheck.problem.problem import Array
from regcheck.trainers.numpy_state import ForwardBackward

LEAST_STEPS = 3
"""Steps of which one may differ from all others."""

FLOAT32_ROUNDOFF = 2.0**-24
"""The largest share of a number that rounding it to float32 changes."""

FLOAT32_UNITS = (0.25, 64.0)
"""How many times as much a step may be changed by what is kept in float32 over many steps."""

LEAST = 1e-300
"""What a step that is 0 is divided by."""

YIELDED_EARLY = Evidence(
    "Your code yields its parameters before their update",
    ": those of step 1 are the start, and those of each later step are by torch's rule those after "
    "the step before.",
    "yielded-early",
)

EARLY_LOSS = remark(
    "is judged from the parameters that the code yields: run again once these are right."
)


def late_evidence(run: Run) -> Evidence | None:
    """Describe many steps that agree before the first that does not; None if there are not many."""
    if run.first is None or run.first <= LATE:
        return None
    return remark(
        f"Steps 1 to {run.first - 1:,} agree: look at what changes in step {run.first:,}, such "
        "as the lr, the epoch, or the branch of an `if`."
    )


def not_finite(run: Run, record: Record) -> Evidence | None:
    """Describe where the scratch side's first diverging step is not finite; None if it is."""
    lost = ~np.isfinite(record.scratch)
    if not lost.any():
        return None
    place = int(lost.argmax())
    counts = "counts_from" in run.torch.settings.rule.keys
    corrected = " (by 1 − βᵗ, if t starts at 0)" if counts else ""
    tensor = run.history.tensor_at(place)
    return Evidence(
        f"{tensor} is {record.scratch[place]:g} after step {record.batch.step:,} of the scratch "
        "side, where torch's step gives finite numbers from the same parameters",
        f": look for a division by 0{corrected}, a logarithm of 0, or an exponential that "
        "overflows.",
        "says-next",
        (tensor,),
    )


def yielded_early(run: Run, replay: Replay) -> Diagnosis | None:
    """Return whether the code yields its parameters before each update.

    Then the first that it yields are the start itself, and each later w_k is torch's step from
    w_(k−1) with the batch, and the lr, of step k−1. Each step is another one's: neither effective
    settings nor the losses tell more.
    """
    first = next(replay.history.records())
    if run.first != 1 or not run.scratch_is_reference or len(run.history) < LEAST_STEPS:
        return None
    known = run.sees_rows or run.training.batch_rows[0] >= run.training.train_rows
    if not known or not np.array_equal(first.scratch, first.before):
        return None
    if replay.largest(late_steps(replay)) > 1:
        return None
    return Diagnosis(
        explained=False,
        loss_diverged=run.loss_diverged,
        loss_evidence=EARLY_LOSS if run.loss_diverged else None,
        steps=len(run.history),
        stage="update",
        evidence=(YIELDED_EARLY,),
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


def never_again(replay: Replay) -> Evidence | None:
    """Say that the first divergence is where the parameters begin to stay; None if they move."""
    late = slice(replay.first - 1, None)
    before, after = (replay.history.all(key)[late] for key in ("before", "scratch"))
    if len(after) < 2 or not np.array_equal(before, after):
        return None
    return Evidence(
        f"Nothing is updated from step {replay.first:,} on",
        ": look for an update that takes place in the first steps alone, as in the branch of an "
        "`if` that makes the optimizer's state.",
        "says-next",
    )


def one_step_alone(run: Run, replay: Replay) -> Evidence | None:
    """Say that one step alone differs, and whether it lacks weight decay; None if others do."""
    records = run.history.records()
    differing = [one for one in records if replay.ratios(one, one.framework).max() > 1]
    if len(differing) != 1 or len(run.history) < LEAST_STEPS:
        return None
    step, problem = differing[0].batch.step, replay.torch.problem
    lacks = ""
    if any(problem.weight_decay.values()):
        free = replace(problem, weight_decay=dict.fromkeys(problem.weight_decay, 0.0))
        record, after = next(islice(replay.steps(replay.torch.by(free)), step - 1, None))
        if replay.ratios(record, after).max() <= 1:
            lacks = ", and is torch's without weight decay"
    # A loss that is torch's is of the same start.
    other_start = step == 1 and (run.loss_diverged or np.isnan(run.history.loss("scratch")[0]))
    look = "Is the start `problem.initial`? Else look" if other_start and not lacks else "Look"
    return Evidence(
        f"Only step {step:,} differs{lacks}",
        f": the other {len(run.history) - 1:,} steps are torch's. "
        f"{look} for what step {step:,} does otherwise, such as the branch of an `if`.",
        "says-next",
    )


def rounded_to_float32(replay: Replay) -> Evidence | None:
    """Describe steps in float64 that are torch's to about float32's rounding; None if they are not.

    What an optimizer remembers in float32 is off by some units of its roundoff, and so is a step
    by it: of the entry's longest so far, as one that is nearly 0 by cancellation has no less.
    """
    problem, longest, most = replay.torch.problem, np.zeros(replay.history.entries), 0.0
    if problem.scratch_dtype != "float64" or problem.framework_dtype != "float64":
        return None
    for record, after in replay.steps(replay.torch):
        longest = np.maximum(longest, np.abs(after - record.before))
        off = np.maximum(np.abs(after - record.scratch) - record.bound * replay.limits, 0)
        most = max(float((off / np.maximum(longest, LEAST)).max()), most)  # NaN stays
        if not most <= FLOAT32_UNITS[1] * FLOAT32_ROUNDOFF:
            return None
    if most < FLOAT32_UNITS[0] * FLOAT32_ROUNDOFF:
        return None
    return Evidence(
        f"The updates are torch's to {most:.1e} of their size, about the rounding of float32",
        ", as where the moments, the velocity or the gradient are kept in float32, or where the "
        "gradient is taken by finite differences.",
        "float32",
    )
