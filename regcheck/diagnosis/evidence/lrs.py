"""What is known of lrs that no cause explains: one lr, or the schedule's formula past its end."""

from __future__ import annotations

import numpy as np

from regcheck.diagnosis.evidence.record import Evidence
from regcheck.diagnosis.fits.other_schedules import Rates, by_other_unit, rates_of
from regcheck.diagnosis.replay import Replay
from regcheck.problem.lrs import GOING_ON
from regcheck.problem.problem import Array

MOST_RATES = 6
"""The lrs that are listed."""


def other_rates(replay: Replay) -> Evidence | None:
    """Describe steps that are torch's with another lr in each; None if they are not."""
    rates = rates_of(replay, least=2)
    if rates is None:
        return None
    own, torch = rates.own, rates.torch
    if rates.constant:
        return Evidence(
            f"The updates are torch's with the constant lr {own[0]:.6g}",
            f": the lr schedule ({listed(torch, 3)}) is not applied.",
            "schedule-ignored",
        )
    return past_the_end(replay, rates) or Evidence(
        "The updates are torch's with other lrs",
        f": from step {rates.steps[0]:,} on {listed(own)}, where torch has {listed(torch)}.",
        "other-lrs",
    )


def past_the_end(replay: Replay, rates: Rates) -> Evidence | None:
    """Describe lrs by the schedule's formula also past its end, where torch's lr stays."""
    own = replay.torch.problem.schedule
    kind = own.lr_schedule
    if kind is None or kind.kind not in GOING_ON:
        return None
    for keys in ((), *by_other_unit(own)):
        other = own.with_keys(keys).lr_schedule
        assert other is not None
        every, formula = own.steps_per_epoch if other.per == "epoch" else 1, GOING_ON[kind.kind]
        lrs = [formula(own.lr, other.all_keys, (step - 1) // every) for step in rates.steps]
        if (np.abs(np.array(lrs) - rates.own) <= rates.slack).all():
            end = f"past its end of {other.all_keys['steps']} {other.per}s, where torch's lr stays"
            unit = f"stepped every {other.per}, not {kind.per}, and " if keys else ""
            text = f"The updates are torch's with the lr schedule {unit}followed {end}."
            return Evidence(text, kind="schedule-goes-on")
    return None


def listed(values: Array, most: int = MOST_RATES) -> str:
    """List the first values."""
    some = ", ".join(f"{value:.6g}" for value in values[:most])
    return some + (", .." if len(values) > most else "")
