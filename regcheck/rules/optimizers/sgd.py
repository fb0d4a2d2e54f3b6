"""SGD (torch/optim/sgd.py, `_single_tensor_sgd`, torch 2.13).

    v ← g at the first step, else μ v + (1 − τ) g
    d ← g + μ v with Nesterov, else v; g without momentum
    w ← w − lr d

`momentum_form` dampened: v ← μ v + (1 − μ) g from v = 0 on. lr-inside: lr g in the place of g, and
w ← w − d.
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
    times,
)

BUFFER = "momentum_buffer"


def init(options: Options, convention: Convention, faults: Faults, w: Array) -> Memory:
    """Return no velocity, or 0, of which the first step's is μ 0 + (1 − τ) g."""
    return {BUFFER: 0 * w} if faults.first_step == "dampened" else {}


def step(at: StepInput) -> tuple[Array, Memory]:
    """Return lr d and the velocity."""
    mu, tau = at.options["momentum"], at.options["dampening"]
    lr, g, velocity = at.lr, at.g, at.memory.get(BUFFER)
    if mu == 0:
        return lr * g, {}
    match at.convention.momentum_form:
        case "torch":
            velocity = g if velocity is None else mu * velocity + (1 - tau) * g
        case "dampened":
            velocity = (1 - mu) * g if velocity is None else mu * velocity + (1 - mu) * g
        case "lr-inside":
            g = lr * g
            velocity = g if velocity is None else mu * velocity + (1 - tau) * g
    d = g + mu * velocity if at.options["nesterov"] else velocity
    return d if at.convention.momentum_form == "lr-inside" else lr * d, {BUFFER: velocity}


def written(
    options: Options, convention: Convention, faults: Faults, lr: str, gradient: str
) -> Written:
    """Write the velocity, if there is one, and the direction."""
    mu, tau = options["momentum"], options["dampening"]
    if not mu:
        return Written([], gradient)
    lr_inside = convention.momentum_form == "lr-inside"
    g = times(lr, gradient) if lr_inside else gradient
    later = f"v ← {mu} v + {times(f'(1 − {tau})', g)}"
    if convention.momentum_form == "dampened":
        lines = [f"v ← {mu} v + {times(f'(1 − {mu})', g)}"]
    elif not tau:
        lines = [f"v ← {mu} v + {g}"]
    elif faults.first_step == "dampened":
        lines = [later]
    else:
        lines = [f"step 1: v ← {g}", f"later: {later}"]
    return Written(lines, f"{g} + {mu} v" if options["nesterov"] else "v", lr_inside)


def errors(options: Options) -> dict[str, str]:
    """Refuse Nesterov's momentum where torch does."""
    if options["nesterov"] and (options["momentum"] == 0 or options["dampening"] != 0):
        return {"nesterov": "needs a momentum above 0 and no dampening, as in torch"}
    return {}


SGD = UpdateRule(
    torch="SGD",
    options={
        "momentum": Option(0.0, "μ"),
        "dampening": Option(0.0, "τ", least=-math.inf),
        "nesterov": Option(default=False),
    },
    init=init,
    step=step,
    written=written,
    meanings={"v": "velocity, 0 before step 1", "μ": "momentum", "τ": "dampening"},
    examples={
        "plain": {},
        "momentum": {"momentum": "μ", "dampening": "τ"},
        "nesterov": {"momentum": "μ", "nesterov": True},
    },
    notes=("The first step sets v to the gradient itself: it is not dampened.",),
    keys=frozenset({"momentum_form"}),
    linear=True,
    errors=errors,
)
