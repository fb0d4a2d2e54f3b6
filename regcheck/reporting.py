"""Why the reported losses part: what the scratch side puts into its loss that torch leaves out.

At the same parameters, torch reports the data loss ℓ. The scratch side may report, all told apart
from what it trains by,

    ℓ + κ_w/2 ‖w‖² + κ_b/2 b²        the penalty, of the strength it trains by, or any other
    c ℓ                              another reduction, or half the loss
    ℓ at the parameters after        the loss after the update
    mean of ℓ over the epoch so far  the mean of batch means

and some of these at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from regcheck.history import History
from regcheck.hypotheses import Fit, pass_scale
from regcheck.problem import Array, Problem


class Reporting(NamedTuple):
    """What explains the reported losses.

    Attributes:
        causes: of kind reporting; empty where the loss is that of the rule it trains by.
        strengths: κ of each tensor in the loss, where the penalty is in it.
        scale: c, the factor on the data loss.
        residual: the largest difference left, in limits.
    """

    causes: tuple[str, ...]
    strengths: Mapping[str, Fit]
    scale: float
    residual: float


class Losses(NamedTuple):
    """The losses told at the same steps: those of the scratch side, torch's, their limits."""

    scratch: Array
    framework: Array
    limit: Array
    kept: NDArray[np.bool_]


def told(history: History, limit: float) -> Losses:
    """Take the steps at which both sides tell a loss."""
    scratch, framework, bound = (history.loss(what) for what in ("scratch", "framework", "bound"))
    kept = np.isfinite(scratch) & np.isfinite(framework) & np.isfinite(bound)
    return Losses(scratch[kept], framework[kept], limit * bound[kept], kept)


def explain_losses(
    history: History,
    problem: Problem,
    limit: float,
    rules: list[tuple[Problem, Mapping[str, float]]],
    loss_after: Callable[[], Array | None],
) -> Reporting | None:
    """Find what explains the reported losses; None where nothing does.

    Args:
        history: the recorded steps.
        problem: by torch's rule.
        limit: bounds that the loss may differ by.
        rules: those that explain the updates, each with κ of its penalty, and torch's own.
        loss_after: gives the loss after each recorded update, where it can be taken.
    """
    losses = told(history, limit)
    if not len(losses.scratch):
        return None
    for causes, base, scale in bases(history, losses, problem, rules, loss_after):
        found = of_base(history, losses, causes, base, scale, [own for _, own in rules])
        if found is not None:
            return found
    return None


def bases(
    history: History,
    losses: Losses,
    problem: Problem,
    rules: list[tuple[Problem, Mapping[str, float]]],
    loss_after: Callable[[], Array | None],
) -> list[tuple[tuple[str, ...], Array, float]]:
    """Give the data losses that may be reported: (causes, losses, the factor in them)."""
    batches = [record.batch for record in history.records()]
    scales: dict[float, tuple[str, ...]] = {1.0: ()}
    for rule, _ in rules:
        each = {pass_scale(rule.convention, rule.slips, batch, rule) for batch in batches[:3]}
        scales |= {scale: () for scale in each if scale is not None}
    for scale in (0.5, float(batches[0].size), 0.5 * batches[0].size):
        scales.setdefault(scale, ("reported-loss-scaled",))
    found = [(causes, scale * losses.framework, scale) for scale, causes in scales.items()]
    epochs = np.array([batch.epoch for batch in batches])[losses.kept]
    found.append((("loss-epoch-mean",), running_mean(losses.framework, epochs), 1.0))
    rows = np.array([float(batch.size) for batch in batches])[losses.kept]
    weighted = running_mean(losses.framework * rows, epochs) / running_mean(rows, epochs)
    found.append((("loss-epoch-mean",), weighted, 1.0))
    after = loss_after()
    if after is not None:
        found.append((("loss-after-update",), after[losses.kept], 1.0))
    return found


def running_mean(values: Array, epochs: Array) -> Array:
    """Give the mean of an epoch's values so far, at each of its steps."""
    found = np.empty_like(values)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        found[here] = np.cumsum(values[here]) / np.arange(1, here.sum() + 1)
    return found


def of_base(
    history: History,
    losses: Losses,
    causes: tuple[str, ...],
    base: Array,
    scale: float,
    known: list[Mapping[str, float]],
) -> Reporting | None:
    """Say whether a data loss is what is reported, with or without a penalty in it."""
    limit = losses.limit * max(1.0, abs(scale))
    rest = losses.scratch - base
    residual = worst(rest, limit)
    if residual <= 1:
        return Reporting(causes, {}, scale, residual)
    for before in (history.all("before"),):
        halves = {
            name: (before[losses.kept, part] ** 2).sum(axis=1) / 2
            for name, part in history.slices.items()
        }
        for strengths in known:
            for factor in (scale, 1.0):
                kappa = {name: factor * strengths.get(name, 0.0) for name in halves}
                penalty = sum((kappa[name] * half for name, half in halves.items()), 0 * base)
                slack = limit + 16 * np.finfo(np.float64).eps * np.abs(penalty)
                residual = worst(rest - penalty, slack)
                if residual <= 1 and any(kappa.values()):
                    fits = {name: Fit(value, 0.0) for name, value in kappa.items()}
                    return Reporting((*causes, "penalty-in-loss"), fits, scale, residual)
        free = fitted(rest, halves, limit)
        if free is not None:
            penalty = sum((free[name].factor * half for name, half in halves.items()), 0 * base)
            residual = worst(rest - penalty, limit + 1e-12 * np.abs(penalty))
            if residual <= 1:
                return Reporting((*causes, "penalty-in-loss"), free, scale, residual)
    return None


def fitted(rest: Array, halves: Mapping[str, Array], limit: Array) -> dict[str, Fit] | None:
    """Fit κ of each tensor's penalty to what is left of the loss; None where it cannot be told."""
    columns = np.column_stack([half / limit for half in halves.values()])
    sizes = np.sqrt((columns**2).sum(axis=0))
    told_apart = [index for index in range(len(sizes)) if sizes[index] > 0]
    if len(rest) <= len(told_apart) or not told_apart:
        return None
    scaled = columns[:, told_apart] / sizes[told_apart]
    solution, _, rank, _ = np.linalg.lstsq(scaled, rest / limit, rcond=1e-12)
    if rank < len(told_apart):
        return None
    spread = np.sqrt(np.diag(np.linalg.inv(scaled.T @ scaled)))
    found = dict.fromkeys(halves, Fit(0.0, math.inf))
    names = list(halves)
    for place, index in enumerate(told_apart):
        found[names[index]] = Fit(
            float(solution[place] / sizes[index]), float(spread[place] / sizes[index])
        )
    return found


def worst(rest: Array, limit: Array) -> float:
    """Give the largest difference in limits."""
    with np.errstate(all="ignore"):
        ratios = np.abs(rest) / limit
    return float(np.max(np.where(np.isnan(ratios), math.inf, ratios), initial=0.0))
