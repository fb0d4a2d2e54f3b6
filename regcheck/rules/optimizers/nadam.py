"""NAdam (torch/optim/nadam.py, `_single_tensor_nadam`, torch 2.13).

    μₜ = β₁ (1 − ½·0.96^(t ψ))                Pₜ = μ₁ μ₂ ⋯ μₜ
    M ← β₁ M + (1 − β₁) g                     both from 0 on
    S ← β₂ S + (1 − β₂) g²
    d = ((1 − μₜ)/(1 − Pₜ) g + μₜ₊₁/(1 − Pₜ₊₁) M)/(√Ŝ + ε)        Ŝ = S/(1 − β₂ᵗ)
    w ← w − lr d

Torch holds P in float32, whatever the dtype of w. `epsilon` as in Adam. `bias_correction` false: no
1 − P and no 1 − β₂ᵗ; compounded: M/(1 − Pₜ₊₁) and Ŝ are what is remembered.
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
    plus,
    times,
)

PRODUCT = "mu_product"


def init(options: Options, convention: Convention, faults: Faults, w: Array) -> Memory:
    """Return moments of 0, and an empty product."""
    xp = namespace(w)
    product = xp.asarray(1.0, dtype=xp.float32)
    return {FIRST: xp.zeros_like(w), SECOND: xp.zeros_like(w), PRODUCT: product}


def momentum(options: Options, t: int) -> float:
    """Return μₜ = β₁ (1 − ½·0.96^(t ψ))."""
    share: float = 1 - 0.5 * 0.96 ** (t * options["momentum_decay"])
    return float(options["betas"][0] * share)


def step(at: StepInput) -> tuple[Array, Memory]:
    """Return lr d, the moments and P."""
    xp, (beta1, beta2), form = namespace(at.g), at.options["betas"], at.convention.bias_correction
    mu, mu_next = momentum(at.options, at.t), momentum(at.options, at.t + 1)
    product = xp.asarray(at.memory[PRODUCT] * mu)
    of_gradient, of_first, second = 1.0, 1.0, 1.0
    if form:
        of_gradient, of_first = 1 - float(product), 1 - float(product) * mu_next
        second = 1 - beta2**at.t
    m = beta1 * at.memory[FIRST] + (1 - beta1) * at.g
    s = beta2 * at.memory[SECOND] + (1 - beta2) * (at.g * at.g)
    if form == "compounded":
        m, s, of_first, second = m / of_first, s / second, 1.0, 1.0
    memory = {FIRST: m, SECOND: s, PRODUCT: product}
    if at.faults.moments == "stale":
        m, s = at.memory[FIRST], at.memory[SECOND]
    lr = at.lr
    steep = (lr * (1 - mu) / of_gradient) * at.g + (lr * mu_next / of_first) * m
    return steep / divisor(at, s, second), memory


def written(
    options: Options, convention: Convention, faults: Faults, lr: str, gradient: str
) -> Written:
    """Write the momentum and the moments, and the direction in terms of them."""
    (beta1, beta2), psi = options["betas"], options["momentum_decay"]
    form, uncorrected = convention.bias_correction, convention.epsilon == "uncorrected"
    lines, g = named_gradient(gradient)
    power = f"0.96^(t {psi})" if psi else "1"
    lines += [f"μₜ ← {times(beta1 or '0', f'(1 − ½·{power})')}"]
    if form:
        lines.append("P ← P μₜ, from 1 on")
    of_first, of_second = averaged(beta1, "M", g), averaged(beta2, "S", f"{g}²")
    second = f"(1 − {beta2}ᵗ)" if beta2 else ""
    if form == "compounded":
        of_first = f"{bracketed(of_first)}/(1 − P μₜ₊₁)"
        of_second = f"{bracketed(of_second)}/{second}" if second else of_second
    lines += [f"M ← {of_first}", f"S ← {of_second}"]
    m, s = ("M₋₁", "S₋₁") if faults.moments == "stale" else ("M", "S")
    by_gradient = f"(1 − μₜ) {g}" + ("/(1 − P)" if form else "")
    by_first = f"μₜ₊₁ {m}" + ("/(1 − P μₜ₊₁)" if form is True else "")
    scale = ""
    if form is True and second and uncorrected:
        scale = f"√{second} "
    elif form is True and second:
        lines.append(f"Ŝ ← {s}/{second}")
        s = "Ŝ"
    below = divisor_text(s, options["eps"], convention, faults)
    return Written(lines, f"{scale}({plus(by_gradient, by_first)})/{below}")


NADAM = UpdateRule(
    torch="NAdam",
    options={
        "betas": OPTIONS["betas"],
        "eps": OPTIONS["eps"],
        "momentum_decay": Option(4e-3, "ψ"),
        "decoupled_weight_decay": Option(default=False),
        "maximize": Option(default=False),
    },
    init=init,
    step=step,
    written=written,
    meanings={letter: text for letter, text in OF_ADAM.items() if letter != "A"}
    | {
        "μₜ": "momentum of step t, μₜ₊₁ that of the next",
        "P": "product of all momenta so far",
        "ψ": "momentum_decay",
    },
    examples={"plain": {}},
    torchs=lambda options: {"decay": "decoupled"} if options["decoupled_weight_decay"] else {},
    correction=correction,
    written_correction=written_correction,
    keys=frozenset({"bias_correction", "epsilon", "moments", "root"}),
)
