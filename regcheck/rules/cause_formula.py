"""Both sides' formulas of a cause: the lines of torch's rule that it changes, and what they become.

A factor that may be anything is written c where its value is not known.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from regcheck.rules.cause import Change, put_in
from regcheck.rules.causes import CAUSES
from regcheck.rules.convention import NO_FAULTS, TORCH, Convention
from regcheck.rules.formula import Letters, letters, loss_text, rule_lines
from regcheck.rules.settings import Training


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

    >>> from regcheck.rules.settings import SgdSettings
    >>> training = Training(SgdSettings(0.05, {"weight": 0.1, "bias": 0.1}), (32,), 273)
    >>> scratch_formula("penalty-divided-by-batch", training)
    'w ← w − 0.05 (g + 0.1/32 w), b likewise'
    >>> scratch_formula("learning-rate-scaled", training, 2.0)
    'w ← w − 2·0.05 (g + 0.1 w), b likewise'
    >>> scratch_formula("penalty-in-loss", training, loss_scale=0.5)
    'reports  0.5 mean ℓ + ½·0.1 Σw² + ½·0.1 Σb²'
    """
    base = TORCH if loss_scale is None else scaled_loss(training, loss_scale)
    ways = formulas_of(name, letters(training), factor, base).scratch
    return ", or ".join("; ".join(lines) for lines in ways)


def framework_formula(name: str, training: Training) -> str:
    """Write the lines of torch's rule that a cause changes, with a training's numbers.

    >>> from regcheck.rules.settings import SgdSettings
    >>> training = Training(SgdSettings(0.05, {"weight": 0.1, "bias": 0.0}), (2,), 2)
    >>> framework_formula("penalty-in-loss", training)
    'reports  mean ℓ'
    """
    return "; ".join(formulas_of(name, letters(training)).framework)


def scaled_loss(training: Training, scale: float) -> Convention:
    """Give torch's rule with another data loss: `scale` times the mean, or the sum of the rows'.

    >>> from regcheck.rules.settings import SgdSettings
    >>> training = Training(SgdSettings(0.1, {"weight": 0.0}), (32, 17), 273)
    >>> loss_text(scaled_loss(training, 16.0), letters(training))
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
    """Give the lines that differ between torch's rule and a cause's.

    Those of the update, or of the reported loss for a cause that changes nothing else; the latter
    is put into a rule whose data loss may be another than torch's already.
    """
    cause, changes = CAUSES[name], changes_of(name, factor)
    if cause.kind == "update":
        framework = rule_lines(TORCH, given)
        rules = [put_in(change, TORCH, NO_FAULTS) for change in changes]
        ways = [rule_lines(convention, given, faults) for convention, faults in rules]
    else:
        framework, data = [reported(loss_text(TORCH, given))], loss_text(base, given)
        rules = [put_in(change, base, NO_FAULTS) for change in changes]
        ways = [[reported(loss_text(convention, given, faults))] for convention, faults in rules]
        if cause.reports and base != TORCH:  # the c of a scaled loss is in it already
            ways.append([reported(cause.reports.removeprefix("c ").format(data))])
        elif cause.reports:
            ways.append([reported(cause.reports.format(data))])
    return Formulas(
        [[line for line in lines if line not in framework] for lines in ways],
        [line for line in framework if any(line not in lines for lines in ways)],
    )


def changes_of(name: str, factor: float | None = None) -> tuple[Change, ...]:
    """Give a cause's changes of torch's rule, with its factor put in, or NaN where it is open."""
    cause = CAUSES[name]
    if cause.factor_key is None:
        return cause.changes
    return ({cause.factor_key: math.nan if factor is None else factor},)


def reported(text: str) -> str:
    """Put a loss's formula into a line of its own."""
    return f"reports  {text}"
