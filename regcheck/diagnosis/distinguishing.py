"""What would tell two explanations apart: a training under another circumstance.

Both rules are trained on a few rows of a spec's own kind under one changed circumstance after the
other, and the first under which they differ is named.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice

import numpy as np

from regcheck.diagnosis.records import Explanation
from regcheck.problem.problem import AS_IT_IS, Array, Problem, small_problems
from regcheck.trainers.numpy_trainer import NumpyTrainer

FACTORS = ("penalty_factor", "gradient_factor", "lr_factor")
"""Keys that hold a fitted factor."""


def distinguishing(torch: Problem, found: Sequence[Explanation]) -> tuple[str, ...]:
    """Return what would tell each explanation from the first; "" for that, or if nothing would."""
    pairs = [(found[0], one) for one in found]
    return tuple(probe_of(torch, pair) if place else "" for place, pair in enumerate(pairs))


def probe_of(torch: Problem, pair: tuple[Explanation, Explanation]) -> str:
    """Return the first circumstance under which two explanations differ."""
    problems = small_problems(torch)
    for name, problem in problems.items():
        scaled = standing_for(torch, problem)
        one, other = (trained(problem, explanation, scaled) for explanation in pair)
        if np.isfinite(one).all() and np.isfinite(other).all():
            differ = np.abs(one - other).max(axis=1) / max(1.0, np.abs(one).max()) > 1e-6
            if differ.any():
                return unlike(torch, int(differ.argmax()) + 1) if name == AS_IT_IS else name
    return ""


def unlike(torch: Problem, step: int) -> str:
    """Return what lets two rules differ at a step of the small problem, where the run did not."""
    if step > torch.schedule.steps:
        return "more steps"
    if not all(map(np.any, torch.initial.values())):
        return "nonzero initial parameters"
    return "other data"


def standing_for(torch: Problem, small: Problem) -> dict[float, float]:
    """Return what stands for the rows of a batch, and of all, in a small problem."""
    found: dict[float, float] = {}
    there, here = torch.schedule, small.schedule
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
    for batch in islice(problem.schedule.batches(), 6):
        state = trainer.step(state, batch).state
        found.append(np.concatenate([np.ravel(w) for w in state.parameters.values()]))
    return np.array(found)
