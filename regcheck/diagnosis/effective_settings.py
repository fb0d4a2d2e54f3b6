"""Torch's rule with other settings: an lr and a decay of each tensor, or an earlier schedule.

Torch's rule without a penalty moves a tensor by G_t, and a penalty of λ = 1 alone by P_t, both
through torch's own momentum. The scratch side moved it by S_t = w_(t−1) − w_t. Least squares over
the recorded steps, each entry weighted by 1/bound, gives

    S_t ≈ α G_t + κ P_t        effective lr = α lr,  effective weight decay = κ/α

which are the numbers that torch.optim.SGD would need: w ← w − α lr (g + κ/α w).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import islice

import numpy as np

from regcheck.compare.history import Record
from regcheck.diagnosis.records import EffectiveSettings, Explanation
from regcheck.diagnosis.replay import Replay
from regcheck.diagnosis.search import shift_text
from regcheck.numerics.least_squares import fit_columns
from regcheck.problem.problem import Array
from regcheck.rules.equivalent import decays_text
from regcheck.trainers.numpy_trainer import NumpyTrainer

MOST = 512
"""Steps that a fit is taken from: the first divergence, and those after it."""

MOST_SHIFTED = 12
"""Steps, and epochs, by which a schedule may be early or late."""


def window(replay: Replay) -> slice:
    """Return the places of the steps that a fit is taken from."""
    start = min(max(0, replay.first - 1), len(replay.history) - 1)
    return slice(start, min(start + MOST, len(replay.history)))


def scratch_deltas(replay: Replay, at: slice) -> tuple[Array, Array]:
    """Return what the scratch side subtracts at some steps, and its limits: (steps, entries).

    It is known as w − w′ alone, from a w′ that is rounded: never better than 2u |w|.
    """
    before, scratch, bound = (replay.history.all(key)[at] for key in ("before", "scratch", "bound"))
    with np.errstate(all="ignore"):
        limits = np.maximum(bound * replay.limits, 2 * replay.u * np.abs(before))
        return before - scratch, limits


def deltas(
    replay: Replay, rule: NumpyTrainer, at: slice, added: Callable[[Record], Array] | None = None
) -> Array:
    """Return what a rule subtracts at some steps: (steps, entries).

    `added` is a function of the step that is added to the gradient.
    """
    known = None
    if added is not None:
        known = lambda record: replay.pass_with(record.gradient + added(record))  # noqa: E731
    found = []
    for _, update in islice(replay.updates(rule, known=known), at.stop):
        assert update is not None
        assert update.step.delta is not None
        found.append(replay.history.flat(update.step.delta))
    return np.array(found)[at]


def without_penalty(replay: Replay) -> NumpyTrainer:
    """Return torch's rule without its penalty."""
    zeros = dict.fromkeys(replay.torch.problem.weight_decay, 0.0)
    return replay.torch.by(replace(replay.torch.problem, weight_decay=zeros))


def unit_penalty(replay: Replay) -> NumpyTrainer:
    """Return torch's rule with a penalty of λ = 1 alone, and no data gradient."""
    problem = replay.torch.problem
    ones = dict.fromkeys(problem.weight_decay, 1.0)
    faults = problem.faults._replace(gradient_factor=0.0)
    return replay.torch.by(replace(problem, weight_decay=ones, faults=faults))


def effective_settings_of(replay: Replay) -> dict[str, EffectiveSettings]:
    """Measure the effective lr and weight decay of each tensor."""
    at = window(replay)
    found, limits = scratch_deltas(replay, at)
    rules = (without_penalty(replay), unit_penalty(replay))
    by_gradient, by_decay = (deltas(replay, rule, at) for rule in rules)
    settings = {}
    for name, part in replay.history.slices.items():
        columns = (by_gradient[:, part], by_decay[:, part])
        # A column within rounding of 0 says nothing.
        solution = fit_columns(
            columns, found[:, part], limits[:, part], replay.u, least=1.0, rcond=1e-9
        )
        gradient, decay = solution.fits if solution.unique else (None, None)
        residual = solution.residual if solution.unique else math.inf
        settings[name] = EffectiveSettings(gradient, decay, residual)
    return settings


def with_other_settings(replay: Replay) -> Explanation | None:
    """Find torch's rule with another schedule, or another lr and other decays."""
    return with_shifted_schedule(replay) or with_effective_settings(replay)


def with_effective_settings(replay: Replay) -> Explanation | None:
    """Return whether the steps are torch's with another lr, and a weight decay for each tensor."""
    settings = effective_settings_of(replay)
    rates = [one.gradient.plain((1.0,)) for one in settings.values() if one.gradient is not None]
    if not rates or not all(one.fits for one in settings.values()) or rates[0].factor <= 0:
        return None
    problem, rate = replay.torch.problem, rates[0]
    own = problem.weight_decay
    decays = {**own, **plain_decays(settings, own)}
    rule = replace(
        problem, weight_decay=decays, faults=problem.faults._replace(lr_factor=rate.factor)
    )
    residual = replay.largest(replay.steps(replay.torch.by(rule)))
    if residual > 1:
        return None
    fits = {} if rate.factor == 1 else {"learning-rate-scaled": rate}
    causes = (*fits, *(("penalty-scaled",) if decays != own else ()))
    change = {"lr_factor": rate.factor} if fits else {}
    return Explanation(causes, change, residual, fits, decays_text(decays, own), decays)


def plain_decays(
    settings: Mapping[str, EffectiveSettings], own: Mapping[str, float]
) -> dict[str, float]:
    """Return the decays that are fitted: torch's own, none, or another tensor's where near."""
    decays: dict[str, float] = {}
    for name, one in settings.items():
        if one.weight_decay is not None:
            decays[name] = one.weight_decay.plain((own[name], 0.0, *decays.values())).factor
    return decays


def with_shifted_schedule(replay: Replay) -> Explanation | None:
    """Return whether the steps are torch's with the schedule of the lr some steps early or late."""
    schedule = replay.torch.problem.schedule
    if schedule.lr_schedule is None:
        return None
    taken = range(1, len(replay.history) + 1)
    units = dict.fromkeys((1, schedule.steps_per_epoch))
    for steps in dict.fromkeys(n * unit for unit in units for n in range(1, MOST_SHIFTED + 1)):
        for early in (steps, -steps):
            causes, change = ("schedule-shifted",), {"lr_shift": early}
            note = shift_text(schedule, causes, change)
            found = replay.explanation(causes, change, note=note)
            # One lr in all steps is no schedule that is shifted, but none.
            if found is not None and len({schedule.lr_at(step + early) for step in taken}) > 1:
                return found
    return None
