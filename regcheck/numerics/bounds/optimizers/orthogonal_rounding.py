"""Error propagation through Muon, whose iteration is rounded to bfloat16: by samples of it.

Two correct sides sum in another order in float32, u₃₂ = 2⁻²⁴, before they round to bfloat16. Nearly
always that is the same number; but where a sum is near a tie of bfloat16's it may be the next one,
2⁻⁸ of an entry apart, and all that follows moves. So Z is taken through the iteration several
times, with what may be wrong put in before each rounding:

    δv ← μ δv + |1 − μ| δg + 2u |v| + 6u |v − g|        δZ = μ δv + |1 − μ| δg + .., or δv
    of Z ± δZ, and of each sum of n terms ± u₃₂ (min(n, 4 √n) + 2) Σ|t_k|

with all signs +, all −, and pairs of opposite random ones, so that what is near one tie alone falls
on both sides of it. With x the last E before it is rounded, and r the most that samples of any of
its entries are apart, another correct side may have there anything that

    bfloat16(min x − 2r) .. bfloat16(max x + 2r)

holds: r is the largest entry's, since few samples do not hold the extremes of each. Where no sum
is near a tie, all samples are the same but for u₃₂, and no entry of E may differ. That is an
extreme, and no deviation that adds up at random. So the limit of 8 bounds is to be twice the
interval, and the bound is a quarter of it.

torch takes ω₂ K + ω₃ K K, and ω₁ E + P E, as one operation, which rounds once. Whoever writes
Muon by hand has two or three, each rounded to bfloat16, u = 2⁻⁹, before their sum is: of that,
± u |ω₂ K| ± 2u |ω₃ K K| more, and ± u |ω₁ E| ± 2u |P E|. That does add up at random: of 2,000
matrices none had more than 0.22 of the interval, of which the limit of 8 bounds is to be half.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from regcheck.numerics.bounds.step_rounding import (
    Array,
    Carried,
    OptimizerStep,
    Propagated,
    settled,
)
from regcheck.rules.optimizers.muon import (
    BUFFER,
    SUBNORMAL,
    Sizes,
    adjustment,
    bfloat16,
    orthogonal,
)

U32, U16 = 2.0**-24, 2.0**-9
"""Units of rounding of float32 and bfloat16."""

PAIRS = 3
"""Pairs of samples with random signs."""

FARTHER = 2.0
"""How many times what samples are apart by counts."""

PART, PART_OF_EACH = 1 / 4, 1 / 16
"""The share that a bound is of the interval which holds all that rounding can do: torch's own, and
that of operations which are rounded each.
"""


def propagate_muon(u: float, step: OptimizerStep, noise: Array, carried: Carried) -> Propagated:
    """Propagate through torch.optim.Muon, tensor by tensor; a vector among them is not trained."""
    v, known = step.state[BUFFER], carried.get(BUFFER, np.zeros_like(noise))
    each = step.options.get("of_tensors", [step.options] * len(step.shapes))
    lr, start = np.broadcast_to(step.options["lr"], v.shape), 0
    moved, error = np.zeros_like(v), np.zeros_like(v)
    for shape, options in zip(step.shapes, each, strict=True):
        part = slice(start, start + math.prod(shape))
        start = part.stop
        if len(shape) != 2:
            continue
        given = (x[part].reshape(shape) for x in (step.gradient, v, noise, known))
        spread, after = of_matrix(u, options, *given, each_rounds=step.each_rounds)
        moved[part] = lr[part] * (adjustment(options, *shape) * spread).ravel()
        error[part] = after.ravel()
    decoupled = step._replace(options={**step.options, "decoupled_weight_decay": True})
    part_of = PART_OF_EACH if step.each_rounds else PART
    return Propagated(settled(u, decoupled, part_of * moved), {BUFFER: error})


def of_matrix(
    u: float,
    options: Mapping[str, Any],
    g: Array,
    v: Array,
    noise: Array,
    known: Array,
    *,
    each_rounds: bool,
) -> tuple[Array, Array]:
    """Return how far apart two correct sides may have E, and δv after the step.

    Args:
        u: the unit roundoff.
        options: of the tensor.
        g: the gradient.
        v: the velocity after the step.
        noise: the gradient's, δg.
        known: δv before the step.
        each_rounds: whether each operation may be rounded by itself.
    """
    mu = options["momentum"]
    new = abs(1 - mu) * noise + 2 * u * np.abs(v) + 6 * u * np.abs(v - g)
    error = mu * known + new
    if options["nesterov"]:
        Z, of_Z = g + mu * (v - g), mu * error + new
        return possible(Z, of_Z, options, each_rounds=each_rounds), error
    return possible(v, error, options, each_rounds=each_rounds), error


def possible(
    Z: Array, error: Array, options: Mapping[str, Any], *, each_rounds: bool = False
) -> Array:
    """Return how far apart two correct sides may have each entry of E; inf where it may be none."""
    if not np.isfinite(error).all():
        return np.full_like(Z, np.inf)
    signs, last = signs_of(np.random.default_rng(0)), [Z]

    def summed(exact: Array, terms: int, size: Sizes, each: Sizes) -> Array:
        rounded = U32 * (min(terms, 4 * math.sqrt(terms)) + 2) * size() + terms * SUBNORMAL
        if each_rounds:
            rounded += U16 * each()
        last[0] = exact + signs(exact.shape[1:]) * rounded
        found: Array = bfloat16(last[0])
        return found

    E = orthogonal(Z + signs(Z.shape) * error, options, summed)
    x = last[0] if options["ns_steps"] else E
    if x.shape != E.shape:
        x = np.swapaxes(x, -2, -1)
    least, most = x.min(axis=0), x.max(axis=0)
    apart = FARTHER * (most - least).max()
    spread = bfloat16(most + apart) - bfloat16(least - apart)
    return np.where(np.isfinite(spread), spread, np.inf)


def signs_of(draws: np.random.Generator) -> Callable[[tuple[int, ...]], Array]:
    """Return what draws each sample's signs for a shape: none, all +, all −, and random pairs."""

    def signs(shape: tuple[int, ...]) -> Array:
        some = draws.integers(0, 2, size=(PAIRS, *shape)) * 2.0 - 1
        one = np.ones((1, *shape))
        return np.concatenate([0 * one, one, -one, some, -some])

    return signs
