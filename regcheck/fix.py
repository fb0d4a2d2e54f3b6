"""What makes both sides agree: torch's settings that match the scratch side, and the spec's fix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from regcheck.diagnosis.fits.loss_inputs import losses_of
from regcheck.diagnosis.records import Diagnosis, Explanation, Run, SpecFix
from regcheck.diagnosis.replay import Replay
from regcheck.problem.problem import Parameters
from regcheck.problem.row_orders import NOT_SHUFFLED
from regcheck.rules.causes.cause import put_in
from regcheck.rules.equivalent import Matching, NoMatchError, matching
from regcheck.rules.faults import NO_FAULTS
from regcheck.rules.settings import Training
from regcheck.rules.words import all_of
from regcheck.spec import Spec
from regcheck.spec.sections.tolerance import ROUNDING
from regcheck.user_code.problem_api import plain_decay

CHANGE_THE_CODE = "no change of the spec fixes it: change the code"


def with_fix(found: Diagnosis, run: Run) -> Diagnosis:
    """Add to a diagnosis torch's settings that match the scratch side, and the fix of the spec."""
    return replace(
        found,
        matching=equivalent_settings(found.best, run.training),
        fix=verified_fix(run, found) if found.explained else None,
    )


def equivalent_settings(
    best: Explanation | None, training: Training, *, loss: str = "bce"
) -> Matching | str | None:
    """Return the settings with which torch trains as an explanation says, or why there are none.

    With the loss bce_with_logits on torch's side, p − y is its gradient too.
    """
    if best is None:
        return None
    if best.tensors:
        differs = "differs" if len(best.tensors) == 1 else "differ"
        return f"only {all_of(best.tensors)} {differs} from torch's rule"
    convention, faults = put_in(best.change, training.settings.torchs, NO_FAULTS)
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
    either = equivalent_settings(found.best, run.training, loss="bce_with_logits")
    match = either if isinstance(either, Matching) else None
    saturated = found.best is not None and "bce-saturated" in found.best.causes
    other_loss = found.reporting is not None and bool(found.reporting.causes)
    if saturated and run.comparison.losses.reported and not reports_logits(run):
        other_loss = True
    fix = fix_of(run.spec, found, match, other_loss=other_loss)
    replayed = isinstance(fix, SpecFix) and "framework" in fix.changes
    if replayed and match is not None and found.start is None:
        own = run.torch.problem
        matched = own.with_settings(match.settings._replace(lr=own.settings.lr))
        matched = replace(matched, convention=match.settings.torchs)
        matched = matched.with_change({"lr_factor": match.lr_factor})
        replay = Replay(run.history, run.torch.by(matched), run.limits, sees_rows=True)
        if replay.residual({"bce_slope": "plain"} if saturated else {}) > 1:
            return "no settings match to rounding: change the code"
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
    if spec.own_framework is not None:
        return own_code_to_change(spec)
    if spec.scratch is None:
        return SpecFix({"convention": "pytorch"}, "the built-in scratch side follows torch")
    fixes: dict[str, dict[str, Any]] = {}
    if found.best is not None:
        fixes = update_fixes(spec, found.best, found.start)
        other_settings = found.best.change.keys() - {"bce_slope", "lr_schedule"}
        if other_settings or found.best.weight_decay is not None:
            framework = settings_of(spec, match) if match is not None else {}
            if not framework or not fits_a_spec(framework.get("weight_decay")):
                return "no settings of torch's match your code: change the code"
            if spec.processes > 1:
                framework["processes"] = spec.processes
            fixes["torch has settings that match your code"] = {"framework": framework}
        if not fixes:
            return CHANGE_THE_CODE
    if other_loss:
        text = "the losses are not compared, since your code reports another one"
        fixes[text] = {"compare": ["parameters"]}
    changes = {key: value for fix in fixes.values() for key, value in fix.items()}
    return SpecFix(changes, "; ".join(fixes)) if changes else CHANGE_THE_CODE


def own_code_to_change(spec: Spec) -> str:
    """Say which code is to change where the framework side is the user's own: no spec fixes it."""
    if spec.textbook is not None:
        return "the optimizer is your own: change it there"
    if spec.scratch is None:
        return "the framework side is your own: change it there"
    return "both sides are your own: change one of them"


def fits_a_spec(decay: object) -> bool:
    """Whether a spec can state a weight decay: a number, or one for weights, one for biases."""
    return not isinstance(decay, Mapping) or decay.keys() <= {"weight", "bias"}


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
        fixes["the scratch side computes in float32"] = {"dtype": dtype}
        if spec.tolerance.on_drift:
            tolerance = {"rounding": ROUNDING}
            fixes["the tolerance allows for its rounding"] = {"tolerance": tolerance}
    if start is not None:
        one = spec.architecture is None or spec.architecture.is_one_vector
        init = {name: (np.ravel(w) if one else w).tolist() for name, w in start.items()}
        fixes["both sides start from your code's parameters"] = {"init": init}
    if best.note == NOT_SHUFFLED:
        fixes["the samples are not shuffled, as in your code"] = {"shuffle": False}
    keys: Any = best.change.get("lr_schedule")
    if keys is not None and spec.lr_schedule is not None:
        other, text = spec.lr_schedule.with_keys(keys), "the lr schedule is that of your code"
        fixes[text] = {"lr_schedule": other.model_dump(mode="json", exclude_none=True)}
    if best.change.get("bce_slope") == "plain":
        text = "torch has the loss whose gradient is p − y, however large the outputs are"
        fixes[text] = {"loss": "bce_with_logits"}
    return fixes


def settings_of(spec: Spec, match: Matching) -> dict[str, Any]:
    """Return torch's settings as a spec has them: those that are not the spec's own."""
    found: dict[str, Any] = {}
    own, settings = spec.optimizer.settings(spec.lr, spec.decays), match.settings
    if settings.lr != own.lr:
        found["lr"] = settings.lr
    decays = dict(settings.weight_decay)
    if decays != own.weight_decay:
        found["weight_decay"] = plain_decay(decays)
    if (settings.optimizer, settings.options) != (own.optimizer, own.options):
        options = {
            key: as_spec(x)
            for key, x in settings.options.items()
            if x != settings.rule.defaults[key]
        }
        found["optimizer"] = {"name": settings.optimizer, **options}
    return found


def as_spec(value: Any) -> Any:
    """Return an option's value as a spec has it: a pair is a list."""
    return list(value) if isinstance(value, tuple) else value
