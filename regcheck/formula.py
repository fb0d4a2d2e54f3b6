"""Update rules as text, with letters or with a spec's numbers put in, and what makes two agree.

Letters: w the weight, b the bias, g the gradient of the mean loss of the step's batch (without
the penalty), v the velocity, lr the learning rate, λ the weight decay, μ the momentum, τ the
dampening, B the rows of the step's batch, n the training rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from regcheck.convention import Convention

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


def symbols(training: Training) -> Letters:
    """Give the letters of what a training has: no μ without momentum, no λ where it is 0."""
    return Letters(
        lr="lr",
        weight_decay={name: "λ" if value else "" for name, value in training.weight_decay.items()},
        momentum="μ" if training.momentum else "",
        dampening="τ" if training.dampening else "",
        nesterov=training.nesterov,
        clipped=training.clipped,
        batch_rows="B",
        train_rows="n",
    )


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


def rule_lines(convention: Convention, given: Letters) -> list[str]:
    """Write the update of weight and bias; the bias's only where it is another.

    >>> rule_lines(Convention(penalize_bias=False), SYMBOLIC)
    ['w ← w − lr (g + λ w)', 'b ← b − lr g']
    """
    weight, bias = (update_lines(convention, given, tensor) for tensor in ("weight", "bias"))
    if bias == [line.replace("w", "b") for line in weight]:
        return [*weight[:-1], f"{weight[-1]}, b likewise"]
    return [*weight, "; ".join(bias)]


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


def one_step(convention: Convention, training: Training, w: float, g: float) -> tuple[str, float]:
    """Work out a weight's first step by hand: the sum as it is written, and its result.

    Without momentum and clipping; g is the gradient of the mean loss.

    >>> ten = Training(0.1, False, {"weight": 1.0, "bias": 1.0}, 0, 0, False, False, (2,), 2)
    >>> one_step(Convention(divide_penalty_by="batch"), ten, 1.0, -32.0)
    ('1 − 0.1 (-32 + 1/2·1)', 4.15)
    """
    lr = training.lr
    gain = gradient_gain(convention, training)
    strength = training.weight_decay["weight"] * convention.penalty_factor
    divisor = {"nothing": 1, "batch": training.batch_rows[0], "dataset": training.train_rows}
    strength /= divisor[convention.divide_penalty_by]
    pull = penalty_text(convention, letters(training), "weight")
    pull = pull.replace(" w/‖w‖", f"·{number(w / abs(w))}").replace(" w", f"·{number(w)}")
    step = f"{number(lr)} ({number(gain * g)} + {pull})"

    def penalty(at: float) -> float:
        return strength * at if convention.penalty_norm == "squared" else strength * at / abs(at)

    if convention.decay in ("gradient", "before-clipping", "after-momentum"):
        return f"{number(w)} − {step}", w - lr * (gain * g + penalty(w))
    bare = f"{number(lr)}·({number(gain * g)})"
    if convention.decay == "decoupled":
        return f"{number(w)} − {number(lr)}·{pull} − {bare}", w - lr * penalty(w) - lr * gain * g
    if convention.decay == "decoupled-unscaled":
        return f"{number(w)} − {pull} − {bare}", w - penalty(w) - lr * gain * g
    moved = w - lr * gain * g
    return f"{number(moved)} − {number(lr)}·{pull}", moved - lr * penalty(moved)


class NoMatchError(Exception):
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
        NoMatchError: where no constant lr′ and λ′ do it.
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
        # The penalty goes through the same velocity, so λ keeps its share.
        lr *= 1 - training.momentum
    if lr == 0:
        raise NoMatchError("the lr is 0: nothing moves, and every weight decay matches")
    strengths = {
        name: value / divisor[convention.divide_penalty_by] for name, value in decays.items()
    }
    if convention.decay == "decoupled-unscaled":
        strengths = {name: value / training.lr for name, value in strengths.items()}
    if convention.decay == "after-update" and decaying:
        shrinks = {1 - training.lr * value for value in strengths.values()}
        if len(shrinks) > 1:
            raise NoMatchError("each tensor would need an lr of its own")
        shrink = shrinks.pop()
        if shrink == 0:
            raise NoMatchError("lr·λ is 1: each step ends at zero")
        lr *= shrink
        gain *= shrink
    return Matching(lr, {name: value / gain for name, value in strengths.items()})


def gradient_gain(convention: Convention, training: Training) -> float:
    """Give c, the factor that a convention puts on the gradient of the mean loss."""
    gain = convention.loss_factor
    if convention.loss_reduction == "sum":
        gain *= training.batch_rows[0]
    return gain


def refuse_where_nothing_matches(
    convention: Convention, training: Training, decaying: bool, gain: float
) -> None:
    """Raise `NoMatchError` with the reason where no constant lr and weight decay can match."""
    obstacles = gradient_obstacles(convention, training, gain)
    if decaying:
        obstacles |= penalty_obstacles(convention, training, gain)
    for reason, stands in obstacles.items():
        if stands:
            raise NoMatchError(reason)


def gradient_obstacles(convention: Convention, training: Training, gain: float) -> dict[str, bool]:
    """Say what keeps the gradient and its momentum from matching: reason → whether it stands."""
    moving = bool(training.momentum)
    dampened = moving and convention.momentum_form == "dampened"
    lr_inside = moving and convention.momentum_form == "lr-inside"
    summed_unevenly = convention.loss_reduction == "sum" and len(training.batch_rows) > 1
    return {
        "torch takes all gradients at the old parameters": convention.update_order
        != "simultaneous",
        "the batches differ in rows, so their sum is no constant multiple": summed_unevenly,
        "clipping acts on the scaled gradient": training.clipped and gain != 1,
        "Nesterov's step of a dampened velocity is no multiple of torch's": (
            dampened and training.nesterov
        ),
        "torch does not dampen the first step, and dampens by another factor": (
            dampened and training.dampening != 0
        ),
        "the lr changes, and torch's velocity does not hold the lr": (
            lr_inside and training.lr_varies
        ),
    }


def penalty_obstacles(convention: Convention, training: Training, gain: float) -> dict[str, bool]:
    """Say what keeps the penalty from matching: reason → whether it stands."""
    divided_unevenly = convention.divide_penalty_by == "batch" and len(training.batch_rows) > 1
    inside = convention.decay in ("gradient", "before-clipping")
    unscaled = convention.decay in ("decoupled-unscaled", "after-update")
    return {
        "the loss counts nothing, only the penalty acts": gain == 0,
        "λ w/‖w‖ is no constant multiple of w": convention.penalty_norm == "unsquared",
        "the batches differ in rows, so λ/B is no constant": divided_unevenly,
        "torch clips before it adds the penalty": (
            convention.decay == "before-clipping" and training.clipped
        ),
        "with momentum, decay outside the gradient is no weight decay of torch.optim.SGD": (
            not inside and bool(training.momentum)
        ),
        "the lr changes, and this decay does not change with it as torch's does": (
            unscaled and training.lr_varies
        ),
    }


def torch_call(training: Training) -> str:
    """Write the call of torch's optimizer that a training stands for.

    >>> torch_call(Training(0.1, False, {"weight": 1.0, "bias": 1.0}, 0, 0, False, False, (2,), 2))
    'torch.optim.SGD(lr=0.1, weight_decay=1)'
    """
    options = [f"lr={exact(training.lr)}"]
    if training.momentum:
        options.append(f"momentum={exact(training.momentum)}")
    if training.dampening:
        options.append(f"dampening={exact(training.dampening)}")
    if training.nesterov:
        options.append("nesterov=True")
    return f"torch.optim.SGD({', '.join([*options, *decay_options(training.weight_decay)])})"


def decay_options(weight_decay: Mapping[str, float]) -> list[str]:
    """Write a weight decay as torch's argument; tensor by tensor where groups are needed."""
    values = set(weight_decay.values())
    if len(values) == 1:
        value = values.pop()
        return [f"weight_decay={exact(value)}"] if value else []
    return [f"weight_decay={exact(value)} for the {name}" for name, value in weight_decay.items()]


def exact(value: float) -> str:
    """Write a number in up to 15 digits, as many as every float64 can hold."""
    return f"{value:.15g}"
