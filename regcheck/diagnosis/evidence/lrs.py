"""What is known of lrs that no cause explains: one lr, or the schedule's formula past its end."""

from __future__ import annotations

import numpy as np

from regcheck.diagnosis.evidence.record import Evidence, Kind
from regcheck.diagnosis.fits.other_schedules import by_other_unit
from regcheck.diagnosis.fits.rates import Rates, rates_of
from regcheck.diagnosis.records import Run
from regcheck.diagnosis.replay import Replay
from regcheck.diagnosis.search import concerning, single_ways
from regcheck.problem.lrs import GOING_ON
from regcheck.problem.problem import Array
from regcheck.rules.causes.catalogue import CAUSES

INSIDE = "momentum-lr-inside"

MOST_RATES = 6
"""The lrs that are listed."""

ROOT_SLACK = 1e-6
"""The share by which a norm or a loss that code takes of its own may be another than torch's."""

DIGITS = (6, 9, 17)
"""How many digits a lr is listed with: the fewest by which it differs from torch's."""


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
    first, (own_text, torch_text) = rates.steps[0], apart(own, torch)
    return (
        past_the_end(replay, rates)
        or other_clip(replay, rates)
        or divided(replay, rates)
        or Evidence(
            "The updates are torch's with other lrs",
            f": from step {first:,} on {own_text}, where torch has {torch_text}.",
            "other-lrs",
        )
    )


def with_a_cause(run: Run, replay: Replay) -> Evidence | None:
    """Describe steps that are torch's with one cause and another lr in each; None if not.

    One lr in all steps is plainer than many, above all the spec's own. With the lr in the velocity,
    which is a cause only where torch's lr varies, many may make up for what else varies.
    """
    rule, settings = replay.torch.settings.rule, run.training.settings
    hypotheses = concerning(replay, run.training, run.spec.named_convention(), run.visible)
    ways = [(cause, way) for cause, way in single_ways(hypotheses) if cause != INSIDE]
    found = {cause: rates for cause, way in ways if (rates := rates_of(replay, 2, way))}
    if not found and settings.momentum and "momentum_form" in rule.keys:
        inside = rates_of(replay, 2, CAUSES[INSIDE].changes[0])
        found = {INSIDE: inside} if inside else {}
    base = replay.torch.problem.schedule.lr
    constant = {cause: one for cause, one in found.items() if one.constant}
    spec = {cause: one for cause, one in constant.items() if one.is_one(base)}
    found = spec or constant or found
    if not found:
        return None
    told = (f"{CAUSES[cause].title}, and takes {lrs_of(one)}" for cause, one in found.items())
    (cause, rates), *others = found.items()
    own, torch = apart(rates.own, rates.torch)
    kind: Kind = "schedule-ignored" if rates.constant else "other-lrs"
    lrs = f"from step {rates.steps[0]:,} on its lrs are {own}, where torch has {torch}"
    if rates.constant:
        lrs = f"the lr schedule ({listed(rates.torch, 3)}) is not applied"
    if not others:
        lrs, kind = f"{CAUSES[cause].fix}; {lrs}", "says-next"
    return Evidence(f"The scratch side {'; or it '.join(told)}", f": {lrs}.", kind)


def lrs_of(rates: Rates) -> str:
    """Describe the scratch side's lrs."""
    return f"the constant lr {rates.own[0]:.6g}" if rates.constant else "other lrs"


def other_clip(replay: Replay, rates: Rates) -> Evidence | None:
    """Describe other lrs by their factors where torch clips: another clip has such factors too."""
    problem = replay.torch.problem
    if (problem.clip_norm is None and problem.clip_value is None) or not rates.torch.all():
        return None
    factors, _ = apart(rates.own / rates.torch, np.ones_like(rates.own))
    clip = "the spec's clip_value"
    if problem.clip_norm is not None:
        clip = f"torch's g · min(1, {problem.clip_norm:g}/(‖g‖ + 1e-6))"
    return Evidence(
        "The updates are torch's times another number in each step",
        f": from step {rates.steps[0]:,} on {factors}. Compare the clipped gradient with {clip}, "
        "and then the lr.",
        "says-next",
    )


DIVIDED = {
    "its norm": "{c}/‖g‖, with ‖g‖ over all tensors: do not divide by it",
    "2 √loss": "{c}/(2 √loss), which is the gradient of √loss: do not take the root",
}
"""By what a gradient is divided: what its steps' lrs are then, and what to do."""


def divided(replay: Replay, rates: Rates) -> Evidence | None:
    """Describe lrs c/x, with x a number of each step's by which code may divide its gradient."""
    history, at = replay.history, np.array(rates.steps) - 1
    norms = np.linalg.norm(history.all("gradient")[at], axis=1)
    for text, x in zip(DIVIDED, (norms, 2 * np.sqrt(history.loss("framework")[at])), strict=True):
        c = rates.own * x
        middle = float(np.median(c))
        if len(at) > 2 and (np.abs(c - middle) <= rates.slack * x + ROOT_SLACK * middle).all():
            rest = DIVIDED[text].format(c=f"{middle:.6g}")
            clause = f"The updates are torch's with the gradient divided by {text}"
            return Evidence(clause, f": each step's lr is {rest}.", "says-next")
    return None


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


def apart(own: Array, torch: Array) -> tuple[str, str]:
    """List the first values of both sides, with as many digits as it takes to differ."""
    pairs = [(listed(own, digits=count), listed(torch, digits=count)) for count in DIGITS]
    return next((pair for pair in pairs if pair[0] != pair[1]), pairs[0])


def listed(values: Array, most: int = MOST_RATES, digits: int = DIGITS[0]) -> str:
    """List the first values."""
    some = ", ".join(f"{value:.{digits}g}" for value in values[:most])
    return some + (", .." if len(values) > most else "")
