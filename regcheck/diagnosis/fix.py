"""The spec with the fix: what to change in it so that both sides train by the same rule."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from regcheck.compare.history import History
from regcheck.diagnosis.records import Diagnosis, Observed, SpecFix
from regcheck.diagnosis.replay import Explanation, Replay
from regcheck.problem.row_orders import NOT_SHUFFLED
from regcheck.rules.cause import put_in
from regcheck.rules.convention import NO_FAULTS, TORCH
from regcheck.rules.equivalent import Matching, NoMatchError, matching
from regcheck.rules.settings import Training
from regcheck.spec import Spec
from regcheck.spec.tolerance import ROUNDING
from regcheck.trainers.numpy_trainer import NumpyTrainer


def fix_spec(
    spec: Spec,
    found: Diagnosis,
    match: Matching | None,
    *,
    reports_logits: bool = True,
) -> SpecFix | str:
    """Say how to change a spec so that its sides agree; or, in words, why no change does.

    The built-in scratch side is given torch's convention. A user's own code stays as it is, and
    torch is given what matches it.

    Args:
        spec: the spec.
        found: the diagnosis of its run, which explains it.
        match: the settings with which torch matches, if there are any; with the loss
            bce_with_logits, where p − y is what parts the sides.
        reports_logits: whether a user's code reports that loss.
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
    changes: dict[str, Any] = {}
    told = []
    if found.best is not None:
        changes, text = of_update(spec, found, match)
        if not changes:
            return text
        told.append(text)
    other_loss = found.reporting is not None and bool(found.reporting.causes)
    if other_loss or ("loss" in changes and not reports_logits):
        changes["compare"] = ["parameters"]
        told.append("the losses are left out, since your code reports another one")
    if not changes:
        return "nothing in the spec fixes it: change the code"
    return SpecFix(changes, "; ".join(told))


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


def verified_fix(spec: Spec, run: Observed, found: Diagnosis) -> SpecFix | str:
    """Return the change of a spec that makes its sides agree, proved by replaying the steps."""
    match = equivalent_settings(found.best, run.training, loss="bce_with_logits")
    settings = match if isinstance(match, Matching) else None
    plain = found.best is not None and "bce-saturated" in found.best.causes
    reported = plain and run.losses_reported > 0
    logits = not reported or reports(run.history, run.torch, "bce_with_logits")
    fix = fix_spec(spec, found, settings, reports_logits=logits)
    replayed = isinstance(fix, SpecFix) and "framework" in fix.changes
    if replayed and settings is not None and found.start is None:
        limits = {name: run.limits[name] for name in run.history.shapes}
        replay = Replay(run.history, matched(run.torch, settings), limits, sees_rows=True)
        if replay.residual({"bce_slope": "plain"} if plain else {}) > 1:
            return "the settings that match are lost to rounding: change the code"
    return fix


def matched(torch: NumpyTrainer, match: Matching) -> NumpyTrainer:
    """Return torch's rule with the settings that match the scratch side."""
    problem = torch.problem
    faults = problem.faults._replace(lr_factor=match.lr_factor)
    matched = problem.with_sgd(match.sgd._replace(lr=problem.sgd.lr))
    return torch.by(replace(matched, faults=faults))


def rounding_alone(spec: Spec, found: Diagnosis) -> bool:
    """Say whether only a tolerance on the drift keeps the sides from agreeing."""
    best = found.best
    if best is None or best.change or found.start is not None or not spec.tolerance.on_drift:
        return False
    if found.reporting is not None and found.reporting.causes:
        return False
    known = {"precision"} if spec.dtype.scratch != spec.dtype.framework else set()
    return known.issuperset(best.causes)


def of_update(spec: Spec, found: Diagnosis, match: Matching | None) -> tuple[dict[str, Any], str]:
    """Give what makes torch update as a user's scratch code does, and that in words.

    Without any change, the words say why there is none.
    """
    best = found.best
    assert best is not None
    changes: dict[str, Any] = {}
    told = []
    if "precision" in best.causes:
        changes["dtype"] = {"scratch": "float32", "framework": spec.dtype.framework}
        told.append("it says that the scratch side computes in float32")
        if spec.tolerance.on_drift:
            changes["tolerance"] = {"rounding": ROUNDING}
            told.append("the tolerance allows for its rounding")
    if found.start is not None:
        changes["init"] = {name: np.ravel(w).tolist() for name, w in found.start.items()}
        told.append("both sides start where your code does")
    if best.note == NOT_SHUFFLED:
        changes["shuffle"] = False
        told.append("the rows keep their order, as your code has it")
    if best.change.get("bce_slope") == "plain":
        changes["loss"] = "bce_with_logits"
        told.append("torch takes the loss whose slope is p − y however large the outputs are")
    if best.change.keys() - {"bce_slope"} or best.weight_decay is not None:
        if match is None:
            return {}, "no settings of torch's match your code: change the code"
        changes["framework"] = settings_of(spec, match)
        told.append("torch is given what matches your code")
    return changes, "; ".join(told) or "nothing in the spec fixes it: change the code"


def reports(history: History, torch: NumpyTrainer, loss: str) -> bool:
    """Say whether the scratch side reports a loss of torch's, which may be another than its own."""
    rule = torch.by(replace(torch.problem, loss=loss))
    values = [
        rule.forward_backward(history.split(one.before), one.batch).loss
        for one in history.records()
    ]
    return bool(np.allclose(history.loss("scratch"), values, rtol=1e-6, atol=0))


def settings_of(spec: Spec, match: Matching) -> dict[str, Any]:
    """Give torch's settings as a spec has them: those that are not the spec's own."""
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
