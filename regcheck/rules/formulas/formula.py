"""Update rules as text, with letters or with a spec's numbers put in.

Letters: w the weight, b the bias, g the gradient of the mean loss of the step's batch (without
the penalty), v the velocity (0 before step 1), lr the learning rate, λ the weight decay, μ the
momentum, τ the dampening, B the rows of the step's batch, m those of a micro-batch, n the
training rows. Where gradients are accumulated, g is the average over the step's micro-batches.
A factor that is NaN stands for one that may be anything, and is written c.
"""

from __future__ import annotations

import re

from regcheck.rules.convention import Convention, is_bias, penalized
from regcheck.rules.faults import NO_FAULTS, Faults
from regcheck.rules.optimizers.update_rule import bracketed, plus, times
from regcheck.rules.settings import SYMBOLIC, UNEVEN, WEIGHTS, Letters, factor, with_faults


def letter_of(tensor: str) -> str:
    """Return the letter of a tensor, whatever layer it belongs to: b for a bias, else w."""
    return "b" if is_bias(tensor) else "w"


LIKEWISE = ", b likewise"
"""What follows the weight's update where the bias has the same."""


def update_lines(
    convention: Convention, given: Letters, tensor: str = "weight", faults: Faults = NO_FAULTS
) -> list[str]:
    """Write one tensor's update by a convention, one assignment a line.

    >>> update_lines(Convention(divide_penalty_by="batch"), SYMBOLIC)
    ['w ← w − lr (g + λ/B w)']
    """
    w, decay = letter_of(tensor), convention.decay
    given, lr = with_faults(given, faults), lr_text(given, faults)
    penalty = penalty_text(convention, given, tensor, faults)
    before, direction, lr_inside = given.rule.written(
        given.options, convention, faults, lr, joined_gradient(convention, given, tensor, faults)
    )
    # A rule that looks at the tensor itself calls it w.
    *lines, direction = (re.sub(r"(?<!\w)w(?!\w)", w, line) for line in (*before, direction))
    count = COUNTS[faults.counted]
    if faults.counts_from != 1 and faults.counted != "nothing":
        count += f"{faults.counts_from - 1:+}".translate(SUPERSCRIPTS)
    lines, direction = [one.replace("ᵗ", count) for one in lines], direction.replace("ᵗ", count)
    if faults.state != "kept":
        lines = [EPOCHS[faults.state], *lines]
    step = bracketed(direction) if lr_inside else times(lr, direction)
    corrected = faults.decay_rate == "corrected" and given.rule.written_correction(given.options)
    rate = f"{lr} {corrected}" if corrected else lr

    if not penalty or decay in ("gradient", "before-clipping"):
        return [*lines, f"{w} ← {w} − {step}"]
    if decay == "after-update":
        return [*lines, f"{w} ← {w} − {step}", f"{w} ← {w} − {rate}·{penalty}"]
    if decay == "after-momentum" and not lr_inside and rate == lr:
        return [*lines, f"{w} ← {w} − {times(lr, plus(direction, penalty))}"]
    shrink = penalty if decay == "decoupled-unscaled" else f"{rate}·{penalty}"
    return [*lines, f"{w} ← {w} − {shrink} − {step}"]


def joined_gradient(convention: Convention, given: Letters, tensor: str, faults: Faults) -> str:
    """Write the gradient that the optimizer is given: clipped, with what joins it.

    >>> joined_gradient(Convention(), SYMBOLIC._replace(clipped=True), "weight", NO_FAULTS)
    'clip(g) + λ w'
    """
    penalty = penalty_text(convention, given, tensor, faults)
    gradient = gradient_text(convention, given, faults)
    if given.options.get("maximize", False):
        gradient = f"−{gradient}"
    if convention.decay == "before-clipping":
        gradient = plus(gradient, penalty)
    if given.clipped:
        clip = f"clip_{letter_of(tensor)}" if faults.clip_scope == "tensor" else "clip"
        gradient = f"{clip}({gradient})"
    return plus(gradient, penalty) if convention.decay == "gradient" else gradient


COUNTS = {"steps": "ᵗ", "tensors": "ʲ", "epochs": "ᵉ", "nothing": "¹"}
"""The number in a correction's power, by what is counted."""

EPOCHS = {
    "kept": "each epoch keeps the optimizer's state",
    "zeroed": "each epoch starts with moments 0",
    "renewed": "each epoch starts with a new optimizer",
}
"""What happens to an optimizer's state between two epochs."""

SUPERSCRIPTS = str.maketrans("+-0123456789", "⁺⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
SUBSCRIPTS = str.maketrans("+-0123456789", "₊₋₀₁₂₃₄₅₆₇₈₉")


def lr_text(given: Letters, faults: Faults) -> str:
    """Write the lr that a rule with faults takes: `c·lr`, `lr₊₁`."""
    lr = given.lr
    if faults.lr_shift and lr == SYMBOLIC.lr:  # a number is the same at every step
        lr += f"{faults.lr_shift:+}".translate(SUBSCRIPTS)
    return lr if faults.lr_factor == 1 else f"{factor(faults.lr_factor)}·{lr}"


def rule_lines(convention: Convention, given: Letters, faults: Faults = NO_FAULTS) -> list[str]:
    """Write the update of the weight and, where there is one, of the bias if it is another.

    >>> rule_lines(Convention(penalize_bias=False), SYMBOLIC)
    ['w ← w − lr (g + λ w)', 'b ← b − lr g']
    >>> rule_lines(Convention(), SYMBOLIC._replace(weight_decay={"weight": "λ"}))
    ['w ← w − lr (g + λ w)']
    """
    *before, weight = update_lines(convention, given, "weight", faults)
    if "bias" not in given.weight_decay:
        return [*before, weight]
    bias = "; ".join(update_lines(convention, given, "bias", faults))
    if convention.update_order == "bias-first":
        return [f"first  {bias}", *before, f"{weight}, with g at the new b"]
    of_weight, of_bias = (
        decay_text(convention, given, name, faults) for name in ("weight", "bias")
    )
    if of_weight == of_bias:
        return [*before, f"{weight}{LIKEWISE}"]
    return [*before, weight, bias]


def delta_text(
    convention: Convention, given: Letters, tensor: str, faults: Faults = NO_FAULTS
) -> str:
    """Write what a step subtracts from a tensor in all.

    >>> momentum = SYMBOLIC.with_options(momentum="μ")
    >>> delta_text(Convention(decay="decoupled"), momentum, "weight")
    'lr·λ w + lr v'
    """
    w = letter_of(tensor)
    start = f"{w} ← {w} − "
    lines = update_lines(convention, given, tensor, faults)
    subtracted = [line.removeprefix(start) for line in lines if line.startswith(start)]
    return ", then ".join(map(added_up, subtracted))


def added_up(subtracted: str) -> str:
    """Turn what is subtracted one after the other, a − b outside brackets, into a sum."""
    depth, signs = 0, []
    for sign in subtracted:
        depth += {"(": 1, ")": -1}.get(sign, 0)
        signs.append("+" if sign == "−" and depth == 0 else sign)
    return "".join(signs)


def decay_text(
    convention: Convention, given: Letters, tensor: str, faults: Faults = NO_FAULTS
) -> str:
    """Write κλ, the effective decay of a tensor: `2·λ/B`; empty where it is 0."""
    if not penalized(convention, tensor) or convention.penalty_factor == 0:
        return ""
    if faults.bias_decay == "of-weight" and is_bias(tensor):
        tensor = tensor.removesuffix("bias") + "weight"
    decay = given.weight_decay[tensor]
    if decay and convention.penalty_factor != 1:
        decay = f"{factor(convention.penalty_factor)}·{decay}"
    divisor = {"nothing": "", "batch": f"/{given.batch_rows}", "dataset": f"/{given.train_rows}"}
    return decay and decay + divisor[convention.divide_penalty_by]


def penalty_text(
    convention: Convention, given: Letters, tensor: str, faults: Faults = NO_FAULTS
) -> str:
    """Write what the penalty adds to one tensor's gradient: `0.1/1096 w`; empty where nothing.

    >>> penalty_text(Convention(penalty_factor=2.0), SYMBOLIC, "bias")
    '2·λ b'
    """
    decay, w = decay_text(convention, given, tensor, faults), letter_of(tensor)
    if not decay or faults.penalty_form == "constant":
        return decay
    return f"{decay} {w}/‖{w}‖" if convention.penalty_norm == "unsquared" else f"{decay} {w}"


TARGETS = {"row": "", "batch-mean": "ȳ", "unsmoothed": "y₀", "other-classes": "ỹ"}
"""By what a rule takes for a sample's target: what stands for it where it is not torch's."""


def gradient_text(convention: Convention, given: Letters, faults: Faults = NO_FAULTS) -> str:
    """Write the data gradient in terms of g, the gradient of the mean loss: `0.5 g`, `B g`.

    >>> gradient_text(Convention(), SYMBOLIC, Faults(gradient_factor=float("nan")))
    'c g'
    """
    y = TARGETS[faults.target]
    at = f"({y})" if y else ""
    if faults.bce_slope == "plain":
        at = f"(p−{y or 'y'})"
    factors = [factor(value) for value in (faults.gradient_factor, convention.loss_factor)]
    factors = [text for text in factors if text != "1"]
    rows, divisor = rows_and_divisor(convention, given, faults)
    summed = faults.accumulation in {"sum", "over-rows"}
    if faults.accumulation == "last":
        g = f"gₖ{at}"
        factors += [rows.replace(UNEVEN, "mₖ").replace(WEIGHTS, "Wₖ") + divisor] if rows else []
    elif rows in {UNEVEN, WEIGHTS}:
        # Outside stands what divides each share alike.
        each, alike = (rows + divisor, "") if divisor == f"/{UNEVEN}" else (rows, divisor)
        g = f"{'sum' if summed else 'average'}({each} gᵢ{at}){alike}"
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
    rows = given.class_weights or given.loss_rows
    if faults.batch_divisor == "batch-size":
        return rows, f"/{given.batch_size}"
    if convention.loss_reduction == "sum":
        return rows, ""
    if faults.batch_divisor == "unweighted":
        return rows, f"/{given.loss_rows}"
    return (given.loss_rows, f"/{given.batch_rows}") if over_rows(given, faults) else ("", "")


def over_rows(given: Letters, faults: Faults) -> bool:
    """Whether the mean is over all rows of a step's micro-batches."""
    return faults.accumulation == "over-rows" and given.loss_rows != given.batch_rows


def loss_text(convention: Convention, given: Letters, faults: Faults = NO_FAULTS) -> str:
    """Write the reported loss.

    >>> loss_text(Convention(divide_penalty_by="batch", penalty_in_loss=True), SYMBOLIC)
    'mean ℓ + ½·λ/B Σw² + ½·λ/B Σb²'
    """
    data = data_loss_text(convention, given, faults)
    if convention.loss_factor != 1:
        data = f"{factor(convention.loss_factor)} {data}"
    terms = [data]
    for tensor in given.weight_decay if convention.penalty_in_loss else ():
        decay, w = decay_text(convention, given, tensor, faults), letter_of(tensor)
        if decay:
            squared = convention.penalty_norm == "squared"
            terms.append(f"½·{decay} Σ{w}²" if squared else f"{decay} ‖{w}‖")
    return " + ".join(dict.fromkeys(terms))


def data_loss_text(convention: Convention, given: Letters, faults: Faults) -> str:
    """Write the loss of the data: the mean of the rows' losses, or what there is in its place."""
    rows, divisor = rows_and_divisor(convention, given, faults)
    if faults.target == "batch-mean":
        data = f"{rows}{divisor} mean ℓᵢⱼ" if rows else "mean ℓᵢⱼ"
    else:
        at = TARGETS[faults.target] and f"({TARGETS[faults.target]})"
        data = f"Σℓ{at}{divisor}" if rows else f"mean ℓ{at}"
    if over_rows(given, faults):
        if faults.target == "batch-mean":
            return f"sum({data})"
        return "mean ℓ" if divisor == f"/{given.batch_rows}" else data
    alike = given.loss_rows == given.batch_rows or data == "mean ℓ"
    return data if alike and given.loss_rows != UNEVEN else f"average({data})"
