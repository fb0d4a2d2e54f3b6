"""Adam and AdamW (torch/optim/adam.py, `_single_tensor_adam`, torch 2.13).

    M ← β₁ M + (1 − β₁) g                     both from 0 on
    S ← β₂ S + (1 − β₂) g²
    M̂ = M/(1 − β₁ᵗ)   Ŝ = S/(1 − β₂ᵗ)         Ŝ of the largest S so far with amsgrad
    w ← w − lr M̂/(√Ŝ + ε)

`epsilon` uncorrected: lr √(1 − β₂ᵗ)/(1 − β₁ᵗ) M/(√S + ε), as in Kingma and Ba's section 2 and in
Keras; inside: √(Ŝ + ε), as optax's eps_root. `bias_correction` false: M and S in the places of M̂
and Ŝ; compounded: M̂ and Ŝ are what is remembered.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from regcheck.rules.convention import Convention
from regcheck.rules.faults import Faults
from regcheck.rules.optimizers.update_rule import (
    Array,
    Memory,
    Option,
    Options,
    StepInput,
    UpdateRule,
    Written,
    averaged,
    bracketed,
    divisor_text,
    named_gradient,
    namespace,
    share,
)

FIRST, SECOND, LARGEST = "exp_avg", "exp_avg_sq", "max_exp_avg_sq"


def init(options: Options, convention: Convention, faults: Faults, w: Array) -> Memory:
    """Return moments of 0."""
    names = (FIRST, SECOND, LARGEST) if options["amsgrad"] else (FIRST, SECOND)
    return {name: namespace(w).zeros_like(w) for name in names}


def step(at: StepInput) -> tuple[Array, Memory]:
    """Return lr M̂/(√Ŝ + ε) and the moments."""
    xp, (beta1, beta2) = namespace(at.g), at.options["betas"]
    form = at.convention.bias_correction
    by_first, by_second = corrections(at.options, at.faults, 0.0) if form else (0.0, 0.0)
    first, second = 1 - by_first**at.t, 1 - by_second**at.t
    m = beta1 * at.memory[FIRST] + share(beta1, at.faults) * at.g
    s = beta2 * at.memory[SECOND] + share(beta2, at.faults) * (at.g * at.g)
    if form == "compounded":
        m, s, first, second = m / first, s / second, 1.0, 1.0
    memory = {FIRST: m, SECOND: s}
    if at.options["amsgrad"]:
        if at.faults.amsgrad == "corrected":
            s, second = s / second, 1.0
        s = memory[LARGEST] = xp.maximum(at.memory[LARGEST], s)
    if at.faults.moments == "stale":
        m, s = at.memory[FIRST], at.memory[LARGEST if at.options["amsgrad"] else SECOND]
    return (at.lr / first) * m / divisor(at, s, second), memory


def corrections(options: Options, faults: Faults, none: Any) -> tuple[Any, Any]:
    """Return the β by which each moment is corrected for its start; none where it is not.

    >>> corrections({"betas": ("β₁", "β₂")}, Faults(correction="swapped"), "")
    ('β₂', 'β₁')
    """
    beta1, beta2 = options["betas"]
    return {
        "both": (beta1, beta2),
        "first": (beta1, none),
        "second": (none, beta2),
        "swapped": (beta2, beta1),
    }[faults.correction]


def divisor(at: StepInput, s: Array, second: float) -> Array:
    """Return √Ŝ + ε with Ŝ = S/second, or what the convention makes of it."""
    xp, eps = namespace(s), at.options["eps"]
    rooted = at.faults.root == "root"
    root: Callable[[Array], Array] = xp.sqrt if rooted else xp.positive
    match at.convention.epsilon:
        case "outside":
            return root(s) / (math.sqrt(second) if rooted else second) + eps
        case "uncorrected":
            return (root(s) + eps) / math.sqrt(second)
        case "inside":
            return root(s / second + eps)


def written(
    options: Options,
    convention: Convention,
    faults: Faults,
    lr: str,
    gradient: str,
) -> Written:
    """Write the moments, and the direction in terms of them."""
    (beta1, beta2), eps, form = options["betas"], options["eps"], convention.bias_correction
    lines, g = named_gradient(gradient)
    of_first = averaged(beta1, "M", g, faults)
    of_second = averaged(beta2, "S", f"{g}²", faults)
    by_first, by_second = corrections(options, faults, "")
    if form == "compounded":
        lines += [f"M ← {corrected(of_first, by_first)}", f"S ← {corrected(of_second, by_second)}"]
    else:
        lines += [f"M ← {of_first}", f"S ← {of_second}"]
    m, s = "M", "S"
    if options["amsgrad"]:
        if faults.amsgrad == "corrected" and form is True:
            s, by_second = corrected(s, by_second), ""
        lines, s = [*lines, f"A ← max(A, {s})"], "A"
    if faults.moments == "stale":
        m, s = f"{m}₋₁", f"{s}₋₁"
    if form is True and convention.epsilon != "uncorrected":
        if by_first or not by_second:
            lines, m = [*lines, f"M̂ ← {corrected(m, by_first)}"], "M̂"
        if by_second or not by_first:
            lines, s = [*lines, f"Ŝ ← {corrected(s, by_second)}"], "Ŝ"
    divisor = divisor_text(s, eps, convention, faults)
    uncorrected = form is True and convention.epsilon == "uncorrected"
    scale = f"{written_scale(by_first, by_second)} " if uncorrected else ""
    return Written(lines, f"{scale}{m}/{divisor}")


OPTIONS = {
    "betas": Option((0.9, 0.999), ("β₁", "β₂"), below=1.0),
    "eps": Option(1e-8, "ε"),
    "amsgrad": Option(default=False),
    "maximize": Option(default=False),
}

MEANINGS = {
    "G": "gradient after any clipping and coupled weight decay",
    "M": "first moment of the gradient, 0 before step 1",
    "S": "second moment of the gradient, 0 before step 1",
    "A": "largest second moment so far",
    "t": "number of the step, from 1",
    "β₁": "decay of the first moment, betas[0]",
    "β₂": "decay of the second moment, betas[1]",
    "ε": "eps",
}


def correction(options: Options, t: int) -> float:
    """Return √(1 − β₂ᵗ)/(1 − β₁ᵗ), by which some multiply the lr."""
    beta1, beta2 = options["betas"]
    return float(math.sqrt(1 - beta2**t) / (1 - beta1**t))


def corrected(moment: str, beta: str) -> str:
    """Write a moment without the bias of its start: over 1 − βᵗ, which is 1 where β is 0."""
    return f"{bracketed(moment)}/(1 − {beta}ᵗ)" if beta else moment


def written_correction(options: Options) -> str:
    """Write √(1 − β₂ᵗ)/(1 − β₁ᵗ)."""
    return written_scale(*options["betas"])


def written_scale(by_first: str, by_second: str) -> str:
    """Write what an lr is multiplied by to correct the moments, each by its β."""
    return corrected(f"√(1 − {by_second}ᵗ)" if by_second else "1", by_first)


ADAM = UpdateRule(
    torch="Adam",
    options=OPTIONS | {"decoupled_weight_decay": Option(default=False)},
    init=init,
    step=step,
    written=written,
    meanings=MEANINGS,
    examples={"plain": {}, "amsgrad": {"amsgrad": True}},
    torchs=lambda options: {"decay": "decoupled"} if options["decoupled_weight_decay"] else {},
    correction=correction,
    written_correction=written_correction,
    keys=frozenset(
        {"averages", "bias_correction", "correction", "counts_from", "epsilon", "moments", "root"}
    ),
)

ADAMW = ADAM._replace(
    torch="AdamW",
    options=OPTIONS,
    torchs=lambda _: {"decay": "decoupled"},
)
