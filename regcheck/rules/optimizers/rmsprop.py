"""RMSprop (torch/optim/rmsprop.py, `_single_tensor_rmsprop`, torch 2.13).

    S ← α S + (1 − α) g²                      from 0 on
    M ← α M + (1 − α) g                       likewise, where it is centered; else M is 0
    d = g/(√(S − M²) + ε)
    v ← μ v + d                               from 0 on; d itself without momentum
    w ← w − lr v

`epsilon` inside: √(S − M² + ε), as in Keras. `accumulator_start`: S begins there, at 1 in TF 1.
`momentum_form` dampened: v ← μ v + (1 − μ) d. lr-inside, as in Keras: v ← μ v + lr d, w ← w − v.
"""

from __future__ import annotations

from collections.abc import Callable

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
    divisor_text,
    named_gradient,
    namespace,
    plus,
    share,
    started,
    times,
)

SQUARE, MEAN, BUFFER = "square_avg", "grad_avg", "momentum_buffer"


def init(options: Options, convention: Convention, faults: Faults, w: Array) -> Memory:
    """Return averages and a velocity of 0, or that of the squares at its start."""
    xp = namespace(w)
    memory = {SQUARE: xp.full_like(w, convention.accumulator_start)}
    if options["centered"]:
        memory[MEAN] = xp.zeros_like(w)
    if options["momentum"]:
        memory[BUFFER] = xp.zeros_like(w)
    return memory


def step(at: StepInput) -> tuple[Array, Memory]:
    """Return lr v, the averages and the velocity."""
    xp, alpha, eps = namespace(at.g), at.options["alpha"], at.options["eps"]
    memory = {SQUARE: alpha * at.memory[SQUARE] + share(alpha, at.faults) * (at.g * at.g)}
    if at.options["centered"]:
        memory[MEAN] = alpha * at.memory[MEAN] + (1 - alpha) * at.g
    known = at.memory if at.faults.moments == "stale" else memory
    s = known[SQUARE]
    if at.options["centered"]:
        s = s - known[MEAN] * known[MEAN]
    root: Callable[[Array], Array] = xp.positive if at.faults.root == "missing" else xp.sqrt
    d = at.g / (root(s + eps) if at.convention.epsilon == "inside" else root(s) + eps)
    mu, lr = at.options["momentum"], at.lr
    if not mu:
        return lr * d, memory
    match at.convention.momentum_form:
        case "torch":
            v = mu * at.memory[BUFFER] + d
        case "dampened":
            v = mu * at.memory[BUFFER] + (1 - mu) * d
        case "lr-inside":
            v = mu * at.memory[BUFFER] + lr * d
    memory[BUFFER] = v
    return v if at.convention.momentum_form == "lr-inside" else lr * v, memory


def steepness(faults: Faults) -> int:
    """Return 3 where torch's S loses M² to cancellation.

    With c = √(S/(S − M²)), a step is c times torch's, and rounding in S is c² times as large a
    share of the difference.
    """
    return 3 if faults.centered == "added" else 1


def written(
    options: Options, convention: Convention, faults: Faults, lr: str, gradient: str
) -> Written:
    """Write the averages, and the direction or the velocity in terms of them."""
    alpha, mu, form = options["alpha"], options["momentum"], convention.momentum_form
    lines, g = named_gradient(gradient)
    lines += started(
        "S", lambda s: averaged(alpha, s, f"{g}²", faults), convention.accumulator_start
    )
    of, stale = "S", "₋₁" if faults.moments == "stale" else ""
    if options["centered"]:
        lines.append(f"M ← {averaged(alpha, 'M', g)}")
        of = f"S{stale} − M{stale}²"
    else:
        of += stale
    d = f"{g}/{divisor_text(of, options['eps'], convention, faults)}"
    if not mu:
        return Written(lines, d)
    match form:
        case "torch":
            lines.append(f"v ← {mu} v + {d}")
        case "dampened":
            lines.append(f"v ← {mu} v + (1 − {mu}) {d}")
        case "lr-inside":
            lines.append(f"v ← {plus(f'{mu} v', times(lr, d))}")
    return Written(lines, "v", form == "lr-inside")


RMSPROP = UpdateRule(
    torch="RMSprop",
    options={
        "alpha": Option(0.99, "α"),
        "eps": Option(1e-8, "ε"),
        "momentum": Option(0.0, "μ"),
        "centered": Option(default=False),
        "maximize": Option(default=False),
    },
    init=init,
    step=step,
    written=written,
    meanings={
        "G": "gradient after any clipping and coupled weight decay",
        "S": "second moment of the gradient, 0 before step 1",
        "M": "first moment of the gradient, 0 before step 1",
        "v": "velocity, 0 before step 1",
        "α": "alpha, the decay of the moments",
        "μ": "momentum",
        "ε": "eps",
    },
    examples={
        "plain": {},
        "momentum": {"momentum": "μ"},
        "centered": {"centered": True},
    },
    keys=frozenset(
        {"accumulator_start", "averages", "epsilon", "momentum_form", "moments", "root"}
    ),
    steepness=steepness,
)
