"""RAdam (torch/optim/radam.py, `_single_tensor_radam`, torch 2.13).

    M ← β₁ M + (1 − β₁) g                     both from 0 on
    S ← β₂ S + (1 − β₂) g²
    N = N∞ − 2 t β₂ᵗ/(1 − β₂ᵗ)                N∞ = 2/(1 − β₂) − 1
    r = √((N − 4)(N − 2) N∞/((N∞ − 4)(N∞ − 2) N))
    d = r M̂ √(1 − β₂ᵗ)/(√S + ε)   where N > 5, else M̂            M̂ = M/(1 − β₁ᵗ)
    w ← w − lr d

`epsilon` outside: √Ŝ + ε with Ŝ = S/(1 − β₂ᵗ), as in Adam; inside: √(Ŝ + ε). `bias_correction`
false: M and S in the places of M̂ and Ŝ; compounded: M̂ and Ŝ are what is remembered. The paper (Liu
and others, 2020) has N > 4.
"""

from __future__ import annotations

from regcheck.rules.convention import Convention
from regcheck.rules.faults import Faults
from regcheck.rules.optimizers.adam import (
    FIRST,
    OPTIONS,
    SECOND,
    correction,
    divisor,
    written_correction,
)
from regcheck.rules.optimizers.adam import MEANINGS as OF_ADAM
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
)

FEWEST = 5.0
"""The length of the moving average above which the step is divided by it."""


def init(options: Options, convention: Convention, faults: Faults, w: Array) -> Memory:
    """Return moments of 0."""
    return {name: namespace(w).zeros_like(w) for name in (FIRST, SECOND)}


def lengths(beta2: float, t: int) -> tuple[float, float]:
    """Return N and N∞; torch's own order of operations, which decides at N = 5."""
    most = 2 / (1 - beta2) - 1
    return most - 2 * t * (beta2**t) / (1 - beta2**t), most


def rectification(beta2: float, t: int, above: float = FEWEST) -> float | None:
    """Return r, √((N − 4)(N − 2) N∞/((N∞ − 4)(N∞ − 2) N)); None where N is not above 5."""
    n, most = lengths(beta2, t)
    if n <= above:
        return None
    return float(((n - 4) * (n - 2) * most / ((most - 4) * (most - 2) * n)) ** 0.5)


def step(at: StepInput) -> tuple[Array, Memory]:
    """Return lr d and the moments."""
    (beta1, beta2), form = at.options["betas"], at.convention.bias_correction
    first, second = (1 - beta1**at.t, 1 - beta2**at.t) if form else (1.0, 1.0)
    m = beta1 * at.memory[FIRST] + (1 - beta1) * at.g
    s = beta2 * at.memory[SECOND] + (1 - beta2) * (at.g * at.g)
    if form == "compounded":
        m, s, first, second = m / first, s / second, 1.0, 1.0
    memory = {FIRST: m, SECOND: s}
    if at.faults.moments == "stale":
        m, s = at.memory[FIRST], at.memory[SECOND]
    r = rectification(beta2, at.t, at.faults.rectified_above)
    if r is None:
        return (at.lr / first) * m, memory
    return (at.lr * r / first) * m / divisor(at, s, second), memory


def written(
    options: Options, convention: Convention, faults: Faults, lr: str, gradient: str
) -> Written:
    """Write the moments, the length of their average, and the direction in terms of these."""
    (beta1, beta2), form = options["betas"], convention.bias_correction
    lines, g = named_gradient(gradient)
    first, second = (f"/(1 − {beta}ᵗ)" if beta else "" for beta in (beta1, beta2))
    of_first, of_second = averaged(beta1, "M", g), averaged(beta2, "S", f"{g}²")
    if form == "compounded":
        of_first = bracketed(of_first) + first if first else of_first
        of_second = bracketed(of_second) + second if second else of_second
    lines += [f"M ← {of_first}", f"S ← {of_second}"]
    m, s = ("M₋₁", "S₋₁") if faults.moments == "stale" else ("M", "S")
    if form is True:
        lines, m = [*lines, f"M̂ ← {m}{first}"], "M̂"
    scale = f" √{second.removeprefix('/')}" if second and form is True else ""
    if convention.epsilon != "uncorrected" and scale:
        lines, s, scale = [*lines, f"Ŝ ← {s}{second}"], "Ŝ", ""
    below = divisor_text(s, options["eps"], convention, faults)
    lines += [
        f"N ← N∞ − 2 t {beta2 or '0'}ᵗ{second}",
        "r ← √((N − 4) (N − 2) N∞/((N∞ − 4) (N∞ − 2) N))",
        f"d ← r {m}{scale}/{below} where N > {faults.rectified_above}, else {m}",
    ]
    return Written(lines, "d")


RADAM = UpdateRule(
    torch="RAdam",
    options={
        "betas": OPTIONS["betas"],
        "eps": OPTIONS["eps"],
        "decoupled_weight_decay": Option(default=False),
        "maximize": Option(default=False),
    },
    init=init,
    step=step,
    written=written,
    meanings={letter: text for letter, text in OF_ADAM.items() if letter != "A"}
    | {
        "N": "length of the second moment's average",
        "N∞": "its limit, 2/(1 − β₂) − 1",
        "r": "rectification",
        "d": "step without the lr",
    },
    examples={"plain": {}},
    torchs=lambda options: (
        {"epsilon": "uncorrected"}
        | ({"decay": "decoupled"} if options["decoupled_weight_decay"] else {})
    ),
    keys=frozenset({"bias_correction", "epsilon", "moments", "rectified_above", "root"}),
    correction=correction,
    written_correction=written_correction,
    scaling=None,
)
