"""The causes, in one catalogue, and what each makes of torch's formulas.

A new one is an entry in the module of its kind. The trials of what a run could have shown, the
diagnosis, the explanation and the planted bugs read it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from regcheck.rules.causes.adam_causes import ADAM_CAUSES
from regcheck.rules.causes.cause import Cause, Change, put_in
from regcheck.rules.causes.gradient_causes import GRADIENT_CAUSES
from regcheck.rules.causes.loss_causes import LOSS_CAUSES
from regcheck.rules.causes.penalty_causes import PENALTY_CAUSES
from regcheck.rules.causes.step_causes import STEP_CAUSES
from regcheck.rules.convention import Convention
from regcheck.rules.faults import NO_FAULTS
from regcheck.rules.formulas.formula import EPOCHS, loss_text, rule_lines
from regcheck.rules.settings import Letters, Training, letters

CAUSES: dict[str, Cause] = dict(
    sorted((ADAM_CAUSES | GRADIENT_CAUSES | LOSS_CAUSES | PENALTY_CAUSES | STEP_CAUSES).items())
)
"""All causes by their names."""


class Formulas(NamedTuple):
    """The lines in which two rules differ; both empty where a cause changes no formula.

    `scratch` has the lines of each way in which the cause can act.
    """

    scratch: list[list[str]]
    framework: list[str]


def scratch_formula(
    name: str,
    training: Training,
    factor: float | None = None,
    loss_scale: float | None = None,
    change: Change | None = None,
) -> str:
    """Write what a cause makes of torch's rule, with a training's numbers; empty where nothing.

    Args:
        name: the cause.
        training: with the settings that the cause is about.
        factor: the one that stands behind a fitted cause; None writes c.
        loss_scale: the factor on the data loss that is reported, for a cause of the reporting;
            None where it is not known.
        change: what a cause puts into torch's rule whose entry does not say it.

    >>> from regcheck.rules.settings import Settings
    >>> training = Training(Settings(0.05, {"weight": 0.1, "bias": 0.1}), (32,), 273)
    >>> scratch_formula("penalty-divided-by-batch", training)
    'w ← w − 0.05 (g + 0.1/32 w), b likewise'
    >>> scratch_formula("learning-rate-scaled", training, 2.0)
    'w ← w − 2·0.05 (g + 0.1 w), b likewise'
    >>> scratch_formula("penalty-in-loss", training, loss_scale=0.5)
    'reports  0.5 mean ℓ + ½·0.1 Σw² + ½·0.1 Σb²'
    """
    base = None if loss_scale is None else with_loss_scale(training, loss_scale)
    ways = formulas_of(name, letters(training), factor, base, change).scratch
    return ", or ".join("; ".join(lines) for lines in ways)


def framework_formula(name: str, training: Training, change: Change | None = None) -> str:
    """Write the lines of torch's rule that a cause changes, with a training's numbers."""
    return "; ".join(formulas_of(name, letters(training), change=change).framework)


def with_loss_scale(training: Training, scale: float) -> Convention:
    """Return torch's rule with `scale` times its mean loss, or the sum of the rows' losses.

    >>> from regcheck.rules.settings import Settings
    >>> training = Training(Settings(0.1, {"weight": 0.0}), (32, 17), 273)
    >>> loss_text(with_loss_scale(training, 16.0), letters(training))
    '0.5 Σℓ'
    """
    rows = training.loss_rows[0]
    for share in (1.0, 0.5):
        if scale == share * rows != 1:
            return training.settings.torchs._replace(loss_reduction="sum", loss_factor=share)
    return training.settings.torchs._replace(loss_factor=scale)


def formulas_of(
    name: str,
    given: Letters,
    factor: float | None = None,
    base: Convention | None = None,
    change: Change | None = None,
) -> Formulas:
    """Return the lines that differ between torch's rule and a cause's.

    Those of the update, or of the reported loss for a cause that changes nothing else; the latter
    is put into a rule whose data loss may be another than torch's already, `base`.
    """
    cause, torchs = CAUSES[name], given.torchs
    base = base or torchs

    def written(change: Change, base: Convention) -> list[str]:
        """Write torch's rule, or its loss, with a change in it."""
        convention, faults = put_in(change, base, NO_FAULTS)
        if cause.kind == "update":
            return rule_lines(convention, given, faults)
        return [f"reports  {loss_text(convention, given, faults)}"]

    changes = cause.changing(torchs) if change is None else (change,)
    if cause.factor_key:
        changes = ({cause.factor_key: math.nan if factor is None else factor},)
    framework = written({}, torchs)
    if any("state" in change for change in changes):
        framework = [EPOCHS["kept"], *framework]  # which else goes without saying
    ways = [written(change, torchs if cause.kind == "update" else base) for change in changes]
    if cause.reports:
        # The c of a scaled loss is in its formula already.
        text = cause.reports if base == torchs else cause.reports.removeprefix("c ")
        ways.append([f"reports  {text.format(loss_text(base, given))}"])
    common = {line for line in framework if all(line in lines for lines in ways)}
    scratch = [[line for line in lines if line not in common] for lines in ways]
    return Formulas(scratch, [line for line in framework if line not in common])
