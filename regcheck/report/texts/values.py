"""The numbers of the short report: an entry at the first divergence, and where the sides ended."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from regcheck.compare.steps import Divergence
from regcheck.compare.trace import Sample
from regcheck.problem.problem import Parameters
from regcheck.report.result import Report
from regcheck.report.texts.numbers import in_columns, power
from regcheck.report.texts.text import entry
from regcheck.rules.convention import is_bias

ENTRIES = 2
"""Tensors of which the entry that differs most is shown at the end."""


class Value(NamedTuple):
    """One quantity on both sides, and how far apart they are; `unit` is empty or a per cent sign.

    A side that does not report it has NaN.
    """

    what: str
    scratch: float
    torch: float
    difference: float
    unit: str = ""


class Values(NamedTuple):
    """One entry at the first divergence.

    Attributes:
        place: the entry and the step, and the parameter before that.
        values: its terms in the order of the step, the parameter after it last.
        allowed: what the difference of the parameters is allowed to be, and in what words.
        allowed_by: what rounding could cause, or the tolerance.
    """

    place: str
    values: tuple[Value, ...]
    allowed: float
    allowed_by: str


class FinalValues(NamedTuple):
    """Where both sides ended, each by itself, and after which step.

    Attributes:
        parameters: the entry of each tensor that differs most, the farthest apart first.
        results: the reported loss and the accuracies.
    """

    step: int
    parameters: tuple[Value, ...]
    results: tuple[Value, ...]


def value_rows(found: Sequence[Value], *, narrow: bool = False) -> list[tuple[str, str, str, str]]:
    """Write quantities as rows: what, both sides in one format for all, and how far apart."""
    plain = [one for one in found if not one.unit]
    texts = in_columns([one.scratch for one in plain], [one.torch for one in plain], narrow)
    rows = [
        (one.what, scratch, torch, power(one.difference))
        for one, scratch, torch in zip(plain, *texts, strict=True)
    ]
    for one in (one for one in found if one.unit):
        scratch, torch = (f"{side:.2f} {one.unit}" for side in (one.scratch, one.torch))
        rows.append((one.what, scratch, torch, f"{one.difference:.2f} points"))
    return rows


def values_at(report: Report) -> Values | None:
    """Return the terms of the entry that diverges first; None where no parameter does."""
    divergence, sample = report.first_divergence, report.comparison.sample
    if (
        report.verdict != "diverged"
        or divergence is None
        or "parameters" not in report.spec.compare
    ):
        return None
    at = divergence.at
    where = f"{entry(report, at.tensor, at.index)} at step {divergence.step:,}"
    tolerance = report.spec.tolerance.of(at.tensor)
    letter = "bias" if is_bias(at.tensor) else "weight"
    after = pair(f"updated {letter}", at.scratch, at.framework)
    if tolerance.on_drift:
        return Values(f"{where}, each side by itself", (after,), at.bound, "the tolerance allows")
    if sample is None or divergence.stage == "initial":
        start = pair(f"{letter} at the start", at.scratch, at.framework)
        return Values(where, (start,), at.bound, "rounding could cause")
    before = float(sample.framework.before[at.tensor][at.index])
    values = (*terms(report, divergence, sample, before), after)
    place = f"{where}, both sides from {before:.9g}"
    return Values(place, values, at.bound, "rounding could cause")


def terms(
    report: Report, divergence: Divergence, sample: Sample, before: float
) -> tuple[Value, ...]:
    """Return the terms of a step that both sides report: gradient, weight decay, update."""
    at, found = divergence.at, []
    scratch, torch = sample.scratch, sample.framework

    def both(what: str, own: Parameters | None, theirs: Parameters | None, scale: float) -> None:
        if own and theirs and at.tensor in own and at.tensor in theirs:
            values = (float(one[at.tensor][at.index]) * scale for one in (own, theirs))
            found.append(pair(what, *values))

    if divergence.stage == "gradient":
        both("gradient of the loss", scratch.gradient, torch.gradient, 1.0)
    if any(report.training.settings.weight_decay.values()):
        lr = report.schedule.lr_at(divergence.step)
        coupled = report.training.settings.torchs.decay == "gradient" and lr
        what = "weight-decay term" if coupled else "lr × weight-decay term"
        both(what, scratch.penalty, torch.penalty, 1 / lr if coupled else 1.0)
    found.append(pair("update", at.scratch - before, at.framework - before))
    return tuple(found)


def pair(what: str, scratch: float, torch: float) -> Value:
    """Return a quantity of both sides with its difference."""
    scratch, torch = scratch + 0.0, torch + 0.0  # no −0
    return Value(what, scratch, torch, abs(scratch - torch))


def final_values(report: Report) -> FinalValues | None:
    """Return where both sides ended: the tensors that differ most, the loss, the accuracy."""
    if not report.comparison.compared:
        return None
    scratch, framework = report.comparison.final["scratch"], report.comparison.final["framework"]
    found = [
        farthest(report, name, scratch.parameters[name], w)
        for name, w in framework.parameters.items()
    ]
    found.sort(key=lambda one: -np.nan_to_num(one.difference, nan=np.inf))
    results = accuracies(scratch.accuracy, framework.accuracy)
    if report.comparison.losses.reported:
        results.insert(0, pair("reported loss", scratch.loss, framework.loss))
    return FinalValues(report.comparison.trace[-1].step, tuple(found[:ENTRIES]), tuple(results))


def farthest(report: Report, name: str, scratch: np.ndarray, torch: np.ndarray) -> Value:
    """Return the entry of a tensor that differs most."""
    with np.errstate(all="ignore"):
        apart = np.nan_to_num(np.abs(scratch - torch), nan=np.inf)
    index = np.unravel_index(int(apart.argmax()), apart.shape)
    at = tuple(map(int, index))
    return pair(entry(report, name, at), float(scratch[at]), float(torch[at]))


def accuracies(
    scratch: Mapping[str, float | None], torch: Mapping[str, float | None]
) -> list[Value]:
    """Return the accuracies that both sides have, in per cent."""
    found = []
    for rows, own in scratch.items():
        theirs = torch[rows]
        if own is not None and theirs is not None and not math.isnan(own + theirs):
            found.append(pair(f"{rows} accuracy", 100 * own, 100 * theirs)._replace(unit="%"))
    return found
