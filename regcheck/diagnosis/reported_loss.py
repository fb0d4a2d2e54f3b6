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
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from regcheck.compare.history import History
from regcheck.diagnosis.replay import Fit, pass_scale
from regcheck.numerics.losses import LOSSES
from regcheck.problem.batches import Batch
from regcheck.problem.problem import Array, Problem
from regcheck.rules.convention import NO_FAULTS, is_bias
from regcheck.trainers.numpy_trainer import NumpyTrainer


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

    `every` holds torch's losses of all steps, and `every_batch` their rows; `penalties` has for
    each tensor what κ multiplies in the loss: ‖w‖²/2.
    """

    scratch: Array
    framework: Array
    limit: Array
    every: Array
    every_batch: tuple[Batch, ...]
    batches: tuple[Batch, ...]
    before: Array
    kept: NDArray[np.bool_]
    penalties: Mapping[str, Array]
    norms: Mapping[str, Array]


class Elsewhere(NamedTuple):
    """Where a scratch side takes its losses, if not where torch does: other rows, another start.

    Attributes:
        losses: torch's there, at each recorded step.
        batches: the rows of each step.
        start: all entries of the parameters before step 1.
    """

    losses: Array | None = None
    batches: tuple[Batch, ...] = ()
    start: Array | None = None


ELSEWHERE = 64.0
"""How much less well losses are known from a start that had to be found."""


class Rule(NamedTuple):
    """A rule that the scratch side may train by, with κ of each tensor in it."""

    problem: Problem
    strengths: Mapping[str, float]


def told(history: History, limit: float, elsewhere: Elsewhere) -> Losses:
    """Take the steps at which both sides tell a loss."""
    scratch, framework, bound = (history.loss(what) for what in ("scratch", "framework", "bound"))
    everywhere = history.all("before")
    if elsewhere.losses is not None:
        framework = elsewhere.losses
    if elsewhere.start is not None:
        everywhere = np.vstack([elsewhere.start, everywhere[1:]])
    kept = np.isfinite(scratch) & np.isfinite(framework) & np.isfinite(bound)
    before = everywhere[kept]
    squares = {name: (before[:, part] ** 2).sum(axis=1) for name, part in history.slices.items()}
    batches = elsewhere.batches or tuple(record.batch for record in history.records())
    limits = limit * bound
    if elsewhere.start is not None:
        # It is known to rounding alone, and the bound of its loss is that of another start.
        limits *= ELSEWHERE
        limits[0] += 1e-9 * abs(framework[0])
    return Losses(
        scratch[kept],
        framework[kept],
        limits[kept],
        framework,
        tuple(batches),
        tuple(batch for batch, keep in zip(batches, kept, strict=True) if keep),
        before,
        kept,
        {name: square / 2 for name, square in squares.items()},
        {name: np.sqrt(square) for name, square in squares.items()},
    )


def explain_losses(
    history: History,
    limit: float,
    rules: Sequence[Rule],
    loss_after: Callable[[], Array | None],
    elsewhere: Elsewhere = Elsewhere(),  # noqa: B008
) -> Reporting | None:
    """Find what explains the reported losses; None where nothing does.

    Args:
        history: the recorded steps.
        limit: bounds that the loss may differ by.
        rules: those that explain the updates, and torch's own.
        loss_after: gives the loss after each recorded update, where it can be taken.
        elsewhere: where the scratch side takes its losses, if not where torch does.
    """
    losses = told(history, limit, elsewhere)
    if not len(losses.scratch):
        return None
    tried = []
    for one in data_losses(history, losses, rules, loss_after):
        for added in named_penalties(losses, one.scale, rules):
            found = reporting_of(losses, one, added)
            if found is not None:
                return found
        tried.append(one)
    for one in tried:
        fits = fitted_penalty(losses.scratch - one.values, losses)
        if fits:
            found = reporting_of(losses, one, Added(total(fits, losses.penalties), fits))
            if found is not None:
                return found
    scaled = fitted_scale(losses)
    return None if scaled is None else reporting_of(losses, scaled, Added(0 * scaled.values, {}))


class DataLoss(NamedTuple):
    """A data loss that may be reported: its causes, its values, the factor on torch's in it."""

    causes: tuple[str, ...]
    values: Array
    scale: float


class Added(NamedTuple):
    """A penalty that may be in a reported loss: its values, and κ of each tensor."""

    values: Array
    strengths: Mapping[str, Fit]


def reporting_of(losses: Losses, base: DataLoss, added: Added) -> Reporting | None:
    """Say whether a data loss and a penalty are what is reported."""
    slack = losses.limit * max(1.0, abs(base.scale)) + 1e-14 * np.abs(added.values)
    residual = worst(losses.scratch - base.values - added.values, slack)
    if residual > 1:
        return None
    inside = ("penalty-in-loss",) if added.strengths else ()
    return Reporting((*base.causes, *inside), added.strengths, base.scale, residual)


def data_losses(
    history: History,
    losses: Losses,
    rules: Sequence[Rule],
    loss_after: Callable[[], Array | None],
) -> Iterator[DataLoss]:
    """Give the data losses that may be reported, the plainest first."""
    yield DataLoss((), losses.framework, 1.0)
    # What a rule itself makes of the loss is no cause of its own.
    seen: dict[tuple[object, ...], Problem] = {}
    for rule, _ in rules:
        seen.setdefault(seen_by(rule), rule)
    for rule in seen.values():
        yield from own_losses(history, losses, rule)
    rows = np.array([float(batch.size) for batch in losses.batches])
    for scale in (0.5, 2.0):
        yield DataLoss(("reported-loss-scaled",), scale * losses.framework, scale)
    for scale in (1.0, 0.5):
        values = scale * rows * losses.framework
        yield DataLoss(("reported-loss-scaled",), values, scale * rows[0])
    nominal = replace(rules[-1].problem, faults=NO_FAULTS._replace(batch_divisor="batch-size"))
    for one in own_losses(history, losses, nominal):
        yield one._replace(causes=("reported-loss-scaled",))
    # The mean is of all batches, also where the code tells it at an epoch's end alone.
    epochs = np.array([batch.epoch for batch in losses.every_batch])
    every, sizes = losses.every, np.array([float(batch.size) for batch in losses.every_batch])
    plain = running_mean(every, epochs)
    yield DataLoss(("loss-epoch-mean",), plain[losses.kept], 1.0)
    weighted = running_mean(every * sizes, epochs) / running_mean(sizes, epochs)
    yield DataLoss(("loss-epoch-mean",), weighted[losses.kept], 1.0)
    after = loss_after()
    if after is not None:
        yield DataLoss(("loss-after-update",), after[losses.kept], 1.0)
        mean = running_mean(after, epochs)[losses.kept]
        yield DataLoss(("loss-after-update", "loss-epoch-mean"), mean, 1.0)


def fitted_scale(losses: Losses) -> DataLoss | None:
    """Fit one factor on all losses; None where they are so few that any numbers have one."""
    square = float(losses.framework @ losses.framework)
    if len(losses.framework) < 3 or square == 0:
        return None
    scale = float(losses.scratch @ losses.framework) / square
    return DataLoss(("reported-loss-scaled",), scale * losses.framework, scale)


def seen_by(rule: Problem) -> tuple[object, ...]:
    """Give what a rule's loss depends on."""
    convention, faults = rule.convention, rule.faults
    return (
        convention.loss_reduction,
        convention.loss_factor,
        faults.target,
        faults.batch_divisor,
        faults.accumulation,
    )


def own_losses(history: History, losses: Losses, rule: Problem) -> Iterator[DataLoss]:
    """Give what a rule makes of the loss; nothing where it must look at rows it cannot see.

    Where gradients of micro-batches are summed, losses may be, or may be averaged all the same.
    """
    order = rule.convention._replace(update_order="simultaneous")
    for accumulation in dict.fromkeys((rule.faults.accumulation, "mean")):
        faults = rule.faults._replace(accumulation=accumulation)
        scales = [pass_scale(order, faults, batch, rule) for batch in losses.batches]
        if None not in scales:
            factors = np.array(scales, np.float64)
            yield DataLoss((), factors * losses.framework, float(np.abs(factors).max()))
            continue
        values = looked_up(history, losses, rule)
        if values is None:
            continue
        if accumulation == "sum":
            values = values * [float(len(batch.micro_batches)) for batch in losses.batches]
        with np.errstate(all="ignore"):
            scale = float(np.nan_to_num(np.abs(values / losses.framework), posinf=1).max())
        yield DataLoss((), values, scale)


def looked_up(history: History, losses: Losses, rule: Problem) -> Array | None:
    """Give a rule's mean loss over micro-batches, from the rows; None where it cannot see them."""
    if (rule.model, rule.loss) not in LOSSES:
        return None
    trainer = NumpyTrainer(rule)
    return np.array(
        [
            trainer.forward_backward(history.split(entries), batch).loss
            for entries, batch in zip(losses.before, losses.batches, strict=True)
        ]
    )


NAMED_SHARES = (1.0, 0.5, 2.0)
"""Factors on λ that people put into a penalty that they report."""


def named_penalties(losses: Losses, scale: float, rules: Sequence[Rule]) -> Iterator[Added]:
    """Give the penalties that may be in a reported loss: none, a rule's own, or of a plain λ."""
    yield Added(np.zeros_like(losses.scratch), {})
    for rule, _ in rules:
        own = strengths_of(rule, losses.batches)
        squared = rule.convention.penalty_norm == "squared"
        terms = losses.penalties if squared else losses.norms
        for factor in dict.fromkeys((1.0, scale)):
            yield from added(factor, own, terms)
    problem = rules[-1].problem
    rows = np.array([float(batch.size) for batch in losses.batches])
    decays = {name: decay for name, decay in problem.weight_decay.items() if name in losses.norms}
    weights = {name: 0.0 if is_bias(name) else decay for name, decay in decays.items()}
    for tensors in (decays, weights):
        for divisor in (np.ones_like(rows), rows, np.full_like(rows, len(problem.y))):
            own = {name: decay / divisor for name, decay in tensors.items()}
            for factor in NAMED_SHARES:
                yield from added(factor, own, losses.penalties)


def strengths_of(rule: Problem, batches: Sequence[Batch]) -> dict[str, Array]:
    """Give κ of each tensor by a rule, at each step."""
    trainer = NumpyTrainer(rule)
    found = [trainer.effective_decays(batch) for batch in batches]
    return {name: np.array([one[name] for one in found]) for name in found[0]}


def added(
    factor: float, strengths: Mapping[str, Array], terms: Mapping[str, Array]
) -> Iterator[Added]:
    """Give a penalty, with its κ at the first step, unless there is none."""
    told = {name: kappa for name, kappa in strengths.items() if kappa.any()}
    if told:
        values = sum((factor * kappa * terms[name] for name, kappa in told.items()), 0.0)
        fits = {name: Fit(float(factor * kappa[0]), 0.0) for name, kappa in told.items()}
        yield Added(np.asarray(values), fits)


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
    """Fit κ of each tensor to what is left of the loss; empty where it cannot be told.

    A penalty is no reward: κ is not negative.
    """
    shown = {name: half / losses.limit for name, half in losses.penalties.items() if half.any()}
    if len(rest) <= len(shown) or not shown:
        return {}
    columns = np.column_stack(list(shown.values()))
    sizes = np.sqrt((columns**2).sum(axis=0))
    scaled = columns / sizes
    solution, _, rank, _ = np.linalg.lstsq(scaled, rest / losses.limit, rcond=1e-12)
    if rank < len(shown):
        return {}
    spread = np.sqrt((np.linalg.pinv(scaled, rcond=1e-12) ** 2).sum(axis=1))
    if (solution < -8 * spread).any():
        return {}
    found = zip(shown, solution / sizes, spread / sizes, strict=True)
    return {name: Fit(float(kappa), float(deviation)) for name, kappa, deviation in found}


def worst(rest: Array, limit: Array) -> float:
    """Give the largest difference in limits."""
    with np.errstate(all="ignore"):
        ratios = np.abs(rest) / limit
    return float(np.max(np.where(np.isnan(ratios), math.inf, ratios), initial=0.0))
