"""Why two trainings differ, proved, or what is known without a cause; and the spec with the fix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

import numpy as np

from regcheck.compare.comparison import Comparison
from regcheck.compare.history import History
from regcheck.diagnosis.evidence import without_cause
from regcheck.diagnosis.loss_evidence import logarithm_evidence
from regcheck.diagnosis.other_inputs import from_other_inputs, from_rounded
from regcheck.diagnosis.other_settings import by_entries, effective_settings_of, with_other_settings
from regcheck.diagnosis.records import Diagnosis, Explanation, Run, SpecFix
from regcheck.diagnosis.replay import Replay
from regcheck.diagnosis.reported_loss import FLOAT32, explain_losses, losses_of
from regcheck.diagnosis.search import distinguishing, search
from regcheck.problem.problem import Parameters
from regcheck.problem.row_orders import NOT_SHUFFLED
from regcheck.rules.cause import Stage, put_in
from regcheck.rules.causes import CAUSES
from regcheck.rules.convention import NO_FAULTS, TORCH
from regcheck.rules.equivalent import Matching, NoMatchError, matching
from regcheck.rules.settings import Training
from regcheck.spec import Spec
from regcheck.spec.tolerance import ROUNDING
from regcheck.trainers.sides import Sides

Found = tuple[Explanation, ...]

CHANGE_THE_CODE = "nothing in the spec fixes it: change the code"


def diagnose(
    comparison: Comparison, history: History, sides: Sides, spec: Spec, training: Training
) -> Diagnosis:
    """Find why two sides differ: the causes, what is equivalent, and the change of the spec.

    The training is with the settings that the framework side really has.
    """
    if sides.torch is None:
        return unknown_rule(sides.probe.optimizer)
    run = Run(comparison, history, sides, sides.torch, spec, training)
    if not len(history):
        return Diagnosis(explained=False)
    found = explained(run)
    return replace(
        found,
        matching=equivalent_settings(found.best, training),
        fix=verified_fix(run, found) if found.explained else None,
    )


def unknown_rule(optimizer: object) -> Diagnosis:
    """Return that the framework side's rule is not in the catalogue."""
    kind = type(optimizer)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if name == "torch.optim.sgd.SGD":
        name = "torch.optim.SGD with `maximize`, or not on all tensors alike"
    text = (
        f"The framework side's optimizer is {name}; causes are known for torch.optim.SGD going "
        "downhill on all parameters, with one lr and one momentum."
    )
    return Diagnosis(explained=False, evidence=(text,))


def explained(run: Run) -> Diagnosis:
    """Find what explains a divergence."""
    replay = replay_of(run, run.limits)
    diverged = run.first is not None
    found: Found = ()
    start = None
    if diverged:
        found, replay, start = explain_updates(run, replay)
    settings = effective_settings_of(replay)
    agree = not diverged or bool(found)
    reporting = explain_losses(run, found, start) if run.loss_diverged else None
    loss_evidence = ""
    if run.loss_diverged:
        loss_evidence = logarithm_evidence(run, explained=reporting is not None)
    stages = [CAUSES[cause].stage for cause in found[0].causes] if found else []
    evidence: list[str] = []
    stage: str | None = min(stages, key=get_args(Stage).index, default=None)
    if not agree:
        evidence, stage = without_cause(run, replay, settings)
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
        evidence=tuple(evidence),
        start=start,
    )


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
    other = None if found else with_other_settings(replay)
    found = found or ((other,) if other else tuple(by_entries(replay)))
    if found:
        return found, within, None
    if run.scratch_is_reference:
        found, start = from_other_inputs(run, replay)
        return found, replay, start
    return (), replay, None


def known_causes(run: Run, replay: Replay) -> tuple[Found, Replay]:
    """Find sets of the catalogue's causes, in float64 or else as float32 rounds."""
    found = searched(run, replay)
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
    found = searched(run, coarse)
    return tuple(replace(one, causes=(*one.causes, "precision")) for one in found), coarse


def searched(run: Run, replay: Replay) -> Found:
    """Search the catalogue."""
    return search(replay, run.training, run.spec.named_convention(), run.visible)


def equivalent_settings(
    best: Explanation | None, training: Training, *, loss: str = "bce"
) -> Matching | str | None:
    """Return the settings with which torch trains as an explanation says, or why there are none.

    With the loss bce_with_logits on torch's side, p − y is its gradient too.
    """
    if best is None:
        return None
    convention, faults = put_in(best.change, TORCH, NO_FAULTS)
    if loss == "bce_with_logits":
        faults = faults._replace(bce_slope="floored")
    if best.weight_decay is not None:
        training = training.with_decays(best.weight_decay)
    try:
        return matching(convention, training, faults)
    except NoMatchError as reason:
        return str(reason)


def verified_fix(run: Run, found: Diagnosis) -> SpecFix | str:
    """Return the change of a spec that makes its sides agree, proved by replaying the steps."""
    match = equivalent_settings(found.best, run.training, loss="bce_with_logits")
    settings = match if isinstance(match, Matching) else None
    saturated = found.best is not None and "bce-saturated" in found.best.causes
    other_loss = found.reporting is not None and bool(found.reporting.causes)
    if saturated and run.comparison.losses.reported and not reports_logits(run):
        other_loss = True
    fix = fix_of(run.spec, found, settings, other_loss=other_loss)
    replayed = isinstance(fix, SpecFix) and "framework" in fix.changes
    if replayed and settings is not None and found.start is None:
        own = run.torch.problem
        matched = own.with_sgd(settings.sgd._replace(lr=own.sgd.lr))
        matched = matched.with_change({"lr_factor": settings.lr_factor})
        replay = Replay(run.history, run.torch.by(matched), run.limits, sees_rows=True)
        if replay.residual({"bce_slope": "plain"} if saturated else {}) > 1:
            return "the settings that match are lost to rounding: change the code"
    return fix


def reports_logits(run: Run) -> bool:
    """Whether the scratch side reports the loss bce_with_logits."""
    rule = run.torch.by(replace(run.torch.problem, loss="bce_with_logits"))
    batches = [record.batch for record in run.history.records()]
    losses = losses_of(rule, run.history, run.history.all("before"), batches)
    return bool(np.allclose(run.history.loss("scratch"), losses, rtol=1e-6, atol=0))


def fix_of(
    spec: Spec, found: Diagnosis, match: Matching | None, *, other_loss: bool
) -> SpecFix | str:
    """Return how to change a spec so that its sides agree; or, in words, why no change does.

    The built-in scratch side is given torch's convention. A user's own code stays as it is, and
    torch is given what matches it.

    Args:
        spec: the spec.
        found: the diagnosis of its run, which explains it.
        match: the settings with which torch matches, if there are any; with the loss
            bce_with_logits, where p − y is what differs.
        other_loss: whether a user's code reports another loss than torch will.
    """
    if rounding_alone(spec, found):
        text = "the sides differ by rounding alone, which the tolerance now allows"
        return SpecFix({"tolerance": {"rounding": ROUNDING}}, text)
    if spec.scratch is None:
        if spec.own_framework is not None:
            return "the framework side is your own: change it there"
        return SpecFix({"convention": "pytorch"}, "the built-in scratch side follows torch")
    if spec.own_framework is not None:
        return "both sides are your own: change one of them"
    fixes: dict[str, dict[str, Any]] = {}
    if found.best is not None:
        fixes = update_fixes(spec, found.best, found.start)
        if found.best.change.keys() - {"bce_slope"} or found.best.weight_decay is not None:
            if match is None:
                return "no settings of torch's match your code: change the code"
            framework = settings_of(spec, match)
            fixes["torch is given what matches your code"] = {"framework": framework}
        if not fixes:
            return CHANGE_THE_CODE
    if other_loss:
        text = "the losses are left out, since your code reports another one"
        fixes[text] = {"compare": ["parameters"]}
    changes = {key: value for fix in fixes.values() for key, value in fix.items()}
    return SpecFix(changes, "; ".join(fixes)) if changes else CHANGE_THE_CODE


def rounding_alone(spec: Spec, found: Diagnosis) -> bool:
    """Whether only a tolerance on the drift keeps the sides from agreeing."""
    best = found.best
    if best is None or best.change or found.start is not None or not spec.tolerance.on_drift:
        return False
    if found.reporting is not None and found.reporting.causes:
        return False
    known = {"precision"} if spec.dtype.scratch != spec.dtype.framework else set()
    return known.issuperset(best.causes)


def update_fixes(
    spec: Spec, best: Explanation, start: Parameters | None
) -> dict[str, dict[str, Any]]:
    """Return what beside torch's settings makes both sides update alike: in words, and in keys."""
    fixes: dict[str, dict[str, Any]] = {}
    if "precision" in best.causes:
        dtype = {"scratch": "float32", "framework": spec.dtype.framework}
        fixes["it says that the scratch side computes in float32"] = {"dtype": dtype}
        if spec.tolerance.on_drift:
            tolerance = {"rounding": ROUNDING}
            fixes["the tolerance allows for its rounding"] = {"tolerance": tolerance}
    if start is not None:
        init = {name: np.ravel(w).tolist() for name, w in start.items()}
        fixes["both sides start where your code does"] = {"init": init}
    if best.note == NOT_SHUFFLED:
        fixes["the rows keep their order, as your code has it"] = {"shuffle": False}
    if best.change.get("bce_slope") == "plain":
        text = "torch takes the loss whose slope is p − y however large the outputs are"
        fixes[text] = {"loss": "bce_with_logits"}
    return fixes


def settings_of(spec: Spec, match: Matching) -> dict[str, Any]:
    """Return torch's settings as a spec has them: those that are not the spec's own."""
    found: dict[str, Any] = {}
    own, sgd = spec.optimizer.settings(spec.lr, spec.decays), match.sgd
    if sgd.lr != own.lr:
        found["lr"] = sgd.lr
    decays = dict(sgd.weight_decay)
    if decays != own.weight_decay:
        same = len(set(decays.values())) == 1
        found["weight_decay"] = next(iter(decays.values())) if same else decays
    if sgd.options() != own.options():
        found["optimizer"] = {"name": "sgd", **sgd.options()}
    return found
