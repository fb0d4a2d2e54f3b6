"""Torch's rule with other settings: an lr and a decay of each tensor.

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
among them, and these with more steps than numbers to choose. Where a step is no linear function of
the gradient, the second holds all the same, and the first of a decay that is decoupled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from regcheck.diagnosis.fits.moves import Moves
from regcheck.diagnosis.fits.newton import ITERATIONS, NEAR, WINDOWS, H
from regcheck.diagnosis.records import ALL_ELSE, ByEntry, EffectiveSettings, Explanation
from regcheck.diagnosis.replay import Replay
from regcheck.numerics.least_squares import (
    Fit,
    Places,
    equal_factors,
    fit_all,
    fit_columns,
    longer,
    rounded,
)
from regcheck.problem.problem import Array
from regcheck.rules.formulas.torch_call import decay_cause, decays_text

MOST_NUMBERS = 3
"""Numbers that the entries may have beside torch's own: more are no rule."""

OWN = 16
"""Units u of itself by which what a penalty subtracts may be off: 2 in each of 8 bounds."""

LEAST_SHOWN = 3
"""Entries' steps that must show each number beyond rounding."""


def effective_settings_of(replay: Replay) -> dict[str, EffectiveSettings]:
    """Measure the effective lr and weight decay of each tensor."""
    if not replay.torch.settings.rule.linear:
        return effective_by_newton(replay)
    moves = Moves(replay)
    by_gradient, by_penalty = moves.by_gradient(), moves.by_penalty()
    settings = {}
    for name, part in replay.history.slices.items():
        columns, limits = (by_gradient[:, part], by_penalty[:, part]), moves.limits[:, part]
        # A column within rounding of 0 says nothing.
        solution = fit_columns(
            columns, moves.scratch[:, part], limits, replay.u, least=1.0, rcond=1e-9
        )
        gradient, decay = solution.fits if solution.unique else (None, None)
        fits = solution.unique and solution.residual <= 1
        settings[name] = EffectiveSettings(gradient, decay, fits)
    return settings


def effective_by_newton(replay: Replay) -> dict[str, EffectiveSettings]:
    """Measure them where a step is no linear function of the gradient and the penalty.

    With T_t(λ) torch's step by λ, S_t ≈ α T_t(λ) by Newton's method in λ, all tensors at once:

        S_t ≈ α T_t(λ) + β ∂T_t/∂λ        λ ← λ + β/α
    """
    problem = replay.torch.problem
    decays, found = dict(problem.weight_decay), dict.fromkeys(replay.history.slices, UNKNOWN)
    for most in WINDOWS:
        moves = Moves(replay, most=most)
        for _ in range(ITERATIONS):
            last = decays
            found, decays = newton_in_decays(moves, last)
            if all(stays(one, last[name]) for name, one in found.items()):
                break
        if not any(one.fits for one in found.values()):
            break
    return found


UNKNOWN = EffectiveSettings(None, None, fits=False, linear=False)


def stays(one: EffectiveSettings, last: float) -> bool:
    """Whether Newton's method does not change a tensor's decay any more, or does not find one."""
    decay = one.weight_decay
    return decay is None or abs(decay.factor - last) <= max(decay.deviation, NEAR * abs(last))


def newton_in_decays(
    moves: Moves, decays: Mapping[str, float]
) -> tuple[dict[str, EffectiveSettings], dict[str, float]]:
    """Take one step of Newton's method; returns what each tensor comes to, and the new decays."""
    replay, found, new = moves.replay, {}, dict(decays)
    h = {name: H * (abs(decay) or 1.0) for name, decay in decays.items()}
    here = moves.by_problem(replace(replay.torch.problem, weight_decay=dict(decays)))
    moved = {name: decay + h[name] for name, decay in decays.items()}
    there = moves.by_problem(replace(replay.torch.problem, weight_decay=moved))
    assert here is not None
    assert there is not None
    for name, part in replay.history.slices.items():
        columns = (here[:, part], (there[:, part] - here[:, part]) / h[name])
        limits = moves.limits[:, part]
        solution = fit_columns(
            columns, moves.scratch[:, part], limits, replay.u, least=1.0, rcond=1e-9
        )
        found[name] = UNKNOWN
        rate, by = solution.fits
        if solution.unique and rate is not None and rate.factor:
            decay, alpha = by, rate.factor
            if by is not None:
                new[name] = decays[name] + by.factor / alpha
                decay = Fit(alpha * new[name], by.deviation)
            found[name] = EffectiveSettings(rate, decay, solution.residual <= 1, linear=False)
    return found, new


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
    causes = (*fits, *((decay_cause(decays, own),) if decays != own else ()))
    change = {"lr_factor": rate.factor} if fits else {}
    return Explanation(causes, change, residual, fits, decays_text(decays, own), decays)


NO_DECAY = 1e-9
"""The share of torch's own weight decay below which a fitted one is none."""


def plain_decays(
    settings: Mapping[str, EffectiveSettings], own: Mapping[str, float]
) -> dict[str, float]:
    """Return the decays that are fitted: torch's own, none, or another tensor's where near."""
    decays: dict[str, float] = {}
    for name, one in settings.items():
        if one.weight_decay is not None:
            decay = one.weight_decay.plain((own[name], 0.0, *decays.values())).factor
            decays[name] = 0.0 if abs(decay) < NO_DECAY * own[name] else decay
    return decays


class Family(NamedTuple):
    """One way to go: target = number · slope, in limits; `own` is torch's number of each entry."""

    what: Literal["weight_decay", "lr", "gradient"]
    slope: Array
    target: Array
    own: Array


def by_entries(replay: Replay) -> Iterator[Explanation]:
    """Yield the ways in which some entries' own numbers make all steps."""
    history, torch = replay.history, replay.torch
    moves = Moves(replay, early=True, most=len(history))
    found = (moves.scratch, moves.by_torch(), moves.by_gradient(), moves.by_penalty())
    parts = [one / moves.limits for one in found]
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
    linear, apart = torch.settings.rule.linear, torch.settings.torchs.decay == "decoupled"
    for family, holds in (
        (Family("weight_decay", decay, scratch - gradient, decays), linear or apart),
        (Family("lr", whole, scratch, ones), True),
        (Family("gradient", gradient, scratch - (whole - gradient), ones), linear),
    ):
        if not holds:
            continue
        explanation = explained_by(replay, family, strange)
        if explanation is not None:
            yield explanation


def explained_by(replay: Replay, family: Family, strange: NDArray[np.bool_]) -> Explanation | None:
    """Return the numbers that the strange entries have in one family; None where they have none."""
    values = family.own.copy()
    entries = np.flatnonzero(strange)
    slope, target = family.slope[:, entries], family.target[:, entries]

    def added(decay: Array | float, slope: Array) -> Array:
        """λ is no factor on torch's step: what is subtracted by it adds its own rounding."""
        return np.asarray(1 + OWN * replay.u * np.abs(decay * slope))

    wider = added if family.what == "weight_decay" else longer
    groups = [entries[group] for group in equal_factors(slope, target, replay.u, wider)]
    if not 0 < len(groups) <= MOST_NUMBERS:
        return None
    residual = float(np.abs(family.target - values * family.slope).max(where=~strange, initial=0.0))
    for places in groups:
        slope, target = family.slope[:, places], family.target[:, places]
        if (np.abs(slope) > 1).sum() < LEAST_SHOWN:
            return None
        fit = rounded(*fit_all(slope, target), replay.u)
        for value in (fit.plain((0.0,)).factor, fit.factor):
            left = float((np.abs(target - value * slope) / wider(value, slope)).max())
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
    own = ByEntry(family.what, values, in_words(replay, family, groups, values))
    note = "; ".join([*(f"{where}: {has}" for where, has in own.told.items()), ALL_ELSE])
    return Explanation((cause,), {}, residual, note=note, by_entry=own)


def in_words(
    replay: Replay, family: Family, groups: Sequence[Places], values: Array
) -> dict[str, str]:
    """Describe which entries have which numbers."""
    schedule, told, settings = replay.torch.problem.schedule, {}, replay.torch.settings
    for places in groups:
        lr, *others = {settings.of(replay.history.tensor_at(int(place))).lr for place in places}
        value, own = float(values[places[0]]), float(family.own[places[0]])
        if family.what == "weight_decay":
            number = f"weight_decay {instead_of(value, own)}" if value else "no weight decay"
        elif family.what == "lr" and schedule.lr_schedule is None and not others:
            number = f"lr {instead_of(value * lr, lr)}"
        else:
            number = f"{value:.10g} times the {family.what}"
        told[replay.history.named(places)] = number
    return told


def instead_of(value: float, own: float) -> str:
    """Write a number beside torch's own, with as many digits as it takes to differ."""
    texts = [*(f"{value:.{count}g}" for count in (6, 9, 12, 16)), repr(value)]
    return f"{next(text for text in texts if float(text) != own)} instead of {own:g}"
