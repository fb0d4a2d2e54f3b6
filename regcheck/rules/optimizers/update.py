"""One tensor's update: an optimizer's step, and where the penalty enters it, by every convention.

With gradient g, parameter w, penalty λ w and the step Δ(g) that an optimizer subtracts, torch does

    w ← w − Δ(g + λ w)              where its weight decay is coupled
    w ← w − lr λ w − Δ(g)           where it is decoupled

The other forms stand beside their names in `regcheck.rules.convention.KEYS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from regcheck.rules.optimizers.update_rule import Array, Memory, StepInput, UpdateRule


class TensorUpdate(NamedTuple):
    """What a step made of one tensor; all have its shape.

    `penalty` and `delta` are what the penalty alone and what the whole step subtract from w,
    learning rate included, so that conventions with and without lr in them can be compared.
    """

    parameter: Array
    memory: Memory
    penalty: Array
    delta: Array


def update(rule: UpdateRule, at: StepInput, penalize: Callable[[Array], Array]) -> TensorUpdate:
    """Take one step.

    Args:
        rule: the optimizer's.
        at: what the step is taken from; its gradient is clipped, and holds the penalty where
            `decay` is before-clipping.
        penalize: the penalty's gradient at a parameter: λ w, or what the convention makes of it.
    """
    w, lr, decay = at.w, at.lr, penalize(at.w)
    g = -at.g if at.options.get("maximize", False) else at.g
    if at.convention.decay == "gradient":
        g = g + decay
    if g is not at.g:
        at = at._replace(g=g)
    step, memory = rule.step(at)
    if at.faults.decay_rate == "corrected" and rule.correction is not None:
        lr *= rule.correction(at.options, at.t)
    match at.convention.decay:
        case "gradient" | "before-clipping":
            return TensorUpdate(w - step, memory, lr * decay, step)
        case "after-update":
            decay = lr * penalize(w - step)
            return TensorUpdate(w - step - decay, memory, decay, step + decay)
        case "decoupled" | "after-momentum":
            decay = lr * decay  # decoupled-unscaled: without lr
    return TensorUpdate(w - decay - step, memory, decay, decay + step)
