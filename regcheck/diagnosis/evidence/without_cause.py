"""What is known where no cause explains the updates: each piece of evidence, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

from regcheck.diagnosis.evidence.clipping import one_clips
from regcheck.diagnosis.evidence.gradients import (
    differing_loss,
    finite_differences,
    gradient_agrees,
    of_gradient,
    recursion_evidence,
)
from regcheck.diagnosis.evidence.l1_penalties import l1_penalties
from regcheck.diagnosis.evidence.look_ahead import looks_ahead
from regcheck.diagnosis.evidence.lrs import other_rates, with_a_cause
from regcheck.diagnosis.evidence.penalties import other_penalty
from regcheck.diagnosis.evidence.record import Evidence, Kind, remark
from regcheck.diagnosis.evidence.step_counts import other_counts
from regcheck.diagnosis.evidence.steps import (
    late_evidence,
    never_again,
    not_finite,
    one_step_alone,
    rounded_to_float32,
)
from regcheck.diagnosis.evidence.tensors import (
    by_batch_size,
    settings_evidence,
    updated_by_one_side,
)
from regcheck.diagnosis.records import EffectiveSettings, Run
from regcheck.diagnosis.replay import Replay
from regcheck.rules.causes.cause import Stage

KEEPS_TO_IT = remark(
    "The scratch side follows torch's rule with the settings of the framework side's optimizer; "
    "the framework side does not. Look for what else changes its parameters: a hook, a clamp, a "
    "constraint, tied weights.",
    "says-next",
)

STAGES: Mapping[Kind, Stage] = {
    "never-updated": "update",
    "frozen": "update",
    "not-given": "update",
    "l1-penalty": "penalty",
}
"""The stage at which the sides differ, where it is known how the first tensor to differ goes."""


def without_cause(
    run: Run,
    replay: Replay,
    settings: Mapping[str, EffectiveSettings],
    *,
    loss_explained: bool,
) -> tuple[list[Evidence | None], Stage]:
    """Describe what is known where nothing in the catalogue explains the updates; and the stage."""
    evidence = [late_evidence(run)]
    assert run.first is not None
    record = run.history.record(run.first)
    if record is None:
        kept = len(run.history)
        stored = remark(f"Only the first {kept:,} steps are stored and could be replayed.")
        return [*evidence, stored], "update"
    known = not_finite(run, record) or (KEEPS_TO_IT if replay.residual({}) <= 1 else None)
    ahead = None if known else looks_ahead(run, replay)
    if known or ahead:
        return [*evidence, known or ahead], "gradient" if ahead else "update"
    agrees = run.shares_gradient or gradient_agrees(run, replay, record)
    if agrees is not None and not run.shares_gradient:
        evidence.append(of_gradient(record.batch.step, agrees=agrees))
    if not replay.stands:
        for where, describe in descriptions(run, agrees):
            known = describe(replay)
            if known:
                return [*evidence, known], where
    with_l1 = l1_penalties(replay, settings)
    torchs_gradient = agrees or all(one.fits or name in with_l1 for name, one in settings.items())
    differing = None if torchs_gradient or loss_explained else differing_loss(run)
    by_tensor = by_batch_size(replay, settings) | with_l1 | updated_by_one_side(run)
    evidence += [differing, *settings_evidence(settings, run.training, by_tensor)]
    first = run.comparison.first_divergence
    known = by_tensor.get(first.at.tensor) if first is not None else None
    if known and known.kind in STAGES:
        return evidence, STAGES[known.kind]
    by_rule = any(one.fits for one in settings.values())
    stage = "gradient" if differing else stage_by(agrees, by_rule=run.is_linear and by_rule)
    if agrees is None and run.is_linear and not by_rule:
        known, by_steps = recursion_evidence(replay, run.training.settings.momentum)
        evidence.append(known)
        stage = by_steps or stage
    if stage == "gradient" or (stage == "update" and agrees is None and run.is_linear):
        evidence.append(finite_differences(run, replay, record))
    return evidence, stage


def stage_by(agrees: bool | None, *, by_rule: bool) -> Stage:
    """Return the stage by whether the gradient agrees.

    Where that is not known, some tensors may go `by_rule`: then it is the others' gradient.
    """
    if agrees is None:
        return "gradient" if by_rule else "update"
    return "optimizer" if agrees else "gradient"


def descriptions(
    run: Run, agrees: bool | None
) -> Iterator[tuple[Stage, Callable[[Replay], Evidence | None]]]:
    """Yield what may describe the steps all the same, and the stage at which they differ then.

    `agrees` is whether the gradient is known to be torch's; one that is not may be clipped.
    """
    yield "optimizer", one_clips
    if agrees is False:
        yield "update", rounded_to_float32
        return
    yield "update", never_again
    yield "optimizer", other_rates
    yield "optimizer", other_counts
    if run.is_linear:
        yield "penalty", other_penalty
    yield "update", partial(one_step_alone, run)
    yield "update", rounded_to_float32
    yield "optimizer", partial(with_a_cause, run)
