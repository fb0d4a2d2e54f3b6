"""What is known of a divergence that no cause explains: where it is, and who is right."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from regcheck.compare.history import History, Record
from regcheck.diagnosis.loss_evidence import finite_differences
from regcheck.diagnosis.other_settings import deltas, scratch_deltas, window, without_penalty
from regcheck.diagnosis.records import EffectiveSettings, Run
from regcheck.diagnosis.replay import Replay
from regcheck.diagnosis.search import LATE
from regcheck.numerics.least_squares import ROUNDED, SLACK, fit_all, fit_columns, fit_each
from regcheck.problem.problem import Array
from regcheck.rules.convention import is_bias
from regcheck.rules.settings import Training

MOST_RATES = 6
"""The lrs that are listed."""

MOST_TENSORS = 6
"""Tensors that are named."""


def without_cause(
    run: Run, replay: Replay, settings: Mapping[str, EffectiveSettings]
) -> tuple[list[str], str]:
    """Describe what is known where nothing in the catalogue explains the updates; and the stage."""
    evidence = late_evidence(run)
    record = next((one for one in run.history.records() if one.batch.step == run.first), None)
    if record is None:
        kept = len(run.history)
        text = f"Only the first {kept:,} steps are kept and could be replayed."
        return [*evidence, text], "update"
    known = not_finite(run, record) or (KEEPS_TO_IT if replay.residual({}) <= 1 else "")
    if known:
        return [*evidence, known], "update"
    agrees = gradient_agrees(run, replay, record)
    if agrees is not None:
        evidence.append(GRADIENT[agrees])
    if agrees is not False:
        for stage, describe in (("optimizer", other_rates), ("penalty", other_penalty)):
            text = describe(replay)
            if text:
                return [*evidence, text], stage
    evidence += settings_evidence(settings, run.training)
    stage = "optimizer" if agrees else "gradient"
    if agrees is None and not any(one.fits for one in settings.values()):
        text, stage = recursion_evidence(replay, run.training.sgd.momentum)
        evidence += [text] if text else []
    if stage == "gradient":
        evidence += finite_differences(run, replay, record)
    if run.scratch_is_reference and run.gradient is None:
        evidence.append(YIELD_GRADIENT)
    return evidence, stage


KEEPS_TO_IT = (
    "The scratch side makes the steps of torch's rule, by the settings of the framework side's "
    "optimizer; it is the framework side that does not. Look for what else changes its parameters: "
    "a hook, a clamp, a constraint, tied weights."
)

GRADIENT = {
    True: "The gradient that your code yields is torch's, to rounding: what differs is what the "
    "step makes of it.",
    False: "The gradient that your code yields is not torch's.",
}

YIELD_GRADIENT = (
    'If your code yields its gradient too, as {"weight": w, .., "grad": {"weight": gw, '
    "..}}, regcheck tells whether that is off, or what the step makes of it."
)


def late_evidence(run: Run) -> list[str]:
    """Describe many steps that agree before the first that does not."""
    if run.first is None or run.first <= LATE:
        return []
    text = (
        f"Steps 1 to {run.first - 1:,} agree: look at what changes in step {run.first:,}, like "
        "an lr, an epoch, or the branch of an `if`."
    )
    return [text]


def not_finite(run: Run, record: Record) -> str:
    """Describe where the scratch side's first diverging step is not finite; empty if it is."""
    lost = ~np.isfinite(record.scratch)
    if not lost.any():
        return ""
    place = int(lost.argmax())
    return (
        f"At step {record.batch.step} the scratch side gives {record.scratch[place]:g} in "
        f"{run.history.tensor_at(place)}, from numbers from which torch gives numbers: look for a "
        "division by 0, a logarithm of 0, or an exponential that overflows."
    )


def gradient_agrees(run: Run, replay: Replay, record: Record) -> bool | None:
    """Whether the scratch side's own gradient is torch's; None where it yields none."""
    sample = run.comparison.sample
    if run.gradient is None or sample is None:
        return None
    flat = run.history.flat
    differences = np.abs(flat(run.gradient) - record.gradient)
    return bool((differences <= replay.limits * flat(sample.gradient_bound)).all())


def other_rates(replay: Replay) -> str:
    """Describe steps that are torch's with another lr in each; empty if they are not.

    S_t = α_t T_t with T_t torch's own step: α_t times its lr is the lr of step t. The velocity of
    torch's momentum does not hold the lr, so that each step has its own α_t.
    """
    at = window(replay)
    scratch, limits = scratch_deltas(replay, at)
    with np.errstate(all="ignore"):
        slope, target = deltas(replay, replay.torch, at) / limits, scratch / limits
    if not (np.isfinite(slope).all() and np.isfinite(target).all()):
        return ""
    shown = (np.abs(slope) > 1).sum(axis=1) > 1
    slope, target = slope[shown], target[shown]
    alpha, spread = fit_each(slope, target, 1)
    left = np.abs(target - alpha[:, None] * slope)
    if shown.sum() < 2 or left.max() > 1 or (alpha < 0).any():
        return ""
    torch = np.array([record.batch.lr for record in replay.history.records()])[at][shown]
    own = alpha * torch
    slack = SLACK * torch * np.hypot(spread, ROUNDED * replay.u)
    constant = (np.abs(own - float(np.median(own))) <= slack + slack.max()).all()
    if constant and (torch != torch[0]).any():
        return (
            f"The steps are torch's with an lr of {own[0]:.6g} in each: the schedule, which has "
            f"{listed(torch)}, is not applied."
        )
    first = 1 + at.start + int(shown.argmax())
    return (
        f"The steps are torch's with another lr in each: from step {first:,} on {listed(own)}, "
        f"where torch has {listed(torch)}."
    )


def listed(values: Array) -> str:
    """List the first values."""
    some = ", ".join(f"{value:.6g}" for value in values[:MOST_RATES])
    return some + (", .." if len(values) > MOST_RATES else "")


def other_penalty(replay: Replay) -> str:
    """Describe steps that are torch's with a penalty of another shape; empty if they are not.

    S_t = G_t + c Q_t, where Q_t is what a penalty's gradient of another shape makes.
    """
    at, free, history = window(replay), without_penalty(replay), replay.history
    scratch, limits = scratch_deltas(replay, at)
    by_gradient, own = deltas(replay, free, at), deltas(replay, replay.torch, at)
    with np.errstate(all="ignore"):
        target, off = (scratch - by_gradient) / limits, (scratch - own) / limits
    # Some tensors, like the bias, may be free of it, or have torch's own.
    concerned = np.zeros(history.entries, dtype=bool)
    for part in history.slices.values():
        concerned[part] = all(np.abs(rest[:, part]).max() > 1 for rest in (target, off))
    for text, shape in penalties(history).items():
        with np.errstate(all="ignore"):
            slope = (deltas(replay, free, at, shape) - by_gradient) / limits
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

    def whole(record: Record) -> Array:
        return np.full_like(record.before, record.before.sum())

    def of_weights(record: Record) -> Array:
        return np.full_like(record.before, record.before[weights].sum())

    shape = "The steps are torch's with a penalty of {} %s in its gradient."
    number = (
        "The steps are torch's with one number added to the gradient of each entry, {} %s, in the "
        "place of a penalty: multiply λ by each weight, not by their sum."
    )
    return {
        shape % "sign(w), as an L1 penalty of λ Σ|w| has,": lambda record: np.sign(record.before),
        shape % "w³": lambda record: record.before**3,
        shape % "|w|": lambda record: np.abs(record.before),
        number % "Σw": of_weights,
        number % "Σw over weights and biases": whole,
        number % "Σw/B": lambda record: of_weights(record) / record.batch.size,
        number % "Σw/B over weights and biases": lambda record: whole(record) / record.batch.size,
    }


def settings_evidence(settings: Mapping[str, EffectiveSettings], training: Training) -> list[str]:
    """Describe which tensors go by torch's rule, which by it with other numbers, which by neither.

    Nothing where none goes by it, or the run does not tell.
    """
    rules: dict[str, list[str]] = {}
    for name, one in settings.items():
        rules.setdefault(rule_text(one, training.sgd.weight_decay.get(name, 0.0)), []).append(name)
    if not rules.keys() - {NEITHER}:
        return []
    verbs = {text: "go" if len(names) > 1 else "goes" for text, names in rules.items()}
    return [f"{few(names)} {verbs[text]} {text}." for text, names in rules.items()]


def few(names: list[str]) -> str:
    """Name some tensors."""
    if len(names) > MOST_TENSORS:
        names = [*names[: MOST_TENSORS - 1], f"{len(names) - MOST_TENSORS + 1} more tensors"]
        return f"{', '.join(names[:-1])} and {names[-1]}"
    return " and ".join(names)


NEITHER = "by no multiple of torch's gradient and of the parameters"


def rule_text(one: EffectiveSettings, weight_decay: float) -> str:
    """Describe by what rule one tensor goes."""
    if not one.fits or one.gradient is None:
        return NEITHER
    alpha, decay = one.gradient, one.decay
    own = decay is None or decay.is_near(weight_decay)
    if alpha.is_near(1.0) and own:
        return "by torch's rule"
    if alpha.is_near(-1.0) and (decay is None or decay.is_near(-weight_decay)):
        return "by −1 times torch's step: a sign is wrong"
    factor = "" if alpha.is_near(1.0) else f"{alpha.factor:.6g} times "
    if alpha.is_near(-1.0):
        factor = "a wrong sign: −1 times "
    penalty = ""
    if decay is not None and not own:
        penalty = f", and a penalty of {decay.factor:.6g} w"
        penalty = ", and no penalty" if decay.is_near(0.0) else penalty
    return f"by {factor}torch's gradient{penalty}"


def recursion_evidence(replay: Replay, momentum: float) -> tuple[str, str]:
    """Describe steps that are made from torch's gradients all the same; and the stage.

    All forms of momentum at a constant lr are recursions over all tensors' entries,

        S_t ≈ now g_t + last g_(t−1) + decay w_(t−1) + kept S_(t−1)

    and so is the use of the gradient of the step before. What does not fit has another gradient.
    """
    at = window(replay)
    scratch, limits = scratch_deltas(replay, at)
    gradient, before = (replay.history.all(key)[at] for key in ("gradient", "before"))
    columns = (gradient[1:], gradient[:-1], before[1:], scratch[:-1])
    rule = fit_columns(columns, scratch[1:], limits[1:], replay.u)
    if rule.entries < 2 * len(columns) or rule.residual > 100:
        return "", "gradient"
    now, last, decay, kept = (fit.factor if fit else 0.0 for fit in rule.fits)
    if abs(now) <= 1e-3 * abs(last):
        return PREVIOUS_GRADIENT, "gradient"
    if not momentum:
        return "", "gradient"
    terms = {"g": now, "times the last g": last, "times the last step": kept, "w": decay}
    least = 1e-9 * (abs(now) + abs(last))
    shown = " + ".join(f"{value:.6g} {what}" for what, value in terms.items() if abs(value) > least)
    text = (
        f"The steps are those of an optimizer all the same, which subtracts {shown}; "
        f"torch's momentum is {momentum:g}."
    )
    return text, "optimizer"


PREVIOUS_GRADIENT = (
    "Each step is made from the gradient of the step before: take the predictions and the "
    "gradient anew, from the parameters as they are."
)
