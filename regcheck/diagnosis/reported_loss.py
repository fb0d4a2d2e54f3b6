"""Why the reported losses differ: what the scratch side puts into its loss that torch leaves out.

At the same parameters, torch reports the data loss ℓ. The scratch side may report, whatever it
trains by,

    ℓ + κ_w/2 ‖w‖² + κ_b/2 b²        the penalty, of the strength it trains by, or any other
    ℓ + κ_w ‖w‖ + κ_b |b|            the same whose norm is not squared
    c ℓ                              another reduction, or half the loss
    ℓ at the parameters after        the loss after the update
    mean of ℓ over the epoch so far  the mean of batch means
    ℓ of the last micro-batch        where torch's is the mean over all of the step

and some of these at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from regcheck.diagnosis.fits.loss_inputs import Place, losses_of, places
from regcheck.diagnosis.pass_scale import pass_scale
from regcheck.diagnosis.records import FLOAT32, Explanation, Reporting, Run
from regcheck.numerics.least_squares import SLACK, Fit, fit_columns
from regcheck.numerics.losses import running_mean
from regcheck.problem.problem import Array, Parameters, Problem
from regcheck.rules.convention import is_bias
from regcheck.trainers.numpy_trainer import NumpyTrainer

LOGARITHMS = {"1/ln 10": 1 / math.log(10), "1/ln 2": 1 / math.log(2)}
"""Factors on a loss whose logarithm is to the base 10 or 2, by how they are written."""

NAMED_SHARES = (1.0, 0.5, 2.0)
"""Factors on λ that people put into a penalty that they report."""


class Losses(NamedTuple):
    """The losses at the steps of a place at which both sides report one, which are `kept`."""

    run: Run
    every: Place
    kept: NDArray[np.bool_]
    shown: Place
    scratch: Array

    @property
    def rounding(self) -> float:
        """The share of a penalty that is its rounding, by the scratch side's dtype."""
        return 64 * float(np.finfo(self.run.torch.problem.scratch_dtype).eps) / 2

    def penalties(self, *, squared: bool = True) -> dict[str, Array]:
        """Return what κ of each tensor multiplies in the loss, ‖w‖²/2, or ‖w‖: (steps,)."""
        slices = self.run.history.slices.items()
        squares = {name: (self.shown.before[:, part] ** 2).sum(axis=1) for name, part in slices}
        return {name: one / 2 if squared else np.sqrt(one) for name, one in squares.items()}

    def absolutes(self) -> dict[str, Array]:
        """Return Σ|w| of each tensor, which an L1 penalty multiplies by c: (steps,)."""
        slices = self.run.history.slices.items()
        return {name: np.abs(self.shown.before[:, part]).sum(axis=1) for name, part in slices}


class DataLoss(NamedTuple):
    """A data loss that may be reported: its causes, values, factor on torch's, and own limit."""

    causes: tuple[str, ...]
    values: Array
    scale: float = 1.0
    limit: Array | None = None


class Penalty(NamedTuple):
    """A penalty that may be in a reported loss: its values, and κ, of each ‖w‖²/2 or ‖w‖."""

    values: Array
    strengths: Mapping[str, Fit]
    squared: bool = True


def explain_losses(
    run: Run, found: Sequence[Explanation], start: Parameters | None
) -> Reporting | None:
    """Find what explains the reported losses, after its updates and start; None: nothing does.

    Where parameters hardly move, fitted strengths make any loss: plain ones come before, though
    they take float32's rounding.
    """
    problem, known = run.torch.problem, list[Reporting]()
    rules = [*(problem.with_change(one.change) for one in found), problem]
    coarser = any("precision" in one.causes for one in found)
    for slack in (1.0, FLOAT32) if coarser else (1.0,):
        for place in places(run, found, start):
            losses = reported_at(run, place._replace(limit=slack * place.limit))
            tried = (reporting_of(losses, *one) for one in candidates(losses, rules))
            known += islice(filter(None, tried), 1)
    fitted = [any(fit.deviation for fit in one.strengths.values()) for one in known]
    return known[fitted.index(min(fitted))] if known else None


def reported_at(run: Run, place: Place) -> Losses:
    """Take the steps at which both sides report a loss."""
    scratch = run.history.loss("scratch")
    kept = np.isfinite(scratch) & np.isfinite(place.framework) & np.isfinite(place.limit)
    return Losses(run, place, kept, place.at(kept), scratch[kept])


def candidates(losses: Losses, rules: Sequence[Problem]) -> Iterator[tuple[DataLoss, Penalty]]:
    """Yield what may be reported: a data loss and a penalty, the plainest first.

    The rules are those that explain the updates, and torch's own as the last.
    """
    if not len(losses.scratch):
        return
    tried = []
    for base in data_losses(losses, rules):
        tried.append(base)
        yield from ((base, penalty) for penalty in named_penalties(losses, base.scale, rules))
    for base in tried:
        fitted = fitted_penalty(losses, losses.scratch - base.values)
        yield from [(base, fitted)] if fitted else []
    framework = losses.shown.framework
    square = float(framework @ framework)
    if len(framework) >= 3 and square != 0:  # of fewer any numbers have a factor
        scale = float(losses.scratch @ framework) / square
        yield scaled(scale * framework, scale), Penalty(np.zeros_like(framework), {})


def reporting_of(losses: Losses, base: DataLoss, penalty: Penalty) -> Reporting | None:
    """Return a data loss and a penalty, if they are what is reported."""
    slack = losses.shown.limit if base.limit is None else base.limit
    slack = slack * max(1.0, abs(base.scale)) + losses.rounding * np.abs(penalty.values)
    inside = ("penalty-in-loss",) if penalty.strengths else ()
    causes = (*base.causes, *inside)
    ratios = np.abs(losses.scratch - base.values - penalty.values) / slack
    # A limit so wide that it allows torch's own losses too says nothing of a cause.
    telling = not causes or (abs(losses.scratch - losses.shown.framework) > slack).any()
    found = Reporting(causes, penalty.strengths, base.scale, penalty.squared)
    return found if telling and (ratios <= 1).all() else None


def scaled(values: Array, scale: float) -> DataLoss:
    """Return torch's loss times what no rule has."""
    return DataLoss(("reported-loss-scaled",), values, scale)


def data_losses(losses: Losses, rules: Sequence[Problem]) -> Iterator[DataLoss]:
    """Yield the data losses that may be reported, the plainest first."""
    framework, rows, kept = losses.shown.framework, losses.shown.rows, losses.kept
    yield DataLoss((), framework)
    # What a rule itself makes of the loss is no cause of its own.
    distinct: dict[tuple[object, ...], Problem] = {}
    for rule in rules:
        distinct.setdefault(loss_keys(rule), rule)
    for rule in distinct.values():
        yield from own_losses(losses, rule)
    yield from (scaled(scale * framework, scale) for scale in (0.5, 2.0, *LOGARITHMS.values()))
    yield from (scaled(scale * rows * framework, scale * rows[0]) for scale in (1.0, 0.5))
    for one in own_losses(losses, rules[-1].with_change({"batch_divisor": "batch-size"})):
        yield scaled(one.values, one.scale)
    # The mean is of all batches, also where the code reports it at an epoch's end alone.
    every, batches, sizes = losses.every.framework, losses.every.batches, losses.every.rows
    epochs = np.array([batch.epoch for batch in batches])
    # A mean of losses rounds by as much as these do, on average.
    limit = np.maximum(losses.every.limit, running_mean(losses.every.limit, epochs))[kept]
    yield DataLoss(("loss-epoch-mean",), running_mean(every, epochs)[kept], limit=limit)
    weighted = running_mean(every * sizes, epochs) / running_mean(sizes, epochs)
    yield DataLoss(("loss-epoch-mean",), weighted[kept], limit=limit)
    if losses.run.sees_rows:
        yield from last_micro_batch(losses)
        history = losses.run.history
        after = losses_of(losses.run.torch, history, history.all("scratch"), batches)
        # a larger loss rounds by more
        own = losses.every.limit * np.fmax(1, np.abs(after / every))
        yield DataLoss(("loss-after-update",), after[kept], limit=own[kept])
        mean, limit = running_mean(after, epochs)[kept], running_mean(own, epochs)[kept]
        limit = np.maximum(own[kept], limit)
        yield DataLoss(("loss-after-update", "loss-epoch-mean"), mean, limit=limit)


def last_micro_batch(losses: Losses) -> Iterator[DataLoss]:
    """Yield the last micro-batches' losses; nothing where each step has one."""
    batches = losses.shown.batches
    counts = np.array([len(batch.micro_batches) for batch in batches])
    if counts.max() > 1:
        last = [batch._replace(micro_batches=batch.micro_batches[-1:]) for batch in batches]
        values = losses_of(losses.run.torch, losses.run.history, losses.shown.before, last)
        # One of k losses rounds by no more than all of them, of which the mean's bound has 1/k.
        yield DataLoss(("loss-last-micro-batch",), values, limit=counts * losses.shown.limit)


def loss_keys(rule: Problem) -> tuple[object, ...]:
    """Return what a rule's loss depends on."""
    faults = (rule.faults.target, rule.faults.batch_divisor, rule.faults.accumulation)
    return (rule.convention.loss_reduction, rule.convention.loss_factor, *faults)


def own_losses(losses: Losses, rule: Problem) -> Iterator[DataLoss]:
    """Yield what a rule makes of the loss; nothing where it must look at rows it cannot see.

    Where gradients of micro-batches are summed, losses may be, or may be averaged all the same.
    """
    framework, _, batches, before = losses.shown
    for accumulation in dict.fromkeys((rule.faults.accumulation, "mean")):
        change = {"update_order": "simultaneous", "accumulation": accumulation}
        at_once = rule.with_change(change)
        scales = [pass_scale(at_once, batch) for batch in batches]
        if None not in scales:
            factors = np.array(scales, np.float64)
            scale = float(np.abs(factors).max())
            yield DataLoss((), factors * framework, scale)
        elif rule.architecture is not None:
            values = losses_of(NumpyTrainer(rule), losses.run.history, before, batches)
            if accumulation == "sum":
                values = values * [float(len(batch.micro_batches)) for batch in batches]
            scale = float(np.nan_to_num(np.abs(values / framework), posinf=1).max())
            yield DataLoss((), values, scale)


def named_penalties(losses: Losses, scale: float, rules: Sequence[Problem]) -> Iterator[Penalty]:
    """Yield the penalties that may be in a reported loss: none, a rule's own, or of a plain λ."""
    yield Penalty(np.zeros_like(losses.scratch), {})
    terms = {squared: losses.penalties(squared=squared) for squared in (True, False)}
    for rule in rules:
        trainer, squared = NumpyTrainer(rule), rule.convention.penalty_norm == "squared"
        decays = [trainer.effective_decays(batch) for batch in losses.shown.batches]
        own = {name: np.array([one[name] for one in decays]) for name in decays[0]}
        for factor in dict.fromkeys((1.0, scale)):
            of_it = {name: factor * kappa for name, kappa in own.items()}
            yield from penalty_of(of_it, terms[squared], squared=squared)
    problem, rows = rules[-1], losses.shown.rows
    of_all = {name: one for name, one in problem.weight_decay.items() if name in terms[True]}
    of_weights = {name: 0.0 if is_bias(name) else decay for name, decay in of_all.items()}
    divisors = (np.ones_like(rows), rows, np.full_like(rows, len(problem.y)))
    ways = product(terms, (of_all, of_weights), divisors, NAMED_SHARES)
    for squared, tensors, divisor, share in ways:
        plain = {name: share * (decay / divisor) for name, decay in tensors.items()}
        yield from penalty_of(plain, terms[squared], squared=squared)


def penalty_of(
    strengths: Mapping[str, Array], terms: Mapping[str, Array], *, squared: bool
) -> Iterator[Penalty]:
    """Yield a penalty, with its κ at the first step, unless there is none."""
    shown = {name: kappa for name, kappa in strengths.items() if kappa.any()}
    if shown:
        values = sum((kappa * terms[name] for name, kappa in shown.items()), 0.0)
        fits = {name: Fit(float(kappa[0]), 0.0) for name, kappa in shown.items()}
        yield Penalty(np.asarray(values), fits, squared)


def fitted_penalty(
    losses: Losses, rest: Array, terms: Mapping[str, Array] | None = None
) -> Penalty | None:
    """Fit κ of each tensor to what is left of the loss; None where it cannot be known.

    A penalty is no reward: κ is not negative. `terms` are what it multiplies, by default ‖w‖²/2.
    """
    terms = losses.penalties() if terms is None else terms
    terms = {name: one for name, one in terms.items() if one.any()}
    if len(rest) <= len(terms) or not terms:
        return None
    solution = fit_columns(list(terms.values()), rest, losses.shown.limit, 0.0)
    fits = {name: fit for name, fit in zip(terms, solution.fits, strict=True) if fit}
    if not solution.unique or any(fit.factor < -SLACK * fit.deviation for fit in fits.values()):
        return None
    values = np.asarray(np.sum([fit.factor * terms[name] for name, fit in fits.items()], axis=0))
    telling = int((np.abs(values) > losses.shown.limit).sum())  # as many numbers fit any steps
    return Penalty(values, fits) if telling > len(fits) else None
