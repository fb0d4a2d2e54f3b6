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
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from regcheck.compare.history import History
from regcheck.diagnosis.effective_settings import allowed, shifts
from regcheck.diagnosis.replay import (
    ROUNDED,
    SLACK,
    ByEntry,
    Explanation,
    Fit,
    Numbers,
    Replay,
    deviation_of,
)
from regcheck.problem.problem import Array

Places = NDArray[np.bool_]
"""Whether each entry is meant: (entries,)."""

Indices = NDArray[np.intp]
"""Places of some entries."""

MOST_NUMBERS = 3
"""Numbers that the entries may have beside torch's own: more are no rule."""

LEAST_TOLD = 3
"""Entries' steps that must tell each number beyond rounding."""


class Family(NamedTuple):
    """One way to go: S_t − free = number · slope; `own` is torch's number of each entry."""

    what: Numbers
    slope: Array
    rest: Array
    own: Array


def by_entries(replay: Replay) -> Iterator[Explanation]:
    """Give the ways in which some entries' own numbers make all steps."""
    history, torch = replay.history, replay.torch
    bound = allowed(replay, slice(None))
    with np.errstate(all="ignore"):
        moved = (history.all("before") - history.all("scratch")) / bound
        whole, gradient, decay = (one / bound for one in parts_of(replay))
    if not all(np.isfinite(one).all() for one in (moved, whole, gradient, decay)):
        return
    strange: Places = np.abs(moved - whole).max(axis=0) > 1
    if not strange.any() or strange.all():
        return
    decays = np.concatenate(
        [np.full(part.stop - part.start, torch.problem.weight_decay.get(name, 0.0))
         for name, part in history.slices.items()]
    )  # fmt: skip
    ones = np.ones(history.entries)
    for family in (
        Family("weight_decay", decay, moved - gradient, decays),
        Family("lr", whole, moved, ones),
        Family("gradient", gradient, moved - (whole - gradient), ones),
    ):
        found = explained_by(replay, family, strange)
        if found is not None:
            yield found


def parts_of(replay: Replay) -> tuple[Array, Array, Array]:
    """Give T_t, G_t and P_t of all recorded steps: (steps, entries) each."""
    problem, torch = replay.torch.problem, replay.torch
    ones = dict.fromkeys(problem.weight_decay, 1.0)
    zeros = dict.fromkeys(problem.weight_decay, 0.0)
    silent = problem.faults._replace(gradient_factor=0.0)
    rules = (
        problem,
        replace(problem, weight_decay=zeros),
        replace(problem, weight_decay=ones, faults=silent),
    )
    everything = slice(None)
    whole, gradient, decay = (shifts(replay, torch.by(rule), at=everything) for rule in rules)
    return whole, gradient, decay


def explained_by(replay: Replay, family: Family, strange: Places) -> Explanation | None:
    """Give the numbers that the strange entries have in one family; None where they have none."""
    values = family.own.copy()
    groups = grouped(family, strange, replay.u)
    if not 0 < len(groups) <= MOST_NUMBERS:
        return None
    for places in groups:
        slope, rest = family.slope[:, places], family.rest[:, places]
        if (np.abs(slope) > 1).sum() < LEAST_TOLD:
            return None
        fit = fit_of(slope.ravel(), rest.ravel(), replay.u)
        for value in dict.fromkeys((fit.plain((0.0,)).factor, fit.factor)):
            if left(slope, rest, value) <= 1:
                values[places] = value
                break
        else:
            return None
    residual = float(np.abs(family.rest - values * family.slope).max(where=~strange, initial=0.0))
    others = (left(family.slope[:, at], family.rest[:, at], values[at[0]]) for at in groups)
    residual = max(residual, *others)
    wrong_sign = family.what != "weight_decay" and bool((values <= 0).any())
    if residual > 1 or wrong_sign:
        return None
    note = note_of(replay, family, groups, values)
    return Explanation(
        (cause_of(family, values[strange]),), {}, residual, note=note,
        by_entry=ByEntry(family.what, values),
    )  # fmt: skip


def left(slope: Array, rest: Array, value: float) -> float:
    """Give the largest difference left, in limits; a longer step rounds more."""
    return float(np.abs(rest - value * slope).max()) / max(1.0, abs(value) / 4)


def fit_of(slope: Array, rest: Array, u: float) -> Fit:
    """Fit one number to some entries' steps."""
    weight = float(slope @ slope)
    factor = float(slope @ rest) / weight
    return Fit(factor, deviation_of(factor, weight, u))


def grouped(family: Family, strange: Places, u: float) -> list[Indices]:
    """Put the strange entries into groups of one number each; empty where one of them has none."""
    slope, rest = family.slope[:, strange], family.rest[:, strange]
    weight = (slope**2).sum(axis=0)
    if not (np.abs(slope) > 1).any(axis=0).all():
        return []
    factors = (slope * rest).sum(axis=0) / weight
    far = np.abs(rest - factors * slope) / np.maximum(1, np.abs(factors) / 4)
    if far.max() > 1:
        return []
    slack = SLACK * np.hypot(1 / np.sqrt(weight), ROUNDED * u * factors)
    order = np.argsort(factors, kind="stable")
    apart = np.diff(factors[order]) > np.maximum(slack[order][1:], slack[order][:-1])
    groups = np.split(np.flatnonzero(strange)[order], np.flatnonzero(apart) + 1)
    return [np.sort(group) for group in groups]


def cause_of(family: Family, values: Array) -> str:
    """Name the cause of entries with other numbers."""
    if family.what == "weight_decay":
        return "penalty-scaled" if values.any() else "penalty-missing"
    return "learning-rate-scaled" if family.what == "lr" else "gradient-scaled"


def note_of(replay: Replay, family: Family, groups: Sequence[Indices], values: Array) -> str:
    """Say which entries have which numbers."""
    problem, told = replay.torch.problem, []
    for places in groups:
        value, own = float(values[places[0]]), float(family.own[places[0]])
        if family.what == "weight_decay":
            number = f"weight_decay {beside(value, own)}" if value else "no penalty"
        elif family.what == "lr" and problem.schedule.lr_schedule is None:
            lr = problem.schedule.lr
            number = f"lr {beside(value * lr, lr)}"
        else:
            number = f"{value:.10g} times the {family.what}"
        told.append(f"{named(replay.history, places)}: {number}")
    return "; ".join([*told, "all else follows torch's rule"])


def beside(value: float, own: float) -> str:
    """Write a number beside torch's own, with as many digits as it takes to differ."""
    digits = (f"{value:.{count}g}" for count in (6, 9, 12, 16))
    return (
        f"{next(text for text in (*digits, repr(value)) if float(text) != own)} instead of {own:g}"
    )


MOST_NAMED = 4
"""Slices that are named."""


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
    breaks = [
        place
        for place in range(1, len(inside))
        if inside[place] != inside[place - 1] + 1 or inside[place] % shape[-1] == 0
    ]
    for run in np.split(inside, breaks):
        *outer, first = (int(index) for index in np.unravel_index(run[0], shape))
        last = f"{first}:{first + len(run)}" if len(run) > 1 else f"{first}"
        yield f"{name}[{', '.join([*map(str, outer), last])}]"
