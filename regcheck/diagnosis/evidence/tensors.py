"""What is known of each tensor that no cause explains: by what rule its steps go."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from regcheck.compare.history import Record
from regcheck.diagnosis.fits.moves import Moves
from regcheck.diagnosis.records import NO_RULE, NO_SETTINGS, EffectiveSettings, Run
from regcheck.diagnosis.replay import Replay
from regcheck.numerics.least_squares import fit_columns
from regcheck.problem.problem import Array
from regcheck.rules.settings import Training
from regcheck.rules.words import all_of

NEVER = "never updated"
"""How a tensor goes that no step changes."""


FROZEN = "though frozen in torch (requires_grad is False)"


NOT_GIVEN = "though not in torch's optimizer"


MOST_TENSORS = 6
"""Tensors that are named."""


def settings_evidence(
    settings: Mapping[str, EffectiveSettings], training: Training, known: Mapping[str, str]
) -> list[str]:
    """Describe which tensors go by torch's rule, which by it with other numbers, which by neither.

    Nothing where none goes by it, or the run does not tell. Of some, `known` has how they go.
    """
    rules: dict[str, list[str]] = {}
    for name, one in settings.items():
        rule = one.rule(training.settings.weight_decay.get(name, 0.0))
        rules.setdefault(known.get(name, f"updated {rule}"), []).append(name)
    if not rules.keys() - {f"updated {rule}" for rule in (NO_RULE, NO_SETTINGS)}:
        return []
    return [
        f"{all_of(names, most=MOST_TENSORS)} {'are' if len(names) > 1 else 'is'} {text}."
        for text, names in rules.items()
    ]


def updated_by_one_side(run: Run) -> dict[str, str]:
    """Say which tensors the steps of one side alone change, by name, and what keeps torch's."""
    tensors, untrained = run.sides.probe.tensors, run.sides.probe.module.untrained()
    before, *sides = (run.history.all(key) for key in ("before", "scratch", "framework"))
    found: dict[str, str] = {}
    for name, part in run.history.slices.items():
        scratch, torch = (bool((after[:, part] != before[:, part]).any()) for after in sides)
        if torch and not scratch:
            found[name] = NEVER
        elif scratch and not torch and name in untrained:
            frozen = not tensors[name].requires_grad
            found[name] = f"updated, {FROZEN if frozen else NOT_GIVEN}"
    return found


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
