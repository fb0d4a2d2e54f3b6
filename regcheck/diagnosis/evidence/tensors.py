"""What is known of each tensor that no cause explains: by what rule its steps go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from regcheck.compare.history import Record
from regcheck.diagnosis.evidence.record import Evidence
from regcheck.diagnosis.fits.moves import Moves
from regcheck.diagnosis.records import EffectiveSettings, Run
from regcheck.diagnosis.replay import Replay
from regcheck.numerics.least_squares import fit_columns
from regcheck.problem.problem import Array
from regcheck.rules.settings import Training
from regcheck.rules.words import all_of, first_of

NO_RULE = Evidence("updated by no constant combination of torch's gradient and the parameters.")
"""How a tensor goes that no effective settings fit. Its name is to be put before it, as below."""

NO_SETTINGS = Evidence("updated not by torch's rule, whatever its lr and weight_decay.")
"""The same where a step is no linear function of the gradient."""

NEVER = Evidence("never updated.", kind="never-updated")

FROZEN = Evidence("updated, though frozen in torch (requires_grad is False).", kind="frozen")

NOT_GIVEN = Evidence("updated, though not in torch's optimizer.", kind="not-given")

MOST_TENSORS = 6
"""Tensors that are named."""


def settings_evidence(
    settings: Mapping[str, EffectiveSettings], training: Training, known: Mapping[str, Evidence]
) -> list[Evidence]:
    """Describe which tensors go by torch's rule, which by it with other numbers, which by neither.

    Nothing where none goes by it, or the run does not tell. Of some, `known` has how they go.
    """
    ways: dict[Evidence, list[str]] = {}
    for name, one in settings.items():
        way = rule_of(one, training.settings.weight_decay.get(name, 0.0))
        ways.setdefault(known.get(name, way), []).append(name)
    if not ways.keys() - {NO_RULE, NO_SETTINGS}:
        return []
    return [named(names, way) for way, names in ways.items()]


def named(names: Sequence[str], way: Evidence) -> Evidence:
    """Put the names of tensors before the way in which they go."""
    start = f"{all_of(names, most=MOST_TENSORS)} {'are' if len(names) > 1 else 'is'}"
    shown = tuple(first_of(names, MOST_TENSORS))
    return replace(way, clause=f"{start} {way.clause}", tensors=shown)


def rule_of(one: EffectiveSettings, weight_decay: float, gradient: str = "") -> Evidence:
    """Describe by what rule a tensor goes, beside torch's with its weight decay.

    `gradient` is what stands in the place of torch's gradient, where that is another.
    """
    if not one.linear:
        return other_settings_of(one, weight_decay)
    if not one.fits or one.gradient is None:
        return NO_RULE
    alpha, decay = one.gradient, one.decay
    own = decay is None or decay.is_near(weight_decay)
    if alpha.is_near(1.0) and own:
        return Evidence("updated by " + (gradient or "torch's rule") + ".")
    if alpha.is_near(-1.0) and (decay is None or decay.is_near(-weight_decay)):
        rest = ": subtract it, do not add it."
        return Evidence("updated by −1 times torch's update", rest, "says-next")
    penalty = ""
    if decay is not None and not own:
        penalty = f" and a weight decay of {decay.factor:.6g} w"
        penalty = ", without weight decay" if decay.is_near(0.0) else penalty
    by = (gradient or "torch's gradient") + penalty + "."
    if alpha.is_near(-1.0):
        return Evidence("updated by a wrong sign", f": −1 times {by}")
    factor = "" if alpha.is_near(1.0) else f"{alpha.factor:.6g} times "
    return Evidence(f"updated by {factor}{by}")


def other_settings_of(one: EffectiveSettings, weight_decay: float) -> Evidence:
    """Describe with which lr and weight decay torch's rule makes a tensor's steps."""
    if not one.fits or one.gradient is None:
        return NO_SETTINGS
    alpha, decay = one.gradient, one.weight_decay
    other = [] if alpha.is_near(1.0) else [f"{alpha.factor:.6g} times the lr"]
    if decay is not None and not decay.is_near(weight_decay):
        text = f"a weight_decay of {decay.factor:.6g}"
        other.append("no weight decay" if decay.is_near(0.0) else text)
    return Evidence("updated by torch's rule" + (f" with {all_of(other)}." if other else "."))


def updated_by_one_side(run: Run) -> dict[str, Evidence]:
    """Say which tensors the steps of one side alone change, by name, and what keeps torch's."""
    tensors, untrained = run.sides.probe.tensors, run.sides.probe.module.untrained()
    before, *sides = (run.history.all(key) for key in ("before", "scratch", "framework"))
    found: dict[str, Evidence] = {}
    for name, part in run.history.slices.items():
        scratch, torch = (bool((after[:, part] != before[:, part]).any()) for after in sides)
        if torch and not scratch:
            found[name] = NEVER
        elif scratch and not torch and name in untrained:
            found[name] = NOT_GIVEN if tensors[name].requires_grad else FROZEN
    return found


def by_batch_size(replay: Replay, settings: Mapping[str, EffectiveSettings]) -> dict[str, Evidence]:
    """Say which tensors go by torch's gradient times or over each batch's own size, by name.

    Only of those that go by no constant factor: S_t ≈ α G_t(B^±1 g) + κ P_t.
    """
    strange = [name for name, one in settings.items() if one.linear and not one.fits]
    found: dict[str, Evidence] = {}
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
            if fits:
                own = f"{share} times torch's gradient, B being each batch's own size"
                one = EffectiveSettings(alpha, decay, fits)
                found[name] = rule_of(one, decays.get(name, 0.0), own)
    return found
