"""The lr of each kind of schedule, worked out from t: what both sides follow.

torch's schedulers go from each lr to the next, and the framework side runs them beside this
(`regcheck.trainers.framework.schedulers`), which shares nothing with them but the keys.
"""

from __future__ import annotations

import math
import sys
from bisect import bisect_right
from collections.abc import Callable

from regcheck.rules.optimizers.lr_schedules import Keys
from regcheck.spec.sections.lr_schedule import LrSchedule


def scheduled_lr(lr: float, schedule: LrSchedule, t: int) -> float:
    """Return the lr after t steps or epochs."""
    return LRS[schedule.kind](lr, schedule.all_keys, t)


def times_power(lr: float, factor: float, n: int) -> float:
    """Return lr·factorⁿ, in halves of n where the power alone leaves the range of floats."""
    if lr in (0.0, math.inf):
        return lr
    try:
        power = factor**n
    except OverflowError:
        power = math.inf
    if n > 1 and factor > 0 and not sys.float_info.min <= power < math.inf:
        return times_power(times_power(lr, factor, n // 2), factor, n - n // 2)
    return lr * power


def cosine(lr: float, floor: float, share: float) -> float:
    """Return what lies between lr and floor after a share of a half turn of the cosine."""
    return floor + (lr - floor) * (1 + math.cos(math.pi * share)) / 2


def straight(lr: float, end: float, share: float) -> float:
    """Return what lies between lr and its end after a share of the way."""
    return lr + (end - lr) * share


def one_cycle(lr: float, keys: Keys, t: int) -> float:
    """Return the lr of a cycle: up to lr, down, and by three_phase down once more.

    A part begins where the one before ends, which need not be a whole t.
    """
    low, peak = lr / keys["div_factor"], keys["pct_start"] * keys["steps"] - 1
    ends, lrs = [0.0, peak, keys["steps"] - 1], [low, lr, low / keys["final_div_factor"]]
    if keys["three_phase"]:
        ends.insert(2, 2 * peak)
        lrs.insert(2, low)
    t = min(t, keys["steps"] - 1)
    at = next(place for place in range(1, len(ends)) if t <= ends[place])
    between = cosine if keys["anneal_strategy"] == "cos" else straight
    share = (t - ends[at - 1]) / (ends[at] - ends[at - 1])
    return between(lrs[at - 1], lrs[at], share)


GOING_ON: dict[str, Callable[[float, Keys, int], float]] = {
    "cosine": lambda lr, keys, t: cosine(lr, keys["floor"], t / keys["steps"]),
    "linear": lambda lr, keys, t: straight(
        lr * keys["start_factor"], lr * keys["end_factor"], t / keys["steps"]
    ),
    "warmup": lambda lr, keys, t: lr * ((t + 1) / keys["steps"]),
}
"""By kind, of those that end: lr, keys, t → the lr that its formula has, also past the end."""

LRS: dict[str, Callable[[float, Keys, int], float]] = {
    "step": lambda lr, keys, t: times_power(lr, keys["factor"], t // keys["every"]),
    "multistep": lambda lr, keys, t: times_power(
        lr, keys["factor"], bisect_right(keys["milestones"], t)
    ),
    "exponential": lambda lr, keys, t: times_power(lr, keys["factor"], t),
    "cosine": lambda lr, keys, t: GOING_ON["cosine"](lr, keys, min(t, keys["steps"])),
    "linear": lambda lr, keys, t: GOING_ON["linear"](lr, keys, min(t, keys["steps"])),
    "warmup": lambda lr, keys, t: GOING_ON["warmup"](lr, keys, min(t, keys["steps"] - 1)),
    "one-cycle": one_cycle,
    "list": lambda _, keys, t: keys["values"][min(t, len(keys["values"]) - 1)],
}
"""By kind: lr, keys, t → the lr at t."""
