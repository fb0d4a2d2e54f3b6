"""Adamax (torch/optim/adamax.py, `_single_tensor_adamax`, torch 2.13).

    M ← β₁ M + (1 − β₁) g                     both from 0 on
    U ← max(β₂ U, |g| + ε)
    w ← w − lr/(1 − β₁ᵗ) M/U

`epsilon` outside: U ← max(β₂ U, |g|), and M/(U + ε), as in Keras. `bias_correction` false: without
1 − β₁ᵗ; compounded: M/(1 − β₁ᵗ) is what is remembered.
"""

from __future__ import annotations

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
    named_gradient,
    namespace,
    plus,
)

FIRST, LARGEST = "exp_avg", "exp_inf"


def init(options: Options, convention: Convention, faults: Faults, w: Array) -> Memory:
    """Return a moment and a maximum of 0."""
    return {FIRST: namespace(w).zeros_like(w), LARGEST: namespace(w).zeros_like(w)}


def step(at: StepInput) -> tuple[Array, Memory]:
    """Return lr/(1 − β₁ᵗ) M/U, the moment and the maximum."""
    xp, (beta1, beta2), eps = namespace(at.g), at.options["betas"], at.options["eps"]
    form, inside = at.convention.bias_correction, epsilon_inside(at.convention, at.faults)
    first = 1 - beta1**at.t if form else 1.0
    m = beta1 * at.memory[FIRST] + (1 - beta1) * at.g
    if form == "compounded":
        m, first = m / first, 1.0
    size = xp.abs(at.g) + eps if inside else xp.abs(at.g)
    u = xp.maximum(beta2 * at.memory[LARGEST], size)
    norm = at.memory[LARGEST] if at.faults.norm == "stale" else u
    return (at.lr / first) * m / (norm if inside else norm + eps), {FIRST: m, LARGEST: u}


def epsilon_inside(convention: Convention, faults: Faults) -> bool:
    """Return whether ε is in the maximum; a stale U is 0 at step 1, where ε must be added to it."""
    return convention.epsilon == "inside" and faults.norm == "fresh"


def written(
    options: Options, convention: Convention, faults: Faults, lr: str, gradient: str
) -> Written:
    """Write the moment and the maximum, and the direction in terms of them."""
    (beta1, beta2), eps, form = options["betas"], options["eps"], convention.bias_correction
    lines, g = named_gradient(gradient)
    inside = epsilon_inside(convention, faults)
    first, m = f"(1 − {beta1}ᵗ)", averaged(beta1, "M", g)
    corrected = bool(form and beta1)
    if form == "compounded" and corrected:
        m = f"{bracketed(m)}/{first}"
    size = plus(f"|{g}|", eps) if inside else f"|{g}|"
    lines += [f"M ← {m}", f"U ← max({beta2} U, {size})" if beta2 else f"U ← {size}"]
    norm = "U₋₁" if faults.norm == "stale" else "U"
    divisor = norm if inside else bracketed(plus(norm, eps))
    if form is True and corrected:
        divisor = f"({first} {divisor})"
    return Written(lines, f"M/{divisor}")


ADAMAX = UpdateRule(
    torch="Adamax",
    options={
        "betas": Option((0.9, 0.999), ("β₁", "β₂"), below=1.0),
        "eps": Option(1e-8, "ε"),
        "maximize": Option(default=False),
    },
    init=init,
    step=step,
    written=written,
    meanings={
        "G": "gradient after any clipping and coupled weight decay",
        "M": "first moment of the gradient, 0 before step 1",
        "U": "largest |g| so far, decayed by β₂, 0 before step 1",
        "t": "number of the step, from 1",
        "β₁": "decay of the first moment, betas[0]",
        "β₂": "decay of the second moment, betas[1]",
        "ε": "eps",
    },
    examples={"plain": {}},
    torchs=lambda _: {"epsilon": "inside"},
    keys=frozenset({"bias_correction", "counts_from", "epsilon", "norm"}),
)
