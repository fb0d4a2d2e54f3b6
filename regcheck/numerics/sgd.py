"""SGD's step for one tensor, by every convention.

torch's own (torch/optim/sgd.py, `_single_tensor_sgd`), with gradient g and parameter w:

    g ← g + λ w
    v ← g at the first step, else μ v + (1 − τ) g
    d ← g + μ v with Nesterov, else v
    w ← w − lr d

The other forms stand beside their names in `regcheck.rules.convention.KEYS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from regcheck.rules.convention import Convention
from regcheck.rules.settings import SgdSettings

Array = NDArray[np.floating]


class TensorUpdate(NamedTuple):
    """What a step made of one tensor; all have its shape.

    `penalty` and `delta` are what the penalty alone and what the whole step subtract from w,
    learning rate included, so that conventions with and without lr in them can be compared.
    """

    parameter: Array
    velocity: Array | None
    penalty: Array
    delta: Array


def sgd(
    options: SgdSettings,
    convention: Convention,
    lr: float,
    w: Array,
    g: Array,
    penalize: Callable[[Array], Array],
    velocity: Array | None,
) -> TensorUpdate:
    """Take one step from w.

    Args:
        options: momentum, nesterov and dampening.
        convention: where the penalty enters, and how the velocity is built.
        lr: this step's learning rate.
        w: the parameter before the step.
        g: the clipped gradient, in which the penalty is where `decay` is before-clipping.
        penalize: the penalty's gradient at a parameter: λ w, or what the convention makes of it.
        velocity: that of the last step; None before the first.
    """
    decay = penalize(w)
    if convention.decay == "gradient":
        g = g + decay
    d, velocity = direction(options, convention, lr, g, velocity)
    # lr-inside: the velocity holds the lr already.
    step = d if convention.momentum_form == "lr-inside" and options.momentum else lr * d
    match convention.decay:
        case "gradient" | "before-clipping":
            return TensorUpdate(w - step, velocity, lr * decay, step)
        case "after-update":
            decay = lr * penalize(w - step)
            return TensorUpdate(w - step - decay, velocity, decay, step + decay)
        case "decoupled" | "after-momentum":
            decay = lr * decay  # decoupled-unscaled: without lr
    return TensorUpdate(w - decay - step, velocity, decay, decay + step)


def direction(
    options: SgdSettings, convention: Convention, lr: float, g: Array, velocity: Array | None
) -> tuple[Array, Array | None]:
    """Return the direction that the convention's momentum makes of a gradient, and the velocity."""
    mu, tau = options.momentum, options.dampening
    if mu == 0:
        return g, None
    match convention.momentum_form:
        case "torch":
            velocity = g if velocity is None else mu * velocity + (1 - tau) * g
        case "dampened":
            velocity = (1 - mu) * g if velocity is None else mu * velocity + (1 - mu) * g
        case "lr-inside":
            g = lr * g
            velocity = g if velocity is None else mu * velocity + (1 - tau) * g
    return (g + mu * velocity if options.nesterov else velocity), velocity
