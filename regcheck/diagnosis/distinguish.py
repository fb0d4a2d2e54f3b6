"""What would distinguish two explanations: other trainings, tried by both rules.

The rules are trained on a few rows of a spec's own kind under one changed circumstance after the
other; the first under which they differ is named.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np

from regcheck.diagnosis.records import Explanation
from regcheck.problem.batches import Schedule
from regcheck.problem.problem import OWN_MODEL, Array, Parameters, Problem
from regcheck.rules.convention import is_bias
from regcheck.spec.training import LrSchedule, Sgd
from regcheck.trainers.numpy_trainer import NumpyTrainer

ROWS, FEATURES, STEPS = 12, 2, 6

FACTORS = ("penalty_factor", "gradient_factor", "lr_factor")
"""Keys that hold a fitted factor."""

AS_IT_IS = "as it is"
"""The small problem itself: what it has that the run has not is named by `unlike`."""


def with_schedule(problem: Problem, change: Callable[[Schedule], Schedule]) -> Problem:
    """Change a problem's schedule."""
    return replace(problem, schedule=change(problem.schedule))


def with_momentum(problem: Problem) -> Problem:
    """Add momentum to the optimizer."""
    return replace(problem, optimizer=Sgd(name="sgd", momentum=0.9))


def with_varying_lr(problem: Problem) -> Problem:
    """Halve the lr every two steps."""
    halving = LrSchedule(kind="step", every=2, factor=0.5, per="step")
    return with_schedule(problem, lambda schedule: replace(schedule, lr_schedule=halving))


def with_other_decay(problem: Problem) -> Problem:
    """Penalize, or penalize otherwise."""
    decays = {name: 1.7 * (decay or 0.1) for name, decay in problem.weight_decay.items()}
    return replace(problem, weight_decay=decays)


PROBES: dict[str, Callable[[Problem], Problem]] = {
    AS_IT_IS: lambda problem: problem,
    "mini-batches": lambda problem: with_schedule(problem, lambda s: replace(s, batch_size=4)),
    "mini-batches with a smaller last one": lambda problem: with_schedule(
        problem, lambda s: replace(s, batch_size=5)
    ),
    "another lr": lambda problem: with_schedule(problem, lambda s: replace(s, lr=0.7 * s.lr)),
    "another weight_decay": with_other_decay,
    "an lr that changes": with_varying_lr,
    "momentum": with_momentum,
    "momentum and an lr that changes": lambda problem: with_varying_lr(with_momentum(problem)),
}
"""Circumstances under which two rules may differ, the plainest first."""


def distinguishing(torch: Problem, found: Sequence[Explanation]) -> tuple[str, ...]:
    """Return what would tell each explanation from the first; "" for that, or if nothing would."""
    pairs = [(found[0], one) for one in found]
    return tuple(probe_of(torch, pair) if place else "" for place, pair in enumerate(pairs))


def probe_of(torch: Problem, pair: tuple[Explanation, Explanation]) -> str:
    """Return the first circumstance under which two explanations differ."""
    base = small(torch)
    scaled = standing_for(torch, base)
    for name, probe in PROBES.items():
        problem = probe(base)
        with np.errstate(all="ignore"):
            one, other = (trained(problem, explanation, scaled) for explanation in pair)
        if np.isfinite(one).all() and np.isfinite(other).all():
            differ = np.abs(one - other).max(axis=1) / max(1.0, np.abs(one).max()) > 1e-6
            if differ.any():
                return unlike(torch, int(differ.argmax()) + 1) if name == AS_IT_IS else name
    return ""


def small(problem: Problem) -> Problem:
    """Make a problem of a few rows with a problem's settings, away from zero."""
    draw = np.random.default_rng(0)
    X = draw.normal(size=(ROWS, FEATURES))
    y = np.arange(ROWS) % 3 / 2.0
    own, decay = problem.schedule, problem.weight_decay
    schedule = replace(
        own,
        rows=ROWS,
        epochs=STEPS,
        batch_size=ROWS if own.batch_size >= own.rows else 4,
        accumulate=min(own.accumulate, 2),
        drop_last=False,
        shuffle_seed=None,
        lr=own.lr or 0.1,
    )
    decays = {"weight": decay.get("weight", max(decay.values(), default=0.0))}
    initial: Parameters = {"weight": draw.normal(size=(1, FEATURES))}
    if any(map(is_bias, decay)):
        decays["bias"] = decay.get("bias", min(decay.values()))
        initial["bias"] = draw.normal(size=1)
    one_layer = problem.model != OWN_MODEL
    return replace(
        problem,
        model=problem.model if one_layer else "linear",
        loss=problem.loss if one_layer else "mse",
        X=X,
        y=(y > 0.25).astype(np.float64) if problem.model == "logistic" else y,
        schedule=schedule,
        initial=initial,
        weight_decay=decays,
        scratch_dtype="float64",
        framework_dtype="float64",
    )


def unlike(torch: Problem, step: int) -> str:
    """Return what lets two rules differ at a step of the small problem, where the run did not."""
    if step > torch.schedule.steps:
        return "more steps"
    if not all(map(np.any, torch.initial.values())):
        return "a start away from zero"
    return "other data"


def standing_for(torch: Problem, base: Problem) -> dict[float, float]:
    """Return what stands for the rows of a batch, and of all, in the small problem."""
    found: dict[float, float] = {}
    there, here = torch.schedule, base.schedule
    batches = (min(one.batch_size, one.rows) for one in (there, here))
    for of_torch, of_base in (tuple(batches), (there.rows, here.rows)):
        found |= {float(of_torch): float(of_base), 1 / of_torch: 1 / of_base}
    return found


def trained(problem: Problem, explanation: Explanation, scaled: dict[float, float]) -> Array:
    """Train by a rule; returns all parameters after each step."""
    change = {**explanation.change}
    for key, value in change.items():
        if key in FACTORS and isinstance(value, float):
            sizes = (one for one in scaled if one != 1 and math.isclose(value, one, rel_tol=1e-9))
            change[key] = scaled.get(next(sizes, math.nan), value)
    trainer = NumpyTrainer(problem.with_change(change))
    state, found = trainer.start(), []
    for batch in islice(problem.schedule.batches(), STEPS):
        state = trainer.step(state, batch).state
        found.append(np.concatenate([np.ravel(w) for w in state.parameters.values()]))
    return np.array(found)
