"""Torch's rule with an earlier or later schedule of the lr, or one of its kind with other keys.

The lr of each step is fitted (`rates`). A schedule explains the steps where one other key gives it
all those lrs: by epochs in the place of steps, with its whole numbers as they are or for epochs
too; another whole number, of all there are; another number, where the lr of the step that differs
most is its own; other milestones, where the lr falls.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from regcheck.diagnosis.fits.other_settings import LEAST_SHOWN
from regcheck.diagnosis.fits.rates import NONE, Rates, rates_of
from regcheck.diagnosis.records import Explanation
from regcheck.diagnosis.replay import Replay
from regcheck.problem.batches import Schedule
from regcheck.rules.causes.cause import Change
from regcheck.spec.sections.lr_schedule import LrSchedule

DIFFERS = "schedule-differs"

Keys = tuple[tuple[str, Any], ...]
"""Other values of some keys of a schedule."""

RANGES: dict[str, tuple[float, float]] = {
    "factor": (1e-6, 4.0),
    "floor": (1e-12, 1e3),
    "start_factor": (1e-6, 1.0),
    "end_factor": (1e-6, 1.0),
    "pct_start": (1e-3, 1.0),
    "div_factor": (1e-3, 1e6),
    "final_div_factor": (1e-3, 1e9),
}
"""Where a number is looked for, from the smallest to the largest."""

MAY_BE_0 = frozenset({"factor", "floor", "end_factor"})

COUNTED = ("every", "steps", "milestones")
"""The keys that count steps, or epochs; a kind has one of them at most."""

PLACES = 60
"""Places in a range, evenly by their logarithms, between two of which a number may lie."""

BISECTIONS = 100
"""Halvings after which a number is found to its last bit."""

MOST_COUNTED = 4096
"""Whole numbers that are tried."""

MOST_SHIFTED = 12
"""Steps, and epochs, by which a schedule may be early or late."""


def with_another_schedule(replay: Replay) -> Iterator[Explanation]:
    """Yield torch's rule with the lr's schedule at other steps, or else with other keys."""
    found = with_shifted_schedule(replay) or with_other_keys(replay)
    if found is not None:
        yield found


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


def with_other_keys(
    replay: Replay, causes: tuple[str, ...] = (), change: Change = NONE
) -> Explanation | None:
    """Return whether the steps are torch's, or causes', with other keys of the lr's schedule."""
    schedule = replay.torch.problem.schedule
    if schedule.lr_schedule is None:
        return None
    rates = rates_of(replay, change=change)
    if rates is None or rates.shown < LEAST_SHOWN or rates.constant:  # which is no schedule
        return None
    for keys in candidates(schedule, rates):
        other = with_keys(schedule, keys)
        if other is not None and rates.are_of(other):
            names, note = sorted((*causes, DIFFERS)), keys_text(schedule.lr_schedule, keys)
            together = {**change, "lr_schedule": keys}
            found = replay.explanation(tuple(names), together, note=note)
            if found is not None:
                return found
    return None


def with_keys(schedule: Schedule, keys: Keys) -> Schedule | None:
    """Return a schedule with other keys; None where no spec may have them."""
    other = schedule.with_keys(keys)
    kind = other.lr_schedule
    return None if kind is None or next(kind.errors(), None) else other


def keys_text(own: LrSchedule, keys: Keys) -> str:
    """Write other values of some keys beside a schedule's own: `every 4 instead of 5`."""
    other = own.with_keys(keys)
    return ", ".join(f"{other.text(key)} instead of {own.value_text(key)}" for key, _ in keys)


def candidates(schedule: Schedule, rates: Rates) -> Iterator[Keys]:
    """Yield other keys that may have the lrs."""
    kind = schedule.lr_schedule
    assert kind is not None
    per, *by_both = by_other_unit(schedule)
    yield per
    most = min(MOST_COUNTED, 4 * schedule.steps)
    for key, own in kind.all_keys.items():
        if key in ("every", "steps"):
            yield from (((key, number),) for number in range(1, most + 1) if number != own)
        elif key == "milestones":
            yield from milestones(schedule, rates)
        elif key in RANGES:
            yield from (((key, number),) for number in numbers(schedule, rates, key))
        elif key == "anneal_strategy":
            yield ((key, "linear" if own == "cos" else "cos"),)
        elif key == "three_phase":
            yield ((key, not own),)
    yield from by_both


def by_other_unit(schedule: Schedule) -> Iterator[Keys]:
    """Yield the schedule stepped every epoch, not every step, or the other way round.

    Its whole numbers are the spec's, or those that make it as long, rounded either way.
    """
    kind, unit = schedule.lr_schedule, schedule.steps_per_epoch
    assert kind is not None
    per = ("per", "epoch" if kind.per == "step" else "step")
    yield (per,)
    counted = next((key for key in COUNTED if key in kind.all_keys), None)
    if counted is None:
        return
    own = kind.all_keys[counted]
    for rounded in (math.floor, math.ceil):
        found = [
            number * unit if kind.per == "epoch" else max(1, rounded(number / unit))
            for number in (own if isinstance(own, list) else [own])
        ]
        yield (per, (counted, tuple(found) if isinstance(own, list) else found[0]))


def numbers(schedule: Schedule, rates: Rates, key: str) -> Iterator[float]:
    """Yield the numbers by which the step that differs most has its own lr, by bisection."""
    place = rates.most
    own = float(rates.own[place])

    def off(number: float) -> float:
        other = with_keys(schedule, ((key, number),))
        return rates.lr_of(other, place) - own if other is not None else math.nan

    if key in MAY_BE_0:
        yield 0.0
    for first, last in pairwise(np.geomspace(*RANGES[key], PLACES).tolist()):
        if not off(first) * off(last) <= 0:
            continue
        for _ in range(BISECTIONS):
            middle = (first + last) / 2
            first, last = (first, middle) if off(first) * off(middle) <= 0 else (middle, last)
        yield from decimals(last)


def milestones(schedule: Schedule, rates: Rates) -> Iterator[Keys]:
    """Yield the milestones at which the lr falls, and the factor by which it does."""
    kind = schedule.lr_schedule
    assert kind is not None
    unit = schedule.steps_per_epoch if kind.per == "epoch" else 1
    known = [(step, schedule.lr_at(step), 0.0) for step in range(1, rates.steps[0])]
    fitted = zip(rates.steps, rates.own.tolist(), rates.slack.tolist(), strict=True)
    jumps = {
        (step - 1) // unit: now / last
        for (_, last, slack), (step, now, more) in pairwise((*known, *fitted))
        if last and abs(now - last) > slack + more
    }
    if not jumps or [*jumps] == kind.milestones:  # by another factor alone
        return
    found = (("milestones", tuple(jumps)),)
    yield found
    for jump in jumps.values():
        yield from ((*found, ("factor", number)) for number in decimals(jump))


def decimals(number: float) -> Iterator[float]:
    """Yield the decimals of a number, the shortest first."""
    yield from dict.fromkeys(float(f"{number:.{digits}g}") for digits in range(1, 18))
