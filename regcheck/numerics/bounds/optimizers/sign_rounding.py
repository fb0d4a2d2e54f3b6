"""Error propagation through Rprop, whose steps jump where a gradient's sign may be another.

The other side's gradient is g + e with |e| ≤ δg. Of each entry are carried the signs that its last
gradient p may have had there, of −, 0 and +, and the least and the largest size Δ that its step may
have there. From these follow which of g p < 0, = 0 and > 0 are possible, and from that the factors
on Δ, the signs of the new p, and all moves Δ sign(p) that the other side can have made. The bound
is the distance to the farthest of them: rounding alone while all signs are certain, and up to twice
the step itself where one is not.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from regcheck.numerics.bounds.step_rounding import (
    Array,
    Carried,
    OptimizerStep,
    Propagated,
    settled,
)

Mask = NDArray[np.bool_]

COARSE = 1e-10
"""A unit of rounding above this is float32's."""

VANISHING = {True: 1.1e-19, False: 1.5e-154}
"""√ of the smallest normal number of float32 or float64: such a gradient's products may be 0."""


def propagate_rprop(u: float, step: OptimizerStep, noise: Array, carried: Carried) -> Propagated:
    """Propagate through torch.optim.Rprop."""
    option, g = step.options, np.where(step.options["maximize"], -step.gradient, step.gradient)
    (shrink, grow), (floor, most) = option["etas"], option["step_sizes"]
    known = np.isfinite(noise) & np.isfinite(g)
    error = noise + u * np.abs(g)
    negative, positive = ~(g - error >= 0), ~(g + error <= 0)
    zero = ~(np.abs(g) - error > VANISHING[u > COARSE])
    lr = option["lr"] + np.zeros(g.shape)
    least, largest = carried.get("least", lr * (1 - u)), carried.get("largest", lr * (1 + u))
    was_negative, was_zero, was_positive = (
        carried.get(name, np.full(g.shape, float(name == "zero"))) > 0
        for name in ("negative", "zero", "positive")
    )
    turned = (negative & was_positive) | (positive & was_negative)
    went_on = (negative & was_negative) | (positive & was_positive)
    stood = zero | was_zero
    down = np.where(turned, shrink * (1 - 3 * u), np.where(stood, 1.0, grow * (1 - 3 * u)))
    up = np.where(went_on, grow * (1 + 3 * u), np.where(stood, 1.0, shrink * (1 + 3 * u)))
    least, largest = (
        np.minimum(np.maximum(size, floor * way), most * way)
        for size, way in ((least * down, 1 - u), (largest * up, 1 + u))
    )
    signs: dict[str, Mask] = {
        "negative": negative & (was_negative | stood),
        "zero": zero | turned,
        "positive": positive & (was_positive | stood),
    }
    moved = step.before - step.after
    farthest = np.zeros(g.shape)
    for name, way in (("negative", -1), ("zero", 0), ("positive", 1)):
        for size in (least, largest):
            farthest = np.maximum(farthest, np.where(signs[name], np.abs(way * size - moved), 0))
    bound = settled(u, step, np.where(known, farthest, np.inf))
    kept = {name: possible.astype(np.float64) for name, possible in signs.items()}
    return Propagated(bound, {"least": least, "largest": largest, **kept})
