"""Newton's method for numbers of a rule that are open, from a run's steps.

With S_t what the scratch side subtracts and R_t(θ) what a rule with the numbers θ does, each entry
weighted by 1/bound, each of its steps is the least squares solution of

    S_t − R_t(θ) ≈ Σ_k ∂R_t/∂θ_k δ_k        θ ← θ + δ

with the derivatives by forward differences. A few steps after the first divergence are enough to
come near, or to see that no such numbers make them; more then give the last digits. Where a set of
causes is one of thousands, the run's first two steps tell most of those that do not make them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from regcheck.diagnosis.fits.moves import MOST, Moves
from regcheck.diagnosis.replay import Replay
from regcheck.numerics.least_squares import Fit, fit_columns, rounded
from regcheck.problem.problem import Problem

FIRST = 2
"""Steps from the run's beginning that a set of causes must come near, to be looked at further."""

FIRST_FEW = 8
"""Steps that the first iterations look at."""

WINDOWS = (FIRST_FEW, 64, MOST)
"""Steps that the iterations look at, one after the other."""

ITERATIONS = 12
"""Iterations after which numbers that still move are given up."""

TOO_FAR = 1e3
"""Limits left after a window's iterations, beyond which there are no such numbers."""

PATIENCE = 3
"""Iterations one after the other that may bring nothing."""

SLOW = 0.8
"""The share of what was left before that an iteration leaves which brings nothing."""

NEAR = 1e-9
"""The share of its size by which a number still moves that stays."""

H = 2.0**-12
"""By which share of its size a number is moved for its derivative."""


class Open(NamedTuple):
    """An open number: where it starts, and its range."""

    start: float
    least: float = -math.inf
    below: float = math.inf

    def size(self, value: float) -> float:
        """Return the size of a number, or its distance from where its range ends.

        It is no less than a share of where it starts: what is varied by nearly nothing does not
        show.
        """
        least = abs(self.start) / 16 or 1.0
        return min(max(abs(value), least), self.below - value)

    def inside(self, value: float, last: float) -> float:
        """Return a number; where that is out of its range, one most of the way to its end."""
        if value >= self.below:
            return (last + self.below) / 2
        return value if value >= self.least else self.least + (last - self.least) / 16


class Solved(NamedTuple):
    """The numbers that are found, and the limits left over the last window."""

    fits: tuple[Fit, ...]
    residual: float


class Trial(NamedTuple):
    """One iteration.

    Attributes:
        fits: the numbers that it comes to; empty where the steps do not tell them.
        before: the limits that were left before it.
        unmoved: those left in entries that none of the numbers moves.
        residual: those left if the rule were linear.
        stays: whether the numbers have moved no more.
    """

    fits: tuple[Fit, ...]
    before: float
    unmoved: float
    residual: float
    stays: bool


def solve(
    replay: Replay,
    rule_by: Callable[[Sequence[float]], Problem],
    opens: Sequence[Open],
) -> Solved | None:
    """Find numbers with which a rule makes the scratch side's steps; None where none are near.

    Args:
        replay: the steps.
        rule_by: torch's rule with some numbers in the places of the open ones.
        opens: the numbers.
    """
    values = [one.start for one in opens]
    known, solved = 0, None
    for most in WINDOWS:
        moves = Moves(replay, most=most)
        if len(moves.scratch) == known:  # there are no more steps
            break
        known = len(moves.scratch)
        solved = iterated(moves, rule_by, opens, values)
        if solved is None or solved.residual > TOO_FAR:
            return None
        values = [fit.factor for fit in solved.fits]
    return solved


def iterated(
    moves: Moves,
    rule_by: Callable[[Sequence[float]], Problem],
    opens: Sequence[Open],
    start: Sequence[float],
) -> Solved | None:
    """Iterate over one window, until the numbers stay; None where they do not, or say nothing."""
    *_, trial = trials(moves, rule_by, opens, start)
    return Solved(trial.fits, trial.residual) if trial is not None and trial.stays else None


def misses(replay: Replay, rule_by: Callable[[Sequence[float]], Problem], start: Open) -> bool:
    """Whether the iterations over the run's first steps end far too far from them.

    So does one that leaves an entry there which the number does not move. Where these steps do not
    tell the number, nothing is known.
    """
    moves, left = Moves(replay, early=True, most=FIRST), 0.0
    for trial in trials(moves, rule_by, [start], [start.start]):
        if trial is None:
            return False
        if trial.unmoved > TOO_FAR:
            return True
        if not trial.fits:
            return False
        left = trial.residual if trial.stays else trial.before
    return left > TOO_FAR


def trials(
    moves: Moves,
    rule_by: Callable[[Sequence[float]], Problem],
    opens: Sequence[Open],
    start: Sequence[float],
) -> Iterator[Trial | None]:
    """Yield one iteration after the other, until the numbers stay or nothing is gained any more.

    The last is without numbers where the steps do not tell them, and None where they are none.
    """
    values, last, worse = list(start), math.inf, 0
    for _ in range(ITERATIONS):
        trial = iteration(moves, rule_by, opens, values)
        yield trial
        if trial is None or trial.stays or not trial.fits:
            return
        worse = worse + 1 if trial.before > SLOW * last else 0
        if worse == PATIENCE:
            return
        last, values = trial.before, [fit.factor for fit in trial.fits]


def iteration(
    moves: Moves,
    rule_by: Callable[[Sequence[float]], Problem],
    opens: Sequence[Open],
    values: Sequence[float],
) -> Trial | None:
    """Take one step of Newton's method; None where the rule has no finite steps."""
    sizes = [one.size(value) for one, value in zip(opens, values, strict=True)]
    base = moves.by_problem(rule_by(values))
    if base is None:
        return None
    columns = []
    for place, size in enumerate(sizes):
        moved = [*values]
        moved[place] += H * size
        other = moves.by_problem(rule_by(moved))
        if other is None:
            return None
        columns.append((other - base) / H)
    rest, u = moves.scratch - base, moves.replay.u
    if not all(bool(np.isfinite(one).all()) for one in (rest, *columns)):
        return None
    left = np.abs(rest / moves.limits)
    still = ~np.any(columns, axis=0)
    before, unmoved = (float(some.max(initial=0.0)) for some in (left, left[still]))
    found = fit_columns(columns, rest, moves.limits, u, least=1.0, rcond=1e-9)
    if not found.unique or not any(found.fits):
        return Trial((), before, unmoved, found.residual, stays=False)
    fits, stays = [], True
    for one, value, step, size in zip(opens, values, found.fits, sizes, strict=True):
        fit = step or Fit(0.0, math.inf)  # a number that shows nowhere stays
        new = one.inside(value + fit.factor * size, value)
        fits.append(rounded(new, fit.deviation * size, u))
        stays = stays and abs(new - value) <= max(fits[-1].deviation, NEAR * size)
    return Trial(tuple(fits), before, unmoved, found.residual, stays)
