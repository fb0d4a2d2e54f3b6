"""Why two trainings differ, proved, or what is known without a cause."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import get_args

import numpy as np

from regcheck.diagnosis.distinguishing import distinguishing
from regcheck.diagnosis.evidence.look_ahead import loss_ahead
from regcheck.diagnosis.evidence.loss_penalties import l1_penalty, torchs_penalty
from regcheck.diagnosis.evidence.optimizers import other_settings, unknown_rule
from regcheck.diagnosis.evidence.steps import yielded_early
from regcheck.diagnosis.evidence.without_cause import without_cause
from regcheck.diagnosis.fits.other_inputs import from_other_inputs, from_rounded
from regcheck.diagnosis.fits.other_numbers import with_other_numbers, with_usual_options
from regcheck.diagnosis.fits.other_settings import (
    by_entries,
    effective_settings_of,
    with_effective_settings,
)
from regcheck.diagnosis.listing import all_named
from regcheck.diagnosis.loss_logarithms import explain_logarithms
from regcheck.diagnosis.records import FLOAT32, Diagnosis, Explanation, Run
from regcheck.diagnosis.replay import Replay
from regcheck.diagnosis.reported_loss import explain_losses
from regcheck.diagnosis.search import (
    search,
    single_causes,
    with_another_option,
    with_other_keys_beside,
)
from regcheck.problem.problem import Parameters
from regcheck.rules.causes.catalogue import CAUSES
from regcheck.rules.causes.cause import Stage
from regcheck.trainers.measured.measured_bounds import MeasuredBounds

Found = tuple[Explanation, ...]


def diagnose(run: Run) -> Diagnosis:
    """Find why two sides differ: the causes, or what is known without one."""
    if run.sides.torch is None:
        return unknown_rule(run.sides.probe.optimizer)
    return explained(run) if len(run.history) else Diagnosis(explained=False)


def explained(run: Run) -> Diagnosis:
    """Find what explains a divergence."""
    replay = replay_of(run, run.limits)
    diverged = run.first is not None
    found: Found = ()
    start = None
    early = yielded_early(run, replay) if diverged else None
    if early is not None:
        return early
    if diverged:
        found, replay, start = explain_updates(run, replay)
    settings = effective_settings_of(replay)
    agree = not diverged or bool(found)
    reporting, loss_evidence = None, None
    if run.loss_diverged:
        found = by_losses(run, found, start)
        reporting = explain_losses(run, found, start)
        term, loss_evidence = explain_logarithms(run, found, explained=reporting is not None)
        reporting = reporting or term
        if reporting is None:
            loss_evidence = loss_evidence or torchs_penalty(run) or l1_penalty(run)
    stages = [CAUSES[cause].stage for cause in found[0].causes] if found else []
    evidence = [other_settings(run)]
    stage = min(stages, key=get_args(Stage).index, default=None)
    if not agree:
        known, stage = without_cause(run, replay, settings, loss_explained=reporting is not None)
        evidence += known
        if run.loss_diverged and any(one and one.kind == "look-ahead" for one in known):
            loss_evidence = loss_evidence or loss_ahead(run, replay)
    return Diagnosis(
        explained=agree and (reporting is not None or not run.loss_diverged),
        explanations=found,
        distinguished_by=distinguishing(run.torch.problem, found),
        reporting=reporting,
        loss_diverged=run.loss_diverged,
        loss_evidence=loss_evidence,
        effective_settings=settings,
        steps=len(run.history),
        stage=stage,
        evidence=tuple(filter(None, evidence)),
        start=start,
    )


def by_losses(run: Run, found: Found, start: Parameters | None) -> Found:
    """Put what makes the reported losses too before what needs another cause for them.

    An optimizer that divides by the gradient's size takes one step for many a loss.
    """
    if len(found) < 2:
        return found

    def more(one: Explanation) -> tuple[bool, float]:
        reporting = explain_losses(run, [one], start)
        return len(one.causes) > 1, len(reporting.causes) if reporting else math.inf

    return tuple(sorted(found, key=more))


def replay_of(run: Run, limits: Mapping[str, float]) -> Replay:
    """Return what replays rules along a run, with some limits."""
    return Replay(run.history, run.torch, limits, sees_rows=run.sees_rows, first=run.first or 1)


def explain_updates(run: Run, replay: Replay) -> tuple[Found, Replay, Parameters | None]:
    """Find the sets of causes that make the scratch side's steps.

    Returns them with the replay that they hold in, and where the scratch side started.
    """
    own = replay.explanation((), {})
    if own is not None:
        problem, first = run.sides.problem, run.comparison.first_divergence
        if first is not None and first.stage == "initial":
            return (replace(own, causes=("initial-parameters",)),), replay, None
        if problem.scratch_dtype != problem.framework_dtype:
            return (replace(own, causes=("precision",)),), replay, None
        # Else it may be the framework side that does not keep to its rule.
        return () if replay.framework_diverges() else (own,), replay, None
    found, within = known_causes(run, replay)
    if not found and not replay.stands:
        ways = (with_effective_settings, with_other_numbers, with_usual_options)
        other = next((one for one in (way(replay) for way in ways) if one), None)
        found = (other,) if other else ()
        if other is None or (other.options and len(other.causes) > 1):
            # One number beside a cause is less to choose than several.
            more = (with_other_keys_beside, with_another_option)
            found = next(filter(None, (searched(run, replay, how) for how in more)), found)
        found = found or in_wider_limits(run)
        found = found or tuple(by_entries(replay)) or in_some_tensors(run, replay)
    elif found and not any(len(one.causes) < 3 or all_named(one, run.training) for one in found):
        # Another option beside one cause is less than an odd factor beside two.
        fewer = searched(run, replay, with_another_option)
        found = tuple(one for one in fewer if len(one.causes) < 3) or found
    if found:
        return found, within, None
    if run.scratch_is_reference:
        found, start = from_other_inputs(run, replay)
        return found, replay, start
    return (), replay, None


DERIVED = 4.0
"""Limits that rounding may come to where a bound is derived from those that are measured.

A run that would diverge by such a bound measures again. What has diverged cannot: of its steps
rounding is not all.
"""


def in_wider_limits(run: Run) -> Found:
    """Find the cause that makes the steps, but for where a derived bound may be too small."""
    if not isinstance(run.sides.bounder, MeasuredBounds):
        return ()
    wider = replay_of(run, {name: DERIVED * limit for name, limit in run.limits.items()})
    return searched(run, wider, single_causes)


OUT_OF_REACH = 1e200
"""A limit that no difference reaches, of tensors that are not looked at."""


def in_some_tensors(run: Run, replay: Replay) -> Found:
    """Find causes that make the steps of some tensors, where all others go by torch's rule."""
    largest = np.zeros(run.history.entries)
    for record, after in replay.steps(run.torch):
        largest = np.maximum(largest, replay.ratios(record, after))
    places = run.history.slices.items()
    strange = tuple(name for name, part in places if largest[part].max(initial=0.0) > 1)
    rest = run.history.shapes.keys() - set(strange)
    if not rest:
        return ()
    limits = run.limits | dict.fromkeys(rest, OUT_OF_REACH)
    found = searched(run, replay_of(run, limits), single_causes)
    return tuple(replace(one, tensors=strange) for one in found)


def known_causes(run: Run, replay: Replay) -> tuple[Found, Replay]:
    """Find sets of the catalogue's causes, in float64 or else as float32 rounds."""
    # What never takes a step is not several causes that come to none, or a factor of nearly 0.
    how = single_causes if replay.stands else search
    found = searched(run, replay, how)
    rounded = None if found else from_rounded(run, replay)
    if rounded is not None:
        return (rounded,), replay
    if not run.fits_float32:
        return found, replay
    coarse = replay_of(run, {name: FLOAT32 * limit for name, limit in run.limits.items()})
    rounding = coarse.explanation(("precision",), {})
    if found:  # what is as small as float32's rounding may be just that
        return (*found, rounding) if rounding else found, replay
    if rounding:
        return (rounding,), coarse
    found = searched(run, coarse, how)
    return tuple(replace(one, causes=(*one.causes, "precision")) for one in found), coarse


def searched(run: Run, replay: Replay, how: Callable[..., Found]) -> Found:
    """Search the catalogue."""
    return how(replay, run.training, run.spec.named_convention(), run.visible)
