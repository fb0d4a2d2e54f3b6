"""Update rules as text, with letters or with a spec's numbers put in, and what makes two agree.

Letters: w the weight, b the bias, g the gradient of the mean loss of the step's batch (without
the penalty), v the velocity, lr the learning rate, λ the weight decay, μ the momentum, τ the
dampening, B the rows of the step's batch, n the training rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from regcheck.convention import TORCH, Convention

TENSOR_LETTER = {"weight": "w", "bias": "b"}
WEIGHTS = frozenset({"weight"})
"""Tensors that are penalized whatever `penalize_bias` says."""


@dataclass(frozen=True)
class Training:
    """The numbers of one training that enter its update formulas.

    `batch_rows` holds the distinct numbers of rows that a step sees, the usual one first.
    """

    lr: float
    lr_varies: bool
    weight_decay: Mapping[str, float]
    momentum: float
    dampening: float
    nesterov: bool
    clipped: bool
    batch_rows: tuple[int, ...]
    train_rows: int


@dataclass(frozen=True)
class Letters:
    """What a formula is written with: letters, or numbers in their places."""

    lr: str
    weight_decay: Mapping[str, str]
    momentum: str
    dampening: str
    nesterov: bool
    clipped: bool
    batch_rows: str
    train_rows: str


SYMBOLIC = Letters("lr", {"weight": "λ", "bias": "λ"}, "", "", False, False, "B", "n")
SYMBOLIC_MOMENTUM = Letters("lr", {"weight": "λ", "bias": "λ"}, "μ", "", False, False, "B", "n")


def letters(training: Training) -> Letters:
    """Put a training's numbers in the places of the letters."""
    return Letters(
        lr="lr" if training.lr_varies else number(training.lr),
        weight_decay={
            name: number(value) if value else "" for name, value in training.weight_decay.items()
        },
        momentum=number(training.momentum) if training.momentum else "",
        dampening=number(training.dampening) if training.dampening else "",
        nesterov=training.nesterov,
        clipped=training.clipped,
        batch_rows=str(training.batch_rows[0]) if len(training.batch_rows) == 1 else "B",
        train_rows=str(training.train_rows),
    )


def number(value: float) -> str:
    """Write a number as a person would: `0.05`, `1e-08`."""
    return f"{value:g}"


def update_lines(convention: Convention, given: Letters, tensor: str = "weight") -> list[str]:
    """Write one tensor's update by a convention, one assignment a line.

    >>> update_lines(Convention(divide_penalty_by="batch"), SYMBOLIC)
    ['w ← w − lr (g + λ/B w)']
    """
    w = TENSOR_LETTER[tensor]
    lr, mu, decay = given.lr, given.momentum, convention.decay
    penalty = penalty_text(convention, given, tensor)
    gradient = gradient_text(convention, given)

    lines = []
    if given.clipped and decay == "before-clipping":
        direction = f"clip({plus(gradient, penalty)})"
    else:
        direction = f"clip({gradient})" if given.clipped else gradient
        if decay in ("gradient", "before-clipping"):
            direction = plus(direction, penalty)

    bare = direction
    step = times(lr, direction)
    if mu:
        lines.append(f"v ← {mu} v + {velocity_gain(convention, given, direction)}")
        direction = plus(bare, f"{mu} v") if given.nesterov else "v"
        step = times(lr, direction)
        if convention.momentum_form == "lr-inside":
            step = f"{times(lr, bare)} − {mu} v" if given.nesterov else "v"
    elif convention.momentum_form == "dampened":
        pass  # μ = 0: (1 − μ) g is g

    if not penalty or decay in ("gradient", "before-clipping"):
        return [*lines, f"{w} ← {w} − {step}"]
    if decay == "after-momentum":
        if convention.momentum_form == "lr-inside" and mu:
            return [*lines, f"{w} ← {w} − {step} − {times(lr, penalty)}"]
        return [*lines, f"{w} ← {w} − {times(lr, plus(direction, penalty))}"]
    if decay == "decoupled":
        return [*lines, f"{w} ← {w} − {lr}·{penalty} − {step}"]
    if decay == "decoupled-unscaled":
        return [*lines, f"{w} ← {w} − {penalty} − {step}"]
    return [*lines, f"{w} ← {w} − {step}", f"{w} ← {w} − {lr}·{penalty}"]


def penalty_text(convention: Convention, given: Letters, tensor: str) -> str:
    """Write what the penalty adds to one tensor's gradient: `0.1/1096 w`; empty where nothing.

    >>> penalty_text(Convention(penalty_factor=2.0), SYMBOLIC, "bias")
    '2·λ b'
    """
    strength = given.weight_decay[tensor]
    if not strength or convention.penalty_factor == 0 or not penalized(convention, tensor):
        return ""
    if convention.penalty_factor != 1:
        strength = f"{number(convention.penalty_factor)}·{strength}"
    divisor = {"nothing": "", "batch": given.batch_rows, "dataset": given.train_rows}
    if convention.divide_penalty_by != "nothing":
        strength = f"{strength}/{divisor[convention.divide_penalty_by]}"
    w = TENSOR_LETTER[tensor]
    return f"{strength} {w}/‖{w}‖" if convention.penalty_norm == "unsquared" else f"{strength} {w}"


def gradient_text(convention: Convention, given: Letters) -> str:
    """Write the data gradient in terms of g, the gradient of the mean loss: `0.5 g`, `B g`."""
    factors = []
    if convention.loss_factor != 1:
        factors.append(number(convention.loss_factor))
    if convention.loss_reduction == "sum":
        factors.append(given.batch_rows)
    return f"{'·'.join(factors)} g" if factors else "g"


def velocity_gain(convention: Convention, given: Letters, direction: str) -> str:
    """Write what a step adds to the velocity."""
    if convention.momentum_form == "dampened":
        return times(f"(1 − {given.momentum})", direction)
    gain = times(f"(1 − {given.dampening})", direction) if given.dampening else direction
    return times(given.lr, gain) if convention.momentum_form == "lr-inside" else gain


def plus(left: str, right: str) -> str:
    """Write a sum, of which either part may be empty."""
    return f"{left} + {right}" if left and right else left or right


def times(factor: str, term: str) -> str:
    """Write a product; a term that is a sum gets brackets."""
    return f"{factor} ({term})" if " + " in term else f"{factor} {term}"


def penalized(convention: Convention, tensor: str) -> bool:
    """Say whether a convention's penalty acts on a tensor."""
    return convention.penalize_bias or tensor in WEIGHTS


def loss_text(convention: Convention, given: Letters) -> str:
    """Write the reported loss: `mean ℓ`, `mean ℓ + λ/(2·1096) Σw²`."""
    data = "Σℓ" if convention.loss_reduction == "sum" else "mean ℓ"
    if convention.loss_factor != 1:
        data = f"{number(convention.loss_factor)} {data}"
    if not convention.penalty_in_loss:
        return data
    terms = [data]
    for tensor in given.weight_decay:
        w = TENSOR_LETTER[tensor]
        gradient = penalty_text(convention, given, tensor)
        if not gradient:
            continue
        strength = gradient.rsplit(f" {w}", 1)[0] if convention.penalty_norm == "squared" else ""
        if strength:
            terms.append(f"½·{strength} Σ{w}²")
        else:
            terms.append(f"{gradient.removesuffix(f' {w}/‖{w}‖')} ‖{w}‖")
    return " + ".join(terms)


class NoMatch(Exception):
    """No weight decay and lr of torch's make it match; the text says why."""


@dataclass(frozen=True)
class Matching:
    """What to give `torch.optim.SGD` so that it trains as the scratch side does."""

    lr: float
    weight_decay: Mapping[str, float]


def matching(convention: Convention, training: Training) -> Matching:
    """Find the lr′ and λ′ with which torch's rule becomes the convention's.

    A step without momentum is w ← w − lr (c g + κ λ w) with c the factor on the gradient and κ
    the factor on the penalty, so lr′ = lr·c and λ′ = κ λ/c. The other forms reduce to it:

    - momentum_form dampened: v is (1 − μ) times torch's, so lr′ = lr·c (1 − μ).
    - decoupled-unscaled, without momentum: κ/lr in the place of κ.
    - after-update, without momentum: (1 − lr·κ λ)(w − lr·c g), so lr′ = lr·c (1 − lr·κ λ) and
      λ′ = κ λ lr/lr′.

    Raises:
        NoMatch: where no constant lr′ and λ′ do it.
    """
    decays = {
        name: value * penalized(convention, name) * convention.penalty_factor
        for name, value in training.weight_decay.items()
    }
    decaying = any(decays.values())
    gain = gradient_gain(convention, training)
    refuse_where_nothing_matches(convention, training, decaying, gain)

    divisor = {"nothing": 1, "batch": training.batch_rows[0], "dataset": training.train_rows}
    lr = training.lr * gain
    if convention.momentum_form == "dampened" and training.momentum:
        lr *= 1 - training.momentum
        gain_on_gradient = gain
    else:
        gain_on_gradient = gain
    if lr == 0:
        raise NoMatch("the lr is 0: nothing moves, and every weight decay matches")
    strengths = {name: value / divisor[convention.divide_penalty_by] for name, value in decays.items()}
    if convention.decay == "decoupled-unscaled":
        strengths = {name: value / training.lr for name, value in strengths.items()}
    if convention.decay == "after-update" and decaying:
        shrinks = {1 - training.lr * value for value in strengths.values()}
        if len(shrinks) > 1:
            raise NoMatch("each tensor would need an lr of its own")
        shrink = shrinks.pop()
        if shrink == 0:
            raise NoMatch("lr·λ is 1: each step ends at zero")
        lr *= shrink
        gain_on_gradient *= shrink
    return Matching(lr, {name: value / gain_on_gradient for name, value in strengths.items()})


def gradient_gain(convention: Convention, training: Training) -> float:
    """Give c, the factor that a convention puts on the gradient of the mean loss."""
    gain = convention.loss_factor
    if convention.loss_reduction == "sum":
        gain *= training.batch_rows[0]
    return gain


def refuse_where_nothing_matches(
    convention: Convention, training: Training, decaying: bool, gain: float
) -> None:
    """Raise `NoMatch` with the reason where no constant lr and weight decay can match."""
    moving = bool(training.momentum)
    uneven = len(training.batch_rows) > 1
    if convention.update_order != TORCH.update_order:
        raise NoMatch("torch takes all gradients at the old parameters")
    if uneven and convention.loss_reduction == "sum":
        raise NoMatch("the batches differ in rows, so the sum is no constant multiple of the mean")
    if training.clipped and gain != 1:
        raise NoMatch("clipping acts on the scaled gradient")
    if moving and training.nesterov and convention.momentum_form == "dampened":
        raise NoMatch("Nesterov's step of a dampened velocity is no multiple of torch's")
    if moving and training.dampening and convention.momentum_form == "dampened":
        raise NoMatch("torch does not dampen the first step, and dampens with another factor")
    if moving and training.lr_varies and convention.momentum_form == "lr-inside":
        raise NoMatch("the lr changes, and torch's velocity does not hold the lr")
    if not decaying:
        return
    if gain == 0:
        raise NoMatch("the loss counts nothing, only the penalty acts")
    if convention.penalty_norm == "unsquared":
        raise NoMatch("λ w/‖w‖ is no constant multiple of w")
    if uneven and convention.divide_penalty_by == "batch":
        raise NoMatch("the batches differ in rows, so λ/B is no constant")
    if convention.decay in ("gradient",):
        return
    if convention.decay == "before-clipping":
        if training.clipped:
            raise NoMatch("torch clips before it adds the penalty")
        return
    if moving:
        raise NoMatch("with momentum, decay outside the gradient is no weight decay of torch.optim.SGD")
    if training.lr_varies and convention.decay != "after-momentum" and convention.decay != "decoupled":
        raise NoMatch("the lr changes, and this decay does not change with it as torch's does")
