"""Both sides' formulas of a cause: the lines of torch's rule that it changes, and what they become.

A factor that may be anything is written c where its value is not known.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from regcheck.rules.cause import Change, put_in
from regcheck.rules.causes import CAUSES
from regcheck.rules.convention import NO_FAULTS, TORCH, Convention
from regcheck.rules.formula import loss_text, rule_lines
from regcheck.rules.settings import Letters, Training, letters


class Formulas(NamedTuple):
    """The lines in which two rules differ; both empty where a cause changes no formula.

    `scratch` has the lines of each way in which the cause can act.
    """

    scratch: list[list[str]]
    framework: list[str]


def scratch_formula(
    name: str, training: Training, factor: float | None = None, loss_scale: float | None = None
) -> str:
    """Write what a cause makes of torch's rule, with a training's numbers; empty where nothing.

    Args:
        name: the cause.
        training: with the settings that the cause is about.
        factor: the one that stands behind a fitted cause; None writes c.
        loss_scale: the factor on the data loss that is reported, for a cause of the reporting;
            None where it is not known.

    >>> from regcheck.rules.settings import Settings
    >>> training = Training(Settings(0.05, {"weight": 0.1, "bias": 0.1}), (32,), 273)
    >>> scratch_formula("penalty-divided-by-batch", training)
    'w ← w − 0.05 (g + 0.1/32 w), b likewise'
    >>> scratch_formula("learning-rate-scaled", training, 2.0)
    'w ← w − 2·0.05 (g + 0.1 w), b likewise'
    >>> scratch_formula("penalty-in-loss", training, loss_scale=0.5)
    'reports  0.5 mean ℓ + ½·0.1 Σw² + ½·0.1 Σb²'
    """
    base = TORCH if loss_scale is None else with_loss_scale(training, loss_scale)
    ways = formulas_of(name, letters(training), factor, base).scratch
    return ", or ".join("; ".join(lines) for lines in ways)


def framework_formula(name: str, training: Training) -> str:
    """Write the lines of torch's rule that a cause changes, with a training's numbers."""
    return "; ".join(formulas_of(name, letters(training)).framework)


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
            return TORCH._replace(loss_reduction="sum", loss_factor=share)
    return TORCH._replace(loss_factor=scale)


def formulas_of(
    name: str, given: Letters, factor: float | None = None, base: Convention = TORCH
) -> Formulas:
    """Return the lines that differ between torch's rule and a cause's.

    Those of the update, or of the reported loss for a cause that changes nothing else; the latter
    is put into a rule whose data loss may be another than torch's already, `base`.
    """
    cause = CAUSES[name]

    def written(change: Change, base: Convention) -> list[str]:
        """Write torch's rule, or its loss, with a change in it."""
        convention, faults = put_in(change, base, NO_FAULTS)
        if cause.kind == "update":
            return rule_lines(convention, given, faults)
        return [f"reports  {loss_text(convention, given, faults)}"]

    changes = cause.changes
    if cause.factor_key:
        changes = ({cause.factor_key: math.nan if factor is None else factor},)
    framework = written({}, TORCH)
    ways = [written(change, TORCH if cause.kind == "update" else base) for change in changes]
    if cause.reports:
        # The c of a scaled loss is in its formula already.
        text = cause.reports if base == TORCH else cause.reports.removeprefix("c ")
        ways.append([f"reports  {text.format(loss_text(base, given))}"])
    return Formulas(
        [[line for line in lines if line not in framework] for lines in ways],
        [line for line in framework if any(line not in lines for lines in ways)],
    )
