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

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from regcheck.compare.history import Record
from regcheck.diagnosis.records import ByEntry, EffectiveSettings, Explanation
from regcheck.diagnosis.replay import Replay
from regcheck.numerics.least_squares import (
    Places,
    equal_factors,
    fit_all,
    fit_columns,
    longer,
    rounded,
)
from regcheck.problem.problem import Array
from regcheck.rules.torch_call import decays_text
from regcheck.trainers.numpy_trainer import NumpyTrainer

MOST = 512
"""Steps that a fit is taken from: the first divergence, and those after it."""

MOST_SHIFTED = 12
"""Steps, and epochs, by which a schedule may be early or late."""

MOST_NUMBERS = 3
"""Numbers that the entries may have beside torch's own: more are no rule."""

LEAST_SHOWN = 3
"""Entries' steps that must show each number beyond rounding."""


class Moves:
    """What the scratch side, and any rule, subtract at some steps: (steps, entries).

    Attributes:
        at: the places of the steps: the first divergence and those after it, or every step.
        scratch: what the scratch side subtracts.
        limits: of that. It is known as w − w′ alone, from a w′ that is rounded: never better than
            2u |w|.
    """

    def __init__(self, replay: Replay, *, every: bool = False) -> None:
        history = replay.history
        first = min(max(0, replay.first - 1), len(history) - 1)
        self.replay = replay
        self.at = slice(None) if every else slice(first, min(first + MOST, len(history)))
        before, after, bound = (history.all(key)[self.at] for key in ("before", "scratch", "bound"))
        with np.errstate(all="ignore"):
            self.limits = np.maximum(bound * replay.limits, 2 * replay.u * np.abs(before))
            self.scratch = before - after

    def by(self, rule: NumpyTrainer, added: Callable[[Record], Array] | None = None) -> Array:
        """Return what a rule subtracts; `added` is a function of the step, beside the gradient."""
        known = None
        if added is not None:
            known = lambda record: self.replay.pass_with(record, record.gradient + added(record))  # noqa: E731
        found = []
        for _, update in islice(self.replay.updates(rule, known=known), self.at.stop):
            assert update is not None
            assert update.step.delta is not None
            found.append(self.replay.history.flat(update.step.delta))
        return np.array(found)[self.at]

    def by_torch(self) -> Array:
        """Return T: the whole of torch's step."""
        return self.by(self.replay.torch)

    def by_gradient(self, added: Callable[[Record], Array] | None = None) -> Array:
        """Return G: torch's step without its penalty."""
        problem = self.replay.torch.problem
        zeros = dict.fromkeys(problem.weight_decay, 0.0)
        return self.by(self.replay.torch.by(replace(problem, weight_decay=zeros)), added)

    def by_penalty(self) -> Array:
        """Return P: torch's step by a penalty of λ = 1 alone, and no data gradient."""
        problem = self.replay.torch.problem
        ones = dict.fromkeys(problem.weight_decay, 1.0)
        faults = problem.faults._replace(gradient_factor=0.0)
        rule = replace(problem, weight_decay=ones, faults=faults)
        return self.by(self.replay.torch.by(rule))


def effective_settings_of(replay: Replay) -> dict[str, EffectiveSettings]:
    """Measure the effective lr and weight decay of each tensor."""
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
    history, torch, moves = replay.history, replay.torch, Moves(replay, every=True)
    found = (moves.scratch, moves.by_torch(), moves.by_gradient(), moves.by_penalty())
    with np.errstate(all="ignore"):
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
    entries = np.flatnonzero(strange)
    slope, target = family.slope[:, entries], family.target[:, entries]
    groups = [entries[group] for group in equal_factors(slope, target, replay.u)]
    if not 0 < len(groups) <= MOST_NUMBERS:
        return None
    residual = float(np.abs(family.target - values * family.slope).max(where=~strange, initial=0.0))
    for places in groups:
        slope, target = family.slope[:, places], family.target[:, places]
        if (np.abs(slope) > 1).sum() < LEAST_SHOWN:
            return None
        fit = rounded(*fit_all(slope, target), replay.u)
        for value in (fit.plain((0.0,)).factor, fit.factor):
            left = float((np.abs(target - value * slope) / longer(value)).max())
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


def note_of(replay: Replay, family: Family, groups: Sequence[Places], values: Array) -> str:
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
