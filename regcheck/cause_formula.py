"""Both sides' formulas of a cause: the lines of torch's rule that it changes, and what they become.

A factor that may be anything is written c where its value is not known.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from regcheck.causes import CAUSES, Change, put_in
from regcheck.convention import NO_SLIPS, TORCH
from regcheck.formula import Letters, letters, loss_text, rule_lines
from regcheck.training import Training


class Formulas(NamedTuple):
    """The lines in which two rules differ; both empty where a cause changes no formula.

    `scratch` has the lines of each way in which the cause can act.
    """

    scratch: list[list[str]]
    framework: list[str]


def scratch_formula(name: str, training: Training, factor: float | None = None) -> str:
    """Write what a cause makes of torch's rule, with a training's numbers; empty where nothing.

    Args:
        name: the cause.
        training: with the settings that the cause is about.
        factor: the one that stands behind a fitted cause; None writes c.

    >>> training = Training(0.05, False, {"weight": 0.1}, 0.0, 0.0, False, False, (32,), 273)
    >>> training = training._replace(weight_decay={"weight": 0.1, "bias": 0.1})
    >>> scratch_formula("penalty-divided-by-batch", training)
    'w ← w − 0.05 (g + 0.1/32 w), b likewise'
    >>> scratch_formula("learning-rate-scaled", training, 2.0)
    'w ← w − 2·0.05 (g + 0.1 w), b likewise'
    """
    ways = formulas_of(name, letters(training), factor).scratch
    return ", or ".join("; ".join(lines) for lines in ways)


def framework_formula(name: str, training: Training) -> str:
    """Write the lines of torch's rule that a cause changes, with a training's numbers.

    >>> training = Training(0.05, False, {"weight": 0.1, "bias": 0.0}, 0, 0, False, False, (2,), 2)
    >>> framework_formula("penalty-in-loss", training)
    'reports  mean ℓ'
    """
    return "; ".join(formulas_of(name, letters(training)).framework)


def formulas_of(name: str, given: Letters, factor: float | None = None) -> Formulas:
    """Give the lines that differ between torch's rule and a cause's.

    Those of the update, or of the reported loss for a cause that changes nothing else.
    """
    rules = [put_in(change, TORCH, NO_SLIPS) for change in changes_of(name, factor)]
    if CAUSES[name].kind == "update":
        framework = rule_lines(TORCH, given)
        ways = [rule_lines(convention, given, slips) for convention, slips in rules]
    else:
        torch = loss_text(TORCH, given)
        framework = [reported(torch)]
        ways = [[reported(loss_text(convention, given, slips))] for convention, slips in rules]
        if CAUSES[name].reports:
            ways.append([reported(CAUSES[name].reports.format(torch))])
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
