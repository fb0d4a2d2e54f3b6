"""What is known of Nesterov's momentum as textbooks have it, by the gradient at another point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from typing import Literal, NamedTuple

import numpy as np

from regcheck.compare.history import Record
from regcheck.diagnosis.evidence.record import Evidence
from regcheck.diagnosis.fits.other_inputs import afters
from regcheck.diagnosis.records import Run
from regcheck.diagnosis.replay import Replay
from regcheck.problem.problem import Array, Step
from regcheck.rules.causes.cause import Change
from regcheck.trainers.numpy_state import ForwardBackward

MOST = 512
"""Steps that torch is asked for a gradient at, from the first on."""


Velocity = Literal["torch", "lr-inside"]


class Form(NamedTuple):
    """A form of this momentum: whether v has the lr in it, and where weight decay is taken."""

    velocity: Velocity
    decayed: Literal["here", "ahead"]


def looks_ahead(run: Run, replay: Replay) -> Evidence | None:
    """Describe steps by torch's gradients at w + μ (w − w₋₁); None if they are not.

    v ← μ v + g(w − lr μ v), w ← w − lr v; where the lr varies, v ← μ v + lr g(w − μ v), w ← w − v
    too. Weight decay is of w, or of the point as well. At a constant lr φ = w + μ (w − w₋₁) goes
    by torch's `nesterov` (Sutskever et al., 2013; Bengio et al., 2013):

        φ′ = w′ + μ (w′ − w) = φ − lr (g(φ) + μ v′)
    """
    settings = replay.torch.settings
    moving = settings.optimizer == "sgd" and settings.momentum and not settings.dampening
    if not moving or not run.scratch_is_reference:
        return None
    records = list(islice(replay.history.records(), MOST))
    varies, decays = run.training.lr_varies, any(settings.weight_decay.values())
    for form in (
        Form("torch", "here"),
        *([Form("lr-inside", "here")] if varies else []),
        *([Form("torch", "ahead")] if decays else []),
        *([Form("lr-inside", "ahead")] if varies and decays else []),
    ):
        change: Change = {"nesterov": "missing", "momentum_form": form.velocity}
        problem = replay.torch.problem.with_change(change)
        rule = replay.torch.by(replace(problem, clip_norm=None, clip_value=None))
        if replay.largest(afters(replay, rule, records, passes_ahead(run, replay, form))) <= 1:
            same = not varies and (form.decayed == "ahead" or not decays)
            which = "all" if len(records) == len(replay.history) else "the first"
            return described(settings.momentum, f"{which} {len(records):,} steps", same=same)
    return None


def passes_ahead(run: Run, replay: Replay, form: Form) -> Callable[[Record], ForwardBackward]:
    """Return a function of a step: torch's pass over its rows at w + μ (w − w₋₁).

    Its gradient is clipped as the spec says; with weight decay there, it has λ μ (w − w₋₁) more.
    """
    history, settings = replay.history, replay.torch.settings
    each = [
        np.full(part.stop - part.start, settings.weight_decay[name])
        for name, part in history.slices.items()
    ]
    decays = np.concatenate(each) if form.decayed == "ahead" else 0.0
    step_ahead = steps_ahead(run, replay, form.velocity)

    def known(record: Record) -> ForwardBackward:
        moved, there = step_ahead(record)
        assert there.gradient is not None
        return replay.pass_with(record, history.flat(there.gradient) + decays * moved)

    return known


def steps_ahead(
    run: Run, replay: Replay, velocity: Velocity
) -> Callable[[Record], tuple[Array, Step]]:
    """Return a function of a step: how far ahead of w it looks, and what torch makes of it there.

    That is μ (w − w₋₁), times lr/lr₋₁ where v has no lr in it.
    """
    history, momentum = replay.history, replay.torch.settings.momentum
    before, lrs = history.all("before"), [one.batch.lr for one in history.records()]

    def step_ahead(record: Record) -> tuple[Array, Step]:
        at = record.batch.step - 1
        moved = momentum * (before[at] - before[max(0, at - 1)])
        if velocity == "torch" and at:
            moved *= lrs[at] / lrs[at - 1] if lrs[at - 1] else 0.0
        return moved, run.sides.probe.pass_at(history.split(before[at] + moved), record.batch)

    return step_ahead


def loss_ahead(run: Run, replay: Replay) -> Evidence | None:
    """Say that the reported losses are those at the look-ahead point too; None if they are not."""
    records = list(islice(replay.history.records(), MOST))
    reported, bound = (replay.history.loss(one)[: len(records)] for one in ("scratch", "bound"))
    velocities: tuple[Velocity, ...] = ("torch", "lr-inside")
    for velocity in velocities if run.training.lr_varies else velocities[:1]:
        step_ahead = steps_ahead(run, replay, velocity)
        off = np.abs(reported - [step_ahead(record)[1].loss for record in records])
        if (off <= run.limits["loss"] * bound).all():
            return Evidence(
                "the scratch side's loss is that at the look-ahead point",
                ": report the loss at the parameters w before the update, or set "
                "`compare: [parameters]`.",
            )
    return None


def described(momentum: float, steps: str, *, same: bool) -> Evidence:
    """Say where the gradient is taken in which steps, and how to compare it with torch's.

    `same` is whether the points at which it is taken are torch's parameters.
    """
    ahead = f"w + {momentum:g} (w − w₋₁)"
    clause = f"The gradient is taken at the look-ahead point {ahead}, torch's at w"
    rest = (
        f", which makes {steps}: take it at w, and step by lr (g + {momentum:g} v), as torch does "
    )
    rest += "with `nesterov: true`"
    if same:
        rest += (
            f"; or yield {ahead} of the updated w, which torch's parameters are then: it is the "
        )
        rest += "same method in other variables"
    return Evidence(clause, f"{rest}.", "look-ahead")
