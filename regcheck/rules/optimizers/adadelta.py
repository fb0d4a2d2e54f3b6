"""Adadelta (torch/optim/adadelta.py, `_single_tensor_adadelta`, torch 2.13).

    S ← ρ S + (1 − ρ) g²                      from 0 on
    d = √(D + ε)/√(S + ε) g
    D ← ρ D + (1 − ρ) d²                      from 0 on
    w ← w − lr d

`epsilon` outside: (√D + ε)/(√S + ε).
"""

from __future__ import annotations

from regcheck.rules.convention import Convention
from regcheck.rules.faults import NO_FAULTS, Faults
from regcheck.rules.optimizers.update_rule import (
    Array,
    Memory,
    Option,
    Options,
    StepInput,
    UpdateRule,
    Written,
    averaged,
    divisor_text,
    named_gradient,
    namespace,
    times,
)

SQUARE, DELTA = "square_avg", "acc_delta"


def init(options: Options, convention: Convention, faults: Faults, w: Array) -> Memory:
    """Return averages of 0."""
    return {SQUARE: namespace(w).zeros_like(w), DELTA: namespace(w).zeros_like(w)}


def step(at: StepInput) -> tuple[Array, Memory]:
    """Return lr d and the averages."""
    xp, rho, eps = namespace(at.g), at.options["rho"], at.options["eps"]

    def root(x: Array) -> Array:
        return xp.sqrt(x + eps) if at.convention.epsilon == "inside" else xp.sqrt(x) + eps

    square = rho * at.memory[SQUARE] + (1 - rho) * (at.g * at.g)
    d = root(at.memory[DELTA]) / root(square) * at.g
    kept = at.lr * d if at.faults.lr_in_average == "inside" else d
    return at.lr * d, {SQUARE: square, DELTA: rho * at.memory[DELTA] + (1 - rho) * (kept * kept)}


def written(
    options: Options, convention: Convention, faults: Faults, lr: str, gradient: str
) -> Written:
    """Write the averages, and the direction between them."""
    rho, eps = options["rho"], options["eps"]
    lines, g = named_gradient(gradient)
    above, below = (divisor_text(x, eps, convention, NO_FAULTS) for x in ("D", "S"))
    kept = f"({lr} d)²" if faults.lr_in_average == "inside" else "d²"
    lines += [
        f"S ← {averaged(rho, 'S', f'{g}²')}",
        f"d ← {times(f'{above}/{below}', g)}",
        f"D ← {averaged(rho, 'D', kept)}",
    ]
    return Written(lines, "d")


def errors(options: Options) -> dict[str, str]:
    """Refuse what torch refuses."""
    return {"rho": "must be at most 1, as in torch"} if options["rho"] > 1 else {}


ADADELTA = UpdateRule(
    torch="Adadelta",
    options={
        "rho": Option(0.9, "ρ"),
        "eps": Option(1e-6, "ε"),
        "maximize": Option(default=False),
    },
    init=init,
    step=step,
    written=written,
    meanings={
        "G": "gradient after any clipping and coupled weight decay",
        "S": "second moment of the gradient, 0 before step 1",
        "D": "second moment of d, 0 before step 1",
        "d": "step without the lr",
        "ρ": "rho, the decay of both moments",
        "ε": "eps",
    },
    examples={"plain": {}},
    torchs=lambda _: {"epsilon": "inside"},
    keys=frozenset({"epsilon", "lr_in_average"}),
    errors=errors,
    scaling=None,
)
