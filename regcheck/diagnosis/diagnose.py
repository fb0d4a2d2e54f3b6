"""Why two trainings part: the causes that explain it, proved, or what can be said without one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np

from regcheck.compare.comparison import Comparison
from regcheck.compare.history import History
from regcheck.diagnosis.by_entry import by_entries
from regcheck.diagnosis.distinguish import telling_apart
from regcheck.diagnosis.effective_settings import effective_settings_of
from regcheck.diagnosis.evidence import without_cause
from regcheck.diagnosis.fix import equivalent_settings, verified_fix
from regcheck.diagnosis.loss_floor import logarithm_clue
from regcheck.diagnosis.other_inputs import from_other_inputs, from_rounded
from regcheck.diagnosis.records import Diagnosis, Observed
from regcheck.diagnosis.replay import Explanation, Fit, Replay
from regcheck.diagnosis.reported_loss import Elsewhere, Reporting, Rule, explain_losses
from regcheck.diagnosis.search import Search, shift_text
from regcheck.problem.problem import Array, Parameters, Problem
from regcheck.problem.row_orders import other_orders
from regcheck.rules.cause import put_in
from regcheck.rules.causes import CAUSES
from regcheck.rules.convention import NO_FAULTS, TORCH
from regcheck.rules.equivalent import decays_text
from regcheck.rules.settings import Training
from regcheck.spec import Spec
from regcheck.trainers.numpy_trainer import NumpyTrainer
from regcheck.trainers.sides import Sides, TorchFollowsScratch

SINGLE = 2.0**29
"""How much coarser float32 rounds than float64."""


def diagnose(
    comparison: Comparison, history: History, sides: Sides, spec: Spec, training: Training
) -> Diagnosis:
    """Find why two sides differ: the causes, what is equivalent, and the change of the spec.

    Args:
        comparison: what the steps came to.
        history: the recorded steps.
        sides: both sides, and torch's rule in NumPy.
        spec: of the run.
        training: with the settings that the framework side really has.
    """
    if sides.torch is None:
        return unknown_rule(sides.probe.optimizer)
    run = observed(comparison, history, sides, spec, training)
    found = explained(run)
    return replace(
        found,
        matching=equivalent_settings(found.best, training),
        fix=verified_fix(spec, run, found) if found.explained else None,
    )


def observed(
    comparison: Comparison, history: History, sides: Sides, spec: Spec, training: Training
) -> Observed:
    """Collect what the search for causes reads."""
    assert sides.torch is not None
    problem, tolerance, first = sides.problem, spec.tolerance, comparison.first_divergence
    hidden = {one.cause for one in comparison.not_distinguished}
    leads = isinstance(sides.pair, TorchFollowsScratch)
    sample = comparison.sample
    return Observed(
        history=history,
        torch=sides.torch,
        sees_rows=sides.sees_rows,
        training=training,
        convention=spec.named_convention(),
        limits={name: tolerance.of(name).limit_within for name in (*problem.initial, "loss")},
        parted=first is not None,
        loss_parted=comparison.first_loss_divergence is not None,
        visible=None if tolerance.on_drift else frozenset(CAUSES) - hidden,
        fits_float32=isinstance(sides.pair, TorchFollowsScratch)
        and sides.pair.fits_float32
        and spec.dtype.scratch == "float64",
        starts_apart=first is not None and first.stage == "initial",
        leads=leads,
        loss_at=sides.probe.loss_at,
        gradient=sample.scratch.gradient if sample and leads else None,
        gradient_bound=comparison.gradient_bound,
        first=first.step if first else None,
        dtypes_differ=problem.scratch_dtype != problem.framework_dtype,
        losses_reported=comparison.losses_reported,
    )


def unknown_rule(optimizer: object) -> Diagnosis:
    """Return that the framework side's rule is not in the catalogue."""
    kind = type(optimizer)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if name == "torch.optim.sgd.SGD":
        name = "torch.optim.SGD with `maximize`, or not on all tensors alike"
    clue = (
        f"The framework side's optimizer is {name}; causes are known for torch.optim.SGD going "
        "downhill on all parameters, with one lr and one momentum."
    )
    return Diagnosis(explained=False, evidence=(clue,))


def explained(seen: Observed) -> Diagnosis:
    """Find what explains a divergence."""
    if not len(seen.history):
        return Diagnosis(explained=False)
    replay = replay_of(seen, seen.limits)
    found: tuple[Explanation, ...] = ()
    start = None
    if seen.parted or seen.starts_apart:
        found, replay, start = explain_updates(seen, replay)
    scales = effective_settings_of(replay)
    agree = not seen.parted or bool(found)
    reporting = reported(seen, found, start) if seen.loss_parted else None
    clues, stage = ((), stage_of(found)) if agree else without_cause(seen, replay, scales)
    explained = reporting is not None
    return Diagnosis(
        explained=agree and (explained or not seen.loss_parted),
        explanations=found,
        distinguished_by=telling_apart(seen.torch.problem, found),
        reporting=reporting,
        loss_diverged=seen.loss_parted,
        loss_evidence=logarithm_clue(seen, explained=explained) if seen.loss_parted else "",
        effective_settings=scales,
        steps=len(seen.history),
        stage=stage,
        evidence=tuple(clues),
        start=start,
    )


def replay_of(seen: Observed, limits: Mapping[str, float]) -> Replay:
    """Make what replays rules along a run, with some limits."""
    return Replay(seen.history, seen.torch, limits, sees_rows=seen.sees_rows, first=seen.first or 1)


def explain_updates(
    seen: Observed, replay: Replay
) -> tuple[tuple[Explanation, ...], Replay, Parameters | None]:
    """Find the sets of causes that make the scratch side's steps.

    Gives them with the replay that they hold in, and where the scratch side started.
    """
    plain = replay.residual({})
    if plain <= 1 and not seen.dtypes_differ and not seen.starts_apart and replay.parted():
        return (), replay, None  # it is the framework side that does not keep to its rule
    if plain <= 1:
        causes = ("precision",) if seen.dtypes_differ else ()
        causes = ("initial-parameters",) if seen.starts_apart else causes
        return (Explanation(causes, {}, plain),), replay, None
    found, within = known_causes(seen, replay)
    found = found or with_other_numbers(replay)
    if found:
        return found, within, None
    if seen.leads:
        found, start = from_other_inputs(seen, replay)
        return found, replay, start
    return (), replay, None


def known_causes(seen: Observed, replay: Replay) -> tuple[tuple[Explanation, ...], Replay]:
    """Find sets of the catalogue's causes, in float64 or else as float32 rounds."""
    found = searched(seen, replay)
    rounded = None if found else from_rounded(seen, replay)
    if rounded is not None:
        return (rounded,), replay
    if not seen.fits_float32:
        return found, replay
    coarse = replay_of(seen, {name: SINGLE * limit for name, limit in seen.limits.items()})
    if not found:  # the scratch side rounds as float32 does
        return in_single(seen, coarse), coarse
    residual = coarse.residual({})
    if residual <= 1:  # what is as small as float32's rounding may be just that
        found = (*found, Explanation(("precision",), {}, residual))
    return found, replay


def with_other_numbers(replay: Replay) -> tuple[Explanation, ...]:
    """Find torch's rule with another schedule, other decays, or some entries' own numbers."""
    found = from_shifted(replay) or from_scales(replay)
    return (found,) if found is not None else tuple(by_entries(replay))


def from_scales(replay: Replay) -> Explanation | None:
    """See whether the steps are torch's with another lr, and a weight decay for each tensor."""
    scales = effective_settings_of(replay)
    rates = [one.gradient.plain((1.0,)) for one in scales.values() if one.gradient is not None]
    if not rates or not all(one.fits for one in scales.values()) or rates[0].factor <= 0:
        return None
    problem = replay.torch.problem
    own, rate = problem.weight_decay, rates[0]
    decays: dict[str, Fit] = {}
    for name, one in scales.items():
        if one.weight_decay is not None:
            known = (own[name], 0.0, *(fit.factor for fit in decays.values()))
            decays[name] = one.weight_decay.plain(known)
    found = {name: decays[name].factor if name in decays else own[name] for name in own}
    faults = problem.faults._replace(lr_factor=rate.factor)
    rule = replay.torch.by(replace(problem, weight_decay=found, faults=faults))
    residual = replay.residual_of(rule)
    if residual > 1:
        return None
    fits = {} if rate.factor == 1 else {"learning-rate-scaled": rate}
    other = [name for name in own if found[name] != own[name]]
    causes = (*fits, *(("penalty-scaled",) if other else ()))
    note = decays_text(found, own)
    change = {"lr_factor": rate.factor} if fits else {}
    return Explanation(causes, change, residual, fits, note, found)


MOST_SHIFTED = 12
"""Steps, and epochs, by which a schedule may be early or late."""


def from_shifted(replay: Replay) -> Explanation | None:
    """See whether the steps are torch's with the schedule of the lr some steps early or late."""
    schedule = replay.torch.problem.schedule
    if schedule.lr_schedule is None:
        return None
    taken = range(1, len(replay.history) + 1)
    units = dict.fromkeys((1, schedule.steps_per_epoch))
    for steps in dict.fromkeys(n * unit for unit in units for n in range(1, MOST_SHIFTED + 1)):
        for early in (steps, -steps):
            change = {"lr_shift": early}
            residual = replay.residual(change)
            # One lr in all steps is no schedule that is shifted, but none.
            if residual <= 1 and len({schedule.lr_at(step + early) for step in taken}) > 1:
                causes = ("schedule-shifted",)
                note = shift_text(schedule, causes, change)
                return Explanation(causes, change, residual, note=note)
    return None


def in_single(seen: Observed, coarse: Replay) -> tuple[Explanation, ...]:
    """Find what explains the steps where rounding is that of float32."""
    residual = coarse.residual({})
    if residual <= 1:
        return (Explanation(("precision",), {}, residual),)
    return tuple(replace(one, causes=(*one.causes, "precision")) for one in searched(seen, coarse))


def searched(seen: Observed, replay: Replay) -> tuple[Explanation, ...]:
    """Search the catalogue."""
    search = Search(replay, seen.training, seen.convention, seen.visible)
    return tuple(search.run())


def stage_of(found: Sequence[Explanation]) -> str | None:
    """Give the first stage at which the causes of the plainest explanation part the sides."""
    if not found:
        return None
    order = ("initial", "forward", "gradient", "penalty", "optimizer", "update")
    stages = [CAUSES[cause].stage for cause in found[0].causes]
    return min(stages, key=order.index, default=None)


def reported(
    seen: Observed, found: Sequence[Explanation], start: Parameters | None
) -> Reporting | None:
    """Find what explains the reported losses."""
    problem = seen.torch.problem
    rules = []
    for one in found:
        convention, faults = put_in(one.change, problem.convention, problem.faults)
        rules.append(replace(problem, convention=convention, faults=faults))
    rules.append(replace(problem, convention=TORCH, faults=NO_FAULTS))
    known = [Rule(rule, strengths(seen.torch, rule, seen.history)) for rule in rules]
    places = [losses_elsewhere(seen, one, start) for one in found if "row-order" in one.causes]
    # The rows of the loss may not be those of the gradient.
    places.append(losses_elsewhere(seen, None, start))
    coarser = [SINGLE] if any("precision" in one.causes for one in found) else []
    for slack, place in product((1.0, *coarser), places):
        limit = slack * seen.limits["loss"]
        after = partial(losses_after, seen, place)
        reporting = explain_losses(seen.history, limit, known, after, place)
        if reporting is not None:
            return reporting
    return None


def losses_elsewhere(
    seen: Observed, reordered: Explanation | None, start: Parameters | None
) -> Elsewhere:
    """Take torch's losses at the rows and from the start that the scratch side has.

    `reordered` is the explanation by other rows, where there is one.
    """
    history = seen.history
    records = list(history.records())
    if start is not None:
        first = seen.torch.forward_backward(start, records[0].batch).loss
        losses = np.append(first, history.loss("framework")[1:])
        return Elsewhere(losses=losses, start=history.flat(start))
    if reordered is None:
        return Elsewhere()
    order = other_orders(seen.torch.problem.schedule)[reordered.note]
    batches = tuple(batch for batch, _ in zip(order, records, strict=False))
    there = [
        seen.torch.forward_backward(history.split(record.before), batch).loss
        for record, batch in zip(records, batches, strict=True)
    ]
    return Elsewhere(np.array(there), batches)


def strengths(torch: NumpyTrainer, rule: Problem, history: History) -> Mapping[str, float]:
    """Give κ of each tensor by a rule, at the first step."""
    return torch.by(rule).effective_decays(next(history.records()).batch)


def losses_after(seen: Observed, elsewhere: Elsewhere) -> Array | None:
    """Give torch's loss on each step's rows after the scratch side's update."""
    if not seen.sees_rows:
        return None
    records = list(seen.history.records())
    batches = elsewhere.batches or tuple(record.batch for record in records)
    losses = [
        seen.torch.forward_backward(seen.history.split(record.scratch), batch).loss
        for record, batch in zip(records, batches, strict=True)
    ]
    return np.array(losses)
