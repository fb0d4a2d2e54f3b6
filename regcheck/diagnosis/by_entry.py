"""Whether some entries go by torch's rule with numbers of their own: one weight, a slice, a tensor.

With G_t what torch's step is without a penalty, P_t what it is of a penalty of λ = 1 alone, T_t the
whole of it, and S_t the scratch side's, each entry j by itself may go by

    S_t = G_t + κ P_t       another penalty; none where κ is 0
    S_t = c T_t             another lr
    S_t = c G_t + λ P_t     another factor on the gradient

with κ or c by least squares, each step weighted by 1/bound. The entries that do not go by torch's
own numbers must all go by one of these, with few numbers among them, and these with more steps than
numbers to choose.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from regcheck.compare.history import History
from regcheck.diagnosis.effective_settings import (
    deltas,
    scratch_deltas,
    unit_penalty,
    without_penalty,
)
from regcheck.diagnosis.records import ByEntry, Explanation
from regcheck.diagnosis.replay import Replay
from regcheck.numerics.least_squares import ROUNDED, SLACK, fit_all, fit_each, rounded
from regcheck.problem.problem import Array

Indices = NDArray[np.intp]
"""Places of some entries."""

MOST_NUMBERS = 3
"""Numbers that the entries may have beside torch's own: more are no rule."""

LEAST_SHOWN = 3
"""Entries' steps that must show each number beyond rounding."""

MOST_NAMED = 4
"""Slices that are named."""


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
        notes.append(f"{named(replay.history, places)}: {number}")
    return "; ".join([*notes, "all else follows torch's rule"])


def instead_of(value: float, own: float) -> str:
    """Write a number beside torch's own, with as many digits as it takes to differ."""
    texts = [*(f"{value:.{count}g}" for count in (6, 9, 12, 16)), repr(value)]
    return f"{next(text for text in texts if float(text) != own)} instead of {own:g}"


def named(history: History, places: Indices) -> str:
    """Name entries as slices: weight[0, 0:2]; a whole tensor by its name alone."""
    found = []
    for name, part in history.slices.items():
        inside = places[(places >= part.start) & (places < part.stop)] - part.start
        if len(inside) == part.stop - part.start:
            found.append(name)
        elif len(inside):
            found += slices_of(name, history.shapes[name], inside)
    more = len(found) - MOST_NAMED
    shown = found[:MOST_NAMED] + ([f"{more} more"] if more > 0 else [])
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def slices_of(name: str, shape: tuple[int, ...], inside: Indices) -> Iterator[str]:
    """Name some entries of a tensor: runs of neighbours in its last dimension."""
    breaks = (np.diff(inside) != 1) | (inside[1:] % shape[-1] == 0)
    for run in np.split(inside, np.flatnonzero(breaks) + 1):
        *outer, first = (int(index) for index in np.unravel_index(run[0], shape))
        last = f"{first}:{first + len(run)}" if len(run) > 1 else f"{first}"
        yield f"{name}[{', '.join([*map(str, outer), last])}]"
