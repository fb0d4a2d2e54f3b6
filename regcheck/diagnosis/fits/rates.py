"""The lr of each step, fitted: torch's rule, or with a cause in it, makes the steps by it.

A step is what it is at lr 0 and lr times a slope, S_t = A_t + α_t B_t, where a rule is affine in
its lr; torch's own is linear, S_t = α_t T_t, and its state holds no lr, so that each step has its
own. By a rule whose velocity holds the lrs, each step is taken from the state after the lrs before.
"""

from __future__ import annotations

from itertools import islice
from typing import NamedTuple

import numpy as np

from regcheck.diagnosis.fits.moves import Moves
from regcheck.diagnosis.replay import Replay
from regcheck.numerics.least_squares import ROUNDED, SLACK, fit_each, longer
from regcheck.problem.batches import Schedule
from regcheck.problem.problem import Array
from regcheck.rules.causes.cause import Change

NONE: Change = {}


class Rates(NamedTuple):
    """The lrs of some steps: the scratch side's, as fitted, and torch's.

    Attributes:
        steps: their numbers, from 1; those whose move shows.
        own, torch: the lrs, as far as the optimizer takes them.
        largest: the largest lr that the optimizer takes at each step.
        slack: how far another lr may be from the scratch side's.
        earlier: the lrs before the first divergence, which are both sides'.
        shown: in how many entries' steps the move shows, which must be more than the free numbers.
        between: the least and the largest lr by which one makes all steps to rounding.
    """

    steps: list[int]
    own: Array
    torch: Array
    largest: Array
    slack: Array
    earlier: Array
    shown: int
    between: tuple[float, float]

    @property
    def constant(self) -> bool:
        """Whether one lr is the scratch side's in all steps, and not torch's."""
        lrs, (least, most) = np.append(self.earlier, self.torch), self.between
        return least <= most and all(map(self.is_one, self.earlier)) and bool((lrs != lrs[0]).any())

    def is_one(self, lr: float) -> bool:
        """Whether an lr makes all steps to rounding."""
        least, most = self.between
        return bool(least <= lr <= most)

    @property
    def most(self) -> int:
        """The place of the step whose lrs differ most."""
        return int(np.argmax(np.abs(self.own - self.torch)))

    def are_of(self, schedule: Schedule) -> bool:
        """Whether a schedule has the scratch side's lrs; the step that differs most tells first."""
        places = (self.most, *range(len(self.steps)))
        return all(self.off(schedule, at) <= self.slack[at] for at in places)

    def off(self, schedule: Schedule, at: int) -> float:
        """Return how far a schedule's lr of a step is from the scratch side's."""
        return abs(self.lr_of(schedule, at) - float(self.own[at]))

    def lr_of(self, schedule: Schedule, at: int) -> float:
        """Return the lr that the optimizer takes of a schedule at a step."""
        return min(schedule.lr_at(self.steps[at]), float(self.largest[at]))


def rates_of(replay: Replay, least: int = 1, change: Change = NONE) -> Rates | None:
    """Return the lr of each step from the first divergence on; None where some have none.

    `least` is in how many entries a step must show, and how many steps must; the rule is torch's
    with a change in it.
    """
    moves, base = Moves(replay), replay.torch.problem.schedule.lr
    every = [record.batch for record in replay.history.records()]
    lrs = np.array([batch.lr for batch in every[moves.at]])[:, None]
    steady = {"lr_schedule": (("kind", "list"), ("values", (base,)))}
    limits = moves.limits
    if (lrs > 0).any():  # by an lr of 0 torch rounds nothing: the other steps' bounds stand for it
        limits = np.where(lrs > 0, limits, limits.max(axis=0, where=lrs > 0, initial=0.0))
    if change:
        parts = one_by_one(moves, change, limits)
        if parts is None:
            return None
        slope, target = parts
    else:
        slope, target = moves.by(replay.by(steady)) / limits, moves.scratch / limits
    largest = np.maximum(np.abs(slope * (lrs / base)), np.abs(target))
    if not (np.isfinite(slope).all() and np.isfinite(target).all()):
        return None
    entries = (largest > 1).sum(axis=1)
    shown = entries >= least
    slope, target = slope[shown], target[shown]
    alpha, spread = fit_each(slope, target, 1)
    times = np.divide(alpha * base, lrs[shown, 0], out=np.ones_like(alpha), where=lrs[shown, 0] > 0)
    left = np.abs(target - alpha[:, None] * slope) / longer(times[:, None], slope)
    if shown.sum() < least or left.max() > 1 or (alpha < 0).any() or not slope.any():
        return None
    earlier = np.array([batch.lr for batch in every[: moves.at.start]])
    batches = [batch for batch, seen in zip(every[moves.at], shown, strict=True) if seen]
    most = np.array([replay.torch.settings.rule.most_lr(batch.step) for batch in batches])
    torch, at = np.minimum([batch.lr for batch in batches], most), np.minimum(base, most)
    slack = SLACK * at * np.hypot(spread, ROUNDED * replay.u)
    steps, count = [batch.step for batch in batches], int(entries[shown].sum())
    between = lrs_between(slope / at[:, None], target)
    return Rates(steps, alpha * at, torch, most, slack, earlier, count, between)


def lrs_between(slope: Array, target: Array) -> tuple[float, float]:
    """Return between which two lrs c all |target − c slope| ≤ 1; the first is larger for none."""
    moves = slope != 0
    middle, reach = target[moves] / slope[moves], 1 / np.abs(slope[moves])
    return float((middle - reach).max()), float((middle + reach).min())


def one_by_one(moves: Moves, change: Change, limits: Array) -> tuple[Array, Array] | None:
    """Return B_t and S_t − A_t in limits, from the state by the lrs before; None if lrs fail."""
    replay, history = moves.replay, moves.replay.history
    rule, base = replay.by(change), replay.torch.problem.schedule.lr
    state, found = rule.start(), []
    for place, record in enumerate(islice(history.records(), moves.at.stop)):
        known, batch = replay.scaled_pass(rule.problem, record), record.batch
        if known is None and not replay.sees_rows:
            return None
        state = state._replace(parameters=history.split(record.before))
        at = place - moves.at.start
        if at >= 0:
            still, moved = (
                history.flat(rule.step(state, batch._replace(lr=lr), known).step.delta or {})
                for lr in (0.0, base)
            )
            wider = replay.widened(rule.problem, record, record.before - moved).bound
            limit = np.maximum(limits[at], wider * replay.limits)
            slope, target = (moved - still) / limit, (moves.scratch[at] - still) / limit
            alpha = float(slope @ target) / (float(slope @ slope) or 1.0)
            if not np.abs(target - alpha * slope).max() <= 1:
                return None
            found.append((slope, target))
            batch = batch._replace(lr=alpha * base)
        state = rule.step(state, batch, known).state
    slopes, targets = zip(*found, strict=True)
    return np.array(slopes), np.array(targets)
