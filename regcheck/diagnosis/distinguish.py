"""What would tell two explanations apart: other trainings, tried with both rules.

The rules are trained on a few rows of a spec's own kind under one changed circumstance after the
other; the first under which they part is told.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from regcheck.diagnosis.replay import Explanation
from regcheck.problem.problem import OWN_MODEL, Array, Parameters, Problem
from regcheck.rules.cause import put_in
from regcheck.rules.convention import is_bias
from regcheck.spec.training import LrSchedule, Sgd
from regcheck.trainers.numpy_trainer import NumpyTrainer

ROWS, FEATURES, STEPS = 12, 2, 6

FACTORS = ("penalty_factor", "gradient_factor", "lr_factor")
"""Keys that hold a fitted factor."""


def small(problem: Problem) -> Problem:
    """Make a problem of a few rows with a problem's settings, away from zero."""
    draw = np.random.default_rng(0)
    X = draw.normal(size=(ROWS, FEATURES))
    y = np.arange(ROWS) % 3 / 2.0
    batch = ROWS if problem.schedule.batch_size >= problem.schedule.rows else 4
    schedule = replace(
        problem.schedule,
        rows=ROWS,
        epochs=STEPS,
        batch_size=batch,
        accumulate=min(problem.schedule.accumulate, 2),
        drop_last=False,
        shuffle_seed=None,
    )
    lr = schedule.lr or 0.1
    decay = problem.weight_decay
    decays = {"weight": decay.get("weight", max(decay.values(), default=0.0))}
    initial: Parameters = {"weight": draw.normal(size=(1, FEATURES))}
    if any(map(is_bias, decay)):
        decays["bias"] = decay.get("bias", min(decay.values()))
        initial["bias"] = draw.normal(size=1)
    return replace(
        problem,
        model=problem.model if problem.model != OWN_MODEL else "linear",
        loss=problem.loss if problem.model != OWN_MODEL else "mse",
        X=X,
        y=(y > 0.25).astype(np.float64) if problem.model == "logistic" else y,
        schedule=replace(schedule, lr=lr),
        initial=initial,
        weight_decay=decays,
        scratch_dtype="float64",
        framework_dtype="float64",
    )


def with_batches(size: int) -> Callable[[Problem], Problem]:
    """Change the rows of a batch."""
    return lambda problem: replace(problem, schedule=replace(problem.schedule, batch_size=size))


def with_momentum(problem: Problem) -> Problem:
    """Give the optimizer momentum."""
    return replace(problem, optimizer=Sgd(name="sgd", momentum=0.9))


def with_schedule(problem: Problem) -> Problem:
    """Let the lr change."""
    lr_schedule = LrSchedule(kind="step", every=2, factor=0.5, per="step")
    return replace(problem, schedule=replace(problem.schedule, lr_schedule=lr_schedule))


def with_decay(problem: Problem) -> Problem:
    """Penalize, or penalize otherwise."""
    decays = {name: 1.7 * (decay or 0.1) for name, decay in problem.weight_decay.items()}
    return replace(problem, weight_decay=decays)


def with_other_lr(problem: Problem) -> Problem:
    """Change the lr."""
    return replace(problem, schedule=replace(problem.schedule, lr=0.7 * problem.schedule.lr))


AS_IT_IS = "as it is"
"""The small problem itself: what it has that the run has not is told by `unlike`."""

PROBES: dict[str, Callable[[Problem], Problem]] = {
    AS_IT_IS: lambda problem: problem,
    "mini-batches": with_batches(4),
    "mini-batches with a smaller last one": with_batches(5),
    "another lr": with_other_lr,
    "another weight_decay": with_decay,
    "an lr that changes": with_schedule,
    "momentum": with_momentum,
    "momentum and an lr that changes": lambda problem: with_schedule(with_momentum(problem)),
}
"""Circumstances under which two rules may part, the plainest first."""


def telling_apart(torch: Problem, found: Sequence[Explanation]) -> tuple[str, ...]:
    """Say for each explanation but the first what would tell it from the first; "" if nothing."""
    return tuple(told(torch, found[0], one) if place else "" for place, one in enumerate(found))


def told(torch: Problem, one: Explanation, other: Explanation) -> str:
    """Give the first circumstance under which two explanations part."""
    base = small(torch)
    scaled = sizes(torch, base)
    for name, probe in PROBES.items():
        problem = probe(base)
        with np.errstate(all="ignore"):
            ends = [trained(problem, explanation, scaled) for explanation in (one, other)]
        if all(np.isfinite(end).all() for end in ends):
            apart = np.abs(ends[0] - ends[1]).max(axis=1) / max(1.0, np.abs(ends[0]).max())
            if (apart > 1e-6).any():
                step = int(np.argmax(apart > 1e-6)) + 1
                return unlike(torch, step) if name == AS_IT_IS else name
    return ""


def unlike(torch: Problem, step: int) -> str:
    """Say what lets two rules part at a step of the small problem, where the run did not."""
    if step > torch.schedule.steps:
        return "more steps"
    if not all(map(np.any, torch.initial.values())):
        return "a start away from zero"
    return "other data"


def sizes(torch: Problem, base: Problem) -> dict[float, float]:
    """Give what stands for the rows of a batch, and of all, in the small problem."""
    pairs = [
        (min(problem.schedule.batch_size, problem.schedule.rows), problem.schedule.rows)
        for problem in (torch, base)
    ]
    found: dict[float, float] = {}
    for there, here in zip(*pairs, strict=True):
        found |= {float(there): float(here), 1 / there: 1 / here}
    return found


def near(value: float, scaled: dict[float, float]) -> float:
    """Give what stands for a fitted factor in the small problem: itself, unless it is a size."""
    for there, here in scaled.items():
        if there != 1 and math.isclose(value, there, rel_tol=1e-9):
            return here
    return value


def trained(problem: Problem, explanation: Explanation, scaled: dict[float, float]) -> Array:
    """Train by a rule; gives all parameters after each step."""
    change = {**explanation.change}
    for key, value in change.items():
        if key in FACTORS and isinstance(value, float):
            change[key] = near(value, scaled)
    convention, faults = put_in(change, problem.convention, problem.faults)
    trainer = NumpyTrainer(replace(problem, convention=convention, faults=faults))
    state, found = trainer.start(), []
    for batch in problem.schedule.batches():
        state = trainer.step(state, batch).state
        found.append(np.concatenate([np.ravel(w) for w in state.parameters.values()]))
        if len(found) == STEPS:
            break
    return np.array(found)
