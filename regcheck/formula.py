"""Update rules as text, with letters or with a spec's numbers put in.

Letters: w the weight, b the bias, g the gradient of the mean loss of the step's batch (without
the penalty), v the velocity (0 before step 1), lr the learning rate, λ the weight decay, μ the
momentum, τ the dampening, B the rows of the step's batch, m those of a micro-batch, n the
training rows. Where gradients are accumulated, g is the average over the step's micro-batches.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from regcheck.convention import Convention, penalized
from regcheck.training import Training

TENSOR_LETTER = {"weight": "w", "bias": "b"}

MEANINGS = {
    "w": "weight",
    "b": "bias",
    "g": "gradient of the batch's mean loss, without the penalty",
    "v": "velocity, 0 before step 1",
    "ℓ": "loss of a row",
    "lr": "learning rate",
    "λ": "weight_decay",
    "μ": "momentum",
    "τ": "dampening",
    "B": "rows of the step's batch",
    "m": "rows of a micro-batch",
    "mᵢ": "rows of micro-batch i",
    "n": "training rows",
}
"""What each letter of a formula stands for."""


def meanings(lines: Iterable[str], letters: Iterable[str] = tuple(MEANINGS)) -> list[str]:
    """Say what those of some letters mean that occur in formulas.

    >>> meanings(["w ← w − lr g"], ["g", "v", "lr"])
    ["g gradient of the batch's mean loss, without the penalty", 'lr learning rate']
    """
    text = " ".join(lines)
    return [
        f"{letter} {MEANINGS[letter]}"
        for letter in letters
        if re.search(rf"(?<!\w){letter}(?!\w)", text.replace("Σ", " "))
    ]


UNEVEN = "mᵢ"
"""Rows of a micro-batch where these differ, so that the average runs over products with them."""


class Letters(NamedTuple):
    """What a formula is written with: letters, or numbers in their places; empty where absent."""

    lr: str
    weight_decay: Mapping[str, str]
    momentum: str
    dampening: str
    nesterov: bool
    clipped: bool
    batch_rows: str
    loss_rows: str
    train_rows: str


SYMBOLIC = Letters("lr", {"weight": "λ", "bias": "λ"}, "", "", False, False, "B", "B", "n")


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
        loss_rows=loss_rows_letter(training),
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
        loss_rows=(
            str(training.loss_rows[0])
            if len(training.loss_rows) == 1
            else loss_rows_letter(training)
        ),
        train_rows=str(training.train_rows),
    )


def loss_rows_letter(training: Training) -> str:
    """Give the letter of the rows over which one loss is taken."""
    if not training.micro_rows:
        return "B"
    return "m" if len(training.micro_rows) == 1 else UNEVEN


def number(value: float) -> str:
    """Write a number as a person would: `0.05`, `1e-08`."""
    return f"{value:g}"


def factor(value: float) -> str:
    """Write a number so that a product can go on with it: `0.5`, `(-1)`."""
    return number(value) if value >= 0 else f"({number(value)})"


def exact(value: float) -> str:
    """Write a number in the fewest digits that read back as the very same one."""
    return repr(float(value)).removesuffix(".0")


def update_lines(convention: Convention, given: Letters, tensor: str = "weight") -> list[str]:
    """Write one tensor's update by a convention, one assignment a line.

    >>> update_lines(Convention(divide_penalty_by="batch"), SYMBOLIC)
    ['w ← w − lr (g + λ/B w)']
    """
    w, lr, decay = TENSOR_LETTER[tensor], given.lr, convention.decay
    penalty = penalty_text(convention, given, tensor)
    direction = gradient_text(convention, given)
    if decay == "before-clipping":
        direction = plus(direction, penalty)
    if given.clipped:
        direction = f"clip({direction})"
    if decay == "gradient":
        direction = plus(direction, penalty)

    lr_inside = given.momentum and convention.momentum_form == "lr-inside"
    if lr_inside:
        direction = times(lr, direction)
    lines = velocity_lines(convention, given, direction)
    if given.momentum:
        direction = plus(direction, f"{given.momentum} v") if given.nesterov else "v"
    step = bracketed(direction) if lr_inside else times(lr, direction)

    if not penalty or decay in ("gradient", "before-clipping"):
        return [*lines, f"{w} ← {w} − {step}"]
    if decay == "after-update":
        return [*lines, f"{w} ← {w} − {step}", f"{w} ← {w} − {lr}·{penalty}"]
    if decay == "after-momentum" and not lr_inside:
        return [*lines, f"{w} ← {w} − {times(lr, plus(direction, penalty))}"]
    shrink = penalty if decay == "decoupled-unscaled" else f"{lr}·{penalty}"
    return [*lines, f"{w} ← {w} − {shrink} − {step}"]


def velocity_lines(convention: Convention, given: Letters, direction: str) -> list[str]:
    """Write how the velocity takes up a direction; nothing without momentum."""
    mu = given.momentum
    if not mu:
        return []
    if convention.momentum_form == "dampened":
        return [f"v ← {mu} v + {times(f'(1 − {mu})', direction)}"]
    if not given.dampening:
        return [f"v ← {mu} v + {direction}"]
    dampened = times(f"(1 − {given.dampening})", direction)
    return [f"step 1: v ← {direction}", f"later: v ← {mu} v + {dampened}"]


def rule_lines(convention: Convention, given: Letters) -> list[str]:
    """Write the update of weight and bias; the bias's only where it is another.

    >>> rule_lines(Convention(penalize_bias=False), SYMBOLIC)
    ['w ← w − lr (g + λ w)', 'b ← b − lr g']
    """
    weight = update_lines(convention, given)
    bias = "; ".join(update_lines(convention, given, "bias"))
    if convention.update_order == "bias-first":
        return [f"first  {bias}", *weight[:-1], f"{weight[-1]}, with g at the new b"]
    alike = strength_text(convention, given, "weight") == strength_text(convention, given, "bias")
    return [*weight[:-1], f"{weight[-1]}, b likewise"] if alike else [*weight, bias]


def shift_text(convention: Convention, given: Letters, tensor: str) -> str:
    """Write what a step subtracts from a tensor in all.

    >>> momentum = SYMBOLIC._replace(momentum="μ")
    >>> shift_text(Convention(decay="decoupled"), momentum, "weight")
    'lr·λ w + lr v'
    """
    w = TENSOR_LETTER[tensor]
    start = f"{w} ← {w} − "
    lines = update_lines(convention, given, tensor)
    moves = [line.removeprefix(start) for line in lines if line.startswith(start)]
    return ", then ".join(added_up(move) for move in moves)


def added_up(subtracted: str) -> str:
    """Turn what is subtracted one after the other, a − b outside brackets, into a sum."""
    depth, signs = 0, []
    for sign in subtracted:
        depth += {"(": 1, ")": -1}.get(sign, 0)
        signs.append("+" if sign == "−" and depth == 0 else sign)
    return "".join(signs)


def strength_text(convention: Convention, given: Letters, tensor: str) -> str:
    """Write κλ, the factor on w in the penalty's gradient: `2·λ/B`; empty where it is 0."""
    strength = given.weight_decay[tensor]
    if not strength or convention.penalty_factor == 0 or not penalized(convention, tensor):
        return ""
    if convention.penalty_factor != 1:
        strength = f"{factor(convention.penalty_factor)}·{strength}"
    divisor = {"nothing": "", "batch": f"/{given.batch_rows}", "dataset": f"/{given.train_rows}"}
    return strength + divisor[convention.divide_penalty_by]


def penalty_text(convention: Convention, given: Letters, tensor: str) -> str:
    """Write what the penalty adds to one tensor's gradient: `0.1/1096 w`; empty where nothing.

    >>> penalty_text(Convention(penalty_factor=2.0), SYMBOLIC, "bias")
    '2·λ b'
    """
    strength, w = strength_text(convention, given, tensor), TENSOR_LETTER[tensor]
    if not strength:
        return ""
    return f"{strength} {w}/‖{w}‖" if convention.penalty_norm == "unsquared" else f"{strength} {w}"


def gradient_text(convention: Convention, given: Letters) -> str:
    """Write the data gradient in terms of g, the gradient of the mean loss: `0.5 g`, `B g`."""
    factors = [factor(convention.loss_factor)] if convention.loss_factor != 1 else []
    if convention.loss_reduction == "sum":
        if given.loss_rows == UNEVEN:
            return " ".join([*factors, f"average({UNEVEN} gᵢ)"])
        factors.append(given.loss_rows)
    return f"{'·'.join(factors)} g" if factors else "g"


def plus(left: str, right: str) -> str:
    """Write a sum, of which either part may be empty."""
    return f"{left} + {right}" if left and right else left or right


def times(left: str, right: str) -> str:
    """Write a product, whose right part may be a sum."""
    return f"{left} {bracketed(right)}"


def bracketed(term: str) -> str:
    """Put brackets around a term that is a sum, unless the sum stands in brackets already."""
    depth = 0
    for place, letter in enumerate(term):
        depth += (letter == "(") - (letter == ")")
        if depth == 0 and term.startswith(" + ", place):
            return f"({term})"
    return term


def loss_text(convention: Convention, given: Letters) -> str:
    """Write the reported loss.

    >>> loss_text(Convention(divide_penalty_by="batch", penalty_in_loss=True), SYMBOLIC)
    'mean ℓ + ½·λ/B Σw² + ½·λ/B Σb²'
    """
    data = "Σℓ" if convention.loss_reduction == "sum" else "mean ℓ"
    if given.loss_rows == UNEVEN or (given.loss_rows != given.batch_rows and data == "Σℓ"):
        data = f"average({data})"
    if convention.loss_factor != 1:
        data = f"{factor(convention.loss_factor)} {data}"
    terms = [data]
    for tensor, w in TENSOR_LETTER.items():
        strength = strength_text(convention, given, tensor)
        if strength and convention.penalty_in_loss:
            squared = convention.penalty_norm == "squared"
            terms.append(f"½·{strength} Σ{w}²" if squared else f"{strength} ‖{w}‖")
    return " + ".join(terms)


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
    decays = dict(training.weight_decay)
    if len(set(decays.values())) == 1:
        decay = decays.popitem()[1]
        options += [f"weight_decay={exact(decay)}"] if decay else []
        return f"torch.optim.SGD({', '.join(options)})"
    groups = [
        f'{{"params": [model.{name}], "weight_decay": {exact(decay)}}}'
        for name, decay in decays.items()
    ]
    return f"torch.optim.SGD([{', '.join(groups)}], {', '.join(options)})"
