"""What is known of updates that no cause explains: where they differ, how, and who is right."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from regcheck.compare.history import History, Record
from regcheck.diagnosis.fits.moves import Moves, implied_gradient
from regcheck.diagnosis.records import NO_RULE, NO_SETTINGS, EffectiveSettings, Run
from regcheck.diagnosis.replay import Replay
from regcheck.diagnosis.search import LATE
from regcheck.numerics.least_squares import fit_all, fit_columns
from regcheck.problem.problem import Array
from regcheck.rules.convention import is_bias
from regcheck.rules.settings import Training
from regcheck.rules.words import all_of

LOSS_DIFFERS = "The loss differs already"

NEVER = "never updated"
"""How a tensor goes that no step changes."""

FROZEN = "though frozen in torch (requires_grad is False)"

NOT_GIVEN = "though not in torch's optimizer"

MOST_TENSORS = 6
"""Tensors that are named."""

MOST_PROBED = 12
"""Entries whose derivative is taken by finite differences."""

NEARER = 0.1
"""How much nearer to a derivative one gradient must be than the other."""

RELIABLE = 0.25
"""How far two finite differences may be apart, of what the two gradients are apart."""

FLOORED = 27.0
"""z beyond which torch's BCELoss no longer follows its own logarithm: p (1 − p) is 1e-12 there."""


def late_evidence(run: Run) -> list[str]:
    """Describe many steps that agree before the first that does not."""
    if run.first is None or run.first <= LATE:
        return []
    text = (
        f"Steps 1 to {run.first - 1:,} agree: look at what changes in step {run.first:,}, such "
        "as the lr, the epoch, or the branch of an `if`."
    )
    return [text]


def not_finite(run: Run, record: Record) -> str:
    """Describe where the scratch side's first diverging step is not finite; empty if it is."""
    lost = ~np.isfinite(record.scratch)
    if not lost.any():
        return ""
    place = int(lost.argmax())
    counts = "counts_from" in run.torch.settings.rule.keys
    corrected = " (by 1 − βᵗ, if t starts at 0)" if counts else ""
    return (
        f"{run.history.tensor_at(place)} is {record.scratch[place]:g} after step "
        f"{record.batch.step:,} of the scratch side, where torch's step gives finite numbers from "
        f"the same parameters: look for a division by 0{corrected}, a logarithm of 0, or an "
        "exponential that overflows."
    )


def gradient_agrees(run: Run, replay: Replay, record: Record) -> bool | None:
    """Whether the scratch side's own gradient is torch's; None where it yields none."""
    sample = run.comparison.sample
    if run.gradient is None or sample is None:
        return None
    flat = run.history.flat
    differences = np.abs(flat(run.gradient) - record.gradient)
    return bool((differences <= replay.limits * flat(sample.gradient_bound)).all())


def other_penalty(replay: Replay) -> str:
    """Describe steps that are torch's with a penalty of another shape; empty if they are not.

    S_t = G_t + c Q_t, where Q_t is what a penalty's gradient of another shape makes.
    """
    moves, history = Moves(replay), replay.history
    by_gradient, limits = moves.by_gradient(), moves.limits
    with np.errstate(all="ignore"):
        target = (moves.scratch - by_gradient) / limits
        off = (moves.scratch - moves.by_torch()) / limits
    # Some tensors, like the bias, may be free of it, or have torch's own.
    concerned = np.zeros(history.entries, dtype=bool)
    for part in history.slices.values():
        concerned[part] = all(np.abs(rest[:, part]).max() > 1 for rest in (target, off))
    for text, shape in penalties(history).items():
        with np.errstate(all="ignore"):
            slope = (moves.by_gradient(shape) - by_gradient) / limits
        if not (np.isfinite(slope).all() and np.isfinite(target).all()):
            continue
        here, there = slope[:, concerned], target[:, concerned]
        if here.any():
            strength, _ = fit_all(here, there)
            if strength and np.abs(there - strength * here).max() <= 1:
                return text.format(f"{strength:.6g}")
    return ""


def penalties(history: History) -> dict[str, Callable[[Record], Array]]:
    """Return other penalties' gradients, by what they are: functions of a step."""
    weights = np.zeros(history.entries, dtype=bool)
    for name, part in history.slices.items():
        weights[part] = not is_bias(name)

    def sums(entries: NDArray[np.bool_], *, by_row: bool) -> Callable[[Record], Array]:
        def added(record: Record) -> Array:
            total = record.before[entries].sum() / (record.batch.size if by_row else 1)
            return np.full_like(record.before, total)

        return added

    every = np.ones_like(weights)
    shape = "The updates are torch's with weight decay whose gradient is {} %s."
    number = (
        "The updates are torch's with one number, {} %s, added to each entry of the gradient as "
        "weight decay: multiply λ by each weight, not by their sum."
    )
    return {
        shape % "sign(w), as of an L1 term λ Σ|w|": lambda record: np.sign(record.before),
        shape % "w³": lambda record: record.before**3,
        shape % "|w|": lambda record: np.abs(record.before),
        number % "Σw": sums(weights, by_row=False),
        number % "Σw over weights and biases": sums(every, by_row=False),
        number % "Σw/B": sums(weights, by_row=True),
        number % "Σw/B over weights and biases": sums(every, by_row=True),
    }


def settings_evidence(
    settings: Mapping[str, EffectiveSettings], training: Training, known: Mapping[str, str]
) -> list[str]:
    """Describe which tensors go by torch's rule, which by it with other numbers, which by neither.

    Nothing where none goes by it, or the run does not tell. Of some, `known` has how they go.
    """
    rules: dict[str, list[str]] = {}
    for name, one in settings.items():
        rule = one.rule(training.settings.weight_decay.get(name, 0.0))
        rules.setdefault(known.get(name, f"updated {rule}"), []).append(name)
    if not rules.keys() - {f"updated {rule}" for rule in (NO_RULE, NO_SETTINGS)}:
        return []
    return [
        f"{all_of(names, most=MOST_TENSORS)} {'are' if len(names) > 1 else 'is'} {text}."
        for text, names in rules.items()
    ]


def updated_by_one_side(run: Run) -> dict[str, str]:
    """Say which tensors the steps of one side alone change, by name, and what keeps torch's."""
    tensors, untrained = run.sides.probe.tensors, run.sides.probe.module.untrained()
    before, *sides = (run.history.all(key) for key in ("before", "scratch", "framework"))
    found: dict[str, str] = {}
    for name, part in run.history.slices.items():
        scratch, torch = (bool((after[:, part] != before[:, part]).any()) for after in sides)
        if torch and not scratch:
            found[name] = NEVER
        elif scratch and not torch and name in untrained:
            frozen = not tensors[name].requires_grad
            found[name] = f"updated, {FROZEN if frozen else NOT_GIVEN}"
    return found


def differing_loss(run: Run) -> list[str]:
    """Describe a loss that differs at the very step at which the parameters first do."""
    loss, on_drift = run.comparison.losses.divergence, run.spec.tolerance.of("loss").on_drift
    if loss is None or loss.step != run.first or (on_drift and loss.step > 1):
        return []
    text = (
        f"{LOSS_DIFFERS} at step {loss.step:,}, computed from the same parameters: the "
        "forward pass, the loss or the data differ, and not the update alone."
    )
    return [text]


def recursion_evidence(replay: Replay, momentum: float) -> tuple[str, str]:
    """Describe steps that are made from torch's gradients all the same; and the stage.

    All forms of momentum at a constant lr are recursions over all tensors' entries,

        S_t ≈ now g_t + last g_(t−1) + decay w_(t−1) + kept S_(t−1)

    and so is the use of the gradient of the step before. What does not fit has another gradient.
    """
    moves = Moves(replay)
    gradient, before = (replay.history.all(key)[moves.at] for key in ("gradient", "before"))
    columns = (gradient[1:], gradient[:-1], before[1:], moves.scratch[:-1])
    rule = fit_columns(columns, moves.scratch[1:], moves.limits[1:], replay.u)
    if rule.entries < 2 * len(columns) or rule.residual > 100:
        return "", "gradient"
    now, last, decay, kept = (fit.factor if fit else 0.0 for fit in rule.fits)
    if abs(now) <= 1e-3 * abs(last):
        return (PREVIOUS_VELOCITY, "optimizer") if momentum else (PREVIOUS_GRADIENT, "gradient")
    if not momentum:
        return "", "gradient"
    terms = {"g": now, "times the previous g": last, "times the previous update": kept, "w": decay}
    least = 1e-9 * (abs(now) + abs(last))
    shown = " + ".join(f"{value:.6g} {what}" for what, value in terms.items() if abs(value) > least)
    text = f"Each update subtracts {shown}; torch's momentum is {momentum:g}."
    return text, "optimizer"


PREVIOUS_GRADIENT = (
    "Each update uses the gradient of the previous step: compute the predictions and the "
    "gradient anew, from the current parameters."
)


PREVIOUS_VELOCITY = (
    "Each update uses the velocity, or the gradient, of the previous step: swap the two lines, to "
    "update the velocity first and then the parameters by it; or, as both make the same numbers, "
    "look for predictions that are not computed anew."
)


def finite_differences(run: Run, replay: Replay, record: Record) -> list[str]:
    """Take the derivative by central differences of torch's loss: with whom does it side?

    The scratch side's gradient is its own, or else what it must have been to make its step by
    torch's rule.
    """
    own = run.gradient
    implied = run.history.flat(own) if own is not None else implied_gradient(replay, record)
    if implied is None:
        return []
    apart = np.abs(implied - record.gradient)
    order = np.argsort(-apart)[:MOST_PROBED]
    derivative = central_differences(run, record, order, apart[order])
    if derivative is None:
        return []
    scratch_off = float(np.abs(implied[order] - derivative).max())
    torch_off = float(np.abs(record.gradient[order] - derivative).max())
    if not torch_off < NEARER * scratch_off < math.inf:
        return []
    text = (
        f"Finite differences of the loss confirm torch's gradient: at step {record.batch.step} "
        f"they differ from it by at most {torch_off:.1e}, and from the gradient of your update by "
        f"{scratch_off:.1e}, most in {run.history.tensor_at(int(order[0]))}."
    )
    return [text]


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
