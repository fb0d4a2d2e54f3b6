"""What is known of a loss and a gradient that no cause explains: which differs, who is right."""

from __future__ import annotations

import math
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from regcheck.compare.history import Record
from regcheck.diagnosis.evidence.record import Evidence, remark
from regcheck.diagnosis.fits.moves import Moves, implied_gradient
from regcheck.diagnosis.records import Run
from regcheck.diagnosis.replay import Replay
from regcheck.numerics.least_squares import fit_columns
from regcheck.problem.problem import Array
from regcheck.rules.causes.cause import Stage
from regcheck.rules.optimizers.update_rule import plus

MOST_PROBED = 12
"""Entries whose derivative is taken by finite differences."""


NEARER = 0.1
"""How much nearer to a derivative one gradient must be than the other."""


RELIABLE = 0.25
"""How far two finite differences may be apart, of what the two gradients are apart."""


FLOORED = 27.0
"""z beyond which torch's BCELoss no longer follows its own logarithm: p (1 − p) is 1e-12 there."""


def gradient_agrees(run: Run, replay: Replay, record: Record) -> bool | None:
    """Whether the scratch side's own gradient is torch's; None where it yields none."""
    sample = run.comparison.sample
    if run.gradient is None or sample is None:
        return None
    flat = run.history.flat
    differences = np.abs(flat(run.gradient) - record.gradient)
    return bool((differences <= replay.limits * flat(sample.gradient_bound)).all())


def of_gradient(step: int, *, agrees: bool) -> Evidence:
    """Say whether the scratch side's own gradient is torch's, at the one step that is looked at."""
    if not agrees:
        return remark(f"Your code's gradient is not torch's at step {step:,}.")
    return remark(
        f"Your code's gradient is torch's at step {step:,}, to rounding: the difference there is "
        "in the update."
    )


def differing_loss(run: Run) -> Evidence | None:
    """Describe a loss that differs at the very step at which the parameters first do; else None."""
    loss, on_drift = run.comparison.losses.divergence, run.spec.tolerance.of("loss").on_drift
    if loss is None or loss.step != run.first or (on_drift and loss.step > 1):
        return None
    return remark(
        f"The loss differs already at step {loss.step:,}, computed from the same parameters: the "
        "forward pass, the loss or the data differ, and not the update alone.",
        "loss-differs",
    )


def recursion_evidence(
    replay: Replay, momentum: float
) -> tuple[Evidence, Stage] | tuple[None, None]:
    """Describe steps that are made from torch's gradients all the same; and the stage.

    All forms of momentum at a constant lr are recursions over all tensors' entries,

        S_t ≈ now g_t + last g_(t−1) + decay w_(t−1) + kept S_(t−1)

    and so is the use of the gradient of the step before. Of what does not fit nothing is known.
    """
    moves = Moves(replay)
    own = recursion(moves, moves.scratch)
    if own is None:
        return None, None
    if abs(own["g"]) <= 1e-3 * abs(own["times the previous g"]):
        return (PREVIOUS_VELOCITY, "optimizer") if momentum else (PREVIOUS_GRADIENT, "gradient")
    if not momentum:
        return None, None
    torch = recursion(moves, moves.by_torch())
    torchs = f"subtracts {written(torch)}" if torch else f"momentum is {momentum:g}"
    return remark(f"Each update subtracts {written(own)}; torch's {torchs}."), "optimizer"


def recursion(moves: Moves, subtracted: Array) -> dict[str, float] | None:
    """Fit what each update subtracts; gives what each term is multiplied by, None if they fail."""
    history = moves.replay.history
    gradient, before = (history.all(key)[moves.at] for key in ("gradient", "before"))
    columns = {
        "g": gradient[1:],
        "times the previous g": gradient[:-1],
        "times the previous update": subtracted[:-1],
        "w": before[1:],
    }
    terms, limits = tuple(columns.values()), moves.limits[1:]
    rule = fit_columns(terms, subtracted[1:], limits, moves.replay.u)
    if rule.entries < 2 * len(columns) or rule.residual > 100:
        return None
    factors = (fit.factor if fit else 0.0 for fit in rule.fits)
    return dict(zip(columns, factors, strict=True))


def written(terms: dict[str, float]) -> str:
    """Write a sum of terms, but for those that come to nothing."""
    least = 1e-9 * (abs(terms["g"]) + abs(terms["times the previous g"]))
    shown = [f"{value:.6g} {what}" for what, value in terms.items() if abs(value) > least]
    return reduce(plus, shown)


PREVIOUS_GRADIENT = Evidence(
    "Each update uses the gradient of the previous step",
    ": compute the predictions and the gradient anew, from the current parameters.",
)


PREVIOUS_VELOCITY = Evidence(
    "Each update uses the velocity, or the gradient, of the previous step",
    ": swap the two lines, to update the velocity first and then the parameters by it; or, as both "
    "make the same numbers, look for predictions that are not computed anew.",
    "says-next",
)


def finite_differences(run: Run, replay: Replay, record: Record) -> Evidence | None:
    """Take the derivative by central differences of torch's loss: with whom does it side?

    The scratch side's gradient is its own, or else what it must have been to make its step by
    torch's rule.
    """
    own = run.gradient
    implied = run.history.flat(own) if own is not None else implied_gradient(replay, record)
    if implied is None:
        return None
    apart = np.abs(implied - record.gradient)
    order = np.argsort(-apart)[:MOST_PROBED]
    derivative = central_differences(run, record, order, apart[order])
    if derivative is None:
        return None
    scratch_off = float(np.abs(implied[order] - derivative).max())
    torch_off = float(np.abs(record.gradient[order] - derivative).max())
    if not torch_off < NEARER * scratch_off < math.inf:
        return None
    return remark(
        f"Finite differences of the loss confirm torch's gradient: at step {record.batch.step} "
        f"they differ from it by at most {torch_off:.1e}, and from the gradient of your update by "
        f"{scratch_off:.1e}, most in {run.history.tensor_at(int(order[0]))}."
    )


def central_differences(
    run: Run, record: Record, order: NDArray[np.intp], apart: Array
) -> Array | None:
    """Take central differences of torch's loss, (L(w + h) − L(w − h))/2h, for some entries.

    None where they tell no derivative: the loss is random, has a floor, or another slope at h/2.
    `apart` is how far the two gradients are apart in each entry, which they must tell.
    """

    def loss(entries: Array) -> float:
        return run.sides.probe.loss_at(run.history.split(entries), record.batch)

    if loss(record.before) != loss(record.before) or is_floored(run, record):
        return None
    step = float(np.finfo(run.torch.problem.framework_dtype).eps) ** (1 / 3)
    found = np.empty(len(order))
    for place, entry in enumerate(order):
        slopes = []
        for h in (step, step / 2):
            above, below = record.before.copy(), record.before.copy()
            above[entry] += h * max(1.0, abs(float(record.before[entry])))
            below[entry] -= h * max(1.0, abs(float(record.before[entry])))
            slopes.append((loss(above) - loss(below)) / float(above[entry] - below[entry]))
        reliable = abs(slopes[0] - slopes[1]) <= RELIABLE * apart[place]
        if not reliable or not any(slopes):  # of a loss that stays the same, nothing is known
            return None
        found[place] = slopes[1]
    return found


def is_floored(run: Run, record: Record) -> bool:
    """Whether torch's loss has a floor at some rows of a step."""
    if not run.sees_rows or run.torch.problem.loss != "bce":
        return False
    return any(bool((np.abs(z) > FLOORED).any()) for z, _ in run.outputs(record))
