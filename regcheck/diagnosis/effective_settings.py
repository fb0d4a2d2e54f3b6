"""The effective lr and weight decay of a scratch side, measured from its steps.

Torch's rule without a penalty moves a tensor by G_t, and a penalty of λ = 1 alone by P_t, both
through torch's own momentum. The scratch side moved it by S_t = w_(t−1) − w_t. Least squares over
the recorded steps, each entry weighted by 1/bound, gives

    S_t ≈ α G_t + κ P_t        effective lr = α lr,  effective weight decay = κ/α

which are the numbers that torch.optim.SGD would need: w ← w − α lr (g + κ/α w). The deviations
are what one rounding bound makes of α and κ.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from regcheck.compare.history import Record
from regcheck.diagnosis.replay import ROUNDED, SLACK, Fit, Replay
from regcheck.problem.problem import Array
from regcheck.trainers.numpy_trainer import NumpyTrainer

MOST = 512
"""Steps that a fit is taken from: the first divergence, and those after it."""


def window(replay: Replay) -> slice:
    """Give the places of the steps that a fit is taken from."""
    start = min(max(0, replay.first - 1), len(replay.history) - 1)
    return slice(start, min(start + MOST, len(replay.history)))


def allowed(replay: Replay, at: slice) -> Array:
    """Give what rounding may make of what is subtracted at some steps: (steps, entries).

    It is known as w − w′ alone, from a w′ that is rounded: never better than 2u |w|.
    """
    history = replay.history
    rounded = 2 * replay.u * np.abs(history.all("before")[at])
    found: Array = np.maximum(history.all("bound")[at] * replay.limits, rounded)
    return found


class EffectiveSettings(NamedTuple):
    """What one tensor's steps come to; None where the run does not tell.

    Attributes:
        gradient: α, the factor on torch's step without a penalty.
        decay: κ, what the penalty's gradient is times w, at the spec's lr.
        fits: whether α and κ make every step to rounding.
        residual: the largest difference that is left, in limits.
    """

    gradient: Fit | None
    decay: Fit | None
    fits: bool
    residual: float

    @property
    def weight_decay(self) -> Fit | None:
        """Give κ/α, the weight_decay that torch would need at the effective lr."""
        if self.decay is None:
            return None
        if self.gradient is None or self.gradient.factor == 0:
            return None
        alpha = self.gradient.factor
        value = self.decay.factor / alpha
        spread = math.hypot(self.decay.deviation, value * self.gradient.deviation) / abs(alpha)
        return Fit(value, spread)


def shifts(
    replay: Replay,
    trainer: NumpyTrainer,
    added: Callable[[Record], Array] | None = None,
    at: slice | None = None,
) -> Array:
    """Give what a rule subtracts at each of some steps: (steps, entries).

    Args:
        replay: the steps.
        trainer: the rule.
        added: a function of the step that is added to the gradient.
        at: the places of the steps; by default the window.
    """
    at = window(replay) if at is None else at
    state, found = trainer.start(), []
    for record in replay.history.records():
        seen = replay.seen(trainer.problem, record)
        if added is not None:
            seen = replay.seen_as(replay.history, record.gradient + added(record))
        before = replay.history.split(record.before)
        update = trainer.step(state._replace(parameters=before), record.batch, seen)
        state = update.state
        assert update.step.delta is not None
        found.append(replay.history.flat(update.step.delta))
        if len(found) == at.stop:
            break
    return np.array(found)[at]


def effective_settings_of(replay: Replay) -> dict[str, EffectiveSettings]:
    """Measure the effective scales of each tensor."""
    problem, history = replay.torch.problem, replay.history
    ones = dict.fromkeys(problem.weight_decay, 1.0)
    zeros = dict.fromkeys(problem.weight_decay, 0.0)
    silent = problem.faults._replace(gradient_factor=0.0)
    by_gradient = shifts(replay, replay.torch.by(replace(problem, weight_decay=zeros)))
    by_decay = shifts(replay, replay.torch.by(replace(problem, weight_decay=ones, faults=silent)))
    moved = (history.all("before") - history.all("scratch"))[window(replay)]
    bound = allowed(replay, window(replay))
    return {
        name: scales_of(
            moved[:, part], by_gradient[:, part], by_decay[:, part], bound[:, part], replay.u
        )
        for name, part in history.slices.items()
    }


def scales_of(
    moved: Array, by_gradient: Array, by_decay: Array, bound: Array, u: float
) -> EffectiveSettings:
    """Fit one tensor's scales; u is the unit roundoff of the coarser dtype."""
    with np.errstate(all="ignore"):
        target = np.ravel(moved / bound)
        columns = np.column_stack([np.ravel(by_gradient / bound), np.ravel(by_decay / bound)])
    kept = np.isfinite(target) & np.isfinite(columns).all(axis=1)
    target, columns = target[kept], columns[kept]
    sizes = np.sqrt((columns**2).sum(axis=0)) if len(columns) else np.zeros(2)
    # A column within rounding of 0 says nothing.
    told = [index for index in range(2) if sizes[index] > 1]
    found: list[Fit | None] = [None, None]
    rest = target
    if told:
        scaled = columns[:, told] / sizes[told]
        solution, _, rank, _ = np.linalg.lstsq(scaled, target, rcond=1e-9)
        if rank < len(told):  # the two cannot be told apart
            return EffectiveSettings(None, None, fits=False, residual=math.inf)
        rest = target - scaled @ solution
        spread = np.sqrt((np.linalg.pinv(scaled, rcond=1e-9) ** 2).sum(axis=1))
        for place, index in enumerate(told):
            factor, deviation = solution[place] / sizes[index], spread[place] / sizes[index]
            found[index] = Fit(float(factor), math.hypot(deviation, ROUNDED * u * factor))
    residual = float(np.abs(rest).max(initial=0.0))
    return EffectiveSettings(found[0], found[1], residual <= 1, residual)


def own_shifts(replay: Replay) -> tuple[Array, Array]:
    """Give what torch's rule subtracts without a penalty, and with its own."""
    zeros = dict.fromkeys(replay.torch.problem.weight_decay, 0.0)
    free = replay.torch.by(replace(replay.torch.problem, weight_decay=zeros))
    return shifts(replay, free), shifts(replay, replay.torch)


def other_penalty(
    replay: Replay, shape: Callable[[Record], Array], known: tuple[Array, Array]
) -> float | None:
    """Fit S_t = G_t + c Q_t, where Q_t is what a penalty's gradient of another shape makes.

    None where that is not what the steps are. `known` are torch's `own_shifts`.
    """
    problem, history = replay.torch.problem, replay.history
    zeros = dict.fromkeys(problem.weight_decay, 0.0)
    free = replay.torch.by(replace(problem, weight_decay=zeros))
    by_gradient, own = known
    with np.errstate(all="ignore"):
        by_both = shifts(replay, free, shape)
        bound = allowed(replay, window(replay))
        moved = (history.all("before") - history.all("scratch"))[window(replay)]
        slope, rest = (by_both - by_gradient) / bound, (moved - by_gradient) / bound
        off = np.abs(moved - own) / bound
    if not (np.isfinite(slope).all() and np.isfinite(rest).all()) or not slope.any():
        return None
    # Some tensors, like the bias, may be free of it, or have torch's own.
    bound_to = [
        part
        for part in history.slices.values()
        if np.abs(rest[:, part]).max() > 1 and off[:, part].max() > 1
    ]
    weight = sum(float((slope[:, part] ** 2).sum()) for part in bound_to)
    if weight == 0:
        return None
    strength = sum(float((slope[:, part] * rest[:, part]).sum()) for part in bound_to) / weight
    fits = [np.abs(rest[:, part] - strength * slope[:, part]).max() <= 1 for part in bound_to]
    return strength if all(fits) and strength else None


class Rates(NamedTuple):
    """The lr of each step of the window, (steps,): what the scratch side's steps come to, torch's.

    NaN where a step does not tell.
    """

    scratch: Array
    torch: Array
    constant: bool


def rates(replay: Replay) -> Rates | None:
    """Fit S_t = α_t T_t with T_t torch's own step: α_t times its lr is the lr of step t.

    The velocity of torch's momentum does not hold the lr, so that each step has its own α_t. None
    where that is not what the steps are, too few entries tell, or the sign is wrong.
    """
    history, torch = replay.history, replay.torch
    here = window(replay)
    bound = allowed(replay, here)
    moved = (history.all("before") - history.all("scratch"))[here]
    with np.errstate(all="ignore"):
        step, rest = shifts(replay, torch) / bound, moved / bound
        if not (np.isfinite(step).all() and np.isfinite(rest).all()):
            return None
        weight = (step**2).sum(axis=1)
        told = (np.abs(step) > 1).sum(axis=1) > 1
        alpha = np.where(told, (step * rest).sum(axis=1) / weight, np.nan)
    left = rest - np.where(told, alpha, 0)[:, None] * step
    if told.sum() < 2 or np.abs(left[told]).max() > 1 or (alpha[told] < 0).any():
        return None
    lrs = np.array([record.batch.lr for record in history.records()])[here]
    found = alpha * lrs
    spread = SLACK * lrs[told] * np.hypot(1 / np.sqrt(weight[told]), ROUNDED * replay.u)
    middle = float(np.median(found[told]))
    constant = bool((np.abs(found[told] - middle) <= spread + spread.max()).all())
    return Rates(found, lrs, constant)


class Recursion(NamedTuple):
    """S_t ≈ now g_t + last g_(t−1) + decay w_(t−1) + kept S_(t−1), over all tensors' entries."""

    now: float
    last: float
    decay: float
    kept: float
    fits: bool


def recursion(replay: Replay) -> Recursion | None:
    """Fit the steps as a recursion of gradients and steps; None where they are too few.

    All forms of momentum at a constant lr are such recursions, and so is the use of the gradient
    of the step before. What does not fit has another gradient.
    """
    history = replay.history
    moved = (history.all("before") - history.all("scratch"))[window(replay)]
    gradient, before = (
        history.all("gradient")[window(replay)],
        history.all("before")[window(replay)],
    )
    bound = allowed(replay, window(replay))[1:]
    with np.errstate(all="ignore"):
        parts = (gradient[1:], gradient[:-1], before[1:], moved[:-1])
        columns = np.column_stack([np.ravel(part / bound) for part in parts])
        target = np.ravel(moved[1:] / bound)
    kept = np.isfinite(target) & np.isfinite(columns).all(axis=1)
    target, columns = target[kept], columns[kept]
    if len(target) < 2 * len(parts):
        return None
    sizes = np.maximum(np.sqrt((columns**2).sum(axis=0)), 1e-300)
    solution, *_ = np.linalg.lstsq(columns / sizes, target, rcond=1e-12)
    rest = target - (columns / sizes) @ solution
    now, last, decay, previous = (solution / sizes).tolist()
    return Recursion(now, last, decay, previous, bool(np.abs(rest).max() <= 100))
