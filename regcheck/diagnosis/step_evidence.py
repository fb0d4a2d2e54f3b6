"""What is known of steps that no cause explains: yielded too early, or one that alone differs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice, pairwise

import numpy as np

from regcheck.compare.history import Record
from regcheck.diagnosis.fits.moves import Moves
from regcheck.diagnosis.fits.other_inputs import afters
from regcheck.diagnosis.records import Diagnosis, EffectiveSettings, Run
from regcheck.diagnosis.replay import Replay
from regcheck.numerics.least_squares import fit_columns
from regcheck.problem.problem import Array
from regcheck.trainers.numpy_state import ForwardBackward

YIELDED_EARLY = "Your code yields its parameters before their update"

ALONE = "Only step"

LEAST_STEPS = 3
"""Steps of which one may differ from all others."""

EARLY_LOSS = "is judged from the parameters that the code yields: run again once these are right."


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
    text = (
        f"{YIELDED_EARLY}: those of step 1 are the start, and those of each later step are by "
        "torch's rule those after the step before."
    )
    return Diagnosis(
        explained=False,
        loss_diverged=run.loss_diverged,
        loss_evidence=EARLY_LOSS if run.loss_diverged else "",
        steps=len(run.history),
        stage="update",
        evidence=(text,),
    )


def one_step_alone(run: Run, replay: Replay) -> str:
    """Say that one step alone differs, and whether it lacks weight decay; empty if others do."""
    records = run.history.records()
    differing = [one for one in records if replay.ratios(one, one.framework).max() > 1]
    if len(differing) != 1 or len(run.history) < LEAST_STEPS:
        return ""
    step, problem = differing[0].batch.step, replay.torch.problem
    lacks = ""
    if any(problem.weight_decay.values()):
        free = replace(problem, weight_decay=dict.fromkeys(problem.weight_decay, 0.0))
        record, after = next(islice(replay.steps(replay.torch.by(free)), step - 1, None))
        if replay.ratios(record, after).max() <= 1:
            lacks = ", and is torch's without weight decay"
    return (
        f"{ALONE} {step:,} differs{lacks}: the other {len(run.history) - 1:,} steps are torch's. "
        f"Look for what step {step:,} does otherwise, such as the branch of an `if`."
    )


def by_batch_size(replay: Replay, settings: Mapping[str, EffectiveSettings]) -> dict[str, str]:
    """Say which tensors go by torch's gradient times or over each batch's own size, by name.

    Only of those that go by no constant factor: S_t ≈ α G_t(B^±1 g) + κ P_t.
    """
    strange = [name for name, one in settings.items() if one.linear and not one.fits]
    found: dict[str, str] = {}
    if not strange or len(set(replay.torch.problem.schedule.sizes())) < 2:
        return found
    moves, decays = Moves(replay), replay.torch.problem.weight_decay
    penalty = moves.by_penalty()
    for share, power in (("1/B", -1.0), ("B", 1.0)):

        def added(record: Record, power: float = power) -> Array:
            return np.asarray((record.batch.size**power - 1) * record.gradient)

        gradient = moves.by_gradient(added)
        wider = max(1.0, max(replay.torch.problem.schedule.sizes()) ** power)
        for name in strange:
            part = replay.history.slices[name]
            columns, limits = (gradient[:, part], penalty[:, part]), wider * moves.limits[:, part]
            fitted = fit_columns(columns, moves.scratch[:, part], limits, replay.u, least=1.0)
            fits = fitted.unique and fitted.residual <= 1
            alpha, decay = fitted.fits
            rule = EffectiveSettings(alpha, decay, fits).rule(decays.get(name, 0.0))
            if fits:
                rule = rule.replace("torch's rule", "torch's gradient")
                own = f"{share} times torch's gradient, B being each batch's own size"
                found[name] = "updated " + rule.replace("torch's gradient", own)
    return found


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
