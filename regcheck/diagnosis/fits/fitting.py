"""Causes that leave a factor open: the one that makes the scratch side's steps.

Where a step is an affine function of a factor c, as an SGD step is of one on the penalty, on the
gradient or on the lr (all but decay after the update), the steps P₁ and P₂ at two factors give all,

    P(c) = P₁ + (c − c₁)/(c₂ − c₁) (P₂ − P₁)

and weighted least squares gives c. Where what it multiplies goes through a clip or a root, Newton's
method does, from several first guesses.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from regcheck.diagnosis.fits.newton import Open, misses, solve
from regcheck.diagnosis.records import Explanation
from regcheck.diagnosis.replay import Replay
from regcheck.numerics.least_squares import SLACK, Fit, fit_all, rounded
from regcheck.problem.problem import Array, Problem
from regcheck.rules.causes.catalogue import CAUSES
from regcheck.rules.causes.cause import Change, named_factors
from regcheck.rules.settings import Training

FEW = 4
"""Informative steps after which a fit that does not hold is given up."""

COARSE = 1e3
"""Limits that a first fit may leave: from far off, rounding is multiplied by the way to c."""

NEARER = 10.0
"""Limits that the next may leave."""

GRADIENTS = (1.0, 1e-3, 1e3)
"""First guesses of a factor on a gradient that is clipped."""

INVERSES = (1.0, 30.0, 1e3)
"""First guesses of one over a factor on a gradient that goes through a root."""

FACTORS = (1.0, 0.0, 30.0)
"""First guesses of a factor on a penalty that goes through a root."""

WELL_KNOWN = 0.1
"""The largest deviation, as a share of it, of a factor that is known."""


def fitted_factor(replay: Replay, change: Change, key: str) -> Fit | None:
    """Fit the factor under a key, on top of a change; None: none explains the steps, or any."""
    problem = replay.torch.problem
    clipped = problem.clip_norm or problem.clip_value
    if clipped and key == "gradient_factor":
        return None if change else fit_clipped(replay)
    if not is_affine(replay, change, key):
        smooth = replay.torch.settings.rule.smooth
        return fit_by_newton(replay, change, key) if smooth else None
    fit, factor = None, 1.0
    for coarse, most in ((COARSE, FEW), (NEARER, 64), (1.0, None)):
        fit = fit_near(replay, change, key, factor, coarse=coarse, most=most)
        if fit is None:
            return None
        factor = fit.factor
    return fit


def with_factor(
    replay: Replay,
    names: tuple[str, ...],
    change: Change,
    cause: str,
    fit: Fit,
    training: Training,
) -> Explanation | None:
    """Return a set of causes with the plainest number near a fitted one that makes every step.

    If one does in bounds that are not widened for it, what only wider ones allow is not told.
    """
    key, named = CAUSES[cause].factor_key, named_factors(cause, training)
    assert key is not None
    plainest: Explanation | None = None
    # With the lr that matches, torch's steps are as much smaller, and so is their rounding.
    share = 1.0 if key == "penalty_factor" else min(1.0, abs(fit.factor))
    parts = round(1 / abs(fit.factor)) if 0 < abs(fit.factor) < 1 else 1  # 1/7 is no short decimal
    among = (*named, math.copysign(1 / parts, fit.factor)) if parts > 1 else named
    plain = (fit.plain(among, slack=slack * share) for slack in (SLACK, 1.0))
    for near in dict.fromkeys((*plain, fit)):
        found = replay.explanation(names, {**change, key: near.factor}, {cause: near})
        if found is not None and replay.unwidened(found.change) <= 1:
            return found
        plainest = plainest or found
    return plainest


def is_affine(replay: Replay, change: Change, key: str) -> bool:
    """Whether the steps of a rule, with a change in it, are affine in a factor."""
    rule = replay.torch.settings.rule
    if rule.linear:
        return True
    if key == "lr_factor":
        return rule.proportional
    if key == "penalty_factor" and not is_coupled(replay, change):
        return True
    return "lr" in (rule.scaling or {})  # as ASGD's η (c g + (λ + ν) w)


def is_coupled(replay: Replay, change: Change) -> bool:
    """Whether the penalty of a rule, with a change in it, goes through its optimizer."""
    return replay.torch.problem.with_change(change).convention.decay in COUPLED


COUPLED = ("gradient", "before-clipping")
"""Where a penalty goes through the optimizer as the gradient does."""


def fit_by_newton(replay: Replay, change: Change, key: str) -> Fit | None:
    """Fit a factor that goes through the optimizer's root.

    A gradient c g is g with ε/c and λ/c in the places of ε and λ, so that 1/c is what is sought.
    It shows through ε alone where there is no penalty, and is not sought on top of other causes,
    but for a missing root: c m/(c² s + ε) is another step than m/(s + ε); for squares that are
    added to a start above 0: c g/√(q + c² s); and beside a penalty on top of one other.

    Of a penalty c λ w, c is what shows beside a data gradient; where it is nearly alone, the step
    c λ w/(c λ |w| + ε) is 1/(1 + x ε/(λ |w|)) in x = 1/c, and x is.
    """
    problem, of_all = replay.torch.problem, key == "gradient_factor"
    start_of_squares = problem.with_change(change).convention.accumulator_start
    by_penalty = (
        len(change) == 1 and is_coupled(replay, change) and any(problem.weight_decay.values())
    )
    if change and of_all and not ("root" in change or start_of_squares or by_penalty):
        return None
    for start, inverse in guesses(key, alone=not change):

        def rule_by(at: Sequence[float], inverse: bool = inverse) -> Problem:
            return problem.with_change({**change, key: 1 / at[0] if inverse else at[0]})

        if change and misses(replay, rule_by, start):  # one of thousands of sets of causes
            continue
        solved = solve(replay, rule_by, [start])
        if solved is not None:
            [fit] = solved.fits
            if inverse and fit.factor == 0:
                continue
            if inverse:
                fit = Fit(1 / fit.factor, fit.deviation / fit.factor / fit.factor)
            known = is_known(fit) or not inverse
            if known and is_told(replay, {**change, key: fit.factor}):
                return fit
    return None


def guesses(key: str, alone: bool) -> Iterator[tuple[Open, bool]]:
    """Yield where to begin, and whether one over the factor is sought.

    `alone` is whether the factor is sought by itself, or on top of other causes. Of the factors on
    a gradient, a lr and a penalty, that on the penalty alone may be negative.
    """
    if key == "gradient_factor":
        yield from ((Open(guess, 0.0), True) for guess in INVERSES)
        return
    least = -math.inf if key == "penalty_factor" else 0.0
    # From 1 on, a lr that is capped may move no step.
    likeliest = FACTORS[1:2] if key == "lr_factor" else FACTORS[:1]
    yield from ((Open(guess, least), False) for guess in (FACTORS if alone else likeliest))
    if key == "penalty_factor":
        yield Open(1.0, least=0.0), True
        if alone:
            yield Open(-1.0, below=0.0), True


def fit_clipped(replay: Replay) -> Fit | None:
    """Fit a factor on a gradient that is clipped, where a step is no affine function of it.

    Newton's method on the steps that are not clipped, from several first guesses.
    """
    key = "gradient_factor"
    for guess in GRADIENTS:
        fit = Fit(guess, math.inf)
        for _ in range(6):
            near = fit_near(replay, {}, key, fit.factor, share=1 - 2**-12)
            if near is None:
                break
            fit = near
        if is_known(fit) and is_told(replay, {key: fit.factor}):
            return fit
    return None


def is_known(fit: Fit) -> bool:
    """Whether the steps tell a factor to some digits."""
    return fit.deviation < WELL_KNOWN * abs(fit.factor)


def is_told(replay: Replay, change: Change) -> bool:
    """Whether a change makes the scratch side's steps, within bounds that torch's own leave.

    1e21 g is clipped like any large one, and its rounding exceeds every step: what allows torch's
    steps too says nothing.
    """
    if replay.residual(change) > 1:
        return False
    steps = replay.steps(replay.by(change))
    return replay.largest((record, record.framework) for record, _ in steps) > 1


def fit_near(
    replay: Replay,
    change: Change,
    key: str,
    factor: float,
    *,
    coarse: float = math.inf,
    most: int | None = None,
    share: float = 0.5,
) -> Fit | None:
    """Fit a factor from the steps at a first guess and at a share of it (or at 0 and 1).

    None where more than `coarse` limits are left, from at most so many informative steps.
    """
    other = factor * share if factor else 1.0
    here, there = (replay.steps(replay.by({**change, key: value})) for value in (factor, other))
    informative, slopes, rests = 0, [], []
    for (record, one), (_, two) in zip(here, there, strict=True):
        bound = record.bound * replay.limits
        slope = (two - one) / (other - factor) / bound
        rest = (record.scratch - one) / bound
        if not (np.isfinite(slope).all() and np.isfinite(rest).all()):
            return None
        slopes.append(slope)
        rests.append(rest)
        # One step tells most of what no factor makes. Least squares may leave √n in one of its n
        # entries where the right factor leaves 1 in each; without a slope, all is left.
        by, _ = fit_all(slope[None], rest[None])
        enough = max(coarse, math.sqrt(slope.size)) if slope.any() else coarse
        if left_by(by, slope, rest, other) > enough:
            return None
        informative += bool(np.abs(slope).max() > 1e-3)
        if informative == most:
            break
    slope, rest = np.array(slopes), np.array(rests)
    by, spread = fit_all(slope, rest)
    fits = math.isfinite(by) and left_by(by, slope, rest, other) <= coarse
    return rounded(factor + by, spread, replay.u) if fits else None


def left_by(by: float, slope: Array, rest: Array, other: float) -> float:
    """Return the limits that a fit leaves, whose rounding is multiplied by the way to it.

    All of the rest where there is no slope, and so no fit.
    """
    by = by if math.isfinite(by) else 0.0
    return float(np.abs(rest - by * slope).max() / (1 + abs(by / other)))
