"""Why the reported losses differ: what the scratch side puts into its loss that torch leaves out.

At the same parameters, torch reports the data loss ℓ. The scratch side may report, whatever it
trains by,

    ℓ + κ_w/2 ‖w‖² + κ_b/2 b²        the penalty, of the strength it trains by, or any other
    c ℓ                              another reduction, or half the loss
    ℓ at the parameters after        the loss after the update
    mean of ℓ over the epoch so far  the mean of batch means

and some of these at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from regcheck.compare.history import History
from regcheck.diagnosis.records import Explanation, Reporting, Run
from regcheck.diagnosis.replay import pass_scale
from regcheck.numerics.least_squares import SLACK, Fit, fit_columns
from regcheck.numerics.losses import LOSSES
from regcheck.problem.batches import Batch
from regcheck.problem.problem import Array, Parameters, Problem
from regcheck.problem.row_orders import other_orders
from regcheck.rules.convention import is_bias
from regcheck.trainers.numpy_trainer import NumpyTrainer

FLOAT32 = 2.0**29
"""How much coarser float32 rounds than float64."""

FOUND_START = 64.0
"""How much less well losses are known from a start that had to be found."""

NAMED_SHARES = (1.0, 0.5, 2.0)
"""Factors on λ that people put into a penalty that they report."""


class Place(NamedTuple):
    """Where the scratch side takes its losses: torch's there, at each recorded step, and limits."""

    framework: Array
    limit: Array
    batches: tuple[Batch, ...]
    before: Array


class Losses(NamedTuple):
    """The losses of those steps of a place at which both sides report one, which are `kept`."""

    run: Run
    place: Place
    kept: NDArray[np.bool_]
    scratch: Array
    framework: Array
    limit: Array
    batches: tuple[Batch, ...]
    before: Array

    def penalties(self, *, squared: bool = True) -> dict[str, Array]:
        """Return what κ of each tensor multiplies in the loss, ‖w‖²/2, or ‖w‖: (steps,)."""
        slices = self.run.history.slices.items()
        squares = {name: (self.before[:, part] ** 2).sum(axis=1) for name, part in slices}
        return {name: one / 2 if squared else np.sqrt(one) for name, one in squares.items()}


class DataLoss(NamedTuple):
    """A data loss that may be reported: its causes, its values, the factor on torch's in it."""

    causes: tuple[str, ...]
    values: Array
    scale: float = 1.0


class Penalty(NamedTuple):
    """A penalty that may be in a reported loss: its values, and κ of each tensor."""

    values: Array
    strengths: Mapping[str, Fit]


def explain_losses(
    run: Run, found: Sequence[Explanation], start: Parameters | None
) -> Reporting | None:
    """Find what explains the reported losses, after its updates and start; None: nothing does."""
    problem = run.torch.problem
    rules = [*(problem.with_change(one.change) for one in found), problem]
    coarser = any("precision" in one.causes for one in found)
    for slack in (1.0, FLOAT32) if coarser else (1.0,):
        for place in places(run, found, start):
            losses = reported_at(run, place._replace(limit=slack * place.limit))
            reporting = explain(losses, rules) if len(losses.scratch) else None
            if reporting is not None:
                return reporting
    return None


def places(run: Run, found: Sequence[Explanation], start: Parameters | None) -> Iterator[Place]:
    """Yield where the scratch side may take its losses: from its start, on its rows, as torch."""
    history = run.history
    limit = run.limits["loss"] * history.loss("bound")
    batches = tuple(record.batch for record in history.records())
    own = Place(history.loss("framework"), limit, batches, history.all("before"))
    if start is not None:
        framework, before = own.framework.copy(), own.before.copy()
        framework[0] = run.torch.forward_backward(start, batches[0]).loss
        before[0] = history.flat(start)
        # It is known to rounding alone, and the bound of its loss is that of another start.
        limit = FOUND_START * limit
        limit[0] += 1e-9 * abs(framework[0])
        yield Place(framework, limit, batches, before)
        return
    for one in found:
        if "row-order" in one.causes:
            order = other_orders(run.torch.problem.schedule)[one.note]
            batches = tuple(islice(order, len(history)))
            losses = losses_of(run.torch, history, own.before, batches)
            yield own._replace(framework=losses, batches=batches)
    yield own  # the rows of the loss may not be those of the gradient


def losses_of(
    rule: NumpyTrainer, history: History, parameters: Array, batches: Sequence[Batch]
) -> Array:
    """Return a rule's mean loss over micro-batches, from the rows, at each step."""
    pairs = zip(parameters, batches, strict=True)
    return np.array([rule.forward_backward(history.split(w), batch).loss for w, batch in pairs])


def reported_at(run: Run, place: Place) -> Losses:
    """Take the steps at which both sides report a loss."""
    scratch = run.history.loss("scratch")
    kept = np.isfinite(scratch) & np.isfinite(place.framework) & np.isfinite(place.limit)
    batches = tuple(batch for batch, keep in zip(place.batches, kept, strict=True) if keep)
    own = (scratch[kept], place.framework[kept], place.limit[kept])
    return Losses(run, place, kept, *own, batches, place.before[kept])


def explain(losses: Losses, rules: Sequence[Problem]) -> Reporting | None:
    """Find a data loss and a penalty that are what is reported; None where none are.

    The rules are those that explain the updates, and torch's own as the last.
    """
    tried = []
    for base in data_losses(losses, rules):
        for penalty in named_penalties(losses, base.scale, rules):
            reporting = reporting_of(losses, base, penalty)
            if reporting is not None:
                return reporting
        tried.append(base)
    for base in tried:
        fitted = fitted_penalty(losses, losses.scratch - base.values)
        reporting = reporting_of(losses, base, fitted) if fitted else None
        if reporting is not None:
            return reporting
    square = float(losses.framework @ losses.framework)
    if len(losses.framework) < 3 or square == 0:  # so few that any numbers have a factor
        return None
    scale = float(losses.scratch @ losses.framework) / square
    base = DataLoss(("reported-loss-scaled",), scale * losses.framework, scale)
    return reporting_of(losses, base, Penalty(0 * base.values, {}))


def reporting_of(losses: Losses, base: DataLoss, penalty: Penalty) -> Reporting | None:
    """Return a data loss and a penalty, if they are what is reported."""
    slack = losses.limit * max(1.0, abs(base.scale)) + 1e-14 * np.abs(penalty.values)
    with np.errstate(all="ignore"):
        ratios = np.abs(losses.scratch - base.values - penalty.values) / slack
    residual = float(np.max(np.where(np.isnan(ratios), math.inf, ratios), initial=0.0))
    if residual > 1:
        return None
    inside = ("penalty-in-loss",) if penalty.strengths else ()
    return Reporting((*base.causes, *inside), penalty.strengths, base.scale, residual)


def data_losses(losses: Losses, rules: Sequence[Problem]) -> Iterator[DataLoss]:
    """Yield the data losses that may be reported, the plainest first."""
    framework, kept = losses.framework, losses.kept
    yield DataLoss((), framework)
    # What a rule itself makes of the loss is no cause of its own.
    distinct: dict[tuple[object, ...], Problem] = {}
    for rule in rules:
        distinct.setdefault(loss_keys(rule), rule)
    for rule in distinct.values():
        yield from own_losses(losses, rule)
    rows = np.array([float(batch.size) for batch in losses.batches])
    for scale in (0.5, 2.0):
        yield DataLoss(("reported-loss-scaled",), scale * framework, scale)
    for scale in (1.0, 0.5):
        yield DataLoss(("reported-loss-scaled",), scale * rows * framework, scale * rows[0])
    for one in own_losses(losses, rules[-1].with_change({"batch_divisor": "batch-size"})):
        yield one._replace(causes=("reported-loss-scaled",))
    # The mean is of all batches, also where the code reports it at an epoch's end alone.
    every, batches = losses.place.framework, losses.place.batches
    epochs = np.array([batch.epoch for batch in batches])
    sizes = np.array([float(batch.size) for batch in batches])
    yield DataLoss(("loss-epoch-mean",), running_mean(every, epochs)[kept])
    weighted = running_mean(every * sizes, epochs) / running_mean(sizes, epochs)
    yield DataLoss(("loss-epoch-mean",), weighted[kept])
    if losses.run.sees_rows:
        history = losses.run.history
        after = losses_of(losses.run.torch, history, history.all("scratch"), batches)
        yield DataLoss(("loss-after-update",), after[kept])
        mean = running_mean(after, epochs)[kept]
        yield DataLoss(("loss-after-update", "loss-epoch-mean"), mean)


def loss_keys(rule: Problem) -> tuple[object, ...]:
    """Return what a rule's loss depends on."""
    faults = (rule.faults.target, rule.faults.batch_divisor, rule.faults.accumulation)
    return (rule.convention.loss_reduction, rule.convention.loss_factor, *faults)


def own_losses(losses: Losses, rule: Problem) -> Iterator[DataLoss]:
    """Yield what a rule makes of the loss; nothing where it must look at rows it cannot see.

    Where gradients of micro-batches are summed, losses may be, or may be averaged all the same.
    """
    for accumulation in dict.fromkeys((rule.faults.accumulation, "mean")):
        change = {"update_order": "simultaneous", "accumulation": accumulation}
        at_once = rule.with_change(change)
        scales = [pass_scale(at_once, batch) for batch in losses.batches]
        if None not in scales:
            factors = np.array(scales, np.float64)
            scale = float(np.abs(factors).max())
            yield DataLoss((), factors * losses.framework, scale)
        elif (rule.model, rule.loss) in LOSSES:
            history = losses.run.history
            values = losses_of(NumpyTrainer(rule), history, losses.before, losses.batches)
            if accumulation == "sum":
                values = values * [float(len(batch.micro_batches)) for batch in losses.batches]
            with np.errstate(all="ignore"):
                scale = float(np.nan_to_num(np.abs(values / losses.framework), posinf=1).max())
            yield DataLoss((), values, scale)


def named_penalties(losses: Losses, scale: float, rules: Sequence[Problem]) -> Iterator[Penalty]:
    """Yield the penalties that may be in a reported loss: none, a rule's own, or of a plain λ."""
    yield Penalty(np.zeros_like(losses.scratch), {})
    squared = losses.penalties()
    for rule in rules:
        trainer = NumpyTrainer(rule)
        decays = [trainer.effective_decays(batch) for batch in losses.batches]
        own = {name: np.array([one[name] for one in decays]) for name in decays[0]}
        terms = losses.penalties(squared=rule.convention.penalty_norm == "squared")
        for factor in dict.fromkeys((1.0, scale)):
            yield from penalty_of(factor, own, terms)
    problem = rules[-1]
    rows = np.array([float(batch.size) for batch in losses.batches])
    of_all = {name: problem.weight_decay[name] for name in problem.weight_decay if name in squared}
    of_weights = {name: 0.0 if is_bias(name) else decay for name, decay in of_all.items()}
    for tensors in (of_all, of_weights):
        for divisor in (np.ones_like(rows), rows, np.full_like(rows, len(problem.y))):
            for factor in NAMED_SHARES:
                own = {name: decay / divisor for name, decay in tensors.items()}
                yield from penalty_of(factor, own, squared)


def penalty_of(
    factor: float, strengths: Mapping[str, Array], terms: Mapping[str, Array]
) -> Iterator[Penalty]:
    """Yield a penalty, with its κ at the first step, unless there is none."""
    shown = {name: kappa for name, kappa in strengths.items() if kappa.any()}
    if shown:
        values = sum((factor * kappa * terms[name] for name, kappa in shown.items()), 0.0)
        fits = {name: Fit(float(factor * kappa[0]), 0.0) for name, kappa in shown.items()}
        yield Penalty(np.asarray(values), fits)


def fitted_penalty(losses: Losses, rest: Array) -> Penalty | None:
    """Fit κ of each tensor to what is left of the loss; None where it cannot be known.

    A penalty is no reward: κ is not negative.
    """
    terms = {name: half for name, half in losses.penalties().items() if half.any()}
    if len(rest) <= len(terms) or not terms:
        return None
    solution = fit_columns(list(terms.values()), rest, losses.limit, 0.0)
    fits = {name: fit for name, fit in zip(terms, solution.fits, strict=True) if fit}
    if not solution.unique or any(fit.factor < -SLACK * fit.deviation for fit in fits.values()):
        return None
    values = np.sum([fit.factor * terms[name] for name, fit in fits.items()], axis=0)
    return Penalty(np.asarray(values), fits)


def running_mean(values: Array, epochs: Array) -> Array:
    """Return the mean of an epoch's values so far, at each of its steps."""
    found = np.empty_like(values)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        found[here] = np.cumsum(values[here]) / np.arange(1, here.sum() + 1)
    return found
