"""Adagrad (torch/optim/adagrad.py, `_single_tensor_adagrad`, torch 2.13).

    Q ← Q + g²                                from initial_accumulator_value on
    w ← w − lr/(1 + (t − 1) δ) g/(√Q + ε)     δ the lr_decay

`accumulator_start`: Q begins there, at 0.1 in Keras and optax. `epsilon` inside: √(Q + ε), as both
have it.
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
    divisor_text,
    named_gradient,
    namespace,
    started,
)

SUM = "sum"


def init(options: Options, convention: Convention, faults: Faults, w: Array) -> Memory:
    """Return the start of the sum."""
    return {SUM: namespace(w).full_like(w, convention.accumulator_start)}


def step(at: StepInput) -> tuple[Array, Memory]:
    """Return lr/(1 + (t − 1) δ) g/(√Q + ε) and the sum."""
    xp, eps = namespace(at.g), at.options["eps"]
    memory = {SUM: at.memory[SUM] + at.g * at.g}
    q = at.memory[SUM] if at.faults.moments == "stale" else memory[SUM]
    root: Callable[[Array], Array] = xp.positive if at.faults.root == "missing" else xp.sqrt
    divisor = root(q + eps) if at.convention.epsilon == "inside" else root(q) + eps
    steps = at.t if at.faults.lr_decay == "early" else at.t - 1
    return at.lr / (1 + steps * at.options["lr_decay"]) * at.g / divisor, memory


def written(
    options: Options, convention: Convention, faults: Faults, lr: str, gradient: str
) -> Written:
    """Write the sum, and the direction in terms of it."""
    decay, (lines, g) = options["lr_decay"], named_gradient(gradient)
    lines += started("Q", lambda q: f"{q} + {g}²" if q else f"{g}²", convention.accumulator_start)
    divisor = divisor_text(
        "Q₋₁" if faults.moments == "stale" else "Q", options["eps"], convention, faults
    )
    if decay:
        steps = "t" if faults.lr_decay == "early" else "(t − 1)"
        divisor = f"((1 + {steps} {decay}) {divisor})"
    return Written(lines, f"{g}/{divisor}")


ADAGRAD = UpdateRule(
    torch="Adagrad",
    options={
        "lr_decay": Option(0.0, "δ"),
        "initial_accumulator_value": Option(0.0, "q"),
        "eps": Option(1e-10, "ε"),
        "maximize": Option(default=False),
    },
    init=init,
    step=step,
    written=written,
    meanings={
        "G": "gradient after any clipping and coupled weight decay",
        "Q": "sum of the squared gradients, 0 before step 1",
        "q": "initial_accumulator_value",
        "t": "number of the step, from 1",
        "δ": "lr_decay",
        "ε": "eps",
    },
    examples={
        "plain": {},
        "with all": {"lr_decay": "δ", "initial_accumulator_value": "q"},
    },
    torchs=lambda options: {"accumulator_start": options["initial_accumulator_value"] or 0.0},
    scaling={"eps": 1, "initial_accumulator_value": 2},
    start_option="initial_accumulator_value",
    keys=frozenset({"accumulator_start", "epsilon", "lr_decay", "moments", "root"}),
)
