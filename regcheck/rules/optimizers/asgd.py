"""ASGD (torch/optim/asgd.py, `_single_tensor_asgd`, torch 2.13).

    w ← w − ηₜ (g + ν w)
    ηₜ₊₁ = lr/(1 + ν lr t)^γ                  η₁ = lr

with ν `lambd`, a weight decay of its own, and γ `alpha`. A step's η was made in the step before it,
by the lr of then: a schedule acts one step late. Torch holds η in float32, whatever the dtype of w.
The average of all w, which starts after step `t0`, is remembered beside them; no step uses it.
"""

from __future__ import annotations

import math

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
    namespace,
    plus,
    times,
)

RATE, AVERAGE, SHARE = "eta", "ax", "mu"


def init(options: Options, convention: Convention, faults: Faults, w: Array) -> Memory:
    """Return an average of 0 that counts nothing yet; the first step's η is its lr."""
    xp = namespace(w)
    return {AVERAGE: xp.zeros_like(w), SHARE: xp.asarray(1.0, dtype=xp.float32)}


def rate(options: Options, lr: float, t: int) -> float:
    """Return ηₜ₊₁ = lr/(1 + ν lr t)^γ; no number where a ν that is tried makes the root of none."""
    base = 1 + options["lambd"] * lr * t
    return math.nan if base < 0 else float(lr / base ** options["alpha"])


def step(at: StepInput) -> tuple[Array, Memory]:
    """Return η (g + ν w), the next step's η, and the average."""
    xp, single = namespace(at.w), namespace(at.w).float32
    eta, share = float(at.memory.get(RATE, xp.asarray(at.lr, dtype=single))), at.memory[SHARE]
    taken = eta * at.g + (eta * at.options["lambd"]) * at.w
    average = at.memory[AVERAGE]
    average = average + float(share) * (at.w - taken - average)
    memory = {
        RATE: xp.asarray(rate(at.options, at.lr, at.t), dtype=single),
        AVERAGE: average,
        SHARE: xp.asarray(1 / max(1, at.t - at.options["t0"]), dtype=single),
    }
    return taken, memory


def written(
    options: Options, convention: Convention, faults: Faults, lr: str, gradient: str
) -> Written:
    """Write the step's own lr, and the direction with the decay of its own."""
    own, gamma = options["lambd"], options["alpha"]
    power = f"(1 + {own} {lr} (t − 1))^{gamma}" if own and gamma else ""
    rate = f"{lr}/{power}" if power else lr
    direction = plus(gradient, f"{own} w" if own else "")
    return Written([f"ηₜ ← {rate}"], times("ηₜ", direction), lr_inside=True)


ASGD = UpdateRule(
    torch="ASGD",
    options={
        "lambd": Option(1e-4, "ν"),
        "alpha": Option(0.75, "γ", least=-math.inf),
        "t0": Option(1e6, least=-math.inf),
        "maximize": Option(default=False),
    },
    init=init,
    step=step,
    written=written,
    meanings={
        "t": "number of the step, from 1",
        "ηₜ": "the step's own learning rate",
        "ν": "lambd, a weight decay of its own",
        "γ": "alpha, the power by which the learning rate falls",
    },
    examples={"plain": {}},
    notes=("The lr in ηₜ is that of the step before: a schedule acts one step late.",),
    proportional=False,
    scaling={"lambd": 1, "lr": -1},
)
