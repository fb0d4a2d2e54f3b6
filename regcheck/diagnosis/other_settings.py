"""Torch's rule with other settings: an lr and a decay of each tensor, or an earlier schedule.

Torch's rule without a penalty moves a tensor by G_t, and a penalty of λ = 1 alone by P_t, both
through torch's own momentum. The scratch side moved it by S_t = w_(t−1) − w_t. Least squares over
the recorded steps, each entry weighted by 1/bound, gives

    S_t ≈ α G_t + κ P_t        effective lr = α lr,  effective weight decay = κ/α

which are the numbers that torch.optim.SGD would need: w ← w − α lr (g + κ/α w).

Some entries alone may have numbers of their own: one weight, a slice, a tensor. With T_t the whole
of torch's step, each of them by itself may go by

    S_t = G_t + κ P_t       another penalty; none where κ is 0
    S_t = c T_t             another lr
    S_t = c G_t + λ P_t     another factor on the gradient

The entries that do not go by torch's own numbers must all go by one of these, with few numbers
among them, and these with more steps than numbers to choose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from regcheck.compare.history import Record
from regcheck.diagnosis.records import ByEntry, EffectiveSettings, Explanation
from regcheck.diagnosis.replay import Replay
from regcheck.numerics.least_squares import ROUNDED, SLACK, fit_all, fit_columns, fit_each, rounded
from regcheck.problem.problem import Array
from regcheck.rules.equivalent import decays_text
from regcheck.trainers.numpy_trainer import NumpyTrainer

MOST = 512
"""Steps that a fit is taken from: the first divergence, and those after it."""

MOST_SHIFTED = 12
"""Steps, and epochs, by which a schedule may be early or late."""

Indices = NDArray[np.intp]
"""Places of some entries."""

MOST_NUMBERS = 3
"""Numbers that the entries may have beside torch's own: more are no rule."""

LEAST_SHOWN = 3
"""Entries' steps that must show each number beyond rounding."""


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
            found = replay.explanation(causes, change, note=schedule.shift_text(early))
            # One lr in all steps is no schedule that is shifted, but none.
            if found is not None and len({schedule.lr_at(step + early) for step in taken}) > 1:
                return found
    return None


class Family(NamedTuple):
    """One way to go: target = number · slope, in limits; `own` is torch's number of each entry."""

    what: Literal["weight_decay", "lr", "gradient"]
    slope: Array
    target: Array
    own: Array


def by_entries(replay: Replay) -> Iterator[Explanation]:
    """Yield the ways in which some entries' own numbers make all steps."""
    history, torch, every = replay.history, replay.torch, slice(None)
    found, limits = scratch_deltas(replay, every)
    rules = (torch, without_penalty(replay), unit_penalty(replay))
    with np.errstate(all="ignore"):
        parts = [found / limits, *(deltas(replay, rule, every) / limits for rule in rules)]
    if not all(np.isfinite(one).all() for one in parts):
        return
    scratch, whole, gradient, decay = parts
    strange = np.abs(scratch - whole).max(axis=0) > 1
    if not strange.any() or strange.all():
        return
    decays = np.empty(history.entries)
    for name, part in history.slices.items():
        decays[part] = torch.problem.weight_decay.get(name, 0.0)
    ones = np.ones(history.entries)
    for family in (
        Family("weight_decay", decay, scratch - gradient, decays),
        Family("lr", whole, scratch, ones),
        Family("gradient", gradient, scratch - (whole - gradient), ones),
    ):
        explanation = explained_by(replay, family, strange)
        if explanation is not None:
            yield explanation


def explained_by(replay: Replay, family: Family, strange: NDArray[np.bool_]) -> Explanation | None:
    """Return the numbers that the strange entries have in one family; None where they have none."""
    values = family.own.copy()
    groups = grouped(family, np.flatnonzero(strange), replay.u)
    if not 0 < len(groups) <= MOST_NUMBERS:
        return None
    residual = float(np.abs(family.target - values * family.slope).max(where=~strange, initial=0.0))
    for places in groups:
        slope, target = family.slope[:, places], family.target[:, places]
        if (np.abs(slope) > 1).sum() < LEAST_SHOWN:
            return None
        fit = rounded(*fit_all(slope, target), replay.u)
        for value in (fit.plain((0.0,)).factor, fit.factor):
            left = largest_left(slope, target, value)
            if left <= 1:
                break
        values[places] = value
        residual = max(residual, left)
    wrong_sign = family.what != "weight_decay" and bool((values <= 0).any())
    if residual > 1 or wrong_sign:
        return None
    causes = {"lr": "learning-rate-scaled", "gradient": "gradient-scaled"}
    penalty = "penalty-scaled" if values[strange].any() else "penalty-missing"
    cause = causes.get(family.what, penalty)
    note = note_of(replay, family, groups, values)
    own = ByEntry(family.what, values)
    return Explanation((cause,), {}, residual, note=note, by_entry=own)


def largest_left(slope: Array, target: Array, value: float) -> float:
    """Return the largest difference left, in limits; a longer step rounds more."""
    return float(np.abs(target - value * slope).max()) / max(1.0, abs(value) / 4)


def grouped(family: Family, strange: Indices, u: float) -> list[Indices]:
    """Put the strange entries into groups of one number each; empty where one of them has none."""
    slope, target = family.slope[:, strange], family.target[:, strange]
    if not (np.abs(slope) > 1).any(axis=0).all():
        return []
    factors, spread = fit_each(slope, target, 0)
    far = np.abs(target - factors * slope) / np.maximum(1, np.abs(factors) / 4)
    if far.max() > 1:
        return []
    slack = SLACK * np.hypot(spread, ROUNDED * u * factors)
    order = np.argsort(factors, kind="stable")
    differ = np.diff(factors[order]) > np.maximum(slack[order][1:], slack[order][:-1])
    groups = np.split(strange[order], np.flatnonzero(differ) + 1)
    return [np.sort(group) for group in groups]


def note_of(replay: Replay, family: Family, groups: Sequence[Indices], values: Array) -> str:
    """Describe which entries have which numbers."""
    schedule, notes = replay.torch.problem.schedule, []
    for places in groups:
        value, own = float(values[places[0]]), float(family.own[places[0]])
        if family.what == "weight_decay":
            number = f"weight_decay {instead_of(value, own)}" if value else "no penalty"
        elif family.what == "lr" and schedule.lr_schedule is None:
            number = f"lr {instead_of(value * schedule.lr, schedule.lr)}"
        else:
            number = f"{value:.10g} times the {family.what}"
        notes.append(f"{replay.history.named(places)}: {number}")
    return "; ".join([*notes, "all else follows torch's rule"])


def instead_of(value: float, own: float) -> str:
    """Write a number beside torch's own, with as many digits as it takes to differ."""
    texts = [*(f"{value:.{count}g}" for count in (6, 9, 12, 16)), repr(value)]
    return f"{next(text for text in texts if float(text) != own)} instead of {own:g}"
