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
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from regcheck.history import History
from regcheck.hypotheses import Fit, pass_scale
from regcheck.problem import Array, Problem
from regcheck.schedule import Batch


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
    """The losses at the steps at which both sides tell one, and what is known of these steps.

    `penalties` has for each tensor what κ multiplies in the loss: ‖w‖²/2.
    """

    scratch: Array
    framework: Array
    limit: Array
    batches: tuple[Batch, ...]
    kept: NDArray[np.bool_]
    penalties: Mapping[str, Array]
    norms: Mapping[str, Array]


class Rule(NamedTuple):
    """A rule that the scratch side may train by, with κ of each tensor in it."""

    problem: Problem
    strengths: Mapping[str, float]


def told(history: History, limit: float) -> Losses:
    """Take the steps at which both sides tell a loss."""
    scratch, framework, bound = (history.loss(what) for what in ("scratch", "framework", "bound"))
    kept = np.isfinite(scratch) & np.isfinite(framework) & np.isfinite(bound)
    before = history.all("before")[kept]
    squares = {name: (before[:, part] ** 2).sum(axis=1) for name, part in history.slices.items()}
    return Losses(
        scratch[kept],
        framework[kept],
        limit * bound[kept],
        tuple(record.batch for record, keep in zip(history.records(), kept, strict=True) if keep),
        kept,
        {name: square / 2 for name, square in squares.items()},
        {name: np.sqrt(square) for name, square in squares.items()},
    )


def explain_losses(
    history: History,
    limit: float,
    rules: Sequence[Rule],
    loss_after: Callable[[], Array | None],
) -> Reporting | None:
    """Find what explains the reported losses; None where nothing does.

    Args:
        history: the recorded steps.
        limit: bounds that the loss may differ by.
        rules: those that explain the updates, and torch's own.
        loss_after: gives the loss after each recorded update, where it can be taken.
    """
    losses = told(history, limit)
    if not len(losses.scratch):
        return None
    for causes, base, scale in data_losses(losses, rules, loss_after):
        for penalty, strengths in penalties(losses, base, scale, rules):
            slack = losses.limit * max(1.0, abs(scale)) + 1e-14 * np.abs(penalty)
            residual = worst(losses.scratch - base - penalty, slack)
            if residual <= 1:
                inside = ("penalty-in-loss",) if strengths else ()
                return Reporting((*causes, *inside), strengths, scale, residual)
    return None


def data_losses(
    losses: Losses, rules: Sequence[Rule], loss_after: Callable[[], Array | None]
) -> Iterator[tuple[tuple[str, ...], Array, float]]:
    """Give the data losses that may be reported: causes, losses, and the factor in them."""
    own: dict[float, None] = {1.0: None}
    first = losses.batches[0]
    for rule, _ in rules:
        scale = pass_scale(rule.convention, rule.slips, first, rule)
        if scale:
            own[scale] = None
    for scale in own:  # what the rule itself makes of the loss is no cause of its own
        yield (), scale * losses.framework, scale
    rows = np.array([float(batch.size) for batch in losses.batches])
    for scale in (0.5, 2.0):
        yield ("reported-loss-scaled",), scale * losses.framework, scale
    for scale in (1.0, 0.5):
        yield ("reported-loss-scaled",), scale * rows * losses.framework, scale * rows[0]
    epochs = np.array([batch.epoch for batch in losses.batches])
    plain = running_mean(losses.framework, epochs)
    yield ("loss-epoch-mean",), plain, 1.0
    weighted = running_mean(losses.framework * rows, epochs) / running_mean(rows, epochs)
    yield ("loss-epoch-mean",), weighted, 1.0
    after = loss_after()
    if after is not None:
        after = after[losses.kept]
        yield ("loss-after-update",), after, 1.0
        yield ("loss-after-update", "loss-epoch-mean"), running_mean(after, epochs), 1.0


def penalties(
    losses: Losses, base: Array, scale: float, rules: Sequence[Rule]
) -> Iterator[tuple[Array, Mapping[str, Fit]]]:
    """Give the penalties that may be in a reported loss: none, a rule's own, or any that fits."""
    yield 0 * base, {}
    for rule, strengths in rules:
        squared = rule.convention.penalty_norm == "squared"
        terms = losses.penalties if squared else losses.norms
        for factor in dict.fromkeys((1.0, scale)):
            fits = {name: Fit(factor * kappa, 0.0) for name, kappa in strengths.items() if kappa}
            if fits:
                yield total(fits, terms), fits
    fitted = fitted_penalty(losses.scratch - base, losses)
    if fitted:
        yield total(fitted, losses.penalties), fitted


def total(fits: Mapping[str, Fit], terms: Mapping[str, Array]) -> Array:
    """Add the penalties of all tensors up."""
    added: Array = np.sum([fit.factor * terms[name] for name, fit in fits.items()], axis=0)
    return added


def running_mean(values: Array, epochs: Array) -> Array:
    """Give the mean of an epoch's values so far, at each of its steps."""
    found = np.empty_like(values)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        found[here] = np.cumsum(values[here]) / np.arange(1, here.sum() + 1)
    return found


def fitted_penalty(rest: Array, losses: Losses) -> dict[str, Fit]:
    """Fit κ of each tensor to what is left of the loss; empty where it cannot be told."""
    shown = {name: half / losses.limit for name, half in losses.penalties.items() if half.any()}
    if len(rest) <= len(shown) or not shown:
        return {}
    columns = np.column_stack(list(shown.values()))
    sizes = np.sqrt((columns**2).sum(axis=0))
    scaled = columns / sizes
    solution, _, rank, _ = np.linalg.lstsq(scaled, rest / losses.limit, rcond=1e-12)
    if rank < len(shown):
        return {}
    spread = np.sqrt(np.diag(np.linalg.inv(scaled.T @ scaled)))
    found = zip(shown, solution / sizes, spread / sizes, strict=True)
    return {name: Fit(float(kappa), float(deviation)) for name, kappa, deviation in found}


def worst(rest: Array, limit: Array) -> float:
    """Give the largest difference in limits."""
    with np.errstate(all="ignore"):
        ratios = np.abs(rest) / limit
    return float(np.max(np.where(np.isnan(ratios), math.inf, ratios), initial=0.0))
