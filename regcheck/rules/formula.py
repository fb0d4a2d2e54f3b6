"""Update rules as text, with letters or with a spec's numbers put in.

Letters: w the weight, b the bias, g the gradient of the mean loss of the step's batch (without
the penalty), v the velocity (0 before step 1), lr the learning rate, λ the weight decay, μ the
momentum, τ the dampening, B the rows of the step's batch, m those of a micro-batch, n the
training rows. Where gradients are accumulated, g is the average over the step's micro-batches.
A factor that is NaN stands for one that may be anything, and is written c.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from keyword import iskeyword
from typing import NamedTuple

from regcheck.rules.convention import NO_FAULTS, Convention, Faults, is_bias, penalized
from regcheck.rules.settings import SgdSettings, Training

TENSOR_LETTER = {"weight": "w", "bias": "b"}

MEANINGS = {
    "w": "weight",
    "b": "bias",
    "g": "gradient of the batch's mean loss, without the penalty",
    "Σg": "sum of the gradients of all steps so far",
    "p−y": "in the place of BCELoss's slope (p−y) q/max(q, 1e-12) with q = p (1−p)",
    "ȳ": "mean of the batch's targets, in the place of each",
    "v": "velocity, 0 before step 1",
    "clip": "clipping, by the norm of all tensors together where it is by a norm",
    "clip_w": "clipping by the norm of this tensor alone",
    "ℓ": "loss of a row",
    "ℓᵢⱼ": "loss of row i's output against row j's target",
    "lr": "learning rate",
    "lr₊₁": "lr of the next step",
    "lr₋₁": "lr of the step before, at step 1 its own",
    "c": "a factor that may be anything",
    "λ": "weight_decay",
    "μ": "momentum",
    "τ": "dampening",
    "B": "rows of the step's batch",
    "m": "rows of a micro-batch",
    "mᵢ": "rows of micro-batch i",
    "k": "micro-batches of the step",
    "batch_size": "rows of every batch but a smaller last one",
    "n": "training rows",
}
"""What each letter of a formula stands for."""


def meanings(lines: Iterable[str], letters: Iterable[str] = tuple(MEANINGS)) -> list[str]:
    """Say what those of some letters mean that occur in formulas.

    >>> meanings(["w ← w − lr g"], ["g", "v", "lr"])
    ["g gradient of the batch's mean loss, without the penalty", 'lr learning rate']
    """
    text = " ".join(lines)
    apart = text.replace("Σ", "Σ ").replace("²", " ²")
    return [
        f"{letter} {MEANINGS[letter]}"
        for letter in letters
        if re.search(rf"(?<!\w){letter}(?!\w)", text if letter.startswith("Σ") else apart)
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
    micro_batches: str = "k"
    batch_size: str = "batch_size"


SYMBOLIC = Letters("lr", {"weight": "λ", "bias": "λ"}, "", "", False, False, "B", "B", "n")


def symbols(training: Training) -> Letters:
    """Return the letters of what a training has: no μ without momentum, no λ where it is 0."""
    sgd = training.sgd
    return Letters(
        lr="lr",
        weight_decay={name: "λ" if value else "" for name, value in sgd.weight_decay.items()},
        momentum="μ" if sgd.momentum else "",
        dampening="τ" if sgd.dampening else "",
        nesterov=sgd.nesterov,
        clipped=training.clipped,
        batch_rows="B",
        loss_rows=loss_rows_letter(training),
        train_rows="n",
    )


def letters(training: Training) -> Letters:
    """Return a training's numbers in the places of the letters."""
    sgd, batch_rows, loss_rows = training.sgd, training.batch_rows, training.loss_rows
    return symbols(training)._replace(
        lr="lr" if training.lr_varies else number(sgd.lr),
        weight_decay={
            name: number(value) if value else "" for name, value in sgd.weight_decay.items()
        },
        momentum=number(sgd.momentum) if sgd.momentum else "",
        dampening=number(sgd.dampening) if sgd.dampening else "",
        batch_rows=str(batch_rows[0]) if len(batch_rows) == 1 else "B",
        loss_rows=str(loss_rows[0]) if len(loss_rows) == 1 else loss_rows_letter(training),
        train_rows=str(training.train_rows),
        micro_batches=micro_batches(training),
        batch_size=str(loss_rows[0]),
    )


def loss_rows_letter(training: Training) -> str:
    """Give the letter of the rows over which one loss is taken."""
    if not training.micro_rows:
        return "B"
    return "m" if len(training.micro_rows) == 1 else UNEVEN


def micro_batches(training: Training) -> str:
    """Count the micro-batches of a step; k where steps differ."""
    if len(training.batch_rows) > 1:
        return "k"
    return str(-(-training.batch_rows[0] // max(1, training.loss_rows[0])))


def letter_of(tensor: str) -> str:
    """Give the letter of a tensor, whatever layer it belongs to: b for a bias, else w."""
    return TENSOR_LETTER["bias" if is_bias(tensor) else "weight"]


def number(value: float) -> str:
    """Write a number as a person would: `0.05`, `1e-08`."""
    return f"{value:g}"


def factor(value: float) -> str:
    """Write a number so that a product can go on with it: `0.5`, `(-1)`; c where it is NaN."""
    if math.isnan(value):
        return "c"
    return number(value) if value >= 0 else f"({number(value)})"


def exact(value: float) -> str:
    """Write a number in the fewest digits that read back as the very same one."""
    return repr(float(value)).removesuffix(".0")


def update_lines(
    convention: Convention, given: Letters, tensor: str = "weight", faults: Faults = NO_FAULTS
) -> list[str]:
    """Write one tensor's update by a convention, one assignment a line.

    >>> update_lines(Convention(divide_penalty_by="batch"), SYMBOLIC)
    ['w ← w − lr (g + λ/B w)']
    """
    w, decay = letter_of(tensor), convention.decay
    penalty = penalty_text(convention, given, tensor, faults)
    given = with_options(given, faults)
    lr = given.lr
    direction = gradient_text(convention, given, faults)
    if decay == "before-clipping":
        direction = plus(direction, penalty)
    if given.clipped:
        clip = f"clip_{w}" if faults.clip_scope == "tensor" else "clip"
        direction = f"{clip}({direction})"
    if decay == "gradient":
        direction = plus(direction, penalty)

    lr_inside = given.momentum and convention.momentum_form == "lr-inside"
    if lr_inside:
        direction = times(lr, direction)
    lines = velocity_lines(convention, given, direction, faults)
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


def with_options(given: Letters, faults: Faults) -> Letters:
    """Give the letters of the lr and the momentum that a rule with faults takes."""
    lr = given.lr
    if faults.lr_shift and lr == SYMBOLIC.lr:  # a number is the same at every step
        sign = "₊" if faults.lr_shift > 0 else "₋"
        lr += sign + str(abs(faults.lr_shift)).translate(SUBSCRIPTS)
    if faults.lr_factor != 1:
        lr = f"{factor(faults.lr_factor)}·{lr}"
    nesterov = given.nesterov if faults.nesterov == "as-set" else faults.nesterov == "added"
    momentum = "" if faults.momentum == "ignored" else given.momentum
    return given._replace(lr=lr, momentum=momentum, nesterov=nesterov)


SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


def velocity_lines(
    convention: Convention, given: Letters, direction: str, faults: Faults
) -> list[str]:
    """Write how the velocity takes up a direction; nothing without momentum."""
    mu = given.momentum
    if not mu:
        return []
    if convention.momentum_form == "dampened":
        return [f"v ← {mu} v + {times(f'(1 − {mu})', direction)}"]
    if not given.dampening:
        return [f"v ← {mu} v + {direction}"]
    dampened = times(f"(1 − {given.dampening})", direction)
    later = f"v ← {mu} v + {dampened}"
    if faults.first_step == "dampened":
        return [later]
    return [f"step 1: v ← {direction}", f"later: {later}"]


def rule_lines(convention: Convention, given: Letters, faults: Faults = NO_FAULTS) -> list[str]:
    """Write the update of the weight and, where there is one, of the bias if it is another.

    >>> rule_lines(Convention(penalize_bias=False), SYMBOLIC)
    ['w ← w − lr (g + λ w)', 'b ← b − lr g']
    >>> rule_lines(Convention(), SYMBOLIC._replace(weight_decay={"weight": "λ"}))
    ['w ← w − lr (g + λ w)']
    """
    weight = update_lines(convention, given, "weight", faults)
    if "bias" not in given.weight_decay:
        return weight
    bias = "; ".join(update_lines(convention, given, "bias", faults))
    if convention.update_order == "bias-first":
        return [f"first  {bias}", *weight[:-1], f"{weight[-1]}, with g at the new b"]
    of_weight, of_bias = (strength_text(convention, given, name, faults) for name in TENSOR_LETTER)
    alike = of_weight == of_bias
    return [*weight[:-1], f"{weight[-1]}, b likewise"] if alike else [*weight, bias]


def shift_text(
    convention: Convention, given: Letters, tensor: str, faults: Faults = NO_FAULTS
) -> str:
    """Write what a step subtracts from a tensor in all.

    >>> momentum = SYMBOLIC._replace(momentum="μ")
    >>> shift_text(Convention(decay="decoupled"), momentum, "weight")
    'lr·λ w + lr v'
    """
    w = letter_of(tensor)
    start = f"{w} ← {w} − "
    lines = update_lines(convention, given, tensor, faults)
    moves = [line.removeprefix(start) for line in lines if line.startswith(start)]
    return ", then ".join(added_up(move) for move in moves)


def added_up(subtracted: str) -> str:
    """Turn what is subtracted one after the other, a − b outside brackets, into a sum."""
    depth, signs = 0, []
    for sign in subtracted:
        depth += {"(": 1, ")": -1}.get(sign, 0)
        signs.append("+" if sign == "−" and depth == 0 else sign)
    return "".join(signs)


def strength_text(
    convention: Convention, given: Letters, tensor: str, faults: Faults = NO_FAULTS
) -> str:
    """Write κλ, the factor on w in the penalty's gradient: `2·λ/B`; empty where it is 0."""
    of_weight = faults.bias_decay == "of-weight" and is_bias(tensor)
    strength = given.weight_decay[weight_beside(tensor) if of_weight else tensor]
    if not strength or convention.penalty_factor == 0 or not penalized(convention, tensor):
        return ""
    if convention.penalty_factor != 1:
        strength = f"{factor(convention.penalty_factor)}·{strength}"
    divisor = {"nothing": "", "batch": f"/{given.batch_rows}", "dataset": f"/{given.train_rows}"}
    return strength + divisor[convention.divide_penalty_by]


def weight_beside(bias: str) -> str:
    """Name the weight of the layer that a bias belongs to."""
    return bias.removesuffix("bias") + "weight"


def penalty_text(
    convention: Convention, given: Letters, tensor: str, faults: Faults = NO_FAULTS
) -> str:
    """Write what the penalty adds to one tensor's gradient: `0.1/1096 w`; empty where nothing.

    >>> penalty_text(Convention(penalty_factor=2.0), SYMBOLIC, "bias")
    '2·λ b'
    """
    strength, w = strength_text(convention, given, tensor, faults), letter_of(tensor)
    if not strength or faults.penalty_form == "constant":
        return strength
    return f"{strength} {w}/‖{w}‖" if convention.penalty_norm == "unsquared" else f"{strength} {w}"


def gradient_text(convention: Convention, given: Letters, faults: Faults = NO_FAULTS) -> str:
    """Write the data gradient in terms of g, the gradient of the mean loss: `0.5 g`, `B g`.

    >>> gradient_text(Convention(), SYMBOLIC, Faults(gradient_factor=math.nan))
    'c g'
    """
    y = "ȳ" if faults.target == "batch-mean" else ""
    at = f"({y})" if y else ""
    if faults.bce_slope == "plain":
        at = f"(p−{y or 'y'})"
    factors = [factor(value) for value in (faults.gradient_factor, convention.loss_factor)]
    factors = [text for text in factors if text != "1"]
    rows, divisor = rows_and_divisor(convention, given, faults)
    summed = faults.accumulation == "sum"
    if rows == UNEVEN:
        g = f"{'sum' if summed else 'average'}({UNEVEN} gᵢ{at}){divisor}"
    else:
        g = f"g{at}"
        factors += [given.micro_batches] if summed else []
        factors += [rows + divisor] if rows else []
    text = f"{'·'.join(factors)} {g}" if factors else g
    if faults.zeroing == "each-step":
        return text
    return f"Σ{text}" if text == "g" else f"Σ({text})"


def rows_and_divisor(convention: Convention, given: Letters, faults: Faults) -> tuple[str, str]:
    """Write by how many rows the mean over a loss's rows is multiplied, and what divides that."""
    if faults.batch_divisor == "batch-size":
        return given.loss_rows, f"/{given.batch_size}"
    return (given.loss_rows if convention.loss_reduction == "sum" else ""), ""


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


def loss_text(convention: Convention, given: Letters, faults: Faults = NO_FAULTS) -> str:
    """Write the reported loss.

    >>> loss_text(Convention(divide_penalty_by="batch", penalty_in_loss=True), SYMBOLIC)
    'mean ℓ + ½·λ/B Σw² + ½·λ/B Σb²'
    """
    data = data_loss_text(convention, given, faults)
    if convention.loss_factor != 1:
        data = f"{factor(convention.loss_factor)} {data}"
    terms = [data]
    for tensor in given.weight_decay:
        strength, w = strength_text(convention, given, tensor, faults), letter_of(tensor)
        if strength and convention.penalty_in_loss:
            squared = convention.penalty_norm == "squared"
            terms.append(f"½·{strength} Σ{w}²" if squared else f"{strength} ‖{w}‖")
    return " + ".join(dict.fromkeys(terms))


def data_loss_text(convention: Convention, given: Letters, faults: Faults) -> str:
    """Write the loss of the data: the mean of the rows' losses, or what there is in its place."""
    rows, divisor = rows_and_divisor(convention, given, faults)
    if faults.target == "batch-mean":
        data = f"{rows}{divisor} mean ℓᵢⱼ" if rows else "mean ℓᵢⱼ"
    else:
        data = f"Σℓ{divisor}" if rows else "mean ℓ"
    alike = given.loss_rows == given.batch_rows or data == "mean ℓ"
    return data if alike and given.loss_rows != UNEVEN else f"average({data})"


def torch_call(sgd: SgdSettings) -> str:
    """Write the call of torch's optimizer with some settings.

    >>> torch_call(SgdSettings(0.1, {"weight": 1.0, "bias": 1.0}))
    'torch.optim.SGD(lr=0.1, weight_decay=1)'
    """
    options = [f"lr={exact(sgd.lr)}"]
    for key, value in sgd.options().items():
        if value:
            options.append(f"{key}={value if value is True else exact(value)}")
    groups = alike(sgd.weight_decay)
    if len(groups) == 1:
        [decay] = groups
        options += [f"weight_decay={exact(decay)}"] if decay else []
        return f"torch.optim.SGD({', '.join(options)})"
    written = [
        f'{{"params": [{", ".join(map(attribute, names))}], "weight_decay": {exact(decay)}}}'
        for decay, names in groups.items()
    ]
    return f"torch.optim.SGD([{', '.join(written)}], {', '.join(options)})"


def alike(decays: Mapping[str, float]) -> dict[float, list[str]]:
    """Put the tensors of each weight decay together, in their order."""
    found: dict[float, list[str]] = {}
    for name, decay in decays.items():
        found.setdefault(decay, []).append(name)
    return found


def attribute(name: str) -> str:
    """Write a parameter as Python reaches it: what a container numbers is an item of it.

    >>> attribute("layers.0.weight"), attribute("0.bias"), attribute("my-net.w")
    ('model.layers[0].weight', 'model[0].bias', 'model.get_parameter("my-net.w")')
    """
    parts = name.split(".")
    if not all(part.isdecimal() or (part.isidentifier() and not iskeyword(part)) for part in parts):
        return f"model.get_parameter({json.dumps(name)})"
    return "model" + "".join(f"[{part}]" if part.isdecimal() else f".{part}" for part in parts)


def decays_text(decays: Mapping[str, float], torch: Mapping[str, float]) -> str:
    """Say which tensors have another weight decay than torch's.

    >>> decays_text({"0.w": 0.05, "1.w": 0.05, "b": 0.0}, {"0.w": 0.1, "1.w": 0.1, "b": 0.0})
    "the weight_decay of 0.w and 1.w is 0.05, torch's is 0.1"
    """
    found: dict[tuple[float, float], list[str]] = {}
    for name, decay in decays.items():
        if decay != torch[name]:
            found.setdefault((decay, torch[name]), []).append(name)
    return "; ".join(
        f"the weight_decay of {' and '.join(names)} is {own:.6g}, torch's is {number(other)}"
        for (own, other), names in found.items()
    )
